"""jaxlens.batch: runs, scores and statistics of data sets equal those of one document at a time."""

import dataclasses
import gc
import itertools
import json
import threading
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.mistakes import Case, unreached
from support.models import CONFIGS, model, randomised
from test_demo import talking_model
from test_engine import compilations  # noqa: F401, a fixture
from test_models import close

from jaxlens import Config, HookedTransformer, HookError, batch, hook
from jaxlens.batch.background import made_ahead
from jaxlens.batch.contexts import DOCUMENTS_AT_ONCE, bucket_length
from jaxlens.batch.fingerprint import AsOfNow
from jaxlens.batch.scores import token_scores

FAMILIES = ("gpt2", "mistral")
"""Learned positions; and rotary positions, grouped heads and windows."""

LENGTHS = (3, 14, 1, 32, 9, 17, 14, 2, 31)
ROWS = [np.random.default_rng(i).integers(0, 37, length).tolist() for i, length in enumerate(LENGTHS)]
RESID, PATTERN, POST = "blocks.2.hook_resid_post", "blocks.1.attn.hook_pattern", "blocks.1.mlp.hook_post"
Z = "blocks.1.attn.hook_z"
TEXTS = ["When John and Mary went to the shops", "Mary", "Martin and Amy went to the park, Martin gave a drink to"]


def loss_of(the_model, row, **options):
    """The loss of each token, of a call with that row alone."""
    if not isinstance(row, str) and len(row) < 2:
        return np.zeros(0)
    given = row if isinstance(row, str) else np.array([row])
    return np.asarray(the_model(given, return_type="loss", loss_per_token=True, **options))[0]


def last_position(logits, cache):
    return cache[RESID][:, -1]


# --- runs


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_gives_the_logits_and_the_cache_of_every_document(family, side):
    names = ["hook_embed", RESID, PATTERN, "blocks.0.attn.hook_attn_scores", "ln_final.hook_scale"]
    found = batch.run(model(family), ROWS, names_filter=names, padding_side=side, batch_tokens=64)
    for row, (logits, cache) in zip(ROWS, found, strict=True):
        expected, expected_cache = model(family).run_with_cache(np.array([row]), names_filter=names)
        close(logits, expected)
        assert set(cache) == set(names)
        for name in names:
            visible = np.isfinite(np.asarray(expected_cache[name]))
            close(np.where(visible, cache[name], 0), np.where(visible, expected_cache[name], 0))
        close(cache["resid_post", 2], expected_cache["resid_post", 2])


@pytest.mark.parametrize("family", FAMILIES)
def test_reduce_makes_the_results(family):
    def everything(logits, cache, model_input):
        n_tokens = model_input.mask.sum(-1)
        total = (cache[RESID] * model_input.mask[..., None]).sum(1)
        return {"last": logits[:, -1], "rest": (cache[PATTERN], n_tokens, total, model_input.tokens)}

    names = [RESID, PATTERN]
    found = list(batch.run(model(family), ROWS, names_filter=names, reduce=everything, batch_tokens=64))
    for row, result in zip(ROWS, found, strict=True):
        logits, cache = model(family).run_with_cache(np.array([row]), names_filter=names)
        pattern, n_tokens, total, tokens = result["rest"]
        close(result["last"], logits[0, -1])
        close(pattern, cache[PATTERN][0])
        close(total, cache[RESID][0].sum(0))
        assert n_tokens == len(row) and tokens.tolist() == row


@pytest.mark.parametrize("length", [14, 32])
def test_only_axes_of_positions_are_cut(length):
    """d_model is 14, and the documents of 14 tokens run at 16, those of 32 at n_ctx."""
    rows = [row for row in ROWS if len(row) <= length]
    values = batch.run(
        randomised(Config(**{**vars_of("gpt2"), "d_model": 16})), rows, names_filter=RESID, max_length=length,
        reduce=lambda logits, cache: (cache[RESID], cache[RESID][:, -1], jnp.zeros((len(logits), 16, 32))),
    )  # fmt: skip
    for row, (residual, last, constant) in zip(rows, values, strict=True):
        assert residual.shape == (len(row), 16) and last.shape == (16,) and constant.shape == (16, 32)


