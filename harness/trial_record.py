"""What is kept of a trial: its costs, what it learnt from, what a reader must know, and what travels with its student."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from harness import teacher_backends
from harness.budget import Account
from harness.kernels.backend import choices
from harness.meters.efficiency import Denominator, efficiency
from harness.models.parameter_names import within
from harness.models.teacher import Teacher, on_hub, weights_fingerprint
from harness.owed import known_cost, measured_on, teacher_training, units_of
from harness.teacher_cache.shards import RememberedTeacher
from harness.units import Unit

if TYPE_CHECKING:
    from harness.evaluate.vouch import Voucher
    from harness.objectives.composition import Plan
    from harness.setting import ArmSetting
    from harness.train import Trial


def trial_record(arm: ArmSetting, seed: int, trial: Trial, voucher: Voucher | None, *, corpus: str) -> dict[str, Any]:
    """What is known of a trial when its training ends; evaluation adds scores."""
    ledger, steps = trial.ledger, trial.progress.step
    phase = trial.trainee.plan.phase_at(ledger.fraction_spent)
    price = ledger.price(charge for meter in trial.meters for charge in meter.next_step(phase))
    busy = (Account.STUDENT_STEP, Account.TEACHER_FORWARD)
    plan = trial.trainee.plan
    kept = plan.trained_layers(arm.shape) if arm.study.student.untrained_top == "drop" else arm.shape.layers
    return {
        "name": arm.arm.name,
        "seed": seed,
        "state": "done",
        "objective": arm.arm.model_dump(mode="json")["objective"],
        "phases": [
            {"until": phase.until, "restart": phase.restart, "terms": [vars(term) for term in phase.terms]}
            for phase in plan.phases
        ],
        "differs": arm.arm.differs,
        "paper_code": plan.paper_code(),
        "exported_layers": kept,
        "corpus": corpus,
        "teacher": teacher_facts(arm, voucher),
        "steps": steps,
        "skipped_steps": trial.progress.skipped,
        "stragglers": trial.progress.stragglers,
        "tokens": steps * trial.stream.tokens_per_step,
        "unique_tokens": trial.stream.unique_tokens(steps),
        "epochs": max(trial.stream.epochs(steps).values()),
        "tokens_by_source": trial.stream.tokens_by_source(steps),
        "epochs_by_source": trial.stream.epochs(steps),
        "charged": ledger.spent,
        "unspent": ledger.remaining,
        "step_price": price if math.isfinite(price) else None,
        "seconds": sum(ledger.amount(account, Unit.GPU_SECOND) for account in busy),
        "wall_seconds": trial.progress.seconds,
        "accounts": ledger.accounts(),
        "budget_unit": ledger.budget.unit.value,
        "charged_in": {unit.value: amount for unit in Unit if (amount := ledger.charged_in(unit))},
        **flop_facts(trial),
        "teacher_training": []
        if arm.teacher is None
        else [
            teacher_training(arm.study, arm.teacher, unit).record()
            | {"devices": measured_on(arm.study, arm.teacher, unit)}
            for unit in units_of(arm.study)
        ],
        "scores": {},
        "warnings": [
            *departures(arm, plan, kept, voucher),
            *repeated(arm, trial),
            *slow_ranks(trial),
            *trial.progress.warnings,
            *uncounted(trial),
        ],
        "head_trained": trial.trainee.plan.trains_head,
        "parameters": sum(p.numel() for p in trial.trainee.student.parameters()),
        "objective_parameters": sum(p.numel() for p in plan.parameters()),
        "untrained_parameters": [
            n.removeprefix("student.") for n in trial.groups.untrained if n.startswith("student.")
        ],
        "kernels": choices(),
        "teacher_cache": cache_facts(arm, trial),
        "engine": trial.engine.facts() | ({"teacher": trial.teacher.placement} if trial.teacher else {}),
        "teacher_backend": teacher_backends.facts(trial.teacher, trial.directory)
        if isinstance(trial.teacher, Teacher)
        else None,
        "micro_batch": trial.engine.micro_batch,
        "accumulation": trial.engine.accumulation,
        "identity": {kind: facts for kind, facts in trial.identity.items() if kind != "study"},
        "overrides": trial.overrides,
    }


STEPS = (Account.STUDENT_STEP, Account.TEACHER_FORWARD, Account.OBJECTIVE)


def flop_facts(trial: Trial) -> dict[str, Any]:
    """Algorithmic and executed FLOPs of all steps; executed is None where it was not counted."""
    ledger, progress = trial.ledger, trial.progress
    algorithmic = sum(ledger.amount(account, Unit.FLOP) for account in STEPS)
    executed = None
    if trial.executed is not None:
        steps = {int(phase): count for phase, count in progress.steps_by_phase.items()}
        student = sum(trial.executed[phase] * count for phase, count in steps.items())
        executed = student + ledger.amount(Account.TEACHER_FORWARD, Unit.FLOP)
    return {"algorithmic_flop": algorithmic, "executed_flop": executed}


def efficiency_record(record: dict[str, Any], of: Denominator) -> dict[str, Any]:
    """MFU and HFU over the device time of all steps."""
    return efficiency(
        algorithmic_flop=record["algorithmic_flop"], executed_flop=record["executed_flop"], device_s=record["seconds"],
        of=of,
    )  # fmt: skip


def teacher_facts(arm: ArmSetting, voucher: Voucher | None) -> dict[str, Any] | None:
    """Who taught this arm, on what it was itself trained, and how it compared before step 1."""
    if arm.teacher is None or arm.study.teacher is None:
        return None
    return {
        **arm.study.teacher.model_dump(mode="json"),
        "training_flop": known_cost(arm.study, arm.teacher, Unit.FLOP),
        "weights": weights_fingerprint(arm.teacher.path),
        "hub": on_hub(arm.teacher.path),
        "corpus": arm.teacher.provenance.get("corpus"),
        "before_training": None if voucher is None else vars(voucher),
    }


def cache_facts(arm: ArmSetting, trial: Trial) -> dict[str, Any] | None:
    """What the remembered teacher of this trial is: its samples, bytes, device seconds, and what its logits leave out."""
    if not isinstance(trial.teacher, RememberedTeacher):
        return None
    spec, policy = arm.study.speed.teacher_cache, arm.study.accounting.teacher_cache
    assert spec is not None
    return {
        **trial.teacher.written, **spec.model_dump(mode="json"),
        "policy": policy if isinstance(policy, str) else f"shared by {policy.amortised_over} runs",
        "charged": Account.TEACHER_CACHE in arm.study.charged,
    }  # fmt: skip


def repeated(arm: ArmSetting, trial: Trial) -> list[str]:
    """What a reader must know of data that comes again and of a teacher that is not asked."""
    found, data = [], arm.study.data
    if data.seed is not None:
        found.append(
            f"all seeds read one order with one set of masks (data.seed {data.seed}): they differ in initial weights alone"
        )
    cache = cache_facts(arm, trial)
    if cache is None:
        return found
    for temperature, share in cache["outside_kept_logits"].items():
        if share:
            found.append(
                f"of its teacher {cache['logits']} logits of a position were kept; {share:.2%} of the mass at temperature "
                f"{temperature} lies outside them and counts as one outcome"
            )
    if not cache["charged"]:
        found.append("its teacher's cache is reported and not charged: the budget paid for no teacher")
    return found


def uncounted(trial: Trial) -> list[str]:
    """Why `executed_flop` is null, where counting it failed."""
    return [trial.uncounted] if trial.uncounted else []


def slow_ranks(trial: Trial) -> list[str]:
    """Ranks that all others waited for; the mathematics is unchanged, the device time is not."""
    return [
        f"rank {row['rank']} (host {row['host']}) was slower than the others by {1e3 * row['excess_s']:.0f} ms a step, "
        f"steps {row['from_step']} to {row['to_step']}"
        for row in trial.progress.stragglers
    ]


def departures(arm: ArmSetting, plan: Plan, kept: int, voucher: Voucher | None) -> list[str]:
    """What a reader of this arm's result must know beside its objective's name."""
    found = []
    if options := plan.paper_code():
        found.append(f"computes what the published code computed, not the definition: {', '.join(options)}")
    if plan.needs_teacher and arm.study.teacher is not None and arm.study.teacher.dropout:
        found.append(f"its teacher runs with dropout {arm.study.teacher.dropout:g}, as in the published code")
    if kept < arm.shape.layers:
        found.append(
            f"the exported student has {kept} of {arm.shape.layers} layers: the others were never trained whole"
        )
    if voucher is not None and voucher.worse:
        found.append(
            f"its teacher is worse than the untrained student ({'next-token' if arm.shape.causal else 'MLM'} loss "
            f"{voucher.teacher_loss:.3f} against "
            f"{voucher.student_loss:.3f}), allowed by teacher.allow_worse"
        )
    return found


def card(record: dict[str, Any]) -> dict[str, Any]:
    """What travels with an exported student: enough to know what made it and what it cost."""
    flop = {account: units.get("flop", 0) for account, units in record["accounts"].items()}
    charged = ("STUDENT_STEP", "TEACHER_FORWARD", "OBJECTIVE")
    return {
        "made_by": "isobudget",
        "objective": record["objective"],
        "corpus": record["corpus"],
        "seed": record["seed"],
        "steps": record["steps"],
        "tokens": record["tokens"],
        "training_flop": sum(flop.get(account, 0) for account in charged),
        "accounts": record["accounts"],
        "devices": record["identity"]["hardware"]["devices"],
        "untrained_parameters": within(record["untrained_parameters"], record["exported_layers"]),
    }
