#!/usr/bin/env bash
# DeepSpeed's launcher over the machines of a hostfile.
#
#   HOSTFILE=hostfile launchers/deepspeed_hostfile.sh --study my_study.yaml --out /shared/runs/mine --auto-resume
#
# HOSTFILE   one line `HOST slots=N` per machine (default ./hostfile)
# LAUNCHER   pdsh (default; ssh without a password to every host), openmpi (DeepSpeed then calls mpirun), or
#            slurm (inside an allocation; it calls srun)
# ENV_FILE   KEY=VALUE lines without comments to set on every machine (default none). pdsh drops the caller's
#            environment, so PATH, OMP_NUM_THREADS, NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME, HF_HOME and
#            ISOBUDGET_CACHE belong there, and no secret does: these lines and the caller's MLFLOW…, NCCL…, PYTHON…, UCX…
#            and MV2… variables show in every machine's process list. One with a secret is refused
# SSH_PORT, MASTER_ADDR, MASTER_PORT   where sshd listens, and where rank 0 does
#
# TERM, USR1 and INT have every rank save and leave with 75. Exits with the code that the run recorded.
#
# Over pdsh one launch at a time per user and machine: DeepSpeed stops its agents by the words that start them, which are
# the same for every launch, so stopping one stops all that this user has on any of its machines. The others save and leave
# with 75 too, to be started again. Where launches share machines, use torchrun.sh or LAUNCHER=slurm.
#
# The repository, PYTHON and --out must have the same path on every machine.
set -euo pipefail
# shellcheck source=launchers/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
from_here "$@"
set -- ${given[@]+"${given[@]}"}

HOSTFILE=${HOSTFILE:-hostfile}
LAUNCHER=${LAUNCHER:-pdsh}
ENV_FILE=${ENV_FILE:-}
MASTER_PORT=${MASTER_PORT:-29500}

case $LAUNCHER in pdsh | openmpi | slurm) ;; *) fail "LAUNCHER is '$LAUNCHER'; it must be pdsh, openmpi or slurm" ;; esac
require_number MASTER_PORT "$MASTER_PORT"
[[ -z ${SSH_PORT:-} ]] || require_number SSH_PORT "$SSH_PORT"
[[ -z ${MASTER_ADDR:-} || $MASTER_ADDR =~ ^[A-Za-z0-9][A-Za-z0-9.:-]*$ ]] || fail "MASTER_ADDR is '$MASTER_ADDR', which is no host"

HOSTFILE=$(realpath -- "$HOSTFILE")
check=()
if [[ -n $ENV_FILE ]]; then
  ENV_FILE=$(realpath -- "$ENV_FILE")
  check+=(--env-file "$ENV_FILE")
fi
# Host names, the file's lines, some of our variables and every argument are pasted into a remote shell's
# command line. Anything that shell could act on, and any secret, ends here with exit code 2, before ssh is started.
machines=$("$PYTHON" "$REPOSITORY/launch.py" hosts ${check[@]+"${check[@]}"} "$HOSTFILE" -- "$REPOSITORY" "$PYTHON" "$@")

arguments=(--hostfile "$HOSTFILE" --launcher "$LAUNCHER" --master_port "$MASTER_PORT")
[[ -z ${SSH_PORT:-} ]] || arguments+=(--ssh_port "$SSH_PORT")
[[ -z ${MASTER_ADDR:-} ]] || arguments+=(--master_addr "$MASTER_ADDR")
# With a single line the launcher would start local processes, whatever the host is called.
[[ $(wc -l <<<"$machines") -gt 1 ]] || arguments+=(--force_multi)
# The file is named absolutely, so that one lying in the home directory is not read unchecked.
export DS_ENV_FILE=${ENV_FILE:-/dev/null}
if [[ $LAUNCHER != pdsh ]]; then
  first=${machines%%$'\n'*}
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(threads_per_rank "${first##* }")}
  export MASTER_ADDR=${MASTER_ADDR:-${first%% *}} MASTER_PORT
fi
# See slurm.sbatch and mpirun.sh for these words.
case $LAUNCHER in
  slurm) arguments+=("--launcher_args=--wait=60 --kill-on-bad-exit=0") ;;
  openmpi) arguments+=("--launcher_args=--bind-to none$([[ $EUID -ne 0 ]] || echo ' --allow-run-as-root')") ;;
esac

# Over pdsh the launcher asks every machine to stop; ranks have 30 s to save, then it kills. It knows no signals where it
# calls mpirun or srun: they are told instead, and pass USR1 on to every rank.
pass_on() {
  if [[ $LAUNCHER == pdsh ]]; then kill -TERM "$child"; else pkill -USR1 -P "$child"; fi 2>/dev/null || true
}
cd -- "$REPOSITORY"
out=$(out_of "$@")
[[ -z $out ]] || begin_at "$out"
code=0
supervise "$PYTHON" -m deepspeed.launcher.runner "${arguments[@]}" launch.py "$@" || code=$?
# Over pdsh it does not wait for what it has stopped.
if [[ $signals -gt 0 && -n $out && $LAUNCHER == pdsh ]]; then
  for ((waited = 0; waited < 35; waited++)); do
    recorded=0
    recorded_exit_code "$out" || recorded=$?
    [[ $recorded -eq "$nothing_recorded" ]] || break
    sleep 1
  done
fi
settle "$code" "$out"
