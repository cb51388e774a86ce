"""The scores of one subject: every item that a study's evaluation asks for, on data that is built once.

Whoever decides which subjects are scored, and when, is `suite.py`.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from harness.data.sources import WHOLE_TRAIN
from harness.data.stream import Batch, domain_batches, evaluation_batches, evaluation_choice
from harness.data.text_bytes import block_bytes
from harness.evaluate import choices, clm, domains, mlm, readout
from harness.evaluate.subject import Subject

if TYPE_CHECKING:
    from harness.data.probes import ProbeData
    from harness.setting import Setting

BATCH = 64
READOUT_BLOCK_STREAM = 7  # the read-out learns from train blocks in its own fixed order
# Changing how a score is computed changes this number, so that finished runs are evaluated again.
VERSION = 1


class Scorer:
    """Scores subjects as one study's evaluation says."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.spec = setting.study.evaluation

    def items(self) -> dict[str, str]:
        """Every evaluation the study asks for, with the key of what it depends on."""
        wanted: dict[str, Any] = {"clm" if self.setting.study.causal else "mlm": self.spec.mlm_blocks}
        if self.spec.readout is not None:
            wanted["readout"] = self.spec.readout.model_dump(mode="json")
        answered: list[Any] = []  # one head, trained once, answers these too
        if self.spec.choices is not None:
            recipe = self.spec.choices.model_dump(mode="json")
            if self.spec.choices.head == "readout":
                answered.append(recipe)
            else:
                wanted["choices"] = recipe
        if self.setting.domains:
            texts = {label: domain.fingerprint for label, domain in self.setting.domains.items()}
            answered.append({"domains": texts, "blocks": self.spec.mlm_blocks})
        if answered:
            wanted["readout"] = [wanted["readout"], *answered]
        if self.spec.probes is not None:
            recipe = self.spec.probes.model_dump(mode="json", exclude={"tasks"})
            wanted |= {f"probe.{task}": recipe for task in self.spec.probes.tasks}
        # Of several sources, blocks are chosen by their weights: scores made before that are made again.
        mixture = ["by weight"] if len(self.setting.corpus.sources) > 1 else []
        # What was measured before there was a choice keeps its key, and what was measured otherwise loses it.
        split = [] if self.spec.split == "test" else [self.spec.split]
        limited = ["whole train text"] if self.setting.study.data.limit_tokens is not None else []
        base = [VERSION, self.setting.corpus.fingerprint, *mixture, *split, *limited]
        return {
            item: hashlib.sha256(json.dumps([*base, item, what], sort_keys=True).encode()).hexdigest()[:16]
            for item, what in wanted.items()
        }

    def score(
        self, item: str, subject: Subject, answers: list[torch.Tensor] | None = None
    ) -> tuple[dict[str, float], int]:
        """Scores and closed-form FLOPs of one item; `answers` collects the most likely test tokens, where there are any."""
        if item == "mlm":
            batches = self.batches(self.spec.split, self.spec.mlm_blocks)
            return mlm.evaluate(subject, batches, answers=answers), mlm.flops(subject, batches)
        if item == "clm":
            batches = self.batches(self.spec.split, self.spec.mlm_blocks)
            scores = clm.evaluate(subject, batches, text_bytes=self.test_bytes, answers=answers)
            return scores, clm.flops(subject, batches)
        if item == "choices":
            return self.choose(subject, choices.own_head(subject))
        if item == "readout":
            return self.read_out(subject, answers=answers)
        from harness.evaluate import frozen, probes

        assert self.spec.probes is not None
        task = item.removeprefix("probe.")
        data = self.probe(task)
        flop = probes.flops(subject, data, spec=self.spec.probes)
        if self.spec.probes.mode == "frozen":
            accuracy, layer = frozen.evaluate(subject, data)
            return {item: accuracy, f"{item}.layer": float(layer)}, flop
        return {item: probes.evaluate(subject, data, spec=self.spec.probes)}, flop

    def read_out(
        self, subject: Subject, *, answers: list[torch.Tensor] | None = None, layer: int | None = None
    ) -> tuple[dict[str, float], int]:
        """Scores and FLOPs of a read-out: from the layer that wins, or from the given one at about half the price."""
        spec, batches = self.spec.readout, self.readout_batches
        assert spec is not None
        judging = ("judged",) if layer is not None else ("validation", "judged")
        judged = [batch for part in judging for batch in batches[part]]
        flop = readout.flops(
            subject, learnt=count_blocks(batches["train"]), judged=count_blocks(judged),
            positions=sum(batch.labels_N.numel() for batch in judged), length=self.setting.study.data.block_length,
            spec=spec, tried=1 if layer is not None else len(readout.layers_tried(subject.shape.layers)),
        )  # fmt: skip
        layer, head = readout.learn(
            subject, train=batches["train"], validation=batches["validation"], spec=spec, layer=layer
        )
        scores = readout.evaluate(subject, layer, head, test=batches["judged"], answers=answers)
        if self.spec.choices is not None and self.spec.choices.head == "readout":
            picked, cost = self.choose(subject, choices.readout_head(subject, layer, head))
            scores, flop = scores | picked, flop + cost
        if self.domain_batches:
            scores |= domains.evaluate(subject, layer, head, self.domain_batches)
            flop += sum(self._domain_flops(subject, of) for of in self.domain_batches.values())
        return scores, flop

    def choose(self, subject: Subject, logits: choices.Logits) -> tuple[dict[str, float], int]:
        """Scores of every multiple-choice probe under these logits, and their FLOPs."""
        spec, found, flop = self.spec.choices, {}, 0
        assert spec is not None
        for task, data in self.setting.choices.items():
            found[f"probe.{task}"] = choices.evaluate(subject, data, logits, normalise=spec.normalise)
            flop += choices.flops(subject, data)
        return found, flop

    def _domain_flops(self, subject: Subject, batches: list[Batch]) -> int:
        return domains.flops(
            subject.shape, blocks=sum(batch.input_ids_BT.shape[0] for batch in batches),
            length=self.setting.study.data.block_length, predicted=sum(batch.labels_N.numel() for batch in batches),
        )  # fmt: skip

    # -- shared data, built once -----------------------------------------------------------------------
    def batches(self, split: str, blocks: int, seed: int = 0) -> list[Batch]:
        blocks = min(blocks, len(self.setting.corpus.blocks(split)))
        return evaluation_batches(
            self.setting.corpus, split, blocks=blocks, batch=BATCH, masking=self.setting.study.data.masking, seed=seed,
            causal=self.setting.study.causal,
        )  # fmt: skip

    @cached_property
    def readout_batches(self) -> dict[str, list[Batch]]:
        assert self.spec.readout is not None
        return {
            # All of the train text, however little of it students may see: a head that starved would measure itself.
            "train": self.batches(WHOLE_TRAIN, self.setting.readout_blocks, seed=READOUT_BLOCK_STREAM),
            "validation": self.batches("validation", self.spec.mlm_blocks),
            "judged": self.batches(self.spec.split, self.spec.mlm_blocks),
        }

    @cached_property
    def domain_batches(self) -> dict[str, list[Batch]]:
        """Test blocks of every domain, those of the mixture first."""
        study = self.setting.study
        return {
            label: domain_batches(
                self.setting.corpus, domain.blocks, blocks=self.spec.mlm_blocks, batch=BATCH,
                masking=study.data.masking, causal=study.causal,
            )
            for label, domain in self.setting.domains.items()
        }  # fmt: skip

    @cached_property
    def test_bytes(self) -> int:
        """Bytes of original text under the next tokens of the evaluated test blocks."""
        sizes = block_bytes(self.setting.corpus, self.spec.split, self.setting.tokenizer)
        blocks = min(self.spec.mlm_blocks, len(sizes))
        return int(sizes[evaluation_choice(self.setting.corpus, self.spec.split, blocks)].sum())

    @cached_property
    def test_labels(self) -> torch.Tensor:
        """What stood at every predicted position of the test blocks that all subjects answered."""
        return torch.cat([batch.labels_N for batch in self.batches(self.spec.split, self.spec.mlm_blocks)])

    def probe(self, task: str) -> ProbeData:
        """Built, and refused, before anything was spent."""
        return self.setting.probes[task]


def count_blocks(batches: list[Batch]) -> int:
    return sum(batch.input_ids_BT.shape[0] for batch in batches)
