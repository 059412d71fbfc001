"""`jaxlens demo`: how does a small language model know who gets the bag?

    "When John and Mary went to the shops, John gave the bag to" → " Mary"

The indirect-object task of "Interpretability in the Wild" (arXiv 2211.00593), with the eight prompts and the steps of
TransformerLens's Exploratory Analysis demo. The first part of this file is the experiment, to be copied; then follow
the telling of it, its clock, and its picture.

Axes: b prompt, p position, d d_model, n head, h d_head, l layer, v vocabulary.
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
from jaxlens.names import get_act_name
from jaxlens.transformer import HookedTransformer

TEMPLATES = (
    ("When John and Mary went to the shops,{} gave the bag to", (" Mary", " John")),
    ("When Tom and James went to the park,{} gave the ball to", (" Tom", " James")),
    ("When Dan and Sid went to the shops,{} gave an apple to", (" Dan", " Sid")),
    ("After Martin and Amy went to the park,{} gave a drink to", (" Martin", " Amy")),
)
WANTED = ["blocks.*.hook_resid_post", "blocks.*.attn.hook_z", "ln_final.hook_scale"]
"""The activations that the analysis reads."""

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


@jax.jit
def logit_lens(model: HookedTransformer, cache: ActivationCache, answers: Int[Array, "b 2"]) -> Float[Array, "l b"]:
    """The logit difference if the model stopped after each layer: its last norm and unembedding, run on every layer."""

    def after(residual: Float[Array, "b d"]) -> Float[Array, " b"]:
        return logit_difference(model(residual[:, None], start_at_layer=model.cfg.n_layers), answers)

    return jax.vmap(after)(cache.stack_activation("resid_post"))


@jax.jit
def head_attribution(
    model: HookedTransformer, cache: ActivationCache, answers: Int[Array, "b 2"]
) -> Float[Array, "l n"]:
    """What every head adds to the logit difference directly, in logits, as the mean over prompts.

    A head's output is a term of the residual stream, and the logits are linear in that once the scale of the final norm
    is known: each term counts by its dot product with one direction.
    """
    right, wrong = jnp.moveaxis(model.tokens_to_residual_directions(answers), 1, 0)
    direction = before_final_norm(model, right - wrong) / cache["scale"]
    return jnp.einsum("lbnh,lnhd,bd->ln", cache.stack_activation("z"), model.W_O, direction) / len(answers)


def before_final_norm(model: HookedTransformer, direction: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """A direction behind the final norm, seen from in front of it (apart from the scale)."""
    w = model.ln_final.w
    if w is not None:
        direction = direction * (1 + w if model.cfg.rmsnorm_uses_offset else w)
    centres = model.cfg.normalization_type.startswith("LN")
    return direction - direction.mean(-1, keepdims=True) if centres else direction


def without_head(model: HookedTransformer, tokens: Int[Array, "b p"], layer: int, head: int) -> Float[Array, "b p v"]:
    """The logits if one head had gathered nothing: a plain Python function, called in the middle of the forward."""

    def ablate(z, hook):
        return z.at[:, :, head].set(0)

    return model.run_with_hooks(tokens, fwd_hooks=[(get_act_name("z", layer), ablate)])


def strongest(attribution: Float[np.ndarray, "l n"], count: int) -> list[tuple[int, int]]:
    """The heads of largest attribution, of either sign, as (layer, head)."""
    order = np.argsort(-np.abs(attribution), axis=None)[:count]
    return [(int(layer), int(head)) for layer, head in zip(*np.unravel_index(order, attribution.shape), strict=True)]


# --- the experiment, told


@dataclasses.dataclass(frozen=True)
class Findings:
    """What the demo found, in logits; `ablated` is the logit difference of each prompt without `head`."""

    model_name: str
    names: list[tuple[str, str]]
    clean: Float[np.ndarray, " b"]
    lens: Float[np.ndarray, "l b"]
    attribution: Float[np.ndarray, "l n"]
    head: tuple[int, int]
    ablated: Float[np.ndarray, " b"]


def demo(model_name: str, out: Path) -> Findings:
    """Loads a model, runs the experiment, prints what it finds, and saves the picture in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    with measured() as all_of_it:
        with step(f"Loading {model_name}"):
            model = HookedTransformer.from_pretrained_no_processing(model_name)
        print(f"  {repr(model).splitlines()[0]}")
        check_suited(model)
        findings = investigate(model, indirect_object_prompts(model))
        tell_picture(findings, out / "demo.png")
    print(f"All of it took {all_of_it.seconds:.0f} s, with {all_of_it.compilations} compilations.")
    return findings


