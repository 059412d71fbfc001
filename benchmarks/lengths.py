"""Prompts of many lengths: compilations and seconds, with programs at a few lengths and at every length.

    python -m benchmarks.lengths            SmolLM2-135M, 1 to 100 tokens; writes results/lengths-<device>.json
    python -m benchmarks.lengths --quick    a small model and 20 prompts; writes nothing

Each prompt runs a forward, a forward with a new Python hook, and a forward with a cache. "At every length" replaces
`program_length` with the identity, so that each prompt compiles programs for its exact length.

The second table is the time that Python takes to plan a call and to start its programs: everything is cached and a
layer has a Python hook, in models of many layers that compute almost nothing.
"""

import itertools
from typing import Any

import jax
import numpy as np

import jaxlens.model.lengths
from benchmarks import smollm2
from benchmarks.report import print_table, write
from benchmarks.timing import clocks, compilations, median
from jaxlens import Config, HookedTransformer

DEPTHS = (12, 30, 96)
EVERYTHING = "everything cached, one Python hook"


def run_prompts(model: HookedTransformer, tokens: np.ndarray, lengths: list[int]) -> dict[str, Any]:
    """Runs a prompt of each length, and returns the seconds and the compiled programs."""

    def run() -> list[jax.Array]:
        outputs = []
        for layer, length in enumerate(lengths):
            prompt = tokens[:, :length]
            name = f"blocks.{layer % model.cfg.n_layers}.hook_resid_post"
            outputs.append(model(prompt))
            outputs.append(model.run_with_hooks(prompt, fwd_hooks=[(name, lambda value, hook: None)]))
            outputs.append(model.run_with_cache(prompt, names_filter="blocks.*.hook_resid_post")[0])
        return outputs

    with compilations() as compiled:
        taken = clocks(run)
    return {"seconds": taken.wall, "processor_seconds": taken.processor, "programs": len(compiled),
            "compile_seconds": compiled.seconds}  # fmt: skip


def measure_lengths(model: HookedTransformer, tokens: np.ndarray, lengths: list[int]) -> dict[str, dict[str, Any]]:
    """The prompts at a few lengths, again when everything is compiled, and at every length."""
    chosen = jaxlens.model.lengths.program_length
    results = {"programs at a few lengths": run_prompts(model, tokens, lengths)}
    results["the same prompts again"] = run_prompts(model, tokens, lengths)
    jax.clear_caches()
    try:
        jaxlens.model.lengths.program_length = lambda length, n_ctx: length
        results["programs at every length"] = run_prompts(model, tokens, lengths)
    finally:
        jaxlens.model.lengths.program_length = chosen
    return results


def measure_planning(n_layers: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a warm forward, and of one that caches everything with a Python hook in the middle layer."""
    cfg = Config(n_layers=n_layers, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8)
    model, tokens = HookedTransformer(cfg), np.zeros((1, 8), np.int32)
    hooks = [(f"blocks.{n_layers // 2}.hook_resid_post", lambda value, hook: None)]

    def everything() -> Any:
        with model.hooks(fwd_hooks=hooks):
            return model.run_with_cache(tokens)

    times = {"forward": [], EVERYTHING: []}
    for call in range(rounds + 1):
        for name, run in zip(times, (lambda: model(tokens), everything), strict=True):
            taken = clocks(run)
            times[name] += [taken] if call else []  # the first call compiles
    return {name: 1e3 * median(taken).wall for name, taken in times.items()}


def main() -> None:
    """Runs the benchmark, prints the results, and saves them unless `--quick`."""
    quick, machine, model, weights = smollm2.begin(__doc__, "a small model and 20 prompts; nothing is saved")
    rng = np.random.default_rng(0)
    lengths = [int(length) for length in rng.permutation(np.arange(1, 21 if quick else 101))]
    tokens = rng.integers(0, model.cfg.d_vocab, (1, max(lengths)))
    by_policy = measure_lengths(model, tokens, lengths)
    print_table(
        f"{len(lengths)} prompts of {len(lengths)} lengths, three runs of each",
        ["", "seconds", "compiled programs", "of these seconds compiling"],
        [[name, f"{r['seconds']:.1f} s", str(r["programs"]), f"{r['compile_seconds']:.1f} s"]
         for name, r in by_policy.items()],
    )  # fmt: skip
    planning = {n_layers: measure_planning(n_layers, 5) for n_layers in DEPTHS}
    rows = [[str(n), *(f"{ms:.1f} ms" for ms in times.values())] for n, times in planning.items()]
    print_table("Models of 8 dimensions: warm calls", ["layers", *next(iter(planning.values()))], rows)
    for few, many in itertools.pairwise(DEPTHS):
        growth = planning[many][EVERYTHING] / planning[few][EVERYTHING]
        print(f"  {few} to {many} layers: {growth:.1f} × the time for {many / few:.1f} × the layers")
    if not quick:
        write("lengths", machine, {"model": weights, "lengths": by_policy, "planning": planning})


if __name__ == "__main__":
    main()
