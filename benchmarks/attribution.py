"""Attribution patching: its time against a forward of the same prompts, and how well it foretells patching.

    python -m benchmarks.attribution            SmolLM2-135M, eight indirect-object prompts of 15 tokens and the same
                                                with names exchanged; writes results/attribution-<device>.json
    python -m benchmarks.attribution --quick    a small random model and few rounds; writes nothing

Every call has a metric of its own, a new function, and is timed beside a forward of the eight prompts. A single pair
of runs costs two forwards and a backward pass by activations alone.
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
from jaxlens.analysis.agreement import correlation
from jaxlens.analysis.attribution import attribution_patch
from jaxlens.analysis.edges import edge_attribution_patch
from jaxlens.analysis.interventions import activation_patch
from jaxlens.analysis.linearise import Readout, Start, linearise, pull_back, run_layers, themselves
from jaxlens.analysis.path_integrals import integrated_gradients
from jaxlens.demo import logit_difference

FORWARD, MAIN = "forward of the clean prompts", "heads and MLPs"
TARGET = 3.5  # times a forward
EVERYTHING = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern", "post")
SITES = frozenset(("attn.hook_z", "hook_mlp_out"))


@dataclasses.dataclass(frozen=True)
class Pair:
    """A model and the two runs that are compared."""

    model: HookedTransformer
    clean: np.ndarray
    corrupted: np.ndarray
    answers: Any

    def metric(self) -> Callable:
        """The mean logit difference, as a function that nobody has seen before."""
        return lambda logits: jnp.mean(logit_difference(logits, self.answers))

    def cases(self) -> dict[str, Callable[[int], Any]]:
        """What is timed, by name; the forward is the first."""
        given = self.model, self.clean, self.corrupted

        def nodes(names: Any, **options: Any) -> Callable[[int], Any]:
            return lambda call: attribution_patch(*given, self.metric(), names, **options)

        def edges(ig_steps: int) -> Callable[[int], Any]:
            return lambda call: edge_attribution_patch(*given, self.metric(), ig_steps=ig_steps)

        return {
            FORWARD: lambda call: self.model(self.clean),
            MAIN: nodes(("z", "mlp_out")),
            f"{len(EVERYTHING)} kinds of nodes": nodes(EVERYTHING),
            "heads and MLPs, gradients at 5 steps": nodes(("z", "mlp_out"), ig_steps=5),
            "queries and keys, exact softmax": nodes(("q", "k"), exact_softmax=True),
            "edges": edges(1),
            "edges, gradients at 5 steps": edges(5),
            "integrated gradients, 8 steps": lambda call: integrated_gradients(
                self.model, self.clean, self.metric(), self.corrupted, 8
            ),
        }

    def stages(self) -> dict[str, Callable[[int], Any]]:
        """What attributing heads and MLPs consists of."""
        goal, start = Start.pair(self.model, self.clean, self.corrupted, None)
        run = linearise(self.model, start, probed=SITES, wanted=SITES)
        readout = Readout.of(self.model, self.metric(), start)
        _, gradient = readout.with_gradient(run.final)
        return {
            FORWARD: lambda call: self.model(self.clean),
            "clean run, without logits": lambda call: run_layers(self.model, goal, wanted=SITES)[0],
            "corrupted run, keeping its derivatives": lambda call: linearise(
                self.model, start, probed=SITES, wanted=SITES
            ).final,
            "metric and its gradient, at the positions it reads": lambda call: readout.with_gradient(run.final),
            "backward": lambda call: pull_back(
                self.model, gradient, run.derivatives, run.values, start.real, reduce=themselves
            ),
        }

    def memory(self) -> dict[str, float]:
        """MiB that the way back needs, beside what `jax.vjp` of the same run would keep for it."""
        _, start = Start.pair(self.model, self.clean, self.corrupted, None)

        def whole(model, x):
            return jax.vjp(lambda x: model(x, start_at_layer=0, stop_at_layer=model.cfg.n_layers), x)[1]

        kept = {
            "linearise": jax.eval_shape(
                lambda model, start: linearise(model, start, probed=SITES, wanted=SITES).derivatives, self.model, start
            ),
            "jax.vjp of all layers": jax.eval_shape(whole, self.model, start.residual),
        }
        return {
            name: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(of)) / 2**20
            for name, of in kept.items()
        }

    def agreement(self) -> dict[str, dict[str, float]]:
        """Attributions against patching for real, every head of every layer at all positions."""
        given = self.model, self.clean, self.corrupted, self.metric()
        found: dict[str, dict[str, float]] = {}
        for node in "zqk":
            start = time.perf_counter()
            patched = activation_patch(
                self.model, self.corrupted, self.clean, self.metric(), node, ("layer", "head"), progress=False
            ).change  # fmt: skip
            seconds = time.perf_counter() - start
            ways: dict[str, dict[str, Any]] = {"": {}, ", gradients at 5 steps": {"ig_steps": 5}}
            ways |= {", exact softmax": {"exact_softmax": True}} if node in "qk" else {}
            for way, options in ways.items():
                result = correlation(attribution_patch(*given, node, **options)[node].sum("pos"), patched)
                found[f"{node}{way}"] = {
                    "pearson": result.pearson, "spearman": result.spearman, "slope": result.slope,
                    "heads": patched.values.size, "patching_seconds": seconds,
                }  # fmt: skip
        return found


def report_times(title: str, timings: dict[str, Timing], targets: dict[str, float]) -> dict[str, Any]:
    """Prints times and gives them."""
    rows = [
        [name, f"{t.first:.2f} s", str(len(t.compiled_first)), f"{t.warm * 1e3:.0f} ms", f"{t.ratio:.2f}",
         str(len(t.compiled_warm)), verdict(t.ratio, targets.get(name))]
        for name, t in timings.items()
    ]  # fmt: skip
    print_table(title, ["", "first call", "compiled", "warm", "× forward", "compiled", "target"], rows)
    return {name: {**dataclasses.asdict(t), "target_ratio": targets.get(name)} for name, t in timings.items()}


def main() -> None:
    """Measures, prints and, for the real model, saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and few rounds; nothing is saved")
    parser.add_argument("--rounds", type=int, help="how often each case runs (default: 7, quick 3)")
    options = parser.parse_args()
    rounds = options.rounds or (3 if options.quick else 7)
    jax.config.update("jax_enable_compilation_cache", False)
    where = environment()
    print_environment(where)
    model, weights = smollm2.load(options.quick)
    runs = pairs(model, np.random.default_rng(0))["names, 8 prompts"]
    pair = Pair(model, runs["clean"], runs["corrupted"], jnp.asarray(runs["answers"]))
    title = f"{weights}, {' × '.join(map(str, pair.clean.shape))} tokens; medians of {rounds} rounds, a new metric each"
    cases = report_times(title, interleaved(pair.cases(), rounds), {} if options.quick else {MAIN: TARGET})
    stages = report_times("What heads and MLPs take", interleaved(pair.stages(), rounds), {})
    memory, agreement = pair.memory(), pair.agreement()
    print_table("Kept for the way back", ["", "MiB"], [[name, f"{size:.0f}"] for name, size in memory.items()])
    columns = ("pearson", "spearman", "slope")
    rows = [[name, *(f"{found[column]:.3f}" for column in columns)] for name, found in agreement.items()]
    print_table("Against patching every head", ["attributions of", "Pearson", "Spearman", "slope"], rows)
    if not options.quick:
        write("attribution", where, {
            "model": weights, "tokens": list(pair.clean.shape), "rounds": rounds, "cases": cases, "stages": stages,
            "kept_mib": memory, "agreement": agreement,
        })  # fmt: skip


if __name__ == "__main__":
    main()
