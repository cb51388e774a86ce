"""The launch scripts: clean to shellcheck, strict, and right about signals and exit codes with stand-ins for launchers."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

SCRIPTS = ("deepspeed_hostfile.sh", "torchrun.sh", "mpirun.sh", "slurm.sbatch")


@pytest.fixture
def bash() -> str:
    found = shutil.which("bash")
    if found is None:
        pytest.skip("no bash")
    return found


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_strict_and_clean(root: Path, bash: str, name: str) -> None:
    script = root / "launchers" / name
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n")
    assert os.access(script, os.X_OK)
    assert "\nset -euo pipefail\n" in text
    assert not re.search(r"\beval\b", text)
    assert "launch.py" in text
    assert "OMP_NUM_THREADS" in text
    assert subprocess.run([bash, "-n", script]).returncode == 0


def test_shellcheck_finds_nothing(root: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck on PATH")
    files = sorted(str(f) for f in (root / "launchers").iterdir() if f.suffix in (".sh", ".sbatch"))
    said = subprocess.run(["shellcheck", "-x", *files], cwd=root, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout


@pytest.mark.parametrize(
    ("script", "variables", "arguments"),
    [
        ("torchrun.sh", {"NODES": "two"}, ["--out", "x"]),
        ("torchrun.sh", {"NODES": "2", "NODE_RANK": "2"}, ["--out", "x"]),
        ("torchrun.sh", {"MASTER_ADDR": "-x"}, ["--out", "x"]),
        ("torchrun.sh", {"NODES": "2", "NODE_ADDR": "-x"}, ["--out", "x"]),
        ("torchrun.sh", {"RUN_ID": "$(touch canary)"}, ["--out", "x"]),
        ("torchrun.sh", {"RANKS_PER_NODE": "1;touch canary"}, ["--out", "x"]),
        ("torchrun.sh", {}, ["--study", "quickstart"]),
        ("mpirun.sh", {"RANKS": "2 --mca x"}, []),
        ("mpirun.sh", {"RANKS": "2", "MASTER_ADDR": "a b"}, []),
        ("mpirun.sh", {"RANKS": "2", "MASTER_PORT": "$(touch canary)"}, []),
    ],
)
def test_a_wrong_value_ends_with_2_before_anything_starts(
    root: Path, tmp_path: Path, bash: str, script: str, variables: dict[str, str], arguments: list[str]
) -> None:
    environment = {**os.environ, "RANKS_PER_NODE": "1", "PYTHON": sys.executable, **variables}
    said = subprocess.run(
        [bash, root / "launchers" / script, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.returncode == 2, said.stderr
    assert not list(tmp_path.iterdir())


def stand_in(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


# -- mpirun.sh against an mpirun that only plays its part ----------------------------------------------------
OPEN_MPI = "mpirun (Open MPI) 4.1"


@pytest.fixture
def mpirun(tmp_path: Path) -> dict[str, str]:
    """An environment in which mpirun writes down its words and becomes $RANK_BODY."""
    stand_in(
        tmp_path / "bin",
        "mpirun",
        '[[ $1 == --version ]] && { echo "${VERSION-'
        + OPEN_MPI
        + '}"; exit; }; echo "$OMP_NUM_THREADS|$MASTER_ADDR|$*" > "$MARKS/words"; exec bash -c "${RANK_BODY:-exit 0}"',
    )
    unwanted = ("OMP_NUM_THREADS", "MASTER_ADDR", "MASTER_PORT", "RANKS", "HOSTFILE")
    environment = {k: v for k, v in os.environ.items() if k not in unwanted}
    return environment | {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "MARKS": str(tmp_path), "PYTHON": sys.executable,
    }  # fmt: skip


def over_mpi(root: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", root / "launchers" / "mpirun.sh", *words], env=environment, capture_output=True, text=True, timeout=120
    )


def test_mpirun_gives_every_rank_its_threads_and_its_cores(root: Path, tmp_path: Path, mpirun: dict[str, str]) -> None:
    assert over_mpi(root, mpirun | {"RANKS": "2", "PYTHON": "python-of-mine"}, "--study", "a b").returncode == 0
    threads, address, words = (tmp_path / "words").read_text().strip().split("|")
    cores = len(os.sched_getaffinity(0))
    assert int(threads) == max(1, cores // 2)
    assert address == "127.0.0.1"
    assert "-np 2" in words
    assert "--bind-to none" in words
    assert words.endswith("python-of-mine launch.py --study a b")


def test_files_are_named_from_where_the_script_is_called(root: Path, tmp_path: Path, mpirun: dict[str, str]) -> None:
    (tmp_path / "mine.yaml").touch()
    out = ("--out", "runs/a")
    for words in (
        ("--study", "mine.yaml", *out),
        ("--study=mine.yaml", "--out=runs/a"),
        ("--ds_config", "mine.yaml", *out),
        ("--deepspeed_config", "mine.yaml", *out),
        ("--deepspeed_config=mine.yaml", "--out=runs/a"),
    ):
        subprocess.run(
            ["bash", root / "launchers" / "mpirun.sh", *words], env=mpirun | {"RANKS": "1"}, cwd=tmp_path, check=True,
            timeout=120,
        )  # fmt: skip
        said = (tmp_path / "words").read_text().strip().replace("=", " ")
        flag = words[0].partition("=")[0]
        assert said.endswith(f"launch.py {flag} {tmp_path}/mine.yaml --out {tmp_path}/runs/a")


def test_mpirun_counts_ranks_by_the_slots_of_its_hostfile(root: Path, tmp_path: Path, mpirun: dict[str, str]) -> None:
    (tmp_path / "hosts").write_text("node1 slots=3\n# spare\nnode2 slots=2\n", encoding="ascii")
    environment = mpirun | {"HOSTFILE": str(tmp_path / "hosts"), "HF_HOME": "/shared/hf"}
    assert over_mpi(root, environment).returncode == 0
    _, address, words = (tmp_path / "words").read_text().split("|")
    assert address == "node1"
    assert "-np 5 " in words
    assert "--oversubscribe" not in words
    assert "-x HF_HOME" in words
    (tmp_path / "words").unlink()
    said = over_mpi(root, environment | {"RANKS": "6"})
    assert (said.returncode, (tmp_path / "words").exists()) == (2, False)
    assert "5 slots" in said.stderr


@pytest.mark.parametrize("version", ["HYDRA build details:\nVersion: 4.2.0", "Intel(R) MPI Library for Linux* OS", ""])
def test_an_mpi_with_other_options_is_named_and_refused(
    root: Path, tmp_path: Path, mpirun: dict[str, str], version: str
) -> None:
    said = over_mpi(root, mpirun | {"RANKS": "2", "VERSION": version})
    assert said.returncode == 2
    assert "Open MPI" in said.stderr
    assert not (tmp_path / "words").exists()


RECORD = """mkdir -p "$MARKS/out"; printf '{"state": "%s", "exit_code": %s, "time": %s}' {} $(date +%s) > "$MARKS/out/status.json"; exit 1"""


@pytest.mark.parametrize(("state", "code"), [("failed", 3), ("interrupted", 75)])
def test_mpirun_ends_with_the_code_that_the_run_recorded(
    root: Path, tmp_path: Path, mpirun: dict[str, str], state: str, code: int
) -> None:
    body = RECORD.replace("{}", f"{state} {code}")
    out = str(tmp_path / "out")
    assert over_mpi(root, mpirun | {"RANKS": "2", "RANK_BODY": body}, f"--out={out}").returncode == code
    assert (
        over_mpi(root, mpirun | {"RANKS": "2", "RANK_BODY": "exit 1"}, "--out", str(tmp_path / "none")).returncode == 1
    )


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_mpirun_is_told_by_usr1_whatever_the_script_was_told_by(
    root: Path, tmp_path: Path, mpirun: dict[str, str], number: int
) -> None:
    """TERM would have it kill its ranks a second later."""
    body = 'trap "sleep 0.3; exit 75" USR1; trap "exit 9" TERM; touch "$MARKS/ready"; for i in {1..200}; do sleep 0.1; done'
    process = subprocess.Popen(
        ["bash", root / "launchers" / "mpirun.sh"], env=mpirun | {"RANKS": "2", "RANK_BODY": body}
    )
    until(tmp_path / "ready")
    process.send_signal(number)
    assert process.wait(timeout=30) == 75


def until(file: Path) -> None:
    deadline = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- torchrun.sh against a torchrun that only plays its part -------------------------------------------------
@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({}, "127.0.0.1"),
        ({"NODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "node1.example"}, "node1.example"),
        ({"NODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "127.0.0.9"}, "127.0.0.1"),
        ({"NODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "127.0.0.9", "NODE_ADDR": "10.1.2.3"}, "10.1.2.3"),
        ({"NODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "node1.example", "NODE_ADDR": "10.1.2.3"}, "10.1.2.3"),
    ],
    ids=["alone", "first", "routed", "told", "first-told"],
)
def test_every_machine_says_where_the_others_reach_it(
    root: Path, tmp_path: Path, variables: dict[str, str], address: str
) -> None:
    """Ranks meet at the address that one of the machines gives of itself; its own name may mean nothing elsewhere."""
    stand_in(
        tmp_path / "bin",
        "python",
        f'[[ $2 == torch.distributed.run ]] || exec "{sys.executable}" "$@"; printf "%s\\n" "$@" > "$MARKS/words"',
    )
    unwanted = ("NODES", "NODE_RANK", "NODE_ADDR", "MASTER_ADDR", "MASTER_PORT")
    environment = {k: v for k, v in os.environ.items() if k not in unwanted}
    environment |= {"PYTHON": str(tmp_path / "bin" / "python"), "MARKS": str(tmp_path), "RANKS_PER_NODE": "1"}
    words = [root / "launchers" / "torchrun.sh", "--out", str(tmp_path / "out")]
    subprocess.run(words, env=environment | variables, check=True, timeout=120)
    given = (tmp_path / "words").read_text().splitlines()
    assert given[given.index("--local-addr") + 1] == address


# -- deepspeed_hostfile.sh against a launcher that only plays its part ---------------------------------------
@pytest.mark.parametrize(
    ("launcher", "words"), [("pdsh", ""), ("slurm", "--wait=60 --kill-on-bad-exit=0"), ("openmpi", "--bind-to none")]
)
def test_the_deepspeed_script_passes_signals_and_codes_on_under_each_launcher(
    root: Path, tmp_path: Path, launcher: str, words: str
) -> None:
    """DeepSpeed's launcher answers TERM over pdsh alone; elsewhere its own child, mpirun or srun, must be told."""
    stand_in(
        tmp_path / "bin",
        "python",
        f"""[[ $2 == deepspeed.launcher.runner ]] || exec "{sys.executable}" "$@"
printf '%s\\n' "$@" > "$MARKS/words"
if [[ {launcher} == pdsh ]]; then
  record() {{ {RECORD.replace("{}", "interrupted 75")}; }}; trap record TERM; touch "$MARKS/ready"; for i in {{1..200}}; do sleep 0.1; done
else
  bash -c 'trap "exit 75" USR1; touch "$MARKS/ready"; for i in {{1..200}}; do sleep 0.1; done'
  exit $?
fi""",
    )
    (tmp_path / "hosts").write_text("node1 slots=1\nnode2 slots=1\n", encoding="ascii")
    environment = os.environ | {
        "PYTHON": str(tmp_path / "bin" / "python"), "MARKS": str(tmp_path), "LAUNCHER": launcher,
        "HOSTFILE": str(tmp_path / "hosts"), "MASTER_ADDR": "node1", "MASTER_PORT": "29500",
    }  # fmt: skip
    environment = {k: v for k, v in environment.items() if not k.startswith(("NCCL", "MLFLOW", "PYTHON_", "UCX"))}
    process = subprocess.Popen(
        [root / "launchers" / "deepspeed_hostfile.sh", "--out", str(tmp_path / "out")], env=environment
    )
    until(tmp_path / "ready")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 75
    given = (tmp_path / "words").read_text().splitlines()
    assert (f"--launcher_args={words}" in "\n".join(given)) == bool(words)
    assert given[-2:] == ["--out", str(tmp_path / "out")]


