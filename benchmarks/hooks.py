"""The time of reading and writing activations, relative to a warm forward of the same model in the same process.

    python -m benchmarks.hooks            SmolLM2-135M (30 layers), 1×128 tokens; writes results/hooks-<device>.json
    python -m benchmarks.hooks --quick    a small model and few rounds; writes nothing

The first call and the warm calls of a case are measured separately, and so are the programs that they compile. In the
"fresh lambda" cases, every call hooks another layer with a new function object. The operations of these functions are
compiled in advance, so every program that a call compiles belongs to the model.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import depth, smollm2, torch_peer
from benchmarks.report import environment, print_environment, print_table, verdict, write
from benchmarks.timing import Timing, clocks, compilations, interleaved, median
from jaxlens import HookedTransformer, hook

LENGTH = 128
LARGE_CACHE, LARGE_CACHE_TARGET = (4, 256), 1.3
SITES = ("hook_resid_post", "attn.hook_z", "attn.hook_q", "attn.hook_pattern", "mlp.hook_post", "hook_mlp_out")
FIRST_HOOK_LENGTHS = (119, 106, 93, 80)
DEPTHS = (12, 48)
FORWARD, GRADIENT = "forward", "loss and its gradient, jitted"
PEERS = {FORWARD: "PyTorch, Hugging Face eager: forward", GRADIENT: "PyTorch, Hugging Face eager: loss and gradient"}
FIRST_HOOK_TARGET, DEPTH_TARGET = 1.5, 1.3  # seconds; ratio


@dataclasses.dataclass(frozen=True)
class Case:
    """A timed function of the number of the call, and its target: the maximum time relative to a warm forward."""

    run: Callable[[int], Any]
    target: float | None = None


def steer(value, hook, direction, strength):
    """A hook function that adds a direction."""
    return value + strength * direction


def warm_up_hook(shape: tuple[int, ...]) -> None:
    """Compiles the operation of the fresh lambdas for this shape, so that it is not counted as code of the model."""
    with jax.default_matmul_precision("highest"):  # the setting of a float32 forward, which is part of the compile key
        jax.block_until_ready(jnp.zeros(shape) * 1.5)


def hook_cases(model: HookedTransformer, tokens: np.ndarray) -> dict[str, Case]:
    """Cases that write activations: a new function in every call, and a data hook with new data in every call."""
    n_layers, rng = model.cfg.n_layers, np.random.default_rng(0)

    def fresh(site: str, call: int):
        layer = (7 * call + 3) % n_layers
        scale = lambda value, hook: value * 1.5  # noqa: E731  (a new function object in every call)
        return model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.{site}", scale)])

    def data(name: str):
        direction = jnp.asarray(rng.normal(size=model.cfg.d_model), jnp.float32)
        data_hook = hook(steer, direction=direction, strength=float(rng.normal()))
        return model.run_with_hooks(tokens, fwd_hooks=[(name, data_hook)])

    names = [f"blocks.0.{site}" for site in SITES]
    for shape in jax.eval_shape(lambda model: model.run_with_cache(tokens, names_filter=names)[1], model).values():
        warm_up_hook(shape.shape)
    cases = {f"fresh lambda on {site}": Case(lambda i, site=site: fresh(site, i), 1.5) for site in SITES}
    one_layer = Case(lambda i: data(f"blocks.{(7 * i + 3) % n_layers}.hook_resid_post"))
    return cases | {
        "hook(fn, **new data), another layer": one_layer,
        "hook(fn, **new data), every layer": Case(lambda i: data("blocks.*.hook_resid_post")),
    }


def other_cases(model: HookedTransformer, tokens: np.ndarray) -> dict[str, Case]:
    """Cases that read activations or transform the model, and the same model in PyTorch."""
    jitted = jax.jit(lambda model, tokens: model(tokens))
    gradient = jax.jit(jax.value_and_grad(lambda model, tokens: model(tokens, return_type="loss")))
    residuals = lambda name: name.endswith(("hook_resid_pre", "hook_resid_mid", "hook_resid_post"))  # noqa: E731
    resid_post = lambda name: name.endswith("hook_resid_post")  # noqa: E731
    peer = torch_peer.build(model.cfg, tokens)
    cases = {
        "run_with_cache, everything": Case(lambda i: model.run_with_cache(tokens), 1.4),
        "run_with_cache, resid_post": Case(lambda i: model.run_with_cache(tokens, names_filter=resid_post), 1.1),
        "run_with_cache, resid_pre, mid and post": Case(
            lambda i: model.run_with_cache(tokens, names_filter=residuals), 1.1
        ),
        "forward in the user's own jit": Case(lambda i: jitted(model, tokens)),
        GRADIENT: Case(lambda i: gradient(model, tokens)),
    }
    if peer:
        cases |= {PEERS[FORWARD]: Case(peer["forward"]), PEERS[GRADIENT]: Case(peer["gradient"])}
    return cases


def time_large_cache(model: HookedTransformer, rounds: int) -> float:
    """The time of a cache of everything for several long prompts, relative to their forward pass."""
    tokens = np.random.default_rng(0).integers(0, model.cfg.d_vocab, LARGE_CACHE)
    cases = {"forward": lambda i: model(tokens), "cache": lambda i: model.run_with_cache(tokens)[1]}
    ratio = interleaved(cases, rounds)["cache"].ratio
    of = " × ".join(map(str, LARGE_CACHE))
    print(f"\nEverything cached, {of} tokens: {ratio:.2f} × a forward pass; {verdict(ratio, LARGE_CACHE_TARGET)}")
    return ratio


def time_first_hooks(model: HookedTransformer, tokens: np.ndarray) -> list[dict[str, Any]]:
    """The extra time of the first hook at a new sequence length, after a forward at that length."""

    def first_hook(prompt: np.ndarray):
        warm_up_hook((1, prompt.shape[1], model.cfg.d_model))
        model(prompt)
        warm = median([clocks(lambda: model(prompt)) for _ in range(3)])
        hooks = [("blocks.1.hook_resid_post", lambda value, hook: value * 1.5)]
        with compilations() as compiled:
            extra = clocks(lambda: model.run_with_hooks(prompt, fwd_hooks=hooks)) - warm
        return {
            "length": prompt.shape[1],
            "seconds_above_a_warm_forward": extra.wall,
            "processor_seconds_above_a_warm_forward": extra.processor,
            "compiled": dataclasses.asdict(compiled),
        }

    return [first_hook(tokens[:, :length]) for length in FIRST_HOOK_LENGTHS]


def row(name: str, timing: Timing, target: float | None) -> list[str]:
    """A row of the main table."""
    return [
        name, f"{timing.first:.2f} s", str(len(timing.compiled_first)), f"{timing.warm * 1e3:.0f} ms",
        f"{timing.ratio:.2f}", str(len(timing.compiled_warm)), verdict(timing.ratio, target),
    ]  # fmt: skip


def report_cases(timings: dict[str, Timing], cases: dict[str, Case], rounds: int) -> dict[str, Any]:
    """Prints the main table and returns its numbers."""
    header = ["", "first call", "compiled", "warm", "× forward", "compiled", "target"]
    print_table(
        f"1×{LENGTH} tokens; medians of {rounds} rounds, each call next to a forward",
        header, [row(name, timing, cases[name].target) for name, timing in timings.items()],
    )  # fmt: skip
    for name, timing in timings.items():
        if timing.compiled_warm.programs:
            print(f"  compiled in warm calls of {name}: {', '.join(timing.compiled_warm.programs)}")
    for case, peer in PEERS.items():
        if peer in timings:
            print(f"  {case}: {timings[case].ratio / timings[peer].ratio:.2f} × PyTorch's time")
    return {
        name: {**dataclasses.asdict(timing), "target_ratio": cases[name].target} for name, timing in timings.items()
    }


def report_first_hooks(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Prints the extra time of the first hook at each new length, and returns it with its median."""
    wall, processor = "seconds_above_a_warm_forward", "processor_seconds_above_a_warm_forward"
    medians = {clock: statistics.median(entry[clock] for entry in entries) for clock in (wall, processor)}
    rows = [
        [str(e["length"]), f"{e[wall]:.2f} s", f"{e[processor]:.2f} s", str(len(e["compiled"]["programs"])), ""]
        for e in entries
    ]
    cells = [f"{seconds:.2f} s" for seconds in medians.values()]
    rows.append(["median", *cells, "", verdict(medians[wall], FIRST_HOOK_TARGET)])
    header = ["length", "above a warm forward", "processor time", "compiled", "target"]
    print_table("The first Python hook at a new sequence length", header, rows)
    return {"lengths": entries, "median": medians, "target_seconds": FIRST_HOOK_TARGET}


