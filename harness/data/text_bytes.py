"""How many bytes of the original text each held-out block covers: what turns nats into bits per byte.

A document's tokens share all of its UTF-8 bytes: a token owns what lies between the end of the token before it
and its own end, spaces and characters that the tokenizer drops included, and the last one owns the rest. The
[SEP] between two documents owns nothing, yet predicting it is charged. So the bytes of a split's blocks are
those of its documents, to the byte, whatever the tokenizer lower-cases, normalises or calls unknown.

Shapes: T tokens per block, M = T − 2 of them text.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.data.next_token import predicted_count
from harness.data.tokenizer import encode
from harness.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.data.corpus import Corpus

Bytes = npt.NDArray[np.int64]
BATCH = 1024


def check(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer that cannot say which characters a token came from.

    Raises:
        DataError: it has no offsets.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise DataError(
            f"tokenizer {name!r}", rule="it does not say which characters a token covers: bits per byte are unknown",
            remedy="use a tokenizer with a tokenizer.json",
        )  # fmt: skip


def block_bytes(corpus: Corpus, split: str, tokenizer: PreTrainedTokenizerBase) -> Bytes:
    """Bytes of original text under the predicted tokens of every block of a held-out split, in the blocks' order.

    Raises:
        DataError: the documents do not tokenise to the blocks: the cache is not of this tokenizer.
    """
    check(tokenizer, corpus.data.tokenizer)
    found = []
    for source in corpus.sources:
        blocks = corpus.blocks(split, source)
        ids, sizes = _running_text(corpus, split, source, tokenizer)
        used = len(blocks) * predicted_count(corpus.block_length)
        if ids.size < used or not np.array_equal(ids[:used], np.asarray(blocks)[:, 1:-1].reshape(-1)):
            raise DataError(
                f"the {split} blocks of {source}", rule="its documents tokenise to something else",
                remedy="delete the cached corpus and start again; it is rebuilt from the source",
            )  # fmt: skip
        found.append(sizes[:used].reshape(len(blocks), -1).sum(axis=1))
    return np.concatenate(found)


def _running_text(corpus: Corpus, split: str, source: str, tokenizer: PreTrainedTokenizerBase) -> tuple[Bytes, Bytes]:
    """(ids, bytes) of a source's documents one after another, joined by [SEP], as the shards were packed."""
    ids: list[npt.ArrayLike] = []
    sizes: list[npt.ArrayLike] = []
    documents = (document.text for document in corpus.documents(split) if document.source == source)
    while texts := list(islice(documents, BATCH)):
        for text, (tokens, ends) in zip(texts, _with_ends(tokenizer, texts), strict=True):
            if not tokens:
                continue
            if ids:
                ids.append([corpus.special.sep])
                sizes.append([0])
            ids.append(tokens)
            sizes.append(owned_bytes(text, ends))
    return np.concatenate(ids).astype(np.int64), np.concatenate(sizes).astype(np.int64)


def _with_ends(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[tuple[list[int], list[int]]]:
    """Ids of each text and, for each, the character its token ends before; cut as `encode` cuts them."""
    backend: Any = tokenizer.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    encode(tokenizer, [""])  # takes off truncation and padding
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True
    try:
        found = backend.encode_batch(texts, add_special_tokens=False)
    finally:
        backend.encode_special_tokens = before
    return [(encoding.ids, [end for _, end in encoding.offsets]) for encoding in found]


def owned_bytes(text: str, ends: list[int]) -> Bytes:
    """UTF-8 bytes owned by each token of a text, given the character each ends before; they sum to all of the text's."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    width = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    upto = np.concatenate([[0], np.cumsum(width)])
    # Offsets of a character that spans several tokens repeat or step back: it is owned once.
    borders = np.maximum.accumulate(np.asarray([*ends[:-1], len(text)], dtype=np.int64))
    return np.diff(upto[borders], prepend=0)
