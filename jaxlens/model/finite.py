"""The warning about activations that are not finite, such as those of a float16 model that overflow."""

import dataclasses
import warnings
from typing import Any

import jax.numpy as jnp

from jaxlens._jax import is_traced, on_host
from jaxlens.hooks.plan import RegisteredHook
from jaxlens.hooks.table import sites
from jaxlens.model.loss import Output
from jaxlens.model.request import ModelInput, RunRequest

MASKED = "attn.hook_attn_scores"
"""A site that is -inf where a query does not attend."""


def warn_if_not_finite(
    model: Any, output: Any, model_input: ModelInput, request: RunRequest, hooks: tuple[RegisteredHook, ...]
) -> None:
    """Warns if an output is not finite, and names the first hook point whose value is not finite.

    It checks the loss of half-precision models, and every output if `model.check_finite` is set. A traced output is not
    checked. The run is repeated to find the hook point, without plain Python hooks, which could have side effects.
    """
    value = output.loss if isinstance(output, Output) else output
    needs_check = model.check_finite or (jnp.dtype(model.cfg.dtype).itemsize < 4 and request.return_type != "logits")
    if value is None or not needs_check or is_traced(value) or bool(jnp.isfinite(value).all()):
        return
    wanted = frozenset(name for name in request.layers.wanted(model.cfg, None) if not name.endswith(MASKED))
    repeated = dataclasses.replace(request, return_type=None, wanted=wanted, positions=None)
    repeatable = tuple(hook for hook in hooks if not hook.is_plain)
    _, captured = type(model).run(model, model_input, repeated, repeatable)
    finite: dict[str, bool] = {}
    for entry in captured:
        names = [entry.name] if entry.layers is None else [f"blocks.{layer}.{entry.name}" for layer in entry.layers]
        of_layers = jnp.isfinite(entry.value).reshape(len(names), -1).all(1)
        finite |= dict(zip(names, on_host(of_layers).tolist(), strict=True))
    first = next((name for name in sites(model.cfg) if not finite.get(name, True)), None)
    where = f'"{first}" is the first hook point that is not finite'
    if first is None:
        where = "every hook point is finite"
        where += ", in a run without its Python hooks" if len(repeatable) < len(hooks) else ""
    dtype = jnp.finfo(model.cfg.dtype)
    advice = f"; {dtype.dtype} ends at {float(dtype.max):.0f}, so try a wider dtype" if dtype.bits < 32 else ""
    kind = "loss is" if value.ndim < 3 else "logits are" if request.layers.unembeds else "residual stream is"
    warnings.warn(f"the {kind} not finite: {where}{advice}", stacklevel=4)
