"""TransformerLens's `patching`: sweeps over one kind of activation, and direct path patching.

These functions return plain arrays. `jaxlens.analysis.activation_patch` takes prompts instead of a cache and returns a
labelled result.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, Literal, Unpack

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens._jax import full_precision
from jaxlens.analysis.inputs import check_source, read_single
from jaxlens.analysis.interventions.activation_patching import MetricFunction
from jaxlens.analysis.interventions.cells import Cells
from jaxlens.analysis.interventions.generic import (  # noqa: F401  (TransformerLens has them in this module)
    AxisNames,
    generic_activation_patch,
    layer_head_dest_src_pos_pattern_patch_setter,
    layer_head_pattern_patch_setter,
    layer_head_pos_pattern_patch_setter,
    layer_head_vector_patch_setter,
    layer_neuron_patch_setter,
    layer_pos_head_vector_patch_setter,
    layer_pos_patch_setter,
    make_df_from_ranges,
)
from jaxlens.analysis.interventions.path_patching import check_nodes
from jaxlens.analysis.interventions.sweep import Setter, SweepOptions, sweep
from jaxlens.hooks.api import hook
from jaxlens.model.cache.activation_cache import ActivationCache
from jaxlens.model.transformer import HookedTransformer
from jaxlens.weights.circuits import require_linear_heads

Logits = CorruptedActivation = PatchedActivation = Array


def _patches(what: str, activation_name: str, setter: Setter, *axes: AxisNames) -> Callable[..., Array]:
    """A function (model, corrupted_tokens, clean_cache, patching_metric) that sweeps one kind of activation."""

    def patch(
        model: HookedTransformer, corrupted_tokens: Any, clean_cache: Mapping[str, Array],
        patching_metric: MetricFunction, **options: Unpack[SweepOptions],
    ) -> Array:  # fmt: skip
        return generic_activation_patch(
            model, corrupted_tokens, clean_cache, patching_metric, setter, activation_name, axes, **options
        )

    names = " ".join(axes)
    patch.__doc__ = f"The metric with {what} patched from the clean cache, [{names}]; see `generic_activation_patch`."
    return patch


_AT_POS, _BY_HEAD, _BY_POS = layer_pos_patch_setter, layer_head_vector_patch_setter, layer_pos_head_vector_patch_setter

get_act_patch_resid_pre = _patches("the residual stream before a layer", "resid_pre", _AT_POS, "layer", "pos")
get_act_patch_resid_mid = _patches("the residual stream before an MLP", "resid_mid", _AT_POS, "layer", "pos")
get_act_patch_attn_out = _patches("the output of attention", "attn_out", _AT_POS, "layer", "pos")
get_act_patch_mlp_out = _patches("the output of an MLP", "mlp_out", _AT_POS, "layer", "pos")
get_act_patch_attn_head_out_by_pos = _patches("a head's output z", "z", _BY_POS, "layer", "pos", "head")
get_act_patch_attn_head_q_by_pos = _patches("a head's queries", "q", _BY_POS, "layer", "pos", "head")
get_act_patch_attn_head_k_by_pos = _patches("a key/value head's keys", "k", _BY_POS, "layer", "pos", "head")
get_act_patch_attn_head_v_by_pos = _patches("a key/value head's values", "v", _BY_POS, "layer", "pos", "head")
get_act_patch_attn_head_out_all_pos = _patches("a head's output z", "z", _BY_HEAD, "layer", "head")
get_act_patch_attn_head_q_all_pos = _patches("a head's queries", "q", _BY_HEAD, "layer", "head")
get_act_patch_attn_head_k_all_pos = _patches("a key/value head's keys", "k", _BY_HEAD, "layer", "head")
get_act_patch_attn_head_v_all_pos = _patches("a key/value head's values", "v", _BY_HEAD, "layer", "head")
get_act_patch_attn_head_pattern_all_pos = _patches(
    "a head's pattern", "pattern", layer_head_pattern_patch_setter, "layer", "head_index"
)
get_act_patch_attn_head_pattern_by_pos = _patches(
    "a row of a head's pattern", "pattern", layer_head_pos_pattern_patch_setter, "layer", "head_index", "dest_pos"
)
get_act_patch_attn_head_pattern_dest_src_pos = _patches(
    "an entry of a head's pattern", "pattern", layer_head_dest_src_pos_pattern_patch_setter,
    "layer", "head_index", "dest_pos", "src_pos",
)  # fmt: skip


def get_act_patch_attn_head_all_pos_every(
    model: HookedTransformer, corrupted_tokens: Any, clean_cache: Mapping[str, Array], metric: MetricFunction,
    **options: Unpack[SweepOptions],
) -> Float[Array, "5 l n"]:  # fmt: skip
    """The metric with every head's output, queries, keys, values and pattern patched, in this order.

    Grouped keys and values have fewer heads. Their results are padded with zeros.
    """
    sweeps = (
        get_act_patch_attn_head_out_all_pos, get_act_patch_attn_head_q_all_pos, get_act_patch_attn_head_k_all_pos,
        get_act_patch_attn_head_v_all_pos, get_act_patch_attn_head_pattern_all_pos,
    )  # fmt: skip
    return _every_head(sweeps, model, corrupted_tokens, clean_cache, metric, **options)


def get_act_patch_attn_head_by_pos_every(
    model: HookedTransformer, corrupted_tokens: Any, clean_cache: Mapping[str, Array], metric: MetricFunction,
    **options: Unpack[SweepOptions],
) -> Float[Array, "5 l p n"]:  # fmt: skip
    """Patches outputs, queries, keys, values and patterns of every head at each position (patterns: of the query)."""

    def pattern(*args: Any, **options: Unpack[SweepOptions]) -> Array:
        return jnp.swapaxes(get_act_patch_attn_head_pattern_by_pos(*args, **options), 1, 2)

    sweeps = (
        get_act_patch_attn_head_out_by_pos, get_act_patch_attn_head_q_by_pos, get_act_patch_attn_head_k_by_pos,
        get_act_patch_attn_head_v_by_pos, pattern,
    )  # fmt: skip
    return _every_head(sweeps, model, corrupted_tokens, clean_cache, metric, **options)


def _every_head(sweeps: tuple[Callable[..., Array], ...], model: HookedTransformer, *args, **options) -> Array:
    """The stacked results of sweeps over heads, each padded with zeros to the number of query heads."""
    results = [patch(model, *args, **options) for patch in sweeps]
    unpadded = [(0, 0)] * (results[0].ndim - 1)
    return jnp.stack([jnp.pad(result, [*unpadded, (0, model.cfg.n_heads - result.shape[-1])]) for result in results])


def get_act_patch_block_every(
    model: HookedTransformer, corrupted_tokens: Any, clean_cache: Mapping[str, Array], metric: MetricFunction,
    **options: Unpack[SweepOptions],
) -> Float[Array, "3 l p"]:  # fmt: skip
    """The metric with the residual stream before each layer, attention's output and the MLP's output patched."""
    sweeps = (get_act_patch_resid_pre, get_act_patch_attn_out, get_act_patch_mlp_out)
    return jnp.stack([patch(model, corrupted_tokens, clean_cache, metric, **options) for patch in sweeps])


# --- direct paths, in TransformerLens's linear form


def get_act_patch_direct_path(
    model: HookedTransformer, corrupted_tokens: Any, clean_cache: Mapping[str, Array],
    corrupted_cache: ActivationCache, patching_metric: MetricFunction, src_layer: int, src_head: int,
    component: Literal["q", "k", "v"] = "q", verbose: bool = True, **options: Unpack[SweepOptions],
) -> Float[Array, "l n"]:  # fmt: skip
    """The metric with the direct path from a source head to the queries, keys or values of each other head patched.

    The clean output of the source head is normalized with the scale of the corrupted run, so that the change is linear
    in this output; `path_patch` recomputes the norm. The result is 0 for heads in layers up to `src_layer`.
    """
    paths = _direct_paths(model, corrupted_tokens, clean_cache, corrupted_cache, patching_metric,
                          [(src_layer, src_head)], component, {"progress": verbose, **options})  # fmt: skip
    return paths[0]


def get_act_patch_direct_path_all_sources(
    model: HookedTransformer, corrupted_tokens: Any, clean_cache: Mapping[str, Array],
    corrupted_cache: ActivationCache, patching_metric: MetricFunction, component: Literal["q", "k", "v"] = "q",
    verbose: bool = True, **options: Unpack[SweepOptions],
) -> Float[Array, "l n l n"]:  # fmt: skip
    """`get_act_patch_direct_path` from every head to every other: [source layer, source head, layer, head]."""
    sources = list(itertools.product(range(model.cfg.n_layers), range(model.cfg.n_heads)))
    paths = _direct_paths(model, corrupted_tokens, clean_cache, corrupted_cache, patching_metric, sources, component,
                          {"progress": verbose, **options})  # fmt: skip
    return paths.reshape(model.cfg.n_layers, model.cfg.n_heads, *paths.shape[1:])


def _direct_paths(model, corrupted_tokens, clean_cache, corrupted_cache, metric, sources, component, options):
    cfg = model.cfg
    require_linear_heads(cfg)
    if component not in ("q", "k", "v") or cfg.normalization_type is None or cfg.norm_placement != "pre":
        expected = '"q", "k" or "v", and a model with a norm before attention and none after it'
        raise ValueError(f"component is {component!r}; expected {expected}; path_patch accepts all models")
    check_nodes("source", sources, list(itertools.product(range(cfg.n_layers), range(cfg.n_heads))))
    for cache in (clean_cache, corrupted_cache):
        check_source(model, corrupted_tokens, options.get("attention_mask"), cache)
    zs = [cache["blocks.0.attn.hook_z"].shape[:2] for cache in (clean_cache, corrupted_cache)]
    if zs[0] != zs[1]:
        shapes = f"the caches hold {zs[0]} and {zs[1]} prompts and positions"
        raise ValueError(f"{shapes}; the clean and the corrupted run need the same number of both")
    weights, merged = {"q": "W_Q", "k": "_W_K", "v": "_W_V"}[component], model.merge_adapter() if cfg.adapter else model
    norms = [model.blocks[layer].ln1.module for layer in range(cfg.n_layers)]
    W = jnp.stack([getattr(merged.blocks[layer].attn, weights) for layer in range(cfg.n_layers)])
    if norms[0].multiplier is not None:
        W = W * jnp.stack([norm.multiplier for norm in norms])[:, None, :, None]
    with full_precision(cfg.dtype):
        differences = _head_outputs(merged, clean_cache, sources) - _head_outputs(merged, corrupted_cache, sources)
    if norms[0].centres:
        differences = differences - jnp.mean(differences, axis=-1, keepdims=True)
    scales = jnp.stack([corrupted_cache[f"blocks.{layer}.ln1.hook_scale"] for layer in range(cfg.n_layers)])
    indices = np.array([
        (layer, head, source) for source in range(len(sources))
        for layer, head in itertools.product(range(cfg.n_layers), range(W.shape[1])) if layer > sources[source][0]
    ], np.int32).reshape(-1, 3)  # fmt: skip
    shape, mask = (len(sources), cfg.n_layers, W.shape[1]), options.get("attention_mask")
    if not len(indices):
        value = jnp.asarray(metric(model(corrupted_tokens, attention_mask=mask)))
        return jnp.zeros((*shape, *value.shape), value.dtype)
    setter, cells = hook(_add_linearly, differences=differences, scales=scales, W=W), Cells.at(cfg, component, indices)
    given = read_single(model, corrupted_tokens, mask)
    values = sweep(model, given, cells, setter, None, {"": metric}, **options).cells[""]
    result = jnp.zeros((*shape, *values.shape[1:]), values.dtype)
    return result.at[indices[:, 2], indices[:, 0], indices[:, 1]].set(values)


def _head_outputs(model: HookedTransformer, cache: Mapping[str, Array], heads: list[tuple[int, int]]) -> Array:
    """The outputs of heads in the residual stream, [s b p d], with s the index in `heads`."""
    zs = jnp.stack([cache[f"blocks.{layer}.attn.hook_z"][:, :, head] for layer, head in heads])
    W_O = model.W_O[tuple(np.array(heads).T)]
    return jnp.einsum("sbph,shd->sbpd", zs, W_O) * model.cfg.residual_scale


def _add_linearly(activation: Array, index: Array, source: Array, differences: Array, scales: Array, W: Array) -> Array:
    """Adds the effect of a sender on a head's queries, keys or values. `index` is (layer, head, sender)."""
    layer, head, sender = index
    effect = jnp.einsum("bpd,dh->bph", differences[sender] / scales[layer], W[layer, head])
    return activation.at[:, :, head].add(effect.astype(activation.dtype))
