"""Laws of the embedded corpus, on packages written for the test; nothing installed is read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from harness.data import python_docs
from harness.data.sources import read_documents
from harness.errors import DataError
from harness.study import DataSpec, SourceSpec

from .data_worlds import document, sentence


def package(root: Path, name: str, functions: dict[str, str]) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    body = "\n".join(f'def {f}():\n    """{text}"""\n' for f, text in functions.items())
    (folder / "__init__.py").write_text(f'"""{document(name, "module")}"""\n{body}', encoding="utf-8")
    return folder


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five packages; `alpha` and `beta` share a paragraph, and a docstring but for two words."""
    shared, twin = sentence("shared", words=14), document("twin", sentences=10)
    functions = {n: {f"f{i}": document(n, i) for i in range(8)} for n in ("alpha", "beta", "gamma", "delta", "huge")}
    functions["alpha"] |= {"one": f"{document('one')}\n\n    {shared}", "twin": twin}
    functions["beta"] |= {"two": f"{document('two')}\n\n    {shared}", "twin": twin.replace(" the ", " that ", 2)}
    functions["huge"] |= {f"g{i}": document("huge", "more", i, sentences=9) for i in range(40)}
    found = {name: ("1.0", package(tmp_path / "site", name, f)) for name, f in functions.items()}
    monkeypatch.setattr(python_docs, "packages", lambda: found)
    monkeypatch.setenv("ISOBUDGET_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_no_paragraph_twice_no_near_duplicates_and_no_package_dominates(installed: Path) -> None:
    passages = list(python_docs.passages())
    paragraphs = Counter(line for p in passages for line in p.text.splitlines())
    assert max(paragraphs.values()) == 1
    assert sum(sentence("shared", words=14) in p.text for p in passages) == 1
    assert sum(p.key in ("alpha.twin", "beta.twin") for p in passages) == 1
    sizes = Counter(dict.fromkeys(("alpha", "huge"), 0))
    for p in passages:
        sizes[p.label] += len(p.text)
    before = sum(len(document("huge", "more", i, sentences=9)) for i in range(40))
    assert 0 < sizes["huge"] < before / 2
    assert {"alpha", "beta", "gamma", "delta", "huge"} == set(sizes)


def test_a_docstring_keeps_its_split_when_other_packages_come_and_go(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataSpec(validation_fraction=0.3, test_fraction=0.3)
    every = {d.key: d.split for d in read_documents(SourceSpec(), data)}
    fewer = {k: v for k, v in python_docs.packages().items() if k != "huge"}
    monkeypatch.setattr(python_docs, "packages", lambda: fewer)
    rest = {d.key: d.split for d in read_documents(SourceSpec(), data)}
    assert set(every.values()) == {"train", "validation", "test"}
    assert rest
    assert all(every.get(key, split) == split for key, split in rest.items())


def test_extraction_is_kept_until_a_version_changes(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = list(python_docs.passages())
    monkeypatch.setattr(python_docs, "_read_all", lambda: iter(()))
    assert list(python_docs.passages()) == first
    newer = {k: ("2.0", folder) for k, (_, folder) in python_docs.packages().items()}
    monkeypatch.setattr(python_docs, "packages", lambda: newer)
    with pytest.raises(DataError, match="no docstrings"):
        list(python_docs.passages())


def test_docstrings_are_found_wherever_they_are_written() -> None:
    source = b'''"""Module."""
class A:
    """Class."""
    def f(self):
        """Method."""
if True:
    async def g():
        """Guarded."""
add_newdoc("numpy", "add", """Attached.""")
add_docstr(torch.abs, r"""Formatted {x}.""".format(x=1))
'''
    assert dict(python_docs.docstrings(source, "m")) == {
        "m": "Module.",
        "m.A": "Class.",
        "m.A.f": "Method.",
        "m.g": "Guarded.",
        "m:'numpy'.'add'": "Attached.",
        "m:torch.abs": "Formatted {x}.",
    }


@pytest.mark.parametrize("source", [b'"""unfinished', b'"""x"""\nprint "two"', b"\x00" + b'"""', b"x = 1"])
def test_unreadable_source_has_no_docstrings(source: bytes) -> None:
    assert list(python_docs.docstrings(source, "m")) == []


def test_identity_imports_no_package() -> None:
    code = "import json, sys; from harness.data import python_docs as p; i = p.identity(); print(json.dumps([i, sorted(sys.modules)]))"
    root = Path(python_docs.__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60)
    identity, modules = json.loads(out.stdout)
    assert "python" in identity["packages"]
    assert "torch" in identity["packages"]
    assert not {"torch", "transformers", "scipy", "sklearn"} & set(modules)
