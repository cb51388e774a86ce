"""A remembered teacher says what an asked one says, costs what it costs the first time, and nothing when it repeats itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from harness import cli
from harness.budget import Account
from harness.data.batch import Batch
from harness.data.stream import SampleStream
from harness.errors import CheckpointError, ConfigError, DataError, Preempted
from harness.kernels.soft_cross_entropy import reference
from harness.models.signals import Needs
from harness.models.teacher import Teacher, inspect
from harness.ranks import Ranks
from harness.study import validate
from harness.teacher_cache import shards
from harness.teacher_cache.content import Content
from harness.teacher_cache.coverage import most_steps
from harness.teacher_cache.shards import FILE, Cache, RememberedTeacher
from harness.units import Unit
from tests.support.tiny import TinyStudy

from .data_worlds import corpus_of

CPU = torch.device("cpu")
EVERYTHING = Needs(logits="masked", states=frozenset({0, 2, 4}), qkv=frozenset({3}), parts=frozenset({(2, "k")}))
TEMPERATURES = (1.0, 2.0)


@pytest.fixture(scope="module")
def teacher(tiny: TinyStudy) -> Teacher:
    return Teacher(inspect(str(tiny.teacher)), device=CPU, dtype=torch.float32)


def content(teacher: Teacher, *, kept: int = 50, precision: Any = "computed", needs: Needs = EVERYTHING) -> Content:
    return Content(needs, teacher.info.shape, 16, 2, kept, TEMPERATURES, precision)


def stream(cycle: int | None = 1) -> SampleStream:
    """50 blocks of 16 tokens, 2 of them masked."""
    return SampleStream(corpus_of({"one": 50}), seed=3, sequences=8, micro_batch=8, mask_epochs=cycle)


def cache(of: Content, cycle: int | None = 1) -> Cache:
    made = Cache(of, stream(cycle), teacher="made up", dtype=torch.float32, device="cpu")
    made.samples_per_shard = 16
    return made


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "study" not in request.fixturenames:
        monkeypatch.setenv("ISOBUDGET_CACHE", str(tmp_path / "cache"))


# -- what is kept ----------------------------------------------------------------------------------------
def test_computed_signals_come_back_bit_for_bit_and_take_what_the_closed_form_says(teacher: Teacher) -> None:
    batch = stream().step(0)[0]
    asked, kept = teacher(batch, EVERYTHING), content(teacher)
    tensors = kept.pack(asked)
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == 8 * kept.row_bytes(4)
    found = kept.unpack(tensors, dtype=torch.float32)
    for number in (0, 2, 4):
        assert torch.equal(found.states[number], asked.states[number])
    for part in "qkv":
        assert torch.equal(found.part(3, part), asked.part(3, part))
    assert torch.equal(found.part(2, "k"), asked.part(2, "k"))
    assert asked.head is not None
    assert found.top is not None
    logits = asked.head.logits()
    for temperature in TEMPERATURES:
        top = found.top.at(temperature)
        p = (logits / temperature).softmax(-1)
        q = torch.cat([top.logits_NK / temperature, top.rest_N[:, None]], 1).softmax(-1)
        torch.testing.assert_close(q[:, :-1], p.gather(1, top.ids_NK))
        torch.testing.assert_close(q[:, -1], 1 - p.gather(1, top.ids_NK).sum(-1), rtol=1e-3, atol=1e-6)
        assert (top.logits_NK[:, -1] >= (logits - logits.amax(1, keepdim=True)).kthvalue(logits.shape[1] - 49)[0]).all()


def test_half_precision_rounds_by_no_more_than_a_half_unit_and_refuses_what_it_cannot_hold(teacher: Teacher) -> None:
    asked, kept = teacher(stream().step(0)[0], EVERYTHING), content(teacher, precision="half")
    tensors = kept.pack(asked)
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == 8 * kept.row_bytes(4)
    found = kept.unpack(tensors, dtype=torch.float32)
    for number in (0, 2, 4):
        # fp16: 11 significant bits; below 2^-14 a fixed step of 2^-24.
        torch.testing.assert_close(found.states[number], asked.states[number], rtol=2**-11, atol=2**-25)
    asked.states[2] = asked.states[2] * 1e6
    with pytest.raises(DataError, match="does not fit half precision"):
        kept.pack(asked)


def test_losses_of_top_logits_from_disk_are_the_definitions_in_float64(teacher: Teacher) -> None:
    batch, kept = stream().step(0)[0], content(teacher, kept=30)
    asked = teacher(batch, EVERYTHING)
    assert asked.head is not None
    logits = asked.head.logits().double()
    top = kept.unpack(kept.pack(asked), dtype=torch.float32).top
    assert top is not None
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 8, generator=generator) for n in (len(logits), logits.shape[1]))
    for temperature in TEMPERATURES:
        values, ids = logits.topk(30)
        rest = (logits.scatter(1, ids, -torch.inf) / temperature).logsumexp(-1)
        exact = reference.soft_cross_entropy(
            hidden.double(), weight.double(), teacher_top=reference.Top(ids, values, rest), temperature=temperature
        )[0]
        found = reference.soft_cross_entropy(hidden, weight, teacher_top=top.at(temperature), temperature=temperature)[
            0
        ]
        # Sums of some thousand fp32 terms: 2^-24 · √4096 of the value, and the rounding of logits near 1.
        assert float(found) == pytest.approx(float(exact), rel=1e-5)


# -- the shards ------------------------------------------------------------------------------------------
def write(made: Cache, teacher: Teacher, shards: Any, stop: Callable[[], bool] = lambda: False) -> None:
    made.write(shards, lambda: teacher, ranks=Ranks(), device=CPU, stop=stop)


def test_every_sample_of_every_epoch_is_answered_from_its_first(teacher: Teacher) -> None:
    made = cache(content(teacher))
    shards = made.shards(10_000)
    assert [(s.first, s.last) for s in shards] == [(0, 16), (16, 32), (32, 48), (48, 50)]
    write(made, teacher, shards)
    made.verify(shards, Ranks())
    remembered = RememberedTeacher(made, shards, device=CPU)
    assert remembered.written["samples"] == 50
    assert remembered.written["bytes"] == 50 * made.row_bytes
    for step in (0, 5, 6, 40):
        (batch,) = stream().step(step)
        asked, read = teacher(batch, EVERYTHING), remembered(batch, EVERYTHING)
        # Batches are put together differently: fp32 sums of 64 products in another order.
        for number in (0, 2, 4):
            torch.testing.assert_close(read.states[number], asked.states[number], rtol=1e-5, atol=1e-5)
        for part in "qkv":
            torch.testing.assert_close(read.part(3, part), asked.part(3, part), rtol=1e-5, atol=1e-5)


def test_a_killed_writer_leaves_whole_shards_and_the_next_one_makes_the_rest(teacher: Teacher) -> None:
    made = cache(content(teacher))
    shards = made.shards(None)
    asked = [0]

    class Counted:
        def __call__(self, batch: Batch, needs: Needs) -> Any:
            asked[0] += len(batch.input_ids_BT)
            if asked[0] == 16 + 16:
                raise KeyboardInterrupt
            return teacher(batch, needs)

    with pytest.raises(KeyboardInterrupt):
        write(made, Counted(), shards)  # type: ignore[arg-type]
    assert len(made.missing(shards)) == 3
    with pytest.raises(Preempted, match="2 of 4 shards"):
        write(made, Counted(), shards, stop=lambda: len(made.missing(shards)) == 2)  # type: ignore[arg-type]
    write(made, Counted(), shards)  # type: ignore[arg-type]
    assert not made.missing(shards)
    assert asked[0] == 50 + 16, "nothing that was published is asked again"
    write(made, None, shards)  # type: ignore[arg-type]


def test_every_write_says_how_many_shards_are_there_and_it_never_falls(teacher: Teacher) -> None:
    made = cache(content(teacher))
    shards, told = made.shards(None), list[int]()

    def turn(until: int) -> list[int]:
        told.clear()
        made.write(
            shards, lambda: teacher, ranks=Ranks(), device=CPU, written=told.append,
            stop=lambda: len(shards) - len(made.missing(shards)) == until,
        )  # fmt: skip
        return told

    with pytest.raises(Preempted):
        turn(2)
    assert told == [1, 2]
    with pytest.raises(Preempted):
        turn(3)
    assert told == [3], "those that were there already are nobody's doing"
    assert turn(5) == [4]
    assert turn(5) == []


def test_damage_and_gaps_are_found_before_a_byte_is_used(teacher: Teacher) -> None:
    made = cache(content(teacher))
    shards = made.shards(None)
    write(made, teacher, shards)
    file = made.folder(shards[1]) / FILE
    data = bytearray(file.read_bytes())
    data[-7] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match=f"{FILE} was altered"):
        made.verify(shards, Ranks())
    file.unlink()
    other = cache(content(teacher, kept=49))
    with pytest.raises(DataError, match="no readable manifest"):
        other.verify(other.shards(None), Ranks())
    few = RememberedTeacher(made, shards[:1], device=CPU)
    with pytest.raises(DataError, match="does not hold them"):
        few(stream().step(3)[0], EVERYTHING)


def test_another_teacher_corpus_order_content_or_device_is_another_cache(teacher: Teacher) -> None:
    base = cache(content(teacher))
    shard = base.shards(None)[0]
    others = [
        cache(content(teacher, kept=49)), cache(content(teacher, precision="half")), cache(content(teacher), cycle=2),
        cache(content(teacher, needs=replace(EVERYTHING, states=frozenset({0, 2})))),
        *(
            Cache(content(teacher), data, **{"teacher": "made up", "dtype": torch.float32, "device": "cpu", **change})
            for data, change in (
                (stream(), {"teacher": "another"}), (stream(), {"device": "gpu"}), (stream(), {"dtype": torch.bfloat16}),
                (SampleStream(corpus_of({"one": 51}), seed=3, sequences=8, micro_batch=8, mask_epochs=1), {}),
                (SampleStream(corpus_of({"one": 50}), seed=4, sequences=8, micro_batch=8, mask_epochs=1), {}),
            )
        ),
    ]  # fmt: skip
    assert len({base.folder(shard), *(other.folder(shard) for other in others)}) == 1 + len(others)
    assert cache(content(teacher)).folder(shard) == base.folder(shard)


def test_no_room_is_told_before_anything_is_written(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 1000, 1000))
    made = cache(content(teacher))
    with pytest.raises(DataError, match="GB left"):
        write(made, teacher, made.shards(None))
    assert len(made.missing(made.shards(None))) == 4


def test_a_shard_that_the_system_refuses_is_an_error_that_ranks_can_agree_on(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Safetensors has an error of its own for a full disk; a rank that left with it would leave the others waiting."""

    def full(*args: Any, **named: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(shards, "save_file", full)
    made = cache(content(teacher))
    with pytest.raises(CheckpointError, match="No space left on device"):
        write(made, teacher, made.shards(None))
    assert len(made.missing(made.shards(None))) == 4


# -- what it costs ---------------------------------------------------------------------------------------
@given(
    limit=st.integers(1, 10**6), price=st.integers(1, 10**4), sample=st.integers(0, 500), capacity=st.integers(0, 200)
)
def test_the_steps_a_budget_buys_are_found_in_closed_form(limit: int, price: int, sample: int, capacity: int) -> None:
    def distinct(steps: int) -> int:
        return min(8 * steps, capacity)

    found = most_steps(limit, price=price, sample_price=sample, distinct=distinct)
    assert found * price + sample * distinct(found) <= limit
    assert (found + 1) * price + sample * distinct(found + 1) > limit


def run(study: Path, out: Path, *flags: str, code: int = 0) -> Path:
    assert cli.main(["run", "--study", str(study), "--out", str(out), *flags]) == code
    return out


def record(out: Path, arm: str) -> dict[str, Any]:
    return json.loads((out / f"arms/{arm}/seed-1/record.json").read_text(encoding="utf-8"))


def losses(out: Path, arm: str) -> list[float]:
    rows = (out / f"arms/{arm}/seed-1/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["loss"] for row in map(json.loads, rows) if "loss" in row]


@pytest.fixture(scope="module")
def study(tiny: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    evaluation = {"main": "mlm.loss", "curve_points": 0, "mlm_blocks": 8, "readout": None}
    return tiny.write(tmp_path_factory.mktemp("remembered") / "s.yaml", evaluation=evaluation)


def test_one_pass_costs_and_teaches_exactly_what_an_asked_teacher_does(study: Path, tmp_path: Path) -> None:
    arms = ["--arms", "soft_targets,minilmv2"]
    live = run(study, tmp_path / "live", *arms)
    read = run(study, tmp_path / "read", *arms, "--set", "speed.teacher_cache.logits=all")
    for arm in ("soft_targets", "minilmv2"):
        asked, remembered = record(live, arm), record(read, arm)
        assert remembered["charged"] == asked["charged"]
        assert remembered["steps"] == asked["steps"]
        paid = remembered["accounts"]
        assert paid["TEACHER_CACHE"]["flop"] == asked["accounts"]["TEACHER_FORWARD"]["flop"]
        assert paid["TEACHER_CACHE"]["gpu-second"] > 0
        assert "flop" not in paid["TEACHER_FORWARD"], "reading takes time and no products"
        # Ten to twenty AdamW steps on fp32 signals that differ by the order of sums.
        assert losses(read, arm) == pytest.approx(losses(live, arm), rel=1e-5)
        assert remembered["teacher_cache"]["samples"] >= asked["steps"] * 8
        assert remembered["engine"]["teacher"] == "read from a cache"


def test_a_second_pass_is_free_and_a_sharer_pays_its_share(study: Path, tmp_path: Path) -> None:
    repeating = ["--arms", "minilmv2", "--set", "data.limit_tokens=768", "--set", "data.mask_epochs=1"]
    live = record(run(study, tmp_path / "live", *repeating), "minilmv2")
    cached = [*repeating, "--set", "speed.teacher_cache=true"]
    whole = record(run(study, tmp_path / "whole", *cached), "minilmv2")
    shared = record(
        run(study, tmp_path / "shared", *cached, "--set", "accounting.teacher_cache={amortised_over: 4}"), "minilmv2"
    )
    distinct = 768 // 32
    per_sample = live["accounts"]["TEACHER_FORWARD"]["flop"] // (8 * live["steps"])
    assert live["steps"] * 8 > 2 * distinct, "the text is read several times"
    assert whole["accounts"]["TEACHER_CACHE"]["flop"] == distinct * per_sample
    assert math.isclose(shared["accounts"]["TEACHER_CACHE"]["flop"], distinct * per_sample / 4, rel_tol=1e-6)
    assert live["steps"] < whole["steps"] < shared["steps"]
    for row in (whole, shared):
        assert row["charged"] <= 2_000_000_000
        assert row["unspent"] < row["step_price"], "at the end of the second pass a step costs the student alone"


def test_a_resumed_run_with_a_remembered_teacher_is_the_uninterrupted_one(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.train import Trial

    flags = ["--arms", "minilmv2", "--set", "data.limit_tokens=768", "--set", "data.mask_epochs=1",
             "--set", "speed.teacher_cache=true"]  # fmt: skip
    whole = run(study, tmp_path / "whole", *flags)
    step, calls = Trial._step, [0]

    def fail_late(self: Trial, *given: Any) -> dict:
        calls[0] += 1
        if calls[0] == 40:
            raise KeyboardInterrupt
        return step(self, *given)

    monkeypatch.setattr(Trial, "_step", fail_late)
    out = run(study, tmp_path / "out", *flags, code=130)
    monkeypatch.setattr(Trial, "_step", step)
    run(study, out, *flags, "--resume")
    mine, theirs = record(out, "minilmv2"), record(whole, "minilmv2")
    assert mine["accounts"].pop("LOST")["flop"] > 0
    for account in (Account.STUDENT_STEP, Account.TEACHER_CACHE, Account.OBJECTIVE):
        assert mine["accounts"][account]["flop"] == theirs["accounts"][account]["flop"]
    assert losses(out, "minilmv2") == losses(whole, "minilmv2")


def test_turns_that_fill_the_cache_are_progress_and_one_that_fills_nothing_is_none(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.recorded import progress
    from harness.teacher_cache import shards

    monkeypatch.setenv("ISOBUDGET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shards, "SHARD_SAMPLES", 12)
    real = Cache.write

    def preempted(self: Cache, *given: Any, **more: Any) -> None:
        before = len(self.missing(given[0]))
        assert len(given[0]) == 2
        real(self, *given, **{**more, "stop": lambda: before == 0 or len(self.missing(given[0])) < before})

    monkeypatch.setattr(Cache, "write", preempted)
    flags = ["--arms", "minilmv2", "--set", "data.limit_tokens=768", "--set", "data.mask_epochs=1",
             "--set", "speed.teacher_cache=true", "--auto-resume"]  # fmt: skip
    ends = {job: [progress(tmp_path / "out", job=job)] for job in (None, "train-minilmv2-seed-1")}
    for _ in range(3):
        run(study, tmp_path / "out", *flags, code=75)
        for job, found in ends.items():
            found.append(progress(tmp_path / "out", job=job))
    for nothing, one, two, still in ends.values():
        assert nothing < one < two == still
    monkeypatch.setattr(Cache, "write", real)
    run(study, tmp_path / "out", *flags)
    assert record(tmp_path / "out", "minilmv2")["teacher_cache"]["shards"] == 2


def test_seeds_may_share_one_order_and_then_one_cache(study: Path, tmp_path: Path) -> None:
    flags = ["--arms", "minilmv2", "--set", "data.seed=5", "--set", "speed.teacher_cache=true", "--seeds", "1,2"]
    out = run(study, tmp_path / "out", *flags)
    rows = [json.loads((out / f"arms/minilmv2/seed-{s}/record.json").read_text(encoding="utf-8")) for s in (1, 2)]
    assert rows[0]["teacher_cache"]["seconds"] == rows[1]["teacher_cache"]["seconds"], "the same shards"
    assert all("one order with one set of masks" in " ".join(row["warnings"]) for row in rows)
    first, second = (
        (out / f"arms/minilmv2/seed-{s}/metrics.jsonl").read_text(encoding="utf-8").splitlines()[0] for s in (1, 2)
    )
    assert json.loads(first)["loss"] != json.loads(second)["loss"], "their weights begin differently"


def plan(study: Path, *flags: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.main(["plan", "--study", str(study), "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)["arms"][0]


def test_a_plan_tells_what_the_cache_will_be(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--arms", "minilmv2", "--set", "data.limit_tokens=768", "--set", "data.mask_epochs=1",
             "--set", "speed.teacher_cache=true"]  # fmt: skip
    told = plan(study, *flags, capsys=capsys)
    done = record(run(study, tmp_path / "out", *flags), "minilmv2")
    assert told["steps"] == done["steps"]
    for account in ("STUDENT_STEP", "TEACHER_CACHE", "OBJECTIVE"):
        assert told["flop"][account] == done["accounts"][account]["flop"]
    cache = told["teacher_cache"]
    assert cache["samples"] == done["teacher_cache"]["samples"] == 24
    assert cache["bytes"] == done["teacher_cache"]["bytes"]
    assert cache["flop"] == done["accounts"]["TEACHER_CACHE"]["flop"]
    assert cache["charged"]
    assert cache["uses"] == pytest.approx(done["steps"] * 8 / 24)
    assert told["memory"]["teacher_bytes"] == 0
    once = plan(study, "--arms", "minilmv2", "--set", "speed.teacher_cache=true", capsys=capsys)["teacher_cache"]
    assert once["uses"] == 1, "masks that never come again are read once"
    elsewhere = plan(
        study, *flags, "--on", "8xh200", "--set", "accounting.teacher_cache={amortised_over: 4}", capsys=capsys
    )
    asked = plan(study, *flags, "--on", "8xh200", "--set", "speed.teacher_cache=false", capsys=capsys)
    assert elsewhere["step_s"]["teacher_s"] == asked["step_s"]["teacher_s"] > 0
    assert (
        elsewhere["teacher_cache"]["pays_from_uses_device"] is None
        or elsewhere["teacher_cache"]["pays_from_uses_device"] > 1
    )
    both = plan(
        study, "--arms", "minilmv2", "--set", "speed.teacher_cache=true", "--set", "data.seed=1", "--seeds", "1,2,3",
        capsys=capsys,
    )["teacher_cache"]  # fmt: skip
    assert both["uses"] == 3, "and by every seed that shares them"


# -- what is refused -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speed": {"teacher_cache": True}, "teacher": {"dropout": 0.1}}, "never answers the same"),
        (
            {
                "speed": {"teacher_cache": True},
                "arms": [{"name": "a", "objective": {"phases": [{"until": 0.5, "name": "mlm"},
                                                                {"until": 1.0, "name": "soft_targets"}]}}],
            },
            "ask different things of the teacher",
        ),
        ({"speed": {"teacher_cache": True}, "budget": "1 gpu-hour"}, "does not tell how many samples"),
    ],
)  # fmt: skip
def test_what_cannot_be_remembered_is_refused_before_anything_is_spent(
    tiny: TinyStudy, tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tiny.tree()
    changes = {**changes, "teacher": {**tree["teacher"], **changes.get("teacher", {})}}
    file = tiny.write(tmp_path / "s.yaml", **changes)
    run(file, tmp_path / "out", code=2)
    assert message in capsys.readouterr().err


def test_a_cache_is_charged_by_default_and_refused_in_units_it_has_no_cost_in() -> None:
    tree: dict[str, Any] = {
        "name": "s",
        "teacher": {"path": "t"},
        "arms": [{"name": "a"}],
        "speed": {"teacher_cache": True},
    }
    spec = validate({**tree, "budget": "1e13 flop"}, where="s")
    assert Account.TEACHER_CACHE in spec.charged
    assert validate(spec.model_dump(mode="json"), where="s") == spec
    off = validate({**tree, "budget": "1e13 flop", "speed": {"teacher_cache": False}}, where="s")
    assert Account.TEACHER_CACHE not in off.charged
    with pytest.raises(ConfigError, match="TEACHER_CACHE cannot be charged to a budget in seconds"):
        validate({**tree, "budget": "90 min"}, where="s")
    free = validate({**tree, "budget": "90 min", "accounting": {"charged": ["STUDENT_STEP"]}}, where="s")
    assert free.limit.unit is Unit.SECOND


def test_rows_of_a_shuffled_epoch_come_from_many_shards_in_the_right_order(teacher: Teacher) -> None:
    made = cache(content(teacher, needs=Needs(states=frozenset({0})), kept=0), cycle=2)
    shards = made.shards(None)
    write(made, teacher, shards)
    remembered = RememberedTeacher(made, shards, device=CPU)
    (batch,) = stream(2).step(23)  # in the fourth epoch: the masks of the second
    source, index = made.stream.first_seen(batch.samples_B)  # type: ignore[arg-type]
    assert set(source) == {0}
    assert len(set((index // 16).tolist())) > 2
    read = remembered(batch, Needs(states=frozenset({0}))).states[0]
    for row, sample in enumerate(index):
        blocks = Batch.of(made.stream.blocks_at(0, np.array([sample])))
        torch.testing.assert_close(read[row : row + 1], teacher(blocks, Needs(states=frozenset({0}))).states[0])


def test_rows_for_a_gpu_are_gathered_where_it_copies_from_behind_the_host(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy from pageable memory makes the host wait; without a GPU nothing can be pinned, so the request is watched."""
    made = cache(content(teacher, needs=Needs(states=frozenset({0})), kept=0))
    shards = made.shards(16)
    write(made, teacher, shards)
    samples, asked, empty = np.arange(8), list[bool](), torch.empty

    def watched(*args: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        asked.append(pin_memory)
        return empty(*args, **options)

    monkeypatch.setattr(torch, "empty", watched)
    found = [RememberedTeacher(made, shards, device=torch.device(kind))._rows(samples) for kind in ("cuda", "cpu")]
    assert asked == [True, False]
    assert torch.equal(found[0]["state.0"], found[1]["state.0"])
