"""What a checkpoint holds beside its ledger, and how it is put back.

Files of a checkpoint: engine/ (weights, optimizer, loss scaler: each rank's share, as DeepSpeed writes
them), weights.safetensors (student and objective in fp32, for any other program), random-<rank>.safetensors
(every generator), state.json (ledger, progress, identity, overrides). The position in the sample stream is
the step in state.json: samples are a function of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import checkpoint, random_state
from harness.budget import Account, Ledger
from harness.engine import Engine
from harness.errors import CheckpointError
from harness.manifest import sync
from harness.ranks import Ranks
from harness.units import Unit

# In a trial's directory once it has saved: what tells "killed before its first save" from "lost all it saved".
_MADE = "checkpoints-made"


def newest(directory: Path) -> checkpoint.Found | None:
    """The newest intact checkpoint of a trial; None for one that never saved any.

    Raises:
        CheckpointError: all are bad, or the trial has saved and nothing is left of it.
    """
    found = checkpoint.newest(directory / "checkpoints")
    if found is None and (directory / _MADE).exists():
        raise CheckpointError(
            f"{directory / 'checkpoints'}", rule="this run has saved checkpoints and none is left",
            remedy="restore one, or remove the run and start again",
        )  # fmt: skip
    return found


def note_made(directory: Path) -> None:
    """Remember that a checkpoint was published; CheckpointError when the directory cannot be written any more."""
    marker = directory / _MADE
    try:
        if not marker.exists():
            marker.touch()
            sync(marker)
            sync(directory)
    except OSError as error:
        raise CheckpointError(
            f"{marker}",
            rule=f"it could not be written ({error.strerror})",
            remedy="see to the disk; resume then",
        ) from None


def write(folder: Path, *, engine: Engine, ranks: Ranks) -> None:
    """This rank's share of a checkpoint."""
    engine.save(folder)
    random_state.write(folder / f"random-{ranks.rank}.safetensors")


def read(folder: Path, *, engine: Engine, ranks: Ranks, written_by: int) -> None:
    """Put back what `write` kept, where `written_by` ranks wrote it.

    With as many ranks as then, every bit is restored. With another number DeepSpeed's universal form
    carries weights and optimizer over; a rank without a random state of its own keeps its fresh one.

    Raises:
        CheckpointError: the files hold anything but tensors, or the engine cannot read them.
    """
    if written_by == ranks.world:
        engine.load(folder)
    else:
        engine.load_from_other_world(folder)
    generators = folder / f"random-{ranks.rank}.safetensors"
    if ranks.rank < written_by:
        random_state.restore(generators)


def rebased(state: Mapping[str, Any], ledger: Ledger) -> dict[str, Any]:
    """A ledger's state under another budget or accounting: what was posted stays, what counts as spent is summed anew.

    Raises:
        CheckpointError: more than the new budget is already spent.
    """
    unit, charged = ledger.budget.unit, ledger.charged
    spent = sum((n for a, u, n in state["sums"] if Unit(u) is unit and Account(a) in charged), start=0)
    if spent > ledger.budget.limit:
        raise CheckpointError(
            f"{spent} {unit} are spent", rule=f"the changed study has a budget of {ledger.budget.limit}",
            remedy="raise the budget, or start a new run",
        )  # fmt: skip
    return {
        **state,
        "limit": ledger.budget.limit,
        "unit": unit.value,
        "charged": sorted(a.value for a in charged),
        "spent": spent,
    }
