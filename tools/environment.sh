# Sourced by the other scripts: makes .venv once, and again when the requirements change.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

make_environment() { # [requirements file]...
  local digest
  digest=$(cat "$@" pyproject.toml | sha256sum)
  if [[ "$(cat .venv/requirements.sha256 2>/dev/null)" != "$digest" ]]; then
    echo "Installing into .venv: $*"
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
      { echo "Python 3.11 is needed. Received: $("${PYTHON:-python3}" --version)." \
             "Set PYTHON to a Python 3.11." >&2; exit 2; }
    "${PYTHON:-python3}" -m venv .venv
    local arguments=()
    for file in "$@"; do arguments+=(-r "$file"); done
    .venv/bin/pip install --quiet --disable-pip-version-check "${arguments[@]}"
    .venv/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
    echo "$digest" >.venv/requirements.sha256
  fi
}
