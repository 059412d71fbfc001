"""The classes that define a family: rules for its tensors, and a reader for its config.json."""

from jaxlens.checkpoints.rules.hf_config import Reader
from jaxlens.checkpoints.rules.rule import Family, Rule

__all__ = ["Family", "Reader", "Rule"]
