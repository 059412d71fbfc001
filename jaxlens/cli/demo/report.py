"""Runs the experiment of `jaxlens demo` and prints its results.

Axes: b prompt, p position, n head, l layer, v vocabulary.
"""

from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxlens import plot
from jaxlens.analysis.attribution.compare import Agreement, correlation
from jaxlens.analysis.attribution.nodes import attribution_patch
from jaxlens.analysis.heads import repeated_random_tokens
from jaxlens.analysis.interventions.activation_patching import activation_patch
from jaxlens.analysis.labelled_array import Labelled
from jaxlens.cli.demo import experiment
from jaxlens.cli.demo.clock import measured, step
from jaxlens.cli.demo.experiment import Findings, Prompts
from jaxlens.cli.demo.pictures import heads_map, residual_map, save_pictures, shaded, sparkline
from jaxlens.model.cache.activation_cache import ActivationCache
from jaxlens.model.transformer import HookedTransformer
from jaxlens.plot.heatmaps import Heatmap

TOP = 5
"""The number of rows of every list."""

N_ABLATED = 3
"""The number of heads that are ablated."""


def demo(model_name: str, out: Path, numbers: bool = False, adapter: str | None = None) -> Findings:
    """Loads a model, runs the experiment, prints the results, and saves pictures in `out`. `numbers` adds tables."""
    out.mkdir(parents=True, exist_ok=True)
    with measured() as total:
        with step(f"Loading {model_name}"):
            model = HookedTransformer.from_pretrained_no_processing(model_name, adapter=adapter)
        print(f"  {repr(model).splitlines()[0]}")
        findings = investigate(model, experiment.indirect_object_prompts(model), numbers)
        with step("\nDrawing"):
            messages = save_pictures(findings, out)
    print(messages)
    print(f"The demo took {total.seconds:.0f} s.")
    return findings


def investigate(model: HookedTransformer, prompts: Prompts, numbers: bool = False) -> Findings:
    """Runs all steps of the experiment on a model, and prints their results."""
    with step(f"Running {prompts.tokens.shape[0]} prompts of {prompts.tokens.shape[1]} tokens"):
        options = {"names_filter": experiment.is_read, "pos_slice": experiment.LAST}
        logits, cache = model.run_with_cache(prompts.tokens, **options)
        clean = np.asarray(experiment.logit_difference(logits, prompts.answers))
    print_next_tokens(model, prompts, logits)
    print_differences(prompts, clean)
    lens = find_layer(cache, prompts, numbers)
    attribution = find_heads(cache, prompts, numbers)
    heads = experiment.strongest_heads(attribution)
    ablated = ablate_heads(model, prompts, heads[:N_ABLATED], clean.mean())
    scores = find_kinds(model, numbers)
    residual, patched_heads, agreement = patch(model, prompts, numbers)
    return Findings(
        model.name or "untrained", prompts.names, clean, lens, attribution, heads[0], ablated, scores, residual,
        patched_heads, agreement,
    )  # fmt: skip


def print_next_tokens(model: HookedTransformer, prompts: Prompts, logits: Float[Array, "b p v"]) -> None:
    """Prints the likeliest next tokens of the first prompt."""
    print(f'\nWhat comes after "{prompts.texts[0]}"?')
    probabilities, tokens = jax.lax.top_k(jax.nn.softmax(logits[0, -1]), TOP)
    for probability, token in zip(probabilities.tolist(), tokens.tolist(), strict=True):
        print(f"  {probability:6.1%}  {model.to_single_str_token(token)!r}")


def print_differences(prompts: Prompts, differences: Float[np.ndarray, " b"]) -> None:
    """Prints the logit difference of every prompt."""
    print("\nBy how many logits is the correct name ahead?")
    for text, (right, wrong), difference in zip(prompts.texts, prompts.names, differences, strict=True):
        print(f"  {difference:+7.3f}  {text}{right} (not{wrong})")
    n_correct = (differences > 0).sum()
    print(f"  {differences.mean():+7.3f}  on average; correct in {n_correct} of {len(differences)} prompts")


def find_layer(cache: ActivationCache, prompts: Prompts, numbers: bool) -> Float[np.ndarray, "l b"]:
    """Prints the mean logit difference after each layer."""
    print("\nIn which layer does the answer appear? The logit difference after each layer (logit lens):")
    lens = np.asarray(experiment.logit_lens(cache, prompts.answers))
    mean = lens.mean(1)
    jump = int(np.argmax(np.diff(mean, prepend=0)))
    before = mean[jump - 1] if jump else 0.0
    print(f"  {sparkline(mean)}  largest step in layer {jump}: {before:+.2f} → {mean[jump]:+.2f}")
    if numbers:
        for first in range(0, len(mean), 10):
            print(f"  from layer {first:2}: " + "".join(f" {value:+6.2f}" for value in mean[first : first + 10]))
    return lens


def find_heads(cache: ActivationCache, prompts: Prompts, numbers: bool) -> Float[np.ndarray, "l n"]:
    """Prints the heads that contribute most to the logit difference."""
    attribution = np.asarray(experiment.head_attribution(cache, prompts.answers))
    print(f"\nWhich of the {attribution.size} heads write it? The direct contribution of each, in logits:")
    print_bars(attribution, 2 * TOP if numbers else TOP)
    return attribution


