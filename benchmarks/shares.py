"""What the time of gradients, sweeps, caches and generation is made of: the shares of kinds of operations.

    python -m benchmarks.shares            SmolLM2-135M; writes results/shares-<device>.json
    python -m benchmarks.shares --quick    a small model; writes nothing

Each case runs once to compile and once under JAX's profiler. XLA writes its compiled programs to a temporary folder,
and each operation of the profile is looked up there. The time of operations that run at once is added up. For CPUs.
"""
# ruff: noqa: E402  XLA reads its flags when jax is imported

import os
import tempfile

DUMPS = tempfile.TemporaryDirectory()
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={DUMPS.name} --xla_dump_hlo_as_text"

import collections
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.profiler import ProfileData
from jaxlens.patching import get_act_patch_resid_pre

from benchmarks import smollm2
from benchmarks.patching import pairs
from benchmarks.report import print_table, write
from jaxlens import HookedTransformer
from jaxlens.cli.demo.experiment import logit_difference
from jaxlens.nn.in_stack import FEWEST_ROWS

DEFINITION = re.compile(r"\s*(?:ROOT )?%([\w.-]+) = (?:\(.*?\)|\S+) ([\w-]+)\(")
CALLED = re.compile(r"calls=%([\w.-]+)")

PRODUCTS, IN_STACK = "matrix products", "products of a single token, with weights in the stack"
LAYERS, ROWS, ZEROS = "a layer's weights, copied out of the stack", "rows, written to buffers", "new buffers"
COPIES, OTHER = "copies and transpositions", "everything else: norms, softmax, activation functions"
KINDS = (PRODUCTS, IN_STACK, LAYERS, ROWS, ZEROS, COPIES, OTHER)


# --- the kinds of the operations of a program


def kinds_of_operations(hlo: str) -> dict[str, str]:
    """The kind of each operation of a compiled program, given as text."""
    bodies = collections.defaultdict(list)
    body = ""
    for line in hlo.splitlines():
        if line.endswith("{"):
            body = line.removeprefix("ENTRY ").split()[0].lstrip("%")
        elif found := DEFINITION.match(line):
            bodies[body].append((found[1], found[2], CALLED.findall(line)))
    return {
        name: kind_of([operation, *(fused for each in called for _, fused, _ in bodies[each])])
        for operations in list(bodies.values()) for name, operation, called in operations
    }  # fmt: skip


def kind_of(operations: list[str]) -> str:
    """The kind of an operation, which may be a fusion of others."""
    if "dot" in operations:
        return PRODUCTS
    plain = set(operations) - {"fusion", "parameter", "constant", "bitcast", "compare", "add", "select", "convert"}
    if "dynamic-update-slice" in operations:
        return ROWS
    if min(map(operations.count, ("dynamic-slice", "multiply", "add"))) >= FEWEST_ROWS - 1:
        return IN_STACK
    if plain == {"dynamic-slice"}:
        return LAYERS
    if plain == {"broadcast"}:
        return ZEROS
    return COPIES if plain and plain <= {"copy", "transpose", "reshape", "slice", "concatenate"} else OTHER


# --- the time of each kind


def shares(run: Callable[[], Any]) -> dict[str, float]:
    """The seconds of each kind in one run, after one that compiles."""
    jax.block_until_ready(run())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        profile = ProfileData.from_file(str(next(Path(folder).rglob("*.xplane.pb"))))
    kinds = {}
    for path in sorted(Path(DUMPS.name).glob("*cpu_after_optimizations.txt")):
        module = path.name.split(".")[1]
        kinds |= {(module, name): kind for name, kind in kinds_of_operations(path.read_text()).items()}
    seconds = dict.fromkeys(KINDS, 0.0)
    for event in (event for plane in profile.planes for line in plane.lines for event in line.events):
        stats = dict(event.stats) if "::" not in event.name and not event.name.startswith(("$", "end: ")) else {}
        if "hlo_op" in stats and not stats["hlo_op"].startswith(("while", "call", "conditional")):
            kind = kinds.get((stats["hlo_module"], stats["hlo_op"]), OTHER)
            seconds[kind] += event.duration_ns / 1e9
    return seconds


def cases(model: HookedTransformer) -> dict[str, Callable[[], Any]]:
    rng = np.random.default_rng(0)
    one, four = (rng.integers(0, model.cfg.d_vocab, shape) for shape in ((1, 128), (4, 256)))
    gradient = jax.jit(jax.grad(lambda model, tokens: model(tokens, return_type="loss")))
    prompts = pairs(model, rng)

    def sweep(name: str):
        runs = prompts[name]
        cache = model.run_with_cache(runs["clean"], names_filter="blocks.*.hook_resid_pre")[1]
        metric = lambda logits: logit_difference(logits, jax.numpy.asarray(runs["answers"])).mean()  # noqa: E731
        return get_act_patch_resid_pre(model, runs["corrupted"], cache, metric, progress=False)

    def generation():
        return model.generate(one[:, :16], 32, do_sample=False, stop_at_eos=False, verbose=False)

    return {
        "forward pass, 4 × 256": lambda: model(four),
        "everything cached, 4 × 256": lambda: dict(model.run_with_cache(four)[1]),
        "gradient of the loss, 1 × 128": lambda: gradient(model, one),
        "sweep of the residual stream, 8 prompts, 5 positions": lambda: sweep("names, 8 prompts"),
        "sweep of the residual stream, 8 prompts, everywhere": lambda: sweep("random, 8 prompts"),
        "generation, 1 × (16 + 32)": generation,
    }


def main() -> None:
    """Runs the benchmark, prints the results, and saves them unless `--quick`."""
    quick, machine, model, weights = smollm2.begin(__doc__, "a small model; nothing is saved")
    results = {name: shares(run) for name, run in cases(model).items()}
    for name, seconds in results.items():
        total = sum(seconds.values())
        rows = [[kind, f"{1e3 * time:.0f} ms", f"{time / total:.0%}"] for kind, time in seconds.items()]
        print_table(f"{name}: {total:.2f} s", ["", "time", "share"], rows)
    if not quick:
        write("shares", machine, {"weights": weights, "seconds": results})


if __name__ == "__main__":
    main()
