"""The pictures of `jaxlens demo`: a page whose figures can be pointed at, and one image of six panels.

Axes: b prompt, l layer, n head, p position.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from jaxlens import plot
from jaxlens.analysis.labelled import Labelled
from jaxlens.plot.colours import NEGATIVE, POSITIVE, is_dark
from jaxlens.plot.heatmaps import draw_cells, draw_scale
from jaxlens.plot.terminal import Axis

if TYPE_CHECKING:
    from jaxlens.demo import Findings

BLUE, ORANGE, GREY = POSITIVE[3], NEGATIVE[3], "#999999"
SHARE = "share of the logit difference restored"
WIDTH, HEIGHT = 19, 14.5

# --- figures for the terminal and the page


def residual_map(share: Labelled) -> plot.Picture:
    """What the residual stream of the clean run restores, before each layer at each position."""
    return plot.heatmap(share, unit=SHARE, title="The residual stream before each layer, patched")


def heads_map(share: Labelled) -> plot.Picture:
    """What the output of each head restores."""
    return plot.heatmap(share, unit=SHARE, title="The output of each head, patched")


def page(findings: "Findings") -> plot.Picture:
    """Everything there is to see, under each other."""
    names = [f"{giver.strip()} → {receiver.strip()}" for receiver, giver in findings.names]
    heads = {"xname": "head", "yname": "layer"}
    return plot.together(
        plot.lines(
            findings.lens.T, names=names, xname="layer", unit="logits",
            title="Logit lens: the logit difference, right − wrong name, if the model stopped after each layer",
        ),
        plot.heatmap(
            findings.attribution, **heads, unit="logits", title="What each head adds to the logit difference directly"
        ),
        plot.bars(findings.attribution, unit="logits", title="The heads that add most"),
        residual_map(findings.residual),
        heads_map(findings.heads),
        plot.heatmap(
            findings.agreement.attribution, unit="logits",
            title=f"Attribution patching of each head (Pearson {findings.agreement.pearson:.3f} with true patching)",
        ),
        *(
            plot.heatmap(scores, **heads, unit="attention", title=f"Random tokens, said twice: {kind} heads")
            for kind, scores in findings.scores.items()
        ),
        title=headline(findings),
    )  # fmt: skip


def headline(findings: "Findings") -> str:
    """What everything is about."""
    return f"Who gets the bag?  {findings.model_name} on {len(findings.clean)} indirect-object prompts"


def tell_pictures(findings: "Findings", out: Path) -> None:
    """Saves the page and the image and says where; without matplotlib the page alone, and how to get the image."""
    print(f"\nPage:    {page(findings).save(out / 'demo.html')}")
    try:
        from matplotlib.figure import Figure  # an extra: everything but the image works without it
    except ImportError:
        print("No image, because that needs matplotlib. Run: pip install 'hooked-jaxlens[plot]'")
        return
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=110, layout="constrained")
    draw(figure, findings)
    figure.savefig(out / "demo.png")
    print(f"Picture: {out / 'demo.png'}")


# --- the image


def draw(figure: Any, findings: "Findings") -> None:
    """Six panels, in the order of the experiment."""
    figure.get_layout_engine().set(h_pad=0.25)
    above, below = figure.subplots(2, 3, width_ratios=(1.15, 1, 1))
    draw_lens(above[0], findings)
    draw_cells_of(above[1], findings.attribution, "head", "logits")
    title(above[1], "B", "Direct attribution of heads", "what each head writes, mean over prompts")
    draw_prompts(above[2], findings)
    draw_cells_of(below[0], findings.residual.values, "position", SHARE, findings.residual.labels["pos"])
    title(below[0], "D", "Residual stream patched", "names exchanged, one place put back, before each layer")
    draw_cells_of(below[1], findings.heads.values, "head", SHARE)
    title(below[1], "E", "Heads patched", "names exchanged, the output of one head put back")
    draw_agreement(below[2], findings)
    for panel in (above[0], above[2], below[2]):
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(headline(findings), x=0.01, ha="left", fontsize=17)


def title(panel: Any, letter: str, headline: str, explanation: str) -> None:
    """Two lines above a panel: its headline, and what its numbers are."""
    panel.set_title(f"{letter}  {headline}", loc="left", fontsize=13, fontweight="bold", pad=26)
    panel.text(0, 1.012, explanation, transform=panel.transAxes, fontsize=10, color="#444444", va="bottom")


def signed(value: float) -> str:
    """+1.25 or −1.25, with a minus as wide as the plus."""
    return f"{value:+.2f}".replace("-", "−")


def draw_lens(panel: Any, findings: "Findings") -> None:
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


def draw_cells_of(
    panel: Any, values: Float[np.ndarray, "l x"], name: str, unit: str, labels: list[str] | None = None, named: int = 8
) -> None:
    """A grid with a row for each layer, the strongest cells with their numbers."""
    rows, columns = ([str(place) for place in range(size)] for size in values.shape)
    limit = float(np.abs(values).max())
    image = draw_cells(panel, values, Axis("layer", rows), Axis(name, labels or columns), limit, signed=True)
    draw_scale(image, panel, unit, HEIGHT / 2)
    if labels is None:
        for place in np.argsort(-np.abs(values), axis=None)[:named]:
            layer, column = np.unravel_index(place, values.shape)
            value = values[layer, column]
            colour = "white" if is_dark(value / limit) else "black"
            panel.text(column, layer, signed(value), ha="center", va="center", fontsize=9, color=colour)


def draw_prompts(panel: Any, findings: "Findings") -> None:
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


def draw_agreement(panel: Any, findings: "Findings", named: int = 6) -> None:
    """Every head as a point: what attribution patching foretells of it, and what patching it does."""
    agreement = findings.agreement
    foretold, measured = agreement.attribution.values, agreement.patching.values
    ends = [min(foretold.min(), measured.min()), max(foretold.max(), measured.max())]
    panel.plot(ends, ends, color=GREY, linewidth=0.8)
    panel.scatter(foretold, measured, s=22, color=BLUE, alpha=0.7, linewidth=0)
    for place in np.argsort(-np.abs(measured), axis=None)[:named]:
        layer, head = np.unravel_index(place, measured.shape)
        at = foretold[layer, head], measured[layer, head]
        panel.annotate(f"{layer}.{head}", at, (5, 4), textcoords="offset points", fontsize=9)
    panel.set(xlabel="attribution patching (logits)", ylabel="patching (logits)")
    text = f"Pearson {agreement.pearson:.3f} over {measured.size} heads; on the line the two agree"
    title(panel, "F", "Attribution patching", text)
