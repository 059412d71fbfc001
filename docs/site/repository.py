"""Adds pages of the repository that lie outside of docs/ to the site, and changes links between files to fit the site.

A link to a file that is not in the site, such as a Python file, becomes its path as text.
"""

import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "conversion/README.md", "conversion/RESULTS.md"
)  # fmt: skip
"""Files outside of docs/, by their path in the repository."""

LINK = re.compile(r"(!?)\[([^][]+)\]\((?!\w+:|#)([^()\s#]+)(#[^()\s]*)?\)")


def address(path: str) -> str:
    """The address in the site of a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path.replace(".ipynb", ".md") if path.startswith("notebooks/") else f"repository/{path}"


def source(page: str) -> str:
    """The file of the repository that has this address in the site."""
    if page.startswith("notebooks/"):
        return page.replace(".md", ".ipynb")
    return page.removeprefix("repository/") if page.startswith("repository/") else f"docs/{page}"


def with_links(text: str, file: str, in_site: set[str]) -> str:
    """The text of a file of the repository with the links of the site. `in_site` has the addresses of all its pages."""

    def link(match: re.Match) -> str:
        picture, label, path, anchor = match.groups()
        target = os.path.normpath(os.path.join(os.path.dirname(file), path))
        if address(target) in in_site:
            relative = os.path.relpath(address(target), os.path.dirname(address(file)) or ".")
            return f"{picture}[{label}]({relative}{anchor or ''})"
        return f"`{target}`" if (ROOT / target).is_file() else match[0]

    return LINK.sub(link, text)


def on_files(files, config):
    from mkdocs.structure.files import File

    for path in PAGES:
        files.append(File.generated(config, address(path), content=(ROOT / path).read_text("utf-8")))
    return files


def on_page_markdown(markdown, page, config, files):
    in_site = {file.src_uri for file in files if not file.inclusion.is_excluded()}
    return with_links(markdown, source(page.file.src_uri), in_site)
