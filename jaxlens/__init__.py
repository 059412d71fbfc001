"""TransformerLens's interface on JAX: load a transformer, then read, edit and differentiate any activation, compiled.

Names are imported when they are first used, so `import jaxlens` is fast.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from jaxlens.transformer_lens import names

if TYPE_CHECKING:
    from jaxlens._jax import use_compilation_cache
    from jaxlens.analysis.logit_attribution import DirectLogitAttribution, direct_logit_attribution
    from jaxlens.analysis.svd import SVDInterpreter
    from jaxlens.config import Config, Rotary
    from jaxlens.errors import ActivationNotFound, CheckpointError, HookError
    from jaxlens.hooks import Slice, get_act_name, hook
    from jaxlens.hooks.point import HookPoint
    from jaxlens.hooks.root_module import HookedRootModule
    from jaxlens.hooks.steer import steer
    from jaxlens.model.cache.activation_cache import ActivationCache
    from jaxlens.model.generation.generate import Generated
    from jaxlens.model.generation.past import (
        HookedTransformerKeyValueCache,
        TransformerLensKeyValueCache,
        TransformerLensKeyValueCacheEntry,
    )
    from jaxlens.model.loss import Output, lm_accuracy, lm_cross_entropy_loss
    from jaxlens.model.transformer import HookedTransformer
    from jaxlens.nn.kv_cache import KVCache
    from jaxlens.text.tokenizer import Tokenizer
    from jaxlens.transformer_lens.config import HookedTransformerConfig
    from jaxlens.weights.factored_matrix import FactoredMatrix

_EXPORTS = {
    "ActivationCache": "model.cache.activation_cache",
    "ActivationNotFound": "errors",
    "CheckpointError": "errors",
    "Config": "config",
    "DirectLogitAttribution": "analysis.logit_attribution",
    "FactoredMatrix": "weights.factored_matrix",
    "Generated": "model.generation.generate",
    "HookError": "errors",
    "HookPoint": "hooks.point",
    "HookedRootModule": "hooks.root_module",
    "HookedTransformer": "model.transformer",
    "HookedTransformerConfig": "transformer_lens.config",
    "HookedTransformerKeyValueCache": "model.generation.past",
    "KVCache": "nn.kv_cache",
    "Output": "model.loss",
    "Rotary": "config",
    "SVDInterpreter": "analysis.svd",
    "Slice": "hooks",
    "Tokenizer": "text.tokenizer",
    "TransformerLensKeyValueCache": "model.generation.past",
    "TransformerLensKeyValueCacheEntry": "model.generation.past",
    "direct_logit_attribution": "analysis.logit_attribution",
    "get_act_name": "hooks",
    "hook": "hooks",
    "lm_accuracy": "model.loss",
    "lm_cross_entropy_loss": "model.loss",
    "steer": "hooks.steer",
    "use_compilation_cache": "_jax",
}
"""The module that defines each public name."""

__all__ = [
    "ActivationCache", "ActivationNotFound", "CheckpointError", "Config", "DirectLogitAttribution", "FactoredMatrix",
    "Generated", "HookError", "HookPoint", "HookedRootModule", "HookedTransformer", "HookedTransformerConfig",
    "HookedTransformerKeyValueCache", "KVCache", "Output", "Rotary", "SVDInterpreter", "Slice", "Tokenizer",
    "TransformerLensKeyValueCache", "TransformerLensKeyValueCacheEntry", "direct_logit_attribution", "get_act_name",
    "hook", "lm_accuracy", "lm_cross_entropy_loss", "steer", "use_compilation_cache",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
        globals()[name] = value
        return value
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("hooked-jaxlens")
    return names.find_module(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *names.TOP_LEVEL})


class _Package(names.Package):
    exports = _EXPORTS


sys.modules[__name__].__class__ = _Package
names.install()
