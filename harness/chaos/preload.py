"""What every rank needs, imported once: ranks are forked from a process that has already paid for it."""

from harness import conduct, ds_config, engine
from harness.report import publish

# DeepSpeed is imported inside the engine; asking it to read a configuration imports it whole.
engine.check(ds_config.default(bf16=False), sequences=2, world=1)

__all__ = ["conduct", "publish"]
