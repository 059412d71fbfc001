"""Runs that continue a KV cache: they equal runs of the whole text, for every kind of layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import CONFIGS, model, tokens
from support.programs import most_compiled
from test_models import close
from test_text import word_tokenizer

import jaxlens
from jaxlens import HookedTransformer, KVCache
from jaxlens.config import Dynamic, LongRope, Rotary
from jaxlens.errors import HookError
from jaxlens.nn.attention import FEW_TOKENS, by_each_head
from jaxlens.nn.scores import dot_products

LENGTH = 21
NAMES = tuple(CONFIGS)


def padded(batch: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and a mask with padding at the beginning of row 1, and within row 2."""
    mask = np.ones((batch, LENGTH), bool)
    mask[1, :4], mask[2, 7:9] = False, False
    return np.asarray(tokens(batch, LENGTH)), mask


def in_pieces(of: HookedTransformer, text, mask, ends, **options) -> tuple[list[np.ndarray], KVCache]:
    cache, start, logits = of.init_kv_cache(len(text), 24), 0, []
    for end in ends:
        new, cache = of.decode(text[:, start:end], cache, mask[:, start:end], **options)
        logits.append(np.asarray(new))
        start = end
    return logits, cache


@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_decoding_in_pieces_equals_one_run(name, n_rows):
    of, (text, mask) = model(name), padded(3)
    text, mask = text[-n_rows:], mask[-n_rows:]
    ends = (3, 12, 13, 20, 21)
    logits, cache = in_pieces(of, text, mask, ends)
    assert cache.length == LENGTH
    assert cache.n_tokens.tolist() == mask.sum(-1).tolist()
    start = 0
    for new, end in zip(logits, ends, strict=True):
        # the frequencies of some models depend on the length so far, so each piece is compared with a run up to it
        whole = np.asarray(of(text[:, :end], attention_mask=mask[:, :end]))[:, start:]
        close(new[mask[:, start:end]], whole[mask[:, start:end]])
        start = end


@pytest.mark.parametrize("name", ["llama", "long", "gemma", "moe"])
def test_decoding_inside_jit(name):
    of, (text, mask) = model(name), padded()
    step = jax.jit(lambda of, text, cache, mask: of.decode(text, cache, mask))
    cache = of.init_kv_cache(3, LENGTH)
    _, cache = step(of, text[:, :11], cache, mask[:, :11])
    for end in range(12, 15):
        logits, cache = step(of, text[:, end - 1 : end], cache, mask[:, end - 1 : end])
        close(logits[:, 0], of(text[:, :end], attention_mask=mask[:, :end])[:, -1])
    _, cache = step(of, text[:, 14:20], cache, mask[:, 14:20])
    assert np.isnan(step(of, text[:, :5], cache, mask[:, :5])[0]).all()  # only one slot is free


@pytest.mark.parametrize("name", ["gpt2", "mistral", "long", "bloom", "latent"])
def test_a_prompt_in_chunks(name):
    of, (text, mask) = model(name), padded()
    whole, expected = of.decode(text, of.init_kv_cache(3, 24), mask)
    logits, cache = of.decode(text, of.init_kv_cache(3, 24), mask, prefill_chunk=5)
    close(logits[mask], whole[mask])
    assert int(cache.slots.step) == 1
    in_use = np.asarray(expected.slots.sources) >= 0
    for new, old in ((cache.keys, expected.keys), (cache.values, expected.values)):
        close(*(np.moveaxis(np.asarray(rows), 3, 2)[:, in_use] for rows in (new, old)))


def test_long_pieces_are_computed_in_blocks():
    blocks = HookedTransformer(CONFIGS["mistral"].replace(attn_block=4), params=model("mistral").params)
    text, mask = padded()
    for new, whole in zip(in_pieces(blocks, text, mask, (10, 21))[0], (slice(0, 10), slice(10, 21)), strict=True):
        close(new[mask[:, whole]], model("mistral")(text, attention_mask=mask)[:, whole][mask[:, whole]])


def test_one_prefix_and_many_continuations():
    of, text = model("llama"), np.asarray(tokens(2, 12))
    _, prefix = of.decode(text[:, :8], of.init_kv_cache(2, 16))
    four = prefix.repeat(2)
    logits, _ = of.decode(np.asarray(tokens(4, 3, seed=1)), four)
    whole = np.concatenate([text[[0, 0, 1, 1], :8], tokens(4, 3, seed=1)], axis=1)
    close(logits, of(whole)[:, 8:])
    second, _ = of.decode(text[1:, 8:], prefix.take([1]))
    close(second, of(text[1:])[:, 8:])
    masked, _ = of.decode(text[1:, 8:], prefix.take(np.array([False, True])))
    close(masked, second)
    shorter = prefix[:5]
    assert (shorter.length, shorter.n_tokens.tolist()) == (5, [5, 5])
    close(of.decode(text[:, 5:8], shorter)[0], of(text[:, :8])[:, 5:])
    assert prefix[:0].slots.is_new
    close(of.decode(text[:, 8:], prefix)[0], of(text)[:, 8:])  # the prefix itself was not used up


