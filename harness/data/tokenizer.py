"""Tokenizers: loaded without surprises, fingerprinted by behaviour, trained deterministically.

The fingerprint covers the vocabulary, the special tokens and how a probing text is cut, not the bytes
of a file: a teacher's folder that carries the same tokenizer in another serialisation compares equal.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUILTIN = Path(__file__).resolve().parent.parent / "assets" / "tokenizer"
ALPHABET = 120
# Each role's own token, and what stands in for it in vocabularies of causal models. [MASK] has no stand-in.
ROLES = {
    "cls_token": ("cls_token", "bos_token", "eos_token"),
    "sep_token": ("sep_token", "eos_token"),
    "pad_token": ("pad_token", "sep_token", "eos_token"),
}
NO_MASK = -1
# Case, accents, digits, CJK, punctuation and control characters: where two tokenizers of one vocabulary differ.
_PROBE = "The Café's ÉCOLE naïve x_1=3.14e-5, don't\tUPPER lower ﬁ 中文 日本 Ω≈√2 [MASK] e\u0301\u200b end."


@dataclass(frozen=True)
class SpecialIds:
    """Ids that are never masked and never drawn at random; `all` includes the named ones.

    A causal model's vocabulary begins a text with its bos (or eos) token and ends it with eos; `mask` is NO_MASK there.
    """

    cls: int
    sep: int
    mask: int
    pad: int
    all: tuple[int, ...]


@lru_cache(maxsize=4)
def load_tokenizer(name_or_path: str = "builtin") -> tuple[PreTrainedTokenizerBase, str]:
    """The tokenizer and its fingerprint (16 hex digits). No code from the folder or the Hub is run.

    Raises:
        DataError: it cannot be loaded, or has no token that begins or ends a text.
    """
    from transformers import AutoTokenizer

    path = BUILTIN if name_or_path == "builtin" else Path(name_or_path).expanduser()
    where = str(path) if path.exists() else name_or_path
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(where, use_fast=True, trust_remote_code=False)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and its own types alike
        raise DataError(
            f"tokenizer {name_or_path!r}",
            rule=f"cannot be loaded: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            remedy='give "builtin", a folder with tokenizer.json, or a Hub name with the network up',
        ) from error
    missing = [role for role, tokens in ROLES.items() if all(getattr(tokenizer, n, None) is None for n in tokens)]
    if missing:
        raise DataError(
            f"tokenizer {name_or_path!r}",
            rule=f"it has no {', '.join(missing)}",
            remedy="blocks begin with [CLS] and end with [SEP], or with bos and eos; use a tokenizer that has either",
        )
    return tokenizer, fingerprint(tokenizer)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> SpecialIds:
    """The ids that packing and masking need."""
    t: Any = tokenizer

    def role(name: str) -> int:
        return next(int(i) for token in ROLES[name] if (i := getattr(t, f"{token}_id")) is not None)

    cls, sep, pad = role("cls_token"), role("sep_token"), role("pad_token")
    mask = NO_MASK if t.mask_token_id is None else int(t.mask_token_id)
    every = {cls, sep, pad, mask, *(int(i) for i in t.all_special_ids)} - {NO_MASK}
    return SpecialIds(cls, sep, mask, pad, all=tuple(sorted(every)))


def require_mask(special: SpecialIds, name: str) -> None:
    """Refuse a tokenizer that cannot hide a token.

    Raises:
        DataError: it has no [MASK].
    """
    if special.mask == NO_MASK:
        raise DataError(
            f"tokenizer {name!r}", rule="it has no mask_token",
            remedy="masked language modelling needs [MASK]; use a BERT-type tokenizer, or a causal student.family",
        )  # fmt: skip


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id: the least number of rows an embedding needs."""
    return max(tokenizer.get_vocab().values()) + 1


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 (16 hex digits) over vocabulary, special ids and the cutting of a probing text."""
    ids = special_ids(tokenizer)
    content = {
        "vocabulary": sorted((int(i), t) for t, i in tokenizer.get_vocab().items()),
        "special": [ids.cls, ids.sep, ids.mask, ids.pad, *ids.all],
        "probe": encode(tokenizer, [_PROBE])[0],
    }
    return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()[:16]


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, limit: int | None = None) -> list[list[int]]:
    """Token ids without [CLS] and [SEP], the first `limit` of each; a "[MASK]" written in a text is text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [
            list(ids[:limit])
            for ids in tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        ]
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True
    try:
        backend.no_truncation()
        backend.no_padding()
        encodings = backend.encode_batch(texts, add_special_tokens=False)
        if limit is not None:
            for encoding in encodings:
                encoding.truncate(limit)  # before its ids become Python's: of a long document most are not asked for
        return [encoding.ids for encoding in encodings]
    finally:
        backend.encode_special_tokens = before


def train_wordpiece(texts: Sequence[str], folder: Path, *, vocab_size: int = 4096) -> Path:
    """Train an uncased WordPiece vocabulary on `texts` and write it as a tokenizer folder.

    Deterministic: the same texts give the same files. BERT's normaliser, pre-tokeniser and "##"
    continuation (Devlin et al., 2019); characters outside the `ALPHABET` most frequent become [UNK].
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer = normalizers.BertNormalizer(lowercase=True)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    alphabet = sorted(sorted(c for c in counts if not c.isspace()), key=lambda c: -counts[c])[:ALPHABET]

    draft = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    draft.normalizer, draft.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    # The trainer numbers continuation characters in the order of a randomly seeded hash map, and breaks
    # ties of frequency by number. Declaring them all beforehand fixes their numbers, hence the outcome.
    declared = [*special, *(f"##{c}" for c in alphabet)]
    draft.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=vocab_size, special_tokens=declared, initial_alphabet=alphabet, limit_alphabet=len(alphabet),
            continuing_subword_prefix="##", show_progress=False,
        ),
    )  # fmt: skip

    tokenizer = Tokenizer(models.WordPiece(draft.get_vocab(), unk_token="[UNK]"))  # "##a" is ordinary again
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    folder.mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that every supported transformers knows
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return folder
