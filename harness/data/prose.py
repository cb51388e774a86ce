"""English prose out of docstrings: sentences stay; code, tables, formulas and markup go.

A docstring is written for a reader, but much of one is not prose: doctests, parameter tables,
formulas, cross-reference markup. What is left here is what a language model can learn English from,
one paragraph per line.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

MIN_PARAGRAPH_WORDS = 4
MIN_PLAIN_SHARE = 0.6  # of a paragraph's words are spelled with letters only

_SECTION = re.compile(
    r"(args|arguments|parameters|params|returns?|raises|yields|examples?|notes?|attributes|references|see also|warnings?|usage|"
    r"methods|keyword args|keyword arguments|other parameters|warns|receives|inputs?|outputs?|shape|todo):?",
    re.IGNORECASE,
)
_UNDERLINE = re.compile(r"([-=~^\"'*+#.])\1{2,}\s*$")
_TABLE = re.compile(r"^[|+]|^[-=+| ]{6,}$|\S\s{3,}\S.*\S\s{3,}\S|\s\|\s.*\s\|\s")
_BULLET = re.compile(r"^([-*•]|\d{1,2}[.)])\s+")
_PARAMETER = re.compile(r"[*`]{0,3}[A-Za-z_][\w.]*[`*]{0,2}\s*(\([^)]*\))?\s*:(\s|$)")
_BLOCK_DIRECTIVE = re.compile(
    r"\.\.\s*(code|code-block|sourcecode|math|plot|image|figure|ipython|testcode|doctest|\[[^\]]*\]|_)", re.IGNORECASE
)
_DIRECTIVE = re.compile(r"\.\.\s*[\w:-]+::\s*")
_INLINE: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r":[\w:+-]+:`~(?:[\w.]*\.)?([^`]*)`", r"\1"),  # :func:`~package.name` is printed as name
        (r":[\w:+-]+:`!?([^`<]*?)\s*(?:<[^>`]*>)?`", r"\1"),
        (r"`([^`<]+?)\s*<[^>`]*>`_{0,2}", r"\1"),
        (r"(?<!\w)\[`~?([^`\]]*)`\](?:\([^)]*\))?", r"\1"),
        (r"!?\[([^\]]*)\]\([^)\s]*\)", r"\1"),
        (r"\$\$?[^$]*\$\$?", " "),
        (r"</?[A-Za-z][^>]{0,80}>", " "),
        (r"<?\bhttps?://\S+", " "),
        (r"\[[\w*#]{1,12}\]_", " "),
        (r"``?([^`]*)``?_{0,2}", r"\1"),
        (r"\*\*([^*]+)\*\*", r"\1"),
        (r"(?<!\w)\*(\S[^*]*\S|\S)\*(?!\w)", r"\1"),
        (r"\[\[[\w-]*\]\]|(?:^|\s)>(?=\s)|\[!\w+\]", " "),
    )
)
_WORD = re.compile(r"[A-Za-z][A-Za-z'’-]*[A-Za-z]|[aAI]")
_MARKUP = re.compile(r"[`*\[$<]|://|:\w+:")
_LOOSE_STOP = re.compile(r" ([.,;:])(?= |$)")  # where a formula or a citation was removed
_EDGE = "()[]{}<>.,;:!?\"'`*"


def clean(docstring: str) -> list[str]:
    """The prose paragraphs of a docstring, each on one line, markup removed; may be empty."""
    paragraphs = []
    for raw in _paragraphs(inspect.cleandoc(docstring).splitlines()):
        text = raw
        if _MARKUP.search(raw):
            for pattern, replacement in _INLINE:
                text = pattern.sub(replacement, text)
        text = _LOOSE_STOP.sub(r"\1", " ".join(text.replace("\\", " ").split()))
        if is_prose(text):
            paragraphs.append(text)
    return paragraphs


def is_prose(text: str) -> bool:
    """True for a paragraph that reads as English: enough words, most of them plain."""
    words = [w.strip(_EDGE) for w in text.split()]
    plain = sum(_WORD.fullmatch(w) is not None for w in words)
    return plain >= MIN_PARAGRAPH_WORDS and plain >= MIN_PLAIN_SHARE * len(words) and text.isprintable()


def _paragraphs(lines: list[str]) -> Iterator[str]:
    """Join wrapped lines; a blank line, a bullet, a parameter or a smaller indent starts a new one."""
    current: list[str] = []
    indent = 0
    for line in _prose_lines(lines):
        stripped = line.strip()
        depth = len(line) - len(line.lstrip())
        if current and (not stripped or depth < indent or _BULLET.match(stripped) or _PARAMETER.match(stripped)):
            yield " ".join(current)
            current = []
        if stripped:
            current.append(_BULLET.sub("", stripped, count=1) if not current else stripped)
            indent = depth
    if current:
        yield " ".join(current)


def _prose_lines(lines: list[str]) -> Iterator[str]:
    """Drop code, tables, headings and directives; "" marks where a paragraph must end."""
    fenced = doctest = False
    literal: int | None = None  # inside a block indented deeper than this
    for number, line in enumerate(lines):
        stripped = line.strip()
        depth = len(line) - len(line.lstrip())
        if stripped.startswith(("```", "~~~")):
            fenced = not fenced
            yield ""
            continue
        if fenced:
            continue
        if literal is not None and (not stripped or depth > literal):
            continue
        literal = None
        if stripped.startswith((">>>", "In [", "$ ")):
            doctest = True
        if not stripped:
            doctest = False
        following = lines[number + 1].strip() if number + 1 < len(lines) else ""
        heading = _UNDERLINE.match(following) is not None and len(following) >= 3
        if not stripped or doctest or heading or _UNDERLINE.match(stripped) or _SECTION.fullmatch(stripped):
            yield ""
        elif _BLOCK_DIRECTIVE.match(stripped):
            literal = depth
            yield ""
        elif _TABLE.search(stripped) or stripped.startswith((":param", "@", "#", "<!--")):
            yield ""
        elif _DIRECTIVE.match(stripped):
            yield ""
            yield _DIRECTIVE.sub("", stripped)
        elif stripped.endswith("::"):
            literal = depth
            yield line.rstrip()[:-1]
            yield ""
        else:
            yield line
