"""Alternate how OpenMP's threads wait: `python waiting.py ROUNDS SECONDS WAITING …`, one process after the other, in turns.

Each process steps the quickstart's from-scratch student in a bare loop for some seconds with two threads.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

WAITING = {
    "default": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
}
rounds, seconds, names = int(sys.argv[1]), sys.argv[2], sys.argv[3:] or list(WAITING)
steps = Path(__file__).with_name("waiting_steps.py")
plain = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
for number in range(rounds):
    for name in names if number % 2 == 0 else names[::-1]:
        environment = {**plain, "OMP_NUM_THREADS": "2", **WAITING[name]}
        done = subprocess.run(
            [sys.executable, str(steps), seconds], env=environment, capture_output=True, text=True, check=True
        )
        row = json.loads(done.stdout.strip().splitlines()[-1])
        print(json.dumps({"waiting": name, "load": os.getloadavg()[0], **row}), flush=True)