def print_bars(values: Float[np.ndarray, "l n"], count: int) -> None:
    """Prints the heads of largest absolute value as layer.head, with bars."""
    heads = experiment.strongest_heads(values, count)
    chart = plot.bars(np.array([values[head] for head in heads]), [f"{layer}.{head}" for layer, head in heads])
    print(*(f"  {line}" for line in chart.text().splitlines()[1:]), sep="\n")


def ablate_heads(
    model: HookedTransformer, prompts: Prompts, heads: list[tuple[int, int]], clean: float
) -> Float[np.ndarray, " b"]:
    """Ablates heads one at a time, and prints the effect and the time. Returns the logit differences without heads[0].

    Every hook is a new Python function. The first hook with these shapes compiles the steps of a layer. Later hooks
    compile nothing, and a run with them takes as long as a forward pass without hooks.
    """
    print("\nWhat if such a head is removed? A Python hook sets its output to zero:")
    # Compile both programs before they are timed.
    jax.block_until_ready((model(prompts.tokens), experiment.without_head(model, prompts.tokens, *heads[0])))
    differences, hooked, plain = [], [], []
    for layer, head in heads:
        with measured() as forward:
            jax.block_until_ready(model(prompts.tokens))
        with measured() as run:
            logits = jax.block_until_ready(experiment.without_head(model, prompts.tokens, layer, head))
        differences.append(np.asarray(experiment.logit_difference(logits, prompts.answers)))
        hooked.append(run)
        plain.append(forward)
        print(f"  without {layer:2}.{head}: mean {clean:+.3f} → {differences[-1].mean():+.3f}")
    times = [min(run.seconds for run in runs) for runs in (hooked, plain)]
    compiled = sum(run.compilations for run in hooked) or "nothing"
    print(f"  A new hook compiles {compiled}. It takes {times[0]:.2f} s, a forward without hooks {times[1]:.2f} s.")
    return differences[0]


def find_kinds(model: HookedTransformer, numbers: bool) -> dict[str, Float[np.ndarray, "l n"]]:
    """Prints the heads of each kind, by their attention on repeated random tokens."""
    print("\nWhich heads attend to earlier tokens by a rule? The share of their attention on repeated random tokens:")
    scores, losses = experiment.scores_and_losses(model, repeated_random_tokens(model))
    for kind, values in scores.items():
        heads = experiment.strongest_heads(values, 2 * TOP if numbers else 3)
        shares = "   ".join(f"{layer:2}.{head} {values[layer, head]:.3f}" for layer, head in heads)
        print(f"  {kind + ' heads':22}  {shares}")
    print(f"  The loss is {losses['first half']:.2f} on the first half and {losses['second half']:.2f} on the second.")
    return scores


def patch(model: HookedTransformer, prompts: Prompts, numbers: bool) -> tuple[Labelled, Labelled, Agreement]:
    """Prints which activations of the clean run restore the answer in the run with exchanged names."""
    # A single prompt per template takes half the time.
    clean, corrupted, answers = prompts.tokens[::2], prompts.corrupted[::2], prompts.answers[::2]
    cfg, runs = model.cfg, (model, corrupted, clean, lambda logits: experiment.logit_difference(logits, answers).mean())
    print(
        f"\nWhich way does the answer go? In {len(clean)} of the prompts the names are exchanged, and one activation "
        "at a time is restored."
    )
    with step(f"The residual stream at {cfg.n_layers} layers × {clean.shape[1]} positions"):
        residual = activation_patch(*runs, "resid_pre", ("layer", "pos"), progress=False)
    print_map(residual_map(residual.normalised), numbers)
    with step(f"\nThe output of {cfg.n_layers} × {cfg.n_heads} heads"):
        heads = activation_patch(*runs, "z", ("layer", "head"), progress=False)
    print_map(heads_map(heads.normalised), numbers)
    print("\nThe heads with the largest effect, as a share of the logit difference:")
    print_bars(heads.normalised.values, 2 * TOP)
    with step("\nThe same to first order: attribution patching, in two forwards and a backward pass"):
        attributions = attribution_patch(model, clean, corrupted, runs[-1], "z")
    agreement = correlation(attributions["z"].sum("pos"), heads.change)
    print_agreement(agreement)
    return residual.normalised, heads.normalised, agreement


def print_map(picture: Heatmap, numbers: bool) -> None:
    """Prints a heat map as numbers, or as shades if the terminal can show them."""
    if text := picture.text() if numbers else shaded(picture):
        print(text)


def print_agreement(agreement: Agreement) -> None:
    """Prints how well attribution patching predicts the effect of patching each head."""
    predicted, effect = agreement.attribution.values, agreement.patching.values
    (layer, head), *_ = experiment.strongest_heads(predicted - effect)
    print(
        f"  Pearson correlation {agreement.pearson:.3f} with patching, over {predicted.size} heads. The largest error "
        f"is at {layer}.{head}: {predicted[layer, head]:+.3f} logits predicted, {effect[layer, head]:+.3f} measured."
    )