def vars_of(name: str) -> dict:
    cfg = CONFIGS[name]
    return {key: getattr(cfg, key) for key in ("n_layers", "n_heads", "d_head", "d_mlp", "d_vocab", "n_ctx", "act_fn")}


@dataclasses.dataclass
class Scale:
    """A function that cannot be hashed."""

    factor: float

    def __call__(self, logits, cache):
        return logits[:, -1, 0] * self.factor


FACTOR = 1.0


def of_global(logits, cache):
    return logits[:, -1, 0] * FACTOR


@dataclasses.dataclass(eq=False)
class HashableScale(Scale):
    pass


@pytest.mark.parametrize("of_two", [Scale, HashableScale, lambda _: of_global])
def test_a_reduction_reads_what_it_reads_at_the_time_of_the_call(of_two, monkeypatch):
    reduce = of_two(1.0)
    first = list(batch.run(model("gpt2"), [[1, 2, 3]], reduce=reduce))
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    if reduce is not of_global:
        reduce.factor = 2.0
    close(list(batch.run(model("gpt2"), [[1, 2, 3]], reduce=reduce)), 2 * np.array(first))


def test_a_run_may_stop_early_and_run_no_hook_point():
    found = list(batch.run(model("mistral"), ROWS, stop_at_layer=2))
    for row, (residual, _) in zip(ROWS, found, strict=True):
        close(residual, model("mistral")(np.array([row]), stop_at_layer=2))


def test_python_hooks_and_data_hooks_act_on_every_row():
    the_model, direction = model("mistral"), np.linspace(-1, 1, 14, dtype=np.float32)
    for hooks in (
        [(RESID, lambda value, hook: value * 2)],
        [("blocks.1.hook_resid_pre", hook(lambda value, hook, direction: value + direction, direction=direction))],
    ):
        found = list(batch.run(the_model, ROWS, hooks=hooks, reduce=lambda logits, cache: logits[:, -1]))
        for row, logits in zip(ROWS, found, strict=True):
            close(logits, the_model.run_with_hooks(np.array([row]), fwd_hooks=hooks)[0, -1])
    with the_model.hooks(fwd_hooks=[(RESID, lambda value, hook: 0 * value)]):
        close(np.stack(batch.score(the_model, ROWS[:1])), -np.stack([loss_of(the_model, ROWS[0])]))


def test_documents_of_a_length_run_in_one_program_and_new_data_compile_nothing(compilations):  # noqa: F811
    the_model = model("gpt2")
    edit = hook(lambda value, hook, amount: value + amount, amount=np.float32(1))
    rows = [[1] * n for n in (16, 5, 9, 3, 16, 2, 20, 31, 18, 30)]

    def run(rows, edit):
        options = {"reduce": last_position, "names_filter": RESID, "batch_tokens": 64}
        return list(batch.run(the_model, rows, hooks=[(RESID, edit)], **options))

    compilations.clear()
    run(rows, edit)
    assert len(compilations) == 2  # at 16 and 32
    compilations.clear()
    other = run([[2] * n for n in (1, 32, 7, 17, 4)], hook(edit.func, amount=np.float32(2)))
    assert not compilations and len(other) == 5
    batch.score(the_model, rows, batch_tokens=64)
    compilations.clear()
    batch.score(the_model, rows[::-1], batch_tokens=64)
    assert not compilations
    batch.mean_activations(the_model, rows, RESID, batch_tokens=64)
    batch.mean_activations(the_model, rows[3:], RESID, batch_tokens=64)
    assert len(compilations) == 2


FACTOR = 1.0


