"""Gradients with Python hooks: the time of a call with a new function, and the memory after many calls.

    python -m benchmarks.gradients            SmolLM2-135M, 1×128 tokens; writes results/gradients-<device>.json
    python -m benchmarks.gradients --quick    a small model and few calls; writes nothing

Every call has a new function object. The baseline is the gradient of the loss in the caller's jit, without hooks, which
is compiled once. Memory is the resident memory of the process, measured after the programs are compiled.
"""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import smollm2
from benchmarks.report import print_table, verdict, write
from benchmarks.timing import clocks, compilations, interleaved
from jaxlens import HookedTransformer

LENGTH = 128
BASELINE = "gradient of the weights, jitted, no hook"
TARGET = 2.0
GROWTH_TARGET = 0.1
MEGABYTES = "megabytes_per_call"


def gradient_cases(model: HookedTransformer, tokens: np.ndarray) -> dict[str, Callable[[int], Any]]:
    """Gradients with a new Python function in every call, and the jitted gradient to compare them with."""
    n_layers = model.cfg.n_layers
    jitted = jax.jit(jax.grad(lambda model, tokens: model(tokens, return_type="loss")))

    def hooks(call: int) -> list[tuple[str, Callable]]:
        return [(f"blocks.{(7 * call + 3) % n_layers}.hook_resid_post", lambda value, hook: value * 1.5)]

    def of_weights(call: int) -> Any:
        return jax.grad(lambda model: model(tokens, return_type="loss", hooks=hooks(call)))(model)

    def of_activations(call: int, names: Any) -> Any:
        return model.run_with_cache(tokens, return_type="loss", hooks=hooks(call), names_filter=names, incl_bwd=True)[1]

    return {
        BASELINE: lambda call: jitted(model, tokens),
        "jax.grad of the weights, new hook": of_weights,
        "incl_bwd, everything, new hook": lambda call: dict(of_activations(call, None)),
        "incl_bwd, resid_pre, new hook": lambda call: dict(of_activations(call, "blocks.*.hook_resid_pre")),
    }


def resident_megabytes() -> float:
    """The resident memory of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def measure_memory(run: Callable[[int], Any], n_calls: int) -> dict[str, Any]:
    """Resident memory after a quarter of the calls and after all of them, and the programs compiled in between."""
    for call in range(n_calls // 4):
        jax.block_until_ready(run(call))
    before = resident_megabytes()
    with compilations() as compiled:
        seconds = clocks(lambda: [jax.block_until_ready(run(call)) and None for call in range(n_calls)]).wall
    growth = (resident_megabytes() - before) / n_calls
    return {"calls": n_calls, MEGABYTES: growth, "programs": len(compiled), "seconds": seconds}


def main() -> None:
    """Runs the benchmark, prints the results, and saves them unless `--quick`."""
    quick, machine, model, weights = smollm2.begin(__doc__, "a small model and few calls; nothing is saved")
    tokens = np.random.default_rng(0).integers(0, model.cfg.d_vocab, (1, LENGTH))
    cases = gradient_cases(model, tokens)
    timings = interleaved(cases, 3 if quick else 5)
    print_table(
        f"1×{LENGTH} tokens; medians, each call next to the baseline",
        ["", "first call", "compiled", "warm", "× baseline", "compiled", "target"],
        [[name, f"{t.first:.1f} s", str(len(t.compiled_first)), f"{t.warm:.2f} s", f"{t.ratio:.2f}",
          str(len(t.compiled_warm)), verdict(t.ratio, None if name == BASELINE else TARGET)]
         for name, t in timings.items()],
    )  # fmt: skip
    short = tokens[:, :16]
    of_short = gradient_cases(model, short)
    n_calls = 40 if quick else 200
    memory = {name: measure_memory(run, n_calls) for name, run in of_short.items() if name != BASELINE}
    print_table(
        f"{n_calls} calls with 1×{short.shape[1]} tokens",
        ["", "memory per call", "compiled", "target"],
        [[name, f"{m[MEGABYTES]:.3f} MB", str(m["programs"]), verdict(m[MEGABYTES], GROWTH_TARGET)]
         for name, m in memory.items()],
    )  # fmt: skip
    if not quick:
        times = {name: {"first": t.first, "warm": t.warm, "ratio": t.ratio} for name, t in timings.items()}
        write("gradients", machine, {"model": weights, "times": times, "memory": memory})


if __name__ == "__main__":
    main()
