"""Greedy generation with SmolLM2-135M: time relative to Hugging Face's, to reading the weights, and with hooks.

    python -m benchmarks.generation            SmolLM2-135M, float32; writes results/generation-<device>.json
    python -m benchmarks.generation --quick    a small model and few tokens; writes nothing

Both sides generate the same number of tokens, and no token ends a row early. Hugging Face runs `generate` with sdpa.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks import smollm2, torch_peer
from benchmarks.report import print_table, verdict, write
from benchmarks.timing import Timing, compilations, interleaved, peak_flops, read_weights, seconds
from jaxlens import HookedTransformer, hook

N_NEW, SHORT, LONG = 32, 16, 1024
ROUNDS = {(1, SHORT, N_NEW): 15, (8, SHORT, N_NEW): 7, (32, SHORT, N_NEW): 5, (1, LONG, N_NEW): 5, (1, LONG, 1): 7}
"""The batch, the tokens of the prompt and the new tokens of each comparison, and its rounds."""
QUICK = {(1, SHORT, 8): 2, (2, SHORT, 8): 2, (1, 64, 1): 2}
LEAST_SPEEDUP = {1: 1.6, 8: 1.4, 32: 1.4}  # by batch
MOST_PREFILL, MOST_STEP = 1.1, 1.15
MOST_HOOKED = {"a data hook on one layer": 1.05, "a Python hook on one layer": 1.5, "return_cache, one site": 1.1}
NAMES = ("John", "Mary", "Tom", "James", "Anna")
TEMPLATES = (
    "When {0} and {1} went to the shops, {0} gave the bag to",
    "{0} wrote a letter to {1} about",
    "The capital of the country in which {0} lives is",
    "def greet_{1}(name):\n",
)
PROMPTS = [template.format(a, b) for template in TEMPLATES for a, b in zip(NAMES, NAMES[1:] + NAMES[:1], strict=True)]


def tokens_of(model: HookedTransformer, batch: int, length: int) -> np.ndarray:
    """Random tokens."""
    return np.random.default_rng(0).integers(0, model.cfg.d_vocab, (batch, length))


def padded(model: HookedTransformer, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of prompts, padded on the left, and their mask."""
    tokens = np.asarray(model.to_tokens(prompts, padding_side="left"))
    return tokens, np.asarray(model.tokenizer.attention_mask(tokens, padding_side="left"))


def generate(model: HookedTransformer, tokens: np.ndarray, n_new: int, **options: Any) -> Any:
    """Greedy generation without an end token."""
    fixed = {"do_sample": False, "stop_at_eos": False, "verbose": False}
    return model.generate(tokens, n_new, **fixed, **options)


# --- relative to Hugging Face


def measure_speedups(model: HookedTransformer, peer: Any, rounds: dict) -> dict[str, dict[str, Any]]:
    """The time of each comparison on both sides. `speedup` is the median ratio of adjacent calls."""
    results = {}
    for (batch, length, n_new), n in rounds.items():
        tokens = tokens_of(model, batch, length)
        cases = {
            "jaxlens": lambda call, tokens=tokens, n_new=n_new: generate(model, tokens, n_new),
            "theirs": lambda call, tokens=tokens, n_new=n_new: torch_peer.generate(peer, tokens, n_new),
        }
        timings = interleaved(cases, n)
        results[f"{batch} × ({length} + {n_new})"] = {
            "seconds": timings["jaxlens"].warm, "seconds_of_hugging_face": timings["theirs"].warm,
            "first_seconds": timings["jaxlens"].first, "speedup": timings["theirs"].ratio,
            "target_speedup": round(1 / MOST_PREFILL, 2) if n_new == 1 else LEAST_SPEEDUP.get(batch),
        }  # fmt: skip
    return results | after_the_prompt(results)


