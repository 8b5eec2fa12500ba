"""What every batch script of ours runs, once its settings are said."""

BODY = r"""# ---- identical in every script
set -uo pipefail
export SLURM_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
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

run_ranks() { # run the attempt's ranks until they end; rc becomes their exit code
  local step=(--kill-on-bad-exit=1 --wait=60 --cpus-per-task="$SLURM_CPUS_PER_TASK" --open-mode=append
    --output="${attempt//%/%%}/logs/rank%t.log" "${container[@]}") ranks
  START_RANKS
  ranks=$!
  while kill -0 "$ranks" 2>/dev/null; do wait "$ranks"; done # a signal interrupts a wait
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

# 75: the ranks have stored their state. Requeue other failures only if a node is lost; on good nodes they would recur.
nodes_answer() {
  timeout 30 srun --overlap --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task=1 \
    --output=/dev/null true 2>/dev/null
}
running() { [ "$(squeue --noheader --jobs="$me" --states=all --format=%T)" = RUNNING ]; }
again=0
case $rc in
  75) again=1 ;;
  1) nodes_answer || again=1 ;;
esac
if [ "$again" = 1 ] && [ "$may_requeue" = 1 ] && running; then
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "$max_restarts" ]; then
    echo "this job was restarted $max_restarts times and is not restarted again"
  elif scontrol requeue "$me"; then
    echo "requeued after exit code $rc"
    sleep 600 # Slurm ends this script
  fi
fi
run=${attempt%/attempts/*}
if [ "$rc" = 0 ]; then show=report; else show=status; fi
"${here[@]}" -m opensora_launch.cli "$show" "$run"
exit "$rc"
"""
