"""What launchers hand to other machines: nothing hostile passes, whichever way it comes."""

from __future__ import annotations

import os
import shutil
import stat
import string
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import cli, hosts
from harness.errors import ConfigError

HOSTILE = [
    "$(touch x)", "`touch x`", "node1;touch x", "node1|touch", "node1&", "-oProxyCommand=touch", "--login", "../node1",
    "a/b", "user@node1", "node1\nnode2", "node1 node2", "node1\t", "node1\x00", "nöde", "node..1", ".node", "node1.", "",
    "node1'", 'node1"', "node1>x", "node*", "node[1-2]", "%h", "~", "node1\r", "a" * 300,
]  # fmt: skip


@pytest.mark.parametrize("host", HOSTILE)
def test_a_hostile_host_is_refused_with_exit_code_2(host: str) -> None:
    with pytest.raises(ConfigError) as refused:
        hosts.check_host(host, where="here")
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("host", ["node1", "10.0.0.1", "gpu-07.cluster.example", "a", "A1"])
def test_ordinary_hosts_pass(host: str) -> None:
    assert hosts.check_host(host, where="here") == host


@given(st.text(max_size=40))
def test_whatever_passes_as_a_host_is_one_word_to_every_shell(text: str) -> None:
    try:
        hosts.check_host(text, where="here")
    except ConfigError:
        return
    assert set(text) <= set(string.ascii_letters + string.digits + ".-")
    assert text[0] not in ".-"
    assert ".." not in text


def test_a_hostfile_is_read_as_deepspeed_reads_it(tmp_path: Path) -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    file = tmp_path / "hosts"
    file.write_text("# two machines\n\nnode1 slots=8\n  node2\tslots=4  \r\n", encoding="ascii")
    assert hosts.read_hostfile(file) == {"node1": 8, "node2": 4} == dict(fetch_hostfile(str(file)))


@pytest.mark.parametrize(
    "text",
    ["", "# nobody\n", "node1\n", "node1 slots=0\n", "node1 slots=-1\n", "node1 slots=2 # more\n", "node1 slots=8;touch x\n",
     "node1 slots=8\nnode1 slots=8\n", "node1 slots=8\x0bnode2 slots=1\n", "node1 slots=８\n"],
)  # fmt: skip
def test_a_hostfile_that_is_not_one_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "hosts"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError):
        hosts.read_hostfile(file)


@pytest.mark.parametrize(
    "row",
    [
        "A=$(touch x)",
        "A=`touch x`",
        "A=1;touch x",
        "A=a\\b",
        'A="x"',
        "A='x'",
        "A B=1",
        "=1",
        "A",
        "1A=1",
        "A=x|y",
        "A=$HOME",
        "# for every machine",
        "# A=1",
        "A=1\n\nB=2",
    ],
)
def test_a_hostile_environment_file_is_refused_and_its_value_is_not_repeated(tmp_path: Path, row: str) -> None:
    file = tmp_path / "env"
    file.write_text(row + "\n", encoding="ascii")
    with pytest.raises(ConfigError) as refused:
        hosts.read_environment_file(file)
    if row.startswith("A=") and "$(" in row:
        assert "touch" not in str(refused.value)


SECRETS = {
    "MLFLOW_TRACKING_TOKEN": "t0ken", "NCCL_SECRET": "s3cret", "UCX_PASSWORD": "pass", "PYTHON_API_KEY": "key",
    "MLFLOW_TRACKING_URI": "https://me:t0ken@mlflow.example/x",
}  # fmt: skip


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_not_handed_to_other_machines_and_not_repeated(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=name) as forwarded:
        hosts.check_environment({"PATH": "/usr/bin", name: SECRETS[name]})
    (tmp_path / "env").write_text(f"{name}={SECRETS[name]}\n", encoding="ascii")
    with pytest.raises(ConfigError, match=name) as listed:
        hosts.read_environment_file(tmp_path / "env")
    for refused in (forwarded, listed):
        assert refused.value.exit_code == 2
        assert SECRETS[name] not in str(refused.value)


def test_what_is_not_handed_on_may_be_a_secret_and_a_partition_key_is_none() -> None:
    hosts.check_environment({
        "HF_TOKEN": "t0ken", "UCX_IB_PKEY": "0x8002", "MLFLOW_TRACKING_URI": "https://mlflow.example:5000/a@b",
        "MLFLOW_TRACKING_TOKEN": "", "PYTHONHASHSEED": "0",
    })  # fmt: skip


