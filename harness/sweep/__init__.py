"""Sweeps: a study at several values of one key, every value a whole study of its own, and one answer over all.

`spec.py` the block in the file, `expand.py` the studies it stands for, `conduct.py` running them, `gather.py` what
they found, `kinds.py` and `answer.py` what it says, `figures.py` and `publish.py` the report.
"""

from harness.sweep.conduct import SweepConductor, adopt_glue, check, is_sweep, load
from harness.sweep.expand import Point, Sweep, TeacherRun, expand
from harness.sweep.spec import SweepSpec, TrainedTeacher

__all__ = [
    "Point",
    "Sweep",
    "SweepConductor",
    "SweepSpec",
    "TeacherRun",
    "TrainedTeacher",
    "adopt_glue",
    "check",
    "expand",
    "is_sweep",
    "load",
]
