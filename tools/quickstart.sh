#!/usr/bin/env bash
# Trains a small ResNet on the bundled images with two local workers, by the paper's method.
source "$(dirname "$0")/environment.sh"
make_environment requirements.txt

run_dir="${1:-runs/quickstart-$(date +%Y%m%d-%H%M%S)}"
exec .venv/bin/python -m tf_lbsgd.cli.launch --num_workers=2 -- \
  --flagfile=flags/quickstart.flags --run_dir="$run_dir"
