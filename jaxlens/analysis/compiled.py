"""Compiled functions of a model."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax

from jaxlens._jax import full_precision
from jaxlens.model.transformer import HookedTransformer


def compiled(function: Callable) -> Callable:
    """Compiles a function whose first argument is a model. Keyword-only arguments are static.

    If the model has Python hooks, the function is not compiled as a whole: a hook may read globals that change.
    """
    parameters = inspect.signature(function).parameters.values()
    static = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    program = jax.jit(function, static_argnames=static)

    @functools.wraps(function)
    def run(model: HookedTransformer, *arguments: Any, **keywords: Any):
        with full_precision(model.cfg.dtype):
            return (function if model.has_python_hooks else program)(model, *arguments, **keywords)

    return run
