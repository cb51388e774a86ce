"""The study that tests train: the one the fault table breaks."""

from harness.chaos.tiny import TinyStudy, write_corpus, write_teacher

__all__ = ["TinyStudy", "write_corpus", "write_teacher"]
