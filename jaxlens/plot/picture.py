"""A picture: something to look at, as a page, as an image, as text in a terminal, and as plain numbers.

The page is one file: the style and the scripts of the folder `page` stand in it, and it loads nothing. They draw every
figure from JSON that stands beside it, which is what `Drawing._shown` gives.
"""

import abc
import html
import json
import os
import shutil
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

SCRIPTS = ("basics.js", "grids.js", "attention.js", "charts.js", "lines.js", "page.js")
IMAGES = (".png", ".svg", ".pdf")
WRITES = (".html", ".json", ".txt", *IMAGES)
TEXT_WIDTH = 110
"""Columns of the text form inside a page."""


class Picture(abc.ABC):
    """What every function of `jaxlens.plot` returns; a notebook shows it, a terminal prints it.

    `html` is a whole page that needs no network, `data` its plain numbers by name, `json` the same as text, `text()` a
    table for a terminal, and `save(path)` writes whichever of them the ending of `path` asks for, or an image.

    Example:
        >>> from jaxlens import plot
        >>> picture = plot.heatmap([[0.5, -1.0]], title="An example")
        >>> picture.html[:15], picture.data["values"].tolist()
        ('<!doctype html>', [[0.5, -1.0]])
        >>> print(picture)
        An example
              0       1
        0 +0.50   -1.00
    """

    title: str
    kind: str

    @property
    @abc.abstractmethod
    def data(self) -> dict[str, Any]:
        """The plain numbers, as they were given, and their labels."""

    @abc.abstractmethod
    def _drawings(self) -> tuple["Drawing", ...]:
        """What it is made of."""

    @abc.abstractmethod
    def _lines(self, width: int, ansi: bool) -> list[str]:
        """The lines of its text form, without the title."""

    # --- a page

    @property
    def html(self) -> str:
        """A whole page in one string: no file, no library and no address is loaded by it."""
        figures = "\n".join(_figure(one) for one in self._drawings())
        scripts = "".join(_asset(name) for name in SCRIPTS)
        return _PAGE.format(title=_escape(self.title), style=_asset("style.css"), script=scripts, body=figures)

    def _repr_html_(self) -> str:
        """The page in a frame of its own: pictures in one notebook share no names, and run no script outside."""
        height = 30 + sum(110 + one._pixels() for one in self._drawings())
        return (
            f'<iframe title="{_escape(self.title)}" sandbox="allow-scripts" srcdoc="{html.escape(self.html)}" '
            f'style="width:100%;height:{height}px;border:0;resize:vertical"></iframe>'
        )

    # --- text and numbers

    def text(self, width: int | None = None, ansi: bool | None = None) -> str:
        """A table for a terminal of that many columns; with colours if `ansi`, by default where they will be seen."""
        width = shutil.get_terminal_size((TEXT_WIDTH, 24)).columns if width is None else width
        ansi = sys.stdout.isatty() and "NO_COLOR" not in os.environ if ansi is None else ansi
        return "\n".join([self.title, *(line.rstrip() for line in self._lines(width, ansi))])

    def __repr__(self) -> str:
        return self.text()

    @property
    def json(self) -> str:
        """`data` as JSON, with null for what is not a finite number."""
        return json.dumps({"title": self.title, "kind": self.kind, **_plain(self.data)}, allow_nan=False)

    # --- files

    def save(self, path: str | Path) -> Path:
        """Writes a file: .html, .json or .txt, or by way of matplotlib .png, .svg or .pdf; returns its path.

        Raises:
            ValueError: the path has another ending.
            ImportError: an image is asked for and matplotlib, which the extra `plot` installs, is not there.
        """
        path = Path(path)
        ending = path.suffix.lower()
        if ending in IMAGES:
            self._figure().savefig(path)
            return path
        if ending not in WRITES:
            raise ValueError(f"{path.name!r} ends in {ending!r}; a picture is written as {', '.join(WRITES)}")
        text = self.html if ending == ".html" else self.json if ending == ".json" else self.text(TEXT_WIDTH, False)
        path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        return path

    def _figure(self) -> Any:
        """The picture as a matplotlib Figure."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "an image needs matplotlib: pip install 'hooked-jaxlens[plot]'; .html, .json and .txt need nothing"
            ) from error
        drawings = self._drawings()
        sizes = [one._inches() for one in drawings]
        size = max(width for width, _ in sizes), sum(height for _, height in sizes)
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        heights = [height for _, height in sizes]
        places = figure.subfigures(len(sizes), 1, height_ratios=heights, squeeze=False)[:, 0]
        for one, place in zip(drawings, places, strict=True):
            place.suptitle(one.title, x=0.01, ha="left", fontsize=11, fontweight="bold", parse_math=False)
            one._draw(place)
        return figure


class Drawing(Picture):
    """A picture that is drawn in one piece; its `kind` says by which function of page/page.js."""

    def _drawings(self) -> tuple["Drawing", ...]:
        return (self,)

    @abc.abstractmethod
    def _shown(self) -> dict[str, Any]:
        """What the page draws: JSON, of numbers rounded to what can be seen."""

    @abc.abstractmethod
    def _pixels(self) -> int:
        """About how high it is on a page, below the title."""

    @abc.abstractmethod
    def _draw(self, figure: Any) -> None:
        """Draws on a figure of matplotlib, below the title."""

    @abc.abstractmethod
    def _inches(self) -> tuple[float, float]:
        """How large it is as an image."""


class Page(Picture):
    """Several pictures under each other."""

    kind = "page"

    def __init__(self, pictures: tuple[Picture, ...], title: str):
        self.pictures, self.title = pictures, title

    @property
    def data(self) -> dict[str, Any]:
        return {"pictures": [{"title": one.title, "kind": one.kind, **one.data} for one in self.pictures]}

    def _drawings(self) -> tuple[Drawing, ...]:
        return tuple(drawing for one in self.pictures for drawing in one._drawings())

    def _lines(self, width: int, ansi: bool) -> list[str]:
        return [line for one in self.pictures for line in ("", *one.text(width, ansi).split("\n"))]


def together(first: Picture, *more: Picture, title: str = "") -> Page:
    """Several pictures as one: on one page, in one image, one text after the other.

    Example:
        >>> from jaxlens import plot
        >>> both = together(plot.bars([1.0, 2.0]), plot.heatmap([[1.0]]), title="Two")
        >>> len(both.data["pictures"])
        2
    """
    pictures = (first, *more)
    return Page(pictures, title or " · ".join(one.title for one in pictures))


# --- what a page is made of

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
<script>
"use strict";
(() => {{
{script}}})();
</script>
</body>
</html>"""


def _figure(drawing: Drawing) -> str:
    """One figure: its title, the place where the script draws, its text for those who cannot see it, and its JSON."""
    return (
        f'<figure data-kind="{drawing.kind}">\n<figcaption>{_escape(drawing.title)}</figcaption>\n'
        '<div class="drawing"></div>\n'
        f"<details open><summary>As text</summary><pre>{_escape(drawing.text(TEXT_WIDTH, False))}</pre></details>\n"
        f'<script type="application/json">{_script_json(drawing._shown())}</script>\n</figure>'
    )


def _escape(text: str) -> str:
    """Text as HTML, with what cannot be written as UTF-8 shown as an escape."""
    return html.escape(text.encode("utf-8", "backslashreplace").decode())


def _script_json(shown: dict[str, Any]) -> str:
    """JSON that cannot end the script that it stands in, whatever the tokens are."""
    text = json.dumps(shown, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("page", name).read_text(encoding="utf-8")


def _plain(value: Any) -> Any:
    """Arrays as nested lists, and None for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
