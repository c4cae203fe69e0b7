# shellcheck shell=bash disable=SC2034  # what is set here is used by the scripts that source it
# What the launch scripts share; sourced, never run by itself. Settings that all of them take, among those of train:
#
#   --strategy NAME   how the model is spread: a file of accelerate_configs (default: ddp), or a yaml's path
#   --processes N     processes on each node (default: one per GPU of the job or the machine)
#   --cpu             train on processors, with --processes N (default: 1)
#   --dry-run         print what each node would run, and start nothing
#   --help
#
# and from the environment
#
#   PAL_DIST_PYTHON   the Python with pal_dist (default: .venv of the checkout, else `python` on the PATH)
#   OMP_NUM_THREADS, PYTORCH_CUDA_ALLOC_CONF, NCCL_DEBUG   as you set them; without, as `set_environment` says

LAUNCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$LAUNCH")
VERBS=" train profile doctor evaluate "

say() { printf 'launch: %s\n' "$*" >&2; }
fail() { say "$*"; exit 2; }

# The head of a script is its help.
show_help() { sed -n '2,/^[^#]/{/^#SBATCH/d;/^# shellcheck/d;s/^# \{0,1\}//p}' "$1"; }

# read_arguments SCRIPT OWN... -- ARGUMENT...   OWN are options with a value that the script takes beside the shared ones.
# Sets DRY_RUN, CPU, STRATEGY, PROCESSES, an uppercase variable for each of OWN, VERB, and the array SETTINGS.
read_arguments() {
  local script=$1 name value own=" strategy processes "
  shift
  while [ "$1" != -- ]; do own="$own$1 "; shift; done
  shift
  DRY_RUN=0 CPU=0 STRATEGY='' PROCESSES='' VERB=train SETTINGS=() MORE=()
  if [ $# -gt 0 ] && [ "${VERBS#* "$1" }" != "$VERBS" ]; then VERB=$1; shift; fi
  while [ $# -gt 0 ]; do
    name=${1#--}; name=${name%%=*}; name=${name//-/_}
    case "$1" in
      -h | --help) show_help "$script"; exit 0 ;;
      --dry-run | --dry_run) DRY_RUN=1; shift ;;
      --cpu) CPU=1; shift ;;
      --*)
        if [ "${own#* "$name" }" = "$own" ]; then SETTINGS+=("$1"); shift; continue; fi
        case "$1" in
          *=*) value=${1#*=}; shift ;;
          *) [ $# -gt 1 ] || fail "$1 needs a value"; value=$2; shift 2 ;;
        esac
        printf -v "${name^^}" %s "$value" ;;
      *) SETTINGS+=("$1"); shift ;;
    esac
  done
}

# setting NAME   the value of --NAME among SETTINGS, or nothing.
setting() {
  local index
  for index in "${!SETTINGS[@]}"; do
    case "${SETTINGS[index]}" in
      "--$1") printf '%s' "${SETTINGS[index + 1]:-}" ;;
      "--$1="*) printf '%s' "${SETTINGS[index]#*=}" ;;
    esac
  done
}

whole_number() { case "$2" in '' | *[!0-9]* | 0) fail "$1 takes a whole number from 1, found '$2'" ;; esac }

# Sets PYTHON. A Python without pal_dist is found out here, and not on sixty-four nodes.
find_python() {
  PYTHON=${PAL_DIST_PYTHON:-}
  if [ -z "$PYTHON" ] && [ -x "$ROOT/.venv/bin/python" ]; then PYTHON=$ROOT/.venv/bin/python; fi
  if [ -z "$PYTHON" ]; then PYTHON=$(command -v python || command -v python3) || fail "there is no python on the PATH"; fi
  "$PYTHON" -m pal_dist --version >/dev/null 2>&1 ||
    fail "$PYTHON on $(hostname) has no pal_dist: install it there, or set PAL_DIST_PYTHON to the Python that has it"
}

# Sets CONFIG, the yaml of STRATEGY.
find_config() {
  STRATEGY=${STRATEGY:-ddp}
  CONFIG=$STRATEGY
  case "$STRATEGY" in *.yaml | *.yml) ;; *) CONFIG=$ROOT/accelerate_configs/$STRATEGY.yaml ;; esac
  [ -f "$CONFIG" ] || fail "--strategy $STRATEGY: there is no $CONFIG; known: $(cd "$ROOT/accelerate_configs" && echo *.yaml | sed 's/\.yaml//g')"
}

