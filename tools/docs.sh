#!/usr/bin/env bash
# Builds the docs as a site in site/. A dead link or a warning is an error.
source "$(dirname "$0")/environment.sh"
make_environment requirements.txt requirements-dev.txt

# The theme would print an advertisement of its successor.
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet
echo "site/index.html"
