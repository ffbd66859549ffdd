#!/usr/bin/env bash
# Runs all tests but the long ones; arguments go to pytest: tools/test.sh -k schedule
source "$(dirname "$0")/environment.sh"
make_environment requirements.txt requirements-dev.txt

exec .venv/bin/python -m pytest "$@"
