"""TransformerLens's vocabulary on JAX: load a transformer, read, write and differentiate any activation, compiled."""

from jaxlens.config import Config
from jaxlens.config import Rotary as Rotary
from jaxlens.transformer import HookedTransformer
from jaxlens.analysis.activation_cache import ActivationCache
from jaxlens.hooks import HookPoint, hook
from jaxlens.loss import Output, lm_cross_entropy_loss
from jaxlens.names import get_act_name
from jaxlens.slices import Slice
from jaxlens.tokenizer import Tokenizer
from jaxlens.errors import ActivationNotFound, CheckpointError, HookError

__all__ = [
    "ActivationCache", "ActivationNotFound", "CheckpointError", "Config", "HookError", "HookPoint", "HookedTransformer",
    "Output", "Rotary", "Slice", "Tokenizer", "get_act_name", "hook", "lm_cross_entropy_loss",
]  # fmt: skip
