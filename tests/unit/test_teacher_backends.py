"""A teacher computed in another way is the same teacher, or is not used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness import cli, lookahead, teacher_backends
from harness.data.batch import Batch
from harness.errors import ConfigError, TeacherError
from harness.models import fp8
from harness.models.signals import Needs, Signals
from harness.models.teacher import Teacher, inspect
from harness.ranks import Ranks
from harness.study import validate
from harness.teacher_backends import FILE, FP8_DISTANCE, FP8_DIVERGENCE, Tried, distances, facts, settle
from harness.trainee import tiny_batch
from tests.support.tiny import TinyStudy

from . import model_zoo as zoo

CPU = torch.device("cpu")
EVERYTHING = Needs(logits="masked", states=frozenset({0, 2}), qkv=frozenset({2}))


def load(path: str | Path) -> Teacher:
    return Teacher(inspect(str(path)), device=CPU, dtype=torch.float32)


def settled(teacher: Teacher, wanted: str, folder: Path, **changes: Any) -> None:
    batch = tiny_batch(teacher.info.shape.vocab)
    settle(
        teacher, wanted, first=lambda: batch, needs=[EVERYTHING], folder=folder, ranks=Ranks(), device=CPU, **changes
    )  # fmt: skip


# -- eight bits ----------------------------------------------------------------------------------------
def test_a_linear_layer_in_eight_bits_is_as_close_as_eight_bits_are() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 48)
    x = torch.randn(3, 5, 64) * torch.logspace(-4, 4, 5)[:, None]  # every token has a scale of its own
    x[0, 0] = 0
    exact, found = linear(x), fp8.Fp8Linear(linear)(x)
    assert found.shape == exact.shape
    assert found.dtype == exact.dtype
    assert torch.equal(found[0, 0], linear.bias)
    error = (found - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert 0.005 < error[1:].max() < 0.06, "three bits of mantissa"


def test_rows_come_back_from_eight_bits_to_their_rounding() -> None:
    x = torch.tensor([[1.0, -448.0, 3.0, 0.01], [0.0, 0.0, 0.0, 0.0]])
    small, scale = fp8.rowwise(x)
    assert small.dtype == fp8.FP8
    torch.testing.assert_close(small.float() * scale, x, rtol=2**-4, atol=1e-9)


def test_layers_whose_sizes_do_not_fit_stay_as_they_are() -> None:
    body = torch.nn.Sequential(
        torch.nn.Linear(16, 24), torch.nn.Sequential(torch.nn.Linear(32, 16)), torch.nn.LayerNorm(16)
    )
    assert fp8.convert(body) == 1
    assert isinstance(body[0], torch.nn.Linear)
    assert isinstance(body[1][0], fp8.Fp8Linear)


@pytest.mark.parametrize("name", [name for name in zoo.ZOO if name != "gpt2"])
def test_every_family_answers_in_eight_bits(name: str, tmp_path: Path) -> None:
    zoo.build(zoo.config(name, hidden=48, intermediate=64)).float().save_pretrained(tmp_path)
    plain, small = load(tmp_path), load(tmp_path)
    needs = Needs(logits="masked", states=frozenset({3}), qkv=frozenset({2}))
    before = small.weight_bytes
    small.use("fp8")
    distance, _ = distances(plain(tiny_batch(zoo.VOCAB), needs), small(tiny_batch(zoo.VOCAB), needs))
    assert 0 < distance < 0.4, "weights are random and 48 wide"
    assert small.weight_bytes < before


def test_a_model_of_other_layers_is_refused_in_eight_bits(tmp_path: Path) -> None:
    """GPT-2 multiplies by transposed weights of its own class."""
    zoo.build(zoo.config("gpt2")).float().save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match="no linear layer"):
        load(tmp_path).use("fp8")


def test_the_shipped_teacher_passes_the_gate_of_eight_bits_and_a_spoilt_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fp8, "obstacle", lambda device: "")
    monkeypatch.setattr(teacher_backends, "timed", lambda teacher, *_: {"plain": 2e-3, "fp8": 1e-3}[teacher.backend])
    teacher = load("builtin")
    settled(teacher, "fp8", tmp_path)
    plain, told = facts(teacher, tmp_path)["tried"]
    assert plain["backend"] == "plain"
    assert teacher.backend == "fp8"
    assert 1e-4 < told["distance"] < FP8_DISTANCE
    assert 1e-6 < told["divergence"] < FP8_DIVERGENCE
    monkeypatch.setattr(fp8, "LARGEST", 0.02)  # rows scaled to where eight bits have few values left
    (tmp_path / FILE).unlink()
    with pytest.raises(TeacherError, match="differ from the plain forward's"):
        settled(load("builtin"), "fp8", tmp_path)


def test_eight_bits_that_are_no_faster_are_refused_with_both_times(
    tmp_path: Path, tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fp8, "obstacle", lambda device: "")
    monkeypatch.setattr(teacher_backends, "FP8_DISTANCE", 1.0)  # its weights are random
    monkeypatch.setattr(teacher_backends, "FP8_DIVERGENCE", 1.0)
    for seconds, refused in ((3e-3, True), (2e-3, True), (1e-3, False)):
        monkeypatch.setattr(
            teacher_backends, "timed", lambda teacher, *_, s=seconds: {"plain": 2e-3, "fp8": s}[teacher.backend]
        )
        if refused:
            with pytest.raises(TeacherError, match=r"ms, and 2 ms plain"):
                settled(load(tiny.teacher), "fp8", tmp_path)
        else:
            settled(load(tiny.teacher), "fp8", tmp_path)


def test_an_input_of_queries_keys_and_values_is_rounded_once_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo.build(zoo.config("bert", hidden=48, intermediate=64)).float().save_pretrained(tmp_path)
    plain, teacher = load(tmp_path), load(tmp_path)
    teacher.use("fp8")
    rounded: list[torch.Tensor] = []
    rowwise = fp8.rowwise
    monkeypatch.setattr(fp8, "rowwise", lambda x: (rounded.append(x), rowwise(x))[1])
    needs, batch = Needs(states=frozenset({3})), tiny_batch(zoo.VOCAB)
    found = teacher(batch, needs)
    layers = len([each for each in teacher.family.model.modules() if isinstance(each, fp8.Fp8Linear)]) / 6
    assert layers >= 3
    assert len(rounded) == 4 * 3, "one for Q, K and V, and one for each of the three other products of a layer"
    kept = [each._rounded for each in teacher.family.model.modules() if isinstance(each, fp8.Fp8Linear)]
    assert all(each is not None and each._x is None and each._rows is None for each in kept)
    monkeypatch.setattr(fp8, "rowwise", rowwise)
    for each in kept:
        monkeypatch.setattr(each, "__class__", Forgetful)
    assert torch.equal(teacher(batch, needs).states[3], found.states[3]), "the same numbers as rounding every time"
    assert distances(plain(batch, needs), found)[0] < 0.4


class Forgetful(fp8.Rounded):
    """Rounds every time."""

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.forget()
        return super().__call__(x)


@pytest.mark.slow
def test_compiled_products_in_eight_bits_answer_as_uncompiled_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo.build(zoo.config("bert", hidden=48, intermediate=64)).float().save_pretrained(tmp_path)
    teacher, batch, needs = load(tmp_path), tiny_batch(zoo.VOCAB), Needs(states=frozenset({3}))
    teacher.use("fp8")
    expected = teacher(batch, needs)
    monkeypatch.setattr(fp8, "compiles", lambda device: True)
    found = teacher(batch, needs)
    assert list(teacher._compiled) == [("fp8", needs)]
    # Fused passes may round a scale otherwise, which moves a number by one step of eight bits.
    assert distances(expected, found)[0] < 0.05


# -- the choice ----------------------------------------------------------------------------------------
def test_without_a_gpu_nothing_is_tried_and_what_needs_one_is_refused(tmp_path: Path, tiny: TinyStudy) -> None:
    teacher = load(tiny.teacher)
    settled(teacher, "auto", tmp_path)
    assert facts(teacher, tmp_path) == {"backend": "plain", "tried": []}
    assert list(tmp_path.iterdir()) == []
    for wanted in ("graphs", "fp8"):
        with pytest.raises(ConfigError, match="no GPU"):
            settled(teacher, wanted, tmp_path)


class Imposter(Teacher):
    """Its compiled forward answers something else; as CUDA graphs it does not run."""

    def __call__(self, batch: Any, needs: Needs) -> Signals:
        if self.backend == "graphs":
            raise RuntimeError("no graphs today\nat all")
        return super().__call__(batch, needs) if self.backend == "plain" else self._wrong(batch, needs)

    def _wrong(self, batch: Any, needs: Needs) -> Signals:
        self.backend = "plain"
        found = super().__call__(batch, needs)
        self.backend = "compiled"
        found.states[2] = found.states[2] * 1.01
        return found


def test_what_answers_otherwise_or_fails_is_not_chosen_and_the_record_says_why(tmp_path: Path, tiny: TinyStudy) -> None:
    teacher = Imposter(inspect(str(tiny.teacher)), device=CPU, dtype=torch.float32)
    settled(teacher, "auto", tmp_path, candidates=("plain", "compiled", "graphs"))
    assert teacher.backend == "plain"
    plain, compiled, graphs = facts(teacher, tmp_path)["tried"]
    assert plain["obstacle"] == ""
    assert plain["distance"] == 0
    assert compiled["distance"] == pytest.approx(0.01, rel=1e-3)
    assert "differ from the plain forward's by 0.01" in compiled["obstacle"]
    assert graphs["obstacle"] == "it does not run here: RuntimeError: no graphs today"
    for wanted in ("compiled", "graphs"):
        another = Imposter(inspect(str(tiny.teacher)), device=CPU, dtype=torch.float32)
        with pytest.raises(ConfigError):
            settled(another, wanted, tmp_path / wanted)


def test_the_fastest_right_one_is_chosen_and_a_resumed_trial_keeps_it(
    tmp_path: Path, tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {"plain": 3e-3, "compiled": 1e-3, "graphs": 2e-3}

    def compared(teacher: Teacher, backend: Any, *_: Any, **__: Any) -> Tried:
        return Tried(backend, seconds=speeds[backend], distance=0.0)

    monkeypatch.setattr(teacher_backends, "compare", compared)
    teacher, again = load(tiny.teacher), load(tiny.teacher)
    settled(teacher, "auto", tmp_path, candidates=("plain", "compiled", "graphs"))
    assert teacher.backend == "compiled"
    speeds["plain"] = 1e-6
    settled(again, "auto", tmp_path, candidates=("plain", "compiled", "graphs"))
    assert again.backend == "compiled"


def test_a_teacher_with_dropout_stays_as_it_is(tmp_path: Path, tiny: TinyStudy) -> None:
    teacher = Teacher(inspect(str(tiny.teacher)), device=CPU, dtype=torch.float32, dropout=0.1)
    settled(teacher, "compiled", tmp_path)
    assert teacher.backend == "plain"


# -- one micro-batch ahead -----------------------------------------------------------------------------
OBJECTIVE = {"phases": [{"until": 0.5, "name": "tinybert"}, {"until": 0.8, "name": "mlm"}, {"name": "soft_targets"}]}


@pytest.mark.parametrize("micro", [8, 4], ids=["one micro-batch", "two"])
def test_asking_ahead_changes_nothing_but_when(
    micro: int, tiny: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same ledger and the same weights to the last bit, and no forward more than the ledger holds."""
    arms = [{"name": "phases", "objective": OBJECTIVE}]
    file = tiny.write(tmp_path / "ahead.yaml", arms=arms, budget="0.4 Gflop", batch={"sequences": 8}, checkpoints=0)
    (tmp_path / "engine.json").write_text(json.dumps({"train_micro_batch_size_per_gpu": micro}), encoding="utf-8")
    asked: list[int] = []
    answer = Teacher.__call__
    monkeypatch.setattr(
        Teacher, "__call__", lambda self, batch, needs: (asked.append(1), answer(self, batch, needs))[1]
    )
    found = {}
    for ahead in ("false", "true"):
        asked.clear()
        out = tmp_path / ahead
        flags = [
            "--set",
            f"speed.overlap_teacher={ahead}",
            "--ds_config",
            str(tmp_path / "engine.json"),
            "--seeds",
            "1",
        ]
        assert cli.main(["run", "--study", str(file), "--out", str(out), *flags]) == 0
        trial = out / "arms/phases/seed-1"
        found[ahead] = (
            json.loads((trial / "record.json").read_text(encoding="utf-8"))["charged"],
            load_file(trial / "student/model.safetensors"), len(asked),
        )  # fmt: skip
    capsys.readouterr()
    (charged, weights, calls), (charged_ahead, weights_ahead, calls_ahead) = found["false"], found["true"]
    assert charged == charged_ahead
    assert calls == calls_ahead
    assert all(torch.equal(weights[name], weights_ahead[name]) for name in weights)


