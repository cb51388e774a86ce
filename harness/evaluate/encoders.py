"""Models that are fine-tuned and timed: an exported student, any encoder folder, or a student before its first step.

Weights come from safetensors, every weight of the body must be there, and no code from a folder is run.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.errors import ConfigError, DataError
from harness.evaluate.subject import Subject
from harness.models import attention
from harness.models.configs import auto_model, dropout_settings
from harness.models.families import family_of
from harness.models.shapes import Shape, shape_of
from harness.models.student import build_student
from harness.models.teacher import weights_fingerprint

if TYPE_CHECKING:
    from transformers import PretrainedConfig

OUR_CARD = "isobudget.json"
# Families whose embeddings know which of two texts a token is from.
WITH_SEGMENTS = ("bert", "electra")


@dataclass(frozen=True)
class Encoder:
    """A model in a folder in Hugging Face layout."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its complete config.

        Raises:
            DataError: no readable config.json, one that wants to run code, or no safetensors beside it.
        """
        from transformers import AutoConfig

        try:
            config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            config = None
        if not isinstance(config, dict):
            raise DataError(
                f"model {self.folder}", rule="no readable config.json", remedy="give a folder in Hugging Face layout"
            )
        if "auto_map" in config:
            raise DataError(
                f"model {self.folder}", rule="its config wants to run code of its own",
                remedy="choose a model that transformers knows",
            )  # fmt: skip
        if not list(self.folder.glob("*.safetensors")):
            raise DataError(
                f"model {self.folder}", rule="it holds no safetensors", remedy="save it again with safe_serialization"
            )
        try:
            return AutoConfig.for_model(**config).to_dict()
        except Exception as error:  # every family validates its config with errors of its own
            raise DataError(
                f"model {self.folder}", rule=f"unusable config: {error}", remedy="restore config.json"
            ) from None

    @cached_property
    def shape(self) -> Shape:
        try:
            return shape_of(self.config)
        except (ConfigError, KeyError) as error:
            raise DataError(f"model {self.folder}", rule=str(error), remedy="choose a BERT-like model") from None

    @cached_property
    def fingerprint(self) -> str:
        """What its scores depend on: its weights, and the config that says how they are run."""
        run = {k: v for k, v in self.config.items() if k not in ("transformers_version", "_name_or_path")}
        text = json.dumps([weights_fingerprint(str(self.folder)), run], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def segments(self) -> bool:
        """Whether the second text of a pair is marked: our students never saw a mark, other BERTs were pretrained with it."""
        marked = self.shape.family in WITH_SEGMENTS and int(self.config.get("type_vocab_size") or 0) >= 2
        return marked and not (self.folder / OUR_CARD).is_file()

    def load(self, *, device: torch.device, dropout: float = 0.0) -> Subject:
        """The model in fp32 with every dropout at `dropout`.

        Raises:
            DataError: it cannot be read, or a weight of its body is missing.
        """
        from transformers.utils import logging

        attention.register()
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # the loading report is read below, not printed
        try:
            model, report = auto_model(self.shape.family).from_pretrained(
                self.folder, attn_implementation=attention.NAME, use_safetensors=True, trust_remote_code=False,
                local_files_only=True, output_loading_info=True, dtype=torch.float32,
                **dropout_settings(self.shape.family, dropout),
            )  # fmt: skip
        except Exception as error:  # any failure to read someone's files is the folder's, not ours
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"model {self.folder}", rule=f"its safetensors cannot be loaded ({first[:160]})", remedy="save it again"
            ) from None
        finally:
            logging.set_verbosity(verbosity)
        body = f"{family_of(model, self.shape).body_name}."
        missing = {str(k) for k in report["missing_keys"]} | {str(k) for k in report.get("mismatched_keys") or []}
        holes = sorted(key for key in missing if key.startswith(body))
        if holes:
            raise DataError(
                f"model {self.folder} lacks {len(holes)} weights, first {holes[0]}", rule="its body must be complete",
                remedy="give the folder of a trained model",
            )  # fmt: skip
        return Subject(model, device=device)


@dataclass(frozen=True)
class Untrained:
    """A student with the random weights of one seed."""

    base: PretrainedConfig
    seed: int

    @property
    def config(self) -> dict[str, Any]:
        return self.base.to_dict()

    @cached_property
    def shape(self) -> Shape:
        return shape_of(self.config)

    @cached_property
    def fingerprint(self) -> str:
        run = {k: v for k, v in self.config.items() if k != "transformers_version"}
        return hashlib.sha256(json.dumps([run, self.seed], sort_keys=True, default=str).encode()).hexdigest()[:16]

    segments = False

    def load(self, *, device: torch.device, dropout: float = 0.0) -> Subject:
        import copy

        config = copy.deepcopy(self.base)
        config.update(dropout_settings(self.shape.family, dropout))
        return Subject(build_student(config, seed=self.seed), device=device)
