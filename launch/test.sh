#!/usr/bin/env bash
# Everything CI checks, in a fresh virtual environment: ruff, import order, types, the whole test suite.
#
#   bash launch/test.sh [pytest arguments]          everything: minutes
#   bash launch/test.sh --unit [pytest arguments]   tests/unit alone, in an environment that is kept: under a minute
#
# PAL_DIST_SHARED=FOLDER   real data and golden vectors (not part of the project); tests that need them skip without
# PROCESSES=3              tests that run at once
# PYTHON=python3.12        the Python to use (3.10 or newer)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
  -h|--help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac

# make_environment NAME   a new one, in which the project is installed as it lies here
make_environment() {
  rm -rf "$1"
  "${PYTHON:-python3}" -m venv "$1"
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade pip
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[dev,offline]'
  cp pyproject.toml "$1/installed.toml"
}

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [ "${1:-}" = --unit ]; then
  shift
  environment=.venv-unit
  if ! cmp --silent pyproject.toml "$environment/installed.toml"; then
    printf 'installing into %s: the first time, or pyproject.toml has changed\n' "$environment" >&2
    make_environment "$environment"
  fi
  export PATH="$PWD/$environment/bin:$PATH"
  exec python -m pytest tests/unit --numprocesses "${PROCESSES:-2}" --dist worksteal "$@"
fi

environment=.venv-test
make_environment "$environment"
export PATH="$PWD/$environment/bin:$PATH"
ruff check .
ruff format --check .
lint-imports
mypy
python -m pytest --numprocesses "${PROCESSES:-3}" --dist worksteal --durations 12 "$@"
