"""Two more corpora that every Python machine already has: the standard library's code, and the comments in it.

`python-code`: one document is one top-level class or function without its docstrings and comments. `python-comments`:
one document is the prose comments of one module. Neither holds what `python-docs` is made of, the docstrings of the
same files: they are cut out of the code, and a comment that repeats a docstring's paragraph is left out. Within each
corpus near-duplicates are reduced to one document, so that none can lie on both sides of a split; a document's split
depends on its qualified name alone. Source files are read, never imported.
"""

from __future__ import annotations

import ast
import io
import json
import platform
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

from harness.data import neardup
from harness.data.cache import cached_folder
from harness.data.hashing import text_word
from harness.data.prose import clean
from harness.data.python_docs import MIN_WORDS, Passage, docstrings, paragraph_mark, sources_below
from harness.errors import DataError

VERSION = 1
CODE, COMMENTS = "python-code", "python-comments"
# A definition of fewer lines is a getter or an alias: thousands of them are alike.
MIN_LINES = 5

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def identity() -> dict[str, object]:
    """What both corpora are a function of."""
    return {"python": platform.python_version(), "extraction": VERSION, "near_duplicates": neardup.VERSION}


def passages(kind: str) -> Iterator[Passage]:
    """Every document of `CODE` or `COMMENTS`, near-duplicates removed, in a fixed order; `label` is the module.

    The first call takes about half a minute of processor time; the result stays in the data cache.

    Raises:
        DataError: the standard library's source files are not readable (a stripped or zipped installation).
    """
    folder = cached_folder("python-code", identity(), _extract)
    with (folder / f"{kind}.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            yield Passage(*json.loads(line))


def _extract(into: Path) -> None:
    root = Path(sysconfig.get_path("stdlib"))
    code: list[Passage] = []
    comments: list[Passage] = []
    documented: set[int] = set()
    remarks: list[tuple[str, list[str]]] = []
    for path in sources_below(root):
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__") or "python"
        try:
            source = path.read_bytes()
            found = list(definitions(source, module))
            remarks.append((module, prose_comments(source)))
        except (OSError, SyntaxError, ValueError, RecursionError, tokenize.TokenError):
            continue  # test data and templates need not be Python
        code += [Passage(text, key, module.split(".")[0]) for key, text in found]
        documented |= {paragraph_mark(p) for _, text in docstrings(source, module) for p in clean(text)}
    for module, paragraphs in sorted(remarks, key=lambda row: (text_word(row[0]), row[0])):
        fresh = []
        for paragraph in paragraphs:
            mark = paragraph_mark(paragraph)
            if mark not in documented:
                documented.add(mark)  # licences and section headings recur in many modules
                fresh.append(paragraph)
        if sum(len(p.split()) for p in fresh) >= MIN_WORDS:
            comments.append(Passage("\n".join(fresh), module, module.split(".")[0]))
    if not code:
        raise DataError(
            CODE, rule=f"no Python source was found in {root}",
            remedy="use an installation with its standard library's sources, or set data.sources to a folder of text",
        )  # fmt: skip
    for kind, documents in ((CODE, code), (COMMENTS, comments)):
        documents.sort(key=lambda p: (text_word(p.key), p.key))
        group = neardup.groups(neardup.signatures(p.text for p in documents))
        kept = [p for index, p in enumerate(documents) if group[index] == index]
        with (into / f"{kind}.jsonl").open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps([p.text, p.key, p.label]) + "\n" for p in kept)


def definitions(source: bytes, module: str) -> Iterator[tuple[str, str]]:
    """(qualified name, code) of every top-level definition of MIN_LINES lines or more without docstrings and comments.

    Raises:
        SyntaxError, ValueError, tokenize.TokenError: this is not Python.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        tree = ast.parse(source)
    # Columns of `ast` are bytes of UTF-8, those of `tokenize` are characters: all is cut as bytes.
    lines = [bytearray(line.encode()) for line in _text(source).split("\n")]
    for begin, end in [*_docstrings(tree), *_comments(source)]:
        _blank(lines, begin, end)
    for node in tree.body:
        if isinstance(node, Definition):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            kept = [line.decode().rstrip() for line in lines[first - 1 : node.end_lineno]]
            kept = [line for line in kept if line]
            if len(kept) >= MIN_LINES:
                yield f"{module}.{node.name}", "\n".join(kept)


def prose_comments(source: bytes) -> list[str]:
    """The paragraphs of a file's comments that read as English; consecutive comment lines are one paragraph.

    Raises:
        SyntaxError, tokenize.TokenError: this is not Python.
    """
    blocks: list[list[str]] = []
    last = -1
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != last + 1 or not blocks:
                blocks.append([])
            blocks[-1].append(token.string.lstrip("#!: ").rstrip())
            last = token.start[0]
    return [paragraph for block in blocks for paragraph in clean("\n".join(block))]


def _text(source: bytes) -> str:
    encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    return source.decode(encoding, "replace").replace("\r\n", "\n")


Place = tuple[int, int]


def _docstrings(tree: ast.AST) -> Iterator[tuple[Place, Place]]:
    """(begin, end) as (line, byte) of every docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | Definition) and ast.get_docstring(node, clean=False) is not None:
            text = node.body[0]
            assert text.end_lineno is not None
            assert text.end_col_offset is not None
            yield (text.lineno, text.col_offset), (text.end_lineno, text.end_col_offset)


def _comments(source: bytes) -> Iterator[tuple[Place, Place]]:
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        if token.type == tokenize.COMMENT:
            line, column = token.start
            begin = len(token.line[:column].encode())
            yield (line, begin), (line, begin + len(token.string.encode()))


def _blank(lines: list[bytearray], begin: Place, end: Place) -> None:
    for number in range(begin[0], end[0] + 1):
        line = lines[number - 1]
        first = begin[1] if number == begin[0] else 0
        last = end[1] if number == end[0] else len(line)
        line[first:last] = b" " * (min(last, len(line)) - first)
