"""The gradient of a scalar output at every activation that a cache holds, in one backward pass."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxlens.config import Config
from jaxlens.hooks.names import split_name
from jaxlens.hooks.plan import SiteHook, zero_probe
from jaxlens.hooks.positions import Positions
from jaxlens.model.engine import Captured


def run_with_gradients(model, model_input, request, hooks):
    """`model.run`, with the gradient of its output at each captured activation added as `name + "_grad"`.

    A zero is added at every captured hook point, after all hooks. The derivative with respect to that zero is the
    gradient at the hook point, before backward hooks edit it.
    """
    # A plain hook may read globals that have changed since it was compiled, so a run with one is not compiled whole.
    if any(hook.is_plain for hook in hooks):
        return _run_with_gradients(model, model_input, request, hooks)
    return _compiled(model, dataclasses.replace(model_input, length=None), request, hooks)


def _run_with_gradients(model, model_input, request, hooks):
    exact = dataclasses.replace(model_input, length=None)
    output, shapes = _without_hooks.eval_shape(model, exact, dataclasses.replace(request, positions=None))
    if not isinstance(output, jax.ShapeDtypeStruct) or output.shape != ():
        raise ValueError('incl_bwd needs a scalar to differentiate; pass return_type="loss"')
    shapes = [shape for shape in shapes if jnp.issubdtype(shape.value.dtype, jnp.floating)]  # tokens have no gradient
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

    def scalar(zeros: list[Captured]):
        probes = tuple(_probe(model.cfg, zero) for zero in zeros)
        return model.run(model_input, request, hooks, probes)

    (output, captured), gradients = jax.value_and_grad(scalar, has_aux=True)(zeros)
    return output, captured + [_renamed(gradient, request.positions) for gradient in gradients]


_without_hooks = jax.jit(lambda model, model_input, request: model.run(model_input, request, ()))  # hooks keep shapes
_compiled = jax.jit(_run_with_gradients)


def _probe(cfg: Config, zero: Captured) -> SiteHook:
    """The hook that adds a zero where `zero` was captured."""
    site, layer = split_name(zero.name)
    if zero.layers is not None:
        return zero_probe(site, zero.value, zero.layers, cfg.n_layers)
    if layer is None:
        return zero_probe(site, zero.value)
    return zero_probe(site, zero.value[None], (layer,), cfg.n_layers)


def _renamed(gradient: Captured, positions: Positions | None) -> Captured:
    """The gradient at the captured positions, with the suffix "_grad"."""
    value = gradient.value
    if positions is not None:
        value = positions.cut(split_name(gradient.name)[0], value, n_leading=int(gradient.layers is not None))
    return Captured(f"{gradient.name}_grad", gradient.layers, value)
