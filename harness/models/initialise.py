"""Students that start from a teacher's layers instead of random weights (DistilBERT's initialisation).

Copying costs no FLOPs, but it is the teacher's training that is inherited: such an arm owes for it as
any arm with a teacher does.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.errors import ConfigError
from harness.models.shapes import Shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

EVERY_KTH = "every_kth"
# What a layer computes with its weights, in the words of any family's config: weights are copied for it alone.
FUNCTION = (
    "hidden_act", "hidden_activation", "activation", "activation_function", "layer_norm_eps", "layer_norm_epsilon",
    "rms_norm_eps", "norm_eps", "rope_parameters", "local_attention", "attention_bias", "mlp_bias", "norm_bias",
    "decoder_bias", "classifier_bias", "classifier_activation", "type_vocab_size", "sinusoidal_pos_embds",
)  # fmt: skip


def adopt(config: PretrainedConfig, teacher: Mapping[str, Any]) -> None:
    """Give a student's config its teacher's activations, epsilons, rotary bases and biases.

    Of one family only; sizes and dropout stay the study's.
    """
    for key in FUNCTION:
        if key in teacher and hasattr(config, key):
            setattr(config, key, copy.deepcopy(teacher[key]))


def chosen_layers(wanted: Sequence[int] | str | None, student: Shape, teacher: Shape | None) -> list[int]:
    """The teacher layer that each student layer starts from; empty for random weights.

    Raises:
        ConfigError: no teacher, shapes whose weights do not fit each other, or layers that do not exist.
    """
    if wanted is None:
        return []
    where = f"student.init_from_teacher = {wanted}"
    if teacher is None:
        raise ConfigError(
            where, rule="the study has no teacher", remedy="add a teacher block, or start from random weights"
        )
    for size in ("family", "hidden", "heads", "kv_heads", "intermediate", "embedding", "vocab"):
        mine, theirs = getattr(student, size), getattr(teacher, size)
        if mine != theirs:
            raise ConfigError(
                f"{where}: {size} {mine} of the student and {theirs} of the teacher",
                rule="weights are copied as they are",
                remedy="choose equal shapes, or start from random weights",
            )
    if student.max_length > teacher.max_length:
        raise ConfigError(
            f"{where}: {student.max_length} positions of the student and {teacher.max_length} of the teacher",
            rule="every position embedding is copied", remedy="lower data.block_length, or start from random weights",
        )  # fmt: skip
    if isinstance(wanted, str):
        if teacher.layers % student.layers:
            raise ConfigError(
                f"{where}: {teacher.layers} teacher layers over {student.layers} student layers",
                rule="every k-th layer needs depths that divide", remedy="list one teacher layer per student layer",
            )  # fmt: skip
        stride = teacher.layers // student.layers
        wanted = [i * stride for i in range(1, student.layers + 1)]
    layers = list(wanted)
    if len(layers) != student.layers or not all(1 <= n <= teacher.layers for n in layers):
        raise ConfigError(
            where, rule=f"one teacher layer of 1 to {teacher.layers} for each of {student.layers} student layers",
            remedy="list that many layers",
        )  # fmt: skip
    for number, source in enumerate(layers, start=1):
        kinds_differ = student.window(number) != teacher.window(source)
        if student.family == "modernbert" and (kinds_differ or (number == 1) != (source == 1)):
            raise ConfigError(
                f"{where}: student layer {number} from teacher layer {source}",
                rule="ModernBERT's first, local and global layers are not interchangeable",
                remedy="map first to first, local to local, global to global",
            )
    return layers


def copy_layers(
    student: PreTrainedModel,
    student_shape: Shape,
    teacher: PreTrainedModel,
    teacher_shape: Shape,
    layers: Sequence[int],
) -> None:
    """Overwrite all of a student's weights: layer i with the teacher's `layers[i − 1]`, the rest with their namesakes.

    Raises:
        ConfigError: the teacher's output matrix is its own, where the student's is its input embeddings.
    """
    import torch

    from harness.models.families import family_of

    mine, theirs = family_of(student, student_shape), family_of(teacher, teacher_shape)
    prefix = next(name for name, module in student.named_modules() if module is mine.layers) + "."
    source = teacher.state_dict()
    if student.config.tie_word_embeddings and not teacher.config.tie_word_embeddings:
        raise ConfigError(
            "student.init_from_teacher: the teacher's head and embeddings are two matrices",
            rule="the student has one for both", remedy="start from random weights, or choose a teacher that ties them",
        )  # fmt: skip
    with torch.no_grad():
        for target, number in zip(mine.layers, layers, strict=True):
            target.load_state_dict(theirs.layers[number - 1].state_dict())
        for name, tensor in student.state_dict().items():
            if not name.startswith(prefix):
                # A teacher that reads longer texts has more position embeddings; the first ones are meant.
                tensor.copy_(source[name][: len(tensor)] if tensor.ndim else source[name])
