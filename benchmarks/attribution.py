"""Attribution patching: its time relative to a forward of the same prompts, and its agreement with patching.

    python -m benchmarks.attribution            SmolLM2-135M; eight indirect-object prompts of 15 tokens, and the same
                                                with names exchanged; writes results/attribution-<device>.json
    python -m benchmarks.attribution --quick    a small random model and few rounds; writes nothing

Every call uses a new metric function and is timed next to a forward of the eight prompts. A pair of runs takes at least
two forwards and a backward pass without weight gradients.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import smollm2
from benchmarks.patching import pairs
from benchmarks.report import environment, print_environment, print_table, verdict, write
from benchmarks.timing import Timing, interleaved
from jaxlens import HookedTransformer
from jaxlens.analysis.attribution.backward import Readout, Start, all_gradients, linearise, pull_back, run_layers
from jaxlens.analysis.attribution.compare import correlation
from jaxlens.analysis.attribution.edges import edge_attribution_patch
from jaxlens.analysis.attribution.integrated_gradients import integrated_gradients
from jaxlens.analysis.attribution.nodes import attribution_patch
from jaxlens.analysis.interventions.activation_patching import activation_patch
from jaxlens.cli.demo.experiment import logit_difference

FORWARD, MAIN = "forward of the clean prompts", "heads and MLPs"
TARGET = 3.5  # times a forward
ALL_NODES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern", "post")
SITES = frozenset(("attn.hook_z", "hook_mlp_out"))


@dataclasses.dataclass(frozen=True)
class Pair:
    """A model and a pair of batches, clean and corrupted."""

    model: HookedTransformer
    clean: np.ndarray
    corrupted: np.ndarray
    answers: Any

    def metric(self) -> Callable:
        """The mean logit difference, as a new function object."""
        return lambda logits: jnp.mean(logit_difference(logits, self.answers))

    def cases(self) -> dict[str, Callable[[int], Any]]:
        """The timed functions by name. The first is the forward."""
        inputs = self.model, self.clean, self.corrupted

        def nodes(names: Any, **options: Any) -> Callable[[int], Any]:
            return lambda call: attribution_patch(*inputs, self.metric(), names, **options)

        def edges(ig_steps: int) -> Callable[[int], Any]:
            return lambda call: edge_attribution_patch(*inputs, self.metric(), ig_steps=ig_steps)

        return {
            FORWARD: lambda call: self.model(self.clean),
            MAIN: nodes(("z", "mlp_out")),
            f"{len(ALL_NODES)} kinds of nodes": nodes(ALL_NODES),
            "heads and MLPs, gradients at 5 steps": nodes(("z", "mlp_out"), ig_steps=5),
            "queries and keys, exact softmax": nodes(("q", "k"), exact_softmax=True),
            "edges": edges(1),
            "edges, gradients at 5 steps": edges(5),
            "integrated gradients, 8 steps": lambda call: integrated_gradients(
                self.model, self.clean, self.metric(), self.corrupted, 8
            ),
        }

    def starts(self) -> tuple[Start, Start]:
        """The residual streams before the first layer, clean and corrupted."""
        return Start.pair(self.model, *map(self.model.read_input, (self.clean, self.corrupted)))

    def stages(self) -> dict[str, Callable[[int], Any]]:
        """The stages of the attribution of heads and MLPs, by name."""
        goal, start = self.starts()
        run = linearise(self.model, start, probed=SITES, wanted=SITES)
        readout = Readout.of(self.model, self.metric(), self.model.read_input(self.corrupted))
        _, gradient = readout.with_gradient(run.final)
        return {
            FORWARD: lambda call: self.model(self.clean),
            "clean run, without logits": lambda call: run_layers(self.model, goal, wanted=SITES)[0],
            "corrupted run, keeping its derivatives": lambda call: (
                linearise(self.model, start, probed=SITES, wanted=SITES).final
            ),
            "metric and its gradient, at the positions it reads": lambda call: readout.with_gradient(run.final),
            "backward": lambda call: pull_back(
                self.model, gradient, run.derivatives, run.values, start.mask, reduce=all_gradients
            ),
        }

    def memory(self) -> dict[str, float]:
        """MiB that are stored for the backward pass, and MiB that `jax.vjp` of all layers would store."""
        _, start = self.starts()

        def vjp_of_all_layers(model, x):
            return jax.vjp(lambda x: model(x, start_at_layer=0, stop_at_layer=model.cfg.n_layers), x)[1]

        stored = {
            "linearise": jax.eval_shape(
                lambda model, start: linearise(model, start, probed=SITES, wanted=SITES).derivatives, self.model, start
            ),
            "jax.vjp of all layers": jax.eval_shape(vjp_of_all_layers, self.model, start.residual),
        }
        return {
            name: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays)) / 2**20
            for name, arrays in stored.items()
        }

    def agreement(self) -> dict[str, dict[str, float]]:
        """The correlation of attributions with the effects of patching every head of every layer at all positions."""
        arguments = self.model, self.clean, self.corrupted, self.metric()
        results: dict[str, dict[str, float]] = {}
        for node in "zqk":
            start = time.perf_counter()
            patched = activation_patch(
                self.model, self.corrupted, self.clean, self.metric(), node, ("layer", "head"), progress=False
            ).change  # fmt: skip
            seconds = time.perf_counter() - start
            variants: dict[str, dict[str, Any]] = {"": {}, ", gradients at 5 steps": {"ig_steps": 5}}
            variants |= {", exact softmax": {"exact_softmax": True}} if node in "qk" else {}
            for name, options in variants.items():
                result = correlation(attribution_patch(*arguments, node, **options)[node].sum("pos"), patched)
                results[f"{node}{name}"] = {
                    "pearson": result.pearson, "spearman": result.spearman, "slope": result.slope,
                    "heads": patched.values.size, "patching_seconds": seconds,
                }  # fmt: skip
        return results


def report_times(title: str, timings: dict[str, Timing], targets: dict[str, float]) -> dict[str, Any]:
    """Prints a table of times and returns its numbers."""
    rows = [
        [name, f"{t.first:.2f} s", str(len(t.compiled_first)), f"{t.warm * 1e3:.0f} ms", f"{t.ratio:.2f}",
         str(len(t.compiled_warm)), verdict(t.ratio, targets.get(name))]
        for name, t in timings.items()
    ]  # fmt: skip
    print_table(title, ["", "first call", "compiled", "warm", "× forward", "compiled", "target"], rows)
    return {name: {**dataclasses.asdict(t), "target_ratio": targets.get(name)} for name, t in timings.items()}


def main() -> None:
    """Runs the benchmark, prints the results, and saves them unless `--quick`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and few rounds; nothing is saved")
    parser.add_argument("--rounds", type=int, help="how often each case runs (default: 7, quick 3)")
    options = parser.parse_args()
    rounds = options.rounds or (3 if options.quick else 7)
    jax.config.update("jax_enable_compilation_cache", False)
    machine = environment()
    print_environment(machine)
    model, weights = smollm2.load(options.quick)
    runs = pairs(model, np.random.default_rng(0))["names, 8 prompts"]
    pair = Pair(model, runs["clean"], runs["corrupted"], jnp.asarray(runs["answers"]))
    title = f"{weights}, {' × '.join(map(str, pair.clean.shape))} tokens; medians of {rounds} rounds with new metrics"
    cases = report_times(title, interleaved(pair.cases(), rounds), {} if options.quick else {MAIN: TARGET})
    stages = report_times("Stages of heads and MLPs", interleaved(pair.stages(), rounds), {})
    memory, agreement = pair.memory(), pair.agreement()
    print_table("Stored for the backward pass", ["", "MiB"], [[name, f"{size:.0f}"] for name, size in memory.items()])
    columns = ("pearson", "spearman", "slope")
    rows = [[name, *(f"{result[column]:.3f}" for column in columns)] for name, result in agreement.items()]
    print_table("Agreement with patching every head", ["attributions of", "Pearson", "Spearman", "slope"], rows)
    if not options.quick:
        write("attribution", machine, {
            "model": weights, "tokens": list(pair.clean.shape), "rounds": rounds, "cases": cases, "stages": stages,
            "kept_mib": memory, "agreement": agreement,
        })  # fmt: skip


if __name__ == "__main__":
    main()
