#!/usr/bin/env bash
# Trains on this machine: on all of its GPUs, or on its processors where it has none.
#
#   bash launch/local.sh --data_dir DATA --output_dir RUN [--strategy zero2] [settings of train]
#
#   --strategy NAME, --processes N, --cpu, --dry-run   as launch/lib.sh says
#
# The same command resumes from the last checkpoint in RUN.
set -euo pipefail
# shellcheck source=SCRIPTDIR/lib.sh
. "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/lib.sh"
case " $* " in *' --help '* | *' -h '*) show_help "${BASH_SOURCE[0]}"; exit 0 ;; esac
exec bash "$LAUNCH/node.sh" --nodes 1 --rank 0 "$@"
