"""The command that runs a study again from nothing, made of what lies in its directory.

The command that was typed is not it: one that adds seeds to a finished run names only those, a job only its own share.
The directory's study.yaml is the whole study, resolved; what else decides a result is the engine's configuration.
"""

from __future__ import annotations

import shlex

from harness.report.source import Source, mapping, number

# Flags of a run that goes on; --allow, which takes a value, is another.
CONTINUED = ("--resume", "--auto-resume")
# Where the runs of a joined report are made again, one by one.
AGAIN = "again"


def reproduce(source: Source) -> str:
    """One command for a shell; runs that were joined are run one by one and joined. Empty where nothing is known.

    A directory without its study has only the command that was recorded.
    """
    if source.parts:
        places = [f"{AGAIN}/{i}" for i in range(1, len(source.parts) + 1)]
        runs = [[*_run(part), "--out", place] for part, place in zip(source.parts, places, strict=True)]
        return " && ".join(map(shlex.join, [*runs, ["python", "launch.py", "report", *places]]))
    return shlex.join(_run(source)) if source.study else recorded(source)


def conditions(source: Source) -> str:
    """What else a result depends on: the code, the ranks, the precision, and where data and teacher are looked for."""
    facts = source.environment
    world, commit, precision = (facts.get(key) for key in ("world_size", "git_commit", "precision"))
    ran = [
        f"at commit {commit}" if commit else "",
        f"on {world} {'rank' if world == 1 else 'ranks'}" if number(world) else "",
        f"in {precision}" if precision else "",
    ]
    return (
        "The file study.yaml is the whole study, resolved, with whatever a command line changed or added later; its "
        "relative paths are those of the place where the command is given."
        + (f" The last run was {', '.join(word for word in ran if word)}." if any(ran) and not source.parts else "")
    )


def recorded(source: Source) -> str:
    """The command that was given, as it would begin anew: how an interrupted run was continued is no part of it."""
    command = source.environment.get("command")
    try:
        words = command if isinstance(command, list) else shlex.split(str(command or ""))
    except ValueError:
        return str(command)  # no shell reads it: no command of ours
    kept: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if word not in (*CONTINUED, "--allow") and before != "--allow" and not str(word).startswith("--allow="):
            kept.append(str(word))
    return shlex.join(kept)


def _run(source: Source) -> list[str]:
    engine = mapping(source.environment.get("ds_config")).get("path")
    return [
        "python", "launch.py", "run", "--study", str(source.directory / "study.yaml"),
        *(["--ds_config", engine] if isinstance(engine, str) and engine else []),
    ]  # fmt: skip
