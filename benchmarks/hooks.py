"""What reading and writing activations costs, against a warm forward of the same model in the same run.

    python -m benchmarks.hooks            SmolLM2-135M (30 layers) at 1×128 tokens; writes results/hooks-<device>.json
    python -m benchmarks.hooks --quick    a small model and few rounds; writes nothing

A row's first call is shown apart from its warm ones, and so is what each of them compiled. In the rows of fresh
functions every call, the first one too, brings a new function object to another layer; the functions' own operations
have run once before, so whatever is compiled there is code of the model.
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
SITES = ("hook_resid_post", "attn.hook_z", "attn.hook_q", "attn.hook_pattern", "mlp.hook_post", "hook_mlp_out")
FIRST_HOOK_LENGTHS = (119, 106, 93, 80)
DEPTHS = (12, 48)
FORWARD, GRADIENT = "forward", "loss and its gradient, jitted"
PEERS = {FORWARD: "PyTorch, Hugging Face eager: forward", GRADIENT: "PyTorch, Hugging Face eager: loss and gradient"}
FIRST_HOOK_TARGET, DEPTH_TARGET = 1.5, 1.3  # seconds; ratio


@dataclasses.dataclass(frozen=True)
class Case:
    """One row: what is run, given the number of the call, and the ratio to a warm forward that it must not exceed."""

    run: Callable[[int], Any]
    target: float | None = None


def steer(value, hook, direction, strength):
    """An edit whose numbers are data."""
    return value + strength * direction


def warm_up_edit(shape: tuple[int, ...]) -> None:
    """Compiles what the fresh functions do to a value of this shape, so that it is not counted as code of the model."""
    with jax.default_matmul_precision("highest"):  # as in a float32 model's forward; programs are compiled per setting
        jax.block_until_ready(jnp.zeros(shape) * 1.5)


def hook_cases(model: HookedTransformer, tokens: np.ndarray) -> dict[str, Case]:
    """Edits: a plain function made anew for every call, and a data hook with new data in every call."""
    n_layers, seeds = model.cfg.n_layers, np.random.default_rng(0)

    def fresh(site: str, call: int):
        layer = (7 * call + 3) % n_layers
        edit = lambda value, hook: value * 1.5  # noqa: E731  (a new function object: the point of the row)
        return model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.{site}", edit)])

    def data(name: str):
        direction = jnp.asarray(seeds.normal(size=model.cfg.d_model), jnp.float32)
        edit = hook(steer, direction=direction, strength=float(seeds.normal()))
        return model.run_with_hooks(tokens, fwd_hooks=[(name, edit)])

    names = [f"blocks.0.{site}" for site in SITES]
    for shape in jax.eval_shape(lambda model: model.run_with_cache(tokens, names_filter=names)[1], model).values():
        warm_up_edit(shape.shape)
    cases = {f"fresh lambda on {site}": Case(lambda i, site=site: fresh(site, i), 1.5) for site in SITES}
    one_layer = Case(lambda i: data(f"blocks.{(7 * i + 3) % n_layers}.hook_resid_post"))
    return cases | {
        "hook(fn, **new data), another layer": one_layer,
        "hook(fn, **new data), every layer": Case(lambda i: data("blocks.*.hook_resid_post")),
    }


def other_cases(model: HookedTransformer, tokens: np.ndarray) -> dict[str, Case]:
    """Reading activations, transforming the model, and the peer."""
    jitted = jax.jit(lambda model, tokens: model(tokens))
    gradient = jax.jit(jax.value_and_grad(lambda model, tokens: model(tokens, return_type="loss")))
    residuals = lambda name: name.endswith(("hook_resid_pre", "hook_resid_mid", "hook_resid_post"))  # noqa: E731
    ends = lambda name: name.endswith("hook_resid_post")  # noqa: E731
    peer = torch_peer.build(model.cfg, tokens)
    cases = {
        "run_with_cache, everything": Case(lambda i: model.run_with_cache(tokens), 1.4),
        "run_with_cache, resid_post": Case(lambda i: model.run_with_cache(tokens, names_filter=ends), 1.1),
        "run_with_cache, resid_pre, mid and post": Case(
            lambda i: model.run_with_cache(tokens, names_filter=residuals), 1.1
        ),
        "forward in the user's own jit": Case(lambda i: jitted(model, tokens)),
        GRADIENT: Case(lambda i: gradient(model, tokens)),
    }
    if peer:
        cases |= {PEERS[FORWARD]: Case(peer["forward"]), PEERS[GRADIENT]: Case(peer["gradient"])}
    return cases


def time_first_hooks(model: HookedTransformer, tokens: np.ndarray) -> list[dict[str, Any]]:
    """For sequence lengths not run before: the first hook on a forward that is already warm there."""

    def first_hook(some: np.ndarray):
        warm_up_edit((1, some.shape[1], model.cfg.d_model))
        model(some)
        warm = median([clocks(lambda: model(some)) for _ in range(3)])
        edits = [("blocks.1.hook_resid_post", lambda value, hook: value * 1.5)]
        with compilations() as compiled:
            above = clocks(lambda: model.run_with_hooks(some, fwd_hooks=edits)) - warm
        return {
            "length": some.shape[1],
            "seconds_above_a_warm_forward": above.wall,
            "processor_seconds_above_a_warm_forward": above.processor,
            "compiled": dataclasses.asdict(compiled),
        }

    return [first_hook(tokens[:, :length]) for length in FIRST_HOOK_LENGTHS]


def row(name: str, timing: Timing, target: float | None) -> list[str]:
    """A line of the main table."""
    return [
        name, f"{timing.first:.2f} s", str(len(timing.compiled_first)), f"{timing.warm * 1e3:.0f} ms",
        f"{timing.ratio:.2f}", str(len(timing.compiled_warm)), verdict(timing.ratio, target),
    ]  # fmt: skip


def report_cases(timings: dict[str, Timing], cases: dict[str, Case], rounds: int) -> dict[str, Any]:
    """Prints the main table and gives its numbers."""
    header = ["", "first call", "compiled", "warm", "× forward", "compiled", "target"]
    print_table(
        f"1×{LENGTH} tokens; medians of {rounds} rounds, each call beside a forward of its own",
        header, [row(name, timing, cases[name].target) for name, timing in timings.items()],
    )  # fmt: skip
    for name, timing in timings.items():
        if timing.compiled_warm.programs:
            print(f"  compiled in warm calls of {name}: {', '.join(timing.compiled_warm.programs)}")
    for ours, theirs in PEERS.items():
        if theirs in timings:
            print(f"  {ours}: {timings[ours].ratio / timings[theirs].ratio:.2f} × PyTorch's time")
    return {
        name: {**dataclasses.asdict(timing), "target_ratio": cases[name].target} for name, timing in timings.items()
    }


def report_first_hooks(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Prints what the first hook at a new length costs."""
    wall, processor = "seconds_above_a_warm_forward", "processor_seconds_above_a_warm_forward"
    above = {clock: statistics.median(entry[clock] for entry in found) for clock in (wall, processor)}
    rows = [
        [str(e["length"]), f"{e[wall]:.2f} s", f"{e[processor]:.2f} s", str(len(e["compiled"]["programs"])), ""]
        for e in found
    ]
    medians = [f"{above[clock]:.2f} s" for clock in (wall, processor)]
    rows.append(["median", *medians, "", verdict(above[wall], FIRST_HOOK_TARGET)])
    header = ["length", "above a warm forward", "on processors", "compiled", "target"]
    print_table("The first Python hook at a new sequence length", header, rows)
    return {"lengths": found, "median": above, "target_seconds": FIRST_HOOK_TARGET}


