"""Every objective once more, from its paper's formula: float64, loops over sequences, heads and layers.

Nothing here is shared with `harness.objectives` or with the kernels. Pads are left out by slicing each
sequence to its real length, so no mask can be forgotten; of causal models each row is sliced to its past. Shapes: B sequences, A heads, T tokens, d head
size, H hidden, N head rows, E embedding width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from harness.models.signals import Head, Signals
from harness.objectives.base import Objective

Reference = Callable[[Objective, Signals, Signals, Any], Tensor]


def real_lengths(batch: Any) -> list[int]:
    count, length = batch.input_ids_BT.shape
    mask = batch.attention_mask_BT
    return [length] * count if mask is None else [int(n) for n in mask.sum(1)]


def logits(head: Head) -> Tensor:
    product = torch.einsum("ne,ve->nv", head.hidden_NE, head.weight_VE)
    return product if head.bias_V is None else product + head.bias_V


def log_softmax(scores: Tensor) -> Tensor:
    shifted = scores - scores.max(dim=-1, keepdim=True).values.detach()
    return shifted - shifted.exp().sum(-1, keepdim=True).log()


def pasts(scores: Tensor, causal: bool) -> list[Tensor]:
    """A token's scores with the tokens it may be compared with, row by row."""
    return [scores[t, : t + 1] if causal else scores[t] for t in range(len(scores))]


def attended_kl(teacher_scores: Tensor, student_scores: Tensor, *, causal: bool) -> Tensor:
    """Σ over queries of KL(softmax(teacher) ‖ softmax(student)), each over the keys it sees."""
    rows = zip(pasts(teacher_scores, causal), pasts(student_scores, causal), strict=True)
    return torch.stack([kl(p[None], q[None]) for p, q in rows]).sum()


