"""`Picture`, the result of every plotting function: a web page, an image, terminal text, and numbers.

A page is a single file. It contains the style sheet and the scripts of the folder `page`, and loads no other file. The
scripts draw every figure from its JSON, which `Drawing._page_data` returns.
"""

import abc
import html
import json
import os
import shutil
import sys
import textwrap
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

SCRIPTS = ("basics.js", "grids.js", "attention.js", "charts.js", "lines.js", "page.js")
IMAGES = (".png", ".svg", ".pdf")
SUFFIXES = (".html", ".json", ".txt", *IMAGES)
TEXT_WIDTH = 110
"""The number of columns of text in files and pages."""
TITLE_CHARACTERS = 9
"""The number of characters of a title that an inch of an image holds."""


class Picture(abc.ABC):
    """The result of every plotting function. A notebook displays the page, and `print` shows the text.

    `html` is a complete page that works offline, `data` contains the numbers by name, `json` is `data` as a string, and
    `text()` is a table for a terminal. `save(path)` writes a file in the format of its extension.

    Example:
        >>> from jaxlens import plot
        >>> picture = plot.heatmap([[0.5, -1.0]], title="An example")
        >>> picture.html[:15], picture.data["values"].tolist()
        ('<!doctype html>', [[0.5, -1.0]])
        >>> print(picture)
        An example
               0      1
        0  +0.50  -1.00
    """

    title: str
    kind: str

    @property
    @abc.abstractmethod
    def data(self) -> dict[str, Any]:
        """The numbers, without rounding, and their labels."""

    @abc.abstractmethod
    def _drawings(self) -> tuple["Drawing", ...]:
        """The figures of the picture."""

    @abc.abstractmethod
    def _text_lines(self, width: int, ansi: bool) -> list[str]:
        """The lines of the text form, without the title."""

    # --- a page

    @property
    def html(self) -> str:
        """A complete page as a string. It loads no other file and needs no network."""
        figures = "\n".join(_figure(drawing) for drawing in self._drawings())
        scripts = "".join(_page_file(name) for name in SCRIPTS)
        return _PAGE.format(title=_escape(self.title), style=_page_file("style.css"), script=scripts, body=figures)

    def _repr_html_(self) -> str:
        """The page in a sandboxed frame, so that its scripts and styles do not affect the notebook."""
        height = 30 + sum(110 + drawing._page_height() for drawing in self._drawings())
        return (
            f'<iframe title="{_escape(self.title)}" sandbox="allow-scripts" srcdoc="{html.escape(self.html)}" '
            f'style="width:100%;height:{height}px;border:0;resize:vertical"></iframe>'
        )

    # --- text and numbers

    def text(self, width: int | None = None, ansi: bool | None = None) -> str:
        """A table of `width` columns, with colors if `ansi`. By default, both depend on standard output."""
        width = shutil.get_terminal_size((TEXT_WIDTH, 24)).columns if width is None else width
        ansi = sys.stdout.isatty() and "NO_COLOR" not in os.environ if ansi is None else ansi
        return "\n".join([self.title, *(line.rstrip() for line in self._text_lines(width, ansi))])

    def __repr__(self) -> str:
        return self.text()

    @property
    def json(self) -> str:
        """`data` as JSON. Numbers that are not finite are null."""
        return json.dumps({"title": self.title, "kind": self.kind, **_plain(self.data)}, allow_nan=False)

    # --- files

    def save(self, path: str | Path) -> Path:
        """Writes a .html, .json or .txt file, or with matplotlib a .png, .svg or .pdf image. Returns the path.

        Raises:
            ValueError: The path has another extension.
            ImportError: The file is an image and matplotlib, part of the extra `plot`, is not installed.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix in IMAGES:
            self._figure().savefig(path)
            return path
        if suffix not in SUFFIXES:
            raise ValueError(f"the file name {path.name!r} ends in {suffix!r}; expected one of {', '.join(SUFFIXES)}")
        text = self.html if suffix == ".html" else self.json if suffix == ".json" else self.text(TEXT_WIDTH, False)
        path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        return path

    def _figure(self) -> Any:
        """The picture as a matplotlib figure."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "an image needs the package matplotlib; run `pip install 'hooked-jaxlens[plot]'`, or save .html"
            ) from error
        drawings = self._drawings()
        widths, heights = zip(*(drawing._image_size() for drawing in drawings), strict=True)
        figure = Figure(figsize=(max(widths), sum(heights)), dpi=150, layout="compressed")
        subfigures = figure.subfigures(len(drawings), 1, height_ratios=heights, squeeze=False)[:, 0]
        for drawing, subfigure in zip(drawings, subfigures, strict=True):
            title = textwrap.fill(drawing.title, int(max(widths) * TITLE_CHARACTERS))
            subfigure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", parse_math=False)
            drawing._draw(subfigure)
        return figure


