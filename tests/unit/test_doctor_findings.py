"""Doctor: every finding has a remedy where there is something to do, and no machine makes it fail."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import doctor, doctor_devices, host
from harness.doctor import Finding, print_findings, to_json

sys.path.insert(0, str(Path(__file__).parents[1] / "fake_nvml"))
import fake_nvml

A = "GPU-aaaaaaaa-0000-0000-0000-000000000001"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def fake_nvml_builds() -> Iterator[None]:
    yield
    fake_nvml.remove_builds()


def by_topic(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.topic: finding for finding in findings}


def gpus(scenario: str, **environ: str) -> dict[str, dict[str, str]]:
    return {finding["topic"]: finding for finding in fake_nvml.run("diagnose", scenario, environ=environ)}


# -- the whole -----------------------------------------------------------------------------------------
def test_diagnose_covers_its_topics_and_gives_every_problem_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_torch", lambda: [Finding("torch devices", "ok", "stubbed: slow to import")])
    findings = doctor.diagnose()
    topics = by_topic(findings)
    wanted = {"python", "torch", "transformers", "deepspeed", "nvml", "energy", "cpu precision", "memory", "threads"}
    assert wanted | {"torchrun", "srun", "mpirun", "pdsh", "triton", "kernels package", "data cache"} <= set(topics)
    assert all(finding.found for finding in findings)
    assert all(finding.remedy for finding in findings if finding.status != "ok")


def test_a_check_that_fails_is_a_finding_and_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_torch() -> list[Finding]:
        raise RuntimeError("broken wheel")

    monkeypatch.setattr(doctor, "check_torch", check_torch)
    findings = by_topic(doctor.diagnose())
    assert findings["torch"].found == doctor.version("torch")
    assert findings["check torch"].status == "warn"
    assert "broken wheel" in findings["check torch"].found
    assert "memory" in findings


def test_importing_doctor_imports_no_torch_and_asks_no_driver() -> None:
    code = (
        "import sys, harness.doctor; print([m for m in ('torch', 'pynvml', 'deepspeed', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_json_holds_the_findings() -> None:
    text = to_json([Finding("gpu 0", "warn", 'a "quoted" <b>thing</b>', "do [this]")])
    assert json.loads(text) == {
        "findings": [
            {"topic": "gpu 0", "status": "warn", "found": 'a "quoted" <b>thing</b>', "remedy": "do [this]"},
        ]
    }


@pytest.mark.parametrize("terminal", [True, False])
def test_printing_shows_every_word_and_reads_none_as_markup(terminal: bool) -> None:
    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=200, no_color=True)
    print_findings([Finding("gpu 0", "missing", "[red]not[/red] there", "mount [/dev]")], console)
    text = stream.getvalue()
    assert "[red]not[/red] there" in text
    assert "mount [/dev]" in text
    assert "missing" in text
    assert terminal or "\x1b" not in text


# -- devices -------------------------------------------------------------------------------------------
def test_gpus_are_described_in_cudas_order() -> None:
    found = gpus("constant", CUDA_VISIBLE_DEVICES="1,0")
    assert "GPU-bbbbbbbb" in found["gpu 0"]["found"]
    assert "80 GiB" in found["gpu 0"]["found"]
    assert A in found["gpu 1"]["found"]
    assert found["nvml"]["found"] == "driver 570.86.15"
    assert found["gpu 0 gpm"]["status"] == "ok"
    assert "fp8" in found["gpu 0 precision"]["found"]
    assert found["energy"] == {
        "topic": "energy",
        "status": "ok",
        "found": "NVML energy counter of 2 GPU(s)",
        "remedy": "",
    }


def test_a_power_cap_is_a_warning_and_idling_is_not() -> None:
    assert "power cap" in gpus("constant")["gpu 0 clocks"]["found"]
    assert "gpu 0 clocks" not in gpus(f"device {A}\nreasons 0x1\n")


def test_what_a_gpu_lacks_is_named_with_a_remedy() -> None:
    a100 = gpus("no_gpm")
    assert a100["gpu 0 gpm"]["status"] == "missing"
    assert "fp8" not in a100["gpu 0 precision"]["found"]
    t4 = gpus("other_order", CUDA_VISIBLE_DEVICES=A)
    assert t4["gpu 0 precision"]["status"] == "warn"
    assert "fp16" in t4["gpu 0 precision"]["remedy"]
    denied = gpus("denied")
    assert denied["energy"]["status"] == "missing"
    assert "permission denied" in denied["energy"]["found"]
    polled = gpus("denied_counter")
    assert polled["energy"]["status"] == "warn"
    assert "fallback" in polled["energy"]["found"]


def test_gpus_that_cuda_would_not_see_or_not_in_a_known_order_are_findings() -> None:
    assert gpus("constant", CUDA_VISIBLE_DEVICES="")["gpu"]["remedy"] == "check CUDA_VISIBLE_DEVICES"
    assert "PCI_BUS_ID" in gpus("other_order")["gpu"]["remedy"]
    assert "Driver Not Loaded" in gpus("no_driver")["nvml"]["found"]


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        ({"avx2", "avx512f", "amx_bf16"}, "ok", "AMX bf16"),
        ({"avx2"}, "ok", "emulated"),
        ({"asimd", "bf16"}, "ok", "bf16"),
        ({"sse2"}, "warn", "AVX2"),
        (set(), "warn", "does not tell"),
    ],
)
def test_cpu_precision_follows_the_instruction_set(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], status: str, words: str
) -> None:
    monkeypatch.setattr(doctor_devices.hardware, "cpu_flags", lambda: frozenset(flags))
    (finding,) = doctor_devices.check_cpu_precision()
    assert finding.status == status
    assert words in finding.found


# -- software and resources ----------------------------------------------------------------------------
def test_versions_outside_the_tested_range_are_warned_of() -> None:
    tested = ((2, 11), (2, 13))
    statuses = {
        v: doctor._in_range("torch", v, tested).status
        for v in ("2.11.0", "2.13.1+cu128", "2.14.0", "2.9.1", "3.0", "?")
    }
    assert statuses == {
        "2.11.0": "ok",
        "2.13.1+cu128": "ok",
        "2.14.0": "warn",
        "2.9.1": "warn",
        "3.0": "warn",
        "?": "warn",
    }


def test_a_kernels_folder_that_hides_the_hubs_package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Spec:
        origin = str(ROOT / "kernels" / "__init__.py")

    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: Spec())
    assert by_topic(doctor.check_packages())["kernels package"].status == "warn"
    monkeypatch.undo()
    assert by_topic(doctor.check_packages())["kernels package"].status == "ok"


def test_threads_are_counted_against_cores_and_the_containers_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.hardware, "usable_cores", lambda: 8)
    monkeypatch.setattr(doctor, "thread_limit", lambda: None)
    assert doctor.check_threads({})[0].remedy == "for n ranks on this node set OMP_NUM_THREADS to 8 / n"
    assert doctor.check_threads({"OMP_NUM_THREADS": "4"})[0].status == "ok"
    assert doctor.check_threads({"OMP_NUM_THREADS": "9"})[0].status == "warn"
    assert doctor.check_threads({"OMP_NUM_THREADS": "four"})[0].status == "warn"
    monkeypatch.setattr(doctor, "thread_limit", lambda: 2.5)
    assert "OMP_NUM_THREADS=2" in doctor.check_threads({})[0].remedy


def test_memory_is_the_machines_or_its_containers_when_less(tmp_path: Path) -> None:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    proc.mkdir()
    cgroup.mkdir()
    assert host.memory_bytes(proc, cgroup) == (None, None)
    (proc / "meminfo").write_text("MemTotal:  8000 kB\nMemFree: 1 kB\nMemAvailable:  6000 kB\n")
    assert host.memory_bytes(proc, cgroup) == (8000 * 1024, 6000 * 1024)
    (cgroup / "memory.current").write_text(f"{1000 * 1024}\n")
    (cgroup / "memory.max").write_text("max\n")
    assert host.memory_bytes(proc, cgroup) == (8000 * 1024, 6000 * 1024)
    (cgroup / "memory.max").write_text(f"{4000 * 1024}\n")
    assert host.memory_bytes(proc, cgroup) == (4000 * 1024, 3000 * 1024)


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "memory_bytes", lambda: (64 << 30, 1 << 30))
    assert doctor.check_memory()[0].status == "warn"
    monkeypatch.setattr(doctor, "memory_bytes", lambda: (64 << 30, 32 << 30))
    assert doctor.check_memory()[0].status == "ok"
    monkeypatch.setattr(doctor, "memory_bytes", lambda: (None, None))
    assert "does not tell" in doctor.check_memory()[0].found


def test_the_time_a_container_may_use_is_read_from_either_interface(tmp_path: Path) -> None:
    assert host.thread_limit(tmp_path) is None
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert host.thread_limit(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert host.thread_limit(tmp_path) is None
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    assert host.thread_limit(tmp_path) == 2


def test_launchers_are_looked_for_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "torchrun").touch()
    found = by_topic(doctor.check_launchers())
    assert found["srun"].status == "ok"
    assert found["torchrun"].status == "warn"
    assert found["torchrun"].remedy == f"add {tmp_path / 'bin'} to PATH"
    assert found["pdsh"].status == "missing"


def test_a_lock_is_stale_when_no_process_holds_it(tmp_path: Path) -> None:
    env = {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    assert doctor.check_extension_locks(env)[0].status == "ok"
    for folder in ("fused_adam", "py311_cpu/cpu_adam"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "lock").touch()
    held = os.open(tmp_path / "fused_adam" / "lock", os.O_RDONLY)
    try:
        stale, running = doctor.check_extension_locks(env)
    finally:
        os.close(held)
    assert stale.status == "warn"
    assert stale.remedy.startswith(f"rm {tmp_path / 'py311_cpu/cpu_adam/lock'}")
    assert running.status == "ok"
    assert "fused_adam" in running.found
    assert [f.status for f in doctor.check_extension_locks(env)] == ["warn", "warn"]


def test_a_cache_that_cannot_be_written_is_named_with_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOBUDGET_CACHE", str(tmp_path / "not" / "yet"))
    data, hub = doctor.check_caches({"HF_HOME": "/proc/hub"})
    assert data.status == "ok"
    assert not (tmp_path / "not").exists()  # looking creates nothing
    assert hub.status == "warn"
    assert "HF_HOME" in hub.remedy
