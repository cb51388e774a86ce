"""What forked ranks do to an engine on a model of a few hundred weights: train, save, resume, weigh.

Module-level functions, so that a rank finds them by name; each returns the rank's exit code.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness import ds_config, resume
from harness.chaos.faults import allow_fp16
from harness.engine import Engine, connect
from harness.errors import ConfigError
from harness.ranks import Ranks

VOCAB, TOKENS, SEQUENCES = 11, 5, 8
MIDDLE, END = 3, 6


class Small(nn.Module):
    """An embedding and two layers that train, and a frozen one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCAB, width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.embedding(ids).to(self.up.weight.dtype)
        return {"total": self.frozen(self.down(torch.relu(self.up(hidden)))).float().pow(2).mean()}


class Deep(nn.Module):
    """Equal layers, none of which is much of the whole: what is divided among ranks divides evenly."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCAB, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.embedding(ids)
        for layer in self.layers:
            hidden = torch.relu(layer(hidden))
        return {"total": hidden.pow(2).mean()}


def build(config: ds_config.DsConfig, ranks: Ranks, *, width: int = 8, layers: int = 0) -> Engine:
    """An engine around `Small`, or around `Deep` where it is to have layers."""
    model = Deep(width, layers) if layers else Small(width)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in trained if weight.dim() > 1], "weight_decay": 0.1},
        {"params": [weight for weight in trained if weight.dim() == 1], "weight_decay": 0.0},
    ]
    return Engine(model, groups, config, sequences=SEQUENCES, ranks=ranks, betas=(0.9, 0.95), eps=1e-8, clip=1.0)


# A scale that every other step finds too high: what is skipped depends on what the scaler remembers.
SETTLING = {"initial_scale_power": 20, "hysteresis": 2, "loss_scale_window": 1}


def config_of(stage: int, precision: str, *, micro: int | str = 2) -> ds_config.DsConfig:
    """The engine of a case; `precision` as a ds_config says it, with " offloaded" behind it for a host optimizer."""
    tree: dict[str, Any] = {"zero_optimization": {"stage": stage}, "train_micro_batch_size_per_gpu": micro}
    if stage == 3:
        tree["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    if precision.endswith(" offloaded"):
        tree["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    match precision.removesuffix(" offloaded"):
        case "bf16-autocast":
            tree["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
        case "bf16":
            tree["bf16"] = {"enabled": True}
        case "fp16":
            allow_fp16()
            tree["fp16"] = {"enabled": True, **SETTLING}
    return ds_config.DsConfig(tree)


def train(engine: Engine, first: int, last: int) -> list[float]:
    """The global loss of steps `first` to `last` - 1; the batch and the rate are functions of the step."""
    losses = []
    for step in range(first, last):
        engine.set_learning_rate(1e-2 * (step + 1), active=[True, True])
        ids = torch.randint(0, VOCAB, (SEQUENCES, TOKENS), generator=torch.Generator().manual_seed(step))
        ranks = engine.ranks
        mine = ids.view(engine.accumulation, ranks.world, engine.micro_batch, TOKENS)[:, ranks.rank]
        share = 0.0
        for micro in mine:
            terms = engine(micro)
            engine.backward(terms["total"])
            engine.step()
            share += terms["total"].item() / len(mine)
        losses.append(ranks.add([share])[0] / ranks.world)
    return losses


def weights(engine: Engine) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in engine.weights(engine.module).items()}


def save_and_resume(folder: str, cases: list[tuple[int, str]]) -> int:
    """Train to the end with a save in the middle, and again from that save: every bit must be the same."""
    ranks, wrong = connect(timeout_s=60.0, control_s=60.0), []
    for stage, precision in cases:
        place = Path(folder) / f"{stage}-{precision}"
        engine = build(config_of(stage, precision), ranks)
        train(engine, 0, MIDDLE)
        if ranks.is_main:
            (place / "middle").mkdir(parents=True)
        ranks.barrier()
        resume.write(place / "middle", engine=engine, ranks=ranks)
        losses, end = train(engine, MIDDLE, END), weights(engine)
        engine.close()
        engine = build(config_of(stage, precision), ranks)
        resume.read(place / "middle", engine=engine, ranks=ranks, written_by=ranks.world)
        if train(engine, MIDDLE, END) != losses or weights(engine) != end:
            wrong.append(f"ZeRO-{stage} {precision} is not bit-exact")
        engine.close()
        if ranks.is_main:
            (place / "end.json").write_text(json.dumps([losses, end]), encoding="utf-8")
    print("\n".join(wrong), flush=True)
    return int(bool(wrong))


def go_on(folder: str, cases: list[tuple[int, str]], source: str, target: str, written_by: int, first: int) -> int:
    """Resume what another number of ranks saved, compare with the undisturbed run; save again unless at the end."""
    ranks, wrong = connect(timeout_s=60.0, control_s=60.0), []
    last = END if target == "" else first + 1
    for stage, precision in cases:
        place = Path(folder) / f"{stage}-{precision}"
        losses, end = json.loads((place / "end.json").read_text(encoding="utf-8"))
        engine = build(config_of(stage, precision), ranks)
        resume.read(place / source, engine=engine, ranks=ranks, written_by=written_by)
        if any(state.name.startswith(".removing") for state in place.iterdir()):
            wrong.append(f"ZeRO-{stage}: the converted files are left behind")
        mine, theirs = train(engine, first, last), losses[first - MIDDLE : last - MIDDLE]
        worst = max(abs(a - b) / abs(b) for a, b in zip(mine, theirs, strict=True))
        if worst > 1e-5:
            wrong.append(f"ZeRO-{stage} {precision}: loss off by {worst:.1e}")
        if target:
            if ranks.is_main:
                (place / target).mkdir()
            ranks.barrier()
            resume.write(place / target, engine=engine, ranks=ranks)
        else:
            for name, tensor in engine.weights(engine.module).items():
                if (tensor - torch.tensor(end[name])).abs().max().item() > 1e-6:
                    wrong.append(f"ZeRO-{stage} {precision}: {name} differs")
        engine.close()
    print("\n".join(wrong), flush=True)
    return int(bool(wrong))


def pass_on(folder: str, cases: list[tuple[int, str]]) -> int:
    """Take over what two ranks saved and save it again; then one step, whose loss must be the undisturbed one's."""
    ranks, wrong = connect(timeout_s=60.0, control_s=60.0), []
    for stage, precision in cases:
        place = Path(folder) / f"{stage}-{precision}"
        losses, _ = json.loads((place / "end.json").read_text(encoding="utf-8"))
        engine = build(config_of(stage, precision), ranks)
        resume.read(place / "middle", engine=engine, ranks=ranks, written_by=2)
        if ranks.is_main:
            (place / "passed").mkdir()
        ranks.barrier()
        resume.write(place / "passed", engine=engine, ranks=ranks)
        (mine,) = train(engine, MIDDLE, MIDDLE + 1)
        # Under ZeRO-3 autocast two ranks gather weights rounded to bfloat16 and one rank does not: from its first step on
        # a fresh engine's loss is 0.12652 on one and 0.12640 on two.
        rounding = 2**-8 if (stage, precision) == (3, "bf16-autocast") else 1e-5
        if abs(mine - losses[0]) > rounding * abs(losses[0]):
            wrong.append(f"ZeRO-{stage} {precision}: loss {mine}, was {losses[0]}")
        engine.close()
    print("\n".join(wrong), flush=True)
    return int(bool(wrong))


