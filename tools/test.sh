#!/usr/bin/env bash
# Runs all tests but the long ones; arguments go to pytest: tools/test.sh -k schedule
source "$(dirname "$0")/environment.sh"
make_environment requirements.txt requirements-dev.txt

# A file of tests stays in one process, so that its fixtures run once.
exec .venv/bin/python -m pytest --numprocesses=2 --dist=loadfile "$@"
