"""Causal students from blocks to verdict: what they see, what they are asked, what they cost, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from harness import cli
from harness.compare import higher_is_better
from harness.data.corpus import prepare
from harness.data.next_token import next_tokens, predicted_count
from harness.data.stream import Batch, SampleStream, evaluation_batches
from harness.data.text_bytes import block_bytes, owned_bytes
from harness.data.tokenizer import load_tokenizer
from harness.errors import ConfigError
from harness.evaluate import clm
from harness.evaluate.subject import Subject
from harness.models.signals import Needs, run
from harness.report import numbers
from harness.study import DataSpec, validate
from tests.support.tiny import TinyStudy, write_teacher

from . import model_zoo as zoo

CAUSAL = pytest.mark.parametrize("name", [n for n in zoo.ZOO if zoo.shape(zoo.config(n)).causal])
STUDENT = {"family": "llama", "layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "intermediate": 64}
ARMS: list[dict[str, Any]] = [
    {"name": "no_kd", "objective": "clm"},
    {"name": "soft_targets", "objective": "soft_targets"},
    {"name": "keys", "objective": {"name": "minilmv2", "relation_heads": 8, "query": 0.0, "value": 0.0}},
    {"name": "hidden", "objective": "hidden"},
]


@CAUSAL
def test_no_token_sees_its_future(name: str) -> None:
    """States, scores' queries, keys and logits before a changed token stay as they were; from it on they change."""
    ours = zoo.walker(zoo.config(name))
    ids, _ = zoo.tokens((12, 12))
    other = ids.clone()
    other[:, 7] = (ids[:, 7] + 5) % zoo.VOCAB
    needs = Needs(logits="tokens", states=frozenset({1, 2, 3}), qkv=frozenset({1, 2, 3}))
    with torch.no_grad():
        first, second = (run(ours, needs, input_ids_BT=x, positions_N=None) for x in (ids, other))
    assert first.head is not None
    assert second.head is not None
    pairs = [(a, b) for n in (1, 2, 3) for a, b in zip(first.qkv[n], second.qkv[n], strict=True)]
    pairs += [(first.states[n][:, None], second.states[n][:, None]) for n in (1, 2, 3)]
    pairs.append(tuple(h.logits().view(2, 1, 12, -1) for h in (first.head, second.head)))  # type: ignore[arg-type]
    for a, b in pairs:
        torch.testing.assert_close(a[:, :, :7], b[:, :, :7], rtol=0, atol=0)
        assert not torch.allclose(a[:, :, 7:], b[:, :, 7:])


@CAUSAL
def test_an_exported_student_is_a_causal_model_of_equal_logits(name: str, tmp_path: Path) -> None:
    from harness.models.student import export

    made = zoo.config(name)
    model = zoo.build(made).float()
    tokenizer, _ = load_tokenizer("builtin")
    export(made, model.state_dict(), tmp_path, tokenizer=tokenizer, card={})
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids, _ = zoo.tokens((9, 9))
    with torch.no_grad():
        found = run(
            zoo.family_of(model, zoo.shape(made)), Needs(logits="tokens"), input_ids_BT=ids, positions_N=None
        ).head
        expected = loaded(input_ids=ids).logits.flatten(0, 1)
    assert found is not None
    torch.testing.assert_close(found.logits(), expected, rtol=1e-5, atol=1e-5)


@given(length=st.integers(8, 40), count=st.integers(1, 5), seed=st.integers(0, 99))
def test_every_block_predicts_all_of_its_text_and_nothing_else(length: int, count: int, seed: int) -> None:
    ids = np.random.default_rng(seed).integers(0, 1000, (count, length))
    blocks = next_tokens(ids)
    batch = Batch.of(blocks)
    assert blocks.positions_BM.shape == (count, predicted_count(length)) == (count, length - 2)
    np.testing.assert_array_equal(blocks.input_ids_BT, ids)
    flat = torch.from_numpy(ids.reshape(-1))
    # The label of a position is the token behind it; [CLS] and the closing [SEP] are nobody's label.
    assert torch.equal(flat[batch.positions_N + 1], batch.labels_N)
    np.testing.assert_array_equal(np.asarray(batch.labels_N).reshape(count, -1), ids[:, 1:-1])
    assert batch.masked_count == count * (length - 2)


