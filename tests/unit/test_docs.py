"""Documentation keeps its promises: no dead link, no placeholder left."""

from __future__ import annotations

import re
from pathlib import Path


def test_no_relative_link_is_dead_and_no_placeholder_is_left(root: Path) -> None:
    pages = [root / "README.md", *sorted((root / "docs").rglob("*.md")), *sorted((root / "kernels").rglob("README.md"))]
    assert len(pages) > 8
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "@@" not in text, f"{page.name} holds a placeholder"
        for link in re.findall(r"\]\(([^)#\s]+)\)", text):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.relative_to(root)} links to {link}"
