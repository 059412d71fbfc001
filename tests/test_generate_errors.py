"""Mistakes in calls that generate text or continue a KV cache, and what they are answered with."""

import functools

import jax
import numpy as np
import pytest
from support.mistakes import CASES_OF, Case, unreached
from support.models import CONFIGS, model, tokens
from test_generate import speaking

import jaxlens
from jaxlens import HookedTransformer, HookError, steer
from jaxlens.transformer_lens.cache import get_pos_offset

DIRECTION = np.ones(14, np.float32)


def generate(given=None, **options):
    options = {"max_new_tokens": 3, "stop_at_eos": False, "verbose": False} | options
    return model("llama").generate(tokens(2, 5) if given is None else given, **options)


def stream(**options):
    return model("llama").generate_stream(tokens(1, 3), 2, stop_at_eos=False, **options)


@functools.cache
def labelling() -> HookedTransformer:
    return HookedTransformer(CONFIGS["mistral"].replace(output_head="token_labels", d_vocab_out=3))


def half_full():
    """A cache of two rows with 10 of 12 slots in use."""
    return model("llama").decode(tokens(2, 10), model("llama").init_kv_cache(2, 12))[1]


def decode(given, cache=None, **options):
    return model("llama").decode(given, half_full() if cache is None else cache, **options)


def used_up():
    cache = half_full()
    decode(tokens(2, 1), cache)
    decode(tokens(2, 1), cache)


def with_past(**options):
    past = jaxlens.TransformerLensKeyValueCache.init_cache(model("llama").cfg)
    return model("llama").run_with_cache(tokens(1, 3), **({"past_kv_cache": past} | options))


def traced_past():
    past = jaxlens.TransformerLensKeyValueCache.init_cache(model("llama").cfg)
    jax.jit(lambda of: of(tokens(1, 3), past_kv_cache=past))(model("llama"))


def of_another_model():
    return generate(past_kv_cache=model("gpt2").init_kv_cache(2, 8))


def embeddings_before():
    of = model("long")
    past = jaxlens.TransformerLensKeyValueCache.init_cache(of.cfg)
    of(of.embed(tokens(1, 5)), start_at_layer=0, past_kv_cache=past)
    of.generate(tokens(1, 1), 9, past_kv_cache=past, stop_at_eos=False)


