"""`evaluate`: fine-tune finished students, or any encoder folder, on GLUE."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.commands._study import hang_flag, print_json
from harness.commands._sweep import is_sweep
from harness.errors import ConfigError, DataError

if TYPE_CHECKING:
    from harness.evaluate.glue import Glue
    from harness.progress import Silent
    from harness.rundir import RunDirectory
    from harness.study import GlueSpec, StudySpec

HELP = "fine-tune the students of a run, or any encoder folder, on GLUE"
HUB = "nyu-mll/glue"
AGAIN = "start the same command again: what was finished is kept"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", metavar="RUN_DIR|MODEL_FOLDER", help="a finished study or sweep, or a Hugging Face folder"
    )
    parser.add_argument("--glue", metavar="HUB_NAME|FOLDER", help=f"where GLUE is (default: the study's, or {HUB})")
    parser.add_argument("--tasks", metavar="cola,rte", help="default: the study's, or all nine")
    parser.add_argument("--grid", metavar="paper|quick|staged", help="learning rates, batch sizes and epochs to search")
    parser.add_argument(
        "--select-on", metavar="train|validation", help="a held-out part of train (default), or the paper's protocol"
    )
    parser.add_argument("--seeds", metavar="1,2,3", help="fine-tuning seeds, nested in each student's own")
    parser.add_argument("--max-flop", metavar='"1e17 flop"', help="the most one student's fine-tuning may cost")
    parser.add_argument("--train-examples", metavar="N", help="cut every task's train split to so many examples")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments",
        help="change one other key of the glue block",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="where a MODEL_FOLDER's results go (default runs/glue/<name>)")
    hang_flag(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def execute(options: argparse.Namespace, given: list[str]) -> int:
    target = Path(options.target).expanduser()
    if is_sweep(target):
        return _sweep_directory(target, options)
    if (target / "study.yaml").is_file():
        return _run_directory(target, options)
    if (target / "config.json").is_file():
        return _model_folder(target, options)
    raise ConfigError(
        f"{options.target}", rule="neither a study's directory, nor a sweep's, nor a model folder",
        remedy="give a directory written by run, or a folder with config.json and safetensors",
    )  # fmt: skip


def _sweep_directory(root: Path, options: argparse.Namespace) -> int:
    """Every point's students, point by point; what points share is fine-tuned once. All must have been trained.

    A point of a search at which every trial diverged has no students, and is passed over.
    """
    from harness.evaluate.glue_study import trained
    from harness.rundir import RunDirectory, load_study
    from harness.sweep import adopt_glue, load

    sweep = load(root)
    places = [root / point.folder for point in sweep.points]
    for point, place in zip(sweep.points, places, strict=True):
        if not (place / "study.yaml").is_file():
            raise ConfigError(
                f"{root}: point {point.label} has not begun", rule="points are compared whole",
                remedy="finish the sweep first: run --resume --out",
            )  # fmt: skip
        _refuse_unfinished(place, load_study(place))
    there = [
        (point, place)
        for point, place in zip(sweep.points, places, strict=True)
        if trained(load_study(place), RunDirectory(place))
    ]
    if not there:
        raise ConfigError(f"{root}", rule="no trial has a student: all diverged", remedy="search lower rates")
    from harness.engine import connect

    ranks = connect()
    tables = []
    for _, place in there:
        ranks.on_main(lambda place=place: adopt_glue(root, place))
        tables.append(_evaluated(place, options))
    from harness.sweep.publish import build

    ranks.on_main(lambda: build(root))
    if ranks.is_main:
        if options.json:
            print_json({"sweep": str(root), "points": tables})
        else:
            for (point, _), table in zip(there, tables, strict=True):
                print(f"\n{point.label}")
                _print(table, options)
    ranks.barrier()
    return 0


def changes(options: argparse.Namespace) -> dict[str, Any]:
    """The keys of the glue block that the command line sets."""
    import yaml

    found: dict[str, Any] = {}
    for assignment in options.assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {assignment}", rule="an assignment is KEY=VALUE", remedy="e.g. --set dropout=0")
        from harness.study.keys import assign, number

        try:
            assign(found, key, number(yaml.safe_load(text)))
        except yaml.YAMLError:
            raise ConfigError(f"--set {assignment}", rule="the value is not YAML", remedy="quote it") from None
    plain = {"path": options.glue, "grid": options.grid, "select_on": options.select_on, "max_flop": options.max_flop}
    found |= {key: value for key, value in plain.items() if value is not None}
    if options.train_examples is not None:
        found["train_examples"] = options.train_examples
    if options.tasks is not None:
        found["tasks"] = [task.strip() for task in options.tasks.split(",")]
    if options.seeds is not None:
        try:
            found["seeds"] = [int(seed) for seed in options.seeds.split(",")]
        except ValueError:
            raise ConfigError(
                f"--seeds {options.seeds}", rule="seeds are whole numbers", remedy="for example --seeds 1,2,3"
            ) from None
    return found


def _spec(before: GlueSpec | None, options: argparse.Namespace) -> GlueSpec:
    from harness.study import glue_spec

    kept = {} if before is None else before.model_dump(mode="json")
    return glue_spec({**kept, **changes(options)}, where="the command line")


def _with(study: StudySpec, spec: GlueSpec) -> StudySpec:
    """The study that is evaluated so: its GLUE block keeps the tasks that were asked for before by the same recipe.

    Raises:
        ConfigError: it would no longer make the score it is decided by.
    """
    from harness.study import validate
    from harness.study.glue import NAMES, unlike

    tree, block = study.model_dump(mode="json"), spec.model_dump(mode="json")
    before = tree["evaluation"]["glue"]
    if before is not None and not unlike(before, block):
        block["tasks"] = [task for task in NAMES if task in before["tasks"] or task in spec.tasks]
    tree["evaluation"]["glue"] = block
    return validate(tree, where="the study, evaluated so")


def _refuse_unfinished(root: Path, study: StudySpec) -> None:
    """Raises ConfigError where a trial of this directory has not been trained."""
    from harness.kept import finished
    from harness.rundir import RunDirectory

    directory = RunDirectory(root)
    unfinished = [
        f"{arm.name}, seed {seed}"
        for arm in study.arms
        for seed in study.seeds
        if not finished(directory.record(arm.name, seed))
    ]
    if unfinished:
        raise ConfigError(
            f"{root}: {unfinished[0]} has not been trained", rule="arms are compared whole",
            remedy="finish the study first: run --resume --out",
        )  # fmt: skip


def _run_directory(root: Path, options: argparse.Namespace) -> int:
    """Every student of a finished study; the scores join its records and its report."""
    from harness.ranks import from_environment

    table = _evaluated(root, options)
    if from_environment().is_main:
        _print(table, options)
    return 0


def _evaluated(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What every student of a study scored."""
    from harness.jobs import open_alone
    from harness.rundir import RunDirectory, load_study

    study = load_study(root)
    spec = _spec(study.evaluation.glue, options)
    study = _with(study, spec)
    if options.out is not None:
        raise ConfigError(
            f"--out {options.out}", rule="the results of a study stay beside its students", remedy="leave it out"
        )
    directory = RunDirectory(root)
    _refuse_unfinished(root, study)
    from harness.engine import connect, device_of

    ranks = connect()
    from harness.data.glue_price import decided_by, plan_notes, prepare
    from harness.data.tokenizer import load_tokenizer, special_ids
    from harness.evaluate import glue_study
    from harness.evaluate.encoders import Encoder
    from harness.evaluate.glue import Glue
    from harness.models.initialise import adopt
    from harness.models.shapes import shape_of
    from harness.models.student import student_config
    from harness.models.teacher import inspect
    from harness.progress import reporter
    from harness.stopping import StopFlag
    from harness.watchdog import watch

    tell = reporter(is_main=ranks.is_main, json=options.json)
    trials = glue_study.trained(study, directory)
    # The student's own copy: the study may name a tokenizer that is no longer where it was.
    tokenizer, fingerprint = load_tokenizer(str(directory.trial(*trials[0]) / "student"))
    special = special_ids(tokenizer)
    ids = {"pad": special.pad, "cls": special.cls, "sep": special.sep, "mask": special.mask}
    configs = [
        student_config(
            study.for_arm(arm).student, vocab=len(tokenizer), special=ids, block_length=study.data.block_length
        )
        for arm in study.arms
    ]
    first = dict(reversed(trials))  # of every arm whose students are there
    for arm, config in zip(study.arms, configs, strict=True):
        if study.for_arm(arm).student.init_from_teacher is not None and arm.name in first:
            # As the run gave it its teacher's functions; the teacher itself may not be here.
            adopt(config, Encoder(directory.trial(arm.name, first[arm.name]) / "student").config)
    others = [inspect(study.teacher.path).shape] if study.teacher is not None and "teacher" in spec.references else []
    plan = prepare(
        spec, tokenizer, tokenizer_fingerprint=fingerprint, others=others,
        shapes=list(dict.fromkeys(shape_of(config.to_dict()) for config in configs)),
    )  # fmt: skip
    decided_by(plan, study.evaluation.main)
    ranks.on_main(lambda: open_alone(directory, study, resume=True))
    try:
        with StopFlag(ranks) as stop, watch(root, ranks, timeout_s=options.hang_timeout, remedy=AGAIN):
            ranks.on_main(lambda: glue_study.measure_sizes(directory, trials, device_of(ranks)))
            glue = Glue(
                plan, glue_study.students(study, directory, trials, config=configs[0]), pad=special.pad, ranks=ranks,
                device=device_of(ranks), tell=tell, stop=stop, again=AGAIN,
            )  # fmt: skip
            _say(notes=plan_notes(plan, study), tell=tell, glue=glue)
            glue_study.evaluate(glue, publish=True, directory=directory, trials=trials)
    finally:
        if ranks.is_main:
            directory.close()
    # One that cannot be written, as on a full disk, is every rank's error: none waits for it.
    return ranks.on_main(lambda: _study_table(directory, glue))


