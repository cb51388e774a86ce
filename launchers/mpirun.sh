#!/usr/bin/env bash
# Open MPI's mpirun: MPI starts the ranks and tells them who they are; tensors go over NCCL or gloo.
#
#   HOSTFILE=hosts launchers/mpirun.sh --study my_study.yaml --out /shared/runs/mine --auto-resume
#
# HOSTFILE     optional; `HOST slots=N` per machine, as Open MPI and DeepSpeed both read it
# RANKS        all ranks (default: the hostfile's slots; without one, one per GPU of this machine)
# MASTER_ADDR, MASTER_PORT   machine of rank 0 as the others reach it (default: the hostfile's first host; 29500)
#
# Only Open MPI: MPICH and Intel MPI bind, name hosts and carry variables by flags of their own. The program knows the
# variables that they set, so `mpiexec -n 16 -ppn 8 python launch.py …` with MASTER_ADDR and MASTER_PORT set works there.
#
# TERM, USR1 and INT have every rank save and leave with 75. Exits with the code that the run recorded.
#
# mpi4py is not needed to start; it is there for DeepSpeed, whose own discovery through MPI stays off: the ranks'
# numbers come from the variables that mpirun sets, so that no MPI call is made before fork or CUDA.
set -euo pipefail
# shellcheck source=launchers/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
from_here "$@"
set -- ${given[@]+"${given[@]}"}

version=$(mpirun --version 2>/dev/null) || fail "no mpirun that says its version; install Open MPI, or add its bin to PATH"
[[ $version == *"Open MPI"* ]] || fail "mpirun is '${version%%$'\n'*}', not Open MPI, whose options this script uses"

MASTER_PORT=${MASTER_PORT:-29500}
require_number MASTER_PORT "$MASTER_PORT"
[[ -z ${RANKS:-} ]] || require_number RANKS "$RANKS"

# Open MPI binds each rank to one core unless told otherwise, whatever OMP_NUM_THREADS says.
arguments=(--bind-to none)
# Containers run as root.
[[ $EUID -ne 0 ]] || arguments+=(--allow-run-as-root)
if [[ -n ${HOSTFILE:-} ]]; then
  HOSTFILE=$(realpath -- "$HOSTFILE")
  machines=$("$PYTHON" "$REPOSITORY/launch.py" hosts "$HOSTFILE")
  first=${machines%%$'\n'*}
  on_each=${first##* }
  slots=0
  while read -r _ count; do slots=$((slots + count)); done <<<"$machines"
  RANKS=${RANKS:-$slots}
  [[ $RANKS -le $slots ]] || fail "RANKS is $RANKS, but $HOSTFILE has $slots slots"
  MASTER_ADDR=${MASTER_ADDR:-${first%% *}}
  arguments+=(--hostfile "$HOSTFILE")
else
  RANKS=${RANKS:-$("$PYTHON" -c 'import torch; print(torch.cuda.device_count() or 1)')}
  require_number RANKS "$RANKS"
  on_each=$RANKS
  MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
  # Without a hostfile Open MPI counts cores as slots, and a rank may have less than one.
  arguments+=(--oversubscribe)
fi
[[ $MASTER_ADDR =~ ^[A-Za-z0-9][A-Za-z0-9.:-]*$ ]] || fail "MASTER_ADDR is '$MASTER_ADDR', which is no host"
export MASTER_ADDR MASTER_PORT
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(threads_per_rank "$((on_each < RANKS ? on_each : RANKS))")}
# Ranks on other machines get no variables but MPI's own and these.
for variable in MASTER_ADDR MASTER_PORT OMP_NUM_THREADS NCCL_SOCKET_IFNAME GLOO_SOCKET_IFNAME HF_HOME HF_HUB_OFFLINE ISOBUDGET_CACHE; do
  [[ -z ${!variable:-} ]] || arguments+=(-x "$variable")
done

# mpirun passes USR1 on to every rank; TERM it would follow with KILL after a second.
pass_on() {
  kill -USR1 "$child" 2>/dev/null || true
}
cd -- "$REPOSITORY"
out=$(out_of "$@")
[[ -z $out ]] || begin_at "$out"
code=0
supervise mpirun -np "$RANKS" "${arguments[@]}" "$PYTHON" launch.py "$@" || code=$?
settle "$code" "$out"
