"""From an arm to its remembered teacher: which samples its budget buys, the shards that hold them, written and verified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.data.stream import SampleStream
from harness.hardware import describe
from harness.models.teacher import Teacher, weights_fingerprint
from harness.teacher_cache.content import Content
from harness.teacher_cache.coverage import sample_price, steps_to_cover
from harness.teacher_cache.shards import Cache, RememberedTeacher

if TYPE_CHECKING:
    import torch

    from harness.data.corpus import Corpus
    from harness.objectives.composition import Plan
    from harness.ranks import Ranks
    from harness.setting import ArmSetting
    from harness.study import StudySpec


def stream_seed(study: StudySpec, seed: int) -> int:
    """Whose order and masks a seed of this study sees."""
    return seed if study.data.seed is None else study.data.seed


def stream_of(study: StudySpec, corpus: Corpus, *, seed: int, micro_batch: int, ranks: Ranks) -> SampleStream:
    """A rank's view of the samples that this seed trains on."""
    return SampleStream(
        corpus, seed=stream_seed(study, seed), sequences=study.batch.sequences, micro_batch=micro_batch, rank=ranks.rank,
        world=ranks.world, masking=study.data.masking, causal=study.causal, mask_epochs=study.data.mask_epochs,
    )  # fmt: skip


def covered_steps(arm: ArmSetting, plan: Plan, stream: SampleStream) -> int | None:
    """Steps whose samples a run of this arm may read; None for all that there are."""
    ledger, unit = arm.ledger(), arm.study.limit.unit
    phases = range(len(plan.phases))
    # Without the cache's share, in the phase whose steps are cheapest: no run does more steps than these.
    meters = arm.analytic_meters(plan, arm.cache_meter(plan, fresh=lambda: 0))
    price = min(ledger.price(c for meter in meters for c in meter.next_step(phase)) for phase in phases)
    policy = arm.study.accounting.teacher_cache
    shared_by = 1 if isinstance(policy, str) else policy.amortised_over
    sample = sample_price(arm.sample_flop(plan), shared_by=shared_by, unit=unit, charged=arm.study.charged)
    return steps_to_cover(
        ledger.budget.limit - ledger.price(arm.upfront()), unit, price=price, sample_price=sample,
        repeats=stream.repeats, sequences=stream.sequences,
    )  # fmt: skip


def remember(
    arm: ArmSetting, plan: Plan, corpus: Corpus, *, seed: int, dtype: torch.dtype, device: torch.device, ranks: Ranks,
    teacher: Callable[[], Teacher], stop: Callable[[], bool] = lambda: False,
    tell: Callable[[str], None] = lambda text: None, written: Callable[[int], None] = lambda there: None,
    steps: int | None = None, root: Path | None = None,
) -> RememberedTeacher:  # fmt: skip
    """The arm's teacher as a cache that holds every sample of its run, or of its first `steps`; ranks call it together.

    What the cache lacks is written first, by `teacher`, which is made only if something lacks; `written` hears of it (see
    `Cache.write`). It lies under `root`; None for the data cache.

    Raises:
        ConfigError, DataError, Preempted: as `Content.of`, `Cache.write` and `Cache.verify` say.
    """
    assert arm.teacher is not None
    spec = arm.study.speed.teacher_cache
    assert spec is not None
    content = Content.of(plan, arm.teacher.shape, arm.size, spec, arm=arm.arm.name)
    stream = stream_of(arm.study, corpus, seed=seed, micro_batch=arm.size.sequences // ranks.world, ranks=ranks)
    facts = describe()
    cache = Cache(
        content, stream, teacher=weights_fingerprint(arm.teacher.path), dtype=dtype,
        device=(facts["gpus"] or [facts["cpu"]])[0], root=root,
    )  # fmt: skip
    covered = steps if steps is not None else covered_steps(arm, plan, stream)
    shards = cache.shards(None if covered is None else covered * stream.sequences)
    cache.write(shards, teacher, ranks=ranks, device=device, stop=stop, tell=tell, written=written)
    cache.verify(shards, ranks)
    return RememberedTeacher(cache, shards, device=device)
