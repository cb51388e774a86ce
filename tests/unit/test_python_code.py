"""Laws of the embedded code and comments: no docstring, no comment in code, no text twice, and nothing is imported."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from harness.data import python_code
from harness.data.sources import read_documents, unsplit
from harness.errors import DataError
from harness.study import DataSpec, DomainSpec, SourceSpec

from .data_worlds import sentence

SOURCE = '''"""Module docstring that nobody should find in code."""
# A remark at the top that reads as plain English for every reader.
# It goes on in a second line which belongs to the same paragraph.
import os


@decorated
def area(width, height):  # trailing remark
    """Return the product.

    Über viele Zeilen."""
    if width < 0:
        raise ValueError("# no comment, a string: ä")
    total = width * height
    # Inner remark about the total that is returned to the caller.
    total += 0
    return total


class Small:
    x = 1


class Box:
    "One line."
    def f(self): "doc"; return "kept"
    a = 1
    b = 2
    c = """not a docstring"""
'''


def test_code_keeps_every_statement_and_no_docstring_and_no_comment() -> None:
    found = dict(python_code.definitions(SOURCE.encode(), "m"))
    assert set(found) == {"m.area", "m.Box"}, "a definition of fewer lines is left out"
    assert found["m.area"].splitlines() == [
        "@decorated",
        "def area(width, height):",
        "    if width < 0:",
        '        raise ValueError("# no comment, a string: ä")',
        "    total = width * height",
        "    total += 0",
        "    return total",
    ]
    assert '"kept"' in found["m.Box"]
    assert '"""not a docstring"""' in found["m.Box"]
    for gone in ("docstring that", "product", "Über", "remark", "One line", '"doc"'):
        assert not any(gone in text for text in found.values()), gone


def test_comments_that_follow_one_another_are_one_paragraph_and_only_prose_is_kept() -> None:
    source = b"# noqa: E501\nx = 1  # type: ignore\n" + SOURCE.encode()
    assert python_code.prose_comments(source) == [
        "A remark at the top that reads as plain English for every reader. "
        "It goes on in a second line which belongs to the same paragraph.",
        "Inner remark about the total that is returned to the caller.",
    ]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of three modules; `two` repeats a function and a comment of `one`, and a docstring as a comment."""
    root = tmp_path / "lib"
    root.mkdir()
    body = "".join(f"    value_{i} = {sentence('body', i, words=4)!r}\n" for i in range(12))
    remark = f"# {sentence('remark', words=20)}\n"
    documented = sentence("documented", words=20)
    (root / "one.py").write_text(
        f'"""{documented}"""\n{remark}def f(x):\n{body}# {sentence("own", words=20)}\n', encoding="utf-8"
    )
    (root / "two.py").write_text(
        f"{remark}# \n# {documented}\n\ndef g(x):\n{body}\n# {sentence('second', words=20)}\n", encoding="utf-8"
    )
    (root / "bad.py").write_text("def f(:\n    this is no Python\n", encoding="utf-8")
    (root / "latin.py").write_bytes("# -*- coding: latin-1 -*-\ndef ä():\n".encode("latin-1") + body.encode())
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(root))
    monkeypatch.setenv("ISOBUDGET_CACHE", str(tmp_path / "cache"))
    return root


def test_near_duplicate_definitions_are_one_document_and_other_files_are_left_out(library: Path) -> None:
    passages = list(python_code.passages(python_code.CODE))
    assert len(passages) == 1, "f, g and ä share their body"
    assert passages[0].key in ("one.f", "two.g", "latin.ä")


def test_no_comment_is_kept_twice_nor_what_documentation_says(library: Path) -> None:
    texts = "\n".join(p.text for p in python_code.passages(python_code.COMMENTS))
    assert texts.count(sentence("remark", words=20)) == 1
    assert sentence("documented", words=20) not in texts
    assert sentence("own", words=20) in texts
    assert sentence("second", words=20) in texts


def test_a_library_without_sources_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib").mkdir()
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path / "lib"))
    monkeypatch.setenv("ISOBUDGET_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="no Python source"):
        list(python_code.passages(python_code.CODE))


def test_a_split_depends_on_the_name_alone_and_a_domain_has_all_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = [python_code.Passage(sentence(i), f"m.f{i}", "m") for i in range(400)]
    monkeypatch.setattr(python_code, "passages", lambda kind: iter(made))
    data = DataSpec(validation_fraction=0.2, test_fraction=0.2)
    source = SourceSpec(path="python-code", name="code")
    first = {d.key: d.split for d in read_documents(source, data)}
    made = made[100:]
    rest = {d.key: d.split for d in read_documents(source, data)}
    assert set(first.values()) == {"train", "validation", "test"}
    assert rest == {key: first[key] for key in rest}
    assert {d.source for d in read_documents(source, data)} == {"code"}
    assert len(list(unsplit(DomainSpec(path="python-code")))) == 300
