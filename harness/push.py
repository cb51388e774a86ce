"""Putting exported students on the Hugging Face Hub: an option, and never a reason to lose a run.

Each student goes to a repository of its own, `NAME-<arm>-seed-<n>`, private unless asked otherwise. Whatever fails is
told, one line per student; the folder stays where it is and can be pushed again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import ConfigError

_REPOSITORY = re.compile(r"^(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*$")
# The Hub's own limit on a repository's name.
LONGEST = 96
FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "README.md")


@dataclass(frozen=True)
class Pushed:
    """One student's fate: its repository, and why it is not there if it is not."""

    folder: Path
    repository: str
    error: str | None = None

    def __str__(self) -> str:
        if self.error is None:
            return f"pushed {self.repository}"
        return f"not pushed: {self.repository} ({self.error}); the student is kept in {self.folder}"


def check_name(name: str) -> str:
    """The name itself.

    Raises:
        ConfigError: the Hub would not take repositories of this name.
    """
    if not _REPOSITORY.match(name) or "--" in name or ".." in name:
        raise ConfigError(
            f"repository {name!r}",
            rule="a Hub name is NAME or OWNER/NAME of letters, digits, - _ and .",
            remedy="for example --push-to-hub me/quickstart",
        )
    return name


def push_students(root: Path, name: str, *, private: bool = True, api: Any = None) -> Iterator[Pushed]:
    """Push every finished student of a study directory, telling each one's fate as it is known; never raises.

    Args:
        api: a `huggingface_hub.HfApi`; made from the user's own login where None.
    """
    folders = sorted(path.parent for path in root.glob("arms/*/seed-*/student/config.json"))
    for folder in folders:
        arm, seed = folder.parent.parent.name, folder.parent.name
        repository = f"{name}-{arm}-{seed}"
        yield Pushed(folder, repository, _push(folder, repository, private=private, api=api))


def _push(folder: Path, repository: str, *, private: bool, api: Any) -> str | None:
    """None when it is there; else why not, in one line."""
    if len(repository.rsplit("/", 1)[-1]) > LONGEST:
        return f"a repository's name has at most {LONGEST} characters"
    try:
        if api is None:
            from huggingface_hub import HfApi

            api = HfApi()
        # With a bare NAME the answer holds the owner, and an upload needs it.
        made = api.create_repo(repo_id=repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=getattr(made, "repo_id", repository), folder_path=folder, allow_patterns=list(FILES),
            commit_message="Student trained by IsoBudget",
        )  # fmt: skip
    except Exception as error:  # a network, a login, a quota: nothing here may cost a finished run
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return None