class OnStreams:
    """A stand-in for torch.cuda with one stream beside the main one; notes what is asked and waited for, in order."""

    def __init__(self) -> None:
        self.noted: list[str] = []
        self.current = "main"

    def Stream(self, device: Any) -> Any:
        return self._named("side")

    def current_stream(self) -> Any:
        return self._named(self.current)

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.current = stream.name
        yield
        self.current = "main"

    def _named(self, name: str) -> Any:
        return SimpleNamespace(name=name, wait_stream=lambda other: self.noted.append(f"{name} waits for {other.name}"))

    def teacher(self, batch: Any, needs: Needs) -> Signals:
        self.noted.append(f"teacher on {self.current}")
        return Signals()


def test_the_teacher_is_never_on_two_streams_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the answer that waits is taken or dropped: two replays of one graph pool would write over each other."""
    device = OnStreams()
    monkeypatch.setattr(lookahead, "torch", SimpleNamespace(cuda=device))
    given = SimpleNamespace(record_stream=lambda stream: None)
    batch, another = (SimpleNamespace(input_ids_BT=given, positions_N=given, attention_mask_BT=None) for _ in range(2))
    ahead = lookahead.Lookahead(device.teacher, torch.device("cuda"))  # pyright: ignore[reportArgumentType]
    needs = Needs(states=frozenset({1}))
    asked = ["side waits for main", "teacher on side", "main waits for side"]
    for taken, otherwise in ((batch, needs), (another, needs), (batch, EVERYTHING)):
        device.noted.clear()
        ahead.ask(batch, needs)  # pyright: ignore[reportArgumentType]
        ahead.take(taken, otherwise)  # pyright: ignore[reportArgumentType]
        dropped = taken is not batch or otherwise != needs
        assert device.noted == [*asked, *(["teacher on main"] if dropped else [])]
    device.noted.clear()
    ahead.take(batch, needs)  # pyright: ignore[reportArgumentType]
    assert device.noted == ["teacher on main"], "nothing waits: the last answer was taken or waited for"


def test_studies_that_cannot_ask_ahead_are_refused(tiny: TinyStudy) -> None:
    tree = tiny.tree()
    for speed, teacher, says in (
        ({"overlap_teacher": True, "teacher_cache": True}, {}, "read, not asked"),
        ({"teacher_backend": "fp8", "teacher_cache": True}, {}, "not remembered"),
        ({"overlap_teacher": True}, {"dropout": 0.1}, "another order"),
    ):
        with pytest.raises(ConfigError, match=says):
            validate({**tree, "speed": speed, "teacher": {**tree["teacher"], **teacher}}, where="here")


@pytest.mark.parametrize(
    "torn", ["", "[1]", '{"wanted": "auto", "backend": "warp"}', '{"wanted": "plain", "backend": "compiled"}']
)
def test_a_torn_file_or_another_wish_is_no_choice(torn: str, tmp_path: Path, tiny: TinyStudy) -> None:
    (tmp_path / FILE).write_text(torn, encoding="utf-8")
    teacher = load(tiny.teacher)
    settled(teacher, "auto", tmp_path)
    assert teacher.backend == "plain"


def test_every_question_is_compiled_before_the_first_step_and_again_after_a_resume(
    tmp_path: Path, tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    monkeypatch.setattr(torch, "compile", lambda walk, **_: (made.append(1), walk)[1])
    other = Needs(states=frozenset({1}))
    batch = tiny_batch(inspect(str(tiny.teacher)).shape.vocab)
    for _ in range(2):  # the first start, and a resume
        made.clear()
        teacher = load(tiny.teacher)
        settle(
            teacher, "compiled", first=lambda: batch, needs=[EVERYTHING, other], folder=tmp_path, ranks=Ranks(), device=CPU
        )  # fmt: skip
        assert len(made) == 2
        teacher(batch, EVERYTHING)
        teacher(batch, other)
        assert len(made) == 2, "nothing is compiled in a step"


class Recording:
    """CUDA graphs as PyTorch makes them: a walk warms up at its first call and is recorded at its second."""

    def __init__(self, walk: Any) -> None:
        self.walk, self.calls = walk, 0

    def __call__(self, **inputs: Any) -> Signals:
        self.calls += 1
        return self.walk(**inputs)


class Replaying(Recording):
    """A graph that was captured badly: from the third call on it returns `stale`, or what the first call returned."""

    stale: float | None = None

    def __call__(self, **inputs: Any) -> Signals:
        found = super().__call__(**inputs)
        self.recorded = found.clone() if self.calls == 1 else self.recorded
        if self.calls <= 2:
            return found
        if self.stale is not None:
            self.recorded.states[2] = torch.full_like(self.recorded.states[2], self.stale)
        return self.recorded.clone()


@pytest.mark.parametrize("stale", [None, 0.0, float("nan")], ids=["an old input's answer", "zeros", "not a number"])
@pytest.mark.parametrize("sequences", [1, 2])
def test_graphs_are_judged_by_what_they_replay(
    sequences: int, stale: float | None, tmp_path: Path, tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warming up and recording compute what is asked; every later step gets a replay, on inputs of its own."""
    monkeypatch.setattr(Replaying, "stale", stale)
    monkeypatch.setattr(torch, "compile", lambda walk, mode=None, **_: Replaying(walk) if mode else walk)
    monkeypatch.setattr(
        teacher_backends, "timed", lambda teacher, *_: {"plain": 3.0, "compiled": 2.0, "graphs": 1.0}[teacher.backend]
    )
    teacher = load(tiny.teacher)
    batch = tiny_batch(teacher.info.shape.vocab)
    kept = 8 * sequences
    batch.input_ids_BT = batch.input_ids_BT[:sequences]
    batch.positions_N, batch.labels_N = batch.positions_N[:kept], batch.labels_N[:kept]
    settle(
        teacher, "auto", first=lambda: batch, needs=[EVERYTHING], folder=tmp_path, ranks=Ranks(), device=CPU,
        candidates=("plain", "compiled", "graphs"),
    )  # fmt: skip
    assert teacher.backend == "compiled"
    plain, compiled, graphs = facts(teacher, tmp_path)["tried"]
    assert plain["obstacle"] == compiled["obstacle"] == ""
    assert "differ from the plain forward's" in graphs["obstacle"]


