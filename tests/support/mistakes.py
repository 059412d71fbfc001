"""Mistakes and what they are answered with: cases for the tests, and the search for errors without one."""

import ast
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import jaxlens

PACKAGE = Path(jaxlens.__file__).parent


class Case(NamedTuple):
    """A mistake, and what it is answered with: the type of the error and the part of its text that tells."""

    mistake: Callable
    error: type[Exception]
    text: str

    def check(self) -> None:
        """It is answered so."""
        error = answer(self)
        assert error is not None, "nothing was raised"
        assert type(error) is self.error, repr(error)
        assert self.text in str(error)


@functools.cache
def answer(case: Case) -> Exception | None:
    """The error that a case is answered with."""
    try:
        case.mistake()
    except Exception as error:
        return error
    return None


def lines_of(error: BaseException | None) -> set[tuple[str, int]]:
    """Every line of source that an error and those before it went through."""
    found: set[tuple[str, int]] = set()
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            found.add((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
    return found


def without_answer(files: Iterable[Path], errors: Iterable[BaseException | None]) -> list[str]:
    """The statements `raise X(...)` of some files that none of these errors came from, as `file:line: statement`."""
    passed = set().union(*map(lines_of, errors))
    found = []
    for path in files:
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            lines = range(node.lineno, node.end_lineno + 1) if isinstance(node, ast.Raise) else ()
            if isinstance(getattr(node, "exc", None), ast.Call) and not any((str(path), at) in passed for at in lines):
                where = path.relative_to(PACKAGE)
                found.append(f"{where}:{node.lineno}: {text.splitlines()[node.lineno - 1].strip()}")
    return found


CASES_OF = {
    "test_adapters": ("checkpoints/adapters/", "model/adapter_methods.py"),
    "test_batch": ("batch/",),
    "test_harvest": ("batch/harvests/",),
    "test_lm_eval": ("batch/lm_eval.py",),
    "test_checkpoint": ("checkpoints/converter.py",),
    "test_checkpoint_heads": ("checkpoints/heads.py", "model/label_methods.py"),
    "test_cli": ("cli/",),
    "test_compat": (
        "transformer_lens/", "_jax/", "model/arguments.py", "model/hook_methods.py",
        "model/module_views.py", "model/torch_methods.py",
    ),
    "test_conversion": ("model/verify.py",),
    "test_convert": ("checkpoints/",),
    "test_decomposition": ("model/cache/",),
    "test_devices": ("sharding.py",),
    "test_errors": ("model/cache/activation_cache.py",),
    "test_evals": ("training/evals.py", "training/mmlu.py"),
    "test_factored_matrix": ("weights/factored_matrix.py",),
    "test_generate_errors": (
        "hooks/steer.py", "model/generation/", "nn/kv_cache.py", "transformer_lens/cache.py",
    ),
    "test_gradient_errors": ("analysis/attribution/",),
    "test_habits": ("model/own_config.py", "transformer_lens/weight_processing.py"),
    "test_heads": ("analysis/heads.py", "analysis/prompt_test.py", "analysis/svd.py"),
    "test_logit_attribution": ("analysis/logit_attribution.py",),
    "test_patching": (
        "analysis/inputs.py", "analysis/interventions/", "analysis/labelled_array.py",
        "transformer_lens/patching.py",
    ),
    "test_plot": ("plot/",),
    "test_published": (
        "checkpoints/find.py", "checkpoints/published/", "checkpoints/rules/toy_config.py", "checkpoints/toys.py",
        "model/pretrained.py",
    ),
    "test_quantized": ("checkpoints/quantized/",),
    "test_root_module": ("hooks/point.py", "hooks/recording.py", "hooks/root_module.py"),
    "test_tokenizer": ("text/",),
    "test_utils": ("training/data.py", "model/generation/sampling.py", "transformer_lens/utils.py", "errors.py"),
}  # fmt: skip
"""The test file that has the cases of each part of the package. Cases of the rest are in `test_errors`."""


def files_of(test: str) -> list[Path]:
    """The files of the package whose errors a test file has the cases of: those of the longest matching path."""

    def owner(path: Path) -> str:
        name = path.relative_to(PACKAGE).as_posix()
        matches = [(len(part), test) for test, parts in CASES_OF.items() for part in parts if name.startswith(part)]
        return max(matches, default=(0, "test_errors"))[1]

    return [path for path in PACKAGE.rglob("*.py") if owner(path) == test]


def unreached(test: str, cases: Iterable[Case]) -> list[str]:
    """The statements `raise X(...)` of the files of a test that no case reaches."""
    return without_answer(files_of(Path(test).stem), map(answer, cases))
