"""Compile time as a function of depth, each time in a new process without a compilation cache.

`measure` starts a process for each depth: `python -m benchmarks.depth N` compiles a model of N layers and prints JSON.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.smollm2 import SMALL, SMOLLM2
from benchmarks.timing import compilations
from jaxlens import Config, HookedTransformer

LENGTH = 128


def measure(depths: tuple[int, ...], repeats: int, quick: bool) -> dict[str, dict[int, float]]:
    """Compile seconds by program and depth. The minimum over `repeats` processes is least affected by other load."""
    measured: dict[str, dict[int, list[float]]] = {}
    for _ in range(repeats):
        for n_layers in depths:
            for program, seconds in _measure_in_process(n_layers, quick).items():
                measured.setdefault(program, {}).setdefault(n_layers, []).append(seconds)
    return {program: {n: min(times) for n, times in by_depth.items()} for program, by_depth in measured.items()}


def _measure_in_process(n_layers: int, quick: bool) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.depth", str(n_layers), *(["--quick"] if quick else [])]
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    run = subprocess.run(
        command, cwd=Path(__file__).parents[1], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def compile_seconds(n_layers: int, quick: bool = False) -> dict[str, float]:
    """Seconds to trace, lower and compile each program of a model, for the first time in this process."""
    cfg = Config(**{**(SMALL if quick else SMOLLM2), "n_layers": n_layers})
    model = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(lambda: HookedTransformer(cfg)))
    tokens = np.zeros((1, LENGTH), np.int32)
    loss = jax.grad(lambda model, tokens: model(tokens, return_type="loss"))
    programs = {
        "forward": lambda: model(tokens),
        "run_with_cache, everything": lambda: model.run_with_cache(tokens),
        "gradient of the loss, jitted": lambda: jax.jit(loss).lower(model, tokens).compile(),
    }
    seconds = {}
    for name, program in programs.items():
        with compilations() as compiled:
            program()
        seconds[name] = compiled.seconds
    return seconds


if __name__ == "__main__":
    print(json.dumps(compile_seconds(int(sys.argv[1]), "--quick" in sys.argv)))