def report_depth(seconds: dict[str, dict[int, float]]) -> dict[str, Any]:
    """Prints compile times at two depths, and returns them with their ratios."""
    few, many = DEPTHS
    ratios = {program: by_depth[many] / by_depth[few] for program, by_depth in seconds.items()}
    rows = [
        [program, f"{by_depth[few]:.2f} s", f"{by_depth[many]:.2f} s", f"{ratios[program]:.2f}",
         verdict(ratios[program], DEPTH_TARGET)] for program, by_depth in seconds.items()
    ]  # fmt: skip
    header = ["", f"{few} layers", f"{many} layers", "ratio", "target"]
    print_table("Compile time in new processes without a cache; the minimum of several", header, rows)
    return {"seconds": seconds, "ratios": ratios, "target_ratio": DEPTH_TARGET}


def main() -> None:
    """Runs the benchmark, prints the results, and saves them unless `--quick`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small model and few rounds; nothing is saved")
    parser.add_argument("--rounds", type=int, help="how often each case runs (default: 7, quick 3)")
    options = parser.parse_args()
    rounds = options.rounds or (3 if options.quick else 7)
    jax.config.update("jax_enable_compilation_cache", False)

    machine = environment()
    print_environment(machine)
    if machine["load_average_at_start"] > machine["cores"] / 2:
        print("  the machine is busy, which makes the comparison with PyTorch unreliable")
    compile_seconds = depth.measure(DEPTHS, 1 if options.quick else 3, options.quick)
    model, weights = smollm2.load(options.quick)
    print(f"{model!r}\n  weights: {weights}")
    if options.quick:
        print("  the targets are for the full model; the times of a small model are mostly overhead")
    tokens = np.random.default_rng(0).integers(0, model.cfg.d_vocab, (1, LENGTH))

    cases = {FORWARD: Case(lambda call: model(tokens))} | hook_cases(model, tokens) | other_cases(model, tokens)
    timings = interleaved({name: case.run for name, case in cases.items()}, rounds)
    results = {
        "model": weights,
        "tokens": list(tokens.shape),
        "rounds": rounds,
        "cases": report_cases(timings, cases, rounds),
        "large_cache_ratio": time_large_cache(model, rounds),
        "first_hook_at_a_new_length": report_first_hooks(time_first_hooks(model, tokens)),
        "compile_time_by_depth": report_depth(compile_seconds),
    }
    if not options.quick:
        write("hooks", machine, results)


if __name__ == "__main__":
    main()
