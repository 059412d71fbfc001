"""A causal mask computed in place, against a persistent mask buffer in every layer: time and memory.

    python -m benchmarks.seed            Qwen-7B-chat's shape, random weights; writes results/seed-<device>.json
    python -m benchmarks.seed --quick    a small model and short prompts; writes nothing

The library compares indices inside the fusion that uses the result (`jaxlens.nn.scores.visible`). The other model has
a boolean array [n_ctx, n_ctx] per layer, as TransformerLens has, which attention slices and applies. Both models have
the same weights. Without a GPU, the model is scaled down; the table says so.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool

from benchmarks.report import environment, print_environment, print_table, verdict, write
from benchmarks.timing import Timing, interleaved
from jaxlens import Config, HookedTransformer
from jaxlens.config import Rotary
from jaxlens.nn.attention import Attention
from jaxlens.nn.scores import by_head, heads_first, plain_softmax, weight_values

QWEN: dict[str, Any] = {
    "n_layers": 32, "d_model": 4096, "d_head": 128, "d_mlp": 11008, "d_vocab": 151936, "n_ctx": 8192,
    "act_fn": "silu", "gated_mlp": True, "normalization_type": "RMS", "biases": ("b_Q", "b_K", "b_V"),
    "positional_embedding_type": "rotary", "rotary": Rotary(),
}  # fmt: skip
SMALL = {"d_vocab": 512, "n_ctx": 512}
MASKED, LIBRARY, IN_FULL = "a mask buffer per layer", "jaxlens", "jaxlens, scores in full"
MOST_TIME = 1.0  # relative to the model with buffers


class MaskedAttention(Attention):
    """Attention of rows without padding, with a buffer of the whole causal mask."""

    mask: Bool[Array, "c c"] = nnx.data()

    def attend(self, q, k, v, info, tap):
        k, v = heads_first(k), heads_first(v)
        if tap.memory is not None:
            k, v = tap.memory.extended(k, v)
        scores = self.scores(q, k, info)
        visible = jax.lax.dynamic_slice(self.mask, (info.high[0, 0], 0), scores.shape[-2:])
        return weight_values(plain_softmax(by_head(jnp.where(visible, scores, -jnp.inf)), self.sink), v)


def with_mask_buffers(model: HookedTransformer) -> HookedTransformer:
    """A model with the same weights, and a mask buffer per layer among its arrays."""
    model = HookedTransformer(model.cfg, params=model.params)
    (stack,) = model.modules.stacks
    n_layers, n_ctx = model.cfg.n_layers, model.cfg.n_ctx
    masked = object.__new__(MaskedAttention)
    vars(masked).update(vars(stack.attn), mask=jnp.tile(jnp.tri(n_ctx, dtype=bool), (n_layers, 1, 1)))
    stack.attn = masked
    return model


def models(cfg: Config) -> dict[str, HookedTransformer]:
    """The models that are compared, with the same weights."""
    library = HookedTransformer(cfg)
    in_full = HookedTransformer(cfg.replace(attn_block=cfg.n_ctx), params=library.params)
    return {MASKED: with_mask_buffers(library), LIBRARY: library, IN_FULL: in_full}


def tokens_of(cfg: Config, length: int) -> np.ndarray:
    """Random tokens."""
    return np.random.default_rng(0).integers(0, cfg.d_vocab, (1, length))


# --- time


def forward(model: HookedTransformer, length: int, call: int) -> jax.Array:
    """The logits of a prompt."""
    return model(tokens_of(model.cfg, length))


def generation(model: HookedTransformer, length: int, n_new: int, call: int) -> jax.Array:
    """A prompt and its likeliest continuation."""
    tokens = tokens_of(model.cfg, length)
    return model.generate(tokens, n_new, do_sample=False, stop_at_eos=False, verbose=False)


def measure(compared: dict[str, HookedTransformer], run: Callable, rounds: int) -> dict[str, Timing]:
    """The time of each model, relative to that with buffers."""
    return interleaved({name: functools.partial(run, model) for name, model in compared.items()}, rounds)


def report_times(title: str, timings: dict[str, Timing]) -> dict[str, Any]:
    """Prints a table of times, and returns them."""
    rows = [
        [name, f"{1e3 * t.warm:.0f} ms", f"{t.ratio:.3f} ×", f"{t.first:.1f} s",
         verdict(t.ratio, None if name == MASKED else MOST_TIME)] for name, t in timings.items()
    ]  # fmt: skip
    print_table(title, ["", "warm", "ratio", "first call", "target"], rows)
    return {name: dataclasses.asdict(timing) for name, timing in timings.items()}


def largest_difference(compared: dict[str, HookedTransformer], length: int) -> float:
    """The largest difference of log-probabilities between the model with buffers and the library."""
    ours, theirs = (jax.nn.log_softmax(forward(compared[name], length, 0)) for name in (LIBRARY, MASKED))
    return float(jnp.max(jnp.abs(ours - theirs)))


# --- memory


def planned(program: Callable, *arguments: Any) -> dict[str, int]:
    """The bytes of a compiled program."""
    plan = jax.jit(program).lower(*arguments).compile().memory_analysis()
    return {"arguments": plan.argument_size_in_bytes, "temporary": plan.temp_size_in_bytes}


def memory(model: HookedTransformer, length: int, n_slots: int) -> dict[str, int]:
    """The bytes of the model's arrays, and of the programs of a forward and of a step of decoding."""
    cfg, mask = model.cfg, getattr(model.modules.stacks[0].attn, "mask", None)
    tokens, token = (jax.ShapeDtypeStruct((1, n), jnp.int32) for n in (length, 1))
    cache = jax.eval_shape(lambda: model.init_kv_cache(1, n_slots))
    used = dataclasses.replace(cache, slots=dataclasses.replace(cache.slots, is_new=False))
    programs = {
        "a forward": planned(lambda model, tokens: model(tokens), model, tokens),
        "a step": planned(lambda model, cache, token: model.decode(token, cache), model, used, token),
    }
    return {
        "parameters": sum(w.nbytes for w in model.params.values()),
        "mask buffers": 0 if mask is None else cfg.n_layers * cfg.n_ctx**2,
        **{f"{name}, {kind}": size for name, plan in programs.items() for kind, size in plan.items()},
    }