GENERATION = {
    "labels": Case(lambda: labelling().generate([[1, 2]]), ValueError, "scores labels; it does not predict tokens"),
    "too long": Case(lambda: generate(max_new_tokens=28), ValueError, "at most 27 new tokens fit"),
    "no new tokens": Case(lambda: generate(max_new_tokens=0), ValueError, "max_new_tokens is 0; expected a positive"),
    "no rows": Case(lambda: generate(num_return_sequences=0), ValueError, "num_return_sequences is 0"),
    "no columns": Case(lambda: generate(prefill_chunk=-1), ValueError, "prefill_chunk is -1"),
    "cold": Case(lambda: generate(temperature=-1), ValueError, "temperature is -1"),
    "no temperature": Case(lambda: generate(temperature=float("nan")), ValueError, "temperature is nan"),
    "half a token": Case(lambda: generate(top_k=2.5), ValueError, "top_k is 2.5"),
    "a seed": Case(lambda: generate(seed="abc"), TypeError, "the seed or key is a str"),
    "two limits": Case(lambda: generate(top_k=3, top_p=0.5), ValueError, "cannot be combined"),
    "two seeds": Case(lambda: generate(seed=1, key=jax.random.key(0)), ValueError, "seed and key are both given"),
    "an end outside": Case(
        lambda: generate(stop_at_eos=True, eos_token_id=[3, 99]), ValueError, "expected tokens from 0 to 36"
    ),
    "no ends": Case(lambda: generate(stop_at_eos=True, eos_token_id=[]), ValueError, "eos_token_id is []; expected"),
    "a text as the end": Case(lambda: generate(eos_token_id="</s>"), ValueError, "eos_token_id is '</s>'; expected"),
    "no end": Case(
        lambda: generate(stop_at_eos=True), ValueError, "stop_at_eos=True needs an EOS token, but the model has no"
    ),
    "an empty stop": Case(lambda: generate(stop_strings=["", "x"]), ValueError, "expected strings that are not empty"),
    "a number as stop": Case(lambda: generate(stop_strings=5), ValueError, "stop_strings is 5; expected strings"),
    "a penalty": Case(lambda: generate(freq_penalty=float("nan")), ValueError, "freq_penalty is nan"),
    "stops without text": Case(lambda: generate(stop_strings="x"), ValueError, "this model has no tokenizer"),
    "text without text": Case(lambda: generate(return_type="str"), ValueError, "this model has no tokenizer"),
    "another type": Case(lambda: generate(return_type="text"), ValueError, "return_type is 'text'"),
    "a filter alone": Case(lambda: generate(names_filter="hook_embed"), ValueError, "of return_cache=True, which is"),
    "an empty prompt": Case(lambda: generate(np.zeros((1, 0), int)), ValueError, "the input is empty"),
    "embeddings": Case(
        lambda: model("long").generate(model("long").embed(tokens(1, 5)), 9, stop_at_eos=False), ValueError,
        "the prompt is embeddings, but the rotary frequencies of this model depend on the length",
    ),
    "embeddings before": Case(embeddings_before, ValueError, "past_kv_cache holds embeddings, but the rotary"),
    "embeddings again": Case(
        lambda: model("llama").generate(model("llama").embed(tokens(1, 5)), stop_at_eos=False, use_past_kv_cache=False),
        ValueError, "use_past_kv_cache=False runs all tokens again in every step, but the prompt is embeddings",
    ),
    "a past again": Case(
        lambda: generate(past_kv_cache=half_full(), use_past_kv_cache=False), ValueError, "holds a part of the text"
    ),
    "a row of padding": Case(
        lambda: generate(attention_mask=np.array([[1] * 5, [0] * 5])), ValueError, "row 1 of the prompt has no token"
    ),
    "another model": Case(of_another_model, ValueError, "another model or batch"),
    "no cache": Case(lambda: generate(past_kv_cache={}), TypeError, "past_kv_cache is a dict; expected a KVCache"),
    "inside jit": Case(
        lambda: jax.jit(lambda of: of.generate(tokens(1, 3), verbose=False))(model("llama")), ValueError,
        "generate compiles its own loop, so call it outside of jit",
    ),
    "an argument": Case(lambda: generate(max_length=7), TypeError, "there is no argument 'max_length'"),
    "criteria": Case(lambda: generate(stopping_criteria=print), ValueError, "use stop_strings="),
    "beams": Case(lambda: generate(num_beams=4), ValueError, "no beam search"),
    "an empty stream": Case(
        lambda: model("llama").generate_stream(tokens(1, 3), 2, 0), ValueError, "max_tokens_per_yield is 0"
    ),
    "an argument of a stream": Case(lambda: stream(max_length=7), TypeError, "there is no argument 'max_length'"),
    "beams of a stream": Case(lambda: stream(num_beams=2), ValueError, "no beam search"),
    "logits of a stream": Case(lambda: stream(output_logits=True), ValueError, "output_logits is True, but a stream"),
    "a cache of a stream": Case(lambda: stream(return_cache=True), ValueError, "return_cache is True, but a stream"),
    "names for a stream": Case(lambda: stream(names_filter="hook_q"), ValueError, "names_filter is 'hook_q', but a"),
    "a side": Case(
        lambda: speaking().generate("the cat", 3, padding_side="up"), ValueError, "padding_side is 'up'; expected"
    ),
    "a hook": Case(lambda: generate(fwd_hooks=[("hook_nothing", print)]), HookError, "hook_nothing"),
    "a name": Case(lambda: generate(return_cache=True, names_filter="hook_nothing"), HookError, "hook_nothing"),
    "a layer": Case(lambda: generate(fwd_hooks=steer(DIRECTION, 17)), HookError, "17"),
    "positions": Case(lambda: steer(DIRECTION, 1, positions="first"), ValueError, "positions is 'first'"),
    "a negative position": Case(lambda: steer(DIRECTION, 1, positions=[3, -1]), ValueError, "positions is [3, -1]"),
    "no positions": Case(lambda: steer(DIRECTION, 1, positions=[]), ValueError, "positions is []"),
    "a negative row": Case(lambda: steer(DIRECTION, 1, rows=[-1]), ValueError, "rows is [-1]"),
    "a pattern": Case(lambda: steer(DIRECTION, 1, site="attn.hook_pattern"), ValueError, "have heads before positions"),
    "no layers": Case(lambda: steer(DIRECTION, []), ValueError, "layers is empty"),
    "no number": Case(lambda: steer(DIRECTION, 1, strength=np.inf), ValueError, "strength is inf; expected finite"),
}  # fmt: skip



