# The warning before the time limit, or a preemption: every rank saves and leaves with 75. srun passes USR1 on to
# its ranks; torchrun passes TERM on, and waits for them. Taken from here on: one that comes while runs start is not lost.
signals=0
pids=()
# shellcheck disable=SC2317 # called by the trap
forward() {
  signals=$((signals + 1))
  [[ ${#pids[@]} -eq 0 ]] || tell "${pids[@]}"
}
tell() { # PID...
  local signal=USR1 pid
  [[ -n ${SLURM_JOB_ID:-} || $ranks -eq 1 ]] || signal=TERM
  for pid in "$@"; do kill "-$signal" "$pid" 2>/dev/null || true; done
}
trap forward USR1 TERM INT

task=${SLURM_ARRAY_TASK_ID:-${1:-0}}
mkdir -p -- "$logs"
cd -- "$directory"
# Compute nodes often see no network, and asking for it takes minutes. The cache stage may still ask.
[[ $verb == prefetch ]] || export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
cores=${SLURM_CPUS_ON_NODE:-$(nproc)}
share=$((cores * nodes / (ranks * slots)))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((share > 0 ? share : 1))}
# torchrun kills its ranks this long after it asked them to stop; a save takes longer than its 30 s.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}
# Runs that share a node need ports of their own; so do jobs that share one. Below 32768: from there on the system gives ports to
# connections that go out, and one of them may have it.
port=$((20000 + (${SLURM_JOB_ID:-$$} % 750) * 16))

# Start one piece of work on this slot's processes and GPUs; becomes that process.
start() { # SLOT WORK
  local words=("${entry[@]}" "$verb")
  [[ -z $2 ]] || words+=("$2")
  words+=("${flags[@]}")
  export MASTER_PORT=$((port + $1))
  local visible=()
  if [[ $gpus_per_node -gt 0 && $nodes -eq 1 ]]; then
    visible=(env "CUDA_VISIBLE_DEVICES=$(seq -s , $(($1 * ranks)) $(($1 * ranks + ranks - 1)))")
  fi
  if [[ -n ${SLURM_JOB_ID:-} ]]; then
    # --overlap, and GPUs chosen here: Slurm would give all memory of the job to the first step and hold the second.
    # Set behind srun, because Slurm sets CUDA_VISIBLE_DEVICES for each task.
    local step=(srun --overlap "--nodes=$nodes" "--ntasks=$ranks" "--ntasks-per-node=$((ranks / nodes))" --cpu-bind=none)
    # The first rank that has saved and left with 75 must not have the others terminated on their way out.
    step+=(--wait=60 --kill-on-bad-exit=0)
    [[ $gpus_per_node -eq 0 ]] || step+=("--gpus-per-node=$gpus_per_node" --gpu-bind=none)
    exec "${step[@]}" ${visible[@]+"${visible[@]}"} "${words[@]}"
  elif [[ $ranks -gt 1 ]]; then
    exec ${visible[@]+"${visible[@]}"} "$python" -m torch.distributed.run --standalone "--nproc-per-node=$ranks" "${words[@]:1}"
  else
    exec ${visible[@]+"${visible[@]}"} "${words[@]}"
  fi
}

# Bytes that the caches hold: what a prefetch has brought, it keeps there. What begins with a dot is half built, and begun anew.
held() {
  local cache=${XDG_CACHE_HOME:-${HOME:-}/.cache} folder folders=()
  for folder in "${HF_HUB_CACHE:-${HF_HOME:-$cache/huggingface}/hub}" "${ISOBUDGET_CACHE:-$cache/isobudget}"; do
    [[ ! -d $folder ]] || folders+=("$folder")
  done
  [[ ${#folders[@]} -gt 0 ]] || return 0
  # What may not be read, or goes while it is counted, leaves the rest of the count as it is.
  { timeout 60 find "${folders[@]}" -mindepth 1 -name '.*' -prune -o -type f -printf '%s\n' 2>/dev/null || true; } | awk '{ n += $1 } END { printf "%.0f", n }'
}

marks=()
ours=()
worst=0
again=0
for ((slot = 0; slot < slots; slot++)); do
  index=$((task * slots + slot))
  [[ $index -lt ${#works[@]} ]] || break
  if [[ $signals -gt 0 ]]; then # what has not begun waits for the next turn
    again=1
    break
  fi
  marks+=("$(mark_of "$out/jobs/${names[index]}.json")")
  start "$slot" "${works[index]}" >>"$logs/${names[index]}.log" 2>&1 &
  pids+=($!)
  ours+=("$index")
  [[ $signals -eq 0 ]] || tell "$!" # it came before `forward` knew this one
done

for position in "${!pids[@]}"; do
  code=0
  await "${pids[position]}" || code=$?
  name=${names[${ours[position]}]}
  if [[ $code -ne 0 ]]; then
    recorded=$nothing_recorded
    if [[ $verb == job ]]; then
      # Launchers replace exit codes with their own; what the job recorded is the truth.
      recorded=0
      "${entry[@]}" status "$out" --exit-code --job "$name" --after "${marks[position]}" || recorded=$?
    fi
    if [[ $recorded -ne $nothing_recorded ]]; then
      code=$recorded
    elif [[ $signals -gt 0 ]]; then
      # Warned before it was ready to answer, while it imported or found its data; or a prefetch, which records nothing, and goes
      # on from what it has fetched: nothing is lost.
      code=75
    fi
    if [[ $code -eq 75 ]]; then
      if [[ $verb == prefetch ]]; then
        progress=$(held) || progress=
      else
        progress=$("${entry[@]}" status "$out" --progress --job "$name") || progress=
      fi
      worth_another "$logs/$name.turns" "$progress" || code=1
    fi
  fi
  echo "$name: exit code $code"
  if [[ $code -eq 75 ]]; then again=1; elif [[ $code -gt $worst ]]; then worst=$code; fi
done

if [[ $again -eq 1 ]]; then
  if [[ -n ${SLURM_JOB_ID:-} ]]; then
    echo "preempted after saving; asking for another turn (restart ${SLURM_RESTART_COUNT:-0})"
    id=$SLURM_JOB_ID
    [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || id=${SLURM_ARRAY_JOB_ID}_$task
    ask_again "$id"
  fi
  exit 75
fi
exit "$worst"