def test_an_ordinary_environment_file_passes(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("NCCL_SOCKET_IFNAME=^lo,docker0\nPATH=/opt/x/bin:/usr/bin\nEMPTY=\n", encoding="ascii")
    assert hosts.read_environment_file(file) == {
        "NCCL_SOCKET_IFNAME": "^lo,docker0", "PATH": "/opt/x/bin:/usr/bin", "EMPTY": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["", "../up", "a/b", "$(touch x)", "a;b", "a\nb", "-rf", ".hidden", "a" * 65, "a b", "ä"]
)
def test_a_hostile_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        hosts.check_name(name)


def test_deepspeed_forwards_no_variable_that_is_left_unchecked() -> None:
    """The list here is DeepSpeed's own plus the accelerator's; if theirs grows, ours must."""
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator
    from deepspeed.launcher.runner import EXPORT_ENVS

    assert {*EXPORT_ENVS, *CUDA_Accelerator.export_envs(None)} <= set(hosts.FORWARDED)


def test_the_command_prints_hosts_and_refuses_hostile_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "hosts"
    file.write_text("node1 slots=8\nnode2 slots=8\n", encoding="ascii")
    assert cli.main(["hosts", str(file), "--", "--study", "quickstart"]) == 0
    assert capsys.readouterr().out == "node1 8\nnode2 8\n"
    assert cli.main(["hosts", str(file), "--", "--set", "name=$(touch x)"]) == 2
    assert "'$'" in capsys.readouterr().err


def test_an_environment_file_and_arguments_are_checked_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hosts").write_text("node1 slots=8\n", encoding="ascii")
    (tmp_path / "env").write_text("A=1\n", encoding="ascii")
    words = ["hosts", "--env-file", str(tmp_path / "env"), "--json", str(tmp_path / "hosts"), "--"]
    assert cli.main([*words, "--study", "quickstart"]) == 0
    assert '"ranks": 8' in capsys.readouterr().out
    assert cli.main([*words, "--study", "a;b"]) == 2


# -- the script, with a fake ssh that leaves a mark whenever it is started ---------------------------------
@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    """A folder of fake ssh, pdsh, mpirun and srun that run what a remote shell would, and leave a mark."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("ssh", "pdsh", "mpirun", "srun", "ompi_info", "sinfo"):
        file = folder / name
        file.write_text(f'#!/bin/bash\necho {name} >> "$MARKS/started"\nbash -c "$*"\n', encoding="ascii")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return folder


ATTACKS: list[tuple[str, dict[str, str], list[str]]] = [
    ("$(touch canary) slots=1\nnode2 slots=1\n", {}, []),
    ("node1;touch${IFS}canary slots=1\nnode2 slots=1\n", {}, []),
    ("-oProxyCommand=touch${IFS}canary slots=1\nnode2 slots=1\n", {}, []),
    ("../node slots=1\nnode2 slots=1\n", {}, []),
    ("node1 slots=1\x0c\nnode2 slots=1\n", {}, []),
    ("node1 slots=1\nnode2 slots=1\n", {"PYTHON_X": "$(touch canary)"}, []),
    ("node1 slots=1\nnode2 slots=1\n", {"NCCL_DEBUG": "a\ntouch canary"}, []),
    ("node1 slots=1\nnode2 slots=1\n", {"ENV": "X=`touch canary`"}, []),
    ("node1 slots=1\nnode2 slots=1\n", {}, ["--set", "name=$(touch canary)"]),
    ("node1 slots=1\nnode2 slots=1\n", {}, ["--study", "x;touch canary"]),
    ("node1 slots=1\nnode2 slots=1\n", {}, ["--study", "x\ntouch canary"]),
    ("node1 slots=1\nnode2 slots=1\n", {"NCCL_SECRET": "s3cret"}, []),
    ("node1 slots=1\nnode2 slots=1\n", {"ENV": "HF_TOKEN=t0ken"}, []),
    ("node1 slots=1\nnode2 slots=1\n", {"LAUNCHER": "pdsh;touch canary"}, []),
    ("node1 slots=1\nnode2 slots=1\n", {"MASTER_PORT": "1;touch canary"}, []),
    ("node1 slots=1\nnode2 slots=1\n", {"SSH_PORT": "22 -oProxyCommand=touch"}, []),
    ("node1 slots=1\nnode2 slots=1\n", {"MASTER_ADDR": "-oProxyCommand=touch"}, []),
]


@pytest.mark.parametrize("attack", range(len(ATTACKS)))
def test_no_hostile_value_reaches_ssh_through_the_launch_script(
    root: Path, tmp_path: Path, fakes: Path, attack: int
) -> None:
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    hostfile, variables, arguments = ATTACKS[attack]
    (tmp_path / "hosts").write_bytes(hostfile.encode())
    variables = dict(variables)
    if "ENV" in variables:
        (tmp_path / "env").write_text(variables.pop("ENV") + "\n", encoding="ascii")
        variables["ENV_FILE"] = str(tmp_path / "env")
    environment = {
        **os.environ, "PATH": f"{fakes}:{os.environ['PATH']}", "PYTHON": sys.executable, "MARKS": str(tmp_path),
        "HOSTFILE": str(tmp_path / "hosts"), **variables,
    }  # fmt: skip
    result = subprocess.run(
        [root / "launchers" / "deepspeed_hostfile.sh", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2, result.stderr
    assert "usage:" not in result.stderr
    assert "ConfigError" in result.stderr or "deepspeed_hostfile.sh:" in result.stderr
    assert not (tmp_path / "started").exists(), "something was started"
    assert not list(tmp_path.rglob("canary"))
    assert not (root / "canary").exists()
    assert "Traceback" not in result.stderr