def report_depth(found: dict[str, dict[int, float]]) -> dict[str, Any]:
    """Prints how compile time grows with depth."""
    few, many = DEPTHS
    ratios = {program: by_depth[many] / by_depth[few] for program, by_depth in found.items()}
    rows = [
        [program, f"{by_depth[few]:.2f} s", f"{by_depth[many]:.2f} s", f"{ratios[program]:.2f}",
         verdict(ratios[program], DEPTH_TARGET)] for program, by_depth in found.items()
    ]  # fmt: skip
    header = ["", f"{few} layers", f"{many} layers", "ratio", "target"]
    print_table("Compile time in fresh processes, nothing reused; the least of several", header, rows)
    return {"seconds": found, "ratios": ratios, "target_ratio": DEPTH_TARGET}


def main() -> None:
    """Runs everything, prints it and, for the real model, saves it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small model and few rounds; nothing is saved")
    parser.add_argument("--rounds", type=int, help="how often each case runs (default: 7, quick 3)")
    options = parser.parse_args()
    rounds = options.rounds or (3 if options.quick else 7)
    jax.config.update("jax_enable_compilation_cache", False)

    where = environment()
    print_environment(where)
    if where["load_average_at_start"] > where["cores"] / 2:
        print("  the machine is busy: what is compared with PyTorch swings widely then, for its threads wait otherwise")
    compile_seconds = depth.measure(DEPTHS, 1 if options.quick else 3, options.quick)
    model, weights = smollm2.load(options.quick)
    print(f"{model!r}\n  weights: {weights}")
    if options.quick:
        print("  the targets are for the full model; a small one shows little but overhead")
    tokens = np.random.default_rng(0).integers(0, model.cfg.d_vocab, (1, LENGTH))

    cases = {FORWARD: Case(lambda call: model(tokens))} | hook_cases(model, tokens) | other_cases(model, tokens)
    timings = interleaved({name: case.run for name, case in cases.items()}, rounds)
    results = {
        "model": weights,
        "tokens": list(tokens.shape),
        "rounds": rounds,
        "cases": report_cases(timings, cases, rounds),
        "first_hook_at_a_new_length": report_first_hooks(time_first_hooks(model, tokens)),
        "compile_time_by_depth": report_depth(compile_seconds),
    }
    if not options.quick:
        write("hooks", where, results)


if __name__ == "__main__":
    main()
