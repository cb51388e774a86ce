"""An exported student is the trained one: a stranger's transformers loads it and computes the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForMaskedLM, AutoTokenizer

from harness import cli
from harness import conduct as conduct_module
from tests.support.tiny import TinyStudy

ARMS = [
    {"name": "no_kd", "objective": "mlm"},
    {"name": "minilmv2", "objective": {"name": "minilmv2", "relation_heads": 8}},
]
FAMILIES = ["bert", "modernbert"]


@pytest.fixture(scope="module", params=FAMILIES)
def trained(
    request: pytest.FixtureRequest, tiny: TinyStudy, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run of two arms, and each trained student's own logits on fixed tokens, taken before its export."""
    folder = tmp_path_factory.mktemp(f"export-{request.param}")
    student = {"family": request.param, "layers": 2, "hidden": 32, "heads": 4}
    evaluation = {"curve_points": 0, "mlm_blocks": 16, "readout": {"steps": 2, "positions": 32, "blocks": 16}}
    file = tiny.write(
        folder / "s.yaml", arms=ARMS, student=student, budget="1 Gflop", evaluation=evaluation, checkpoints=0
    )
    seen: dict[str, torch.Tensor] = {}
    original = conduct_module.export

    def watched(config: Any, weights: Any, to: Path, **rest: Any) -> None:
        from harness.models.student import build_student

        model = build_student(config, seed=0)
        model.load_state_dict(dict(weights))
        with torch.no_grad():
            seen[to.parent.parent.name] = model.eval()(input_ids=tokens()).logits
        original(config, weights, to, **rest)

    patch = pytest.MonkeyPatch()
    patch.setattr(conduct_module, "export", watched)
    try:
        assert cli.main(["run", "--study", str(file), "--out", str(folder / "run")]) == 0
    finally:
        patch.undo()
    return folder / "run", seen


def tokens() -> torch.Tensor:
    return torch.randint(10, 4000, (2, 24), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("arm", [arm["name"] for arm in ARMS])
def test_a_loaded_student_has_the_trained_students_logits(
    trained: tuple[Path, dict[str, torch.Tensor]], arm: str
) -> None:
    run, seen = trained
    folder = run / "arms" / arm / "seed-1" / "student"
    model: Any = AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=tokens()).logits, seen[arm], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arm", [arm["name"] for arm in ARMS])
def test_the_folder_is_a_whole_hugging_face_folder_with_its_card(
    trained: tuple[Path, dict[str, torch.Tensor]], arm: str
) -> None:
    run, _ = trained
    folder = run / "arms" / arm / "seed-1" / "student"
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert not any("plan." in name or "projection" in name for name in weights.keys())  # noqa: SIM118
    assert AutoTokenizer.from_pretrained(folder)("the model returns")["input_ids"]
    text = (folder / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: transformers\n")
    assert ("was never trained" in text) == (arm == "minilmv2")
