"""Two hosts on one machine: two network namespaces joined by a veth pair, with names and an sshd each.

Both see the same files, as machines of a cluster see a shared file system. Needs root.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PORT = 2222
# Of this process alone, and readable for whoever finds them when it is gone.
ADDRESSES = {f"isobudget-{os.getpid()}-a": "10.77.0.1", f"isobudget-{os.getpid()}-b": "10.77.0.2"}
FIRST, SECOND = ADDRESSES
PROBE = f"isobudget-{os.getpid()}-probe"
NAME = re.compile(r"isobudget-(\d+)-(?:a|b|probe)")
SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


def missing() -> str:
    """Why two hosts cannot be made here; "" when they can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    for program in ("ip", "ssh", "ssh-keygen", "unshare", "ping"):
        if shutil.which(program) is None and program != "ping":
            return f"no {program} on PATH"
    if not Path(SSHD).exists():
        return "no sshd"
    probe = subprocess.run(["ip", "netns", "add", PROBE], capture_output=True)
    if probe.returncode:
        return "this container may not make network namespaces"
    remove(PROBE)
    return ""


def leftovers() -> list[str]:
    """Hosts whose tests were killed before they could remove them."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    found = [(match[0], match[1]) for line in listed.splitlines() if (match := NAME.match(line))]
    return [name for name, process in found if not Path(f"/proc/{process}").exists()]


def remove_leftovers() -> None:
    for name in leftovers():
        remove(name)


def remove(name: str) -> None:
    """A host and every process in it."""
    found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
    for pid in found.stdout.split():
        subprocess.run(["kill", "-KILL", pid], check=False, capture_output=True)
    subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt  # pytest ends its fixtures then, which it does not on SIGTERM


class TwoHosts:
    """Makes them on entry, removes them with every process in them on exit."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self._started: list[subprocess.Popen[bytes]] = []
        self._before: Any = None

    def __enter__(self) -> TwoHosts:
        remove_leftovers()
        self._before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self) -> None:
        for name in ADDRESSES:
            run("ip", "netns", "add", name)
        run("ip", "link", "add", "iso-a", "netns", FIRST, "type", "veth", "peer", "name", "iso-b", "netns", SECOND)
        for (name, address), link in zip(ADDRESSES.items(), ("iso-a", "iso-b"), strict=True):
            # eth0 in both: GLOO_SOCKET_IFNAME is one name for all machines.
            self.ip(name, "link", "set", link, "name", "eth0")
            self.ip(name, "addr", "add", f"{address}/24", "dev", "eth0")
            self.ip(name, "link", "set", "eth0", "up")
            self.ip(name, "link", "set", "lo", "up")
        self._keys()
        Path("/run/sshd").mkdir(exist_ok=True)
        for name in ADDRESSES:
            self._started.append(
                self.start(name, [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")], log=f"sshd-{name}")
            )
        for address in ADDRESSES.values():
            self._wait_for(address)

    def __exit__(self, *_: object) -> None:
        for name in ADDRESSES:
            remove(name)
        for process in self._started:
            process.wait(timeout=10)
        signal.signal(signal.SIGTERM, self._before)

    def ip(self, name: str, *words: str) -> None:
        run("ip", "-n", name, *words)

    def inside(self, name: str, words: list[str], *, names: str = "hosts") -> list[str]:
        """The command that runs `words` on that host, under its own name; names resolve there as that file says.

        In "hosts" both do; in "hosts-loopback" a host's name is its loopback address, as many systems are set up.
        """
        script = f'hostname {name}; mount --bind {self.folder / names} /etc/hosts; exec "$@"'
        return ["ip", "netns", "exec", name, "unshare", "--uts", "--mount", "bash", "-c", script, "bash", *words]

    def start(
        self, name: str, words: list[str], *, log: str, names: str = "hosts", **environment: str
    ) -> subprocess.Popen[bytes]:
        with (self.folder / f"{log}.log").open("ab") as file:
            return subprocess.Popen(
                self.inside(name, words, names=names), stdout=file, stderr=file, env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def ssh(self) -> str:
        """A folder with an ssh that uses this test's keys and nobody's configuration; it belongs first on PATH."""
        folder = self.folder / "bin"
        folder.mkdir(exist_ok=True)
        options = [
            "-F", "/dev/null", "-p", str(PORT), "-i", str(self.folder / "key"), "-o", "StrictHostKeyChecking=no",
            "-o", f"UserKnownHostsFile={self.folder}/known", "-o", "LogLevel=ERROR", "-o", "BatchMode=yes",
        ]  # fmt: skip
        (folder / "ssh").write_text(
            f'#!/bin/bash\nexec {shutil.which("ssh")} {" ".join(options)} "$@"\n', encoding="ascii"
        )
        (folder / "ssh").chmod(0o755)
        return str(folder)

    def _keys(self) -> None:
        for name in ("key", "host_key"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name))
        shutil.copy(self.folder / "key.pub", self.folder / "authorized")
        (self.folder / "authorized").chmod(0o600)
        rows = [f"{address} {name}" for name, address in ADDRESSES.items()]
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + "\n".join(rows) + "\n", encoding="ascii")
        loopback = f"127.0.0.1 localhost\n127.0.1.1 {' '.join(ADDRESSES)}\n"
        (self.folder / "hosts-loopback").write_text(loopback, encoding="ascii")
        (self.folder / "sshd_config").write_text(
            f"Port {PORT}\nHostKey {self.folder}/host_key\nAuthorizedKeysFile {self.folder}/authorized\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nStrictModes no\nUsePAM no\nPidFile none\n",
            encoding="ascii",
        )

    def _wait_for(self, address: str) -> None:
        deadline = time.monotonic() + 20
        command = [f"{self.ssh()}/ssh", address, "true"]
        while subprocess.run(self.inside(FIRST, command), capture_output=True, env=self.environment).returncode:
            if time.monotonic() > deadline:
                logs = "\n".join(file.read_text() for file in self.folder.glob("sshd-*.log"))
                raise TimeoutError(f"sshd on {address} does not answer: {logs}")
            time.sleep(0.2)


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