def test_a_micro_batch_in_reverse_predicts_the_same_tokens_elsewhere() -> None:
    ids = torch.arange(12).view(2, 6)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    batch = Batch(ids, torch.tensor([1, 4, 8]), ids.flatten()[[1, 4, 8]], 3.0, 10.0, 2.0, attention_mask_BT=mask)
    found = teacher_backends.reverse(batch)
    assert found.input_ids_BT.tolist() == [[11, 10, 9, 8, 7, 6], [5, 4, 3, 2, 1, 0]]
    assert torch.equal(found.input_ids_BT.flatten()[found.positions_N], found.labels_N)
    assert sorted(found.labels_N.tolist()) == [1, 4, 8]
    assert found.attention_mask_BT is not None
    assert torch.equal(found.input_ids_BT[found.attention_mask_BT.bool()].sort()[0], torch.arange(10))


@pytest.mark.parametrize("kept", [False, True], ids=["first start", "resume"])
def test_graphs_are_recorded_before_the_first_step(
    kept: bool, tmp_path: Path, tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Recording] = []
    monkeypatch.setattr(torch, "compile", lambda walk, **_: (made.append(Recording(walk)), made[-1])[1])
    monkeypatch.setattr(teacher_backends, "check", lambda wanted, device: None)
    if kept:
        (tmp_path / FILE).write_text('{"wanted": "graphs", "backend": "graphs"}', encoding="utf-8")
    teacher, batch = load(tiny.teacher), tiny_batch(inspect(str(tiny.teacher)).shape.vocab)
    questions = [EVERYTHING, Needs(states=frozenset({1}))]
    settle(
        teacher, "graphs", first=lambda: batch, needs=questions, folder=tmp_path, ranks=Ranks(), device=CPU
    )  # fmt: skip
    assert len(made) == len(questions)
    assert all(each.calls > 2 for each in made), "the next call replays"