class Drawing(Picture):
    """A picture with a single figure. Its `kind` selects the function in page/page.js that draws it."""

    def _drawings(self) -> tuple["Drawing", ...]:
        return (self,)

    @abc.abstractmethod
    def _page_data(self) -> dict[str, Any]:
        """The JSON that the page draws, with rounded numbers."""

    @abc.abstractmethod
    def _page_height(self) -> int:
        """The approximate height on a page in pixels, without the title."""

    @abc.abstractmethod
    def _draw(self, figure: Any) -> None:
        """Draws the picture, without the title, on a matplotlib figure."""

    @abc.abstractmethod
    def _image_size(self) -> tuple[float, float]:
        """The width and height of the image in inches."""


class Page(Picture):
    """Several pictures, one below the other."""

    kind = "page"

    def __init__(self, pictures: tuple[Picture, ...], title: str):
        self.pictures, self.title = pictures, title

    @property
    def data(self) -> dict[str, Any]:
        return {"pictures": [{"title": item.title, "kind": item.kind, **item.data} for item in self.pictures]}

    def _drawings(self) -> tuple[Drawing, ...]:
        return tuple(drawing for picture in self.pictures for drawing in picture._drawings())

    def _text_lines(self, width: int, ansi: bool) -> list[str]:
        return [line for picture in self.pictures for line in ("", *picture.text(width, ansi).split("\n"))]


def together(first: Picture, *more: Picture, title: str = "") -> Page:
    """Combines pictures into a single picture, one below the other.

    Example:
        >>> from jaxlens import plot
        >>> both = together(plot.bars([1.0, 2.0]), plot.heatmap([[1.0]]), title="Two")
        >>> len(both.data["pictures"])
        2
    """
    pictures = (first, *more)
    return Page(pictures, title or " · ".join(picture.title for picture in pictures))


# --- HTML

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
    """A figure: its title, an empty element for the drawing, its text form for screen readers, and its JSON."""
    return (
        f'<figure data-kind="{drawing.kind}">\n<figcaption>{_escape(drawing.title)}</figcaption>\n'
        '<div class="drawing"></div>\n'
        f"<details open><summary>As text</summary><pre>{_escape(drawing.text(TEXT_WIDTH, False))}</pre></details>\n"
        f'<script type="application/json">{_script_json(drawing._page_data())}</script>\n</figure>'
    )


def _escape(text: str) -> str:
    """Text as HTML. Characters that UTF-8 cannot encode become backslash escapes."""
    return html.escape(text.encode("utf-8", "backslashreplace").decode())


def _script_json(data: dict[str, Any]) -> str:
    """JSON for a script element. Characters of HTML are escaped, so that no token can close the element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _page_file(name: str) -> str:
    return resources.files(__package__).joinpath("page", name).read_text(encoding="utf-8")


def _plain(value: Any) -> Any:
    """Replaces arrays with nested lists, and numbers that are not finite with None."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
