"""Code written for TransformerLens 3 runs in jaxlens with its imports changed, and gives TransformerLens's numbers.

The snippets are in tests/snippets, their values in TransformerLens 3.5.1 in transformerlens_snippets.npz.
"""

import functools
import json

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from snippet_worlds import (
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

LIBRARIES = {"np": np, "jax": jax, "jnp": jnp, "einops": einops, "partial": functools.partial}


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
    """Every stored value, and its numbers."""
    with np.load(REFERENCE) as stored:
        index = json.loads(stored["index"].tobytes())
        arrays = np.split(stored["numbers"], np.cumsum(stored["lengths"])[:-1])
    found, taken = {}, 0
    for key, value in index.items():
        n_arrays = json.dumps(value).count('"array":')
        found[key] = value, arrays[taken : taken + n_arrays]
        taken += n_arrays
    return found


CASES = [
    pytest.param(snippet, name, state, id=f"{snippet.theme}: {snippet.title} [{name} {state}]")
    for snippet in snippets()
    for name, state in snippet.where
]


def given(name: str, state: str):
    twin = loaded(name, state).with_params(loaded(name, state).params)
    twin.clear_contexts()
    return names_for(LIBRARIES, twin, jnp.asarray)


@pytest.mark.parametrize(("snippet", "name", "state"), CASES)
def test_it_gives_what_transformerlens_gives(snippet, name, state):
    names = given(name, state)
    found = digest(run(snippet.after, names))
    if snippet.definition:
        same(found, digest(run(snippet.definition, names)))
    else:
        same(found, reference()[f"{snippet.theme}: {snippet.title} [{name} {state}]"])


def same(found, wanted) -> None:
    """The same structure, and the same numbers to 1e-5 of the largest."""
    assert found[0] == wanted[0]
    for ours, theirs in zip(found[1], wanted[1], strict=True):
        assert np.isinf(ours).tolist() == np.isinf(theirs).tolist()
        finite = np.isfinite(theirs)
        largest = np.abs(theirs[finite]).max(initial=0.0)
        np.testing.assert_allclose(ours[finite], theirs[finite], rtol=0, atol=1e-5 * max(largest, 1e-30))


@pytest.mark.parametrize("snippet", [one for one in snippets() if "in_place" in one.marks], ids=lambda one: one.title)
def test_an_edit_in_place_is_refused_with_the_form_to_write_instead(snippet):
    with pytest.raises((TypeError, HookError)) as raised:
        run(snippet.before.replace("transformer_lens", "jaxlens"), given("gpt2", "processed"))
    said = "\n".join([str(raised.value), *getattr(raised.value, "__notes__", ())])
    assert 'the hook on "blocks.' in said
    assert "return value.at[:, 0].set(new)" in said


def test_the_page_is_current():
    assert PAGE.read_text("utf-8") == page()


def test_there_are_many_snippets_with_names_of_their_own():
    names = [(snippet.theme, snippet.title) for snippet in snippets()]
    assert len(names) == len(set(names)) > 200
