"""Code written for TransformerLens 3 runs in jaxlens with changed imports, and gives the same values.

The snippets are in tests/snippets. Their values in TransformerLens 3.5.1 are in transformerlens_snippets.npz.
"""

import functools
import json

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import BEYOND_VERSION_3
from support.snippet_worlds import (
    MODELS,
    PAGE,
    REFERENCE,
    SPECIAL,
    digest,
    names_for,
    page,
    run,
    snippets,
    state_dict,
    word_tokenizer,
)

from jaxlens import HookedTransformer, HookedTransformerConfig, HookError, Tokenizer
from jaxlens.hooks import table

LIBRARIES = {"np": np, "jax": jax, "jnp": jnp, "einops": einops, "partial": functools.partial}


@pytest.fixture(scope="module", autouse=True)
def hook_points_of_version_3():
    """Leaves out the hook points that version 3 does not have, so that names and counts of activations are equal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "BLOCK_SITES", tuple(s for s in table.BLOCK_SITES if s.name not in BEYOND_VERSION_3))
        table.sites.cache_clear()
        yield
    table.sites.cache_clear()


@functools.cache
def loaded(name: str, state: str) -> HookedTransformer:
    model = HookedTransformer(HookedTransformerConfig(**MODELS[name]))
    names = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
    passes = dict.fromkeys(names, state == "processed")
    model.load_and_process_state_dict(state_dict(name), **passes)
    model.set_tokenizer(Tokenizer(word_tokenizer(), **SPECIAL))
    return model


@functools.cache
def reference() -> dict[str, tuple[object, list[np.ndarray]]]:
    """The stored values and the numbers of their arrays, by snippet and model."""
    with np.load(REFERENCE) as stored:
        index = json.loads(stored["index"].tobytes())
        arrays = np.split(stored["numbers"], np.cumsum(stored["lengths"])[:-1])
    values, start = {}, 0
    for key, value in index.items():
        n_arrays = json.dumps(value).count('"array":')
        values[key] = value, arrays[start : start + n_arrays]
        start += n_arrays
    return values


CASES = [
    pytest.param(
        snippet, name, state, id=f"{snippet.theme}: {snippet.title} [{name} {state}]",
        marks=[pytest.mark.slow] if (number - other) % len(snippet.where) else [],
    )
    for number, snippet in enumerate(snippets())
    for other, (name, state) in enumerate(snippet.where)
]  # fmt: skip
"""Every snippet on its models. `make test` runs it on one of them, in turn."""


def names_of(name: str, state: str):
    twin = loaded(name, state).with_params(loaded(name, state).params)
    twin.clear_contexts()
    return names_for(LIBRARIES, twin, jnp.asarray)


@pytest.mark.parametrize(("snippet", "name", "state"), CASES)
def test_a_snippet_gives_the_value_of_transformerlens(snippet, name, state):
    names = names_of(name, state)
    result = digest(run(snippet.after, names))
    if snippet.definition:
        check_equal(result, digest(run(snippet.definition, names)))
    else:
        check_equal(result, reference()[f"{snippet.theme}: {snippet.title} [{name} {state}]"])


def check_equal(result, expected) -> None:
    """The structures are equal, and the numbers agree within 1e-5 of the largest."""
    assert result[0] == expected[0]
    for actual, desired in zip(result[1], expected[1], strict=True):
        assert np.isinf(actual).tolist() == np.isinf(desired).tolist()
        finite = np.isfinite(desired)
        largest = np.abs(desired[finite]).max(initial=0.0)
        np.testing.assert_allclose(actual[finite], desired[finite], rtol=0, atol=1e-5 * max(largest, 1e-30))


IN_PLACE = [snippet for snippet in snippets() if "in_place" in snippet.marks]


@pytest.mark.parametrize("snippet", IN_PLACE, ids=lambda snippet: snippet.title)
def test_an_edit_in_place_raises_an_error_that_shows_the_form_to_use(snippet):
    with pytest.raises((TypeError, HookError)) as raised:
        run(snippet.before.replace("transformer_lens", "jaxlens"), names_of("gpt2", "processed"))
    message = "\n".join([str(raised.value), *getattr(raised.value, "__notes__", ())])
    assert 'the hook on "blocks.' in message
    assert "return value.at[:, 0].set(new)" in message


def test_the_page_is_current():
    assert PAGE.read_text("utf-8") == page()


def test_there_are_many_snippets_with_unique_titles():
    names = [(snippet.theme, snippet.title) for snippet in snippets()]
    assert len(names) == len(set(names)) > 200
