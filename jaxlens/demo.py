"""`jaxlens demo`: how does a small language model know who gets the bag?

    "When John and Mary went to the shops, John gave the bag to" → " Mary"

The indirect-object task of "Interpretability in the Wild" (arXiv 2211.00593), with the eight prompts and the steps of
TransformerLens's Exploratory Analysis demo. The first part of this file is the experiment, to be copied; then follow
the telling of it and its clock. Its pictures are in demo_picture.py.

Axes: b prompt, p position, n head, l layer, v vocabulary.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlens.analysis.activation_cache import ActivationCache
from jaxlens.analysis.agreement import Agreement, correlation
from jaxlens.analysis.attribution import attribution_patch
from jaxlens.analysis.heads import (
    duplicate_token_scores,
    induction_scores,
    previous_token_scores,
    repeated_random_tokens,
)
from jaxlens.analysis.interventions import activation_patch
from jaxlens.analysis.labelled import Labelled
from jaxlens.analysis.logit_attribution import READS, direct_logit_attribution
from jaxlens.demo_picture import heads_map, residual_map, tell_pictures
from jaxlens.names import get_act_name
from jaxlens.transformer import HookedTransformer

TEMPLATES = (
    ("When John and Mary went to the shops,{} gave the bag to", (" Mary", " John")),
    ("When Tom and James went to the park,{} gave the ball to", (" Tom", " James")),
    ("When Dan and Sid went to the shops,{} gave an apple to", (" Dan", " Sid")),
    ("After Martin and Amy went to the park,{} gave a drink to", (" Martin", " Amy")),
)
SCORES = {
    "induction": induction_scores,
    "previous token": previous_token_scores,
    "duplicate token": duplicate_token_scores,
}
"""Kinds of heads that are known by where they look."""

LOOKED_AT = ("what came after the same token before", "the token before", "the same token before")

LAST = slice(-1, None)
"""The last position, with an axis of its own."""

N_ABLATED = 5
"""How many heads are ablated: the strongest, and some more to see what a further hook costs."""

# --- the experiment


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompts, each with the name that should come next and the one that should not, as text and as tokens."""

    texts: list[str]
    names: list[tuple[str, str]]
    tokens: Int[Array, "b p"]
    answers: Int[Array, "b 2"]

    @property
    def corrupted(self) -> Int[np.ndarray, "b p"]:
        """For every prompt the one with the names exchanged, whose right answer is this one's wrong one."""
        return np.asarray(self.tokens).reshape(-1, 2, self.tokens.shape[1])[:, ::-1].reshape(self.tokens.shape)

    def metric(self, logits: Float[Array, "b p v"]) -> Float[Array, ""]:
        """The mean logit difference."""
        return logit_difference(logits, self.answers).mean()


def indirect_object_prompts(model: HookedTransformer) -> Prompts:
    """Every template with either name as the giver: what comes next is the other name.

    Raises:
        ValueError: a name is more than one token, or the prompts are not equally long, with this model's tokenizer.
    """
    texts = [text.format(giver) for text, pair in TEMPLATES for giver in reversed(pair)]
    names = [order for _, pair in TEMPLATES for order in (pair, pair[::-1])]
    lengths = sorted({len(tokens) for tokens in model.to_str_tokens(texts)})
    if len(lengths) > 1:
        raise ValueError(f"the prompts have {lengths} tokens with this tokenizer; the demo compares equally long ones")
    answers = jnp.array([[model.to_single_token(name) for name in pair] for pair in names])
    return Prompts(texts, names, model.to_tokens(texts), answers)


def logit_difference(logits: Float[Array, "b p v"], answers: Int[Array, "b 2"]) -> Float[Array, " b"]:
    """By how much the right answer's logit is above the wrong one's, at the last position."""
    right, wrong = jnp.take_along_axis(logits[:, -1], answers, axis=-1).T
    return right - wrong


def is_read(name: str) -> bool:
    """Whether the lens and the attribution of heads read an activation."""
    return name.endswith(("hook_resid_pre", "ln_final.hook_scale", *READS["head"]))