def test_a_backend_that_was_not_chosen_is_freed(
    tmp_path: Path, tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler's own store too, which holds graphs and their memory."""
    monkeypatch.setattr(
        teacher_backends, "timed", lambda teacher, *_: {"plain": 1e-3, "compiled": 2e-3}[teacher.backend]
    )
    compile_of = torch.compile
    walks: list[Any] = []
    monkeypatch.setattr(
        torch, "compile", lambda walk, **_: (walks.append(walk), compile_of(walk, backend="eager", dynamic=False))[1]
    )
    teacher = load(tiny.teacher)
    teacher.use("compiled")
    teacher(tiny_batch(teacher.info.shape.vocab), EVERYTHING)
    stored = torch._dynamo.eval_frame._debug_get_cache_entry_list
    assert stored(walks[0].__code__), "the test looks where the compiler stores"
    settled(teacher, "auto", tmp_path, candidates=("plain", "compiled"))
    assert teacher.backend == "plain"
    assert teacher._compiled == {}
    assert stored(walks[0].__code__) == []


def test_a_backend_that_was_chosen_is_the_only_one_left(
    tmp_path: Path, tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {"plain": 3e-3, "compiled": 1e-3, "graphs": 2e-3}
    monkeypatch.setattr(teacher_backends, "timed", lambda teacher, *_: speeds[teacher.backend])
    monkeypatch.setattr(torch, "compile", lambda walk, **_: walk)
    teacher = load(tiny.teacher)
    settled(teacher, "auto", tmp_path, candidates=("plain", "compiled", "graphs"))
    assert list(teacher._compiled) == [("compiled", EVERYTHING)]
