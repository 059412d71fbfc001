"""Code written for TransformerLens 3 that generates text runs in jaxlens with changed imports.

Their results are known without TransformerLens: greedy tokens are the likeliest ones of whole runs.
"""

import inspect

import jax
import jax.numpy as jnp
import jaxlens.utils as utils
import numpy as np
import pytest
from jaxlens.past_key_value_caching import HookedTransformerKeyValueCache
from support.snippet_worlds import MODELS, SPECIAL, state_dict, word_tokenizer
from test_models import close

from jaxlens import HookedTransformer, HookedTransformerConfig, Tokenizer

PROMPT, SHORT = "When John and Mary went to the shops", "Then Tom"


@pytest.fixture(scope="module", params=list(MODELS))
def model(request) -> HookedTransformer:
    """A model of each kind, whose EOS token is its pad token. It never chooses a special token."""
    model, weights = HookedTransformer(HookedTransformerConfig(**MODELS[request.param])), state_dict(request.param)
    weights["unembed.b_U"][:3] = -100.0
    model.load_and_process_state_dict(weights)
    model.set_tokenizer(Tokenizer(word_tokenizer(), **SPECIAL | {"eos_token": "<pad>"}))
    return model


def greedy(model, tokens, n: int) -> np.ndarray:
    """The tokens [b p+n] whose last n are the likeliest ones after a run of all before them."""
    tokens = np.atleast_2d(np.asarray(tokens))
    for _ in range(n):
        likeliest = np.asarray(model(tokens)[:, -1]).argmax(-1)
        tokens = np.concatenate([tokens, likeliest[:, None]], axis=1)
    return tokens


def text_of(model, tokens) -> str:
    return model.tokenizer.decode(np.asarray(tokens), skip_special_tokens=True)


def test_arguments_have_the_order_and_the_defaults_of_transformerlens(model):
    expected = {
        "input": "", "max_new_tokens": 10, "stop_at_eos": True, "eos_token_id": None, "do_sample": True, "top_k": None,
        "top_p": None, "temperature": 1.0, "freq_penalty": 0.0, "use_past_kv_cache": True, "prepend_bos": None,
        "padding_side": None, "return_type": "input", "verbose": True,
    }  # fmt: skip
    parameters = inspect.signature(model.generate).parameters.values()
    given = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(given.items()) == list(expected.items())
    arguments = (PROMPT, 4, False, None, False, None, None, 1.0, 0.0, True, True, "left", "tokens", False)
    assert (model.generate(*arguments) == greedy(model, model.to_tokens(PROMPT), 4)).all()


@pytest.mark.parametrize("use_past_kv_cache", [True, False])
def test_greedy_text(model, use_past_kv_cache):
    options = {"do_sample": False, "use_past_kv_cache": use_past_kv_cache, "verbose": False}
    expected = greedy(model, model.to_tokens(PROMPT), 6)
    text = model.generate(PROMPT, max_new_tokens=6, **options)
    assert text == text_of(model, expected[0]) and text.startswith(PROMPT)
    assert (model.generate(model.to_tokens(PROMPT), max_new_tokens=6, **options) == expected).all()
    assert text == model.generate(PROMPT, max_new_tokens=6, temperature=0.0, verbose=False)


def test_return_types(model):
    tokens = model.to_tokens(PROMPT)
    expected = greedy(model, tokens, 3)
    options = {"max_new_tokens": 3, "do_sample": False, "verbose": False}
    for given in (PROMPT, tokens):
        assert isinstance(model.generate(given, return_type="str", **options), str)
        new = model.generate(given, return_type="tokens", **options)
        assert isinstance(new, jax.Array) and new.dtype == jnp.int32 and (new == expected).all()
        close(model.generate(given, return_type="embeds", **options), model.W_E[expected])
    assert isinstance(model.generate(PROMPT, return_type="input", **options), str)
    assert (model.generate(tokens, return_type="input", **options) == expected).all()
    embeds = model.generate(model.embed(tokens), **options)
    close(embeds, model.W_E[expected])
    both = model.generate([PROMPT, SHORT], **options)
    assert isinstance(both, list) and all(isinstance(text, str) for text in both)


def test_prompts_of_different_lengths(model):
    options = {"max_new_tokens": 5, "do_sample": False, "verbose": False}
    texts = model.generate([PROMPT, SHORT], **options)
    assert texts == [text_of(model, greedy(model, model.to_tokens(text), 5)[0]) for text in (PROMPT, SHORT)]
    tokens = model.to_tokens([PROMPT, SHORT], padding_side="left")
    new = model.generate(tokens, padding_side="left", **options)
    assert new.shape == (2, tokens.shape[1] + 5) and (new[:, : tokens.shape[1]] == tokens).all()
    assert [text_of(model, row) for row in new] == texts


def test_no_prompt_begins_with_bos(model):
    tokens = model.generate(max_new_tokens=4, do_sample=False, return_type="tokens", verbose=False)
    assert (tokens == greedy(model, [[model.tokenizer.bos_token_id]], 4)).all()
    assert model.generate("", 4, do_sample=False, verbose=False) == text_of(model, tokens[0])


def test_bos_is_optional(model):
    for prepend_bos in (True, False):
        given = model.to_tokens(PROMPT, prepend_bos=prepend_bos)
        options = {"prepend_bos": prepend_bos, "return_type": "tokens", "do_sample": False, "verbose": False}
        assert (model.generate(PROMPT, 3, **options) == greedy(model, given, 3)).all()


