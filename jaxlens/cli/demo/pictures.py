"""The pictures of `jaxlens demo`: a page, an image of it, and shaded heat maps and lines of blocks for the terminal.

Axes: l layer.
"""

import sys
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxlens import plot
from jaxlens.analysis.labelled_array import Labelled
from jaxlens.cli.demo.experiment import Findings
from jaxlens.plot.heatmaps import Heatmap

SHARE = "share of the logit difference restored"
BLOCKS = "▁▂▃▄▅▆▇█"


def residual_map(share: Labelled) -> Heatmap:
    """The effect of restoring the residual stream before each layer at each position."""
    return plot.heatmap(share, unit=SHARE, title="The residual stream before each layer, patched")


def heads_map(share: Labelled) -> Heatmap:
    """The effect of restoring the output of each head."""
    return plot.heatmap(share, unit=SHARE, title="The output of each head, patched")


def shaded(picture: Heatmap) -> str:
    """The heat map as shades, or "" if standard output cannot show them."""
    width = len(picture.rows.name) + 2 * len(picture.columns.labels) + 4  # too narrow for numbers
    return picture.text(max(width, 40)) if _printable(BLOCKS) else ""


def sparkline(values: Float[np.ndarray, " l"]) -> str:
    """A block per value, whose height shows the value, or "" as in `shaded`. Negative values have the lowest block."""
    steps = (np.clip(values / max(values.max(), 1e-9), 0, 1) * (len(BLOCKS) - 1)).round().astype(int)
    return "".join(BLOCKS[step] for step in steps) if _printable(BLOCKS) else ""


def _printable(text: str) -> bool:
    """Whether standard output can encode the text."""
    try:
        return bool(text.encode(sys.stdout.encoding or "utf-8"))
    except UnicodeEncodeError:
        return False


def page(findings: Findings) -> plot.Picture:
    """All figures, one below the other."""
    names = [f"{giver.strip()} → {receiver.strip()}" for receiver, giver in findings.names]
    heads, (layer, head), pearson = {"xname": "head", "yname": "layer"}, findings.head, findings.agreement.pearson
    return plot.together(
        plot.lines(
            findings.lens.T, names=names, xname="layer", unit="logits",
            title="Logit lens: the logit difference, right − wrong name, after each layer",
        ),
        plot.heatmap(findings.attribution, **heads, unit="logits", title="Direct contribution of each head"),
        plot.bars(findings.attribution, unit="logits", title="The heads with the largest contributions"),
        plot.heatmap(
            np.stack([findings.clean, findings.ablated], axis=1), ylabels=names, yname="prompt", unit="logits",
            xlabels=["whole model", "ablated"], title=f"The logit difference with and without head {layer}.{head}",
        ),
        residual_map(findings.residual),
        heads_map(findings.heads),
        plot.heatmap(
            findings.agreement.attribution, unit="logits",
            title=f"Attribution patching of each head (Pearson correlation {pearson:.3f} with patching)",
        ),
        *(
            plot.heatmap(scores, **heads, unit="attention", title=f"Repeated random tokens: {kind} heads")
            for kind, scores in findings.scores.items()
        ),
        title=f"Who gets the bag?  {findings.model_name} on {len(findings.clean)} indirect-object prompts",
    )  # fmt: skip


def save_pictures(findings: Findings, out: Path) -> str:
    """Saves the page, and with matplotlib an image of it. Returns a message with the paths."""
    picture = page(findings)
    message = f"Page:    {picture.save(out / 'demo.html')}"
    try:
        return f"{message}\nPicture: {picture.save(out / 'demo.png')}"
    except ImportError as error:
        return f"{message}\nNo image: {error}"