def test_a_causal_stream_has_the_masked_streams_blocks_in_its_order(tiny: TinyStudy) -> None:
    """Law 4 holds across kinds too: the same samples, whatever is asked of them, at any world size."""
    corpus = prepare(data_of(tiny))
    causal, masked = (
        SampleStream(corpus, seed=3, sequences=8, micro_batch=4, causal=c, masking=corpus.data.masking)
        for c in (True, False)
    )
    ranks = [SampleStream(corpus, seed=3, sequences=8, micro_batch=2, rank=r, world=2, causal=True) for r in (0, 1)]
    for step in (0, 5, 40):
        whole = torch.cat([batch.input_ids_BT for batch in causal.step(step)])
        labels = torch.cat([batch.labels_N for batch in masked.step(step)])
        places = torch.cat([b.positions_N + i * b.input_ids_BT.numel() for i, b in enumerate(masked.step(step))])
        assert torch.equal(whole.flatten()[places], labels), "the masked arm's labels are the causal arm's tokens"
        dealt = {tuple(row) for rank in ranks for batch in rank.step(step) for row in batch.input_ids_BT.tolist()}
        assert dealt == {tuple(row) for row in whole.tolist()}


def data_of(tiny: TinyStudy) -> DataSpec:
    return DataSpec.model_validate({"sources": [{"path": str(tiny.corpus)}], "block_length": 32})


def test_the_blocks_bytes_are_those_of_the_documents_they_hold(tiny: TinyStudy) -> None:
    corpus = prepare(data_of(tiny))
    tokenizer, _ = load_tokenizer("builtin")
    sizes = block_bytes(corpus, "test", tokenizer)
    assert len(sizes) == len(corpus.blocks("test"))
    whole = sum(len(document.text.encode()) for document in corpus.documents("test"))
    # All but what is left over behind the last whole block, which is less than a block.
    assert whole - 2 * int(sizes.max()) <= int(sizes.sum()) <= whole
    assert (sizes > 0).all()


@given(text=st.text(min_size=1, max_size=40), cuts=st.lists(st.integers(0, 40), min_size=1, max_size=12))
def test_every_byte_of_a_text_is_owned_once(text: str, cuts: list[int]) -> None:
    """Whatever the tokenizer's offsets are: repeated, out of order, or short of the end."""
    sizes = owned_bytes(text, [min(cut, len(text)) for cut in cuts])
    assert len(sizes) == len(cuts)
    assert (sizes >= 0).all()
    assert sizes.sum() == len(text.encode("utf-8", "surrogatepass"))


def test_bits_per_byte_is_the_code_length_of_the_text(tiny: TinyStudy) -> None:
    """A model that finds all tokens equally likely spends log2(V) bits on each."""
    corpus = prepare(data_of(tiny))
    tokenizer, _ = load_tokenizer("builtin")
    made = zoo.config_of(
        "llama", layers=1, hidden=8, heads=1, intermediate=8, vocab=len(tokenizer), length=32, init_std=0.1, dropout=0.0,
        special=zoo.SPECIAL,
    )  # fmt: skip
    model = zoo.build(made)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    batches = evaluation_batches(corpus, "test", blocks=4, batch=4, causal=True)
    found = clm.evaluate(Subject(model, device=torch.device("cpu")), batches, text_bytes=500)
    bits = np.log2(len(tokenizer)) * 4 * 30
    assert found["clm.bits_per_byte"] == pytest.approx(bits / 500, rel=1e-6)
    assert found["clm.loss"] == pytest.approx(np.log(len(tokenizer)), rel=1e-6)


def test_bits_per_byte_are_better_when_low_and_called_by_their_name() -> None:
    assert not higher_is_better("clm.bits_per_byte")
    assert not higher_is_better("clm.loss")
    assert higher_is_better("clm.accuracy")
    assert numbers.label("clm.bits_per_byte") == "Bits per byte"
    assert numbers.label("clm.loss") == "Next-token loss"
    assert numbers.unit("clm.bits_per_byte") == "bits"
    assert not numbers.percent("clm.bits_per_byte")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("causal") / "teacher", family="llama")


