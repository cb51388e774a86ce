"""Where a run's scalars go while it runs: one tracker a file, none of which can stop a run."""

from harness.trackers.base import Follower, Tracker, check, known, openers

__all__ = ["Follower", "Tracker", "check", "known", "openers"]