def embeddings_then_tokens():
    of = model("long")
    past = jaxlens.TransformerLensKeyValueCache.init_cache(of.cfg)
    of(of.embed(tokens(1, 6)), start_at_layer=0, past_kv_cache=past)
    of(tokens(1, 6), past_kv_cache=past)


CACHES = {
    "embeddings": Case(embeddings_then_tokens, ValueError, "the cache holds embeddings, but the rotary frequencies"),
    "beyond the context": Case(
        lambda: decode(tokens(2, 23), half_full().with_room(64)), ValueError, "10 and 23 more tokens are more than"
    ),
    "no times": Case(lambda: half_full().repeat(0), ValueError, "n is 0; expected a positive integer"),
    "a part of a column": Case(lambda: decode(tokens(2, 1), prefill_chunk=2.5), ValueError, "prefill_chunk is 2.5"),
    "no rows taken": Case(lambda: half_full().take([]), IndexError, "rows is []; expected at least one number"),
    "no room": Case(lambda: decode(tokens(2, 5)), ValueError, "no room for 5 more tokens: 10 of its 12 slots"),
    "another batch": Case(lambda: decode(tokens(3, 1)), ValueError, "another model or batch"),
    "another model": Case(lambda: model("gpt2").decode(tokens(2, 1), half_full()), ValueError, "another model or"),
    "used up": Case(used_up, ValueError, "used up by a call of decode"),
    "no columns": Case(lambda: decode(tokens(2, 1), prefill_chunk=0), ValueError, "prefill_chunk is 0"),
    "too many slots": Case(lambda: model("llama").init_kv_cache(1, 99), ValueError, "more than the model's n_ctx = 32"),
    "no rows": Case(lambda: model("llama").init_kv_cache(0), ValueError, "batch_size is 0"),
    "no such row": Case(lambda: half_full().take([2]), IndexError, "index 2 is out of bounds"),
    "a later part": Case(lambda: half_full()[2:], TypeError, "a cache is cut as cache[:length]"),
    "a dict": Case(lambda: decode(tokens(2, 1), {}), TypeError, "cache is a dict; expected a KVCache"),
    "no cache": Case(lambda: with_past(past_kv_cache={}), TypeError, "pass a KVCache to model.decode"),
    "some layers": Case(lambda: with_past(stop_at_layer=2), ValueError, "must cover all layers"),
    "gradients": Case(lambda: with_past(incl_bwd=True, return_type="loss"), ValueError, "differentiate model.decode"),
    "traced": Case(traced_past, ValueError, "which a compiled function cannot do; use model.decode"),
    "rows of an offset": Case(
        lambda: get_pos_offset(jaxlens.TransformerLensKeyValueCache.init_cache(model("llama").cfg), 2),
        ValueError, "the cache has 1 rows; expected 2",
    ),
    "a name of the module": Case(lambda: jaxlens.cache.nothing, AttributeError, "nothing"),
}  # fmt: skip

CASES = {**{f"generation: {name}": case for name, case in GENERATION.items()},
         **{f"caches: {name}": case for name, case in CACHES.items()}}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_mistake_is_answered_with_what_was_wanted(case):
    case.check()


def test_every_error_of_these_files_is_reached_by_a_case():
    assert "test_generate_errors" in CASES_OF
    assert unreached(__file__, CASES.values()) == []