def _study_table(directory: RunDirectory, glue: Glue) -> dict[str, Any]:
    """Rebuilds the study's report; returns one row per student."""
    from harness.commands._report import write_report
    from harness.rundir import read_json

    write_report(directory.root)
    rows = []
    references = read_json(directory.root / "references.json") or {}
    for student in glue.students:
        kept = read_json(student.folder / "record.json") or references.get(student.folder.name, {})
        found = {name: value for name, value in kept.get("scores", {}).items() if name.startswith("glue.")}
        rows.append({"name": student.name, "scores": found, "glue": kept.get("glue"), "model": kept.get("model")})
    return {"run": str(directory.root), "students": rows}


def _model_folder(folder: Path, options: argparse.Namespace) -> int:
    """One encoder; its results are kept in a folder of their own."""
    spec = _spec(None, options)
    from harness.evaluate.encoders import Encoder

    encoder = Encoder(folder)
    shape = encoder.shape
    from filelock import FileLock, Timeout

    from harness.engine import connect, device_of

    ranks = connect()
    from harness.data.glue_price import prepare
    from harness.data.tokenizer import load_tokenizer, special_ids
    from harness.evaluate import size
    from harness.evaluate.glue import Glue, row_of, spent
    from harness.evaluate.glue_jobs import Student
    from harness.progress import reporter
    from harness.rundir import write_json
    from harness.stopping import StopFlag
    from harness.watchdog import watch

    tell = reporter(is_main=ranks.is_main, json=options.json)
    tokenizer, fingerprint = load_tokenizer(str(folder))
    if len(tokenizer) > shape.vocab:
        raise DataError(
            f"model {folder} has {shape.vocab} embeddings", rule=f"its tokenizer has {len(tokenizer)} entries",
            remedy="give the tokenizer it was trained with",
        )  # fmt: skip
    plan = prepare(spec, tokenizer, tokenizer_fingerprint=fingerprint, shapes=[shape], others=[])
    name = folder.resolve().name
    out = Path(options.out or Path("runs") / "glue" / f"{name}-{encoder.fingerprint}")
    lock = FileLock(out / ".lock", timeout=0)

    def begin() -> None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise ConfigError(f"--out {out}", rule="another evaluation is using it", remedy="choose another") from None
        except OSError as error:
            raise ConfigError(
                f"--out {out}", rule=f"not writable ({error.strerror})", remedy="choose another"
            ) from None

    ranks.on_main(begin)
    try:
        with StopFlag(ranks) as stop, watch(out, ranks, timeout_s=options.hang_timeout, remedy=AGAIN):
            measured = ranks.on_main(lambda: size.measure(folder, device=device_of(ranks)))
            glue = Glue(
                plan, [Student(name, out, encoder)], pad=special_ids(tokenizer).pad, ranks=ranks,
                device=device_of(ranks), tell=tell, stop=stop, again=AGAIN,
            )  # fmt: skip
            _say(notes=plan.notes, tell=tell, glue=glue)
            summaries = glue.run()
        flop, seconds = spent(out)
        table = {
            "model": str(folder), "weights": encoder.fingerprint,
            "students": [
                {
                    "name": name, "scores": row_of(summaries[name], list(summaries[name]["tasks"])), "model": measured,
                    "glue": {**summaries[name], "flop": flop, "seconds": seconds},
                }
            ],
        }  # fmt: skip
        ranks.on_main(lambda: write_json(out / "evaluation.json", table))
        if ranks.is_main:
            _print({**table, "out": str(out)}, options)
    finally:
        if ranks.is_main:
            lock.release()
    ranks.barrier()
    return 0


def _say(*, notes: list[str], tell: Silent, glue: Glue) -> None:
    from harness.units import Unit, format_amount

    for note in notes:
        tell.say(f"note: {note}")
    each = sum(glue.plan.flop.values())
    tell.say(f"GLUE: {', '.join(glue.plan.data)}; at most {format_amount(each, Unit.FLOP)} per student")


def _print(table: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        print_json(table)
        return
    from rich.console import Console
    from rich.table import Table

    names = list(dict.fromkeys(score for row in table["students"] for score in row["scores"]))
    view = Table(title="GLUE", title_justify="left")
    view.add_column("student")
    for name in names:
        view.add_column(name.removeprefix("glue."), justify="right")
    for row in table["students"]:
        view.add_row(row["name"], *(f"{100 * row['scores'][n]:.1f}" if n in row["scores"] else "–" for n in names))
    console = Console()
    console.print(view)
    for note in dict.fromkeys(note for row in table["students"] for note in (row["glue"] or {}).get("notes", [])):
        console.print(f"note: {note}", highlight=False, markup=False)
    console.print(f"results: {table.get('out') or table['run']}", highlight=False, markup=False)