def test_text_continues_without_a_second_bos():
    tokenizer = jaxlens.Tokenizer(word_tokenizer(), bos_token="<s>")
    of = HookedTransformer(CONFIGS["llama"], tokenizer, params=model("llama").params)
    first, then = of.to_tokens("the cat").shape[1], of.to_tokens("sat", prepend_bos=False).shape[1]
    _, cache = of.decode("the cat", of.init_kv_cache(1, 16))
    _, longer = of.decode("sat", cache)
    assert longer.length == first + then


def test_a_cache_that_was_used_up_is_refused():
    of, text = model("llama"), tokens(2, 5)
    _, cache = of.decode(text, of.init_kv_cache(2, 16))
    kept = cache.copy()
    of.decode(text, cache)
    with pytest.raises(ValueError, match=r"used up by a call of decode.*cache\.copy\(\)"):
        of.decode(text, cache)
    close(of.decode(text, kept)[0], of(np.concatenate([text, text], axis=1))[:, 5:])
    methods = (KVCache.copy, lambda c: c[:2], lambda c: c.take([0]), lambda c: c.repeat(2), lambda c: c.with_room(30))
    for method in methods:
        with pytest.raises(ValueError, match="used up by a call of decode"):
            method(cache)
    assert repr(cache) == "KVCache(2 rows, used up)"


def test_a_python_hook_that_fails_leaves_the_cache():
    of, text = model("llama"), tokens(2, 5)
    _, cache = of.decode(text, of.init_kv_cache(2, 16))

    def fail(value, hook):
        raise KeyError("a mistake")

    with pytest.raises(KeyError, match="a mistake"):
        of.decode(text, cache, fwd_hooks=[("blocks.2.hook_resid_post", fail)])
    logits, _ = of.decode(text, cache, fwd_hooks=[("blocks.2.hook_resid_post", lambda value, hook: value)])
    close(logits, of(np.concatenate([text, text], axis=1))[:, 5:])
    with pytest.raises(ValueError, match="used up"):
        of.decode(text, cache)


@pytest.mark.parametrize("scaling", [Dynamic(2.0, 8), LongRope((1.0, 2.0), (3.0, 5.0), 8, 1.2)])
def test_a_cut_cache_has_the_frequencies_of_its_length(scaling):
    cfg = CONFIGS["llama"].replace(rotary=Rotary(scaling=scaling))
    of, text = HookedTransformer(cfg, params=model("llama").params), np.asarray(tokens(2, 14))
    _, cache = of.decode(text[:, :12], of.init_kv_cache(2, 32))
    close(of.decode(text[:, 5:7], cache[:5])[0], of(text[:, :7])[:, 5:])
    close(of.decode(text[:, 5:], cache[:5])[0], of(text)[:, 5:])
    cut, options = cache[:5].take([1]), {"do_sample": False, "stop_at_eos": False, "verbose": False}
    expected = of.generate(text[1:, :7], 6, **options)[:, 7:]
    np.testing.assert_array_equal(of.generate(text[1:, 5:7], 6, past_kv_cache=cut, **options)[:, 2:], expected)


@pytest.mark.parametrize("length", [0, 3, -2, 20])
def test_a_cache_is_cut_inside_jit(length):
    of, text = model("llama"), tokens(2, 9)
    _, cache = of.decode(text[:, :7], of.init_kv_cache(2, 16))
    continued = jax.jit(lambda cache, n: of.decode(text[:, 7:], cache[:n])[0])
    expected = of.decode(text[:, 7:], cache[:length])[0]
    close(continued(cache, length), expected)
    close(jax.jit(lambda cache: of.decode(text[:, 7:], cache[:length])[0])(cache), expected)


def test_tokens_beyond_the_context_inside_jit():
    of, text = model("llama"), tokens(1, 32)
    _, cache = of.decode(text, of.init_kv_cache(1).with_room(40))
    assert np.isnan(jax.jit(lambda of, cache: of.decode(text[:, :2], cache)[0])(of, cache)).all()