def logit_lens(cache: ActivationCache, answers: Int[Array, "b 2"]) -> Float[Array, "l b"]:
    """The logit difference if the model stopped after each layer: its last norm and unembedding, run on every layer."""
    right, wrong = (cache.logit_lens(targets=names[:, None], positions=LAST).values for names in answers.T)
    return (right - wrong)[1:, :, 0, 0]  # the first entry is what comes before all layers


def head_attribution(cache: ActivationCache, answers: Int[Array, "b 2"]) -> Float[Array, "l n"]:
    """What every head adds to the logit difference directly, in logits, as the mean over prompts."""
    right, wrong = answers.T
    found = direct_logit_attribution(cache.model, None, right, wrong, unit="head", pos=LAST, cache=cache)
    return found.heads().mean((-2, -1))


def losses_of_halves(model: HookedTransformer, tokens: Int[Array, "b p"]) -> dict[str, float]:
    """The mean loss on the first and on the second half of `repeated_random_tokens`, in nats."""
    half, loss = tokens.shape[1] // 2, model(tokens, return_type="loss", loss_per_token=True)
    return {"first half": float(loss[:, :-half].mean()), "second half": float(loss[:, 1 - half :].mean())}


def without_head(model: HookedTransformer, tokens: Int[Array, "b p"], layer: int, head: int) -> Float[Array, "b p v"]:
    """The logits if one head had gathered nothing: a plain Python function, called in the middle of the forward."""

    def ablate(z, hook):
        return z.at[:, :, head].set(0)

    return model.run_with_hooks(tokens, fwd_hooks=[(get_act_name("z", layer), ablate)])


def strongest_heads(values: Float[np.ndarray, "l n"], count: int = 10) -> list[tuple[int, int]]:
    """The heads of largest value, of either sign, as (layer, head)."""
    order = np.argsort(-np.abs(values), axis=None)[:count]
    return [(int(layer), int(head)) for layer, head in zip(*np.unravel_index(order, values.shape), strict=True)]


# --- the experiment, told


@dataclasses.dataclass(frozen=True)
class Findings:
    """What the demo found, in logits; `ablated` is the logit difference of each prompt without `head`.

    `residual` and `heads` are shares of the logit difference that patching restores, `scores` shares of attention.
    """

    model_name: str
    names: list[tuple[str, str]]
    clean: Float[np.ndarray, " b"]
    lens: Float[np.ndarray, "l b"]
    attribution: Float[np.ndarray, "l n"]
    head: tuple[int, int]
    ablated: Float[np.ndarray, " b"]
    scores: dict[str, Float[np.ndarray, "l n"]]
    residual: Labelled
    heads: Labelled
    agreement: Agreement


