"""Checks the types of the examples in docs/, in the basic mode of pyright: `make types`."""

import json
import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parent
FOLDER = DOCS.parent / "build" / "types"
PAGES = (
    "tutorial", "own_question", "faq", "generation", "data_sets", "pictures", "interchange", "coming_from_nnsight",
    "coming_from_hugging_face",
)  # fmt: skip


def main() -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for page in PAGES:
        examples = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text("utf-8"), re.DOTALL)
        (FOLDER / f"{page}.py").write_text("\n".join(examples), "utf-8")
    settings = {"typeCheckingMode": "basic", "include": ["."], "extraPaths": [str(DOCS.parent)]}
    (FOLDER / "pyrightconfig.json").write_text(json.dumps(settings), "utf-8")
    checker = [sys.executable, "-m", "basedpyright", "--level", "error", "--pythonpath", sys.executable]
    return subprocess.run([*checker, "--project", str(FOLDER)]).returncode


if __name__ == "__main__":
    sys.exit(main())
