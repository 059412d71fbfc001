"""Loads checkpoints on meshes of eight devices. Prints, as JSON, how far the results are from those on one device.

Arguments: the folder of the checkpoints, and names of combinations, such as "llama-2x4-Auto". tests/test_devices.py
runs this in a process with eight CPU devices.
"""

import functools
import json
import re
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from jaxlens import HookedTransformer, batch, hook
from jaxlens.analysis import activation_patch, attribution_patch
from jaxlens.analysis.attribution import backward
from jaxlens.analysis.interventions import sweep
from jaxlens.model.automatic_axes import with_automatic_axes
from jaxlens.model.generation.options import new_generation
from jaxlens.model.request import LayerRange, RunRequest
from jaxlens.nn.parameters import parameter_axes
from jaxlens.sharding import default_mesh, shard

TOKENS = np.random.default_rng(0).integers(0, 64, (8, 11))
COLLECTIVES = "all-gather|all-reduce|all-to-all|collective-permute"


def results(model) -> dict[str, object]:
    """What a user computes with a model and tokens from the host."""
    vector = np.linspace(-1, 1, model.cfg.d_model, dtype=np.float32)

    def cache():
        output, cache = model.run_with_cache(TOKENS)
        return output, dict(cache.items())

    def add(value, hook, vector):
        return value + vector

    def zero_head(value, hook):
        return jnp.where(jnp.arange(value.shape[2])[:, None] == 1, 0.0, value)

    def loss(params):
        return model.with_params(params)(TOKENS, return_type="loss")

    def metric(logits):
        return logits[:, -1, 3] - logits[:, -1, 4]

    def caches():
        """New tokens after caches that were made from others."""
        new = model.init_kv_cache(3, 12).take([2, 0])
        _, cache = model.decode(TOKENS[:2, :5], new)
        made = cache.take([1, 0, 1]).repeat(2)[:4].with_room(20).copy()
        return model.decode(TOKENS[:6, :3], made)

    def modules():
        resid = model.run_with_cache(TOKENS)[1]["resid_post", -1]
        return model.embed(TOKENS), model.unembed(model.ln_final(resid)), model.blocks[1].mlp(resid)

    return {
        "logits": model(TOKENS),
        "cache": cache(),
        "Python hook": model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.attn.hook_z", zero_head)]),
        "data hook": model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.hook_resid_pre", hook(add, vector=vector))]),
        "gradient": jax.grad(loss)(model.params),
        "attribution": attribution_patch(model, TOKENS, TOKENS[::-1], metric)["z"].values,
        "patching": activation_patch(model, TOKENS[:2], TOKENS[2:4], metric, progress=False).values,
        "harvest": next(batch.harvest(model, TOKENS.tolist(), "blocks.*.hook_resid_post", batch_tokens=64)),
        "scores": batch.score(model, [row[: 3 + i] for i, row in enumerate(TOKENS.tolist())]),
        "generation": model.generate(TOKENS[:4], 4, do_sample=False, stop_at_eos=False, verbose=False),
        "sampling": model.generate(TOKENS[:4], 4, seed=0, stop_at_eos=False, verbose=False),
        "caches": caches(),
        "modules": modules(),
    }


def distances(ours, theirs) -> dict[str, float]:
    """The largest difference of each kind of result, relative to the largest value of its array."""
    return {what: distance(ours[what], theirs[what]) for what in theirs}


def distance(ours, theirs) -> float:
    pairs = [*zip(*(map(np.asarray, jax.tree.leaves(tree)) for tree in (ours, theirs)), strict=True)]
    largest = 0.0
    scale_of_all = max(np.abs(b[np.isfinite(b)]).max(initial=1e-30) for _, b in pairs)
    for a, b in pairs:
        scale = scale_of_all if isinstance(theirs, dict) else np.abs(b[np.isfinite(b)]).max(initial=1e-30)
        np.testing.assert_equal(np.isfinite(a), np.isfinite(b))
        largest = max(largest, float(np.abs(np.subtract(a, b, out=np.zeros_like(a), where=a != b)).max() / scale))
    return largest


def scan(model, tokens):
    return model(tokens)


def loops(model, tokens):
    """A forward pass with the loops over layers that runs outside of jit have."""
    request = RunRequest(LayerRange.of(model.cfg, None, None), "logits", has_derivative=False)

    def run(model, model_input, request, hooks):
        return *model.run(model_input, request, hooks), None

    return with_automatic_axes(run, model, model.read_input(tokens), request, ())[0]