def test_eos_ends_a_text(model):
    expected = greedy(model, model.to_tokens(PROMPT), 6)[0]
    length = len(model.to_tokens(PROMPT)[0])
    eos = int(expected[length + 2])
    end = length + expected[length:].tolist().index(eos) + 1
    options = {"do_sample": False, "return_type": "tokens", "verbose": False}
    for ids in (eos, [eos, 1]):
        assert model.generate(PROMPT, 6, eos_token_id=ids, **options)[0].tolist() == expected[:end].tolist()
    assert model.generate(PROMPT, 6, stop_at_eos=False, **options)[0].tolist() == expected.tolist()


def test_a_row_that_stops_without_eos_is_filled_with_padding(model):
    twin = model.with_params(model.params)
    twin.tokenizer = Tokenizer(word_tokenizer(), **SPECIAL | {"eos_token": None})
    twin.tokenizer.eos_token = None
    tokens = [greedy(model, model.to_tokens(text), 6)[0].tolist() for text in (PROMPT, SHORT)]
    first, second = (row[-6:] for row in tokens)
    stop = next(token for token in first if token not in second)
    length = len(tokens[0]) - 6 + first.index(stop) + 1
    options = {"stop_at_eos": False, "do_sample": False, "verbose": False}
    texts = twin.generate([PROMPT, SHORT], 6, stop_strings=model.to_single_str_token(stop), **options)
    assert texts == [text_of(model, tokens[0][:length]), text_of(model, tokens[1])]
    new = twin.generate([PROMPT, SHORT], 6, stop_strings=texts[0].split()[-1], return_type="tokens", **options)
    assert (new[0, length:] == twin.tokenizer.pad_token_id).all()


def test_sampling_from_the_likeliest_token_is_greedy(model):
    expected = model.generate(PROMPT, 5, do_sample=False, verbose=False)
    for options in ({"top_k": 1, "temperature": 0.7}, {"top_p": 1e-6}):
        assert model.generate(PROMPT, 5, **options, verbose=False) == expected
    np.random.seed(0)
    first = model.generate(PROMPT, 5, temperature=5.0, verbose=False)
    np.random.seed(0)
    assert model.generate(PROMPT, 5, temperature=5.0, verbose=False) == first


def halved(value, hook):
    return value * 0.5


@pytest.mark.parametrize("name", ["blocks.1.attn.hook_z", "blocks.0.hook_resid_post", "hook_embed"])
def test_added_hooks_act(model, name):
    tokens, options = model.to_tokens(PROMPT), {"do_sample": False, "verbose": False}
    plain = model.generate(tokens, 5, **options)
    model.add_hook(name, halved)
    added = model.generate(tokens, 5, **options)
    expected = greedy(model, tokens, 5)
    model.reset_hooks()
    assert (added == expected).all()
    with model.hooks(fwd_hooks=[(name, halved)]):
        assert (model.generate(tokens, 5, **options) == expected).all()
    assert (model.generate(tokens, 5, **options) == plain).all()


# --- the demo of KV caches


def test_a_cache_continues_a_run(model):
    tokens = model.to_tokens(PROMPT)
    past_kv_cache = HookedTransformerKeyValueCache.init_cache(model.cfg, model.cfg.device, tokens.shape[0])
    before = model(tokens[:, :-1], past_kv_cache=past_kv_cache)
    after = model(tokens[:, -1:], past_kv_cache=past_kv_cache)
    whole = model(tokens)
    close(before, whole[:, :-1])
    close(after[:, 0], whole[:, -1])


def test_greedy_tokens_by_hand(model):
    tokens = model.to_tokens(PROMPT)
    expected = greedy(model, tokens, 4)
    past_kv_cache = HookedTransformerKeyValueCache.init_cache(model.cfg, model.cfg.device, 1)
    logits = model(tokens, past_kv_cache=past_kv_cache)
    for _ in range(4):
        new = utils.sample_logits(logits[:, -1], temperature=0.0)[:, None]
        tokens = jnp.concatenate([tokens, new], axis=-1)
        logits = model(new, past_kv_cache=past_kv_cache)
    assert (tokens == expected).all()


def test_a_frozen_prefix_is_continued_often(model):
    prefix, rest = "When John and Mary went to", ["the shops", "the store"]
    past_kv_cache = HookedTransformerKeyValueCache.init_cache(model.cfg, model.cfg.device, 1)
    model(prefix, past_kv_cache=past_kv_cache)
    past_kv_cache.freeze()
    for text in (" the shops", " the store"):
        logits, cache = model.run_with_cache(text, prepend_bos=False, past_kv_cache=past_kv_cache)
        close(logits, model(prefix + text)[:, -2:])
        assert cache["resid_post", 0].shape[1] == 2
    both = HookedTransformerKeyValueCache.init_cache(model.cfg, model.cfg.device, 2)
    model([prefix] * 2, past_kv_cache=both)
    new = model.to_tokens([f" {text}" for text in rest], prepend_bos=False)
    close(model(new, past_kv_cache=both), model([f"{prefix} {text}" for text in rest])[:, -2:])
    assert both[0].past_keys.shape == (2, 9, model.cfg.n_key_value_heads, model.cfg.d_head)


def test_rows_of_different_lengths_in_a_cache(model):
    past_kv_cache = HookedTransformerKeyValueCache.init_cache(model.cfg, model.cfg.device, 2)
    tokens = model.to_tokens([PROMPT, SHORT], padding_side="left")
    logits = model(tokens, past_kv_cache=past_kv_cache, padding_side="left")
    assert (past_kv_cache.previous_attention_mask == model.tokenizer.attention_mask(tokens, True, "left")).all()
    new = jnp.argmax(logits[:, -1:], axis=-1)
    after = model(new, past_kv_cache=past_kv_cache)
    for row, text in enumerate((PROMPT, SHORT)):
        alone = jnp.concatenate([model.to_tokens(text), new[row : row + 1]], axis=1)
        close(after[row, 0], model(alone)[0, -1])