def check_suited(model: HookedTransformer) -> None:
    """Raises ValueError for a model whose logits are not linear in what the heads write, at a fixed norm scale."""
    cfg = model.cfg
    if cfg.normalization_type is None or cfg.norm_placement != "pre" or cfg.output_logits_soft_cap is not None:
        raise ValueError(
            "the demo's attribution of heads wants one norm, the final one, between a head and the logits, and no soft "
            f"cap; {model.name} has norm_placement {cfg.norm_placement!r}, normalization_type "
            f"{cfg.normalization_type!r}, output_logits_soft_cap {cfg.output_logits_soft_cap}"
        )


def investigate(model: HookedTransformer, prompts: Prompts) -> Findings:
    """The experiment from the first forward to the ablated heads."""
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
        _, cache = jax.block_until_ready(model.run_with_cache(tokens, names_filter=WANTED, pos_slice=-1))
    with step("Logit lens, compiling"):
        lens = np.asarray(logit_lens(model, cache, answers))
    with step("Attribution of the heads, compiling"):
        attribution = np.asarray(head_attribution(model, cache, answers))
    tell_lens(lens.mean(1))
    heads = strongest(attribution, 10)
    tell_heads(attribution, heads)
    ablated = ablate_heads(model, prompts, heads[:N_ABLATED], clean.mean())
    return Findings(model.name or "untrained", prompts.names, clean, lens, attribution, heads[0], ablated)


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


def tell_heads(attribution: Float[np.ndarray, "l n"], heads: list[tuple[int, int]], per_line: int = 5) -> None:
    """Prints the strongest heads."""
    print(f"\nWhich of the {attribution.size} heads write it? The strongest, as layer.head, in logits:")
    cells = [f"{layer:2}.{head} {attribution[layer, head]:+.3f}" for layer, head in heads]
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


# --- the picture

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"  # told apart by every kind of colour vision


def tell_picture(findings: Findings, path: Path) -> None:
    """Saves the picture and says where; without matplotlib, says how to get it."""
    try:
        from matplotlib.figure import Figure  # an extra: everything but the picture works without it
    except ImportError:
        print("\nNo picture, because that needs matplotlib. Run: pip install 'hooked-jaxlens[plot]'")
        return
    figure = Figure(figsize=(17, 7.5), dpi=120, layout="constrained")
    draw(figure, findings)
    figure.savefig(path)
    print(f"\nPicture: {path}")


def draw(figure, findings: Findings) -> None:
    """Three panels: the logit lens, the attribution of the heads, and each prompt with and without the strongest."""
    lens, heads, prompts = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
    draw_lens(lens, findings)
    draw_heads(heads, findings)
    draw_prompts(prompts, findings)
    for panel in (lens, heads, prompts):
        panel.spines[["top", "right"]].set_visible(False)
    headline = f"Who gets the bag?  {findings.model_name} on {len(findings.clean)} indirect-object prompts"
    figure.suptitle(headline, x=0.01, ha="left", fontsize=16)


def title(panel, letter: str, headline: str, explanation: str) -> None:
    """Two lines above a panel: its headline, and what its numbers are."""
    panel.set_title(f"{letter}  {headline}", loc="left", fontsize=13, fontweight="bold", pad=26)
    panel.text(0, 1.012, explanation, transform=panel.transAxes, fontsize=10, color="#444444", va="bottom")


