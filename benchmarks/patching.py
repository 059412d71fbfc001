"""Activation patching sweeps: their time, what they compile, and how far they are from what the arithmetic must cost.

    python -m benchmarks.patching --transformerlens PYTHON    also the same sweep in TransformerLens 4.3.0, which PYTHON
                                                              has; writes results/patching-<device>.json
    python -m benchmarks.patching --quick                     a small random model; writes nothing

The sweep patches the residual stream before every layer at every position (30 × 15 on SmolLM2-135M). "names" are the
eight indirect-object prompts with the two names exchanged: the runs differ in the last 5 of 15 positions. "random" are
prompts that differ from the second position on. The floor is the arithmetic of the rows that differ, in the layers from
the patch on, at the speed of this machine's best float32 matrix product.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import smollm2, transformerlens_peer
from benchmarks.report import environment, print_environment, print_table, write
from benchmarks.timing import compilations, seconds
from jaxlens import HookedTransformer
from jaxlens.analysis.patching import get_act_patch_attn_head_out_all_pos, get_act_patch_resid_pre
from jaxlens.demo import indirect_object_prompts, logit_difference

TARGET = 12  # times as fast as TransformerLens 4.3.0
ROUNDS = 3


def peak() -> float:
    """The most float32 operations per second that a matrix product reaches here."""
    best = 0.0
    for size in (512, 1024, 2048):
        a = jnp.ones((size, size))
        product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
        jax.block_until_ready(product(a))
        best = max(best, *(2 * size**3 / seconds(lambda product=product, a=a: product(a)) for _ in range(5)))
    return best


def flops_of_row(model: HookedTransformer) -> int:
    """Operations on one row in one layer: two for each weight of a block."""
    names = [name for name in model.params if name.startswith("blocks.") and ".W_" in name]
    return 2 * sum(model.params[name].size for name in names) // model.cfg.n_layers


def rows_that_differ(clean: np.ndarray, corrupted: np.ndarray, by_position: bool) -> int:
    """How many rows the patches of one layer change: from the patched position on, where the runs differ already."""
    length = clean.shape[1]
    first = [int(np.argmax(row)) for row in clean != corrupted]
    return sum(sum(range(1, length - at + 1)) if by_position else length - at for at in first)


def pairs(model: HookedTransformer, random: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    """The clean and corrupted prompts of every case, and the answers the metric compares."""
    if model.tokenizer is None:
        clean, answers = random.integers(1, 500, (8, 15)), random.integers(1, 500, (8, 2))
    else:
        prompts = indirect_object_prompts(model)
        clean, answers = np.array(prompts.tokens), np.array(prompts.answers)
    exchanged = clean.reshape(-1, 2, clean.shape[1])[:, ::-1].reshape(clean.shape)
    other = np.concatenate((clean[:, :1], random.integers(1, 500, (len(clean), clean.shape[1] - 1))), axis=1)
    runs = {"names, 8 prompts": (clean, exchanged), "names, 1 prompt": (clean[:1], exchanged[:1]),
            "random, 8 prompts": (clean, other), "random, 1 prompt": (clean[:1], other[:1])}  # fmt: skip
    return {
        name: {"clean": one, "corrupted": two, "answers": answers[: len(one)]} for name, (one, two) in runs.items()
    }


def measure(model: HookedTransformer, runs: dict[str, np.ndarray], sweep: Callable, by_position: bool, fastest: float):
    """One sweep: first and warm times, compilations, and its floor."""
    site = "blocks.*.hook_resid_pre" if by_position else "blocks.*.attn.hook_z"
    _, cache = model.run_with_cache(runs["clean"], names_filter=site)
    answers = jnp.asarray(runs["answers"])

    def run():
        metric = lambda logits: jnp.mean(logit_difference(logits, answers))  # noqa: E731  (new in every call)
        return sweep(model, runs["corrupted"], cache, metric, progress=False)

    with compilations() as cold:
        first = seconds(run)
    with compilations() as warm:
        times = sorted(seconds(run) for _ in range(ROUNDS))
    cfg = model.cfg
    cells = 1 if by_position else cfg.n_heads
    row_layers = rows_that_differ(runs["clean"], runs["corrupted"], by_position) * cells
    row_layers *= cfg.n_layers * (cfg.n_layers + 1) // 2
    floor = row_layers * flops_of_row(model) / fastest
    result = {
        "first_s": first, "warm_s": times[ROUNDS // 2], "warm_all_s": times,
        "compiled_first": len(cold), "compiling_s": cold.seconds, "compiled_warm": len(warm),
        "row_layers": row_layers, "floor_s": floor, "times_floor": times[ROUNDS // 2] / floor,
    }  # fmt: skip
    return result, np.asarray(run())


class Peer:
    """TransformerLens in another process."""

    def __init__(self, python: str, model: HookedTransformer, folder: Path):
        from jaxlens.convert import export

        export(folder, model.cfg, model.params, model.source, tokenizer=model.tokenizer)
        self.process = subprocess.Popen(
            [python, transformerlens_peer.__file__, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def sweep(self, runs: dict[str, np.ndarray]) -> dict[str, Any]:
        """Its time and its values."""
        self.process.stdin.write(json.dumps({name: tokens.tolist() for name, tokens in runs.items()}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--transformerlens", metavar="PYTHON")
    options = parser.parse_args()
    where = environment()
    print_environment(where)
    model, weights = smollm2.load(options.quick)
    fastest = peak()
    print(f"{weights}; the fastest float32 matrix product: {fastest / 1e9:.0f} GFLOP/s")
    cases, results, found = pairs(model, np.random.default_rng(0)), {}, {}
    for name, runs in cases.items():
        results[f"residual stream, {name}"], found[name] = measure(model, runs, get_act_patch_resid_pre, True, fastest)
    heads = get_act_patch_attn_head_out_all_pos
    results["heads, names, 8 prompts"], _ = measure(model, cases["names, 8 prompts"], heads, False, fastest)
    rows = [
        (name, f"{r['first_s']:.1f} s", f"{r['warm_s']:.2f} s", f"{r['compiled_first']}, {r['compiling_s']:.1f} s",
         str(r["compiled_warm"]), f"{r['floor_s']:.2f} s", f"{r['times_floor']:.2f} ×")
        for name, r in results.items()
    ]  # fmt: skip
    print_table("sweeps", ("", "first", "warm", "compiled", "then", "floor", "of the floor"), rows)
    if options.transformerlens:
        with tempfile.TemporaryDirectory() as folder:
            peer = Peer(options.transformerlens, model, Path(folder) / "model")
            for name in ("names, 8 prompts", "names, 1 prompt"):
                their = peer.sweep(cases[name])
                own = measure(model, cases[name], get_act_patch_resid_pre, True, fastest)[0]["warm_s"]
                difference = float(np.abs(np.array(their["values"]) - found[name]).max())
                ratio = their["seconds"] / own
                results[f"TransformerLens, {name}"] = {
                    "seconds": their["seconds"], "jaxlens_s": own, "times_faster": ratio, "difference": difference,
                }  # fmt: skip
                met = "holds" if ratio >= TARGET else "MISSED"
                print(f"TransformerLens 4.3.0, {name}: {their['seconds']:.1f} s, jaxlens {own:.2f} s: {ratio:.1f} ×")
                print(f"  at least {TARGET} × {met}; largest difference {difference:.1e}")
            peer.process.stdin.close()
            peer.process.wait()
    if not options.quick:
        write("patching", where, {"weights": weights, "peak_flops": fastest, "sweeps": results})


if __name__ == "__main__":
    main()
