"""Compile time against depth: how long a model of `n_layers` takes to compile, in a process where nothing is reused.

`python -m benchmarks.depth N` is the child that measures one depth and prints it as JSON; `measure` starts children.
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
    """Compile seconds by program and depth: the least of `repeats` fresh processes that take turns, since whatever else
    a machine does only adds to them."""
    found: dict[str, dict[int, list[float]]] = {}
    for _ in range(repeats):
        for n_layers in depths:
            for program, seconds in _child(n_layers, quick).items():
                found.setdefault(program, {}).setdefault(n_layers, []).append(seconds)
    return {
        program: {n_layers: min(times) for n_layers, times in by_depth.items()} for program, by_depth in found.items()
    }


def _child(n_layers: int, quick: bool) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.depth", str(n_layers), *(["--quick"] if quick else [])]
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    run = subprocess.run(
        command, cwd=Path(__file__).parents[1], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def compile_seconds(n_layers: int, quick: bool = False) -> dict[str, float]:
    """Seconds of tracing, lowering and compiling of a model's programs, each for the first time in this process."""
    cfg = Config(**{**(SMALL if quick else SMOLLM2), "n_layers": n_layers})
    model = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), jax.eval_shape(lambda: HookedTransformer(cfg)))
    tokens = np.zeros((1, LENGTH), np.int32)
    loss = jax.grad(lambda model, tokens: model(tokens, return_type="loss"))
    programs = {
        "forward": lambda: model(tokens),
        "run_with_cache, everything": lambda: model.run_with_cache(tokens),
        "gradient of the loss, jitted": lambda: jax.jit(loss).lower(model, tokens).compile(),
    }
    found = {}
    for name, program in programs.items():
        with compilations() as compiled:
            program()
        found[name] = compiled.seconds
    return found


if __name__ == "__main__":
    print(json.dumps(compile_seconds(int(sys.argv[1]), "--quick" in sys.argv)))
