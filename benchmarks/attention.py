"""A forward at several lengths, and one layer of attention, each relative to PyTorch's fused attention (sdpa).

    python -m benchmarks.attention            SmolLM2-135M; writes results/attention-<device>.json
    python -m benchmarks.attention --quick    a small model and short prompts; writes nothing

Both sides compute all logits, in float32. The layer has 9 heads and 3 key/value heads of 64 dimensions. On devices for
which tokamax has kernels, the layer also runs in bfloat16, with a kernel and without.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import smollm2, torch_peer
from benchmarks.report import print_table, write
from benchmarks.timing import Timing, interleaved
from jaxlens import Config, HookedTransformer
from jaxlens.nn.blockwise import attend_blockwise
from jaxlens.nn.kernels import attend_unseen, has_kernel
from jaxlens.nn.scores import both_heads_first, by_group_first, masked_pattern, raw_scores, weight_values
from jaxlens.nn.sequence import LayerInfo

SHAPES = {(1, 1): 40, (1, 16): 20, (1, 128): 12, (4, 256): 4, (1, 512): 6, (1, 1024): 4, (1, 2048): 3, (1, 4096): 2}
"""The shapes of the tokens, and the rounds of each."""
QUICK = {(1, 16): 2, (1, 512): 2}
LAYER = {(1, 256): 40, (1, 512): 30, (1, 1024): 20, (1, 2048): 10, (1, 4096): 5}


def measure_forward(model: HookedTransformer, shape: tuple[int, int], rounds: int) -> dict[str, Timing]:
    """Our forward, eager and under jit, relative to Hugging Face's with sdpa. Empty if PyTorch cannot run."""
    tokens = np.random.default_rng(0).integers(0, model.cfg.d_vocab, shape)
    peer = torch_peer.build(model.cfg, tokens, "sdpa")
    if not peer:
        return {}
    on_device, jitted = jnp.asarray(tokens), jax.jit(lambda model, tokens: model(tokens))
    cases = {
        "Hugging Face, sdpa": peer["forward"],
        "jaxlens": lambda call: model(tokens),
        "jaxlens, in jax.jit": lambda call: jitted(model, on_device),
    }
    return interleaved(cases, rounds)


def measure_layer(shape: tuple[int, int], rounds: int) -> dict[str, Timing]:
    """Attention of one layer in blocks and in full, relative to PyTorch's. Empty without PyTorch."""
    try:
        import torch
    except ImportError:
        return {}
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((*shape, heads, 64), dtype=np.float32) for heads in (9, 3, 3))
    theirs = [torch.from_numpy(x).transpose(1, 2).contiguous() for x in (q, k, v)]
    cases: dict[str, Callable[[int], Any]] = {
        "PyTorch, sdpa": lambda call: torch.nn.functional.scaled_dot_product_attention(
            *theirs, is_causal=True, enable_gqa=True
        )
    }
    arrays = [jnp.asarray(x) for x in (q, k, v)]
    cfg = Config(n_layers=1, d_model=576, n_heads=9, n_key_value_heads=3, d_head=64, d_vocab=2, n_ctx=shape[1])
    if shape[1] > cfg.attn_block:
        in_blocks = jax.jit(lambda q, k, v: attend_blockwise(cfg, q, *both_heads_first(k, v), causal(shape)))
        cases["in blocks"] = lambda call: in_blocks(*arrays)
    in_full = jax.jit(attend_in_full)
    cases["in full"] = lambda call: in_full(*arrays)
    return interleaved(cases, rounds)


def measure_kernel(shape: tuple[int, int], rounds: int) -> dict[str, Timing]:
    """Attention of one layer in bfloat16 by a kernel, relative to blocks. Empty if there is no kernel."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((*shape, heads, 64)), jnp.bfloat16) for heads in (9, 3, 3))
    inputs = q, *both_heads_first(k, v)
    cfg = Config(n_layers=1, d_model=576, n_heads=9, n_key_value_heads=3, d_head=64, d_vocab=2, n_ctx=shape[1])
    if shape[1] <= cfg.attn_block or not has_kernel(cfg, None, *inputs):
        return {}
    in_blocks, by_kernel = (
        jax.jit(lambda *inputs, attend=attend: attend(cfg, *inputs, causal(shape)))
        for attend in (attend_blockwise, attend_unseen)
    )
    cases = {"in blocks": lambda call: in_blocks(*inputs), "by a kernel": lambda call: by_kernel(*inputs)}
    return interleaved(cases, rounds)


def attend_in_full(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention of a short sequence, with scores of all pairs of tokens."""
    info = causal(q.shape[:2])
    k, v = both_heads_first(k, v)
    scores = raw_scores(by_group_first(q, k.shape[1]), k, info.scale, None, None, (info.high, info.sources))
    return weight_values(masked_pattern(scores, info, None), v)


def causal(shape: tuple[int, int]) -> LayerInfo:
    """What a global layer without rotary embeddings knows of rows without padding."""
    indices = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
    unset = {field.name: None for field in dataclasses.fields(LayerInfo)}
    bounds = {"low": jnp.full(shape, -1, jnp.int32), "high": indices, "sources": indices}
    return LayerInfo(**{**unset, **bounds, "scale": jnp.float32(8), "window": jnp.int32(2**30)})


def rows(results: dict[tuple[int, int], dict[str, Timing]]) -> list[list[str]]:
    """The rows of a table: milliseconds, the ratio to PyTorch, and the seconds of the first call."""
    return [
        [f"{batch} × {length}", name, f"{1e3 * timing.warm:.1f} ms", f"{timing.ratio:.2f} ×", f"{timing.first:.1f} s"]
        for (batch, length), timings in results.items()
        for name, timing in timings.items()
    ]


def main() -> None:
    """Runs the benchmark, prints the results, and saves them unless `--quick`."""
    quick, machine, model, weights = smollm2.begin(__doc__, "a small model and short prompts; nothing is saved")
    columns = ["tokens", "", "warm", "relative to PyTorch", "first call"]
    shapes, layer_shapes = (QUICK, QUICK) if quick else (SHAPES, LAYER)
    forwards = {shape: measure_forward(model, shape, rounds) for shape, rounds in shapes.items()}
    print_table("A forward, all logits", columns, rows(forwards))
    layers = {shape: measure_layer(shape, rounds) for shape, rounds in layer_shapes.items()}
    print_table("Attention of one layer", columns, rows(layers))
    kernels = {shape: measure_kernel(shape, rounds) for shape, rounds in layer_shapes.items()}
    if any(kernels.values()):
        columns[3] = "relative to blocks"
        print_table("Attention of one layer in bfloat16", columns, rows(kernels))
    if not quick:
        saved = {"forward": by_shape(forwards), "layer": by_shape(layers), "kernel": by_shape(kernels)}
        write("attention", {**machine, "weights": weights}, saved)


def by_shape(results: dict[tuple[int, int], dict[str, Timing]]) -> dict[str, Any]:
    """The results with keys that JSON has."""
    return {
        f"{batch} x {length}": {
            name: {"seconds": timing.warm, "ratio": timing.ratio, "first_seconds": timing.first}
            for name, timing in timings.items()
        }
        for (batch, length), timings in results.items()
    }


if __name__ == "__main__":
    main()