def signed(value: float) -> str:
    """+1.25 or −1.25, with a minus as wide as the plus."""
    return f"{value:+.2f}".replace("-", "−")


def draw_lens(panel, findings: Findings) -> None:
    """The logit difference after every layer: one thin line for each prompt, a thick one for their mean."""
    layers, mean = np.arange(len(findings.lens)), findings.lens.mean(1)
    panel.axhline(0, color="black", linewidth=0.8)
    panel.margins(y=0.12)  # room for the legend
    panel.plot(layers, findings.lens, color=GREY, linewidth=0.8, alpha=0.6)
    panel.plot([], [], color=GREY, linewidth=0.8, label="each prompt; the two orders of names mirror each other")
    panel.plot(layers, mean, color=BLUE, linewidth=2.5, marker="o", markersize=4, label="mean")
    jump, last = int(np.argmax(np.diff(mean, prepend=0))), len(layers) - 1
    for layer, name, beside in ((jump, f"layer {jump}", (-12, 12)), (last, "end", (0, -70))):
        panel.annotate(
            f"{name}: {signed(mean[layer])}", (layer, mean[layer]), beside, textcoords="offset points", ha="right",
            color=BLUE, fontweight="bold", bbox={"color": "white", "alpha": 0.8, "pad": 1},
            arrowprops={"arrowstyle": "-", "color": BLUE},
        )  # fmt: skip
    panel.set(xlabel="layer", ylabel="logit difference, right − wrong name (logits)", xlim=(-0.5, len(layers) - 0.5))
    panel.legend(loc="upper left", frameon=False)
    title(panel, "A", "Logit lens", "the answer if the model stopped after each layer")


def draw_heads(panel, findings: Findings, named: int = 8) -> None:
    """The attribution of every head as a heat map, the strongest with their numbers."""
    attribution = findings.attribution
    limit = float(np.abs(attribution).max())
    image = panel.imshow(attribution, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", origin="lower")
    for layer, head in strongest(attribution, named):
        value = attribution[layer, head]
        colour = "white" if abs(value) > 0.6 * limit else "black"
        panel.text(head, layer, signed(value), ha="center", va="center", fontsize=9, color=colour)
    n_layers, n_heads = attribution.shape
    panel.set(xlabel="head", ylabel="layer", yticks=range(0, n_layers, max(1, n_layers // 10)))
    panel.set_xticks(range(0, n_heads, max(1, n_heads // 12)))
    bar = panel.figure.colorbar(image, ax=panel, shrink=0.8, pad=0.02)
    bar.set_label("contribution to the logit difference (logits)")
    title(panel, "B", "Direct attribution of heads", "what each head writes, mean over prompts")


def draw_prompts(panel, findings: Findings) -> None:
    """The logit difference of every prompt, as the model is and without its strongest head."""
    rows = np.arange(len(findings.clean))
    layer, head = findings.head
    for shift, values, colour, of in (
        (-0.2, findings.clean, BLUE, "whole model"),
        (0.2, findings.ablated, ORANGE, f"without head {layer}.{head}"),
    ):
        bars = panel.barh(rows + shift, values, 0.38, color=colour, label=f"{of}, mean {signed(values.mean())}")
        panel.bar_label(bars, [signed(value) for value in values], padding=3, fontsize=9, color=colour)
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_yticks(rows, [f"{giver.strip()} → {receiver.strip()}" for receiver, giver in findings.names])
    panel.set_ylim(len(rows) + 0.5, -0.6)  # from top to bottom, with room for the legend under the last prompt
    panel.margins(x=0.18)
    panel.set(xlabel="logit difference, right − wrong name (logits)")
    panel.legend(loc="lower right", frameon=False)
    title(panel, "C", f"Head {layer}.{head} ablated", "who gives → who should receive")
