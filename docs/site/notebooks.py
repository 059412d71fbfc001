"""Adds the notebooks of the repository to the site, with their outputs. The site can be built without notebooks."""

import html
import json
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "notebooks"


def notebooks() -> list[Path]:
    return sorted(FOLDER.glob("*.ipynb"))


def joined(text: str | list[str]) -> str:
    """The text of a field, which notebooks store as a string or as a list of lines."""
    return text if isinstance(text, str) else "".join(text)


def fenced(text: str, language: str = "text") -> str:
    return f"````{language}\n{text.rstrip()}\n````"


def shown(output: dict) -> str:
    """An output as Markdown: a picture if there is one, else text."""
    data = output.get("data", {})
    if "text/html" in data:  # on one line, because Markdown ends a block of HTML at an empty line
        return "<div>" + joined(data["text/html"]).replace("\n", "&#10;") + "</div>"
    if "image/png" in data:
        return f'<img alt="" src="data:image/png;base64,{"".join(joined(data["image/png"]).split())}">'
    if "image/svg+xml" in data:
        return f'<img alt="" src="data:image/svg+xml;utf8,{html.escape(joined(data["image/svg+xml"]))}">'
    text = data.get("text/plain") or output.get("text") or output.get("traceback") or ""
    return fenced(joined(text))


def cells(notebook: dict) -> Iterable[str]:
    for cell in notebook["cells"]:
        source = joined(cell["source"])
        if cell["cell_type"] == "markdown":
            yield source
        elif cell["cell_type"] == "code" and source.strip():
            yield fenced(source, "python")
            yield from (shown(output) for output in cell["outputs"] if output.get("name") != "stderr")


def page(path: Path) -> str:
    """The notebook as Markdown."""
    return "\n\n".join(cells(json.loads(path.read_text("utf-8")))) + "\n"


def on_config(config):
    if notebooks():
        config.nav.append({"Notebooks": [f"notebooks/{path.stem}.md" for path in notebooks()]})
    return config


def on_files(files, config):
    from mkdocs.structure.files import File

    for path in notebooks():
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page(path)))
    return files
