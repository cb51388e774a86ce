"""What is done at a point of a trial's curve: validation on held-out blocks, and weights kept for read-outs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from harness.budget import Account, Charge
from harness.data.stream import evaluation_batches
from harness.models.signals import Signals
from harness.ranks import Ranks
from harness.rundir import SNAPSHOTS, write_json
from harness.trainee import VALIDATION, VALIDATION_NEEDS
from harness.units import Unit

if TYPE_CHECKING:
    from harness.data.corpus import Corpus
    from harness.study import StudySpec
    from harness.train import Trial

VALIDATION_BATCH = 64


def validation(trial: Trial, *, study: StudySpec, corpus: Corpus, ranks: Ranks) -> Callable[[], dict[str, float]]:
    """Own loss on held-out blocks, each rank doing an equal share; posts its FLOPs, the loop its time."""
    # Equal shares, or ZeRO-3 ranks would wait for each other's gathers for ever.
    world = ranks.world
    blocks = min(study.evaluation.mlm_blocks, len(corpus.blocks("validation"))) // world * world
    size = max(n for n in range(1, min(VALIDATION_BATCH, blocks // world) + 1) if blocks % (n * world) == 0)
    batches = evaluation_batches(
        corpus, "validation", blocks=blocks, batch=size, masking=study.data.masking, causal=study.causal
    )
    mine = batches[ranks.rank :: world]

    def validate() -> dict[str, float]:
        sums = [0.0, 0.0, 0.0]
        flop = 0
        for batch in mine:
            batch = batch.to(trial.engine.device)
            terms = trial.engine.evaluate(batch, Signals(), VALIDATION)
            sums = [
                sums[0] + terms["loss"].item(),
                sums[1] + terms["hits"].item(),
                sums[2] + batch.labels_N.numel(),
            ]
            size = batch.input_ids_BT.shape
            flop += VALIDATION_NEEDS.forward_flops(
                trial.trainee.shape, sequences=size[0], length=size[1], masked=batch.labels_N.numel()
            )
        loss, hits, count, flops = ranks.add([*sums, flop])
        trial.post([Charge(Account.EVALUATION, int(flops), Unit.FLOP)])
        own = "clm" if study.causal else "mlm"
        return {f"{own}_loss": loss / count, f"{own}_accuracy": hits / count}

    return validate


def snapshots(trial: Trial, *, ranks: Ranks) -> Callable[[float], None]:
    """Weights at each point of the curve, for read-outs made after training; removed once read.

    They are named by their step, which stays when the number of points changes.
    """

    def snapshot(fraction: float) -> None:
        weights = trial.engine.weights(trial.trainee.student)

        def keep() -> None:
            folder = trial.directory / SNAPSHOTS
            folder.mkdir(exist_ok=True)
            unique = {id(v.untyped_storage()): k for k, v in weights.items()}
            save_file({k: weights[k] for k in unique.values()}, folder / f"{trial.progress.step:08d}.safetensors")
            place = {
                "step": trial.progress.step, "fraction": fraction, "spent": trial.ledger.spent,
                "flop": trial.ledger.charged_in(Unit.FLOP),
                "device_seconds": trial.ledger.charged_in(Unit.GPU_SECOND),
                "seconds": trial.ledger.amount(Account.STUDENT_STEP, Unit.GPU_SECOND)
                + trial.ledger.amount(Account.TEACHER_FORWARD, Unit.GPU_SECOND),
            }  # fmt: skip
            write_json(folder / f"{trial.progress.step:08d}.json", place)

        ranks.on_main(keep)

    return snapshot