def demo(model_name: str, out: Path) -> Findings:
    """Loads a model, runs the experiment, prints what it finds, and saves pictures of it in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    with measured() as all_of_it:
        with step(f"Loading {model_name}"):
            model = HookedTransformer.from_pretrained_no_processing(model_name)
        print(f"  {repr(model).splitlines()[0]}")
        findings = investigate(model, indirect_object_prompts(model))
        tell_pictures(findings, out)
    print(f"All of it took {all_of_it.seconds:.0f} s, with {all_of_it.compilations} compilations.")
    return findings


def investigate(model: HookedTransformer, prompts: Prompts) -> Findings:
    """The experiment from the first forward to the last patch."""
    tokens, answers = prompts.tokens, prompts.answers
    n_prompts, n_positions = tokens.shape
    with step(f"First forward of {n_prompts} prompts of {n_positions} tokens, compiling"):
        jax.block_until_ready(model(tokens))
    with step("Warm forward"):
        logits = jax.block_until_ready(model(tokens))
    clean = np.asarray(logit_difference(logits, answers))
    tell_next_tokens(model, prompts, logits)
    tell_differences(prompts, clean)

    with step("\nForward that keeps what the analysis reads, compiling"):
        _, cache = jax.block_until_ready(model.run_with_cache(tokens, names_filter=is_read, pos_slice=LAST))
    with step("Logit lens, compiling"):
        lens = np.asarray(logit_lens(cache, answers))
    with step("Attribution of the heads, compiling"):
        attribution = np.asarray(head_attribution(cache, answers))
    tell_lens(lens.mean(1))
    strongest = strongest_heads(attribution)
    print(f"\nWhich of the {attribution.size} heads write it? The strongest, as layer.head, in logits:")
    tell_heads(attribution, strongest)
    ablated = ablate_heads(model, prompts, strongest[:N_ABLATED], clean.mean())
    scores = score_heads(model)
    return Findings(
        model.name or "untrained", prompts.names, clean, lens, attribution, strongest[0], ablated, scores,
        *patch(model, prompts),
    )  # fmt: skip


def tell_next_tokens(model: HookedTransformer, prompts: Prompts, logits: Float[Array, "b p v"], count: int = 6) -> None:
    """Prints the likeliest next tokens of the first prompt."""
    print(f'\nWhat comes after "{prompts.texts[0]}"?')
    probabilities, tokens = jax.lax.top_k(jax.nn.softmax(logits[0, -1]), count)
    for probability, token in zip(probabilities.tolist(), tokens.tolist(), strict=True):
        print(f"  {probability:6.1%}  {model.to_single_str_token(token)!r}")


def tell_differences(prompts: Prompts, differences: Float[np.ndarray, " b"]) -> None:
    """Prints how far each prompt's right name is ahead of the wrong one."""
    print("\nBy how many logits is the right name ahead?")
    for text, (right, wrong), difference in zip(prompts.texts, prompts.names, differences, strict=True):
        print(f"  {difference:+7.3f}  {text}{right} (not{wrong})")
    print(f"  {differences.mean():+7.3f}  in the mean; {(differences > 0).sum()} of {len(differences)} right")


def tell_lens(differences: Float[np.ndarray, " l"], per_line: int = 10) -> None:
    """Prints the mean logit difference after every layer."""
    print("\nWhere in the model does that arise? If it stopped after each layer (logit lens), the mean would be")
    for first in range(0, len(differences), per_line):
        row = "".join(f" {value:+6.2f}" for value in differences[first : first + per_line])
        print(f"  from layer {first:2}: {row}")
    print(f"  The largest step is in layer {np.argmax(np.diff(differences, prepend=0))}.")


def tell_heads(values: Float[np.ndarray, "l n"], heads: list[tuple[int, int]], per_line: int = 5) -> None:
    """Prints the values of some heads."""
    cells = [f"{layer:2}.{head} {values[layer, head]:+.3f}" for layer, head in heads]
    for first in range(0, len(cells), per_line):
        print("  " + "   ".join(cells[first : first + per_line]))


def ablate_heads(
    model: HookedTransformer, prompts: Prompts, heads: list[tuple[int, int]], clean: float
) -> Float[np.ndarray, " b"]:
    """Ablates one head after the other, tells what that does and costs, and returns the differences without the first.

    Every head is a new Python function. The first one at these shapes compiles the pieces that a layer is made of; the
    others compile nothing, and take as long as a warm forward, which is timed in between.
    """
    print("\nDo they matter? Each set to zero by a Python hook of its own:")
    differences, hooked, warm = [], [], []
    for layer, head in heads:
        with measured() as forward:
            jax.block_until_ready(model(prompts.tokens))
        with measured() as run:
            logits = jax.block_until_ready(without_head(model, prompts.tokens, layer, head))
        differences.append(np.asarray(logit_difference(logits, prompts.answers)))
        hooked.append(run)
        warm.append(forward.seconds)
        note = ", once for these shapes" if len(hooked) == 1 and run.compilations else ""
        print(f"  without {layer:2}.{head}: mean {clean:+.3f} → {differences[-1].mean():+.3f}   {run}{note}")
    fresh, usual = min(run.seconds for run in hooked[1:]), min(warm)  # the rest is what else the machine was doing
    print(f"  A new hook takes {fresh:.2f} s, a warm forward {usual:.2f} s: {fresh / usual:.2f} times as long.")
    return differences[0]