def report_memory(sizes: dict[str, dict[str, int]]) -> None:
    """Prints a table of bytes."""
    rows = [[kind, *(f"{of[kind] / 2**20:.1f}" for of in sizes.values())] for kind in sizes[MASKED]]
    print_table("MiB", ["", *sizes], rows)


# --- the command line


def read_options() -> argparse.Namespace:
    """The options. What is not given depends on the device."""
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small model and short prompts; nothing is saved")
    parser.add_argument("--layers", type=int, default=6 if on_cpu else 32)
    parser.add_argument("--d-model", type=int, default=1024 if on_cpu else 4096, help="heads and d_mlp scale with it")
    parser.add_argument("--dtype", default="float32" if on_cpu else "bfloat16")
    parser.add_argument("--forwards", type=int, default=3 if on_cpu else 50)
    parser.add_argument("--generations", type=int, default=3 if on_cpu else 20)
    options = parser.parse_args()
    if options.d_model % 128:
        parser.error(f"--d-model is {options.d_model}; expected a multiple of d_head = 128")
    if options.quick:
        small = {"layers": 2, "d_model": 128, "forwards": 2, "generations": 2}
        options = argparse.Namespace(**{**vars(options), **small})
    return options


def config(options: argparse.Namespace) -> Config:
    """Qwen-7B-chat's shape, or that of a smaller model."""
    d_model = options.d_model
    scaled = {"d_model": d_model, "n_heads": d_model // 128, "d_mlp": QWEN["d_mlp"] * d_model // QWEN["d_model"]}
    shape = {**QWEN, **(SMALL if options.quick else {}), **scaled, "n_layers": options.layers}
    return Config(**shape, dtype=options.dtype)


def main() -> None:
    """Runs the benchmark, prints the results, and saves them unless `--quick`."""
    options = read_options()
    jax.config.update("jax_enable_compilation_cache", False)
    machine = environment()
    print_environment(machine)
    cfg = config(options)
    shape = f"{cfg.n_layers} of 32 layers, d_model {cfg.d_model} of 4096, d_mlp {cfg.d_mlp} of 11008, {cfg.dtype}"
    print(f"Qwen-7B-chat's shape: {shape}, d_vocab {cfg.d_vocab}, n_ctx {cfg.n_ctx}; random weights")
    length, prompt, n_new = (128, 64, 8) if options.quick else (2048, 1024, 32)
    compared = models(cfg)
    results: dict[str, Any] = {"shape": shape, "difference": largest_difference(compared, length // 4)}
    print(f"largest difference of log-probabilities between the models: {results['difference']:.1e}")
    results["memory"] = {name: memory(model, length, prompt + n_new) for name, model in compared.items()}
    runs = {
        f"{length} tokens × {options.forwards} forwards": (functools.partial(forward, length=length), options.forwards),
        f"{prompt} + {n_new} tokens × {options.generations} generations": (
            functools.partial(generation, length=prompt, n_new=n_new), options.generations,
        ),
    }  # fmt: skip
    for title, (run, rounds) in runs.items():
        timings = measure(compared, lambda model, call, run=run: run(model, call=call), rounds)
        results[title] = report_times(f"{title} ({shape})", timings)
    report_memory(results["memory"])
    if not options.quick:
        write("seed", machine, results)


if __name__ == "__main__":
    main()
