"""Hub datasets by name, through `datasets`; code that a dataset ships is never run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from harness.errors import DataError
from harness.study import TextSpec

_OWN = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}


def open_dataset(source: TextSpec) -> tuple[dict[str, Any], tuple[str, ...], Callable[[str], Iterator[str]]]:
    """(identity, splits, texts of a split). The download lands in the Hub's own cache.

    Raises:
        DataError: the Hub does not answer and the cache has no copy, no such dataset or config, a missing column.
    """
    import datasets

    try:
        loaded: Any = datasets.load_dataset(source.path, name=source.config)
    except Exception as error:  # the client raises a dozen unrelated types for one question: can it be had?
        raise DataError(
            f"data source {source.path!r}" + (f" ({source.config})" if source.config else ""),
            rule=f"neither a local path nor a dataset the Hub would give: {type(error).__name__}: {error}",
            remedy="check the name and the network, or `git clone` the dataset and give its folder in data.sources",
        ) from error
    table = {_OWN[name]: split for name, split in loaded.items() if name in _OWN}
    if not table:
        raise DataError(
            f"data source {source.path!r}",
            rule=f"its splits are {', '.join(loaded)}",
            remedy="give one with a train split",
        )
    for split in table.values():
        if source.text_column not in split.column_names:
            raise DataError(
                f"data source {source.path!r}",
                rule=f"no column {source.text_column!r}; it has {', '.join(split.column_names)}",
                remedy="set data.sources.0.text_column",
            )

    def texts(name: str) -> Iterator[str]:
        for batch in table[name].select_columns([source.text_column]).iter(batch_size=512):
            for value in batch[source.text_column]:
                yield value or ""

    # The fingerprint of a freshly loaded split is a hash of its files' etags and the loader's version.
    identity = {
        "hub": source.path,
        "config": source.config,
        "splits": {n: [s._fingerprint, len(s)] for n, s in table.items()},
    }
    return identity, tuple(table), texts
