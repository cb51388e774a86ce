"""What an arm trains with: phases by fraction of the budget, each a weighted sum of objectives.

From scratch is the plan that needs no teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from harness.errors import ConfigError
from harness.models.shapes import Shape
from harness.models.signals import Needs, Signals, TrainingBatch
from harness.objectives.base import Objective, StepSize, discover


@dataclass(frozen=True)
class Term:
    """One objective and its weight, as the study writes it."""

    name: str
    weight: float
    options: dict[str, Any]


@dataclass(frozen=True)
class Phase:
    """Terms that apply until this fraction of the budget is spent; `restart` begins the schedule anew."""

    until: float
    terms: tuple[Term, ...]
    restart: bool = False


def parse(spec: str | dict[str, Any]) -> list[Phase]:
    """Read an arm's `objective`: a name, `{name: …, option: …}`, `{terms: […]}` or `{phases: […]}`.

    Raises:
        ConfigError: unknown objective or key, weights that sum to nothing, phases out of order.
    """
    if isinstance(spec, dict) and "phases" in spec:
        items = spec["phases"]
        if set(spec) != {"phases"} or not isinstance(items, list) or not items:
            raise ConfigError(
                f"objective {spec}", rule="phases is a list and stands alone", remedy="list {until, name} items"
            )
        phases: list[Phase] = []
        for item in items:
            if not isinstance(item, dict):
                raise ConfigError(
                    f"phase {item!r}", rule="a phase is a mapping", remedy="for example {until: 0.7, name: mlm}"
                )
            item = dict(item)
            until = item.pop("until", 1.0)
            if (
                isinstance(until, bool)
                or not isinstance(until, int | float)
                or not (phases[-1].until if phases else 0) < until <= 1
            ):
                raise ConfigError(
                    f"phase until = {until!r}", rule="ends rise within (0, 1]", remedy="for example 0.7, then 1.0"
                )
            restart = item.pop("restart", False)
            if not isinstance(restart, bool):
                raise ConfigError(f"phase restart = {restart!r}", rule="it is true or false", remedy="give one")
            phases.append(Phase(float(until), _terms(item), restart))
        if phases[-1].until != 1.0:
            raise ConfigError(
                f"last phase until = {phases[-1].until}", rule="the last phase ends at 1.0", remedy="set until: 1.0"
            )
        return phases
    return [Phase(1.0, _terms(spec))]


def _terms(spec: str | dict[str, Any]) -> tuple[Term, ...]:
    if isinstance(spec, dict) and "terms" in spec:
        if set(spec) != {"terms"} or not isinstance(spec["terms"], list) or not spec["terms"]:
            raise ConfigError(
                f"objective {spec}", rule="terms is a list and stands alone", remedy="list {name, weight} items"
            )
        terms = tuple(_term(item) for item in spec["terms"])
    else:
        terms = (_term(spec),)
    if not sum(term.weight for term in terms) > 0:
        raise ConfigError(
            f"objective {spec}", rule="the weights sum to nothing", remedy="give one term a positive weight"
        )
    names = [term.name for term in terms]
    if len(set(names)) < len(names):
        raise ConfigError(f"objective {spec}", rule="an objective is listed twice", remedy="merge the two terms")
    # A term that weighs nothing is not there: it would be computed and paid for, and its gradient of zeros
    # would hand weights that nothing trains to the optimizer, which decays them.
    return tuple(term for term in terms if term.weight)


def _term(spec: str | dict[str, Any]) -> Term:
    options = {"name": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, dict) else {}
    name = options.pop("name", None)
    known = discover()
    if name not in known:
        raise ConfigError(
            f"objective {name!r}", rule=f"known are {', '.join(sorted(known))}", remedy="choose one of those"
        )
    weight = options.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise ConfigError(f"objective {name}: weight {weight!r}", rule="weights are numbers ≥ 0", remedy="give one")
    return Term(name, float(weight), options)


class Plan(nn.Module):
    """The objectives of one arm, phase by phase, with their learned parts."""

    def __init__(self, spec: str | dict[str, Any], *, student: Shape, teacher: Shape | None) -> None:
        super().__init__()
        self.phases = parse(spec)
        known = discover()
        self.parts = nn.ModuleList()
        built: list[tuple[Term, Objective]] = []
        for phase in self.phases:
            part = nn.ModuleDict()
            for term in phase.terms:
                # A method that returns in a later phase keeps what its projections learned.
                kept = [o for t, o in built if (t.name, t.options) == (term.name, term.options)]
                objective = kept[0] if kept else _build(known[term.name], term, student, teacher)
                built.append((term, objective))
                part[term.name] = objective
            self.parts.append(part)
        for phase in range(len(self.phases)):
            self.student_needs(phase).check(student, whose="student")
            if teacher is not None:
                self.teacher_needs(phase).check(teacher, whose="teacher")

    def objectives(self, phase: int) -> list[tuple[float, Objective]]:
        part = self.parts[phase]
        return [(term.weight, part[term.name]) for term in self.phases[phase].terms]  # type: ignore[misc, index]

    def phase_at(self, fraction: float) -> int:
        """The phase a step belongs to that begins when this fraction of the budget is spent."""
        return next((i for i, phase in enumerate(self.phases) if fraction < phase.until), len(self.phases) - 1)

    def schedule_progress(self, fraction: float) -> float:
        """Where the schedule stands when this fraction of the budget is spent.

        The fraction itself, unless a phase restarts the schedule: each stretch between restarts then runs
        through the whole of it, warm-up to decay, so that a phase at the end has a rate to learn with.
        """
        restarts = [before.until for before, phase in pairwise(self.phases) if phase.restart]
        begin = max((at for at in restarts if at <= fraction), default=0.0)
        end = min((at for at in restarts if at > fraction), default=1.0)
        return (fraction - begin) / (end - begin)

    def student_needs(self, phase: int) -> Needs:
        needs = Needs()
        for _, objective in self.objectives(phase):
            needs |= objective.student_needs
        return needs

    def teacher_needs(self, phase: int) -> Needs:
        needs = Needs()
        for _, objective in self.objectives(phase):
            needs |= objective.teacher_needs
        return needs

    @property
    def all_teacher_needs(self) -> list[Needs]:
        """What a teacher is asked, once for every kind of question, in the order of the phases."""
        asked = (self.teacher_needs(phase) for phase in range(len(self.phases)))
        return list(dict.fromkeys(needs for needs in asked if needs))

    @property
    def needs_teacher(self) -> bool:
        return any(self.teacher_needs(phase) for phase in range(len(self.phases)))

    @property
    def trains_head(self) -> bool:
        """True when some phase trains the student's own MLM head."""
        return any(self.student_needs(phase).logits != "none" for phase in range(len(self.phases)))

    @property
    def compares_logits(self) -> bool:
        """True when some phase holds the student's logits against the teacher's: one vocabulary is needed."""
        return any(self.teacher_needs(phase).logits != "none" for phase in range(len(self.phases)))

    def trained_layers(self, student: Shape) -> int:
        """Layers that some phase trains whole; what lies above keeps its initial weights, wholly or in part."""
        return max(self.student_needs(phase).full_layers(student) for phase in range(len(self.phases)))

    def paper_code(self) -> list[str]:
        """The options in which this plan follows the published code and not the definition, for the record."""
        found: dict[str, None] = {}
        for phase in range(len(self.phases)):
            for _, objective in self.objectives(phase):
                for key, value in objective.paper_code.items():
                    kind = type(objective).Options.model_fields[key]
                    if getattr(objective.options, key) == value != kind.default:
                        found[f"{objective.name}.{key} = {value}"] = None
        return list(found)

    def flops(self, phase: int, size: StepSize) -> int:
        return sum(objective.flops(size) for _, objective in self.objectives(phase))

    def forward(self, phase: int, student: Signals, teacher: Signals, batch: TrainingBatch) -> dict[str, torch.Tensor]:
        """Named terms and their weighted sum under "total"."""
        terms: dict[str, torch.Tensor] = {}
        total: torch.Tensor | None = None
        for weight, objective in self.objectives(phase):
            for name, value in objective(student, teacher, batch).items():
                terms[f"{objective.name}.{name}"] = value.detach()
                total = weight * value if total is None else total + weight * value
        assert total is not None
        return {"total": total, **terms}


def _build(kind: type[Objective], term: Term, student: Shape, teacher: Shape | None) -> Objective:
    try:
        options = kind.Options.model_validate(term.options)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = (
            "unknown option" if first["type"] == "extra_forbidden" else str(first["msg"]).removeprefix("Value error, ")
        )
        raise ConfigError(
            f"objective {term.name}: {key} = {first.get('input')!r}",
            rule=message,
            remedy=f"options are {', '.join(kind.Options.model_fields) or 'none'}",
        ) from None
    return kind(options, student, teacher)
