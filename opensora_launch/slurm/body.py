"""The parts that all batch scripts share: CHECK before their settings, and BODY after them."""

# ERR and EXIT in one: a line may fail, or end the script by `set -e`, `set -u` or exit. Inside a file that is sourced
# commands may fail. A user's own EXIT trap takes the place of ours.
CHECK = r"""# shellcheck disable=SC2016,SC2034,SC2317
# A line that fails before the ranks start, such as module load, ends the job.
refuse() { # COMMAND DEPTH
  local code=$? line=${BASH_LINENO[-2]} text=$1
  if [ "$code" = 0 ] || [ -n "${checked:-}" ] || [ "$2" -gt 1 ]; then return; fi
  [ "$line" -le 1 ] || text=$(sed -n "${line}p" "$0")
  echo "error: this line of the job's script failed with exit code $code: $text" >&2
  checked=1
  exit 2
}
trap 'refuse "$BASH_COMMAND" "${#BASH_SOURCE[@]}"' ERR
trap 'refuse "$BASH_COMMAND" 1' EXIT"""

BODY = r"""# ---- identical in every script
checked=1
trap - ERR
set +e -uo pipefail
export SLURM_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

# A job that is submitted from another one inherits its variables. Slurm knows which numbers are this job's own.
unset "${!SLURM_STEP@}" "${!SLURM_CPU_BIND@}" "${!SLURM_MEM_PER_@}"
own=$(SLURM_TIME_FORMAT=%s scontrol --oneliner show job "$SLURM_JOB_ID" | grep "^JobId=$SLURM_JOB_ID ")
if [ -n "$own" ]; then
  unset "${!SLURM_ARRAY_@}"
  [[ $own == *" TresPerTask="* ]] || unset SLURM_GPUS_PER_TASK SLURM_TRES_PER_TASK
  [[ $own == *" TresBind="* ]] || unset SLURM_GPU_BIND
fi
# No record tells whose these are. The launcher submits without another job's.
[ -n "${attempt_made:-}" ] ||
  unset SLURM_HINT SLURM_DISTRIBUTION SLURM_THREADS_PER_CORE SLURM_NTASKS_PER_{CORE,GPU,SOCKET}
if [[ $own =~ ^JobId=[0-9]+\ ArrayJobId=([0-9]+)\ ArrayTaskId=([0-9]+)\  ]]; then
  export SLURM_ARRAY_JOB_ID=${BASH_REMATCH[1]} SLURM_ARRAY_TASK_ID=${BASH_REMATCH[2]}
fi
[[ $own =~ \ Requeue=[01]\ Restarts=([0-9]+)\  ]] && export SLURM_RESTART_COUNT=${BASH_REMATCH[1]}
submitted=0
[[ $own =~ \ SubmitTime=([0-9]+)\  ]] && submitted=${BASH_REMATCH[1]} # of this start
lead=$(sed -n 's/^#SBATCH --signal=B:USR1@\([0-9]*\)$/\1/p' "$0")
if [[ $own =~ \ StartTime=([0-9]+)\ EndTime=([0-9]+)\  ]]; then
  limit=$((BASH_REMATCH[2] - BASH_REMATCH[1]))
  if [ "$limit" -le "${lead:-0}" ]; then
    echo "error: this job's time limit is $limit s, but its ranks are asked to stop $lead s before it (--signal)," \
      "so they would stop at once: raise --time, or lower --signal" >&2
    exit 2
  fi
fi
me=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
me=${me:-$SLURM_JOB_ID} # for an array's last task this is the number of the whole array
asked='' attempt='' # asked: set when the job is asked to store and stop
trap 'asked=1; [ -z "$attempt" ] || : >"$attempt/stop"' USR1
trap : TERM # the ranks receive the signal too; this script waits for them

# Rendezvous: this script runs on the first node and chooses a free port there for this job.
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR=$host$host_suffix MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
for ((i = 0; i < 99; i++)); do
  (: <"/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null || break
  MASTER_PORT=$((20000 + (MASTER_PORT - 20000 + 101) % 10000))
done

# The folder of this attempt; its plan.json tells the ranks what to do. A job that starts again gets a new folder.
here=("${python[@]}") # Python on this node
if [ ${#container[@]} -gt 0 ]; then
  here=(srun --nodes=1 --ntasks=1 --overlap --nodelist="$host" "${container[@]}" "${here[@]}")
fi
attempt=$("${here[@]}" -m opensora_launch.request.slurm_task FIND_ATTEMPT) || exit
[ -z "$asked" ] || : >"$attempt/stop"
echo "job $me on $SLURM_JOB_NODELIST: $attempt"

# Ranks that wait for one that has failed, on a cut link for ever, have these seconds to end. Then srun is told to end
# them, and is killed if it cannot reach them either.
grace_s=90 kill_s=150

run_ranks() { # run the attempt's ranks until they end; rc becomes their exit code
  local step=(--kill-on-bad-exit=1 --wait=60 --cpus-per-task="$SLURM_CPUS_PER_TASK" --open-mode=append
    --output="${attempt//%/%%}/logs/rank%t.log" "${container[@]}") ranks late=0
  START_RANKS
  ranks=$!
  while kill -0 "$ranks" 2>/dev/null; do
    [ ! -e "$attempt/error.json" ] || late=$((late + 1))
    case $late in
      "$grace_s")
        echo "a rank failed $grace_s s ago and others still run: the step is ended"
        kill -TERM "$ranks"
        ;;
      "$kill_s") kill -KILL "$ranks" ;;
    esac
    sleep 1
  done
  wait "$ranks"
  rc=$?
  case $rc in
    0 | 2 | 75) ;;
    *) # ask the ranks' own files: torchrun turns every code into 1, and srun reports 143 for ranks that it ends
      rc=$("${here[@]}" -m opensora_launch.request.slurm_task --code "$attempt") || rc=1
      ;;
  esac
}
run_ranks
if [ "$rc" = 1 ]; then # out of memory: continue once from the last step, with fewer weights on each GPU
  if less=$("${here[@]}" -m opensora_launch.request.slurm_task --with-less "$attempt"); then
    attempt=$less
    echo "continuing with less memory: $attempt"
    [ -z "$asked" ] || : >"$attempt/stop"
    run_ranks
  fi
fi

# Requeue a failure only if a node is lost; on good nodes it would recur.
answers() { timeout 30 srun --overlap --nodes=1 --ntasks=1 --cpus-per-task=1 --nodelist="$1" true; }
lost_nodes() { # print the nodes on which srun fails, if it works on this one
  local node said
  if ! said=$(answers "$host" 2>&1); then
    echo "srun fails on $host too, so no node counts as lost: ${said##*$'\n'}" >&2
    return
  fi
  for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
    { answers "$node" >/dev/null 2>&1 || echo "$node"; } &
  done
  wait
}
why='' lost=''
case $rc in
  75) why='the ranks have stored their state' ;;
  1)
    lost=$(lost_nodes | sort -V)
    [ -z "$lost" ] || why="lost: ${lost//$'\n'/, }"
    ;;
esac
if [ -n "$why" ] && [ "$may_requeue" = 1 ]; then
  state=$(squeue --noheader --jobs="$me" --states=all --format=%T)
  trap '' TERM # Slurm sends it once the job is put back, and to scontrol too
  avoid=${lost//$'\n'/,}
  if [ -n "$lost" ]; then # the next start goes to other nodes, if the job can have them
    [[ $own =~ \ ExcNodeList=([^\ \(]+) ]] && avoid+=,${BASH_REMATCH[1]}
    (unset "${!SBATCH_@}" && timeout 30 sbatch --test-only --exclude="$avoid" "$0" >/dev/null 2>&1) || avoid=''
  fi
  if [ "$state" != RUNNING ]; then # cancelled, or at its time limit
    echo "not requeued: squeue calls this job ${state:-nothing}"
  elif [ "${SLURM_RESTART_COUNT:-0}" -ge "$max_restarts" ]; then
    echo "this job was restarted $max_restarts times and is not restarted again"
  elif "${here[@]}" -m opensora_launch.request.slurm_task --requeue "$attempt" "$why" &&
    scontrol requeue "$me"; then
    echo "requeued after exit code $rc: $why"
    [ -z "$avoid" ] || scontrol update JobId="$me" ExcNodeList="$avoid"
    sleep 600 # Slurm ends this script
  fi
fi
run=${attempt%/attempts/*}
if [ "$rc" = 0 ]; then show=report; else show=status; fi
"${here[@]}" -m opensora_launch.cli "$show" "$run"
if [ "$rc" = 0 ] && compgen -G "$run/failed/*.txt" >/dev/null; then
  echo "some videos failed, the others are made: $run/failed"
  rc=1
fi
exit "$rc"
"""
