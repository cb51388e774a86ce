"""Token files: packed blocks written once, verified on every opening, read through a memory map.

A shard is a flat little-endian file of uint16 (uint32 above 65,536 ids) holding whole blocks of T
tokens: [CLS], T - 2 tokens of running text, [SEP]. Documents follow one another in the running text,
joined by [SEP]; there are no pads. The manifest has a checksum per megabyte, so damage is reported
with the file and the offset where it lies.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.errors import DataError

CHUNK_BYTES = 1 << 20
Tokens = npt.NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Shard:
    """What the manifest says about one token file. `offsets` and sizes are in bytes."""

    file: str
    dtype: str
    blocks: int
    block_length: int
    bytes: int
    sha256: str
    chunks: tuple[int, ...]

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def dtype_for(vocab_size: int) -> str:
    """The narrowest of the two stored types that holds every id."""
    return "<u2" if vocab_size <= 2**16 else "<u4"


def write(
    path: Path, documents: Iterable[list[int]], *, cls: int, sep: int, block_length: int, vocab_size: int
) -> Shard:
    """Pack documents (lists of ids without special tokens) into blocks; less than one block is left over.

    Raises:
        DataError: a token id does not fit the vocabulary.
    """
    dtype = np.dtype(dtype_for(vocab_size))
    content = block_length - 2
    sha = hashlib.sha256()
    chunks: list[int] = []
    blocks = 0
    waiting: list[npt.NDArray[np.int64]] = []
    waiting_count = 0
    rest = b""
    first = True

    with path.open("wb") as file:

        def emit(flat: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            nonlocal blocks, rest
            count = flat.size // content
            block_BT = np.empty((count, block_length), dtype=dtype)
            block_BT[:, 0], block_BT[:, -1] = cls, sep
            block_BT[:, 1:-1] = flat[: count * content].reshape(count, content)
            data = rest + block_BT.tobytes()
            whole = len(data) - len(data) % CHUNK_BYTES
            chunks.extend(zlib.crc32(data[at : at + CHUNK_BYTES]) for at in range(0, whole, CHUNK_BYTES))
            rest = data[whole:]
            sha.update(block_BT.tobytes())
            file.write(block_BT.tobytes())
            blocks += count
            return flat[count * content :]

        for ids in documents:
            piece = np.asarray(ids if first else [sep, *ids], dtype=np.int64)
            first = False
            if piece.size and int(piece.max()) >= vocab_size:
                raise DataError(
                    f"token id {int(piece.max())}",
                    rule=f"the vocabulary has {vocab_size} entries",
                    remedy="use the tokenizer that belongs to this vocabulary",
                )
            waiting.append(piece)
            waiting_count += piece.size
            if waiting_count >= 1 << 20:
                left = emit(np.concatenate(waiting))
                waiting, waiting_count = [left], left.size
        if waiting:
            emit(np.concatenate(waiting))
    if rest:
        chunks.append(zlib.crc32(rest))
    size = blocks * block_length * dtype.itemsize
    return Shard(path.name, dtype.str, blocks, block_length, size, sha.hexdigest(), tuple(chunks))


def load(folder: Path, shard: Shard, *, vocab_size: int) -> np.ndarray:
    """[blocks, T] read-only memory map, after checking size, checksums and that every id is below `vocab_size`.

    Reads the file once, about a second per gigabyte.

    Raises:
        DataError: missing or short file, altered bytes, an id outside the vocabulary; names file and byte offset.
    """
    path = folder / shard.file
    remedy = f"delete {folder} and start again; it is rebuilt from the source"
    if not path.is_file():
        raise DataError(f"{path}", rule="the manifest lists it, but it does not exist", remedy=remedy)
    size = path.stat().st_size
    if size != shard.bytes:
        raise DataError(
            f"{path} at offset {min(size, shard.bytes)}", rule=f"has {size} bytes, not {shard.bytes}", remedy=remedy
        )
    dtype = np.dtype(shard.dtype)
    if size == 0:
        raise DataError(f"{path}", rule=f"fewer tokens than one block of {shard.block_length}", remedy="give more text")
    tokens = np.memmap(path, dtype=dtype, mode="r")
    step = CHUNK_BYTES // dtype.itemsize
    for number, expected in enumerate(shard.chunks):
        piece = tokens[number * step : (number + 1) * step]
        if int(piece.max()) >= vocab_size:
            at = number * step + int(np.argmax(piece >= vocab_size))
            raise DataError(
                f"{path} at offset {at * dtype.itemsize}",
                rule=f"token id {int(tokens[at])}, but the vocabulary has {vocab_size} entries",
                remedy=remedy,
            )
        if zlib.crc32(piece.tobytes()) != expected:
            raise DataError(
                f"{path} at offset {number * CHUNK_BYTES}", rule="this megabyte is not what was written", remedy=remedy
            )
    return tokens.reshape(shard.blocks, shard.block_length)
