"""Runs models on meshes of four devices. Prints, as JSON, how far the results are from those on one device.

Arguments: names of configs. tests/test_sharding.py runs this in a process with four CPU devices.
"""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxlens import HookedTransformer, hook, lm_cross_entropy_loss, steer
from jaxlens.analysis import (
    SVDInterpreter,
    ablate,
    activation_patch,
    attribution_patch,
    direct_logit_attribution,
    edge_attribution_patch,
    integrated_gradients,
    path_patch,
)
from jaxlens.nn.parameters import parameter_axes
from jaxlens.weights import process_weights
from support.models import CONFIGS, randomised, tokens

BRIEF = ("cache", "Python hook", "cache under jit", "gradient", "generation")
"""What runs for every config. Everything runs for "llama"."""


def runs(model, tokens, vector):
    """Functions without arguments, by name."""

    def loss(params, **hooks):
        return model.with_params(params).run_with_hooks(tokens, return_type="loss", **hooks)

    def cache(model, tokens, **options):
        output, cache = model.run_with_cache(tokens, **options)
        return output, dict(cache.items())

    def patched(model, tokens, vector):
        return model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_pre", lambda value, hook: value + vector)])

    def add(value, hook, vector):
        return value + vector

    def generated(**options):
        result, cache = model.generate(
            tokens, 4, do_sample=False, stop_at_eos=False, verbose=False, output_logits=True, return_cache=True,
            names_filter="blocks.*.hook_resid_post", **options,
        )  # fmt: skip
        return np.asarray(result.sequences), result.logits, dict(cache.items())

    def decoded():
        _, cache = model.decode(tokens[:, :7], model.init_kv_cache(len(tokens), 12))
        return model.decode(tokens[:, 7:], cache)[0]

    def without_the_last_head(value, hook):
        return jnp.where(jnp.arange(value.shape[2])[:, None] == value.shape[2] - 1, 0, value)

    both = [("blocks.1.hook_resid_pre", lambda value, hook: value * 0.5 + vector)]
    return {
        "cache": lambda: cache(model, tokens),
        "cache under jit": lambda: jax.jit(cache)(model, tokens),
        "generation": generated,
        "generation with a Python hook": lambda: generated(fwd_hooks=both),
        "steered generation": lambda: generated(fwd_hooks=steer(vector, [1], positions="new")),
        "decoding": decoded,
        "cache of a position": lambda: cache(model, tokens, pos_slice=-1),
        "cache of gradients": lambda: cache(model, tokens, return_type="loss", incl_bwd=True),
        "residual stream": lambda: model(model(tokens, stop_at_layer=1), start_at_layer=1, stop_at_layer=2),
        "loss": lambda: model(tokens, return_type="loss"),
        "loss per token": lambda: jax.jit(lambda m, t: m(t, return_type="both", loss_per_token=True))(model, tokens),
        "loss of logits": lambda: lm_cross_entropy_loss(model(tokens), tokens),
        "arithmetic with logits": lambda: jax.jit(lambda m, t: jax.nn.softmax(m(t) + 1))(model, tokens),
        "Python hook": lambda: patched(model, tokens, vector),
        "Python hook with a cached value": lambda: patched(
            model, tokens, model.run_with_cache(tokens)[1]["resid_post", 1]
        ),
        "Python hook that creates an array": lambda: model.run_with_hooks(
            tokens, fwd_hooks=[("blocks.1.attn.hook_z", without_the_last_head)]
        ),
        "Python hook under jit": lambda: jax.jit(patched)(model, tokens, vector),
        "data hook": lambda: model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", hook(add, vector=vector))]),
        "gradient": lambda: jax.grad(loss)(model.params),
        "gradient under jit": lambda: jax.jit(jax.grad(loss))(model.params),
        "gradient with hooks": lambda: jax.grad(lambda p: loss(p, fwd_hooks=both, bwd_hooks=both))(model.params),
    }  # fmt: skip


def analyses(model, tokens):
    """Functions without arguments that run more than the model, by name."""

    def cached():
        return model.run_with_cache(tokens)[1]

    def metric(logits):
        return logits[:, -1, 3] - logits[:, -1, 4]

    return {
        "residual stream as a sum": lambda: [
            stack(apply_ln=True) for stack in (cached().accumulated_resid, cached().decompose_resid,
                                               cached().stack_head_results, cached().get_full_resid_decomposition)
        ],
        "logit lens": lambda: cached().logit_lens(return_type="logits").values,
        "logit attribution": lambda: (
            cached().logit_attrs(cached().decompose_resid(layer=-1), tokens=3),
            direct_logit_attribution(model, tokens, jnp.full(len(tokens), 3), unit="head").values,
        ),
        "circuits": lambda: (
            model.all_composition_scores("Q"), model.OV.norm(), model.QK[0, 1].svd()[1], model.W_U, model.W_Q,
            SVDInterpreter(model).get_singular_vectors("OV", layer_index=1, num_vectors=1, head_index=0),
        ),
        "processed weights": lambda: process_weights(model.params, model.cfg)[0],
        "patching": lambda: [
            patch(model, tokens, tokens[::-1], metric, progress=False).values
            for patch in (activation_patch, path_patch)
        ],
        "ablation": lambda: ablate(model, tokens, metric, by="mean", progress=False).values,
        "attribution": lambda: [
            attribution_patch(model, tokens, tokens[::-1], metric)["z"].values,
            edge_attribution_patch(model, tokens, tokens[::-1], metric).values,
            integrated_gradients(model, tokens, metric, tokens[::-1], steps=2).values,
        ],
    }  # fmt: skip