def take_back(folder: str, cases: list[tuple[int, str]]) -> int:
    """Two ranks go on from what was passed on: every bit must be that of the run that never stopped."""
    ranks, wrong = connect(timeout_s=60.0, control_s=60.0), []
    for stage, precision in cases:
        place = Path(folder) / f"{stage}-{precision}"
        engine = build(config_of(stage, precision), ranks)
        resume.read(place / "passed", engine=engine, ranks=ranks, written_by=1)
        if [train(engine, MIDDLE, END), weights(engine)] != json.loads((place / "end.json").read_text("utf-8")):
            wrong.append(f"ZeRO-{stage} {precision} is not bit-exact after two conversions")
        engine.close()
    print("\n".join(wrong), flush=True)
    return int(bool(wrong))


def every_config(files: list[str]) -> int:
    """Each file trains two steps and lowers no guard, or is refused with a reason; says which."""
    ranks, wrong = connect(timeout_s=60.0, control_s=60.0), []
    for file in files:
        config = ds_config.read(file)
        try:
            engine = build(config, ranks)
        except ConfigError as refused:
            print(f"REFUSED {Path(file).name} {refused}", flush=True)
            continue
        losses = train(engine, 0, 2)
        if not all(loss == loss and loss < 1e3 for loss in losses):
            wrong.append(f"{file}: losses {losses}")
        print(f"TRAINED {Path(file).name} {losses}", flush=True)
        engine.close()
    print("\n".join(wrong), flush=True)
    return int(bool(wrong))


def tensors_alive() -> int:
    """Bytes of every distinct storage that a tensor of this process refers to, or a weight as its gradient."""
    gc.collect()
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and not thing.is_meta:
            # Python sees no gradient that nobody has asked a weight for.
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None:
                    found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(found.values())


def weigh(folder: str, stages: list[int], width: int, layers: int = 0, bucket: int = 0) -> int:
    """What each rank holds at most in the second step, beyond what it held without an engine.

    Weighed after the backward of every micro-batch: between two of them gradients are kept, after the last they are reduced.

    Args:
        layers: of `Deep`, with two micro-batches a step; 0 for `Small`, with one.
        bucket: elements of DeepSpeed's buckets; 0 for the largest weight of `Small`, which just fits: DeepSpeed keeps the
            gradient of a larger one beside it.
    """
    ranks = connect(timeout_s=60.0, control_s=60.0)
    for stage in stages:
        before = tensors_alive()
        tree = config_of(stage, "fp32", micro=2 if layers else "auto").tree
        zero = {"reduce_bucket_size": bucket or 2 * width * width, "stage3_prefetch_bucket_size": 0}
        tree["zero_optimization"] |= zero
        engine = build(ds_config.DsConfig(tree), ranks, width=width, layers=layers)
        train(engine, 0, 1)
        held: list[int] = []
        for _ in range(engine.accumulation):
            ids = torch.randint(0, VOCAB, (engine.micro_batch, TOKENS))
            engine.backward(engine(ids)["total"])
            held.append(tensors_alive() - before)
            engine.step()
        facts = ranks.gather(max(held))
        engine.close()
        del engine
        if ranks.is_main:
            model = Deep(width, layers) if layers else Small(width)
            total = sum(p.numel() for p in model.parameters())
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            found = {"total": total, "trained": trained, "tree": tree, "bytes": facts, "points": held}
            (Path(folder) / f"zero{stage}.json").write_text(json.dumps(found), encoding="utf-8")
            del model
    return 0
