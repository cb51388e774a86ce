"""Teachers: frozen, in eval mode, without gradients, cut after the deepest layer anyone needs.

Weights come from safetensors only, and none may be missing: a teacher with random parts would load
silently and decide a study. No code from a model folder is ever run.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import ConfigError, TeacherError
from harness.models.shapes import MASKED_FAMILIES, Shape, shape_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from harness.models.signals import Needs, Signals, TrainingBatch

# How a forward is computed: layer by layer; compiled; compiled and replayed as CUDA graphs; with fp8 products, compiled on a GPU.
Backend = Literal["plain", "compiled", "graphs", "fp8"]
ASSETS = Path(__file__).parent.parent / "assets"
BUILTIN = ASSETS / "teacher"
SHIPPED = {"builtin": BUILTIN, "builtin-causal": ASSETS / "causal_teacher"}


@dataclass(frozen=True)
class TeacherInfo:
    """What is known of a teacher before its weights are touched."""

    path: str
    shape: Shape
    provenance: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def training_flop(self) -> float | None:
        """What training it cost, as its own record says; None when nobody knows."""
        value = self.provenance.get("training_flop")
        return None if value is None else float(value)


def inspect(path: str) -> TeacherInfo:
    """Read a teacher's config and provenance; needs no weights.

    Raises:
        TeacherError: no such folder or Hub model, no readable config, a masked family turned causal, or an
            unsupported family.
    """
    folder = resolve(path)
    config = _config(folder, path)
    kind = str(config.get("model_type"))
    architectures = [str(a) for a in config.get("architectures") or []]
    turned = config.get("is_decoder") or any(a.endswith("CausalLM") for a in architectures)
    if kind in MASKED_FAMILIES and turned:
        raise TeacherError(
            f"teacher {path} is a causal {kind} model", rule="this family is read as a masked language model",
            remedy="choose a masked checkpoint of it, or a GPT-2 or Llama model",
        )  # fmt: skip
    try:
        shape = shape_of(config)
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise TeacherError(
            f"teacher {path}", rule=f"unusable config: {error}", remedy="choose a BERT-like, GPT-2 or Llama teacher"
        ) from None
    return TeacherInfo(path=path, shape=shape, config=config, provenance=_provenance(folder, path))


def _provenance(folder: Path, path: str) -> dict[str, Any]:
    """What an exported student's card says of its making; empty for models from elsewhere."""
    file = folder / "isobudget.json"
    if not file.is_file():
        return {}
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
        float(card.get("training_flop") or 0)
    except (OSError, ValueError, TypeError, AttributeError):
        raise TeacherError(
            f"teacher {path}", rule="its isobudget.json is unreadable", remedy="restore the file, or remove it"
        ) from None
    return card


def weights_fingerprint(path: str) -> str:
    """SHA-256 over a teacher's safetensors, in the order of their names (16 hex digits)."""
    digest = hashlib.sha256()
    for file in sorted(resolve(path).glob("*.safetensors")):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def on_hub(path: str) -> bool:
    """Whether the Hub gives this teacher; False for the shipped ones and for a folder."""
    return path not in SHIPPED and not Path(path).expanduser().is_dir()


