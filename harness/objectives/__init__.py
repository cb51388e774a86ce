"""Distillation methods, one file each; `harness.objectives.base.discover` finds them."""
