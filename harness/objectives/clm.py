"""`clm`: next-token prediction from scratch — the causal arm that needs no teacher."""

from __future__ import annotations

from typing import ClassVar, Literal

from harness.objectives.mlm import Mlm


class Clm(Mlm):
    """Cross-entropy of the next token at every position whose next token is real text (Radford et al. 2018, §3.1).

    The batch names those positions and their next tokens, so the arithmetic is `mlm`'s.
    """

    name: ClassVar[str] = "clm"
    reads: ClassVar[Literal["either", "masked", "causal"]] = "causal"
