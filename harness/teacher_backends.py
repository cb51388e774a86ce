"""Which backend computes a trial's teacher: the one that was asked for, or the fastest of those that answer alike.

Every candidate is asked one real micro-batch, and the same tokens in reverse, and its answers are held against the plain
forward's: those it gives in a step, which of CUDA graphs are replays. What was tried, and how it compared, is kept beside the
trial, and a resumed trial goes on with the same one.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch.nn import functional

from harness import kept
from harness.errors import ConfigError, TeacherError
from harness.models import fp8
from harness.models.signals import Needs, Signals, TrainingBatch
from harness.models.teacher import Backend, Teacher
from harness.ranks import Ranks

FILE = "teacher_backend.json"
CANDIDATES: tuple[Backend, ...] = ("plain", "compiled", "graphs")
WARM_UP, ROUNDS = 3, 10
# CUDA graphs run a walk once to warm up, record it at the second call, and replay it from the third on.
CALLS_TO_RECORD = 3
# The largest distance of an answer from the plain forward's, over that answer's length: a compiler fuses and reorders
# operations, which in half precision rounds them elsewhere.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
# The gate of fp8: it is another teacher, whose answers may differ from this one's by so much. One product of random numbers
# differs by 3.5 %; the shipped teacher's answers by 3 to 4 %, and its logits by 0.001 nats.
FP8_DISTANCE, FP8_DIVERGENCE = 0.10, 0.01


@dataclass(frozen=True)
class Tried:
    """One backend against the plain forward, on one micro-batch and its reverse.

    seconds: median of a forward; distance: the largest |difference| / |plain| (Euclidean) of an answer; divergence: mean
    KL(plain ‖ this) of the logits in nats, where there are any; obstacle: why it cannot be used, empty where it can.
    """

    backend: Backend
    seconds: float | None = None
    distance: float | None = None
    divergence: float | None = None
    obstacle: str = ""


def settle(
    teacher: Teacher, wanted: str, *, first: Callable[[], TrainingBatch], needs: Sequence[Needs], folder: Path, ranks: Ranks,
    device: torch.device, candidates: Sequence[Backend] | None = None,
) -> None:  # fmt: skip
    """Make `teacher` use the backend that is `wanted` ("auto": the fastest), or go on with the one this trial began with.

    All ranks call it together: rank 0's clock decides, and what cannot run on one rank is used on none. A teacher that is divided
    between ranks, or has dropout, stays plain.

    Args:
        needs: what it will be asked, phase by phase; backends are compared by the first.
        first: this rank's first micro-batch; not asked for where there is nothing to try.
        candidates: what "auto" tries and fp8 is held against; all of CANDIDATES on a GPU, plain alone elsewhere.

    Raises:
        ConfigError: a backend that this hardware does not have.
        TeacherError: fp8 answers beyond the gate, or no faster than another backend.
    """
    if not needs or teacher.placement == "divided" or teacher.family.model.training:
        return  # one that ranks gather together, or that drops out as PyTorch draws it, is computed layer by layer
    before = ranks.on_main(lambda: _begun_with(folder, wanted))
    if before is not None:
        ranks.together(lambda: check(before, device))
        ranks.together(lambda: teacher.use(before))
        compile_all(teacher, needs, first)
        return
    tries = CANDIDATES if device.type == "cuda" else CANDIDATES[:1]
    tries = tuple(candidates) if candidates is not None else tries
    if wanted != "auto":
        ranks.together(lambda: check(wanted, device))
        # fp8 has to be faster than all others, and comes last because it cannot be taken back.
        tries = (*tries, "fp8") if wanted == "fp8" else (cast(Backend, wanted),)
    found: list[Tried] = []
    if tries != ("plain",):
        batch = first()
        expected = [(each, teacher(each, needs[0])) for each in (batch, reverse(batch))]
        found = [_agreed(compare(teacher, backend, expected, needs=needs[0]), ranks) for backend in tries]
    if wanted == "fp8":
        found[-1] = faster_than(found[-1], found[:-1])
        if found[-1].obstacle:
            raise TeacherError(
                f"teacher {teacher.info.path} in fp8", rule=found[-1].obstacle,
                remedy="choose another speed.teacher_backend",
            )  # fmt: skip
    if wanted not in ("auto", "fp8") and found and found[0].obstacle:
        raise ConfigError(f"speed.teacher_backend {wanted}", rule=found[0].obstacle, remedy="choose auto or plain")
    right = [each for each in found if not each.obstacle and (wanted != "fp8" or each.backend == "fp8")]
    chosen = min(right, key=lambda each: each.seconds or 0.0).backend if right else tries[0]
    chosen = ranks.share(chosen)
    ranks.together(lambda: teacher.use(chosen))
    teacher.drop_others()
    compile_all(teacher, needs, first)
    if found and ranks.is_main:
        told = {"wanted": wanted, "backend": teacher.backend, "tried": [asdict(each) for each in found]}
        (folder / FILE).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def compile_all(teacher: Teacher, needs: Sequence[Needs], first: Callable[[], TrainingBatch]) -> None:
    """Ask every question until its answer is computed as in a step: nothing is compiled or recorded in one."""
    if teacher.backend != "plain":
        batch = first()
        for each in needs:
            make_ready(teacher, batch, each)


def make_ready(teacher: Teacher, batch: TrainingBatch, needs: Needs) -> None:
    """Ask until the next answer is computed as all later ones are: compiled, and of CUDA graphs replayed."""
    for _ in range(CALLS_TO_RECORD if teacher.backend == "graphs" else 1):
        teacher(batch, needs)


@dataclass(frozen=True)
class Reversed:
    """Another micro-batch of the same shapes: what a graph replays must come from what it is given now."""

    input_ids_BT: torch.Tensor
    positions_N: torch.Tensor
    labels_N: torch.Tensor
    attention_mask_BT: torch.Tensor | None
    masked_count: float
    token_count: float
    sequence_count: float


def reverse(batch: TrainingBatch) -> Reversed:
    """The micro-batch read from its last token to its first, with the same predictions."""

    def turned(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.flatten().flip(0).view_as(tensor)

    mask = batch.attention_mask_BT
    return Reversed(
        turned(batch.input_ids_BT), batch.input_ids_BT.numel() - 1 - turned(batch.positions_N), turned(batch.labels_N),
        None if mask is None else turned(mask), batch.masked_count, batch.token_count, batch.sequence_count,
    )  # fmt: skip


def faster_than(mine: Tried, others: Sequence[Tried]) -> Tried:
    """`mine`, with an obstacle where one of the others is right and no slower: what costs accuracy must buy time."""
    best = min((each for each in others if not each.obstacle), key=lambda each: each.seconds or 0.0, default=None)
    if mine.obstacle or best is None or (mine.seconds or 0.0) < (best.seconds or 0.0):
        return mine
    slow, fast = (1e3 * (each.seconds or 0.0) for each in (mine, best))
    return replace(mine, obstacle=f"a forward takes {slow:.3g} ms, and {fast:.3g} ms {best.backend}")


def check(wanted: str, device: torch.device) -> None:
    """Refuse what this hardware does not have.

    Raises:
        ConfigError: CUDA graphs without CUDA, fp8 without hardware that multiplies it.
    """
    obstacle = {"fp8": fp8.obstacle(device), "graphs": "" if device.type == "cuda" else "there is no GPU here"}
    if reason := obstacle.get(wanted):
        raise ConfigError(f"speed.teacher_backend {wanted}", rule=reason, remedy="choose auto or plain")


def facts(teacher: Teacher, folder: Path) -> dict[str, Any]:
    """For the record: what computed the teacher, and what else was tried."""
    return {"backend": teacher.backend, "tried": (kept.read_json(folder / FILE) or {}).get("tried", [])}


def compare(
    teacher: Teacher, backend: Backend, expected: Sequence[tuple[TrainingBatch, Signals]], *, needs: Needs
) -> Tried:
    """Ask the same in another way. A backend that fails to compile or run is an obstacle, not an error.

    `expected` are micro-batches and the plain forward's answers to them; the first is what is timed.
    """
    try:
        teacher.use(backend)
        make_ready(teacher, expected[0][0], needs)
        found = [distances(plain, teacher(batch, needs)) for batch, plain in expected]
        distance = worst([far for far, _ in found])
        apart = [divergence for _, divergence in found if divergence is not None]
        divergence = worst(apart) if apart else None
        seconds = timed(teacher, expected[0][0], needs)
    except TeacherError as error:  # no rank may leave alone: all raise it when they have compared
        return Tried(backend, obstacle=error.rule)
    except Exception as error:  # whatever a compiler raises: the plain forward needs none
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Tried(backend, obstacle=f"it does not run here: {type(error).__name__}: {first[:160]}")
    limit = FP8_DISTANCE if backend == "fp8" else TOLERANCE.get(teacher.dtype, TOLERANCE[torch.float32])
    obstacle = ""
    if not distance <= limit:
        obstacle = f"its answers differ from the plain forward's by {distance:.2g}, more than {limit:g}"
    elif backend == "fp8" and divergence is not None and not divergence <= FP8_DIVERGENCE:
        obstacle = f"its logits diverge by {divergence:.2g} nats, more than {FP8_DIVERGENCE:g}"
    return Tried(backend, seconds, distance, divergence, obstacle)


def worst(found: Sequence[float]) -> float:
    """The largest; NaN where one is, which `max` may pass over."""
    return math.nan if any(map(math.isnan, found)) else max(found)


def distances(expected: Signals, answer: Signals) -> tuple[float, float | None]:
    """(the largest relative distance of an answer, the logits' mean divergence in nats or None)."""
    theirs = answer.tensors()
    far = [
        float((theirs[name].float() - ours.float()).norm() / ours.float().norm().clamp(min=1e-12))
        for name, ours in expected.tensors().items()
    ]
    if expected.head is None or answer.head is None:
        return worst(far), None
    plain, other = (head.logits().float().log_softmax(-1) for head in (expected.head, answer.head))
    return worst(far), float(functional.kl_div(other, plain, reduction="batchmean", log_target=True))


def timed(teacher: Teacher, batch: TrainingBatch, needs: Needs) -> float:
    """Median seconds of a forward, after a warm-up."""
    device, times = batch.input_ids_BT.device, list[float]()
    for _ in range(WARM_UP + ROUNDS):
        begun = time.perf_counter()
        teacher(batch, needs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[WARM_UP:])


def _agreed(mine: Tried, ranks: Ranks) -> Tried:
    """Rank 0's figures, with the first obstacle any rank met."""
    everybodys = ranks.gather(asdict(mine))
    first = next((each["obstacle"] for each in everybodys if each["obstacle"]), "")
    return Tried(**{**everybodys[0], "obstacle": first})


def _begun_with(folder: Path, wanted: str) -> Backend | None:
    """What this trial began with; None where nothing was tried, the file is torn, or something else is wanted now."""
    told = kept.read_json(folder / FILE) or {}
    backend = told.get("backend") if told.get("wanted") == wanted else None
    return backend if backend in get_args(Backend) else None
