"""Errors a user can act on: each names the offending value, the rule it broke and the remedy.

The exit code belongs to the class, so a shell script can tell a typo (2) from missing data (3),
a bad checkpoint (4), diverged arithmetic (5) and a preemption that may be resumed (75).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager


class IsoBudgetError(Exception):
    """A failure with a value, a rule and a remedy; prints as one line."""

    exit_code = 1

    def __init__(self, value: str, *, rule: str = "", remedy: str = "") -> None:
        self.value = value
        self.rule = rule
        self.remedy = remedy
        super().__init__(value)

    def __str__(self) -> str:
        text = self.value if not self.rule else f"{self.value}: {self.rule}"
        text = text if not self.remedy else f"{text}; {self.remedy}"
        return " ".join(text.split())


class ConfigError(IsoBudgetError):
    """The study, the ds_config or the command line says something impossible."""

    exit_code = 2


class DataError(IsoBudgetError):
    """The corpus, the tokenizer or an evaluation set cannot be used."""

    exit_code = 3


class TeacherError(DataError):
    """The teacher cannot be used: missing, incomplete, another tokenizer, another task."""


class CheckpointError(IsoBudgetError):
    """A checkpoint is missing, incomplete or altered."""

    exit_code = 4


def refused_by_system(error: OSError, path: object = None) -> CheckpointError:
    """The error for a file of a run that the system does not let us read or write, as on a full disk."""
    return CheckpointError(
        str(path or error.filename or "a file of the run"), rule=f"the system refused it ({error.strerror or error})",
        remedy="see to the disk and its permissions; run again then",
    )  # fmt: skip


@contextmanager
def refusals(path: object = None) -> Generator[None, None, None]:
    """What the system refuses inside leaves as `refused_by_system`'s error; safetensors has an error of its own for that."""
    try:
        yield
    except OSError as error:
        raise refused_by_system(error, path) from None
    except Exception as error:
        from safetensors import SafetensorError

        if not isinstance(error, SafetensorError) or "I/O error" not in str(error):
            raise  # a file that is no tensor file is another matter
        raise refused_by_system(OSError(str(error)), path) from None


class NumericError(IsoBudgetError):
    """Training diverged: too many steps in a row had a non-finite gradient."""

    exit_code = 5


class Preempted(IsoBudgetError):
    """The run was asked to stop; it saved and can be resumed."""

    exit_code = 75
