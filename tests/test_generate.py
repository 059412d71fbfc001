"""Text generation: through the cache it equals runs of the whole text, and hooks act at every step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from scipy import stats
from support.models import CONFIGS, model, tokens
from test_engine import compilations  # noqa: F401, a fixture
from test_models import close
from test_text import word_tokenizer

import jaxlens
from jaxlens import HookedTransformer

GREEDY = {"do_sample": False, "stop_at_eos": False, "verbose": False}
NAMES = tuple(CONFIGS)


def whole_runs(run, text, n: int, mask=None) -> np.ndarray:
    """The greedy continuation, from a run of the whole text for every token."""
    text = np.asarray(text)
    mask = np.ones(text.shape, bool) if mask is None else mask
    for _ in range(n):
        new = np.asarray(run(text, attention_mask=mask))[:, -1].argmax(-1)
        text, mask = np.concatenate([text, new[:, None]], axis=1), np.pad(mask, ((0, 0), (0, 1)), constant_values=True)
    return text


RESID = "blocks.*.hook_resid_post"
WORDS = ("the", "cat", "sat", "on", "a", "mat", *(f"w{i}" for i in range(28)), "?")


def speaking(name: str = "llama", **special) -> HookedTransformer:
    """A model with a tokenizer of as many words."""
    special = {"bos_token": "<s>", "eos_token": "mat", "pad_token": "<pad>"} | special
    tokenizer = jaxlens.Tokenizer(word_tokenizer(WORDS), **special)
    return HookedTransformer(CONFIGS[name], tokenizer, params=model(name).params)


# --- law: the cache changes nothing


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_equal_whole_runs(name):
    of, text = model(name), np.asarray(tokens(3, 7))
    mask = np.ones(text.shape, bool)
    mask[1, :3] = False
    generated = of.generate(text, 24, attention_mask=mask, output_logits=True, **GREEDY)
    expected = whole_runs(of, text, 24, mask)
    assert np.array_equal(generated.sequences, expected)
    logits = of(expected[:, :-1], attention_mask=np.pad(mask, ((0, 0), (0, 23)), constant_values=True))
    if name != "long":  # there, the frequencies of earlier tokens depend on the length of the text
        close(jnp.moveaxis(generated.logits, 0, 1), logits[:, 6:])


@pytest.mark.parametrize("name", ["llama", "gemma", "long"])
def test_rows_do_not_depend_on_padding(name):
    of, text = model(name), np.asarray(tokens(3, 9))
    lengths = np.array([9, 5, 2])
    alone = [np.asarray(of.generate(row[None, :n], 12, **GREEDY))[0, n:] for row, n in zip(text, lengths, strict=True)]
    on_right = np.arange(9) < lengths[:, None]
    on_left, moved = on_right[:, ::-1], np.zeros_like(text)
    moved[on_left] = text[on_right]
    for given, mask in ((text, on_right), (moved, on_left)):
        together = np.asarray(of.generate(given, 12, attention_mask=mask, **GREEDY))
        assert np.array_equal(together[:, :9], given)
        assert np.array_equal(together[:, 9:], np.stack(alone))


@pytest.mark.parametrize("options", [{"prefill_chunk": 3}, {"use_past_kv_cache": False}, {"verbose": True}], ids=str)
def test_other_ways_to_the_same_text(options):
    of, text = model("mistral"), np.asarray(tokens(2, 7))
    assert np.array_equal(of.generate(text, 9, **(GREEDY | options)), whole_runs(of, text, 9))


def test_a_prefix_that_was_computed_before():
    of, text = model("llama"), np.asarray(tokens(2, 12))
    _, prefix = of.decode(text[:1, :8], of.init_kv_cache(1, 8))
    expected = whole_runs(of, np.concatenate([text[[0, 0], :8], text[:, 8:]], axis=1), 6)
    for _ in range(2):  # the prefix is not used up
        both = of.generate(text[:, 8:], 6, past_kv_cache=prefix.repeat(2), **GREEDY)
        assert np.array_equal(both, expected[:, 8:])
    one = of.generate(text[:1, 8:], 6, past_kv_cache=prefix, num_return_sequences=3, return_cache=True, **GREEDY)
    assert np.array_equal(one[0], expected[[0] * 3, 8:])
    _, whole = of.run_with_cache(expected[[0] * 3])
    close(one[1]["resid_post", 2], whole["resid_post", 2][:, 8:])
    close(one[1]["pattern", 2], whole["pattern", 2][:, :, 8:])


# --- hooks


HOOKS = {
    "blocks.1.hook_resid_post": lambda x, factor: x * factor,
    "blocks.2.attn.hook_v": lambda v, factor: v.at[:, :, 0].multiply(factor),
    "hook_embed": lambda x, factor: x + factor,
    "unembed.hook_out": lambda logits, factor: logits.at[..., 5].add(factor),
    "blocks.0.attn.hook_pattern": lambda pattern, factor: pattern * factor,
}


def data_function(value, hook, edit, factor):
    return edit(value, factor)


@pytest.mark.parametrize("name", HOOKS)
def test_python_and_data_hooks_act_at_every_step(name):
    of, text, edit = model("llama"), np.asarray(tokens(2, 5)), HOOKS[name]
    plain = [(name, lambda value, hook: edit(value, 1.5))]
    expected = whole_runs(lambda text, **mask: of.run_with_hooks(text, fwd_hooks=plain, **mask), text, 10)
    assert not np.array_equal(expected, whole_runs(of, text, 10))
    assert np.array_equal(of.generate(text, 10, fwd_hooks=plain, **GREEDY), expected)
    by_name = {name: jax.tree_util.Partial(data_function, edit=edit) for name, edit in HOOKS.items()}
    data = [(name, jaxlens.hook(by_name[name], factor=1.5))]
    assert np.array_equal(of.generate(text, 10, fwd_hooks=data, **GREEDY), expected)
    with of.hooks(fwd_hooks=plain):
        assert np.array_equal(of.generate(text, 10, **GREEDY), expected)
    assert np.array_equal(of.generate(text, 10, **GREEDY), whole_runs(of, text, 10))


def test_what_a_python_hook_sees():
    of, seen = model("llama"), []
    of.generate(tokens(2, 5), 3, fwd_hooks=[("blocks.1.hook_mlp_out", lambda x, hook: seen.append(
        (x.shape, np.asarray(hook.positions)[0].tolist(), int(hook.step))))], **GREEDY)  # fmt: skip
    assert seen == [((2, 5, 14), [0, 1, 2, 3, 4], 0), ((2, 1, 14), [5], 1), ((2, 1, 14), [6], 2)]


DIRECTION = np.linspace(-1, 1, 14, dtype=np.float32)


@pytest.mark.parametrize(
    ("options", "acts"),
    [
        ({}, lambda position, step, row: True),
        ({"positions": "prompt"}, lambda position, step, row: step == 0),
        ({"positions": "new"}, lambda position, step, row: step > 0),
        ({"positions": "last"}, lambda position, step, row: step == 0 and position == 4 - 2 * row),
        ({"positions": [2, 6, 7]}, lambda position, step, row: position in (2, 6, 7)),
        ({"rows": [1], "positions": "new"}, lambda position, step, row: row == 1 and step > 0),
    ],
)
def test_steering_equals_a_python_hook(options, acts):
    of, text, mask = model("llama"), np.asarray(tokens(2, 5)), np.ones((2, 5), bool)
    mask[1, :2] = False

    def by_hand(value, hook):
        columns, step = np.asarray(hook.positions), int(hook.step)
        at = [[acts(position, step, row) for position in of_row] for row, of_row in enumerate(columns)]
        return value + jnp.asarray(np.array(at)[..., None] * DIRECTION * 3)

    hooks = jaxlens.steer(DIRECTION, [1, 2], strength=3.0, **options)
    results = [
        of.generate(text, 8, attention_mask=mask, fwd_hooks=given, output_logits=True, **GREEDY)
        for given in (hooks, [(f"blocks.{layer}.hook_resid_post", by_hand) for layer in (1, 2)])
    ]
    assert np.array_equal(results[0].sequences, results[1].sequences)
    close(results[0].logits, results[1].logits)


def test_strengths_of_rows_and_steps():
    of, text = model("llama"), np.repeat(np.asarray(tokens(1, 5)), 3, axis=0)
    hooks = jaxlens.steer(DIRECTION, 1, strength=jnp.array([0.0, 2.0, 9.0]))
    together = of.generate(text, 8, fwd_hooks=hooks, **GREEDY)
    for row, strength in enumerate((0.0, 2.0, 9.0)):
        alone = of.generate(text[:1], 8, fwd_hooks=jaxlens.steer(DIRECTION, 1, strength=strength), **GREEDY)
        assert np.array_equal(alone[0], together[row])
    directions = jnp.stack([DIRECTION * 0, DIRECTION * 2, DIRECTION * 9])
    assert np.array_equal(of.generate(text, 8, fwd_hooks=jaxlens.steer(directions, 1), **GREEDY), together)
    falling = [("blocks.1.hook_resid_post", lambda x, hook: x + DIRECTION * 8 * 0.5 ** int(hook.step))]
    assert np.array_equal(
        of.generate(text, 8, fwd_hooks=jaxlens.steer(DIRECTION * 8, 1, strength=halved), **GREEDY),
        of.generate(text, 8, fwd_hooks=falling, **GREEDY),
    )


def halved(step):
    return 0.5**step


WAYS = [{}, {"prefill_chunk": 3}, {"use_past_kv_cache": False}]


@pytest.mark.parametrize("name", ["llama", "long"])
@pytest.mark.parametrize("positions", ["prompt", "new", "last", [1, 6, 8]])
def test_steering_is_the_same_in_every_way_to_the_same_text(name, positions):
    of, text, mask = model(name), np.asarray(tokens(2, 7)), np.ones((2, 7), bool)
    mask[1, :2] = False
    hooks = jaxlens.steer(DIRECTION * 9, [1, 2], strength=halved, positions=positions)
    at = {"prompt": range(7), "new": range(7, 17), "last": [6]}[positions] if type(positions) is str else positions

    def by_hand(value, hook):
        columns = np.broadcast_to(np.arange(value.shape[1]), value.shape[:2])
        number = columns - np.array([[0], [0 if isinstance(positions, str) else 2]])
        steps = np.maximum(columns - 6, 0)
        return value + jnp.asarray((np.isin(number, list(at)) * 0.5**steps)[..., None] * DIRECTION * 9)

    by_name = [(f"blocks.{layer}.hook_resid_post", by_hand) for layer in (1, 2)]
    expected = whole_runs(lambda text, **mask: of.run_with_hooks(text, fwd_hooks=by_name, **mask), text, 10, mask)
    assert not np.array_equal(expected, whole_runs(of, text, 10, mask))
    for way in WAYS:
        assert np.array_equal(of.generate(text, 10, attention_mask=mask, fwd_hooks=hooks, **way, **GREEDY), expected)


@pytest.mark.parametrize("name", ["llama", "long"])
@pytest.mark.parametrize("positions", ["prompt", "new", "last"])
def test_steps_are_those_of_the_generation_after_a_prefix_too(name, positions):
    of, text = model(name), np.asarray(tokens(2, 9))
    _, prefix = of.decode(text[:, :5], of.init_kv_cache(2, 8))
    at = {"prompt": range(5, 9), "new": range(9, 20), "last": [8]}[positions]
    hooks = jaxlens.steer(DIRECTION * 5, 1, positions=positions)
    by_hand = jaxlens.steer(DIRECTION * 5, 1, positions=at)
    given = {"past_kv_cache": prefix, **GREEDY}
    steered = of.generate(text[:, 5:], 8, fwd_hooks=hooks, **given)
    assert np.array_equal(steered, of.generate(text[:, 5:], 8, fwd_hooks=by_hand, **given))
    assert not np.array_equal(steered, of.generate(text[:, 5:], 8, **given))
    steps = []
    of.generate(text[:, 5:], 3, fwd_hooks=[("hook_embed", lambda x, hook: steps.append(int(hook.step)))], **given)
    assert steps == [0, 1, 2]


def test_the_step_of_each_column_that_is_run_again():
    of, seen = model("llama"), []
    hooks = [("blocks.1.hook_mlp_out", lambda x, hook: seen.append((int(hook.step), hook.steps[0].tolist())))]
    of.generate(tokens(2, 3), 3, use_past_kv_cache=False, fwd_hooks=hooks, **GREEDY)
    assert seen == [(0, [0, 0, 0]), (1, [0, 0, 0, 1]), (2, [0, 0, 0, 1, 2])]
    seen.clear()
    of.generate(tokens(2, 3), 3, fwd_hooks=hooks, **GREEDY)
    assert seen == [(0, [0, 0, 0]), (1, [1]), (2, [2])]


def test_what_changes_without_a_compilation(compilations):  # noqa: F811
    of, texts = model("llama"), [np.asarray(tokens(1, 8))[:, :n] for n in (5, 6, 8)]

    def run(text, n, strength, layer, temperature):
        hooks = jaxlens.steer(DIRECTION * strength, layer, strength=strength)
        of.generate(text, n, fwd_hooks=hooks, stop_at_eos=False, verbose=False, temperature=temperature, seed=1)

    run(texts[0], 9, 1.0, 1, 1.0)
    run(texts[1], 10, 2.0, 2, 0.5)
    compilations.clear()
    run(texts[2], 11, 3.0, 0, 2.0)
    run(texts[0], 12, 0.5, 3, 0.1)
    assert not compilations


def test_numbers_of_all_types_and_other_positions_and_rows_compile_nothing(compilations):  # noqa: F811
    of = model("llama")

    def run(strength, temperature=0.9, positions=(1,), rows=(0,)):
        hooks = jaxlens.steer(DIRECTION, 1, strength=strength, positions=positions, rows=rows)
        options = {"stop_at_eos": False, "verbose": False, "temperature": temperature, "seed": 1}
        return np.asarray(of.generate(tokens(3, 5), 9, fwd_hooks=hooks, **options))

    run(9.0)
    compilations.clear()
    assert np.array_equal(run(9), run(np.float64(9)))
    run(9.0, temperature=2)
    run(9.0, temperature=np.float64(0.7))
    run(9.0, positions=[0, 1, 4], rows=[0, 2])
    assert not compilations


@pytest.mark.parametrize("n", [1, 3, 9])
def test_any_number_of_positions_and_rows(n):
    of, text = model("llama"), np.asarray(tokens(12, 12))
    rows, positions = [11, 0, *range(2, 9)][:n], [10, 3, 0, *range(4, 10)][:n]
    hooks = jaxlens.steer(DIRECTION, 1, strength=3.0, positions=positions, rows=rows)
    at = np.zeros((12, 12, 1), np.float32)
    at[np.ix_(rows, positions)] = 3
    by_hand = [("blocks.1.hook_resid_post", lambda x, hook: x + at * DIRECTION)]
    close(of.run_with_hooks(text, fwd_hooks=hooks), of.run_with_hooks(text, fwd_hooks=by_hand))


# --- captured activations


@pytest.mark.parametrize("name", ["llama", "moe", "gemma", "original"])
def test_the_cache_of_a_generation_equals_that_of_a_run(name):
    of, text, mask = model(name), np.asarray(tokens(2, 5)), np.ones((2, 5), bool)
    mask[1, :2] = False
    text, cache = of.generate(text, 6, attention_mask=mask, return_cache=True, **GREEDY)
    _, expected = of.run_with_cache(text, attention_mask=np.pad(mask, ((0, 0), (0, 6)), constant_values=True))
    assert list(cache) == list(expected)
    is_token = np.pad(mask, ((0, 0), (0, 6)), constant_values=True)
    for key in expected:
        if "scores" in key or "pattern" in key:  # [b n p s]
            visible = is_token[:, None, :, None] & is_token[:, None, None] & np.tri(11, dtype=bool)
        else:
            visible = np.expand_dims(is_token, tuple(range(2, expected[key].ndim)))
        close(np.where(visible, cache[key], 0), np.where(visible, expected[key], 0))


@pytest.mark.parametrize("hooks", [[], [("blocks.0.hook_mlp_out", lambda x, hook: x)]], ids=["compiled", "python"])
def test_a_cache_of_one_site(hooks):
    of, text = model("llama"), np.asarray(tokens(2, 5))
    result, cache = of.generate(
        text, 4, return_cache=True, names_filter="blocks.*.hook_resid_post", output_logits=True, prefill_chunk=2,
        fwd_hooks=hooks, **GREEDY,
    )  # fmt: skip
    _, expected = of.run_with_cache(result.sequences)
    assert list(cache) == [f"blocks.{layer}.hook_resid_post" for layer in range(4)]
    close(cache["blocks.*.hook_resid_post"], expected["blocks.*.hook_resid_post"])


@pytest.mark.parametrize("options", [{}, {"prefill_chunk": 2}, {"use_past_kv_cache": False}], ids=str)
def test_scores_of_a_generation_are_those_of_a_run_where_nothing_is_visible_too(options):
    of, text = model("mistral"), np.asarray(tokens(2, 7))
    names = ["blocks.*.attn.hook_attn_scores", "blocks.*.attn.hook_pattern"]
    text, cache = of.generate(text, 6, return_cache=True, names_filter=names, **options, **GREEDY)
    _, expected = of.run_with_cache(text, names_filter=names)
    for name in names:
        assert np.array_equal(np.isneginf(cache[name]), np.isneginf(expected[name]))
        close(*(jnp.nan_to_num(each[name], neginf=0) for each in (cache, expected)))


# --- when a row ends


def test_rows_end_at_eos():
    of, text = model("llama"), np.asarray(tokens(4, 3))
    whole = whole_runs(of, text, 20)[:, 3:]
    ends = [int(whole[0, 4]), int(whole[1, 9])]
    generated = np.asarray(of.generate(text, 20, eos_token_id=ends, do_sample=False, verbose=False))[:, 3:]
    stops = [next((i + 1 for i, token in enumerate(row) if token in ends), 20) for row in whole]
    assert generated.shape[1] == max(stops)
    for row, expected, stop in zip(generated, whole, stops, strict=True):
        assert np.array_equal(row[:stop], expected[:stop])
        assert (row[stop:] == ends[0]).all()


def test_stop_strings():
    of = speaking(eos_token="<s>")
    free = of.generate(["the cat", "sat on the"], 12, **GREEDY, return_type="tokens")
    word = of.to_string(free[0, 6:7])
    stopped = of.generate(["the cat", "sat on the"], 12, stop_strings=[word, "never"], return_type="tokens", **GREEDY)
    for row, expected in zip(np.asarray(stopped), np.asarray(free), strict=True):
        texts = [of.tokenizer.decode(expected[4 : 4 + n]) for n in range(1, 13)]
        stop = next((n for n, text in enumerate(texts, 5) if word in text), 16)
        assert np.array_equal(row[:stop], expected[:stop])
        assert (row[stop:] == of.tokenizer.eos_token_id).all()
    assert stopped.shape[1] <= 16
    options = {"stop_strings": word, "return_type": "tokens", "return_cache": True, "names_filter": RESID}
    ids, cache = of.generate(["the cat", "sat on the"], 12, **options, **GREEDY)  # what follows a stop is not in it
    _, expected = of.run_with_cache(ids, attention_mask=of.tokenizer.attention_mask(ids, True, "left"))
    close(cache["resid_post", 2][0, 2:], expected["resid_post", 2][0, 2:])
    same = of.generate("the cat", 5, stop_strings="never", **GREEDY)
    assert same == of.generate("the cat", 5, **GREEDY)


def test_what_fills_a_row_after_a_stop_string_is_no_text():
    of = speaking(eos_token=None, pad_token=None)
    prompts = ["the cat", "sat on the"]
    free = of.generate(prompts, 12, return_type="str", **GREEDY)
    word = free[0].split()[3]
    options = {"stop_strings": word, "do_sample": False, "stop_at_eos": False}
    texts = of.generate(prompts, 12, return_type="str", verbose=False, **options)
    assert texts[0] == free[0][: free[0].index(word, len("the cat")) + len(word)]
    pieces = list(of.generate_stream(prompts, 12, 2, **options))
    assert ["".join(row) for row in zip(*pieces, strict=True)] == [
        text.removeprefix(prompt) for text, prompt in zip(texts, prompts, strict=True)
    ]


@pytest.mark.parametrize("options", [{}, {"output_logits": True}, {"return_cache": True}], ids=str)
def test_the_width_of_rows_that_end_at_eos_and_at_a_stop_string(options):
    of, prompts = speaking(), ["the cat sat", "a mat on w3 w7"]
    free = np.asarray(of.generate(prompts, 12, return_type="tokens", **GREEDY))[:, 6:]
    eos, word = int(free[0, 0]), of.to_string(free[1, 2:3])
    assert eos not in free[1, :3] and word not in of.to_string(free[1, :2])
    ends = {"eos_token_id": eos, "stop_strings": [word], "do_sample": False, "return_type": "tokens"}
    result = of.generate(prompts, 12, verbose=False, **ends, **options)
    result = result.sequences if "output_logits" in options else result[0] if "return_cache" in options else result
    assert np.array_equal(np.asarray(result)[:, 6:], [[eos] * 3, free[1, :3]])
    streamed = list(of.generate_stream(prompts, 12, 8, **ends))
    assert np.array_equal(np.concatenate(streamed, axis=1), np.asarray(result)[:, 6:])


# --- sampling


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5}, {"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.3}, {"freq_penalty": 1.5},
     {"repetition_penalty": 1.8}, {"top_k": 9, "min_p": 0.1, "temperature": 1.7}],
    ids=str,
)  # fmt: skip
def test_samples_have_their_distribution(options):
    of, text, n = model("gpt2"), np.asarray([[3, 3, 5, 8]]), 4000
    settings = {"stop_at_eos": False, "verbose": False, "num_return_sequences": n, "seed": 0}
    drawn = np.asarray(of.generate(text, 1, **settings, **options))
    expected = distribution(np.asarray(of(text))[0, -1].astype(np.float64), text[0], **options) * n
    counts = np.bincount(drawn[:, 4], minlength=37)
    assert (counts[expected == 0] == 0).all()
    common = expected > 5
    rest = expected[~common].sum()
    observed, wanted = np.append(counts[common], counts[~common].sum()), np.append(expected[common], rest)
    keep = wanted > 0
    assert stats.chisquare(observed[keep], wanted[keep]).pvalue > 1e-4


def distribution(
    logits, text, temperature=1.0, top_k=None, top_p=None, min_p=None, freq_penalty=0, repetition_penalty=1
):  # fmt: skip
    """The definition of each rule, in the order of `sample_logits`."""
    counts = np.bincount(text, minlength=len(logits))
    penalised = np.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
    logits = np.where(counts > 0, penalised, logits) / temperature - freq_penalty * counts
    order = np.argsort(-logits)
    allowed = np.ones(len(logits), bool)
    if top_k is not None:
        allowed[order[top_k:]] = False
    probabilities = softmax(np.where(allowed, logits, -np.inf))
    if top_p is not None:
        before = np.cumsum(probabilities[order]) - probabilities[order]
        allowed[order[before > top_p]] = False
    if min_p is not None:
        allowed &= probabilities >= min_p * probabilities.max()
    return softmax(np.where(allowed, logits, -np.inf))


def softmax(logits):
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def test_seeds_and_independent_rows():
    of, text = model("gpt2"), np.asarray(tokens(1, 4))

    def sample(**options):
        return np.asarray(of.generate(text, 12, stop_at_eos=False, verbose=False, num_return_sequences=4, **options))

    first = sample(seed=3)
    assert np.array_equal(first, sample(seed=3))
    assert np.array_equal(first, sample(key=jax.random.key(3)))
    assert not np.array_equal(first, sample(seed=4))
    assert len(np.unique(first, axis=0)) == 4
    np.random.seed(0)
    by_numpy = sample()
    assert not np.array_equal(by_numpy, sample())
    np.random.seed(0)
    assert np.array_equal(by_numpy, sample())
    python = sample(seed=3, fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: None)])
    assert np.array_equal(first, python)  # the same samples step by step
    assert np.array_equal(sample(temperature=0), sample(do_sample=False))


def test_penalties_do_not_count_padding():
    of, text = model("gpt2"), np.asarray([[4, 9, 9, 6]])
    options = {"temperature": 0, "repetition_penalty": 3.0, "stop_at_eos": False, "verbose": False}
    alone = np.asarray(of.generate(text, 6, **options))
    token = int(alone[0, 4])  # as padding, it would be penalised
    padded, mask = np.concatenate([[[token] * 5], text], axis=1), np.array([[0] * 5 + [1] * 4])
    assert np.array_equal(np.asarray(of.generate(padded, 6, attention_mask=mask, **options))[:, 5:], alone)


# --- kinds of input and output


def test_kinds_of_input_and_output():
    of = speaking()
    text = "the cat sat"
    ids = of.to_tokens(text)
    out = of.generate(text, 4, return_type="tokens", **GREEDY)
    assert np.array_equal(out, of.generate(ids, 4, **GREEDY))
    as_text = of.tokenizer.decode(np.asarray(out)[0].tolist(), skip_special_tokens=True)
    assert of.generate(text, 4, **GREEDY) == as_text == of.generate(ids, 4, return_type="str", **GREEDY)
    assert of.generate([text], 4, **GREEDY) == [as_text]
    assert of.generate([text, "on the mat cat"], 4, **GREEDY)[0] == as_text
    assert of.generate(text, 4, num_return_sequences=2, **GREEDY) == [as_text] * 2
    embeddings = of.embed(ids)
    assert np.array_equal(of.generate(embeddings, 4, return_type="tokens", **GREEDY), out[:, 4:])
    close(of.generate(embeddings, 4, **GREEDY), of.embed(out))
    close(of.generate(text, 4, return_type="embeds", **GREEDY), of.embed(out))
    assert np.array_equal(of.generate("", 2, return_type="tokens", **GREEDY)[:, :1], [[of.tokenizer.bos_token_id]])


def test_penalties_count_no_tokens_of_embeddings():
    of, ids = model("gpt2"), np.asarray([[0, 36, 0]])
    options = {"return_type": "tokens", "stop_at_eos": False, "verbose": False, "output_logits": True}
    result = of.generate(of.embed(ids), 1, temperature=0, repetition_penalty=50.0, **options)
    assert result.sequences[0, 0] == result.logits[0, 0].argmax()


@pytest.mark.parametrize("name", ["gpt2", "apertus", "shortformer", "original"])
def test_embeddings_get_positions(name):
    of, ids = model(name), np.asarray(tokens(2, 5))
    of_embeddings = of.generate(of.embed(ids), 6, return_type="tokens", **GREEDY)
    assert np.array_equal(of_embeddings, of.generate(ids, 6, **GREEDY)[:, 5:])


def test_a_list_of_prompts_is_padded_on_the_left():
    of = speaking()
    of.tokenizer.padding_side = "right"
    alone = [of.generate(text, 5, **GREEDY) for text in ("the cat sat on", "a")]
    assert of.generate(["the cat sat on", "a"], 5, **GREEDY) == alone
    rows = of.to_tokens(["the cat sat on", "a"])  # padded on the right, without a mask
    out = np.asarray(of.generate(rows, 5, **GREEDY))
    for row, expected, length in zip(out, alone, (5, 2), strict=True):
        assert of.tokenizer.decode([*row[:length], *row[5:]], skip_special_tokens=True) == expected


# --- streams


def test_a_stream_yields_the_text_of_generate():
    of = speaking()
    whole = of.generate("the cat", 9, **GREEDY)
    for size in (1, 4, 20):
        pieces = list(of.generate_stream("the cat", 9, size, do_sample=False, stop_at_eos=False))
        assert "the cat" + "".join(pieces) == whole
    rows = list(of.generate_stream(["the cat", "on"], 4, 2, do_sample=False, stop_at_eos=False))
    first, second = of.generate(["the cat", "on"], 4, **GREEDY)
    streamed = ["".join(parts) for parts in zip(*rows, strict=True)]
    assert streamed == [first.removeprefix("the cat"), second.removeprefix("on")]
    ids = np.asarray(tokens(2, 3))
    parts = list(of.generate_stream(ids, 7, 3, do_sample=False, stop_at_eos=False))
    assert [part.shape for part in parts] == [(2, 3), (2, 3), (2, 1)]
    assert np.array_equal(np.concatenate([ids, *parts], axis=1), of.generate(ids, 7, **GREEDY))


def test_characters_of_several_tokens_come_whole():
    from jaxlens.model.generation.stream import TextStream

    backend = tokenizers.Tokenizer(tokenizers.models.BPE(byte_vocabulary(), []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = jaxlens.Tokenizer(backend)
    text = "naïve 漢字 🙂! " * 3
    stream, pieces = TextStream(tokenizer, tokenizer.encode("é")), []
    for token in tokenizer.encode(text):
        pieces.append(stream.add(np.array([token])))
    assert "".join(pieces) == text
    assert "漢" in pieces
    assert "🙂" in pieces
    cut = TextStream(tokenizer, [])
    assert cut.add(np.array(tokenizer.encode("漢")[:2])) == ""
    assert cut.add(np.array([], int), is_last=True) == "�"
    ids = tokenizer.encode("漢é€b")
    for n in range(len(ids)):  # prompts that end inside a character
        stream, before = TextStream(tokenizer, ids[:n]), tokenizer.decode(ids[:n]).rstrip("�")
        assert before + "".join(stream.add(np.array([token])) for token in ids[n:]) == "漢é€b"
    invalid = TextStream(tokenizer, ids[:1])
    assert invalid.add(np.array(ids[-1:])) == "b"  # the text of the prompt has its �


def byte_vocabulary() -> dict[str, int]:
    return {letter: i for i, letter in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}


def test_an_interrupted_stream_leaves_nothing_behind():
    of, calls = model("llama"), []
    before = of._hooks
    stream = of.generate_stream(
        tokens(1, 3), 10, stop_at_eos=False, fwd_hooks=[("hook_embed", lambda x, hook: calls.append(1))]
    )
    next(stream)
    stream.close()
    n_calls = len(calls)
    of(tokens(1, 3))
    assert len(calls) == n_calls
    assert of._hooks == before

    def stops(value, hook):
        if int(hook.step) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        of.generate(tokens(1, 3), 10, fwd_hooks=[("blocks.1.hook_mlp_out", stops)], **GREEDY)
    assert of._hooks == before
    assert np.array_equal(of.generate(tokens(1, 3), 5, **GREEDY), whole_runs(of, tokens(1, 3), 5))
