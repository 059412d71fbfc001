"""TransformerLens's `loading_from_pretrained`: reads the config of a checkpoint without its weights."""

from jaxlens.checkpoints import open_checkpoint
from jaxlens.config import Config


def get_pretrained_model_config(model_name: str, revision: str | None = None) -> Config:
    """The config of a model, as `HookedTransformer.from_pretrained` would load it. Reads no weights.

    Raises:
        CheckpointError: The checkpoint cannot be found or read.
    """
    checkpoint = open_checkpoint(model_name, revision)
    return checkpoint.cfg.replace(model_name=checkpoint.name)
