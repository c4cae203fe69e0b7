#!/usr/bin/env bash
# Everything CI checks, in a fresh virtual environment: ruff, types, the whole test suite.
#
#   bash launch/test.sh [pytest arguments]
#
# PAL_DIST_SHARED=FOLDER   real data and golden vectors (not part of the project); tests that need them skip without
# PROCESSES=3              tests that run at once (files of them)
# PYTHON=python3.12        the Python to use (3.10 or newer)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
  -h|--help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac

environment=.venv-test
rm -rf "$environment"
"${PYTHON:-python3}" -m venv "$environment"
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade pip
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[dev,offline]'
export PATH="$PWD/$environment/bin:$PATH"

ruff check .
ruff format --check .
mypy
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} python -m pytest --numprocesses "${PROCESSES:-3}" --dist loadfile --no-loadscope-reorder --durations 12 "$@"