def tree(tiny: TinyStudy, teacher: Path, **changes: Any) -> dict[str, Any]:
    evaluation = {
        "main": "clm.bits_per_byte", "curve_points": 1, "mlm_blocks": 16,
        "readout": {"steps": 5, "positions": 64, "blocks": 32}, "choices": {"examples": 12},
    }  # fmt: skip
    return {
        "student": STUDENT, "arms": ARMS, "evaluation": evaluation, "budget": "4 Gflop",
        "teacher": {"path": str(teacher), "allow_worse": True}, **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny: TinyStudy, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("causal-run")
    file = tiny.write(folder / "causal.yaml", **tree(tiny, teacher))
    assert cli.main(["run", "--study", str(file), "--out", str(folder / "run")]) == 0
    return folder / "run"


def record(finished: Path, arm: str) -> dict[str, Any]:
    return json.loads((finished / "arms" / arm / "seed-1" / "record.json").read_text())


def test_a_causal_study_scores_every_arm_and_reports_it(finished: Path) -> None:
    for arm in ARMS:
        scores = record(finished, arm["name"])["scores"]
        assert {"clm.loss", "clm.bits_per_byte", "readout.loss", "probe.continuation", "probe.word_order"} <= set(
            scores
        )
        assert not any(name.startswith("mlm") for name in scores)
    text = (finished / "report.md").read_text()
    assert "Bits per byte ↓" in text
    assert "Next-token loss" in text
    references = json.loads((finished / "references.json").read_text())
    assert references["probes"]["word_order"]["majority"] == 0.25
    assert "per token" in references["probes"]["continuation"]["description"]
    assert references["bag_of_words"]["scores"]["probe.word_order"] == pytest.approx(0.25, abs=0.05)
    report = json.loads((finished / "report.json").read_text())
    assert "never trained a next-token head" in json.dumps(report, ensure_ascii=False)


def test_a_relation_without_weight_is_not_charged(finished: Path) -> None:
    """Keys alone: of the cut layers neither queries nor values are made, and one relation of three."""
    from harness.models.shapes import shape_of

    keys = record(finished, "keys")["accounts"]
    student = shape_of(json.loads((finished / "arms/keys/seed-1/student/config.json").read_text()))
    steps, tokens, length = record(finished, "keys")["steps"], 8 * 32, 32
    objective = 2 * tokens * length * (3 * student.kv_width + 64)
    assert keys["OBJECTIVE"]["flop"] == steps * objective
    forward = student.layer_flops(1, sequences=8, length=32) + 2 * tokens * student.hidden * student.kv_width
    assert keys["STUDENT_STEP"]["flop"] == steps * 3 * forward


def test_the_exported_student_gives_the_scores_on_record(finished: Path) -> None:
    folder = finished / "arms" / "no_kd" / "seed-1" / "student"
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    subject = Subject.load(folder, device=torch.device("cpu"))
    ids = torch.randint(5, 500, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        head = subject.signals(Needs(logits="tokens"), input_ids_BT=ids).head
        assert head is not None
        torch.testing.assert_close(head.logits(), loaded(input_ids=ids).logits.flatten(0, 1), rtol=1e-5, atol=1e-5)
    assert load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"student": {"family": "bert", "layers": 2, "hidden": 32, "heads": 4}, "evaluation": {"main": "mlm.loss"},
          "arms": [{"name": "a", "objective": "hidden"}]}, 3, "a masked student needs a masked teacher"),
        ({"teacher": "masked"}, 3, "a causal student needs a causal teacher"),
        ({"arms": [{"name": "a", "objective": "mlm"}]}, 2, "use clm"),
        ({"student": {"family": "bert", "layers": 2, "hidden": 32, "heads": 4}, "teacher": None,
          "evaluation": {"main": "mlm.loss"}, "arms": [{"name": "a", "objective": "clm"}]}, 2, "use mlm"),
        ({"arms": [{"name": "a", "objective": "clm"},
                   {"name": "b", "objective": "mlm", "differs": {"student.family": "bert", "student.kv_heads": None}}],
          "evaluation": {}}, 2, "all causal or all masked"),
        ({"arms": [{"name": "a", "objective": {"name": "minilmv2", "relation_heads": 32}}]}, 2, "must divide the student's width 16"),
        ({"evaluation": {"main": "mlm.loss"}}, 2, "not a score this study makes"),
        ({"student": {**STUDENT, "kv_heads": 3}}, 2, "not divisible by kv_heads"),
        ({"student": {**STUDENT, "family": "gpt2"}}, 2, "kv_heads 2: gpt2"),
        ({"evaluation": {"choices": {"examples": 100_000}}}, 3, "the held-out documents give"),
        ({"evaluation": {"choices": {"tasks": ["riddles"]}}}, 2, "riddles"),
        ({"evaluation": {"choices": {}, "readout": None, "main": "clm.loss"}}, 2, "choices.head readout"),
    ],
    ids=["causal teacher of a masked student", "masked teacher of a causal student", "mlm of a causal student",
         "clm of a masked student", "mixed arms", "relation heads and shared values", "a masked score", "heads that keys do not divide",
         "gpt2 with shared keys", "too many items", "no such choice", "no head to choose by"],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line_before_anything_is_spent(
    tiny: TinyStudy,
    teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict,
    code: int,
    message: str,
) -> None:
    if changes.get("teacher") == "masked":
        changes = {**changes, "teacher": {"path": str(tiny.teacher), "allow_worse": True}}
    file = tiny.write(tmp_path / "s.yaml", **{**tree(tiny, teacher), **changes})
    assert cli.main(["run", "--study", str(file), "--out", str(tmp_path / "run")]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert message in lines[-1]
    assert not list(tmp_path.rglob("ledger.jsonl"))


def test_choices_are_asked_of_causal_students_only() -> None:
    with pytest.raises(ConfigError, match="gives no likelihood"):
        validate({"name": "s", "budget": "1 Tflop", "arms": [{"name": "a"}], "evaluation": {"choices": {}}}, where="s")


def test_a_causal_teacher_is_vouched_for_by_its_next_token_loss(
    tiny: TinyStudy, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.evaluate.mlm.evaluate", lambda subject, _: {"mlm.loss": float(subject.shape.layers)})
    file = tiny.write(tmp_path / "s.yaml", **{**tree(tiny, teacher), "teacher": {"path": str(teacher)}})
    assert cli.main(["run", "--study", str(file), "--out", str(tmp_path / "run")]) == 3
    assert "a next-token loss of 4.000 where the untrained student has 2.000" in capsys.readouterr().err


def test_a_vocabulary_of_bytes_with_one_special_token_makes_a_causal_study(tiny: TinyStudy, tmp_path: Path) -> None:
    """GPT-2's kind: a text begins and ends with the same token, which pads as well and hides nothing."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    texts = [json.loads(line)["text"] for line in (tiny.corpus / "train.jsonl").read_text().splitlines()]
    bytes_ = ByteLevelBPETokenizer()
    bytes_.train_from_iterator(texts, vocab_size=400, special_tokens=["<|endoftext|>"])
    end = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=bytes_._tokenizer, **end).save_pretrained(tmp_path / "bytes")
    tree = {
        "student": {"family": "gpt2", "layers": 2, "hidden": 32, "heads": 4}, "teacher": None,
        "data": {"sources": [{"path": str(tiny.corpus)}], "block_length": 32, "tokenizer": str(tmp_path / "bytes")},
        "arms": [{"name": "a", "objective": "clm"}], "budget": "0.5 Gflop",
        "evaluation": {"main": "clm.bits_per_byte", "curve_points": 0, "mlm_blocks": 16, "readout": None},
    }  # fmt: skip
    file = tiny.write(tmp_path / "s.yaml", **tree)
    assert cli.main(["run", "--study", str(file), "--out", str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run/arms/a/seed-1/student/config.json").read_text())
    assert config["bos_token_id"] == config["eos_token_id"] == 0
    assert config["pad_token_id"] is None
    scores = record(tmp_path / "run", "a")["scores"]
    corpus = prepare(DataSpec.model_validate(tree["data"]))
    tokenizer, _ = load_tokenizer(str(tmp_path / "bytes"))
    # Every byte is in a token here: the blocks' tokens spell the text they own.
    spelt = sum(
        len(tokenizer.decode(row[1:-1].tolist(), skip_special_tokens=True).encode()) for row in corpus.blocks("test")
    )
    assert int(block_bytes(corpus, "test", tokenizer).sum()) == pytest.approx(spelt, rel=0.01)
    assert 0 < scores["clm.bits_per_byte"] < 8
    masked = {**tree, "student": {"family": "bert", "layers": 2, "hidden": 32, "heads": 4}}
    masked |= {"arms": [{"name": "a", "objective": "mlm"}], "evaluation": {"main": "mlm.loss", "readout": None}}
    file = tiny.write(tmp_path / "masked.yaml", **masked)
    assert cli.main(["run", "--study", str(file), "--out", str(tmp_path / "masked")]) == 3
