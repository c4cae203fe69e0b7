# shellcheck shell=bash
# What the batch scripts share; sourced after Slurm has started one of them on the first node of its job.
# shellcheck source=SCRIPTDIR/../lib.sh
. "$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/lib.sh"

FIRST_PORT=20000 PORTS=10000

# free_port NUMBER   a port that this node has free, found from the number on; neighbours look in other places.
free_port() {
  "$PYTHON" - "$1" "$FIRST_PORT" "$PORTS" <<'PYTHON'
import socket, sys
number, first, count = map(int, sys.argv[1:])
for port in (first + (number + 1009 * turn) % count for turn in range(200)):
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            continue
        print(port)
        sys.exit()
sys.exit(f"no free port among 200 from {first} to {first + count}")
PYTHON
}

# Sets HOSTS, NODES. Outside of a job (--dry-run) as many as SLURM_JOB_NUM_NODES says, without names.
find_hosts() {
  NODES=${SLURM_JOB_NUM_NODES:-1}
  if [ -n "${SLURM_JOB_NODELIST:-}" ]; then
    mapfile -t HOSTS < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  else
    mapfile -t HOSTS < <(seq -f 'node%.0f' 0 $((NODES - 1)))
  fi
}

# Sets ARGUMENTS, what every node is told.
compose() {
  find_hosts
  local port=PORT
  if [ "$DRY_RUN" = 0 ]; then
    [ -n "${SLURM_JOB_ID:-}" ] || fail "this script is for sbatch; without Slurm: bash launch/local.sh, or launch/node.sh"
    find_python
    export PAL_DIST_PYTHON=$PYTHON
    # From the job's number, so that two jobs on a node do not meet; looked at, because something else may be there.
    port=$(free_port "$SLURM_JOB_ID")
  fi
  ARGUMENTS=(--nodes "$NODES" --head "${HOSTS[0]}" --port "$port")
  [ -z "$STRATEGY" ] || ARGUMENTS+=(--strategy "$STRATEGY")
  [ -z "$PROCESSES" ] || ARGUMENTS+=(--processes "$PROCESSES")
  [ "$CPU" = 0 ] || ARGUMENTS+=(--cpu)
  ARGUMENTS=("$VERB" "${ARGUMENTS[@]}" "${SETTINGS[@]}" "${MORE[@]}")
}

# Runs VERB with SETTINGS (and MORE, that only this verb knows) on all nodes of the job, to the end; puts the job back
# where it has stopped to resume.
run_job() {
  compose
  OUTPUT_DIR=$(setting output_dir)
  if [ "$DRY_RUN" = 1 ]; then
    local rank
    for rank in "${!HOSTS[@]}"; do
      printf '# on %s, by srun --kill-on-bad-exit=1\n' "${HOSTS[rank]}"
      bash "$LAUNCH/node.sh" "${ARGUMENTS[@]}" --rank "$rank" --dry-run
    done
    return 0
  fi
  mkdir -p "$OUTPUT_DIR"
  local code=0 said stopped_at=$OUTPUT_DIR/.stopped_at
  export PAL_DIST_EXIT_FILE=$OUTPUT_DIR/.exit_code
  rm -f "$PAL_DIST_EXIT_FILE"
  say "job ${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}, started again" \
    "${SLURM_RESTART_COUNT:-0} times; nodes ${HOSTS[*]}; run folder $OUTPUT_DIR"

  # A node that was slow, or killed, may have asked again after the run had stopped: the request was granted then.
  rm -f "$OUTPUT_DIR/stop"
  # The shell hears a signal when the program in the foreground has ended, or while it waits for one in the background.
  trap 'ask_to_stop SIGUSR1' USR1
  trap 'ask_to_stop SIGTERM' TERM
  # Text is tokenised once, before any process is there that could wait for another one.
  if [ "$VERB" = train ] || [ "$VERB" = profile ]; then
    "$PYTHON" -m pal_dist data tokenize "${SETTINGS[@]}" || exit $?
  fi

  export SLURM_EXPORT_ENV=ALL  # else `sbatch --export=NONE` would leave the steps without a PATH
  # srun does not take --cpus-per-task over from sbatch (since Slurm 22.05): every node would be left with one core.
  srun --nodes="$NODES" --ntasks="$NODES" --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    --kill-on-bad-exit=1 bash "$LAUNCH/node.sh" "${ARGUMENTS[@]}" &
  wait_for $! || code=$?
  trap - USR1 TERM
  said=$(cat "$PAL_DIST_EXIT_FILE" 2>/dev/null || true)
  code=${said:-$code}
  explain "$code"
  if [ "$code" = 75 ]; then
    # Without a step between two stops the job would go round for ever.
    if [ "$(cat "$stopped_at" 2>/dev/null)" = "$(step_of_run)" ]; then
      say "no step was done since the last stop: not put back. Give the job more time (--time), then start it again"
      exit 75
    fi
    step_of_run >"$stopped_at"
    say "back into the queue: scontrol requeue $SLURM_JOB_ID"
    scontrol requeue "$SLURM_JOB_ID" || fail "not put back; start the same command again with the same --output_dir"
    sleep 600  # until Slurm ends this shell
  elif [ "$code" != 0 ] && lost_nodes; then
    say "a node is lost: Slurm puts the job back as soon as it has noticed"
    wait_for_slurm
  fi
  exit "$code"
}

step_of_run() { sed -n 's/^ *"step": \([0-9]*\).*/\1/p' "$OUTPUT_DIR/status.json" 2>/dev/null || true; }

# Is a node of the job silent? Slurm itself takes up to SlurmdTimeout to notice (often 300 s).
lost_nodes() {
  local host lost=1
  for host in "${HOSTS[@]}"; do
    timeout --kill-after=10 30 srun --overlap --nodes=1 --ntasks=1 --nodelist="$host" true >/dev/null 2>&1 || { say "$host does not answer"; lost=0; }
  done
  return "$lost"
}

# Until Slurm ends this shell, 20 minutes at most. A node that was only too busy to answer is no reason to wait: all have
# then answered twice, with a pause in which Slurm would have noticed one that has booted again.
wait_for_slurm() {
  local answered=0 end=$((SECONDS + 1200))
  while [ "$SECONDS" -lt "$end" ]; do
    sleep 15
    if lost_nodes; then answered=0; else answered=$((answered + 1)); fi
    if [ "$answered" = 2 ]; then say "all nodes answer: none is lost, and the job ends"; return 0; fi
  done
}
