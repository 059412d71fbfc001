"""Methods of a cache whose model is on a mesh with Explicit axes (see jaxlens/_jax/explicit_axes.py)."""

import functools
from typing import Any

from jaxlens._jax.explicit_axes import F, explicit_mesh, on_any_mesh


def cache_on_any_mesh(function: F) -> F:
    """`on_any_mesh` for a function whose first argument is a cache, which as a pytree has no model."""

    @on_any_mesh
    def with_model(model: Any, cache: Any, *arguments: Any, **keywords: Any) -> Any:
        return function(cache.with_model(model), *arguments, **keywords)

    @functools.wraps(function)
    def run(cache: Any, *arguments: Any, **keywords: Any) -> Any:
        if cache.model is None or explicit_mesh(cache.model.modules.embed) is None:
            return function(cache, *arguments, **keywords)
        return with_model(cache.model, cache, *arguments, **keywords)

    return run