def of_head(shared: Tensor, b: int, a: int, heads: int, n: int) -> Tensor:
    """Key or value rows (n, d) of attention head `a`, where consecutive heads may share one."""
    return shared[b, a // (heads // shared.shape[1]), :n]


def kl(teacher_scores: Tensor, student_scores: Tensor) -> Tensor:
    """Σ over rows of KL(softmax(teacher) ‖ softmax(student))."""
    log_p, log_q = log_softmax(teacher_scores), log_softmax(student_scores)
    return (log_p.exp() * (log_p - log_q)).sum()


def rows_of_masked(batch: Any) -> list[int]:
    """Index of each masked position among all real tokens, counted one by one."""
    lengths, width = real_lengths(batch), batch.input_ids_BT.shape[1]
    rows = []
    for flat in batch.positions_N.tolist():
        sequence, place = divmod(flat, width)
        rows.append(sum(lengths[:sequence]) + place)
    return rows


def cross_entropy(logits_NV: Tensor, labels: list[int]) -> Tensor:
    picked = [row.exp().sum().log() - row[label] for row, label in zip(logits_NV, labels, strict=True)]
    return torch.stack(picked).sum()


def mlm(objective: Objective, student: Signals, teacher: Signals, batch: Any) -> Tensor:
    assert student.head is not None
    return cross_entropy(logits(student.head), batch.labels_N.tolist()) / batch.masked_count


def soft_and_hard(student: Head, teacher: Head, batch: Any, temperature: float) -> tuple[Tensor, Tensor]:
    mine, theirs = logits(student), logits(teacher)
    tokens = student.positions == "tokens"
    soft = temperature**2 * kl(theirs / temperature, mine / temperature)
    soft = soft / (batch.token_count if tokens else batch.masked_count)
    masked = mine[rows_of_masked(batch)] if tokens else mine
    return soft, cross_entropy(masked, batch.labels_N.tolist()) / batch.masked_count


def soft_targets(objective: Objective, student: Signals, teacher: Signals, batch: Any) -> Tensor:
    assert student.head is not None
    assert teacher.head is not None
    options: Any = objective.options
    soft, hard = soft_and_hard(student.head, teacher.head, batch, options.temperature)
    if options.vocabulary == "mean":
        soft = soft / student.head.weight_VE.shape[0]
    return options.alpha * soft + (1 - options.alpha) * hard


def distilbert(objective: Objective, student: Signals, teacher: Signals, batch: Any) -> Tensor:
    options: Any = objective.options
    loss = torch.zeros((), dtype=torch.float64)
    if options.soft:
        assert student.head is not None
        assert teacher.head is not None
        soft, hard = soft_and_hard(student.head, teacher.head, batch, options.temperature)
        loss = loss + options.soft * soft + options.mlm * hard
    elif options.mlm:
        loss = loss + options.mlm * mlm(objective, student, teacher, batch)
    if options.cosine:
        mine, theirs = (s.states[max(s.states)] for s in (student, teacher))
        for b, n in enumerate(real_lengths(batch)):
            for t in range(n):
                a, c = mine[b, t], theirs[b, t]
                cosine = (a @ c) / (a.square().sum().sqrt() * c.square().sum().sqrt())
                loss = loss + options.cosine * (1 - cosine) / batch.token_count
    return loss


def scores(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("td,sd->ts", q, k) / math.sqrt(q.shape[-1])


def tinybert(objective: Objective, student: Signals, teacher: Signals, batch: Any) -> Tensor:
    options: Any = objective.options
    lengths, (count, width) = real_lengths(batch), batch.input_ids_BT.shape
    deep, shallow = objective.teacher_shape.layers, objective.student_shape.layers
    pairs = options.layers or {i: i * (deep // shallow) for i in range(1, shallow + 1)}

    def score_error(mine: int, theirs: int, extent: list[int]) -> Tensor:
        (q_s, k_s, _), (q_t, k_t, _) = student.qkv[mine], teacher.qkv[theirs]
        total, elements = torch.zeros((), dtype=torch.float64), 0
        for b, n in enumerate(extent):
            a_s, a_t = (
                torch.stack([scores(q[b, a, :n], of_head(k, b, a, q.shape[1], n)) for a in range(q.shape[1])])
                for q, k in ((q_s, k_s), (q_t, k_t))
            )
            if options.scores == "head_average":
                a_s, a_t = a_s.mean(0, keepdim=True), a_t.mean(0, keepdim=True)
            for head in a_s - a_t:
                for row in pasts(head, objective.student_shape.causal):
                    total = total + row.square().sum()
                    elements += row.numel()
        return total / elements

    compared = pairs if options.score_layers == "every" else {max(pairs): pairs[max(pairs)]}
    loss = sum((score_error(i, j, lengths) for i, j in compared.items()), torch.zeros((), dtype=torch.float64))
    if options.embedding == "layer0_scores":
        loss = loss + score_error(1, 1, [width] * count)
    below = options.state_index == "one_below"
    states = {i: j - below for i, j in pairs.items()}
    if options.states == "last_unprojected":
        states = {max(states): states[max(states)]}
    elif options.embedding == "states":
        states = {0: 0, **states}
    for i, j in states.items():
        total = torch.zeros((), dtype=torch.float64)
        for b, n in enumerate(lengths):
            mine = student.states[i][b, :n]
            if options.states == "every":
                layer: Any = objective.projections["shared" if options.projection == "shared" else str(i)]  # type: ignore[index]
                mine = torch.einsum("th,gh->tg", mine, layer.weight) + layer.bias
            total = total + (mine - teacher.states[j][b, :n]).square().sum()
        loss = loss + total / (sum(lengths) * objective.teacher_shape.hidden)
    return loss


def minilm(objective: Objective, student: Signals, teacher: Signals, batch: Any) -> Tensor:
    (q_s, k_s, v_s), (q_t, k_t, v_t) = (s.qkv[max(s.qkv)] for s in (student, teacher))
    total, lengths = torch.zeros((), dtype=torch.float64), real_lengths(batch)
    heads = q_s.shape[1]
    for b, n in enumerate(lengths):
        for a in range(heads):
            keys_s, keys_t, values_s, values_t = (of_head(x, b, a, heads, n) for x in (k_s, k_t, v_s, v_t))
            causal = objective.student_shape.causal
            attention = attended_kl(scores(q_t[b, a, :n], keys_t), scores(q_s[b, a, :n], keys_s), causal=causal)
            values = attended_kl(scores(values_t, values_t), scores(values_s, values_s), causal=causal)
            total = total + (attention + values) / (heads * n)
    return total / batch.sequence_count


def minilmv2(objective: Objective, student: Signals, teacher: Signals, batch: Any) -> Tensor:
    options: Any = objective.options
    relation_heads, width = options.relation_heads, batch.input_ids_BT.shape[1]
    lengths = real_lengths(batch) if options.pads == "excluded" else [width] * len(batch.input_ids_BT)
    here = options.student_layer or objective.student_shape.layers
    there = options.teacher_layer or objective.teacher_shape.layers
    total = torch.zeros((), dtype=torch.float64)

    def heads_of(tensor: Tensor, b: int, n: int) -> list[Tensor]:
        if options.split == "heads_first":
            # What reshaping (A, T, d) memory to (R, T, d_r) makes of it, without restoring the order of tokens.
            return [part.reshape(width, -1)[:n] for part in tensor[b].reshape(-1).chunk(relation_heads)]
        joined = torch.cat([tensor[b, a, :n] for a in range(tensor.shape[1])], dim=-1)
        return list(joined.chunk(relation_heads, dim=-1))

    for place, weight in enumerate((options.query, options.key, options.value)):
        if not weight:
            continue
        mine, theirs = (
            signals.qkv[layer][place] if layer in signals.qkv else signals.parts[layer, "qkv"[place]]
            for signals, layer in ((student, here), (teacher, there))
        )
        for b, n in enumerate(lengths):
            for r_s, r_t in zip(heads_of(mine, b, n), heads_of(theirs, b, n), strict=True):
                relation = attended_kl(scores(r_t, r_t), scores(r_s, r_s), causal=objective.student_shape.causal)
                total = total + weight * relation / (relation_heads * n)
    return total / batch.sequence_count


def hidden(objective: Objective, student: Signals, teacher: Signals, batch: Any) -> Tensor:
    options: Any = objective.options
    deep, shallow = objective.teacher_shape.layers, objective.student_shape.layers
    pairs = options.layers or {i: i * (deep // shallow) for i in range(1, shallow + 1)}
    total, lengths = torch.zeros((), dtype=torch.float64), real_lengths(batch)
    for i, j in pairs.items():
        for b, n in enumerate(lengths):
            mine = student.states[i][b, :n]
            if options.project:
                layer: Any = objective.projections[str(i)]  # type: ignore[index]
                mine = torch.einsum("th,gh->tg", mine, layer.weight) + layer.bias
            total = total + (mine - teacher.states[j][b, :n]).square().sum()
    return total / (sum(lengths) * objective.teacher_shape.hidden)


def pkd(objective: Objective, student: Signals, teacher: Signals, batch: Any) -> Tensor:
    options: Any = objective.options
    deep, shallow = objective.teacher_shape.layers, objective.student_shape.layers
    total, lengths = torch.zeros((), dtype=torch.float64), real_lengths(batch)
    for i in range(1, shallow):
        j = i * (deep // shallow) if options.layers == "skip" else deep - shallow + i
        for b in range(len(batch.input_ids_BT)):
            at = lengths[b] - 1 if objective.student_shape.causal else 0
            a, c = student.states[i][b, at], teacher.states[j][b, at]
            total = total + (a / a.square().sum().sqrt() - c / c.square().sum().sqrt()).square().sum()
    return total / batch.sequence_count


REFERENCES: dict[str, Reference] = {
    "mlm": mlm, "clm": mlm, "soft_targets": soft_targets, "distilbert": distilbert, "tinybert": tinybert, "minilm": minilm,
    "minilmv2": minilmv2, "hidden": hidden, "pkd": pkd,
}  # fmt: skip
