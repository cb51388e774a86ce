#!/usr/bin/env bash
# torchrun on one or more machines: c10d rendezvous, restarts after a crash.
#
# Start the same command on every machine, with NODE_RANK 0 … NODES-1:
#
#   NODES=2 NODE_RANK=0 MASTER_ADDR=node1 launchers/torchrun.sh --study my_study.yaml --out /shared/runs/mine
#   NODES=2 NODE_RANK=1 MASTER_ADDR=node1 launchers/torchrun.sh --study my_study.yaml --out /shared/runs/mine
#
# NODES, RANKS_PER_NODE   machines, and ranks on each (default 1, and one per GPU)
# NODE_RANK               this machine's number; 0 runs the rendezvous
# MASTER_ADDR, MASTER_PORT   machine 0 as the others reach it; there torchrun's agents meet
# NODE_ADDR               this machine as the others reach it (default: MASTER_ADDR on machine 0, elsewhere the address
#                         from which MASTER_ADDR is reached); the ranks meet at one of these, on a port that is free there
# RUN_ID                  tells two runs on the same port apart
# SHUTDOWN_S              seconds between that signal and the kill (default 300)
# MAX_RESTARTS            restarts of all ranks after one crashed (default 3)
#
# --auto-resume is added: a restart continues from the newest intact checkpoint. SIGTERM to torchrun ends without a
# restart; each rank gets SHUTDOWN_S seconds to save. Exits with the code that the run recorded, so 75 stays 75 and a
# study that is refused ends with 2 or 3.
set -euo pipefail
# shellcheck source=launchers/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
from_here "$@"
set -- ${given[@]+"${given[@]}"}

NODES=${NODES:-1}
NODE_RANK=${NODE_RANK:-0}
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
MASTER_PORT=${MASTER_PORT:-29500}
NODE_ADDR=${NODE_ADDR:-}
RUN_ID=${RUN_ID:-isobudget}
MAX_RESTARTS=${MAX_RESTARTS:-3}
if [[ -z ${RANKS_PER_NODE:-} ]]; then
  RANKS_PER_NODE=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count() or 1)')
fi

require_number NODES "$NODES"
require_number RANKS_PER_NODE "$RANKS_PER_NODE"
require_number MASTER_PORT "$MASTER_PORT"
[[ $NODE_RANK =~ ^[0-9]{1,5}$ && $NODE_RANK -lt $NODES ]] || fail "NODE_RANK is '$NODE_RANK'; it must be 0 … $((NODES - 1))"
[[ $MAX_RESTARTS =~ ^[0-9]{1,3}$ ]] || fail "MAX_RESTARTS is '$MAX_RESTARTS', which is no whole number"
[[ -z ${SHUTDOWN_S:-} ]] || require_number SHUTDOWN_S "$SHUTDOWN_S"
[[ $MASTER_ADDR =~ ^[A-Za-z0-9][A-Za-z0-9.:-]*$ ]] || fail "MASTER_ADDR is '$MASTER_ADDR', which is no host"
[[ -z $NODE_ADDR || $NODE_ADDR =~ ^[A-Za-z0-9][A-Za-z0-9.:-]*$ ]] || fail "NODE_ADDR is '$NODE_ADDR', which is no host"
[[ $RUN_ID =~ ^[A-Za-z0-9][A-Za-z0-9_.-]*$ ]] || fail "RUN_ID is '$RUN_ID'; letters, digits and _ . - only"

out=$(out_of "$@")
[[ -n $out ]] || fail "give --out DIR: all machines write into one directory, and a restart must find it"

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(threads_per_rank "$RANKS_PER_NODE")}
# torchrun kills ranks this long after it asked them to stop; a save of a large model takes longer than its 30 s.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${SHUTDOWN_S:-300}

# A store of their own for the ranks of every start. They would share the agent's otherwise, which torchrun keeps across
# restarts: restarted ranks then find the addresses of the dead ones in it and wait for them until they time out.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# is_host is said outright: torchrun otherwise compares MASTER_ADDR with this machine's name, which on many
# machines resolves to the loopback address, and then nobody opens the rendezvous.
is_host=$((NODE_RANK == 0 ? 1 : 0))

# Ranks meet on the machine that sorts first, at the name it gives of itself. Unless it is told one, that is the name of
# its own which the others may not know, or know as their own loopback address; then ranks wait until they time out.
own_address() {
  "$PYTHON" - "$MASTER_ADDR" "$MASTER_PORT" <<'END'
import socket, sys, time

until = time.monotonic() + 60  # as long as torchrun waits for MASTER_ADDR: its name may not be known yet
while True:
    try:
        family, kind, _, _, place = socket.getaddrinfo(sys.argv[1], int(sys.argv[2]), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as route:
            route.connect(place)  # sends nothing: it only asks which of this machine's addresses would be used
            sys.exit(print(route.getsockname()[0]))
    except OSError as error:
        if time.monotonic() > until:
            sys.exit(f"torchrun.sh: no way to MASTER_ADDR {sys.argv[1]} ({error}); correct it, or set NODE_ADDR")
        time.sleep(1)
END
}
if [[ -z $NODE_ADDR ]]; then
  if [[ $NODE_RANK -eq 0 ]]; then NODE_ADDR=$MASTER_ADDR; else NODE_ADDR=$(own_address); fi
fi

# The agent passes TERM to its ranks; a scheduler's USR1 warning takes the same way.
cd -- "$REPOSITORY"
begin_at "$out"
code=0
supervise "$PYTHON" -m torch.distributed.run \
  --nnodes "$NODES" --nproc-per-node "$RANKS_PER_NODE" --node-rank "$NODE_RANK" --local-addr "$NODE_ADDR" \
  --max-restarts "$MAX_RESTARTS" \
  --rdzv-backend c10d --rdzv-endpoint "$MASTER_ADDR:$MASTER_PORT" --rdzv-id "$RUN_ID" --rdzv-conf "is_host=$is_host" \
  launch.py "$@" --auto-resume || code=$?
settle "$code" "$out"
