"""--allow and --hang-timeout mean to submitted jobs what they mean to a run, and leave the same record."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from harness import cli, conduct
from harness.submit.graph import Machines, build
from tests.support.tiny import TinyStudy
from tests.unit.test_submit import graph, study


def flags_of(**more: Any) -> dict[str, list[str]]:
    found = build(
        study(controls=["equal_tokens"]), Machines(4, 8), out="/o", study_file="/o/study.yaml", ds_config=None, **more
    )
    return {stage.name: stage.flags for stage in found.stages}


def test_leave_goes_to_the_stages_that_train_and_patience_to_all_whose_ranks_wait() -> None:
    flags = flags_of(allow="hardware,study", hang_timeout_s=90.0)
    for stage in ("arms", "controls"):
        assert shlex.join(flags[stage]).endswith("--hang-timeout=90.0 --allow hardware,study")
    for stage in ("evaluation", "report"):
        assert "--hang-timeout=90.0" in flags[stage]
        assert "--allow" not in flags[stage]
    assert flags["cache"] == ["--study", "/o/study.yaml"]
    assert all("--hang-timeout" not in shlex.join(stage.flags) for stage in graph(Machines(4, 8)).stages)


def submit(tiny: TinyStudy, out: Path, *words: str) -> int:
    return cli.main(
        ["submit", "--study", str(tiny.file), "--arms", "no_kd", "--out", str(out), "--cpu", "--dry-run", *words]
    )


def test_a_changed_study_is_submitted_only_with_leave_and_the_change_is_kept_as_an_override(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(tiny, tmp_path) == 0
    changed = ["--set", "optimizer.lr=0.004"]
    assert submit(tiny, tmp_path, *changed) == 2
    assert "--allow study" in capsys.readouterr().err
    assert submit(tiny, tmp_path, *changed, "--allow", "study") == 0
    (override,) = json.loads((tmp_path / "identity.json").read_text())["overrides"]
    assert (override["kind"], override["now"]) == ("study", 0.004)
    assert "--allow study" in (tmp_path / "jobs" / "arms.sbatch").read_text()


def test_leave_that_nobody_knows_or_that_would_mix_currencies_is_refused(tiny: TinyStudy, tmp_path: Path) -> None:
    for words in (["--allow", "weather"], ["--allow", "hardware", "--budget", "1 gpu-hours"]):
        assert submit(tiny, tmp_path / "out", *words) == 2
    assert cli.main(["job", "no_kd:1", "--study", str(tiny.file), "--out", str(tmp_path), "--allow", "weather"]) == 2
    assert not (tmp_path / "out").exists()


def test_a_job_on_other_hardware_is_refused_unless_allowed_and_its_record_says_so(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--study", str(tiny.file), "--arms", "no_kd", "--seeds", "1,2", "--budget", "0.1 Gflop"]
    words += ["--out", str(tmp_path)]
    assert cli.main(["job", "no_kd:1", *words]) == 0
    file = tmp_path / "identity.json"
    kept = json.loads(file.read_text())
    key = next(iter(kept["identity"]["hardware"]))
    kept["identity"]["hardware"][key] = "another"
    file.write_text(json.dumps(kept))
    assert cli.main(["job", "no_kd:2", *words]) == 4
    assert "--allow hardware" in capsys.readouterr().err

    waited: list[float | None] = []
    watch = conduct.watch

    def spy(*given: Any, timeout_s: float | None, **more: Any) -> Any:
        waited.append(timeout_s)
        return watch(*given, timeout_s=timeout_s, **more)

    monkeypatch.setattr(conduct, "watch", spy)
    assert cli.main(["job", "no_kd:2", *words, "--allow", "hardware", "--hang-timeout", "123"]) == 0
    assert waited == [123.0]
    record = json.loads((tmp_path / "arms" / "no_kd" / "seed-2" / "record.json").read_text())
    assert [(override["kind"], override["was"]) for override in record["overrides"]] == [("hardware", "another")]
