#!/usr/bin/env bash
# Style, types and import layers.
source "$(dirname "$0")/environment.sh"
make_environment requirements.txt requirements-dev.txt

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy tf_lbsgd
.venv/bin/python -m pytest -q tests/test_import_layers.py
