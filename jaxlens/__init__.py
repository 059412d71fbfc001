"""TransformerLens's vocabulary on JAX: load a transformer, read, write and differentiate any activation, compiled."""

from jaxlens.config import Config
from jaxlens.config import Rotary as Rotary
from jaxlens.HookedTransformer import HookedTransformer
from jaxlens.HookedTransformerConfig import HookedTransformerConfig
from jaxlens.ActivationCache import ActivationCache
from jaxlens.analysis.logit_attribution import DirectLogitAttribution, direct_logit_attribution
from jaxlens.SVDInterpreter import SVDInterpreter
from jaxlens.FactoredMatrix import FactoredMatrix
from jaxlens.hook_points import HookedRootModule as HookedRootModule
from jaxlens.hooks import HookPoint, hook
from jaxlens.loss import Output, lm_accuracy, lm_cross_entropy_loss
from jaxlens.names import get_act_name
from jaxlens.slices import Slice
from jaxlens.tokenizer import Tokenizer
from jaxlens.errors import ActivationNotFound, CheckpointError, HookError
from jaxlens import evals as evals
from jaxlens import head_detector as head_detector
from jaxlens import hook_points as hook_points
from jaxlens import patching as patching
from jaxlens import utilities as utilities
from jaxlens import utils as utils
from jaxlens.compat.names import find as __getattr__  # noqa: F401  (Python asks it for names that are not here)

__all__ = [
    "ActivationCache", "ActivationNotFound", "CheckpointError", "Config", "DirectLogitAttribution",
    "FactoredMatrix", "HookError", "HookPoint", "HookedTransformer", "HookedTransformerConfig", "Output", "Rotary",
    "SVDInterpreter", "Slice", "Tokenizer", "direct_logit_attribution", "get_act_name", "hook", "lm_accuracy",
    "lm_cross_entropy_loss",
]  # fmt: skip
