"""Mixtures of experts: a forward and a gradient with 64 experts, relative to 4 experts; each token uses 4.

    python -m benchmarks.moe            8 layers of 576 dimensions; writes results/moe-<device>.json
    python -m benchmarks.moe --quick    2 small layers; writes nothing

Both models do the same arithmetic, but the second reads up to 16 times as many weights. In one row of a shape, a hook
needs the neurons of all experts. Another row runs in a `jax.jit` of the user. The last row only reads the experts that
the tokens choose: the weights of as many experts, each multiplied once with a vector.
"""

import argparse
import functools
from typing import Any

import jax
import numpy as np

from benchmarks.report import environment, print_environment, print_table, write
from benchmarks.timing import Timing, interleaved, read_weights
from jaxlens import Config, HookedTransformer
from jaxlens.config import Rotary

SHAPES = {(1, 1): 20, (1, 16): 10, (1, 256): 8, (4, 256): 4}
QUICK = {(1, 1): 2, (1, 32): 2}


def mixture(num_experts: int, quick: bool) -> HookedTransformer:
    """A model whose MLPs are mixtures of experts, with random weights."""
    sizes: dict[str, Any] = {"n_layers": 8, "d_model": 576, "n_heads": 9, "n_key_value_heads": 3, "d_head": 64,
                             "d_vocab": 8192, "n_ctx": 2048, "d_expert": 384}  # fmt: skip
    if quick:
        sizes |= {"n_layers": 2, "d_model": 96, "n_heads": 3, "n_key_value_heads": 1, "d_head": 32, "d_expert": 64}
    return HookedTransformer(
        Config(
            **sizes, num_experts=num_experts, experts_per_token=4, act_fn="silu", gated_mlp=True, biases=(),
            normalization_type="RMS", positional_embedding_type="rotary", rotary=Rotary(),
        )
    )  # fmt: skip


def measure(models: dict[int, HookedTransformer], shape: tuple[int, int], rounds: int) -> dict[str, dict[str, Timing]]:
    """A forward and a gradient of the loss at one shape of tokens."""
    tokens = np.random.default_rng(0).integers(0, 8192, shape)

    def neurons(model: HookedTransformer) -> jax.Array:
        return model.run_with_cache(tokens, names_filter="blocks.0.mlp.hook_post")[0]

    forwards = {f"{n} experts": lambda call, model=model: model(tokens) for n, model in models.items()}
    many = models[max(models)]
    forwards[f"{max(models)} experts, all neurons of layer 0"] = lambda call: neurons(many)
    forwards[f"{max(models)} experts, in jax.jit"] = functools.partial(_call, _in_jit, many, tokens)
    n_read, read = chosen_experts(many, tokens)
    forwards[f"reading the {n_read} experts that a layer chooses, on average"] = lambda call: read_weights(read)
    results = {"forward": interleaved(forwards, rounds)}
    if shape[1] > 1:
        gradient = jax.jit(jax.grad(lambda model, tokens: model(tokens, return_type="loss")))
        cases = {f"{n} experts": functools.partial(_call, gradient, model, tokens) for n, model in models.items()}
        results["gradient of the loss"] = interleaved(cases, max(2, rounds // 2))
    return results


def chosen_experts(model: HookedTransformer, tokens: np.ndarray) -> tuple[int, list[jax.Array]]:
    """How many experts of a layer run on the tokens, the mean over layers, and the weights of as many experts."""
    cache = model.run_with_cache(tokens, names_filter="blocks.*.mlp.hook_expert_weights")[1]
    chosen = [np.argsort(np.asarray(value))[..., -model.cfg.experts_per_token :] for value in cache.values()]
    n = round(np.mean([len(np.unique(of_layer)) for of_layer in chosen]))
    return n, [model.params[f"blocks.*.mlp.{name}"][:, :n] for name in ("W_in", "W_gate", "W_out")]


@jax.jit
def _in_jit(model: HookedTransformer, tokens: np.ndarray) -> jax.Array:
    return model(tokens)


def _call(program: Any, model: HookedTransformer, tokens: np.ndarray, call: int) -> Any:
    return program(model, tokens)


def main() -> None:
    """Runs the benchmark, prints the results, and saves them unless `--quick`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="2 small layers; nothing is saved")
    quick = parser.parse_args().quick
    jax.config.update("jax_enable_compilation_cache", False)
    machine = environment()
    print_environment(machine)
    models = {n: mixture(n, quick) for n in (4, 64)}
    saved: dict[str, Any] = {}
    for shape, rounds in (QUICK if quick else SHAPES).items():
        for what, timings in measure(models, shape, rounds).items():
            title = f"{shape[0]} × {shape[1]} tokens: {what}"
            rows = [[name, f"{1e3 * t.warm:.1f} ms", f"{t.ratio:.2f} ×"] for name, t in timings.items()]
            print_table(title, ["", "warm", "relative to 4 experts"], rows)
            saved[title] = {name: {"seconds": t.warm, "ratio": t.ratio} for name, t in timings.items()}
    if not quick:
        write("moe", machine, saved)


if __name__ == "__main__":
    main()