def test_hooks_act_on_new_tokens():
    of, text = model("llama"), np.asarray(tokens(2, 12))
    plain = [("blocks.1.attn.hook_k", lambda k, hook: k * 0.5), ("blocks.2.hook_mlp_out", lambda out, hook: out * 2)]
    data = [(name, jaxlens.hook(scaled, factor=factor)) for (name, _), factor in zip(plain, (0.5, 2.0), strict=True)]
    expected = of.run_with_hooks(text, fwd_hooks=plain)
    for hooks in (plain, data):
        logits, _ = in_pieces(of, text, np.ones(text.shape, bool), (7, 8, 12), fwd_hooks=hooks)
        close(np.concatenate(logits, axis=1), expected)


def scaled(value, hook, factor):
    return value * factor


def test_positions_and_step_of_hooks():
    of, seen = model("llama"), []

    def note(value, hook):
        seen.append((hook.name, np.asarray(hook.positions).tolist(), int(hook.step), value.shape[:2]))

    text, mask = np.asarray(tokens(2, 6)), np.ones((2, 6), bool)
    mask[1, :2] = False
    names = ("hook_embed", "blocks.1.hook_resid_pre", "unembed.hook_out")
    _, cache = of.decode(text[:, :4], of.init_kv_cache(2, 16), mask[:, :4], fwd_hooks=[(name, note) for name in names])
    _, cache = of.decode(text[:, 4:], cache, mask[:, 4:], fwd_hooks=[(names[1], note)])
    prompt = ([[0, 1, 2, 3], [0, 0, 0, 1]], 0, (2, 4))
    assert seen == [*((name, *prompt) for name in names), (names[1], [[4, 5], [2, 3]], 1, (2, 2))]
    with pytest.raises(HookError, match="known only while a model runs"):
        of.hook_dict[names[1]].positions  # noqa: B018


def test_positions_are_known_in_every_kind_of_run():
    of, text = model("llama"), tokens(2, 6)

    def only_at_2(value, hook):
        return jnp.where((hook.positions == 2)[..., None], 0, value)

    hooks = [("blocks.1.hook_resid_mid", only_at_2)]
    expected = of.run_with_hooks(text, fwd_hooks=[(hooks[0][0], lambda value, hook: value.at[:, 2].set(0))])
    close(of.run_with_hooks(text, fwd_hooks=hooks), expected)
    close(of.run_with_hooks(text, fwd_hooks=[(hooks[0][0], jaxlens.hook(only_at_2))]), expected)
    close(jax.jit(lambda of: of.run_with_hooks(text, fwd_hooks=hooks))(of), expected)


@pytest.mark.parametrize("name", ["llama", "long"])
def test_positions_of_a_cache_after_earlier_tokens(name):
    of, text = model(name), np.asarray(tokens(2, 14))
    for pos_slice in (-1, [0, 2], slice(1, 3)):
        past = jaxlens.HookedTransformerKeyValueCache.init_cache(of.cfg, "cpu", 2)
        of(text[:, :10], past_kv_cache=past)
        _, cache = of.run_with_cache(text[:, 10:], past_kv_cache=past, pos_slice=pos_slice)
        of_new = of.run_with_cache(text)[1]["resid_post", 2][:, 10:]
        close(cache["resid_post", 2], of_new[:, pos_slice] if pos_slice != -1 else of_new[:, -1:])


@pytest.mark.parametrize("name", ["llama", "long", "mistral"])
@pytest.mark.parametrize("n_new", [1, 3, 8])
def test_sources_of_patterns_after_earlier_tokens_are_all_tokens(name, n_new):
    of, text = model(name), np.asarray(tokens(2, 9 + n_new))
    past = jaxlens.HookedTransformerKeyValueCache.init_cache(of.cfg, "cpu", 2)
    of(text[:, :9], past_kv_cache=past)
    _, cache = of.run_with_cache(text[:, 9:], past_kv_cache=past)
    _, whole = of.run_with_cache(text)
    for site in ("pattern", "attn_scores", "z", "resid_post"):
        expected = whole[site, 1][:, :, 9:] if site in ("pattern", "attn_scores") else whole[site, 1][:, 9:]
        values = cache[site, 1], expected
        close(*(jnp.nan_to_num(value, neginf=0) for value in values))


