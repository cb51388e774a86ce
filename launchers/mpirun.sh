#!/usr/bin/env bash
# Open MPI's mpirun (or MPICH's): MPI starts the ranks and tells them who they are; tensors go over NCCL or gloo.
#
#   RANKS=16 HOSTFILE=hosts launchers/mpirun.sh --study my_study.yaml --out /shared/runs/mine --auto-resume
#
# RANKS        all ranks (default: one per GPU of this machine)
# HOSTFILE     optional; `HOST slots=N` per machine, as Open MPI and DeepSpeed both read it
# MASTER_ADDR  machine of rank 0 as the others reach it (default: the hostfile's first host)
#
# mpi4py is not needed to start; it is there for DeepSpeed, whose own discovery through MPI stays off: the ranks'
# numbers come from the variables that mpirun sets, so that no MPI call is made before fork or CUDA.
set -euo pipefail
# shellcheck source=launchers/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

if [[ -z ${RANKS:-} ]]; then
  RANKS=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count() or 1)')
fi
MASTER_PORT=${MASTER_PORT:-29500}
require_number RANKS "$RANKS"
require_number MASTER_PORT "$MASTER_PORT"

arguments=(-np "$RANKS")
on_each=$RANKS
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
if [[ -n ${HOSTFILE:-} ]]; then
  HOSTFILE=$(realpath -- "$HOSTFILE")
  machines=$("$PYTHON" "$REPOSITORY/launch.py" hosts "$HOSTFILE")
  first=${machines%%$'\n'*}
  on_each=${first##* }
  [[ $MASTER_ADDR != 127.0.0.1 ]] || MASTER_ADDR=${first%% *}
  arguments+=(--hostfile "$HOSTFILE")
fi
[[ $MASTER_ADDR =~ ^[A-Za-z0-9][A-Za-z0-9.:-]*$ ]] || fail "MASTER_ADDR is '$MASTER_ADDR', which is no host"
export MASTER_ADDR MASTER_PORT
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(threads_per_rank "$on_each")}

if [[ $(mpirun --version) == *"Open MPI"* ]]; then
  # Open MPI binds each rank to one core unless told otherwise, whatever OMP_NUM_THREADS says.
  arguments+=(--bind-to none -x MASTER_ADDR -x MASTER_PORT -x OMP_NUM_THREADS)
  # Containers run as root and count fewer slots than ranks when there is no GPU.
  [[ $EUID -ne 0 ]] || arguments+=(--allow-run-as-root)
  [[ -n ${HOSTFILE:-} ]] || arguments+=(--oversubscribe)
fi

cd -- "$REPOSITORY"
exec mpirun "${arguments[@]}" "$PYTHON" launch.py "$@"
