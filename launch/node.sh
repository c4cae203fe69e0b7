#!/usr/bin/env bash
# One node of a run: starts its processes with `accelerate launch` and ends with the program's own exit code. Every other
# script starts this one; by itself it is for schedulers that have no script here. On each of two nodes:
#
#   bash launch/node.sh --nodes 2 --rank R --head HOST [--port 29500] [train] --data_dir DATA --output_dir RUN
#
#   --nodes N, --rank R   how many nodes, and which of them this is, from 0 (default: what Slurm says, else 1 and 0)
#   --head HOST           the node of rank 0, by a name or address that all nodes know (default: this machine)
#   --port P              a free port there (default: 29500 for several nodes, any for one)
#   --strategy NAME, --processes N, --cpu, --dry-run   as launch/lib.sh says
#   train                 or profile, doctor, evaluate; then settings of that verb. --output_dir must be the same, and
#                         seen by all nodes
#
# SIGTERM or SIGUSR1: the run saves itself at the next step and ends with exit code 75; the same command resumes it.
set -euo pipefail
# shellcheck source=SCRIPTDIR/lib.sh
. "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/lib.sh"

NODES=${SLURM_STEP_NUM_NODES:-1} RANK=${SLURM_NODEID:-0} HEAD='' PORT=''
read_arguments "${BASH_SOURCE[0]}" nodes rank head port -- "$@"
whole_number --nodes "$NODES"
case "$RANK" in '' | *[!0-9]*) fail "--rank takes a whole number from 0, found '$RANK'" ;; esac
[ "$RANK" -lt "$NODES" ] || fail "--rank $RANK of --nodes $NODES: ranks are counted from 0"
[ "$NODES" = 1 ] || [ -n "$HEAD" ] || fail "--nodes $NODES needs --head HOST, the node of rank 0"
find_config
count_processes
set_environment "$NODES"
OUTPUT_DIR=$(setting output_dir)

if [ "$DRY_RUN" = 1 ]; then PYTHON=${PAL_DIST_PYTHON:-python}; else find_python; fi
command=("$PYTHON" -m accelerate.commands.launch --config_file "$CONFIG" --num_processes $((NODES * PROCESSES)))
if [ "$NODES" -gt 1 ]; then
  command+=(--num_machines "$NODES" --machine_rank "$RANK" --main_process_ip "$HEAD" --main_process_port "${PORT:-29500}")
elif [ "$PROCESSES" -gt 1 ]; then
  command+=(--main_process_port "${PORT:-0}")  # 0: any free one
fi
command+=(-m pal_dist "$VERB" "${SETTINGS[@]}")

if [ "$DRY_RUN" = 1 ]; then
  echo "# node $RANK of $NODES: $PROCESSES of $((NODES * PROCESSES)) processes, on $([ "$GPUS" = 0 ] && echo processors || echo GPUs)"
  for name in OMP_NUM_THREADS PYTORCH_CUDA_ALLOC_CONF NCCL_DEBUG PAL_DIST_EXPECTED_RANKS PAL_DIST_EXPECTED_GPUS; do
    printf '%s=%s ' "$name" "${!name}"
  done
  [ "$CPU" = 0 ] || printf "CUDA_VISIBLE_DEVICES='' ACCELERATE_USE_CPU=true "
  printf '\\\n  %s\n' "$(quoted "${command[@]}")"
  exit 0
fi

# Launchers turn every failure into a 1: the first process that fails leaves its own exit code here.
if [ -n "${PAL_DIST_EXIT_FILE:-}" ]; then shared=1; else
  shared=0 PAL_DIST_EXIT_FILE=$(mktemp)
  export PAL_DIST_EXIT_FILE
  trap 'rm -f "$PAL_DIST_EXIT_FILE"' EXIT
fi
kills=$(count_host_kills)
"${command[@]}" &
launcher=$!
# shellcheck disable=SC2329  # the traps call it
stop() { if [ -n "$OUTPUT_DIR" ]; then ask_to_stop "$1"; else kill -TERM "$launcher" 2>/dev/null || true; fi; }
trap 'stop SIGTERM' TERM
trap 'stop SIGUSR1' USR1
code=0
wait_for "$launcher" || code=$?
# The trap of a slow machine may have come after the processes had seen the other node's request, and stopped: whoever
# goes on would find it.
trap '' TERM USR1
said=$(cat "$PAL_DIST_EXIT_FILE" 2>/dev/null || true)
[ -z "$said" ] || code=$said
[ "$code" != 75 ] || [ -z "$OUTPUT_DIR" ] || rm -f "$OUTPUT_DIR/stop"
if [ "$code" != 0 ] && [ "$(count_host_kills)" -gt "$kills" ]; then
  say "the kernel has killed a process on $(hostname): the memory of the HOST (not of the GPU) that this job may use was" \
    "full. Ask for more (Slurm: --mem), or start fewer processes or a strategy without offload"
fi
# Whoever shares the file reads there that the run has stopped: a failure here would only make it kill the other nodes.
if [ "$shared" = 1 ] && [ "$code" = 75 ]; then code=0; fi
[ "$shared" = 1 ] || explain "$code"
exit "$code"