@pytest.mark.parametrize("name", ["llama", "long", "mistral", "gpt2"])
@pytest.mark.parametrize("n_new", [3, 5, 8])
@pytest.mark.parametrize("site", ["pattern", "attn_scores"])
def test_a_python_hook_on_attention_edits_all_slots(name, n_new, site):
    of, text, seen = model(name), np.asarray(tokens(2, 9 + n_new)), []

    def edit(value, hook):
        seen.append(value.shape[2:])
        return value.at[:, 1].multiply(0.3).at[..., 4].multiply(0.5)  # a head, and the source in slot 4

    hooks = [(f"blocks.1.attn.hook_{site}", edit)]
    expected = of.run_with_hooks(text, fwd_hooks=hooks)[:, 9:]
    _, cache = of.decode(text[:, :9], of.init_kv_cache(2, 20), fwd_hooks=hooks)
    close(of.decode(text[:, 9:], cache, fwd_hooks=hooks)[0], expected)
    assert seen == [(9 + n_new, 9 + n_new), (9, 9), (n_new, cache.keys.shape[3])]
    past = jaxlens.HookedTransformerKeyValueCache.init_cache(of.cfg, "cpu", 2)
    of.run_with_hooks(text[:, :9], past_kv_cache=past, fwd_hooks=hooks)
    close(of.run_with_hooks(text[:, 9:], past_kv_cache=past, fwd_hooks=hooks), expected)


def test_gradients_through_a_decode_step():
    of, text = model("llama"), np.asarray(tokens(2, 9))
    _, cache = jax.jit(lambda of, cache: of.decode(text[:, :8], cache))(of, of.init_kv_cache(2, 16))

    def loss(strength, keys, of=of):
        edit = jaxlens.hook(scaled, factor=strength)
        given = KVCache(keys, cache.values, cache.slots)
        logits, _ = of.decode(text[:, 8:], given, fwd_hooks=[("blocks.1.hook_attn_out", edit)])
        return jnp.sum(jnp.sin(logits))

    with jax.enable_x64(True):
        of = HookedTransformer(CONFIGS["llama"].replace(dtype="float64"), params=jax.tree.map(widened, of.params))
        cache = jax.tree.map(widened, cache)
        value, gradients = jax.jit(loss), jax.grad(loss, argnums=(0, 1))(1.3, cache.keys, of)
        direction = jax.random.normal(jax.random.key(0), cache.keys.shape, "float64")
        for argument, step, gradient in ((0, 1.0, gradients[0]), (1, direction, jnp.sum(gradients[1] * direction))):
            ends = []
            for sign in (1, -1):
                at = [1.3, cache.keys]
                at[argument] = at[argument] + sign * 1e-6 * step
                ends.append(value(*at, of))
            close(gradient, (ends[0] - ends[1]) / 2e-6)


def widened(array):
    return jnp.asarray(array, "float64") if jnp.issubdtype(array.dtype, jnp.floating) else array


def test_a_new_length_compiles_no_model_code():
    of, text = model("llama"), np.asarray(tokens(1, 16))

    def everything(length):
        _, cache = of.decode(text[:, :length], of.init_kv_cache(1, 32))
        of.decode(text[:, :1], cache)

    assert most_compiled(everything, 10, 13, 16) <= 1  # a cut of the logits


def test_products_of_few_tokens_are_those_of_many():
    rng = np.random.default_rng(0)

    def drawn(*shape):
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    W = drawn(3, 8, 4)
    for shape in ((1, 1), (2, 1), (1, FEW_TOKENS), (3, FEW_TOKENS // 2)):
        x, q, k = drawn(*shape, 8), drawn(shape[0], 3, 2, shape[1], 4), drawn(shape[0], 3, 9, 4)
        close(by_each_head(x, W), np.einsum("bpd,ndh->bpnh", x, W))
        close(dot_products(q, k), np.einsum("bkgph,bksh->bkgps", q, k))


# --- TransformerLens's caches


def test_past_kv_cache_of_transformerlens():
    of, text = model("llama"), np.asarray(tokens(2, 12))
    past = jaxlens.HookedTransformerKeyValueCache.init_cache(of.cfg, "cpu", 2)
    expected, of_all = of.run_with_cache(text)
    close(of(text[:, :5], past_kv_cache=past), expected[:, :5])
    past.freeze()
    for _ in range(2):
        close(of(text[:, 5:9], past_kv_cache=past), expected[:, 5:9])
    past.unfreeze()
    logits, cache = of.run_with_cache(text[:, 5:], past_kv_cache=past)
    close(logits, expected[:, 5:])
    close(cache["resid_post", 2], of_all["resid_post", 2][:, 5:])
    close(past[1].past_keys, of_all["rot_k", 1])
    close(past[1].past_values, of_all["v", 1])
    assert past.previous_attention_mask.shape == (2, 12)
    with pytest.raises(ZeroDivisionError):
        of.run_with_hooks(text[:, :1], past_kv_cache=past, fwd_hooks=[("blocks.3.hook_mlp_out", lambda x, hook: 1 / 0)])
    assert past.kv_cache.length == 12
    close(past[1].past_keys, of_all["rot_k", 1])
    assert of(text[:, :2], past_kv_cache=None).shape == (2, 2, 37)
