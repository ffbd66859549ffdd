#!/usr/bin/env bash
# Style, types, import layers and the docs site.
source "$(dirname "$0")/environment.sh"
make_environment requirements.txt requirements-dev.txt

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy tf_lbsgd
.venv/bin/python -m pytest -q tests/test_import_layers.py
bash tools/docs.sh