def after_the_prompt(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The tokens after a long prompt: the difference between many tokens and the first one, on both sides.

    The prompt is compared in a row of its own, so the row of both together has no target.
    """
    many, one = f"1 × ({LONG} + {N_NEW})", f"1 × ({LONG} + 1)"
    if many not in results or one not in results:
        return {}
    times = {side: results[many][side] - results[one][side] for side in ("seconds", "seconds_of_hugging_face")}
    results[many]["target_speedup"] = None
    speedup = times["seconds_of_hugging_face"] / times["seconds"]
    row = {**times, "first_seconds": None, "speedup": speedup, "target_speedup": LEAST_SPEEDUP[1]}
    return {f"1 × ({LONG} +) {N_NEW - 1}": row}


def report_speedups(results: dict[str, dict[str, Any]]) -> None:
    """Prints the comparison with Hugging Face."""
    rows = [
        [name, milliseconds(r["seconds"]), milliseconds(r["seconds_of_hugging_face"]), f"{r['speedup']:.2f} ×",
         "" if r["first_seconds"] is None else f"{r['first_seconds']:.1f} s",
         verdict(r["speedup"], r["target_speedup"], at_least=True)]
        for name, r in results.items()
    ]  # fmt: skip
    header = ["batch × (prompt + new tokens)", "jaxlens", "Hugging Face", "speedup", "first call", "target"]
    print_table("Greedy generation; + 1 is the prompt alone", header, rows)


# --- relative to reading the weights


def measure_steps(model: HookedTransformer, batches: list[int], n_new: int, rounds: int) -> dict[int, dict[str, Any]]:
    """The time of a step for each batch. `ratio` is relative to reading all weights, the median over rounds.

    A step is the difference between a generation of many tokens and one of a single token, over their number.
    `arithmetic_seconds` is the time of its matrix products at the speed of the fastest one on the machine. Only a step
    of one row, which takes longer to read the weights than to multiply them, has a target.
    """
    weights, results, flops = list(model.params.values()), {}, peak_flops()
    of_blocks = sum(w.size for name, w in model.params.items() if name.startswith("blocks.") and ".W_" in name)
    n_multiplied = of_blocks + model.cfg.d_model * model.cfg.d_vocab
    n = n_new - 1
    for batch in batches:
        tokens = tokens_of(model, batch, SHORT)
        runs = {
            "many": functools.partial(generate, model, tokens, n_new),
            "one": functools.partial(generate, model, tokens, 1),
            "reading": lambda: read_weights(weights),
        }
        for run in runs.values():
            run()  # compiles
        many, one, reading = zip(*([seconds(run) for run in runs.values()] for _ in range(rounds)), strict=True)
        steps = [(longer - shorter) / n for longer, shorter in zip(many, one, strict=True)]
        results[batch] = {
            "step_seconds": statistics.median(steps), "reading_seconds": statistics.median(reading),
            "fastest_step": (min(many) - min(one)) / n, "fastest_reading": min(reading),
            "ratio": statistics.median([step / read for step, read in zip(steps, reading, strict=True)]),
            "arithmetic_seconds": 2 * batch * n_multiplied / flops, "target": MOST_STEP if batch == 1 else None,
        }  # fmt: skip
    return results


def report_steps(model: HookedTransformer, results: dict[int, dict[str, Any]]) -> None:
    """Prints the time of a step relative to reading the weights."""
    size = sum(w.nbytes for w in model.params.values())
    rows = [
        [str(batch), milliseconds(r["step_seconds"]), milliseconds(r["reading_seconds"]),
         f"{size / r['reading_seconds'] / 1e9:.1f} GB/s", milliseconds(r["arithmetic_seconds"]),
         f"{r['fastest_step'] / r['fastest_reading']:.2f} ×", f"{r['ratio']:.2f} ×",
         verdict(r["ratio"], r["target"])] for batch, r in results.items()
    ]  # fmt: skip
    header = ["batch", "a step", "reading", "", "arithmetic", "of the fastest", "ratio", "target"]
    print_table(f"A step, relative to reading the {size / 1e6:.0f} MB of weights once", header, rows)


# --- with hooks


def steer(value, hook, direction):
    """A hook function that adds a direction."""
    return value + direction


def measure_hooks(model: HookedTransformer, n_new: int, rounds: int) -> dict[str, Timing]:
    """Generation with hooks and with a cache, relative to plain generation."""
    tokens, name = tokens_of(model, 1, SHORT), f"blocks.{model.cfg.n_layers // 2}.hook_resid_post"
    direction = jnp.zeros(model.cfg.d_model).at[0].set(1.0)

    def with_hook(function: Callable) -> Any:
        return generate(model, tokens, n_new, fwd_hooks=[(name, function)])

    site = {"return_cache": True, "names_filter": "blocks.*.hook_resid_post"}
    runs = (
        lambda call: with_hook(hook(steer, direction=direction * call)),
        lambda call: with_hook(lambda value, hook: value + direction),
        lambda call: generate(model, tokens, n_new, **site)[1]["blocks.0.hook_resid_post"],
    )
    cases = {"no hook": lambda call: generate(model, tokens, n_new), **dict(zip(MOST_HOOKED, runs, strict=True))}
    return interleaved(cases, rounds)


def report_hooks(timings: dict[str, Timing]) -> None:
    """Prints the time with hooks relative to that without."""
    rows = [
        [name, milliseconds(t.warm), f"{t.ratio:.3f} ×", str(len(t.compiled_warm)), f"{t.first:.1f} s",
         verdict(t.ratio, MOST_HOOKED.get(name))] for name, t in timings.items()
    ]  # fmt: skip
    print_table(f"1 × ({SHORT} + new tokens)", ["", "warm", "ratio", "compiled", "first call", "target"], rows)


def compiled_by_a_new_length(model: HookedTransformer) -> list[str]:
    """The programs that a prompt of a new length compiles, after one that runs in programs of the same length."""
    generate(model, tokens_of(model, 1, 20), 8)
    with compilations() as compiled:
        generate(model, tokens_of(model, 1, 18), 8)
    return compiled.programs


# --- the tokens themselves


def equal_tokens(model: HookedTransformer, peer: Any, n_new: int) -> dict[str, Any]:
    """The number of prompts after which both sides choose the same tokens, one by one and in batches of 8."""
    equal, differing = {}, []
    for batch in (1, 8):
        equal[batch] = 0
        for first in range(0, len(PROMPTS), batch):
            given = PROMPTS[first : first + batch]
            tokens, mask = padded(model, given)
            ours = np.asarray(generate(model, tokens, n_new, attention_mask=mask))[:, tokens.shape[1] :]
            same = (ours == torch_peer.generate(peer, tokens, n_new, mask)).all(axis=-1)
            equal[batch] += int(same.sum())
            differing += [f"batch {batch}: {given[row]!r}" for row in np.flatnonzero(~same)]
    return {"prompts": len(PROMPTS), "equal_by_batch": equal, "differing": differing}


def milliseconds(time: float) -> str:
    return f"{1e3 * time:.1f} ms"


def main() -> None:
    """Runs the benchmark, prints the results, and saves them unless `--quick`."""
    quick, machine, model, weights = smollm2.begin(__doc__, "a small model and few tokens; nothing is saved")
    is_pretrained = weights == smollm2.PRETRAINED
    peer = torch_peer.pretrained("sdpa") if is_pretrained else torch_peer.llama(model.cfg, "sdpa")
    n_new, results = 8 if quick else N_NEW, {}
    if peer is not None:
        results["hugging_face"] = measure_speedups(model, peer, QUICK if quick else ROUNDS)
        report_speedups(results["hugging_face"])
    results["steps"] = measure_steps(model, [1, 2] if quick else [1, 8, 32], n_new, 2 if quick else 7)
    report_steps(model, results["steps"])
    timings = measure_hooks(model, n_new, 2 if quick else 9)
    report_hooks(timings)
    results["hooks"] = {name: dataclasses.asdict(timing) for name, timing in timings.items()}
    results["compiled_by_a_new_length"] = compiled_by_a_new_length(model)
    print(f"\nPrograms that a prompt of a new length compiles: {results['compiled_by_a_new_length'] or 'none'}")
    if is_pretrained:
        results["tokens"] = equal_tokens(model, peer, N_NEW)
        print(f"Prompts with the tokens of Hugging Face: {results['tokens']}")
    if not quick:
        write("generation", {**machine, "weights": weights}, results)


if __name__ == "__main__":
    main()
