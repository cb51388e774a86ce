"""A corpus every Python machine already has: the documentation of its installed packages.

Docstrings are read from source files with `ast`; no package is imported and nothing is downloaded.
One document is one docstring's prose. No paragraph occurs in two documents, near-duplicate documents
are reduced to one, and no package fills more than `MAX_SHARE` of the text. A document's split depends
on its qualified name alone, so the same docstring lands in the same split on every machine.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from harness.data import neardup
from harness.data.cache import cached_folder
from harness.data.hashing import text_word
from harness.data.prose import clean
from harness.errors import DataError

VERSION = 2
MIN_WORDS = 12
MAX_SHARE = 0.25

# Import name -> distribution: what the harness's own dependencies bring along, with English worth reading.
PACKAGES = {
    "torch": "torch",
    "transformers": "transformers",
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "sympy": "sympy",
    "pandas": "pandas",
    "networkx": "networkx",
    "matplotlib": "matplotlib",
    "mpl_toolkits": "matplotlib",
    "datasets": "datasets",
    "deepspeed": "deepspeed",
    "huggingface_hub": "huggingface_hub",
    "mpmath": "mpmath",
    "pydantic": "pydantic",
    "rich": "rich",
    "jinja2": "Jinja2",
    "PIL": "pillow",
    "pyarrow": "pyarrow",
    "fsspec": "fsspec",
    "joblib": "joblib",
    "pyparsing": "pyparsing",
    "psutil": "psutil",
    "dateutil": "python-dateutil",
    "setuptools": "setuptools",
}
_SKIPPED_FOLDERS = {
    "tests", "test", "testing", "site-packages", "dist-packages", "__pycache__", "idlelib", "lib2to3", "turtledemo",
    "_vendor", "vendor", "externals", "ensurepip", "third_party", "_inductor", "_dynamo",
}  # fmt: skip
_ADDED = {"add_newdoc", "add_docstr"}  # how numpy and torch document what is written in C


@dataclass(frozen=True)
class Passage:
    """One docstring's prose; `key` is its qualified name, `label` the package that owns it."""

    text: str
    key: str
    label: str


def packages() -> dict[str, tuple[str, Path]]:
    """{label: (version, folder)} of what is installed here, in a fixed order; nothing is imported."""
    found: dict[str, tuple[str, Path]] = {}
    stdlib = Path(sysconfig.get_path("stdlib"))
    if any(stdlib.glob("*.py")):
        found["python"] = (platform.python_version(), stdlib)
    for name, distribution in PACKAGES.items():
        try:
            version = importlib.metadata.version(distribution)
            spec = importlib.util.find_spec(name)
        except (importlib.metadata.PackageNotFoundError, ValueError, ImportError):
            continue
        if spec is not None and spec.submodule_search_locations:
            found[name] = (version, Path(next(iter(spec.submodule_search_locations))))
    return found


def identity() -> dict[str, object]:
    """What the corpus is a function of: package versions and the versions of the code that cleans it."""
    return {
        "packages": {label: version for label, (version, _) in packages().items()},
        "extraction": VERSION,
        "near_duplicates": neardup.VERSION,
    }


