#!/usr/bin/env bash
# From an empty checkout to a trained model: makes .venv, installs pal-dist, trains a real pretrained encoder with a PAL
# for each of three tasks on the built-in SYNTHETIC corpus, scores it, writes predictions.
#
#   bash launch/quickstart.sh            about 5 minutes on 2 CPU cores; a GPU is used where there is one
#
# PYTHON=python3.12   the Python to use (3.10 or newer)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
  -h|--help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac

say() { printf '\n== %s\n' "$*"; }

if [ ! -x .venv/bin/pal-dist ]; then
  say "installing into .venv (PyTorch is large: one to several minutes)"
  "${PYTHON:-python3}" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
  .venv/bin/python -m pip install --quiet --disable-pip-version-check '.[offline,compare]'
fi

say "training three tasks at once on the built-in synthetic corpus"
.venv/bin/pal-dist train --epochs 2 --output_dir runs/quickstart

say "writing predictions for the dev split"
.venv/bin/pal-dist predict runs/quickstart --split dev

say "asking the trained model"
.venv/bin/pal-dist predict runs/quickstart --task sst --text "the script is not superb ."
.venv/bin/pal-dist predict runs/quickstart --task sts --text "a man is riding a horse ." --text_b "a guy rides a horse ."

say "done. See the curves with: .venv/bin/tensorboard --logdir runs"
