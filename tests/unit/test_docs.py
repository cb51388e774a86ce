"""Documentation keeps its promises: no dead link, no placeholder left."""

from __future__ import annotations

import re
from pathlib import Path

from harness import cli


def test_no_relative_link_is_dead_and_no_placeholder_is_left(root: Path) -> None:
    pages = [root / "README.md", *sorted((root / "docs").rglob("*.md")), *sorted((root / "kernels").rglob("README.md"))]
    assert len(pages) > 8
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "@@" not in text, f"{page.name} holds a placeholder"
        for link in re.findall(r"\]\(([^)#\s]+)\)", text):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.relative_to(root)} links to {link}"


def test_the_page_on_faults_names_every_command_that_takes_a_hang_timeout(root: Path) -> None:
    (named,) = re.findall(
        r"`--hang-timeout SECONDS` of (.*?)\(", (root / "docs" / "faults.md").read_text(encoding="utf-8")
    )
    commands = next(a for a in cli.build_parser()._actions if a.dest == "command").choices
    assert commands is not None
    takes = {name for name, parser in commands.items() if "--hang-timeout" in parser._option_string_actions}  # type: ignore[union-attr]
    assert set(re.findall(r"`([a-z]+)`", named)) == takes