# -- slurm.sbatch against an srun and a scontrol that only play their part -----------------------------------
@pytest.fixture
def slurm(tmp_path: Path, root: Path) -> dict[str, str]:
    """The environment of a batch job; `srun` becomes $RANK_BODY, `scontrol` writes down what it was asked."""
    bin_ = tmp_path / "bin"
    stand_in(bin_, "srun", 'echo "$@" > "$MARKS/srun"; echo ready > "$MARKS/ready"; exec bash -c "$RANK_BODY"')
    stand_in(bin_, "scontrol", '[[ $1 == show ]] && { echo node1; echo node2; exit; }; echo "$@" >> "$MARKS/scontrol"')
    return {
        **os.environ, "PATH": f"{bin_}:{os.environ['PATH']}", "MARKS": str(tmp_path), "PYTHON": sys.executable,
        "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_CPUS_PER_TASK": "6", "SLURM_SUBMIT_DIR": str(root),
    }  # fmt: skip


def batch(
    root: Path, slurm: dict[str, str], body: str, *, warn: bool, out: Path | None = None
) -> tuple[int, Path]:  # fmt: skip
    marks = Path(slurm["MARKS"])
    out = out or marks / "y"
    process = subprocess.Popen(
        ["bash", root / "launchers" / "slurm.sbatch", "--study", "x", "--out", str(out)], env={**slurm, "RANK_BODY": body},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    if warn:
        until(marks / "ready")
        time.sleep(0.2)
        process.send_signal(signal.SIGUSR1)
    return process.wait(timeout=60), marks


def test_a_warned_job_waits_for_the_save_and_asks_for_another_turn(root: Path, slurm: dict[str, str]) -> None:
    save = 'trap "sleep 0.5; exit 75" USR1; for ((i = 0; i < 200; i++)); do sleep 0.1; done'
    code, marks = batch(root, slurm, save, warn=True)
    assert code == 75
    assert (marks / "scontrol").read_text() == "requeue 4711\n"
    words = (marks / "srun").read_text()
    assert "--cpus-per-task=6" in words
    assert words.rstrip().endswith(f"launch.py --study x --out {marks}/y --auto-resume")


def test_a_job_warned_while_it_starts_comes_back_too(root: Path, slurm: dict[str, str]) -> None:
    code, marks = batch(root, slurm, "sleep 20", warn=True)
    assert code == 75
    assert (marks / "scontrol").exists()


def test_a_job_warned_before_it_starts_anything_starts_nothing_and_comes_back(
    root: Path, slurm: dict[str, str]
) -> None:
    """The signal comes while scontrol is asked for the nodes; without a trap by then it would end the script."""
    marks = Path(slurm["MARKS"])
    stand_in(
        marks / "bin", "scontrol", '[[ $1 == show ]] && { kill -USR1 $PPID; echo node1; exit; }; echo "$@" >> "$MARKS/scontrol"'
    )  # fmt: skip
    code, _ = batch(root, slurm, "exit 0", warn=False)
    assert code == 75
    assert not (marks / "srun").exists()
    assert (marks / "scontrol").read_text() == "requeue 4711\n"


def test_a_job_whose_run_was_preempted_comes_back_though_srun_says_143(root: Path, slurm: dict[str, str]) -> None:
    marks = Path(slurm["MARKS"])
    body = RECORD.replace("{}", "interrupted 75").replace("exit 1", "exit 143")
    assert batch(root, slurm, body, warn=False, out=marks / "out")[0] == 75
    assert (marks / "scontrol").read_text() == "requeue 4711\n"


@pytest.mark.parametrize("warn", [True, False], ids=["warned at once", "hangs"])
def test_a_hopeless_job_gets_no_more_turns_than_it_was_given(root: Path, slurm: dict[str, str], warn: bool) -> None:
    """Each turn records that it hung, or is warned before it can begin; no turn brings a step."""
    marks = Path(slurm["MARKS"])
    body = "sleep 20" if warn else RECORD.replace("{}", "interrupted 75")
    codes = []
    for turn in range(2):
        (marks / "ready").unlink(missing_ok=True)
        codes.append(
            batch(root, slurm | {"TURNS": "2", "SLURM_RESTART_COUNT": str(turn)}, body, warn=warn, out=marks / "out")[0]
        )
        if not warn:
            time.sleep(1)  # its stand-in writes the time in seconds: the next turn's word must differ
    if not warn:  # the first turn leaves its first file, which counts as a result
        codes.append(batch(root, slurm | {"TURNS": "2"}, body, warn=warn, out=marks / "out")[0])
        codes = codes[1:]
    assert codes == [75, 1]


def test_a_warned_job_that_recorded_a_failure_is_not_requeued(root: Path, slurm: dict[str, str]) -> None:
    marks = Path(slurm["MARKS"])
    record = RECORD.replace("{}", "failed 1").replace('"$MARKS/out', '"$MARKS/y')
    code, _ = batch(root, slurm, f"trap '' USR1; touch \"$MARKS/ready\"; sleep 1; {record}", warn=True)
    assert code == 1
    assert not (marks / "scontrol").exists()


@pytest.mark.parametrize("job", ["4711", "12768", "19999"])
def test_ranks_never_meet_at_a_port_that_the_system_gives_to_others(
    root: Path, slurm: dict[str, str], job: str
) -> None:
    """From 32768 on connections that go out have theirs."""
    code, marks = batch(root, slurm | {"SLURM_JOB_ID": job}, 'echo "$MASTER_PORT" > "$MARKS/port"', warn=False)
    assert code == 0
    assert 20000 <= int((marks / "port").read_text()) < 32768


def test_a_queue_that_does_not_answer_does_not_hide_the_75(root: Path, slurm: dict[str, str]) -> None:
    marks = Path(slurm["MARKS"])
    stand_in(marks / "bin", "scontrol", "[[ $1 == show ]] && { echo node1; exit; }; exit 1")
    assert batch(root, slurm, "exit 75", warn=False)[0] == 75


def test_a_job_without_a_directory_to_come_back_to_is_refused(root: Path, slurm: dict[str, str]) -> None:
    said = subprocess.run(
        ["bash", root / "launchers" / "slurm.sbatch", "--study", "x"], env=slurm, capture_output=True, text=True
    )
    assert said.returncode == 2
    assert "--out" in said.stderr


@pytest.mark.parametrize("code", [0, 2, 5, 1])
def test_a_job_that_ends_by_itself_is_not_requeued(root: Path, slurm: dict[str, str], code: int) -> None:
    got, marks = batch(root, slurm, f"exit {code}", warn=False)
    assert got == code
    assert not (marks / "scontrol").exists()


# -- Kubernetes --------------------------------------------------------------------------------------------
def kubernetes(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, root / "launchers" / "kubernetes.py", *words], capture_output=True, text=True
    )


