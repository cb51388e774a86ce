"""Laws of soft_cross_entropy and masked_cross_entropy on the CPU, for the definition and for the fast eager path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.kernels.soft_cross_entropy import eager, head, op, reference

from . import formulas
from .problems import Watch, relative_error, value_and_gradients, worst_error

MODULES = {"reference": reference, "eager": eager}

# float64 against float64: what differs is the order of a few thousand additions.
EXACT = 1e-11


@dataclass(frozen=True)
class Case:
    """A head's problem: positions, vocabulary, hidden sizes, whether by logits, with bias, labels, temperature."""

    positions: int = 5
    vocabulary: int = 11
    hidden: int = 4
    teacher_hidden: int = 3
    by_logits: bool = False
    bias: bool = True
    labels: tuple[int, ...] | None = (3, -100, 0, 10, 3)
    temperature: float = 2.0

    def student(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """Hidden states, weight and (with `bias`) bias."""
        generator = torch.Generator().manual_seed(1)
        sizes = ((self.positions, self.hidden), (self.vocabulary, self.hidden), (self.vocabulary,))
        return [torch.randn(size, generator=generator).to(dtype) for size in sizes][: 3 if self.bias else 2]

    def teacher(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor | None]:
        """The teacher's keyword arguments."""
        generator = torch.Generator().manual_seed(2)
        sizes = ((self.positions, self.teacher_hidden), (self.vocabulary, self.teacher_hidden), (self.vocabulary,))
        hidden, weight, bias = (torch.randn(size, generator=generator).to(dtype) for size in sizes)
        if self.by_logits:
            return {"teacher_logits_NV": hidden @ weight.T + bias}
        return {"teacher_hidden_NG": hidden, "teacher_weight_VG": weight, "teacher_bias_V": bias}

    @property
    def labels_N(self) -> Tensor | None:
        """The labels as the losses take them."""
        return None if self.labels is None else torch.tensor(self.labels, dtype=torch.int64)

    def mixed(self, module, shares: tuple[float, float] = (0.3, 0.7), dtype=torch.float64, **options):
        """0.3·kl + 0.7·ce (or other `shares`) of `module` as a function of the student's tensors."""

        def loss(*student: Tensor) -> Tensor:
            kl, ce = module.soft_cross_entropy(
                *student, **self.teacher(dtype), labels_N=self.labels_N, temperature=self.temperature, **options
            )
            return shares[0] * kl + shares[1] * ce

        return loss

    def formula(self, *student: Tensor) -> tuple[Tensor, Tensor]:
        """(kl_sum, ce_sum) from the paper's formula."""
        logits = student[0] @ student[1].T + (student[2] if self.bias else 0)
        targets = Case(**{**vars(self), "by_logits": True}).teacher()["teacher_logits_NV"]
        assert targets is not None
        return formulas.soft_cross_entropy(
            logits, targets, None if self.labels is None else list(self.labels), self.temperature
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    positions, vocabulary = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    label = st.integers(0, vocabulary - 1) | st.just(-100)
    labels = tuple(draw(label) for _ in range(positions)) if draw(st.booleans()) else None
    sizes = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    temperature = draw(st.sampled_from([1.0, 0.5, 2.0, 3.7]))
    return Case(positions, vocabulary, *sizes, draw(st.booleans()), draw(st.booleans()), labels, temperature)


@pytest.mark.parametrize("kind", MODULES)
@settings(max_examples=40, deadline=None)
@given(case=cases(), chunk=st.sampled_from([None, 1, 2, 100]))
def test_both_losses_and_their_gradients_are_the_papers_formula(kind: str, case: Case, chunk: int | None) -> None:
    for weights in ((1.0, 0.0), (0.0, 1.0), (0.3, 0.7)):
        expected = value_and_gradients(
            lambda *x, w=weights: w[0] * case.formula(*x)[0] + w[1] * case.formula(*x)[1] + 0 * sum(y.sum() for y in x),
            case.student(), len(case.student()),
        )  # fmt: skip
        actual = value_and_gradients(
            case.mixed(MODULES[kind], weights, chunk=chunk), case.student(), len(case.student())
        )
        assert max(worst_error(actual, expected)) < EXACT


@pytest.mark.parametrize("kind", MODULES)
def test_masked_cross_entropy_is_the_hard_half(kind: str) -> None:
    case = Case(by_logits=True)
    student = case.student()
    expected = value_and_gradients(lambda *x: case.formula(*x)[1], student, 3)
    actual = value_and_gradients(lambda *x: MODULES[kind].masked_cross_entropy(*x, case.labels_N, chunk=2), student, 3)
    assert max(worst_error(actual, expected)) < EXACT
    torch_says = torch.nn.functional.cross_entropy(
        student[0] @ student[1].T + student[2], case.labels_N, reduction="sum"
    )
    assert relative_error(actual[0], torch_says) < EXACT


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_student_equal_to_its_teacher_loses_nothing_and_is_pulled_nowhere(kind: str, temperature: float) -> None:
    hidden, weight, bias = Case(positions=7, vocabulary=50, labels=None).student(torch.float32)
    teacher = {"teacher_hidden_NG": hidden, "teacher_weight_VG": weight, "teacher_bias_V": bias}
    value, gradients = value_and_gradients(
        lambda *x: MODULES[kind].soft_cross_entropy(*x, **teacher, temperature=temperature)[0],
        [hidden, weight, bias],
        3,
    )
    # Zero but for roundings of probabilities: 3·T² · 7 positions · 2^-23 of a number of order one.
    assert abs(float(value)) < 1e-5
    assert all(float(g.abs().max()) < 1e-5 for g in gradients)


def test_declared_weights_give_the_same_gradient_of_every_multiple() -> None:
    case = Case()
    expected = value_and_gradients(case.mixed(reference, (0.2, 0.5)), case.student(), 3)
    for scale in (1.0, 1e-6, -40.0):
        declared = (0.2 * scale, 0.5 * scale)
        actual = value_and_gradients(case.mixed(eager, (0.2, 0.5), weights=declared), case.student(), 3)
        assert max(worst_error(actual, expected)) < EXACT


@pytest.mark.parametrize("asked", [(1.0, 0.0), (0.0, 1.0), (0.5, 0.2), (0.2, -0.5), (0.2, 0.6)])
def test_a_broken_declaration_gives_nan_never_a_wrong_gradient(asked: tuple[float, float]) -> None:
    case = Case()
    value, gradients = value_and_gradients(case.mixed(eager, asked, weights=(0.2, 0.5)), case.student(), 3)
    assert torch.isfinite(value)
    assert all(g.isnan().all() for g in gradients)


def test_a_declaration_of_nothing_is_refused() -> None:
    case = Case()
    for weights in ((0.0, 0.0), (float("inf"), 1.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="must not be zero"):
            case.mixed(eager, weights=weights)(*case.student())


def test_without_labels_the_hard_loss_is_zero() -> None:
    case = Case(labels=None)
    for module in MODULES.values():
        kl, ce = module.soft_cross_entropy(*case.student(), **case.teacher(), temperature=2.0)
        assert float(ce) == 0 < float(kl)


def test_the_temperature_keeps_the_size_of_the_gradient() -> None:
    """Hinton's reason for T²: at high temperature the logits' derivative is (z_S − z_T)/V, whatever the temperature."""
    case = Case(labels=None, by_logits=True, bias=False, vocabulary=7)
    hidden, weight = case.student()
    weight = weight - weight.mean(0)
    teacher = torch.zeros(5, 7, dtype=torch.float64)
    expected = (hidden @ weight.T / 7) @ weight
    for temperature in (1e3, 1e4):
        _, (gradient,) = value_and_gradients(
            lambda h, t=temperature: eager.soft_cross_entropy(h, weight, teacher_logits_NV=teacher, temperature=t)[0],
            [hidden], 1,
        )  # fmt: skip
        assert relative_error(gradient / 3, expected) < 10 / temperature


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_are_accumulated_in_float32(kind: str, dtype: torch.dtype) -> None:
    case = Case(positions=9, vocabulary=300, hidden=24, teacher_hidden=16, labels=(5, 299, -100, 0, 7, 7, 8, 1, 2))
    student = [x / 3 for x in case.student(dtype)]
    teacher = {name: x if x is None else x.to(dtype) for name, x in case.teacher().items()}

    def loss(*x: Tensor) -> Tensor:
        cast = {name: t if t is None else t.to(x[0].dtype) for name, t in teacher.items()}
        return sum(MODULES[kind].soft_cross_entropy(*x, **cast, labels_N=case.labels_N, temperature=2.0))

    value, gradients = value_and_gradients(loss, student, 3)
    exact = value_and_gradients(loss, [x.double() for x in student], 3)
    assert value.dtype == torch.float32
    assert [g.dtype for g in gradients] == [dtype] * 3
    # Where the CPU has half-precision products, the eager logits and slopes are rounded to `dtype`; else float32's.
    native = kind == "eager" and head.product_dtype(*student[:2]) == dtype
    unit = 2**-11 if dtype == torch.float16 else 2**-8
    error, worst = worst_error((value, gradients), exact)
    assert error < (4 * unit if native else 4e-6)
    assert worst < (8 * unit if native else unit)


def test_autocast_decides_the_products_where_the_cpu_has_them_and_never_the_sums() -> None:
    case = Case(positions=6, vocabulary=100, hidden=16, labels=(1, 2, 3, 4, 5, 6))
    loss = case.mixed(eager, dtype=torch.float32)
    student = case.student(torch.float32)
    expected = value_and_gradients(loss, student, 3)

    def under_autocast(*x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            assert head.product_dtype(*x[:2]) in (torch.bfloat16, torch.float32)
            return loss(*x)

    value, gradients = value_and_gradients(under_autocast, student, 3)
    assert [value.dtype, *(g.dtype for g in gradients)] == [torch.float32] * 4
    assert max(worst_error((value, gradients), expected)) < 8 * 2**-8


@pytest.mark.parametrize("declared", [None, (0.3, 0.7)])
def test_eager_never_holds_the_logits_of_all_positions(declared: tuple[float, float] | None) -> None:
    positions, vocabulary, chunk = 64, 500, 8
    case = Case(positions, vocabulary, 4, 4, labels=tuple(range(positions)))
    with Watch() as watch:
        value_and_gradients(case.mixed(eager, weights=declared, chunk=chunk), case.student(), 3)
    assert watch.largest == chunk * vocabulary < positions * vocabulary


def test_no_gradient_is_formed_where_none_can_be_asked_for_and_declared_weights_form_one() -> None:
    case = Case()
    student = [x.requires_grad_() for x in case.student()]
    for options, products in (({}, 2 + 4), ({"weights": (0.3, 0.7)}, 2 + 2)):
        with Watch() as watch:
            loud = case.mixed(eager, **options)(*student)
        assert watch.products == products, "two models' logits, and two products per accumulated gradient"
        with Watch() as watch, torch.no_grad():
            quiet = case.mixed(eager, **options)(*student)
        assert watch.products == 2
        assert torch.equal(quiet, loud.detach())


def test_the_op_gives_the_definitions_losses_by_every_backend() -> None:
    case = Case()
    expected = value_and_gradients(case.mixed(reference), case.student(), 3)
    hard = reference.masked_cross_entropy(*case.student(), case.labels_N)
    for backend in ("auto", "eager", "reference"):
        for weights in (None, (0.3, 0.7)):
            loss = case.mixed(op, backend=backend, weights=weights)
            assert max(worst_error(value_and_gradients(loss, case.student(), 3), expected)) < EXACT
        assert relative_error(op.masked_cross_entropy(*case.student(), case.labels_N, backend=backend), hard) < EXACT
    assert str(op.chosen(*case.student()[:2])) == "eager (the tensors are on cpu)"
    with pytest.raises(ValueError, match="kernels 'triton': the tensors are on cpu"):
        case.mixed(op, backend="triton")(*case.student())


def test_an_empty_batch_costs_nothing_and_has_a_gradient() -> None:
    case = Case(positions=0, labels=())
    for module in MODULES.values():
        value, gradients = value_and_gradients(case.mixed(module), case.student(), 3)
        assert float(value) == 0
        assert not gradients[1].any()


def test_impossible_heads_and_teachers_are_refused_with_the_value_and_the_rule() -> None:
    case = Case()
    hidden, weight, bias = case.student()
    logits = Case(by_logits=True).teacher()
    for module in (*MODULES.values(), op):
        for arguments, options, message in (
            ((hidden, weight[:, :3], bias), logits, "of one size are needed"),
            ((hidden, weight, bias[:4]), logits, "one number per vocabulary entry, 11"),
            ((hidden, weight, bias), {}, "the teacher must be given once"),
            ((hidden, weight, bias), {**logits, **case.teacher()}, "the teacher must be given once"),
            ((hidden, weight, bias), {"teacher_hidden_NG": hidden}, "the teacher must be given once"),
            ((hidden[:3], weight, bias), logits, "the student has"),
            ((hidden, weight, bias), {**logits, "temperature": 0.0}, "temperature 0.0"),
            ((hidden, weight, bias), {**logits, "labels_N": torch.tensor([1, 2])}, "one int64 per position"),
            ((hidden, weight, bias), {**logits, "chunk": 0}, "chunk 0"),
        ):
            with pytest.raises(ValueError, match=message):
                module.soft_cross_entropy(*arguments, **options)


# -- a teacher of which only the largest logits are known ------------------------------------------------
def top_of(logits_NV: Tensor, kept: int, temperature: float) -> reference.Top:
    """The largest logits of every position, and what the others weigh at this temperature."""
    values, ids = logits_NV.topk(kept, dim=-1)
    others = logits_NV.scatter(1, ids, -torch.inf)
    return reference.Top(ids, values, (others / temperature).logsumexp(-1))


@pytest.mark.parametrize("kind", MODULES)
@settings(max_examples=40, deadline=None)
@given(case=cases(), kept=st.integers(1, 12), chunk=st.sampled_from([None, 1, 2]))
def test_top_logits_give_the_divergence_of_the_top_and_the_rest_and_its_gradient(
    kind: str, case: Case, kept: int, chunk: int | None
) -> None:
    case = Case(**{**vars(case), "by_logits": True})
    kept, temperature = min(kept, case.vocabulary), case.temperature
    logits = case.teacher()["teacher_logits_NV"]
    top = top_of(logits, kept, temperature)

    def definition(*student: Tensor) -> Tensor:
        """Written over the two distributions of kept + 1 outcomes, rest mass by subtraction."""
        z = student[0] @ student[1].T + (student[2] if case.bias else 0)
        p, q = ((x / temperature).softmax(-1) for x in (logits, z))
        p_top, q_top = p.gather(1, top.ids_NK), q.gather(1, top.ids_NK)
        loss = (p_top * (p_top / q_top).log()).sum()
        if kept < case.vocabulary:
            p_rest, q_rest = ((x.sum(-1) - y.sum(-1)) for x, y in ((p, p_top), (q, q_top)))
            loss = loss + (p_rest * (p_rest / q_rest).log()).sum()
        return temperature**2 * loss

    def actual(*student: Tensor) -> Tensor:
        return MODULES[kind].soft_cross_entropy(*student, teacher_top=top, temperature=temperature, chunk=chunk)[0]

    tensors = case.student()
    expected = value_and_gradients(definition, tensors, len(tensors))
    # The rest by subtraction loses digits where it is small: r ≥ 1e-6 here, so 1e-16 / 1e-6 of the value.
    assert max(worst_error(value_and_gradients(actual, tensors, len(tensors)), expected)) < 1e-9


@pytest.mark.parametrize("kind", MODULES)
@settings(max_examples=30, deadline=None)
@given(case=cases())
def test_all_logits_kept_are_the_whole_divergence(kind: str, case: Case) -> None:
    case = Case(**{**vars(case), "by_logits": True})
    top = top_of(case.teacher()["teacher_logits_NV"], case.vocabulary, case.temperature)
    assert (top.rest_N == -torch.inf).all()
    losses = [case.mixed(MODULES[kind])]
    losses.append(
        lambda *x: torch.stack(
            MODULES[kind].soft_cross_entropy(
                *x, teacher_top=top, labels_N=case.labels_N, temperature=case.temperature
            )
        ) @ torch.tensor([0.3, 0.7], dtype=torch.float64)
    )  # fmt: skip
    size = len(case.student())
    whole, kept = (value_and_gradients(loss, case.student(), size) for loss in losses)
    assert max(worst_error(kept, whole)) < EXACT


@settings(max_examples=40, deadline=None)
@given(case=cases(), kept=st.integers(1, 12))
def test_what_top_logits_leave_out_is_the_divergence_within_the_rest(case: Case, kept: int) -> None:
    """The chain rule of KL: whole = top and rest + T²·r·KL(within the rest), so truncation only ever lowers the loss."""
    case = Case(**{**vars(case), "by_logits": True})
    kept, temperature = min(kept, case.vocabulary), case.temperature
    student, logits = case.student(), case.teacher()["teacher_logits_NV"]
    top = top_of(logits, kept, temperature)
    whole = eager.soft_cross_entropy(*student, teacher_logits_NV=logits, temperature=temperature)[0]
    part = eager.soft_cross_entropy(*student, teacher_top=top, temperature=temperature)[0]
    z = student[0] @ student[1].T + (student[2] if case.bias else 0)
    p, q = ((x / temperature).softmax(-1).scatter(1, top.ids_NK, 0.0) for x in (logits, z))
    inside = torch.zeros((), dtype=torch.float64)
    if kept < case.vocabulary:
        mass = p.sum(-1, keepdim=True)
        inside = (p * ((p / mass) / (q / q.sum(-1, keepdim=True))).log().nan_to_num(0.0, 0.0, 0.0)).sum()
    assert float(whole - part) == pytest.approx(float(temperature**2 * inside), abs=1e-9)
    assert float(part) <= float(whole) + 1e-9


@pytest.mark.parametrize("kind", MODULES)
def test_a_constant_taken_off_the_top_logits_changes_nothing(kind: str) -> None:
    case = Case(by_logits=True)
    top = top_of(case.teacher()["teacher_logits_NV"], 4, case.temperature)
    peak = top.logits_NK.amax(1)
    moved = reference.Top(top.ids_NK, top.logits_NK - peak[:, None], top.rest_N - peak / case.temperature)
    losses = [
        MODULES[kind].soft_cross_entropy(*case.student(), teacher_top=each, temperature=case.temperature)[0]
        for each in (top, moved)
    ]
    assert relative_error(losses[1], losses[0]) < EXACT


def test_impossible_top_logits_are_refused() -> None:
    case = Case()
    logits = Case(by_logits=True).teacher()["teacher_logits_NV"]
    top = top_of(logits, 4, 2.0)
    for bad, message in (
        (reference.Top(top.ids_NK[:3], *top[1:]), "ids and logits \\(5, K\\)"),
        (reference.Top(top.ids_NK, top.logits_NK, top.rest_N[:2]), "rest \\(5,\\) are needed"),
        (reference.Top(top.ids_NK[:, :0], top.logits_NK[:, :0], top.rest_N), "0 top logits of a vocabulary of 11"),
    ):
        for module in (*MODULES.values(), op):
            with pytest.raises(ValueError, match=message):
                module.soft_cross_entropy(*case.student(), teacher_top=bad)
            with pytest.raises(ValueError, match="given once"):
                module.soft_cross_entropy(*case.student(), teacher_logits_NV=logits, teacher_top=bad)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("label", [9, -1])
def test_a_label_that_is_no_entry_is_refused(kind: str, label: int) -> None:
    hidden, weight, labels = torch.ones(2, 4), torch.ones(9, 4), torch.tensor([1, label])
    teacher = torch.ones(2, 9)
    with pytest.raises((IndexError, RuntimeError)):
        MODULES[kind].masked_cross_entropy(hidden, weight, None, labels)
    with pytest.raises((IndexError, RuntimeError)):
        MODULES[kind].soft_cross_entropy(hidden, weight, teacher_logits_NV=teacher, labels_N=labels, temperature=2.0)


def test_the_readme_says_how_large_a_chunk_is(root: Path) -> None:
    """And which problem is one chunk, whose whole (N, V) then exists."""
    text = " ".join((root / "kernels" / "soft_cross_entropy" / "README.md").read_text(encoding="utf-8").split())
    sizes = head.CHUNK_LOGITS
    assert f"{sizes['cuda']:,} logits on a GPU, {sizes['cpu']:,} (3 MiB in float32) on a CPU" in text
    assert 4 * sizes["cpu"] == 3 << 20
    problem = head.Problem(None, None, 1.0, None, [], eager.chunk_losses)
    assert problem.rows(160, 4096, torch.device("cpu")) == [slice(0, 160)], "the quickstart's"
    assert len(problem.rows(320, 4096, torch.device("cpu"))) == 2
