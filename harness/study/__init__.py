"""A study: arms that share one budget, one stream of data, one schedule and one evaluation.

Read from YAML and validated before anything is spent. The study owns the science; a ds_config owns the engine.
One file per block of a study file; `study.py` holds the whole, `reading.py` reads it.
"""

from harness.study.accounting import CHARGEABLE, AccountingSpec
from harness.study.data import EMBEDDED, DataSpec, DomainSpec, MaskingSpec, SourceSpec, TextSpec
from harness.study.evaluation import ChoiceSpec, EvaluationSpec, ProbeSpec, ReadoutSpec
from harness.study.glue import GlueSpec, GridSpec, glue_spec
from harness.study.models import ModelSpec, TeacherSpec
from harness.study.reading import STUDIES, load, names, read_yaml, validate
from harness.study.recipe import BatchSpec, OptimizerSpec, ScheduleSpec
from harness.study.speed import SpeedSpec, TeacherCacheSpec
from harness.study.study import MAY_DIFFER, ArmSpec, StudySpec

__all__ = [
    "CHARGEABLE",
    "EMBEDDED",
    "MAY_DIFFER",
    "STUDIES",
    "AccountingSpec",
    "ArmSpec",
    "BatchSpec",
    "ChoiceSpec",
    "DataSpec",
    "DomainSpec",
    "EvaluationSpec",
    "GlueSpec",
    "GridSpec",
    "MaskingSpec",
    "ModelSpec",
    "OptimizerSpec",
    "ProbeSpec",
    "ReadoutSpec",
    "ScheduleSpec",
    "SourceSpec",
    "SpeedSpec",
    "StudySpec",
    "TeacherCacheSpec",
    "TeacherSpec",
    "TextSpec",
    "glue_spec",
    "load",
    "names",
    "read_yaml",
    "validate",
]