class Scaled:
    by = 1.0

    def __init__(self):
        self.inner, self.weights = types.SimpleNamespace(by=1.0), jnp.ones((300, 300))

    def of_class(self, logits, cache):
        return logits[:, -1] * Scaled.by

    def of_object(self, logits, cache):
        return logits[:, -1] * self.inner.by

    def of_array(self, logits, cache):
        return logits[:, -1] * self.weights[7, 211]


def by_global(x):
    return x * FACTOR


def of_function(logits, cache):
    return by_global(logits[:, -1])


def of_inner_function(logits, cache):
    return jax.vmap(lambda row: row[-1] * FACTOR)(logits)


def of_module(logits, cache):
    return logits[:, -1] * module.FACTOR


module = types.ModuleType("of_a_user")


def test_a_function_runs_with_what_it_reads_now(monkeypatch):
    scaled, the_model = Scaled(), model("gpt2")
    functions = (scaled.of_class, scaled.of_object, scaled.of_array, of_function, of_inner_function, of_module)

    def first_row(function, factor):
        monkeypatch.setattr(Scaled, "by", factor)
        monkeypatch.setitem(globals(), "FACTOR", factor)
        module.FACTOR = scaled.inner.by = factor
        scaled.weights = scaled.weights.at[7, 211].set(factor)
        return next(iter(batch.run(the_model, ROWS[:1], reduce=function)))

    for function in functions:
        close(first_row(function, 4.0), 4 * first_row(function, 1.0))


def test_what_cannot_be_read_is_never_taken_for_the_same():
    generator, array = np.random.default_rng(0), np.ones(3)
    assert AsOfNow(lambda: generator) != AsOfNow(lambda: generator)

    def read_generator():
        return generator

    def read_array():
        return array

    assert AsOfNow(read_generator) != AsOfNow(read_generator) and AsOfNow(read_array) == AsOfNow(read_array)


def test_lengths_of_programs_grow_by_a_fourth_and_end_at_the_limit():
    lengths = [bucket_length(n, 1000) for n in range(1, 1001)]
    assert sorted(set(lengths))[:9] == [16, 32, 48, 64, 80, 96, 112, 128, 160] and max(lengths) == 1000
    assert all(n <= length <= max(n + 16, 1.25 * n + 1) for n, length in enumerate(lengths, 1))


# --- data


def kinds_of_data(folder: Path) -> dict:
    """The same texts as every kind of data."""
    import datasets
    from pyarrow import Table, parquet

    dataset = datasets.Dataset.from_dict({"number": [0, 1, 2], "text": TEXTS})
    (folder / "a.txt").write_text("\n\n".join(TEXTS) + "\n")
    (folder / "marked.txt").write_text("\n".join(TEXTS), encoding="utf-8-sig")  # begins with a byte order mark
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"number": 1, "text": text}) for text in TEXTS) + "\n\n")
    (folder / "strings.jsonl").write_text("\n".join(map(json.dumps, TEXTS)))
    parquet.write_table(Table.from_pylist([{"number": 1, "text": text} for text in TEXTS]), folder / "a.parquet")
    return {
        "list": TEXTS, "tuple": tuple(TEXTS), "generator": (text for text in TEXTS),
        "rows": [{"text": text} for text in TEXTS],
        "array": np.array(TEXTS), "pandas": dataset.to_pandas()["text"], "frames": dataset.with_format("pandas"),
        "dataset": dataset, "column": dataset["text"], "streamed": dataset.to_iterable_dataset(),
        "txt": folder / "a.txt", "marked": folder / "marked.txt",
        "jsonl": str(folder / "a.jsonl"), "strings": folder / "strings.jsonl",
        "parquet": folder / "a.parquet",
    }  # fmt: skip


