# Shared by the batch scripts: the ranks' environment, one step with its signals, requeueing.

fail() {
  echo "error: $*" >&2
  exit 2
}

# Modules, virtual environment, Python (MODULES, VENV, PYTHON).
set_up_python() {
  if [ -n "${MODULES:-}" ]; then
    command -v module >/dev/null || . /etc/profile
    # shellcheck disable=SC2086  # several names
    module load $MODULES || fail "MODULES=$MODULES: module load failed"
  fi
  if [ -z "${PYTHON:-}" ] && [ -z "${CONTAINER:-}" ] && [ -d "${VENV:=.venv}" ]; then
    . "$VENV/bin/activate" || fail "VENV=$VENV: no bin/activate there"
  fi
  PYTHON=${PYTHON:-python}
  [ -n "${CONTAINER:-}" ] || command -v "$PYTHON" >/dev/null ||
    fail "no $PYTHON on $(hostname); set VENV, MODULES, PYTHON or CONTAINER"
  # Another launcher's ranks, in the shell that submitted, would be taken for ours.
  unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK
}

# The job as Slurm's commands want it: the bare number of an array's last task means the whole array.
job_name() {
  if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then
    echo "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
  else
    echo "$SLURM_JOB_ID"
  fi
}

# One task per GPU; without GPUs as many as --ntasks or --ntasks-per-node asked for. Sets `tasks` and `cpus`.
count_tasks() {
  tasks=${SLURM_GPUS_ON_NODE:+$((SLURM_NNODES * SLURM_GPUS_ON_NODE))}
  tasks=${tasks:-${SLURM_NTASKS:-$SLURM_NNODES}}
  cpus=$((SLURM_CPUS_ON_NODE * SLURM_NNODES / tasks))
  if [ "$cpus" -lt 1 ]; then
    echo "warning: $SLURM_CPUS_ON_NODE CPU(s) a node for $tasks ranks: slow; add sbatch --cpus-per-gpu=8" >&2
    cpus=1
  fi
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cpus}
}

# srun with these words, in the background so that the traps run at once. Sets `code` and `warned`.
# Slurm's warning reaches this shell alone (--signal=B:), and is handed on to every rank.
run_step() {
  local step=
  warned=
  trap 'warned=yes; [ -z "$step" ] || kill -USR1 "$step"' USR1 TERM
  srun "$@" &
  step=$!
  while kill -0 "$step" 2>/dev/null; do wait "$step"; done # a trap ends a wait early
  code=0
  wait "$step" || code=$?
}

# From the variables and the words for launch/train.py: CHECKPOINT_DIR, `words`, `logs`.
plan_run() {
  local engine word
  CHECKPOINT_DIR=${CHECKPOINT_DIR:-checkpoints/$SLURM_JOB_NAME-$(job_name)}
  engine=(--ds "${DS:-ds_configs/zero2.json}")
  [ "${ENGINE:-deepspeed}" = deepspeed ] || engine=(--engine "$ENGINE")
  for word in "$@"; do
    case $word in
      --engine | --engine=* | --ds | --ds=*) engine=() ;;
      --checkpoint-dir | --checkpoint-dir=* | training.checkpoint_dir=*)
        fail "name the run's folder by CHECKPOINT_DIR=FOLDER, not by $word: this script looks into it" ;;
    esac
  done
  words=(--checkpoint-dir "$CHECKPOINT_DIR" --resume auto ${CONFIG:+--config "$CONFIG"} "${engine[@]}" "$@")
  if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ -e "$CHECKPOINT_DIR/latest" ]; then
    words+=(--resume auto) # a --resume PATH was for the first start
  fi
  logs=$CHECKPOINT_DIR/slurm-$(job_name)
  mkdir -p "$logs" 2>/dev/null || fail "CHECKPOINT_DIR=$CHECKPOINT_DIR: cannot be written to"
  rm -f "$CHECKPOINT_DIR/requeue"
}

# Every node must be able to write the ranks' logs: a rank whose log can't be opened leaves the others waiting.
check_nodes() {
  [ "$SLURM_NNODES" -gt 1 ] || return 0
  # shellcheck disable=SC2016  # expanded on the nodes
  srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --overcommit bash -c '[ -w "$0" ] || {
    echo "error: $(hostname) cannot write to $0: CHECKPOINT_DIR must lie on a file system that all nodes share" >&2
    exit 2
  }' "$(realpath "$logs")" || exit 2
}

# Mirror rank 0's log into the job's.
show_rank_0() {
  echo "Run folder $CHECKPOINT_DIR; rank 0 below, every rank in $logs"
  touch "$logs/rank_0.log"
  tail -n 0 -f --pid=$$ "$logs/rank_0.log" &
  mirror=$!
}

# After the step: the other ranks' errors, and back into the queue if the run wants to go on.
end_run() {
  sleep 1 # for the last lines of rank 0
  kill "$mirror" 2>/dev/null
  [ "$code" -eq 0 ] || grep -hE '[eE]rror: ' "$logs"/rank_[1-9]*.log 2>/dev/null | tail -n 3
  requeue_if_stopped "$CHECKPOINT_DIR/requeue"
}

# Whether the run should go on in another start of the job: `marker` is the file that a stopped run leaves.
wants_to_go_on() {
  local marker=$1
  [ ! -e "$marker" ] || return 0
  [ "$code" -ne 0 ] || return 1
  # A signal during start-up, before there are handlers, kills; a second one forces ranks to end with code 75.
  [ -z "$warned" ] && [ "$code" -ne 75 ] || return 0
  # A rank lost with its node ends the step minutes before Slurm misses the node. Code 2 is a wrong request.
  [ "$code" -ne 2 ] && ! timeout 60 srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --overcommit true
}

# Back into the queue under the same job number, if the run wants to go on.
requeue_if_stopped() {
  wants_to_go_on "$1" || return 0
  requeue "$(job_name)"
}

# From another node of the job: back into the queue if `node` gives no sign of life.
requeue_if_lost() {
  local node=$1 job=$2
  timeout 60 srun --overlap --overcommit --nodes=1 --ntasks=1 --nodelist="$node" true 2>/dev/null && return 0
  echo "$node is silent"
  requeue "$job"
}

requeue() {
  local job=$1
  # A cancelled job stays cancelled.
  [ "$(squeue -h -j "$job" -o %T)" = RUNNING ] || return 0
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "${MAX_RESTARTS:=100}" ]; then
    fail "requeued $MAX_RESTARTS times already (MAX_RESTARTS); submit again with CHECKPOINT_DIR=$CHECKPOINT_DIR"
  fi
  echo "Requeueing job $job"
  scontrol requeue "$job" || fail "not requeued; submit again with CHECKPOINT_DIR=$CHECKPOINT_DIR"
}