def on_mesh(cfg, params, mesh):
    """The parameters with heads, neurons, experts and vocabulary divided over "model", where the lengths allow it."""
    size, placed = mesh.shape["model"], {}
    for name, letters in parameter_axes(cfg).items():
        axes = [letter if letter in "nkmvoe" and n % size == 0 else None
                for letter, n in zip(letters.split(), params[name].shape, strict=True)]  # fmt: skip
        first = next((letter for letter in axes if letter), None)
        spec = PartitionSpec(*("model" if letter and letter == first else None for letter in axes))
        placed[name] = jax.device_put(params[name], NamedSharding(mesh, spec))
    return placed


def distance(ours, theirs) -> float:
    """The largest difference, relative to the largest value of an activation, or of all gradients."""
    pairs = [*zip(*(map(np.asarray, jax.tree.leaves(tree)) for tree in (ours, theirs)), strict=True)]
    scales = [np.abs(b[np.isfinite(b)]).max(initial=1e-30) for _, b in pairs]
    if isinstance(theirs, dict):
        scales = [max(scales)] * len(scales)
    np.testing.assert_equal([np.isfinite(a).all() for a, _ in pairs], [np.isfinite(b).all() for _, b in pairs])
    differences = [np.abs(np.where(a == b, 0, a - b)).max() for a, b in pairs]
    return float(max(difference / scale for difference, scale in zip(differences, scales, strict=True)))


def mesh_of(shape, names, types):
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, names, axis_types=(types,) * len(shape), devices=devices)


def placed(cfg, params, mesh, batch, vector):
    rows = PartitionSpec("data" if "data" in mesh.axis_names else None)
    return (
        HookedTransformer(cfg, params=on_mesh(cfg, params, mesh)), jax.device_put(batch, NamedSharding(mesh, rows)),
        jax.device_put(vector, NamedSharding(mesh, PartitionSpec())),
    )  # fmt: skip


def distances(name: str) -> dict[str, float | str]:
    cfg = CONFIGS[name].replace(d_vocab=36, d_mlp=24, dtype="float64")
    whole, batch, vector = randomised(cfg), tokens(4, 11, d_vocab=36), jnp.linspace(-1, 1, cfg.d_model)
    wanted = runs(whole, batch, vector) if name == "llama" else {n: runs(whole, batch, vector)[n] for n in BRIEF}
    wanted |= analyses(whole, batch) if name == "llama" else {}
    expected, found = {what: run() for what, run in wanted.items()}, {}
    meshes = [((2, 2), ("data", "model"), True)]
    if name == "llama":
        meshes += [((4,), ("model",), True), ((2, 2), ("data", "model"), False)]
    for shape, axes, active in meshes:
        mesh = mesh_of(shape, axes, AxisType.Explicit)
        with jax.set_mesh(mesh if active else None):
            model, tokens_on_mesh, vector_on_mesh = placed(cfg, whole.params, mesh, batch, vector)
            on_mesh_runs = runs(model, tokens_on_mesh, vector_on_mesh)
            if shape == (2, 2) and active:
                on_mesh_runs |= analyses(model, tokens_on_mesh)
            for what in expected.keys() & on_mesh_runs.keys():
                if what in ("gradient", "gradient with hooks") and not active:
                    continue  # outside of jit, JAX itself differentiates on Explicit axes only with an active mesh
                result = on_mesh_runs[what]()
                arrays = [leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, jax.Array)]
                assert all(leaf.sharding.mesh == mesh for leaf in arrays), what
                if what.startswith("gradient"):
                    jax.tree.map(lambda g, w: np.testing.assert_equal(g.sharding.spec, w.sharding.spec),
                                 result, on_mesh(cfg, whole.params, mesh))  # fmt: skip
                found[f"{what} {axes} {active}"] = distance(result, expected[what])
    return found


def gradient(model, tokens):
    return jax.grad(lambda params: model.with_params(params)(tokens, "loss"))(model.params)


def collectives() -> dict[str, dict[str, int]]:
    """The number of collectives in compiled programs with Auto and Explicit axes, and the sharding of the results."""
    cfg = CONFIGS["llama"].replace(d_vocab=36, d_mlp=24)
    found = {}
    for types in (AxisType.Auto, AxisType.Explicit):
        mesh = mesh_of((2, 2), ("data", "model"), types)
        with jax.set_mesh(mesh):
            model, batch, _ = placed(cfg, randomised(cfg).params, mesh, tokens(4, 11, d_vocab=36), jnp.ones(14))
            for what, function in {"forward pass": HookedTransformer.__call__, "gradient": gradient}.items():
                program = jax.jit(function).lower(model, batch).compile()
                names = re.findall(r" (all-[a-z]+|collective-permute|reduce-scatter)(?:-start)?\(", program.as_text())
                found[f"{what} {types.name}"] = {name: names.count(name) for name in sorted(set(names))}
            found[f"logits {types.name}"] = [*jax.jit(HookedTransformer.__call__)(model, batch).sharding.spec]
    return found


jax.config.update("jax_enable_x64", True)  # a difference is then not rounding
print(json.dumps({"collectives": collectives(), **{name: distances(name) for name in sys.argv[1:]}}))