def test_every_kind_of_data_has_the_same_texts(tmp_path):
    talking = talking_model()
    expected = [-loss_of(talking, text) for text in TEXTS]
    for name, data in kinds_of_data(tmp_path).items():
        found = batch.score(talking, data)
        assert isinstance(found, list) == isinstance(data, list | tuple), name
        for log_probs, wanted in zip(found, expected, strict=True):
            close(log_probs, wanted)
    without = batch.score(talking, TEXTS, prepend_bos=False)
    for log_probs, text in zip(without, TEXTS, strict=True):
        close(log_probs, -loss_of(talking, talking.to_tokens(text, prepend_bos=False)[0].tolist()))


def test_every_kind_of_data_has_the_same_tokens(tmp_path):
    import datasets
    from pyarrow import Table, parquet

    rows = np.array([ROWS[1], ROWS[6]])
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"ids": row.tolist()}) for row in rows))
    parquet.write_table(Table.from_pydict({"ids": rows.tolist(), "text": ["a", "b"]}), tmp_path / "a.parquet")
    dataset = datasets.Dataset.from_dict({"ids": rows.tolist()})
    expected = [-loss_of(model("gpt2"), row) for row in rows]
    for data, column in (
        (rows, None), (jnp.asarray(rows), None), (list(rows), None), (rows.tolist(), None), (iter(rows), None),
        ([{"input_ids": row} for row in rows], None), (tmp_path / "a.jsonl", "ids"), (tmp_path / "a.parquet", "ids"),
        (rows.astype(np.uint8), None), ([*map(tuple, rows.tolist())], None),
        (dataset, "ids"), (dataset.with_format("numpy"), "ids"),
    ):  # fmt: skip
        for log_probs, wanted in zip(batch.score(model("gpt2"), data, column=column), expected, strict=True):
            close(log_probs, wanted)


def test_documents_that_are_too_long_are_cut_with_one_warning():
    long = [[1] * 40, [2, 3], [4] * 50]
    with pytest.warns(UserWarning, match="document 0 has 40 tokens and is cut to max_length = 32, as are all") as seen:
        found = list(batch.run(model("gpt2"), long, reduce=lambda logits, cache: logits))
    assert [len(logits) for logits in found] == [32, 2, 32] and len(seen) == 1
    with pytest.warns(UserWarning, match="max_length = 20"):
        assert [len(each) for each in batch.score(model("gpt2"), long, max_length=20)] == [19, 1, 19]


def test_results_are_in_order_over_many_batches():
    rng = np.random.default_rng(0)
    rows = [[i % 37] * int(rng.integers(1, 33)) for i in range(400)]
    found = batch.run(model("mistral"), iter(rows), batch_tokens=64, reduce=lambda logits, cache, given: given.tokens)
    assert [tokens.tolist() for tokens in found] == rows


