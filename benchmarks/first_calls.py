"""First calls in new processes: with no programs on disk, and with those of an earlier process.

    python -m benchmarks.first_calls            SmolLM2-135M; writes results/first_calls-<device>.json
    python -m benchmarks.first_calls --quick    a small random model and one round; writes nothing

Each process loads the model, and then makes each call for the first time and once more, and then the same at another
length. The sweep patches the residual stream before every layer at each of 15 positions, of one pair of prompts that
differ in the last 5, and includes the run that it takes the activations from. At the other length it has 30 positions.

`JAX_ENABLE_COMPILATION_CACHE` is off in the processes without programs on disk. The others call
`jaxlens.use_compilation_cache`; the process that fills its folder is not counted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxlens.patching import get_act_patch_resid_pre

import jaxlens
from benchmarks import smollm2
from benchmarks.hooks import warm_up_hook
from benchmarks.report import environment, print_environment, print_table, verdict, write
from benchmarks.timing import compilations, seconds
from jaxlens import HookedTransformer

LENGTHS = {"": (128, 15), ", another length": (96, 30)}
"""Positions of the runs and of the sweep, by the addition to the title of the table."""

CHANGED = 5
TARGETS = {"forward": 0.3, "everything cached": 0.45, "Python hook inside a layer": 0.45, "sweep": 1.2}
ON_DISK = {False: "no programs on disk", True: "programs of an earlier process"}


def calls(model: HookedTransformer, length: int, sweep_length: int) -> dict[str, Callable[[], Any]]:
    """The calls, in their order."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, model.cfg.d_vocab, (1, length))
    clean, corrupted = rng.integers(0, model.cfg.d_vocab, (2, 1, sweep_length))
    corrupted[:, :-CHANGED] = clean[:, :-CHANGED]
    answers = jnp.array([3, 4])

    def sweep():
        _, cache = model.run_with_cache(clean, names_filter="blocks.*.hook_resid_pre")
        metric = lambda logits: logits[0, -1, answers[0]] - logits[0, -1, answers[1]]  # noqa: E731
        return get_act_patch_resid_pre(model, corrupted, cache, metric, progress=False)

    warm_up_hook((1, length, model.cfg.n_heads, model.cfg.d_head))
    hooks = [("blocks.1.attn.hook_z", lambda value, hook: value * 1.5)]
    return {
        "forward": lambda: model(tokens),
        "everything cached": lambda: model.run_with_cache(tokens)[1],
        "Python hook inside a layer": lambda: model.run_with_hooks(tokens, fwd_hooks=hooks),
        "sweep": sweep,
    }


Measured = dict[str, dict[str, dict[str, float]]]
"""By addition to the title and by call: the first and the second time, and the programs of the first."""


def measure(quick: bool) -> Measured:
    """The calls in this process."""
    model, measured = smollm2.load(quick)[0], {}
    for addition, lengths in LENGTHS.items():
        of_length = measured.setdefault(addition, {})
        for name, call in calls(model, *lengths).items():
            with compilations() as compiled:
                first = seconds(call)
            of_length[name] = {"first": first, "programs": len(compiled), "compiling": compiled.seconds}
            of_length[name]["warm"] = seconds(call)
    return measured


def measure_in_process(folder: str | None, quick: bool) -> Measured:
    """`measure` in a new process, whose programs are kept in a folder if it is given."""
    command = [sys.executable, "-m", "benchmarks.first_calls", "--process", *(["--quick"] if quick else [])]
    command += [] if folder is None else ["--folder", folder]
    variables = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": str(folder is not None).lower()}
    run = subprocess.run(
        command, cwd=Path(__file__).parents[1], env=variables, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def median_of(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The median of every number."""
    return {
        name: {key: statistics.median(run[name][key] for run in runs) for key in runs[0][name]} for name in runs[0]
    }


def main() -> None:
    """Runs the benchmark, prints the results, and saves them unless `--quick`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small model and one round; nothing is saved")
    parser.add_argument("--process", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        if options.folder:
            jaxlens.use_compilation_cache(options.folder)
        print(json.dumps(measure(options.quick)))
        return
    machine = environment()
    print_environment(machine)
    runs: dict[bool, list] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        measure_in_process(folder, options.quick)
        for _ in range(1 if options.quick else 5):
            for on_disk, of_kind in runs.items():
                of_kind.append(measure_in_process(folder if on_disk else None, options.quick))
    results = {
        ON_DISK[on_disk] + addition: median_of([run[addition] for run in of_kind])
        for on_disk, of_kind in runs.items() for addition in LENGTHS
    }  # fmt: skip
    for title, of_kind in results.items():
        rows = [
            [name, f"{r['first']:.2f} s", f"{r['programs']:.0f} in {r['compiling']:.2f} s", f"{r['warm']:.2f} s",
             verdict(r["first"], TARGETS[name])] for name, r in of_kind.items()
        ]  # fmt: skip
        print_table(title, ["", "first call", "programs", "second call", "target"], rows)
    if not options.quick:
        write("first_calls", machine, {"lengths": [*LENGTHS.values()], "calls": results, "targets": TARGETS})


if __name__ == "__main__":
    main()
