# Sourced by the other scripts: makes .venv once, and again when the requirements change.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

make_environment() { # [requirements file]...
  local digest
  digest=$(cat "$@" pyproject.toml | sha256sum)
  if [[ "$(cat .venv/requirements.sha256 2>/dev/null)" != "$digest" ]]; then
    check_python
    echo "Installing into .venv: $*"
    "${PYTHON:-python3}" -m venv .venv
    local arguments=()
    for file in "$@"; do arguments+=(-r "$file"); done
    .venv/bin/pip install --quiet --disable-pip-version-check "${arguments[@]}"
    .venv/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
    echo "$digest" >.venv/requirements.sha256
  fi
}

check_python() {
  local python="${PYTHON:-python3}"
  "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' ||
    { echo "Python 3.11, 3.12 or 3.13 is needed. Received: $("$python" --version)." \
           "Set PYTHON to one of them, such as PYTHON=python3.12." >&2; exit 2; }
}