@pytest.mark.parametrize("out", [[], ["--out", "runs/mine"], ["--out=/shared"], ["--out", "/shared/a", "--out=/tmp/b"]])
def test_a_pods_own_disk_is_no_place_for_a_run(root: Path, out: list[str]) -> None:
    said = kubernetes(root, "--image", "a/b:1", "--nodes", "1", "--", "--study", "s.yaml", *out)
    assert said.returncode != 0
    assert "--out /shared/DIR" in said.stderr


def test_the_kubernetes_job_holds_together(root: Path) -> None:
    said = kubernetes(
        root, "--image", "registry.example/team/isobudget:1", "--name", "mine", "--nodes", "3", "--gpus-per-node", "4", "--cores",
        "32", "--", "--study", "$(touch x)", "--out", "/shared/r",
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    service, job = yaml.safe_load_all(said.stdout)
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec, template = job["spec"], job["spec"]["template"]
    pod = template["spec"]
    (container,) = pod["containers"]
    # The API's own rules for an indexed Job with a failure policy.
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == 3
    assert pod["restartPolicy"] == "Never"
    for rule in spec["podFailurePolicy"]["rules"]:
        assert rule["action"] in ("Ignore", "FailJob", "Count", "FailIndex")
        assert len({"onExitCodes", "onPodConditions"} & set(rule)) == 1
        if codes := rule.get("onExitCodes"):
            assert codes["containerName"] == container["name"]
            assert codes["operator"] in ("In", "NotIn")
            assert 0 not in codes["values"] or codes["operator"] == "NotIn"
            assert codes["values"] == sorted(set(codes["values"]))
    ignored = [
        rule["onExitCodes"]["values"]
        for rule in spec["podFailurePolicy"]["rules"]
        if rule["action"] == "Ignore" and "onExitCodes" in rule
    ]
    assert ignored == [[75]]
    # The service must select the pods and be their subdomain, or the master's name never resolves.
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert pod["subdomain"] == service["metadata"]["name"] == job["metadata"]["name"] == "mine"
    variables = {v["name"]: v.get("value") for v in container["env"]}
    assert variables["MASTER_ADDR"] == "mine-0.mine"
    assert (variables["NODES"], variables["RANKS_PER_NODE"], variables["OMP_NUM_THREADS"]) == ("3", "4", "8")
    assert all(isinstance(v, str) for v in variables.values() if v is not None)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert container["command"] == ["/isobudget/launchers/torchrun.sh"]
    # Arguments are words of an exec, not of a shell; Kubernetes expands only $(VARIABLE) names that exist.
    assert container["args"] == ["--study", "$(touch x)", "--out", "/shared/r"]


@pytest.mark.parametrize(
    "words",
    [["--image", "a b", "--", "--out", "x"], ["--image", "a\nkind: Pod", "--", "--out", "x"], ["--image", "a", "--", "--study", "x"],
     ["--image", "a", "--name", "../x", "--", "--out", "x"], ["--image", "a", "--claim", "X", "--", "--out", "x"],
     ["--image", "a", "--memory", "lots", "--", "--out", "x"], ["--image", "a", "--nodes", "0", "--", "--out", "x"]],
)  # fmt: skip
def test_what_kubernetes_would_refuse_is_refused(root: Path, words: list[str]) -> None:
    said = kubernetes(root, *words)
    assert said.returncode == 2
    assert said.stdout == ""


def test_no_registry_is_named(root: Path) -> None:
    text = (root / "launchers" / "kubernetes.yaml").read_text(encoding="utf-8")
    assert "image: IMAGE" in text