def test_endless_data_are_read_a_bounded_number_ahead():
    read = []

    def endless():
        for i in itertools.count():
            read.append(i)
            yield [i % 37] * 20

    found = batch.run(model("gpt2"), endless(), batch_tokens=64, reduce=lambda logits, cache, given: given.tokens)
    assert [tokens[0] for tokens in itertools.islice(found, 300)] == [i % 37 for i in range(300)]
    found.close()
    stopped_at(lambda: len(read), 300 + 3 * 32 * 64 // 20 + DOCUMENTS_AT_ONCE)


def stopped_at(count, most: int) -> None:
    """Asserts that a count does not grow any more, and is not above a number."""
    for _ in range(50):
        before = count()
        time.sleep(0.1)
        if count() == before:
            break
    else:
        raise AssertionError("the thread goes on")
    assert count() <= most


def readers() -> list:
    return [thread for thread in threading.enumerate() if thread.name == "jaxlens-reader"]


def test_closing_an_iterator_ends_its_thread():
    for close_it in (lambda found: found.close(), lambda found: None):
        found = batch.run(model("gpt2"), ([1, 2, 3] for _ in itertools.count()), batch_tokens=64)
        next(found)
        assert readers()
        close_it(found)
        del found
        gc.collect()
        for thread in readers():
            thread.join(5)
        assert not readers()


def test_an_error_in_the_data_reaches_the_caller_after_what_was_ready():
    def broken():
        yield from [[1, 2]] * 500
        raise OSError("the disk is gone")

    found, n = batch.run(model("gpt2"), broken(), batch_tokens=16, reduce=lambda logits, cache: logits[:, 0, :1]), 0
    with pytest.raises(OSError, match="the disk is gone"):
        for _ in found:
            n += 1
    assert n == 256  # a window of 32 batches with 16 tokens
    with pytest.raises(KeyboardInterrupt):
        list(made_ahead(interrupted()))


def interrupted():
    yield 1
    raise KeyboardInterrupt


# --- scores


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_losses_of_each_document(family):
    for row, scores in zip(ROWS, token_scores(model(family), ROWS, batch_tokens=64), strict=True):
        close(scores.log_probs, -loss_of(model(family), row))
        likeliest = np.asarray(model(family)(np.array([row]))[0, :-1].argmax(-1))
        assert scores.is_greedy.tolist() == (likeliest == row[1:]).tolist()
    one_more = np.random.default_rng(9).integers(0, 37, 33).tolist()
    logits = np.asarray(model(family)(np.array([one_more[:-1]]))[0], np.float64)
    expected = logits[np.arange(32), one_more[1:]] - np.log(np.exp(logits).sum(-1))
    close(batch.score(model(family), [one_more], max_length=33)[0], expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_after_contexts(family):
    contexts, continuations = [ROWS[3][:20], [5], ROWS[3] + ROWS[8]], [ROWS[0], ROWS[1], ROWS[5]]
    with pytest.warns(UserWarning, match="context 2 and its continuation have 80 tokens; the first are dropped"):
        found = batch.score(model(family), continuations, contexts)
    for context, continuation, log_probs in zip(contexts, continuations, found, strict=True):
        whole = (context + continuation)[-32:]
        close(log_probs, -loss_of(model(family), whole)[-len(continuation) :])


def test_contexts_and_continuations_of_text_are_tokenized_together():
    talking = talking_model()
    found = batch.score(talking, [" to the park", "and  Amy", "Mary"], ["Mary went", "Martin ", ""])
    for log_probs, text, n in zip(found, ("Mary went to the park", "Martin and Amy", "Mary"), (3, 2, 1), strict=True):
        close(log_probs, -loss_of(talking, text)[-n:])


# --- statistics


@pytest.mark.parametrize("family", FAMILIES)
def test_means_are_those_of_all_tokens(family):
    the_model, names = model(family), [POST, RESID]
    caches = [the_model.run_with_cache(np.array([row]), names_filter=names)[1] for row in ROWS]
    tokens, positions = np.concatenate(ROWS), np.concatenate([np.arange(len(row)) for row in ROWS])
    kept = tokens != 5
    whole = batch.mean_activations(the_model, ROWS, names, skip=[5], batch_tokens=64)
    of_tokens = batch.mean_activations(the_model, iter(ROWS), names, by="token", skip=[5])
    of_positions = batch.mean_activations(the_model, ROWS, names, by="position", skip=[5])
    assert list(whole) == [POST, RESID] and whole.counts == kept.sum()
    for name in names:
        values = np.concatenate([np.asarray(cache[name][0]) for cache in caches])[kept]
        close(whole[name], values.mean(0))
        for means, groups in ((of_tokens, tokens[kept]), (of_positions, positions[kept])):
            assert means.counts.tolist() == np.bincount(groups, minlength=len(means.counts)).tolist()
            for group in range(len(means.counts)):
                if (groups == group).any():
                    close(means[name][group], values[groups == group].mean(0))
                else:
                    assert np.isnan(means[name][group]).all()


@pytest.mark.parametrize(
    "skip, left_out",
    [("padding", ()), ("bos and padding", (0,)), ("special tokens and padding", (0, 1)), ([1, 3], (1, 3))],
)
def test_tokens_can_be_left_out(skip, left_out):
    talking = talking_model()
    talking.tokenizer.unk_token = "<unk>"
    texts = ["When John <unk> went", "<unk> and Mary"]
    rows = [talking.to_tokens(text)[0].tolist() for text in texts]
    expected = [token for row in rows for token in row if token not in left_out]
    assert batch.mean_activations(talking, texts, "hook_embed", skip=skip).counts == len(expected)
    by_token = batch.mean_activations(talking, texts, "hook_embed", "token", skip=skip)
    assert np.flatnonzero(by_token.counts).tolist() == sorted(set(expected))


@pytest.mark.parametrize("family", FAMILIES)
def test_top_activations_are_the_highest_of_each_document(family):
    the_model, name = model(family), "blocks.1.attn.hook_z"
    rows = [row for row in ROWS for _ in range(1)] * 3
    caches = [np.asarray(the_model.run_with_cache(np.array([row]), names_filter=name)[1][name][0]) for row in rows]
    top = batch.top_activations(the_model, rows, name, 4, skip="padding", batch_tokens=64)[name]
    assert top.values.shape == top.documents.shape == top.positions.shape == (6, 4, 4)
    highest = np.stack([cache.max(0) for cache in caches])
    close(top.values, np.moveaxis(np.sort(highest, axis=0)[::-1][:4], 0, -1))
    for index in np.ndindex(6, 4, 4):
        document, position = top.documents[index], top.positions[index]
        close(caches[document][position][index[:2]], top.values[index])
    assert len(np.unique(top.documents[2, 3])) == 4 and set(top.tokens) == set(top.documents.flat)
    value, tokens, at = top.contexts((2, 3), width=3)[0]
    document, position = top.documents[2, 3, 0], top.positions[2, 3, 0]
    assert value == top.values[2, 3, 0] and tokens[at] == rows[document][position] and len(tokens) <= 7


def test_features_of_an_encoder_are_ranked():
    W = jnp.asarray(np.random.default_rng(0).normal(size=(14, 5)), jnp.float32)
    options = {"skip": "padding", "encode": lambda value: value @ W}
    top = batch.top_activations(model("gpt2"), ROWS[:3], RESID, 5, **options)[RESID]
    caches = [model("gpt2").run_with_cache(np.array([row]))[1][RESID][0] @ W for row in ROWS[:3]]
    close(top.values[:, :3], np.sort(np.stack([cache.max(0) for cache in caches]), axis=0)[::-1].T)
    assert (top.documents[:, 3:] == -1).all() and np.isneginf(top.values[:, 3:]).all()
    assert len(top.contexts(2)) == 3


def test_nan_has_no_rank():
    last_is_nan = [(POST, lambda value, hook: value.at[:, -1].set(jnp.nan))]
    rows, options = [[3], [1, 2, 6], [4, 5]], {"k": 3, "skip": "padding"}
    with pytest.warns(UserWarning, match=f"{POST} has NaN in document .; NaN is left out, as in all documents") as seen:
        top = batch.top_activations(model("gpt2"), rows, POST, hooks=last_is_nan, **options)[POST]
    expected = batch.top_activations(model("gpt2"), [[1, 2], [4]], POST, **options)[POST]
    close(top.values[:, :2], expected.values[:, :2])
    assert np.array_equal(top.documents[:, :2], expected.documents[:, :2] + 1) and (top.documents[:, 2] == -1).all()
    assert len(seen) == 1 and set(top.tokens) == {1, 2}


# --- errors


def bad_files(folder: Path) -> Path:
    from pyarrow import Table, parquet

    for name, text in {"a.csv": "", "broken.jsonl": '"a"\n{', "number.jsonl": "[1]\n2"}.items():
        (folder / name).write_text(text)
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "half.jsonl").write_text('"a"\n"b\\ud83d"')
    (folder / "text.parquet").write_text("a text")
    parquet.write_table(Table.from_pydict({"text": ["a", None]}), folder / "none.parquet")
    return folder


def cases(folder: Path) -> list[Case]:
    of_labels = HookedTransformer(CONFIGS["gpt2"].replace(output_head="token_labels", d_vocab_out=3))
    small, talking = model("gpt2"), talking_model()

    def run(data=ROWS, **options):
        return list(batch.run(small, data, **options))

    def mean(data=ROWS, names=RESID, **options):
        return batch.mean_activations(small, data, names, **options)

    def top(data=ROWS, names=RESID, **options):
        return batch.top_activations(small, data, names, **options)

    def score(data, contexts=None, of=small, **options):
        return list(batch.score(of, data, contexts, **options))

    return [
        Case(lambda: batch.score("gpt2", TEXTS), TypeError, "model is a str; expected a HookedTransformer"),
        Case(lambda: run(max_length=33), ValueError, "max_length is 33; expected 1 to 32, the n_ctx of the model"),
        Case(lambda: score(ROWS, max_length=34), ValueError, "expected 1 to 33, the n_ctx of the model plus 1"),
        Case(lambda: run([[1], []]), ValueError, "document 1 has no tokens; remove it from the data"),
        Case(lambda: run([[1], [2, 37]]), ValueError, "document 1: "),
        Case(lambda: run(max_length=5.5), ValueError, "max_length is 5.5; expected 1 to 32, the n_ctx of the model"),
        Case(lambda: run([[2**32 + 5]]), ValueError, "document 0 has tokens from 4294967301 to 4294967301; expected"),
        Case(lambda: run([[1], [[1, 2], [3]]]), TypeError, "document 1 is [[1, 2], [3]]; expected a text or a row of"),
        Case(lambda: run(batch_tokens=0), ValueError, "batch_tokens is 0; expected a positive integer"),
        Case(lambda: run(reduce=5), TypeError, "reduce is 5; expected a function of (logits, cache), or (logits, c"),
        Case(lambda: run(padding_side="top"), ValueError, "padding_side is 'top'; expected"),
        Case(lambda: run(reduce=lambda logits, cache: logits.sum()), ValueError, "returned an array of shape (); exp"),
        Case(lambda: run(reduce=lambda logits, cache: logits[0]), ValueError, "expected arrays whose first axis is"),
        Case(lambda: run(names_filter="blocks.9.hook_z"), HookError, "blocks.9.hook_z"),
        Case(lambda: run(hooks=[("hook_nothing", lambda value, hook: value)]), HookError, "hook_nothing"),
        Case(lambda: run(["a text"]), ValueError, "this model has no tokenizer"),
        Case(lambda: run(np.zeros(3, int)), TypeError, "an array of data holds tokens [row, pos]; got shape (3,)"),
        Case(lambda: run(5), TypeError, "data is a int; expected a list of texts, token rows"),
        Case(lambda: run({"text": ROWS}), TypeError, "data is a dict; pass the column of documents in it"),
        Case(lambda: run([{"texts": "a"}]), ValueError, '0 has no column "text", "tokens" or "input_ids", only'),
        Case(lambda: run([{"b": 1}], column="a"), ValueError, "document 0 has no \"a\", only ['b']; name its column"),
        Case(lambda: run([[1]], column="text"), ValueError, "document 0 has no columns; leave out column='text'"),
        Case(lambda: run(folder / "latin.txt", column="text"), ValueError, "latin.txt has no columns; leave out col"),
        Case(lambda: run([[1], [0.5]]), TypeError, "document 1 is an array of shape (1,) and dtype float64; expected"),
        Case(lambda: run([[1], None]), TypeError, "document 1 is None; expected a text or a row of tokens (integers)"),
        Case(lambda: run("a text"), ValueError, "data is 'a text'; a string is a path: expected the path of a .jsonl"),
        Case(lambda: run(folder / "a.csv"), ValueError, "a string is a path: expected the path of a .jsonl"),
        Case(lambda: run(folder / "a.txt"), FileNotFoundError, "there is no file"),
        Case(lambda: score(folder / "broken.jsonl", of=talking), ValueError, "broken.jsonl, line 2, is not JSON"),
        Case(lambda: run(folder / "number.jsonl"), ValueError, "number.jsonl, line 2, is 2; expected a text or a"),
        Case(lambda: score(folder / "none.parquet", of=talking), ValueError, "none.parquet, row 1, is None; expected"),
        Case(lambda: score(["a", "b\ud83d"], of=talking), ValueError, "document 1 has half of a surrogate pair, "),
        Case(lambda: score(folder / "half.jsonl", of=talking), ValueError, "line 2, has half of a surrogate pair, '\\"),
        Case(lambda: run(folder / "text.parquet"), ValueError, "text.parquet is not a Parquet file: "),
        Case(lambda: mean(names=[]), HookError, 'names is []; expected hook points, such as "blocks.*.hook_resid_pos'),
        Case(lambda: mean(by=["token"]), ValueError, "by is ['token']; expected \"dataset\", "),
        Case(lambda: top(encode="sae"), TypeError, "encode is 'sae'; expected a function of an activation"),
        Case(lambda: top(names=POST)[POST].contexts(1, width=-1), ValueError, "width is -1; expected a number of tok"),
        Case(lambda: mean(by="row"), ValueError, "by is 'row'; expected \"dataset\", \"token\" or \"position\""),
        Case(lambda: mean([[5], [5, 5]], skip=[5]), ValueError, "no token is left for the mean; give more data, or"),
        Case(lambda: top([[5], [5, 5]], skip=[5]), ValueError, "no token is left to rank; give more data, or"),
        Case(lambda: mean(names=PATTERN), HookError, "does not have one value per token; choose others, or reduce"),
        Case(lambda: mean(skip="special tokens and padding"), ValueError, "no tokenizer that knows special tokens"),
        Case(lambda: mean(skip="bos"), ValueError, "skip is 'bos'; expected \"padding\", \"bos and padding\", "),
        Case(lambda: top(skip=3), ValueError, "skip is 3; expected"),
        Case(lambda: top(k=0), ValueError, "k is 0; expected a positive integer"),
        Case(lambda: top(encode=lambda value: value[:, -1]), ValueError, "encode returned an array of shape ("),
        Case(lambda: top(names=Z)[Z].contexts(1), IndexError, "neuron is 1; expected an index for each axis of ("),
        Case(lambda: score(folder / "latin.txt", of=talking), ValueError, "latin.txt is not UTF-8 text"),
        Case(lambda: score(["y"], ["Mar"], of=talking), ValueError, "'y' is in one token with the end of its context"),
        Case(lambda: score([[1, 2]], of=of_labels), ValueError, "this model scores labels; it does not predict tokens"),
        Case(lambda: score([[1], [2]], [[3]]), ValueError, "there is no context number 1; give one context for each"),
        Case(lambda: score([[1]], [[3], [4]]), ValueError, "there is no document number 1; give one context for each"),
        Case(lambda: score([[1]], [[]]), ValueError, "context 0 has no tokens, so nothing predicts its continuation"),
        Case(lambda: score([[1], []], [[1], [2]]), ValueError, "document 1 has 0 tokens; expected 1 to 31 tokens"),
        Case(lambda: score([[1] * 32], [[1]]), ValueError, "document 0 has 32 tokens; expected 1 to 31 tokens after"),
        Case(lambda: score(["a"], [[1]]), TypeError, "document 0 and its context must both be texts, or both rows of"),
    ]


def test_mistakes_are_answered_and_reach_every_error(tmp_path):
    all_cases = cases(bad_files(tmp_path))
    for case in all_cases:
        case.check()
    assert unreached("test_batch", all_cases) == []


def test_scores_of_a_context_of_one_token():
    one = HookedTransformer(CONFIGS["gpt2"].replace(n_ctx=1))
    (score,) = batch.score(one, [[1, 2]], max_length=2)
    close(score, [jax.nn.log_softmax(one([[1]])[0, 0])[2]])
