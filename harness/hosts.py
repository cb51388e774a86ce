"""What a launcher hands to other machines, checked before any shell can see it.

Every one of these ends in process lists that all users of those machines can read, so no secret may be among them.
pdsh and ssh pass their command line through a remote shell, and DeepSpeed pastes host names, the lines of
.deepspeed_env, some of the caller's variables and every argument into it. So each must consist of
characters that no shell, and no option parser, gives a meaning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.errors import ConfigError

# Letters, digits, dot and hyphen, neither of them first or last: no option (-oProxyCommand), no path (../), no user@.
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", re.ASCII)
_SLOTS = re.compile(r"([^ \t]+)[ \t]+slots=([1-9][0-9]{0,3})", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
# Names that say of themselves that their value is nobody else's business (not UCX_IB_PKEY, which names a partition), and
# a password in an address.
_SECRET = re.compile(r"(?:.*_)?(?:SECRET|TOKEN|PASSWORD|(?:API)?KEY)", re.IGNORECASE)
_LOGIN = re.compile(r"://[^/ ]*@")
# What a command line may hold of them: the login of an address, and a parameter of such a name.
_HIDDEN = re.compile(
    r"(?<=://)[^/\s]*(?=@)|(?<=[?&])((?:[\w.-]*[_.-])?(?:secret|token|password|(?:api[_-]?)?key)=)[^&\s'\"]+",
    re.IGNORECASE,
)
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./ ^-]*", re.ASCII)

# Prefixes of the variables that DeepSpeed's launcher copies from the caller's environment to every host.
FORWARDED = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")


def check_host(host: str, *, where: str) -> str:
    """The host itself, when it can only be a host.

    Raises:
        ConfigError: it could be read as an option, a path, a user or a command.
    """
    if not _HOST.fullmatch(host) or ".." in host:
        raise ConfigError(
            f"host {host!r} in {where}", rule="a host is letters, digits, dots and hyphens, and begins with none of the last two",
            remedy="give a name or an IPv4 address; users, ports and proxies belong into ~/.ssh/config",
        )  # fmt: skip
    return host


def read_hostfile(path: str | Path) -> dict[str, int]:
    """{host: slots} of a DeepSpeed hostfile, in its order.

    Raises:
        ConfigError: no such file, no host, a host twice, a line that is not `HOST slots=N`, or a hostile host.
    """
    rows = _lines(Path(path), what="hostfile")
    found: dict[str, int] = {}
    for number, row in rows:
        where = f"{path}:{number}"
        match = _SLOTS.fullmatch(row)
        if match is None:
            raise ConfigError(f"{row!r} in {where}", rule="a line is HOST slots=N", remedy="for example node1 slots=8")
        host = check_host(match.group(1), where=where)
        if host in found:
            raise ConfigError(f"host {host!r} in {where}", rule="it is listed twice", remedy="give each host one line")
        found[host] = int(match.group(2))
    if not found:
        raise ConfigError(f"hostfile {path}", rule="it names no host", remedy="give one line HOST slots=N per machine")
    return found


def read_environment_file(path: str | Path) -> dict[str, str]:
    """The variables of a .deepspeed_env file: KEY=VALUE lines.

    The launcher knows neither comments nor empty lines here: an empty one ends it, and `# A=1` reaches the remote
    shell, where it hides the rest of the command.

    Raises:
        ConfigError: no such file, a line without =, a name no shell knows, a value with shell characters, or a secret.
    """
    found: dict[str, str] = {}
    for number, row in _lines(Path(path), what="environment file", comments=False):
        key, equals, value = row.partition("=")
        if not equals:
            raise ConfigError(
                f"{row!r} in {path}:{number}", rule="a line is KEY=VALUE; DeepSpeed takes no comments and no empty lines",
                remedy="for example NCCL_SOCKET_IFNAME=eth0",
            )  # fmt: skip
        check_variable(key, value, where=f"{path}:{number}")
        found[key] = value
    return found


def check_variable(key: str, value: str, *, where: str) -> None:
    """Raises ConfigError where name or value would mean something to a shell, or is a secret; the value is not repeated."""
    if not _VARIABLE.fullmatch(key):
        raise ConfigError(
            f"variable {key!r} in {where}", rule="a name is letters, digits and underscores", remedy="correct its name"
        )
    character = _unsafe(value)
    if character:
        raise ConfigError(
            f"variable {key} in {where}", rule=f"its value holds {character!r}, which a remote shell would act on",
            remedy="remove that character, or set the variable in each machine's own profile",
        )  # fmt: skip
    if value and (_SECRET.fullmatch(key) or _LOGIN.search(value)):
        raise ConfigError(
            f"variable {key} in {where}",
            rule="it holds a secret, and the launcher writes it into command lines that everyone on every machine can read",
            remedy="unset it here, and keep it in a file on each machine (~/.netrc, ~/.mlflow/credentials, HF_TOKEN_PATH)",
        )


def conceal(text: str) -> str:
    """A command line as it may be kept and published: without the logins and keys that its addresses hold."""
    return _HIDDEN.sub(lambda found: f"{found[1] or ''}***", text)


def check_environment(environ: Mapping[str, str]) -> None:
    """Check every variable that a launcher copies to other hosts.

    Raises:
        ConfigError: one of them would mean something to a shell, or is a secret.
    """
    for key, value in environ.items():
        if key.startswith(FORWARDED):
            check_variable(key, value, where="the environment")


def check_name(name: str, *, what: str = "name") -> str:
    """The name itself, when it can be a file's, a job's and a label's name.

    Raises:
        ConfigError: it is empty, longer than 64, begins with a dot or hyphen, or holds anything unusual.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{what} {name!r}", rule="a name is letters, digits, and _ . - after the first, at most 64",
            remedy="choose another",
        )  # fmt: skip
    return name


def check_arguments(arguments: Sequence[str]) -> None:
    """Check the words that pdsh hands to a remote shell.

    Raises:
        ConfigError: one holds a character that a shell acts on.
    """
    for word in arguments:
        character = _unsafe(word)
        if character:
            raise ConfigError(
                f"argument {word!r}", rule=f"it holds {character!r}, which a remote shell would act on",
                remedy="put that value into a study file and give its path",
            )  # fmt: skip


def _unsafe(text: str) -> str:
    """The first character that a shell may act on; "" when there is none."""
    if _PLAIN.fullmatch(text):
        return ""
    return next(character for character in text if not _PLAIN.fullmatch(character))


def _lines(path: Path, *, what: str, comments: bool = True) -> list[tuple[int, str]]:
    """Numbered lines, where `comments` says so without comments and empty ones.

    Only a newline ends a line, as in the launcher that will read the file.
    """
    try:
        text = path.read_bytes().decode("ascii")
    except OSError as error:
        raise ConfigError(
            f"{what} {path}", rule=f"cannot be read ({error.strerror})", remedy="check the path"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{what} {path}", rule="it holds characters other than ASCII", remedy="remove them") from None
    rows = ((number, row.strip(" \t\r")) for number, row in enumerate(text.split("\n"), start=1))
    if not comments:
        ended = text.removesuffix("\n").count("\n") + 1 if text else 0
        return [(number, row) for number, row in rows if number <= ended]
    return [(number, row) for number, row in rows if row and not row.startswith("#")]