def gathered_weights(model) -> list[str]:
    """The weights that a compiled forward pass gathers: all of them, or those of one layer or expert."""
    axes, whole = parameter_axes(model.cfg), {}
    for name, weight in model.params.items():
        letters = axes[name].split()
        kept = [[*letters], [a for a in letters if a != "l"], [a for a in letters if a not in "le"]]
        for some in [] if weight.sharding.is_fully_replicated else kept:
            shape = [n for letter, n in zip(letters, weight.shape, strict=True) if letter in some and n > 1]
            whole |= {tuple(sorted(shape)): name} if len(shape) > 1 else {}
    found, tokens = set(), model.sharding.place_batch(TOKENS)
    for forward in (scan, loops):
        text = jax.jit(forward).lower(model, tokens).compile().as_text()
        for results in re.findall(rf"= (.*?) (?:{COLLECTIVES})(?:-start)?\(", text):
            shapes = re.findall(r"\w\[([\d,]+)\]", results)
            found |= {tuple(sorted(int(n) for n in shape.split(",") if n != "1")) for shape in shapes}
    return sorted(whole[shape] for shape in found & whole.keys())


def rows_of_a_generation(model) -> dict[str, int]:
    """The number of rows that a device has of the arrays that a generation of 8 rows carries."""
    options = {"do_sample": False, "stop_at_eos": False, "output_logits": True}
    generation = new_generation(model, TOKENS, max_new_tokens=3, **options)
    list(generation.segments(3))
    state = generation.state
    by_axis = {"tokens": (state.tokens, 0), "logits": (state.logits, 0),
               "keys": (state.cache.keys, 1), "values": (state.cache.values, 1)}  # fmt: skip
    return {what: rows_of_a_device(array, axis) for what, (array, axis) in by_axis.items()}


def rows_of_a_device(array, axis: int) -> int:
    return array.sharding.shard_shape(array.shape)[axis]


def part_of_experiments(model) -> dict[str, float]:
    """The part of the rows of a sweep, and of the prompts of an attribution, that a device computes."""
    found = {}

    def recorded(what, axis, run):
        def record(*args, **options):
            result = run(*args, **options)
            array = result if what == "sweep" else result.final
            found[what] = rows_of_a_device(array, axis) / array.shape[axis]
            return result

        return record

    def metric(logits):
        return logits[:, -1, 3]

    with mock.patch.object(sweep, "run_rows", recorded("sweep", 1, sweep.run_rows)):
        activation_patch(model, TOKENS[:2], TOKENS[2:4], metric, progress=False)
    with mock.patch.object(backward, "linearise", recorded("attribution", 0, backward.linearise)):
        attribution_patch(model, TOKENS, TOKENS[::-1], metric)
    return found


def bytes_per_device(model) -> dict[str, int]:
    """The bytes of all parameters, those that one device holds, and those of parameters that are on every device."""
    params = model.params.values()
    return {
        "all": sum(weight.nbytes for weight in params),
        "of a device": sum(weight.addressable_shards[0].data.nbytes for weight in params),
        "replicated": sum(weight.nbytes for weight in params if weight.sharding.is_fully_replicated),
    }


def mesh_of(size: str, axis_type: AxisType) -> jax.sharding.Mesh:
    mesh = default_mesh(*map(int, size.split("x")))
    return mesh.update(axis_types=(axis_type,) * 2)


@functools.cache
def on_one_device(folder: str):
    model = HookedTransformer.from_pretrained(folder)
    return model, results(model)


def combination(folder: str, size: str, axis_type: str) -> dict[str, object]:
    whole, expected = on_one_device(folder)
    mesh = mesh_of(size, AxisType[axis_type])
    with jax.set_mesh(mesh):
        model = HookedTransformer.from_pretrained(folder, mesh=mesh)
        found = {"results": distances(results(model), expected)}
        found["weights"] = distance(model.params, whole.params)
        found["rows of a generation"] = rows_of_a_generation(model)
        found["part of experiments"] = part_of_experiments(model)
        later = shard(whole, mesh).params
    found["sharded otherwise later"] = [
        name for name, w in model.params.items() if not w.sharding.is_equivalent_to(later[name].sharding, w.ndim)
    ]
    found["logits"] = [*model(TOKENS).sharding.spec]
    found["gathered"] = gathered_weights(model)
    found["note"] = str(model.processing[-1])
    return found | {"bytes": bytes_per_device(model)}


if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    print(json.dumps({name: combination(f"{folder}/{name.split('-')[0]}", *name.split("-")[1:]) for name in names}))
