"""Activation patching sweeps: their time, their compilations, and the time that their arithmetic takes at least.

    python -m benchmarks.patching                             writes results/patching-<device>.json
    python -m benchmarks.patching --transformerlens PYTHON    also runs TransformerLens 4.3.0, installed for PYTHON;
                                                              writes results/patching-transformerlens-<device>.json
    python -m benchmarks.patching --quick                     a small random model; writes nothing

The sweep patches the residual stream before every layer at every position (30 × 15 for SmolLM2-135M). "names" are eight
indirect-object prompts, corrupted by exchanging the two names, so that the runs differ in the last 5 of 15 positions.
"random" are prompts that differ from the second position on. The minimum is the arithmetic of the rows that differ, in
all layers after the patch, at the speed of the fastest float32 matrix product on this machine.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxlens.patching import get_act_patch_attn_head_out_all_pos, get_act_patch_resid_pre

from benchmarks import smollm2, transformerlens_peer
from benchmarks.report import environment, print_environment, print_table, verdict, write
from benchmarks.timing import compilations, peak_flops, seconds
from jaxlens import HookedTransformer
from jaxlens.cli.demo.experiment import indirect_object_prompts, logit_difference

TARGETS = {"names, 8 prompts": 60, "names, 1 prompt": 60, "random, 8 prompts": 8}
"""How many times as fast as TransformerLens 4.3.0 a sweep should be."""
ROUNDS = 3


def flops_of_row(model: HookedTransformer) -> int:
    """Operations per row and layer: two for each weight of a block."""
    names = [name for name in model.params if name.startswith("blocks.") and ".W_" in name]
    return 2 * sum(model.params[name].size for name in names) // model.cfg.n_layers


def rows_that_differ(clean: np.ndarray, corrupted: np.ndarray, by_position: bool) -> int:
    """The number of rows that the patches of one layer change.

    These are the positions from the patch on, but not before the first position at which the runs differ.
    """
    length = clean.shape[1]
    first = [int(np.argmax(row)) for row in clean != corrupted]
    return sum(sum(range(1, length - start + 1)) if by_position else length - start for start in first)


def pairs(model: HookedTransformer, rng: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    """The clean and corrupted prompts of every case, and the right and wrong answers of the metric."""
    if model.tokenizer is None:
        clean, answers = rng.integers(1, 500, (8, 15)), rng.integers(1, 500, (8, 2))
    else:
        prompts = indirect_object_prompts(model)
        clean, answers = np.array(prompts.tokens), np.array(prompts.answers)
    exchanged = clean.reshape(-1, 2, clean.shape[1])[:, ::-1].reshape(clean.shape)
    random = np.concatenate((clean[:, :1], rng.integers(1, 500, (len(clean), clean.shape[1] - 1))), axis=1)
    return {
        f"{kind}, {n} prompt{'s' * (n > 1)}": {"clean": clean[:n], "corrupted": corrupted[:n], "answers": answers[:n]}
        for kind, corrupted in (("names", exchanged), ("random", random)) for n in (8, 1)
    }  # fmt: skip


def measure(model: HookedTransformer, runs: dict[str, np.ndarray], sweep: Callable, by_position: bool, flops: float):
    """The times, compilations and minimum time of a sweep, and its values. `flops` is the peak performance."""
    site = "blocks.*.hook_resid_pre" if by_position else "blocks.*.attn.hook_z"
    _, cache = model.run_with_cache(runs["clean"], names_filter=site)
    answers = jnp.asarray(runs["answers"])

    def run():
        metric = lambda logits: jnp.mean(logit_difference(logits, answers))  # noqa: E731  (a new function object in every call)
        return sweep(model, runs["corrupted"], cache, metric, progress=False)

    with compilations() as cold:
        first = seconds(run)
    with compilations() as warm:
        times = sorted(seconds(run) for _ in range(ROUNDS))
    cfg = model.cfg
    cells = 1 if by_position else cfg.n_heads
    row_layers = rows_that_differ(runs["clean"], runs["corrupted"], by_position) * cells
    row_layers *= cfg.n_layers * (cfg.n_layers + 1) // 2
    minimum = row_layers * flops_of_row(model) / flops
    result = {
        "first_s": first, "warm_s": times[ROUNDS // 2], "warm_all_s": times,
        "compiled_first": len(cold), "compiling_s": cold.seconds, "compiled_warm": len(warm),
        "row_layers": row_layers, "floor_s": minimum, "times_floor": times[ROUNDS // 2] / minimum,
    }  # fmt: skip
    return result, np.asarray(run())


class Peer:
    """TransformerLens in a process with another Python environment."""

    def __init__(self, python: str, model: HookedTransformer, folder: Path):
        from jaxlens.checkpoints import export

        export(folder, model.cfg, model.params, model.source, tokenizer=model.tokenizer)
        self.process = subprocess.Popen(
            [python, transformerlens_peer.__file__, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def sweep(self, runs: dict[str, np.ndarray]) -> dict[str, Any]:
        """The time and the values of a sweep."""
        self.process.stdin.write(json.dumps({name: tokens.tolist() for name, tokens in runs.items()}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def main() -> None:
    """Runs the benchmark, prints the results, and saves them unless `--quick`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model; nothing is saved")
    parser.add_argument("--transformerlens", metavar="PYTHON", help="a Python that has TransformerLens 4.3.0")
    options = parser.parse_args()
    machine = environment()
    print_environment(machine)
    model, weights = smollm2.load(options.quick)
    flops = peak_flops()
    print(f"{weights}; the fastest float32 matrix product: {flops / 1e9:.0f} GFLOP/s")
    cases, results, values = pairs(model, np.random.default_rng(0)), {}, {}
    for name, runs in cases.items():
        results[f"residual stream, {name}"], values[name] = measure(model, runs, get_act_patch_resid_pre, True, flops)
    heads = get_act_patch_attn_head_out_all_pos
    results["heads, names, 8 prompts"], _ = measure(model, cases["names, 8 prompts"], heads, False, flops)
    rows = [
        (name, f"{r['first_s']:.1f} s", f"{r['warm_s']:.2f} s", f"{r['compiled_first']}, {r['compiling_s']:.1f} s",
         str(r["compiled_warm"]), f"{r['floor_s']:.2f} s", f"{r['times_floor']:.2f}")
        for name, r in results.items()
    ]  # fmt: skip
    print_table("Sweeps", ("", "first", "warm", "compiled", "compiled warm", "minimum", "× minimum"), rows)
    if options.transformerlens:
        with tempfile.TemporaryDirectory() as folder:
            peer = Peer(options.transformerlens, model, Path(folder) / "model")
            for name, target in TARGETS.items():
                result = peer.sweep(cases[name])
                ours = measure(model, cases[name], get_act_patch_resid_pre, True, flops)[0]["warm_s"]
                difference = float(np.abs(np.array(result["values"]) - values[name]).max())
                ratio = result["seconds"] / ours
                results[f"TransformerLens, {name}"] = {
                    "seconds": result["seconds"], "jaxlens_s": ours, "times_faster": ratio, "difference": difference,
                }  # fmt: skip
                print(f"TransformerLens 4.3.0, {name}: {result['seconds']:.1f} s, jaxlens {ours:.2f} s: {ratio:.1f} ×")
                print(f"  {verdict(ratio, target, at_least=True)}; largest difference {difference:.1e}")
            peer.process.stdin.close()
            peer.process.wait()
    if not options.quick:
        name = "patching-transformerlens" if options.transformerlens else "patching"
        write(name, machine, {"weights": weights, "peak_flops": flops, "sweeps": results})


if __name__ == "__main__":
    main()
