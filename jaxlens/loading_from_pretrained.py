"""TransformerLens's module of this name: configs of checkpoints, without their weights."""

from jaxlens.compat.config import HookedTransformerConfig
from jaxlens.convert import open_checkpoint


def get_pretrained_model_config(model_name: str, revision: str | None = None) -> HookedTransformerConfig:
    """The config that `HookedTransformer.from_pretrained` would give a model, read off the checkpoint's headers."""
    checkpoint = open_checkpoint(model_name, revision)
    return HookedTransformerConfig.unwrap(checkpoint.cfg, model_name=checkpoint.name)
