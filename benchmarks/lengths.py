"""Prompts of many lengths: compilations and seconds, with programs at a few lengths and at every length.

    python -m benchmarks.lengths            SmolLM2-135M, 1 to 100 tokens; writes results/lengths-<device>.json
    python -m benchmarks.lengths --quick    a small model and 20 prompts; writes nothing

Each prompt runs a forward, a forward with a new Python hook, and a forward with a cache. "At every length" replaces
`program_length` with the identity, so that each prompt compiles programs for its exact length.

The second table is of experiments on fewer prompts: patching the heads' outputs of every layer, and attribution.

The third table is the time that Python takes to plan a call and to start its programs, in models of many layers that
compute almost nothing: the least of many calls. A Python hook is inside a layer, or between two layers.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

import jaxlens.model.lengths
from benchmarks import smollm2
from benchmarks.report import print_table, write
from benchmarks.timing import clocks, compilations, seconds
from jaxlens import Config, HookedTransformer
from jaxlens.analysis import activation_patch, attribution_patch

DEPTHS = (12, 30, 96)
INSIDE, BETWEEN = "attn.hook_z", "hook_resid_post"
EVERYTHING = f"everything cached, hook on {INSIDE}"


def run_prompts(model: HookedTransformer, tokens: np.ndarray, lengths: list[int]) -> list[jax.Array]:
    """Three runs of a prompt of each length."""
    outputs = []
    for layer, length in enumerate(lengths):
        prompt = tokens[:1, :length]
        name = f"blocks.{layer % model.cfg.n_layers}.hook_resid_post"
        outputs.append(model(prompt))
        outputs.append(model.run_with_hooks(prompt, fwd_hooks=[(name, lambda value, hook: None)]))
        outputs.append(model.run_with_cache(prompt, names_filter="blocks.*.hook_resid_post")[0])
    return outputs


def run_experiments(model: HookedTransformer, tokens: np.ndarray, lengths: list[int]) -> list[Any]:
    """A sweep and an attribution on a pair of prompts of each length."""
    outputs = []
    for length in lengths:
        pair = tokens[:1, :length], tokens[1:, :length]
        outputs.append(activation_patch(model, *pair, difference, "z", ("layer",), progress=False).values)
        outputs.append(attribution_patch(model, *pair, difference, "z")["z"].values)
    return outputs


def difference(logits: Float[Array, "b p v"]) -> Float[Array, ""]:
    """A difference of two logits at the last position."""
    return logits[0, -1, 3] - logits[0, -1, 4]


def measure_lengths(run: Callable, *args: Any) -> dict[str, dict[str, Any]]:
    """The runs with programs of a few lengths, again when everything is compiled, and with those of every length."""

    def measured() -> dict[str, Any]:
        with compilations() as compiled:
            taken = clocks(lambda: run(*args))
        return {"seconds": taken.wall, "processor_seconds": taken.processor, "programs": len(compiled),
                "compile_seconds": compiled.seconds}  # fmt: skip

    chosen = jaxlens.model.lengths.program_length
    jax.clear_caches()
    results = {"programs at a few lengths": measured(), "the same prompts again": measured()}
    jax.clear_caches()
    try:
        jaxlens.model.lengths.program_length = lambda length, n_ctx: length
        results["programs at every length"] = measured()
    finally:
        jaxlens.model.lengths.program_length = chosen
    return results


def print_lengths(title: str, by_policy: dict[str, dict[str, Any]]) -> None:
    """Prints a table of compilations and seconds."""
    print_table(
        title,
        ["", "seconds", "compiled programs", "of these seconds compiling"],
        [[name, f"{r['seconds']:.1f} s", str(r["programs"]), f"{r['compile_seconds']:.1f} s"]
         for name, r in by_policy.items()],
    )  # fmt: skip


def measure_planning(n_layers: int, rounds: int) -> dict[str, float]:
    """Milliseconds of warm calls that cache nothing or everything, without and with a Python hook."""
    cfg = Config(n_layers=n_layers, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8)
    model, tokens = HookedTransformer(cfg), np.zeros((1, 8), np.int32)
    at = {site: [(f"blocks.{n_layers // 2}.{site}", lambda value, hook: None)] for site in (INSIDE, BETWEEN)}
    calls = {
        "forward": lambda: model(tokens),
        "everything cached": lambda: model.run_with_cache(tokens),
        f"hook on {INSIDE}": lambda: model.run_with_hooks(tokens, fwd_hooks=at[INSIDE]),
        f"hook on {BETWEEN}": lambda: model.run_with_hooks(tokens, fwd_hooks=at[BETWEEN]),
        EVERYTHING: lambda: model.run_with_cache(tokens, hooks=at[INSIDE]),
        f"everything cached, hook on {BETWEEN}": lambda: model.run_with_cache(tokens, hooks=at[BETWEEN]),
    }
    for run in calls.values():  # the first call compiles
        clocks(run)
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, run in calls.items():
            times[name].append(seconds(run))
    return {name: 1e3 * min(taken) for name, taken in times.items()}


def main() -> None:
    """Runs the benchmark, prints the results, and saves them unless `--quick`."""
    quick, machine, model, weights = smollm2.begin(__doc__, "a small model and 20 prompts; nothing is saved")
    rng = np.random.default_rng(0)
    lengths = [int(length) for length in rng.permutation(np.arange(1, 21 if quick else 101))]
    tokens = rng.integers(0, model.cfg.d_vocab, (2, max(lengths)))
    runs = measure_lengths(run_prompts, model, tokens, lengths)
    print_lengths(f"{len(lengths)} prompts of {len(lengths)} lengths, three runs of each", runs)
    few = [length for length in lengths if 8 < length <= 16]
    experiments = measure_lengths(run_experiments, model, tokens, few)
    print_lengths(f"{len(few)} prompts of {len(few)} lengths, a sweep and an attribution of each", experiments)
    planning = {n_layers: measure_planning(n_layers, 60) for n_layers in DEPTHS}
    rows = [[name, *(f"{planning[n][name]:.1f} ms" for n in DEPTHS)] for name in planning[DEPTHS[0]]]
    print_table("Models of 8 dimensions: warm calls", ["", *(f"{n} layers" for n in DEPTHS)], rows)
    for fewer, more in itertools.pairwise(DEPTHS):
        growth = planning[more][EVERYTHING] / planning[fewer][EVERYTHING]
        print(f"  {fewer} to {more} layers: {growth:.1f} × the time for {more / fewer:.1f} × the layers")
    if not quick:
        write("lengths", machine, {"model": weights, "lengths": runs, "experiments": experiments, "planning": planning})


if __name__ == "__main__":
    main()