# GPUs that a process here would see.
count_gpus() {
  if [ -n "${SLURM_GPUS_ON_NODE:-}" ]; then echo "$SLURM_GPUS_ON_NODE"
  elif [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .
  elif command -v nvidia-smi >/dev/null; then nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true
  else echo 0; fi
}

# Sets PROCESSES of a node and GPUS.
count_processes() {
  GPUS=0
  [ "$CPU" = 1 ] || GPUS=$(count_gpus)
  PROCESSES=${PROCESSES:-$([ "$GPUS" = 0 ] && echo 1 || echo "$GPUS")}
  whole_number --processes "$PROCESSES"
  if [ "$GPUS" != 0 ] && [ "$PROCESSES" -gt "$GPUS" ]; then
    fail "--processes $PROCESSES, but this node has $GPUS GPUs: one process each, or --cpu"
  fi
}

# set_environment NODES   for the processes of this node, each with its reason.
set_environment() {
  local cores=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-$(nproc)}}
  # Every process would otherwise take all cores for itself, and they would take them from each other.
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > PROCESSES ? cores / PROCESSES : 1))}
  # A micro-batch of one shape can use the blocks that one of another shape has freed.
  export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
  # NCCL is silent by default; its warnings name the network interface or the link that fails.
  export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
  # What the program compares the world with that it finds: a node alone would train alone, with exit code 0.
  export PAL_DIST_EXPECTED_RANKS=$(($1 * PROCESSES)) PAL_DIST_EXPECTED_GPUS=$GPUS
  # GPUs that --cpu leaves alone must not be seen, else they would be used.
  if [ "$CPU" = 1 ]; then export CUDA_VISIBLE_DEVICES='' ACCELERATE_USE_CPU=true; fi
}

# quoted WORD...   as one would type it.
quoted() {
  local word words=()
  for word in "$@"; do
    case "$word" in
      '') words+=("''") ;;
      *[!A-Za-z0-9_./:=,@%+-]*) words+=("'${word//\'/\'\\\'\'}'") ;;
      *) words+=("$word") ;;
    esac
  done
  printf '%s' "${words[*]}"
}

# wait_for PID   its exit code; signals that have a trap are heard meanwhile.
wait_for() {
  local code
  while :; do
    code=0
    wait "$1" || code=$?
    if [ "$code" -le 128 ] || ! kill -0 "$1" 2>/dev/null; then return "$code"; fi
  done
}

# ask_to_stop REASON   all processes of the run see this file before their next step, save, and end with exit code 75.
ask_to_stop() {
  say "$1 on $(hostname): the run is asked to save itself and stop"
  mkdir -p "$OUTPUT_DIR" && touch "$OUTPUT_DIR/stop"
}

# How often the kernel has killed a process of this control group (its own or the ones above) for want of host memory.
count_host_kills() {
  local line path files=() total=0 count
  while IFS= read -r line; do
    path=${line#*:*:}
    case "$line" in
      *:memory:*) files+=("/sys/fs/cgroup/memory$path/memory.oom_control" /sys/fs/cgroup/memory/memory.oom_control) ;;
      0::*) files+=("/sys/fs/cgroup$path/memory.events" "/sys/fs/cgroup${path%/*}/memory.events") ;;
    esac
  done </proc/self/cgroup
  for line in "${files[@]}"; do
    count=$(sed -n 's/^oom_kill \([0-9]*\)$/\1/p' "$line" 2>/dev/null || true)
    total=$((total + ${count:-0}))
  done
  echo "$total"
}

# explain CODE   what a person can do about it.
explain() {
  case "$1" in
    0 | 2 | 3 | 4) ;;  # the program has said it
    71) say "exit code 71: the processes waited for each other; each one's last words are above" ;;
    74) say "exit code 74: a process or its node is gone; what it said itself is above. Run the same command again to resume" ;;
    75) say "exit code 75: stopped and saved; run the same command again to resume" ;;
    137) say "exit code 137: killed (-9), by hand or by the batch system; run the same command again to resume from the last checkpoint" ;;
    *) say "exit code $1" ;;
  esac
}