def score_heads(model: HookedTransformer, count: int = 5) -> dict[str, Float[np.ndarray, "l n"]]:
    """Tells which heads look back, and at what, on random tokens that are said twice."""
    with step("\nRandom tokens, said twice, compiling"):
        scores = {kind: np.asarray(score(model)) for kind, score in SCORES.items()}
        losses = losses_of_halves(model, repeated_random_tokens(model))
    print("Which heads look back, whatever the text? How much of their attention goes")
    for (kind, values), where in zip(scores.items(), LOOKED_AT, strict=True):
        print(f"  to {where} ({kind} heads):")
        tell_heads(values, strongest_heads(values, count))
    print(f"  The loss is {losses['first half']:.2f} the first time and {losses['second half']:.2f} the second.")
    return scores


def patch(model: HookedTransformer, prompts: Prompts) -> tuple[Labelled, Labelled, Agreement]:
    """Tells where the answer is on its way: what one clean activation restores in the run with the names exchanged."""
    print("\nWhich way does the answer go? The names are exchanged, and one activation after the other is put back.")
    runs = prompts.corrupted, prompts.tokens
    with step(f"The residual stream at {model.cfg.n_layers} × {prompts.tokens.shape[1]} places, compiling"):
        residual = activation_patch(model, *runs, prompts.metric, "resid_pre", ("layer", "pos"), progress=False)
    print(residual_map(residual.normalised))
    with step(f"\nThe output of {model.cfg.n_layers} × {model.cfg.n_heads} heads, compiling"):
        heads = activation_patch(model, *runs, prompts.metric, "z", ("layer", "head"), progress=False)
    print(heads_map(heads.normalised))
    print("\nThe heads that restore most (or undo most), as shares of the logit difference:")
    tell_heads(heads.normalised.values, strongest_heads(heads.normalised.values))
    with step("\nThe same to first order: attribution patching, two forwards and a backward pass, compiling"):
        attributions = attribution_patch(model, prompts.tokens, prompts.corrupted, prompts.metric, "z")
    agreement = correlation(attributions["z"].sum("pos"), heads.change)
    (layer, head), *_ = strongest_heads(agreement.attribution.values - agreement.patching.values)
    print(
        f"  Pearson {agreement.pearson:.3f} with true patching over {heads.values.size} heads (Spearman "
        f"{agreement.spearman:.3f}). Furthest off is {layer}.{head}: {agreement.attribution.values[layer, head]:+.3f} "
        f"logits foretold, {agreement.patching.values[layer, head]:+.3f} found."
    )
    return residual.normalised, heads.normalised, agreement


# --- the clock


@dataclasses.dataclass
class Measured:
    """How long something took, and how many programs were compiled meanwhile."""

    seconds: float = 0.0
    compilations: int = 0

    def __str__(self) -> str:
        plural = "" if self.compilations == 1 else "s"
        return f"{self.seconds:.2f} s, {self.compilations} compilation{plural}"


@contextlib.contextmanager
def measured() -> Iterator[Measured]:
    """Measures what happens inside a `with` block."""
    found = Measured()

    def count(event: str, seconds: float, **details) -> None:
        found.compilations += event.endswith("/backend_compile_duration")

    jax.monitoring.register_event_duration_secs_listener(count)
    start = time.perf_counter()
    try:
        yield found
    finally:
        found.seconds = time.perf_counter() - start
        jax.monitoring.unregister_event_duration_listener(count)


@contextlib.contextmanager
def step(doing: str) -> Iterator[None]:
    """Says what is being done, and when it is done how long that took."""
    print(f"{doing} … ", end="", flush=True)
    took = "failed"
    try:
        with measured() as found:
            yield
        took = str(found)
    finally:
        print(took, flush=True)