def passages() -> Iterator[Passage]:
    """Every document, near-duplicates removed and packages capped, in a fixed order.

    The first call takes a minute of processor time, half of it shared by up to four processes; the
    result stays in the data cache until a package's version changes.

    Raises:
        DataError: no package's source files are readable (a stripped or zipped installation).
    """
    with (cached_folder("python-docs", identity(), _extract) / "passages.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            yield Passage(*json.loads(line))


def _extract(into: Path) -> None:
    raw = sorted(_read_all(), key=lambda row: (text_word(row[1]), row[0]))
    documents = _without_repeats(raw)
    group = neardup.groups(neardup.signatures(p.text for p in documents))
    documents = [p for index, p in enumerate(documents) if group[index] == index]
    if not documents:
        raise DataError(
            "python-docs",
            rule="no docstrings were found in the installed packages",
            remedy="install packages with their sources, or set data.sources to a folder of text",
        )
    with (into / "passages.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps([p.text, p.key, p.label]) + "\n" for p in _capped(documents))


def _without_repeats(raw: list[tuple[str, str, list[str]]]) -> list[Passage]:
    """Keep each paragraph in the first document that has it; drop documents left too short."""
    seen: set[int] = set()
    documents = []
    for label, key, paragraphs in raw:
        fresh = []
        for paragraph in paragraphs:
            mark = paragraph_mark(paragraph)
            if mark not in seen:
                seen.add(mark)
                fresh.append(paragraph)
        if sum(len(p.split()) for p in fresh) >= MIN_WORDS:
            documents.append(Passage("\n".join(fresh), key, label))
    return documents


def paragraph_mark(paragraph: str) -> int:
    """Equal for paragraphs that differ only in case, punctuation, digits and CamelCase names."""
    # Model names are the only difference between thousands of transformers docstrings.
    words = re.findall(r"[A-Za-z]+", paragraph)
    return text_word(" ".join("@" if not w[1:].islower() and len(w) > 1 else w.lower() for w in words))


def _capped(documents: list[Passage]) -> list[Passage]:
    """Keep, in hash order, at most MAX_SHARE of the text from any one package."""
    sizes: dict[str, int] = {}
    for p in documents:
        sizes[p.label] = sizes.get(p.label, 0) + len(p.text)
    limit = MAX_SHARE * sum(sizes.values())
    taken: dict[str, int] = {}
    kept = []
    for p in documents:  # already in the order of their hashed names, so the cut is a fair sample
        if len(sizes) < 4 or taken.get(p.label, 0) + len(p.text) <= limit:
            taken[p.label] = taken.get(p.label, 0) + len(p.text)
            kept.append(p)
    return kept


def _read_all() -> Iterator[tuple[str, str, list[str]]]:
    """(label, key, paragraphs) of every docstring, parsed by a few processes of this module."""
    jobs = [
        [label, str(folder), str(path)] for label, (_, folder) in packages().items() for path in sources_below(folder)
    ]
    jobs.sort(key=lambda job: -os.path.getsize(job[2]))
    workers = max(1, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, len(jobs)))
    # Plain subprocesses: a fork would copy a process full of threads, a spawn would import its main module.
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    environment["OMP_NUM_THREADS"] = "1"
    running: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
    for index in range(workers):
        # A file, not a pipe: a child would block on a full pipe until the parent came to read it.
        found = tempfile.TemporaryFile()  # noqa: SIM115
        command = [sys.executable, "-m", "harness.data.python_docs"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=found, env=environment)
        assert process.stdin is not None
        process.stdin.write(json.dumps(jobs[index::workers]).encode())
        process.stdin.close()
        running.append((process, found))
    for process, found in running:
        if process.wait() != 0:
            raise DataError(
                "python-docs",
                rule=f"the process reading docstrings ended with code {process.returncode}",
                remedy="run `python -m harness.data.python_docs < /dev/null` to see why",
            )
        found.seek(0)
        for line in found:
            label, key, paragraphs = json.loads(line)
            yield label, key, paragraphs
        found.close()


def sources_below(folder: Path) -> Iterator[Path]:
    """Python files below a folder in a fixed order, without tests, vendored copies and generated twins."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if f not in _SKIPPED_FOLDERS and not f.startswith("."))
        # transformers generates modeling_x.py from modular_x.py, docstrings included.
        copies = {name.replace("modular_", "modeling_") for name in files if name.startswith("modular_")}
        yield from (Path(parent) / name for name in sorted(files) if name.endswith(".py") and name not in copies)


def docstrings(source: bytes, module: str) -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of everything documented in one file; unparsable files have none."""
    if b'"""' not in source and b"'''" not in source:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's docstrings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    yield from _walk(tree, module)


def _walk(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node, clean=False)
        if text:
            yield name, text
    for child in getattr(node, "body", []):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _walk(child, f"{name}.{child.name}")
        elif isinstance(child, ast.If | ast.Try | ast.With):
            yield from _walk(child, name)
        elif isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
            yield from _added(child.value, name)
        elif isinstance(child, ast.Assign) and name.endswith("pydoc_data.topics") and isinstance(child.value, ast.Dict):
            for key, value in zip(child.value.keys, child.value.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield f"{name}.{key.value}", value.value


def _added(call: ast.Call, name: str) -> Iterator[tuple[str, str]]:
    """Documentation attached from outside: add_newdoc("numpy", "add", text), add_docstr(torch.abs, text)."""
    function = call.func
    called = (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )
    if called not in _ADDED or len(call.args) < 2:
        return
    text: ast.expr = call.args[-1]
    if isinstance(text, ast.Call) and isinstance(text.func, ast.Attribute):
        text = text.func.value  # r"""…""".format(**common_args)
    if isinstance(text, ast.Constant) and isinstance(text.value, str):
        yield f"{name}:{'.'.join(ast.unparse(a) for a in call.args[:-1])}", text.value


def _main() -> None:
    """Read [[label, folder, file], …] as JSON; print one JSON line per docstring that has prose."""
    out = open(sys.stdout.fileno(), "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    cleaned: dict[str, list[str]] = {}
    for label, folder, path in json.loads(sys.stdin.read() or "[]"):
        relative = Path(path).relative_to(folder).with_suffix("")
        module = ".".join((label, *(part for part in relative.parts if part != "__init__")))
        try:
            source = Path(path).read_bytes()
        except OSError:
            continue
        for key, text in docstrings(source, module):
            # Generated classes repeat docstrings by the hundred; cleaning costs as much as parsing.
            if text not in cleaned:
                cleaned[text] = clean(text)
            paragraphs = cleaned[text]
            if paragraphs:
                out.write(json.dumps([label, key, paragraphs]) + "\n")
    out.flush()


if __name__ == "__main__":
    _main()
