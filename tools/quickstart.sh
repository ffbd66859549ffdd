#!/usr/bin/env bash
# Trains a small ResNet on the bundled images with two local workers, by the paper's method.
# The run folder is the argument, or a new one under runs/, which is printed.
source "$(dirname "$0")/environment.sh"
make_environment requirements.txt

exec .venv/bin/python -m tf_lbsgd.cli.launch --num_workers=2 -- \
  --recipe=quickstart ${1:+"--run_dir=$1"}
