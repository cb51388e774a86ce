"""Steps of the quickstart's from-scratch student in a bare loop for argv[1] seconds: one line of JSON."""

import json
import sys
import time

import torch

from harness.data.stream import SampleStream
from harness.ds_config import default
from harness.models.signals import Signals
from harness.setting import prepare
from harness.study import load
from harness.trainee import Trainee, parameter_groups

study = load("quickstart")
setting = prepare(study, default(bf16=False), world=1)
arm = setting.arms["no_kd"]
trainee = Trainee(arm.student(seed=0), arm.shape, arm.plan())
groups = parameter_groups(trainee, None, study.optimizer)
optimizer = torch.optim.AdamW(groups.groups, lr=1e-3, fused=True)
stream = SampleStream(setting.corpus, seed=1, sequences=16, micro_batch=16, masking=study.data.masking)
wall, cpu, losses, begun = [], [], [], time.perf_counter()
while time.perf_counter() - begun < float(sys.argv[1]) or len(wall) < 4:
    (batch,) = stream.step(len(wall))
    before, spent = time.perf_counter(), time.process_time()
    loss = trainee(batch, Signals(), 0)["total"]
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    wall.append(time.perf_counter() - before)
    cpu.append(time.process_time() - spent)
    losses.append(float(loss))


def percentile(times: list[float], share: float) -> float:
    ordered = sorted(times[2:])
    return 1e3 * ordered[round(share * (len(ordered) - 1))]


print(
    json.dumps(
        {
            "steps": len(wall) - 2,
            "p20_ms": percentile(wall, 0.2), "p50_ms": percentile(wall, 0.5), "p80_ms": percentile(wall, 0.8),
            "cpu_p50_ms": percentile(cpu, 0.5), "threads": torch.get_num_threads(), "loss_of_step_4": losses[3],
        }
    )
)  # fmt: skip
