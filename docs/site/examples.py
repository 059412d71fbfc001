"""Shows the examples of docstrings as code: mkdocstrings knows them by the heading "Examples:", not "Example:"."""

import re

import griffe


class Examples(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
