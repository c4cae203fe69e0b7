#!/usr/bin/env bash
# The paper's run on one T4 of 16 GB: three tasks, PALs, 128 examples of each task in a step. It is planned first: what
# does not fit is said before anything is loaded, with the settings that would (exit code 3).
#
#   bash launch/t4.sh --data_dir DATA [--output_dir RUN] [settings of train]
#
#   --gpu KIND     plan for another GPU of `pal-dist plan --help` (default: t4)
#   --cpu          train on processors, planned for the T4 all the same
#   --dry-run      plan, and print what would be run
#
# The same command resumes from the last checkpoint in RUN (default: runs/t4).
set -euo pipefail
# shellcheck source=SCRIPTDIR/lib.sh
. "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/lib.sh"

GPU=t4
read_arguments "${BASH_SOURCE[0]}" gpu -- "$@"
# The paper's settings (section 5.2: BERT-base, batch 128, dropout 0.2, round robin), unless given otherwise.
while read -r name value; do
  [ -n "$(setting "$name")" ] || SETTINGS+=("--$name" "$value")
done <<'SETTINGS'
model bert-base-uncased
tasks sst,para,sts
batch_size 128
dropout 0.2
output_dir runs/t4
SETTINGS

find_python
plan=()
for index in "${!SETTINGS[@]}"; do  # where the run lies is nothing to plan
  case "${SETTINGS[index]}" in
    --output_dir) skip=$((index + 1)) ;;
    --output_dir=*) ;;
    *) [ "${skip:-}" = "$index" ] || plan+=("${SETTINGS[index]}") ;;
  esac
done
say "planning for one $GPU: pal-dist plan --gpu $GPU $(quoted "${plan[@]}")"
"$PYTHON" -m pal_dist plan --gpu "$GPU" "${plan[@]}"
if [ "$CPU$DRY_RUN" = 00 ] && [ "$(count_gpus)" = 0 ]; then
  fail "this machine shows no GPU (nvidia-smi -L); to train on its processors all the same: --cpu"
fi
words=("$VERB" --strategy "${STRATEGY:-t4_single}" --processes 1 "${SETTINGS[@]}")
[ "$CPU" = 0 ] || words+=(--cpu)
[ "$DRY_RUN" = 0 ] || words+=(--dry-run)
exec bash "$LAUNCH/node.sh" "${words[@]}"
