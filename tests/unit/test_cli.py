"""The command line: what users type, what launchers insert, and what a mistake costs (nothing)."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from harness import cli
from tests.support.tiny import TinyStudy


def python(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )


def test_help_answers_at_once_without_torch(root: Path) -> None:
    code = "import sys; sys.argv = ['launch.py', '--help']; from harness.cli import main; main(); sys.exit('torch' in sys.modules)"
    assert python(root, "-c", code).returncode == 0
    # Processor time: on a machine that is busy with other tests the wall clock says nothing about us.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = python(root, "launch.py", "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "run" in result.stdout
    assert "plan" in result.stdout
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) <= 0.5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ("run", "quickstart", None)),
        (["--study", "x"], ("run", "x", None)),
        (["run", "--study", "x", "--ds_config", "c.json"], ("run", "x", "c.json")),
        (["--local_rank=1", "--study", "x", "--deepspeed_config", "c.json"], ("run", "x", "c.json")),
        (["--local_rank=0", "run", "--study", "x"], ("run", "x", None)),
        (["run", "--study", "x", "--local-rank", "1"], ("run", "x", None)),
        (["plan", "--study", "x", "--local-rank=3"], ("plan", "x", None)),
        (["--local_rank", "0", "plan", "--study", "x"], ("plan", "x", None)),
    ],
)
def test_no_subcommand_means_run_and_local_rank_is_accepted_anywhere(arguments: list[str], expected: tuple) -> None:
    options = cli.parse(arguments)
    assert (options.command, options.study, options.ds_config) == expected


def test_the_documented_flags_stay() -> None:
    """Freezes the command line: removing or renaming any of these breaks somebody's script."""
    commands = next(a for a in cli.build_parser()._actions if a.dest == "command").choices
    assert commands is not None
    flags = {name: {o for a in parser._actions for o in a.option_strings} for name, parser in commands.items()}  # type: ignore[union-attr]
    shared = {
        "--study",
        "--ds_config",
        "--deepspeed_config",
        "--arms",
        "--seeds",
        "--budget",
        "--set",
        "--json",
        "--local_rank",
    }
    assert shared | {"--out", "--resume"} <= flags["run"]
    assert shared <= flags["plan"]
    assert "--json" in flags["report"]
    assert {"--seed", "--rows", "--short", "--keep", "--json"} <= flags["chaos"]
    for command in ("run", "job", "submit"):
        assert {"--hang-timeout", "--allow"} <= flags[command]


BAD_INPUT = [
    (["--study", "no_such_study"], 2, "unknown study"),
    (["--study", "{tiny}", "--arms", "zzz"], 2, "zzz"),
    (["--study", "{tiny}", "--set", "optimizer.lrr=1"], 2, "optimizer.lrr"),
    (["--study", "{tiny}", "--budget", "3 bananas"], 2, "unknown unit"),
    (["--study", "{tiny}", "--budget", "-3 flop"], 2, "positive"),
    (["--study", "{tiny}", "--budget", "5 flop"], 2, "one step costs"),
    (["--study", "{tiny}", "--budget", "1 kWh"], 2, "energy cannot be measured"),
    (["--study", "{tiny}", "--seeds", "one"], 2, "whole numbers"),
    (["--study", "{tiny}", "--ds_config", "absent.json"], 2, "no such file"),
    (["--study", "{tiny}", "--set", "arms.no_kd.objective=mlmm"], 2, "known are"),
    (["--study", "{tiny}", "--set", "arms.minilmv2.objective.relation_heads=7"], 2, "must divide"),
    (
        ["--study", "{tiny}", "--set", "arms.soft_targets.objective={name: soft_targets, temperature: 0}"],
        2,
        "temperature",
    ),
    (["--study", "{tiny}", "--set", "teacher.path=/no/such/teacher"], 3, "no such folder"),
    (["--study", "{tiny}", "--set", "data.sources.0.path=/no/such/corpus"], 3, "/no/such/corpus"),
    (["--study", "{tiny}", "--resume"], 2, "--out"),
    (["--study", "{tiny}", "--out", "absent", "--resume"], 2, "no run to resume"),
    (["--study", "{tiny}", "--set", "name=2024-13-45"], 2, "name"),
    (["--study", "{tiny}", "--set", "evaluation.main=bogus"], 2, "not a score this study makes"),
    (["--study", "{tiny}", "--set", "evaluation.probes={tasks: [bogus]}"], 2, "bogus"),
    (["--study", "{tiny}", "--set", "evaluation.probes={tasks: [package]}"], 3, "package"),
    (["--study", "{tiny}", "--ds_config", "{nested}"], 2, "reduce_buckt_size"),
    (["report", "/no/such/run"], 2, "no such directory"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "message"), BAD_INPUT, ids=lambda v: " ".join(v) if isinstance(v, list) else None
)
def test_bad_input_is_one_line_and_costs_nothing(
    tiny: TinyStudy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    arguments: list[str], code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    nested = tiny.folder / "nested.json"
    nested.write_text('{"zero_optimization": {"stage": 1, "reduce_buckt_size": 5}}')
    places = {"{tiny}": str(tiny.file), "{nested}": str(nested)}
    filled = [places.get(argument, argument) for argument in arguments]
    assert cli.main(filled) == code
    error = capsys.readouterr().err
    assert message in error
    assert len([line for line in error.splitlines() if line.startswith("isobudget:")]) == 1
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == [], "nothing was begun"


def test_a_teacher_with_another_tokenizer_or_missing_weights_is_refused(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(tiny.teacher, other)
    tree = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tree["model"]["vocab"]
    a, b = list(vocabulary)[2000:2002]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (other / "tokenizer.json").write_text(json.dumps(tree))
    assert cli.main(["--study", str(tiny.file), "--set", f"teacher.path={other}"]) == 3
    assert "tokenizer" in capsys.readouterr().err

    holed = tmp_path / "holed"
    shutil.copytree(tiny.teacher, holed)
    weights = load_file(holed / "model.safetensors")
    name = next(k for k in weights if k.endswith("layer.2.output.dense.weight"))
    del weights[name]
    save_file(weights, holed / "model.safetensors", metadata={"format": "pt"})
    assert cli.main(["--study", str(tiny.file), "--set", f"teacher.path={holed}", "--out", str(tmp_path / "run")]) == 3
    assert name in capsys.readouterr().err


def test_plan_json_has_the_promised_keys(tiny: TinyStudy, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--study", str(tiny.file), "--budget", "2e9flop", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["study"] == "tiny"
    assert table["budget"] == {"unit": "flop", "limit": 2_000_000_000}
    for arm in table["arms"]:
        assert {"name", "step_cost", "charged_per_step", "steps", "tokens", "epochs", "seconds"} <= set(arm)
        assert arm["charged_per_step"] == sum(cost["flop"] for cost in arm["step_cost"].values())
        assert arm["steps"] * arm["charged_per_step"] <= 2_000_000_000 < (arm["steps"] + 1) * arm["charged_per_step"]
        assert arm["tokens"] == arm["steps"] * 8 * 32
        assert arm["seconds"] > 0
    assert "TEACHER_FORWARD" not in table["arms"][0]["step_cost"]
    assert "TEACHER_FORWARD" in table["arms"][1]["step_cost"]