def resolve(path: str) -> Path:
    """The local folder of a teacher: the shipped one, a folder, or a download of its safetensors from the Hub."""
    if path in SHIPPED:
        return SHIPPED[path]
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or path.startswith(".") or path.count("/") > 1:
        raise TeacherError(
            f"teacher {path}", rule="no such folder", remedy="give a folder in Hugging Face layout, or a Hub name"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors", "vocab.txt"]))
    except (OSError, HFValidationError, ValueError) as error:
        raise TeacherError(
            f"teacher {path}", rule=f"neither a local folder nor reachable on the Hub ({type(error).__name__})",
            remedy="give a local folder, or check the name and the network",
        ) from None  # fmt: skip


def _config(folder: Path, path: str) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise TeacherError(
            f"teacher {path}", rule="no readable config.json", remedy="give a folder in Hugging Face layout"
        ) from None
    if not isinstance(config, dict):
        raise TeacherError(f"teacher {path}", rule="config.json is no mapping", remedy="restore the file")
    if "auto_map" in config:
        raise TeacherError(
            f"teacher {path}", rule="its config wants to run remote code", remedy="choose a model transformers knows"
        )
    if config.get("model_type") is not None:
        from transformers import AutoConfig

        try:
            # Fills in what a terse config.json leaves to the family's defaults.
            return AutoConfig.for_model(**config).to_dict()
        except Exception as error:  # every family validates its config with errors of its own
            raise TeacherError(
                f"teacher {path}", rule=f"unusable config: {_first_line(error)}", remedy="restore config.json"
            ) from None
    return config


class Teacher:
    """A frozen model that answers `Needs`; half precision where the hardware computes it."""

    def __init__(self, info: TeacherInfo, *, device: torch.device, dtype: torch.dtype, dropout: float = 0.0) -> None:
        """Load all weights, or raise TeacherError naming the missing ones.

        A `dropout` above 0 leaves every dropout of the teacher on, as in the published code.
        """
        import torch
        from transformers.utils import logging

        from harness.models import attention
        from harness.models.configs import auto_model, dropout_settings
        from harness.models.families import family_of

        attention.register()
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # the loading report is read below, not printed
        try:
            model, report = auto_model(info.shape.family).from_pretrained(
                resolve(info.path),
                attn_implementation=attention.NAME,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                dtype=torch.float32,
                **dropout_settings(info.shape.family, dropout),
            )
        except Exception as error:  # any failure to read someone's files is the teacher's, not ours
            raise TeacherError(
                f"teacher {info.path}", rule=f"its safetensors cannot be loaded ({_first_line(error)})",
                remedy="give a complete folder in Hugging Face layout with safetensors weights",
            ) from None  # fmt: skip
        finally:
            logging.set_verbosity(verbosity)
        bad = sorted(report["missing_keys"]) + sorted(str(k) for k in report.get("mismatched_keys") or [])
        if bad:
            raise TeacherError(
                f"teacher {info.path} lacks {len(bad)} weights, first {bad[0]}", rule="a teacher must be complete",
                remedy="give the full language-model checkpoint, head included",
            )  # fmt: skip
        model.requires_grad_(False).train(dropout > 0)
        self.info = info
        self.dtype = dtype
        self.placement = "whole on every rank"
        self._walk: torch.nn.Module | None = None
        self.backend: Backend = "plain"
        self._compiled: dict[tuple[Backend, Needs], Callable[..., Signals]] = {}
        self._whole_layers = info.shape.layers
        self.family = family_of(model.to(device=device, dtype=dtype), info.shape)

    def cut(self, needs: Needs) -> None:
        """Free the layers and the head that no objective of this run will ask for."""
        import torch

        self._whole_layers = needs.full_layers(self.info.shape)
        deepest = needs.cut_layer(self.info.shape) or self._whole_layers
        layers = self.family.layers
        for index in range(deepest, len(layers)):
            layers[index] = torch.nn.Identity()
        if needs.logits == "none":
            for name, _ in list(self.family.model.named_children()):
                if name != self.family.body_name:
                    setattr(self.family.model, name, torch.nn.Identity())

    @property
    def weight_bytes(self) -> int:
        """What its remaining weights take, whole."""
        return sum(p.numel() * p.element_size() for p in self.family.model.parameters())

    def use(self, backend: Backend) -> None:
        """From now on compute this way; what is compiled is compiled at the first asking of each kind of question.

        `fp8` cannot be taken back: the layers' weights in higher precision are freed.

        Raises:
            TeacherError: fp8 for a model without a linear layer of fitting size.
        """
        from harness.models import fp8

        whole = self.family.layers[: self._whole_layers] if backend == "fp8" != self.backend else []
        if whole and not sum(fp8.convert(layer) for layer in whole):
            raise TeacherError(
                f"teacher {self.info.path} in fp8", rule="no linear layer of it has sizes that are multiples of 16",
                remedy="choose another speed.teacher_backend",
            )  # fmt: skip
        self.backend = backend

    def drop_others(self) -> None:
        """Free what was compiled or recorded for backends not in use, graphs' memory included.

        The compiler keeps what it made beside the code, not in the functions it returned: all of it goes, and what is
        still in use is compiled again when it is asked.
        """
        import torch

        if any(backend != self.backend for backend, _ in self._compiled):
            self._compiled.clear()
            torch.compiler.reset()

    def _forward(self, needs: Needs) -> Callable[..., Signals]:
        """The walk that answers these needs, compiled where that was asked for."""
        import torch

        from harness.models import fp8
        from harness.models.signals import run

        # Eight-bit products alone lose to the passes that round their inputs; compiled, those are one.
        compiles = self.backend != "plain" and (self.backend != "fp8" or fp8.compiles(self.family.model.device))
        if not compiles:
            return partial(run, self.family, needs)
        key = self.backend, needs
        if key not in self._compiled:
            family = self.family

            def walk(**inputs: torch.Tensor | None) -> Signals:
                return run(family, needs, **inputs)  # pyright: ignore[reportArgumentType]

            mode = "reduce-overhead" if self.backend == "graphs" else None
            self._compiled[key] = torch.compile(walk, dynamic=False, mode=mode)
        return self._compiled[key]

    def divide(self, partitioned: Callable[[torch.nn.Module], torch.nn.Module]) -> None:
        """Leave each rank a share of the weights; from now on ranks ask together. Cut first: nothing is cut later."""
        from harness.models.signals import Walk

        self._walk = partitioned(Walk(self.family))
        self._walk.train(self.family.model.training)
        self.placement = "divided"

    def __call__(self, batch: TrainingBatch, needs: Needs) -> Signals:
        """Signals without gradient history; nothing at all is computed when nothing is needed."""
        import torch

        from harness.models.signals import Signals

        if not needs:
            return Signals()
        # no_grad, not inference_mode: TinyBERT's projections save teacher states for their backward.
        with torch.no_grad():
            if self._walk is not None:
                return self._walk(batch, needs)
            if self.backend == "graphs":
                torch.compiler.cudagraph_mark_step_begin()
            found = self._forward(needs)(
                input_ids_BT=batch.input_ids_BT,
                positions_N=batch.positions_N,
                attention_mask_BT=batch.attention_mask_BT,
            )
            # A graph writes its next answer over this one.
            return found.clone() if self.backend == "graphs" else found


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
