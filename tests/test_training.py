"""Training with optax, through interventions, and until induction heads appear; tokenized datasets."""

import functools
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_text import WORDS, word_tokenizer

from jaxlens import Config, HookedTransformer, Tokenizer, hook, utils
from jaxlens.config import INIT_MODES
from jaxlens.training import train as training
from jaxlens.training.data import Batches, TokenDataset, keep_single_column, tokenize_and_concatenate

TINY = {"n_layers": 2, "d_model": 16, "n_heads": 4, "d_head": 4, "d_mlp": 32, "d_vocab": 23, "n_ctx": 12}
WIDE = {"n_layers": 3, "d_model": 96, "n_heads": 6, "d_head": 32, "d_mlp": 160, "d_vocab": 200, "n_ctx": 64}


def fixed_batch() -> jax.Array:
    return jax.random.randint(jax.random.key(7), (4, TINY["n_ctx"]), 0, TINY["d_vocab"])


def loss_of(model, tokens):
    return model(tokens, return_type="loss")


# --- initial weights


def expected_deviation(mode: str, shape: tuple[int, ...], d_model: int) -> float:
    """The standard deviation that the paper of each mode specifies for a weight [in, out] or [heads, in, out]."""
    fan_in = shape[-2]
    fan_out = math.prod(shape) // fan_in
    if mode == "gpt2":
        return 0.8 / d_model**0.5
    return (2 / (fan_in + fan_out if mode.startswith("xavier") else fan_in)) ** 0.5


@pytest.mark.parametrize("mode", INIT_MODES)
def test_initial_weights_have_the_standard_deviation_of_their_mode(mode):
    params = HookedTransformer(Config(**WIDE, init_mode=mode), seed=1).params
    for name, value in params.items():
        if not name.rpartition(".")[2].startswith("W_"):
            assert jnp.all(value == name.endswith(".w")), name
            continue
        layer = value[0] if name.startswith("blocks.") else value
        expected = expected_deviation(mode, layer.shape, WIDE["d_model"])
        assert jnp.std(value) == pytest.approx(expected, rel=0.03), name
        assert jnp.mean(value) == pytest.approx(0, abs=0.03 * expected), name
        if mode.endswith("uniform"):
            assert jnp.max(jnp.abs(value)) <= 3**0.5 * expected * 1.001, name
        else:
            assert jnp.max(jnp.abs(value)) > 3 * expected, name


def test_the_initializer_range_is_a_standard_deviation_or_a_gain():
    small, large = (
        HookedTransformer(Config(**WIDE, init_mode="xavier_normal", initializer_range=gain)).params["blocks.*.mlp.W_in"]
        for gain in (0.5, 1.0)
    )
    np.testing.assert_allclose(2 * small, large, rtol=1e-6)
    embedding = HookedTransformer(Config(**WIDE, initializer_range=0.02)).params["embed.W_E"]
    assert jnp.std(embedding) == pytest.approx(0.02, rel=0.03)


def test_the_seed_determines_the_weights():
    first, same, other = (HookedTransformer(Config(**TINY), seed=seed).params for seed in (0, 0, 1))
    assert all(jnp.array_equal(first[name], same[name]) for name in first)
    random = [name for name in first if name.rpartition(".")[2].startswith("W_")]
    assert not any(jnp.array_equal(first[name], other[name]) for name in random)


# --- training from scratch


@pytest.mark.parametrize("mode", INIT_MODES)
def test_a_model_learns_a_batch(mode):
    model = HookedTransformer(Config(**TINY, init_mode=mode), seed=0)
    optimizer, tokens = optax.adamw(1e-2), fixed_batch()
    initial = model.params

    @jax.jit
    def step(params, state):
        loss, gradients = jax.value_and_grad(lambda params: loss_of(model.with_params(params), tokens))(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    params, state, losses = initial, optimizer.init(initial), []
    for _ in range(60):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]
    assert float(loss_of(model, tokens)) == pytest.approx(losses[0], rel=1e-5)
    changed = {name for name in params if not jnp.array_equal(params[name], initial[name])}
    # a bias of the keys adds the same number to all scores of a query, which does not change the softmax
    assert changed >= set(params) - {"blocks.*.attn.b_K"}


def test_the_optimizer_can_train_the_model_object():
    model, tokens = HookedTransformer(Config(**TINY), seed=0), fixed_batch()
    optimizer = optax.adamw(1e-2, mask=lambda model: jax.tree.map(lambda weight: weight.ndim > 1, model))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(model, state):
        loss, gradient = jax.value_and_grad(loss_of)(model, tokens)
        assert isinstance(gradient, HookedTransformer)
        updates, state = optimizer.update(gradient, state, model)
        return optax.apply_updates(model, updates), state, loss

    trained, state = jax.tree.map(jnp.copy, model), optimizer.init(model)
    losses = []
    for _ in range(60):
        trained, state, loss = step(trained, state)
        losses.append(float(loss))
    assert isinstance(trained, HookedTransformer)
    assert losses[-1] < 0.2 * losses[0]
    assert float(loss_of(trained, tokens)) < losses[-1]
    assert trained.params.keys() == model.params.keys()


@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_steps_of_train_reuse_memory_and_keep_the_arrays_of_the_caller(name, monkeypatch):
    model, donated = HookedTransformer(Config(**TINY), seed=0), []
    held = model.params
    values = jax.tree.map(np.array, held)

    def step(model, params, state, tokens, **options):
        donated.extend(jax.tree.leaves((params, state)))
        return original(model, params, state, tokens, **options)

    original = training._step
    monkeypatch.setattr(training, "_step", step)
    rows = [{"tokens": row} for row in np.asarray(fixed_batch())]
    config = training.HookedTransformerTrainConfig(1, 2, optimizer_name=name, momentum=0.9, print_every=None)
    training.train(model, config, rows)
    assert donated and all(array.is_deleted() for array in donated)
    assert not any(array.is_deleted() for array in jax.tree.leaves((held, model.params)))
    assert all(np.array_equal(held[weight], values[weight]) for weight in held)
    assert not np.array_equal(model.W_E, held["embed.W_E"])


def test_gradients_of_model_and_params_are_equal():
    model, tokens = HookedTransformer(Config(**TINY), seed=0), fixed_batch()
    by_model = jax.jit(jax.grad(loss_of))(model, tokens).params
    by_params = jax.jit(jax.grad(lambda params: loss_of(model.with_params(params), tokens)))(model.params)
    for name, gradient in by_params.items():
        np.testing.assert_allclose(by_model[name], gradient, rtol=1e-5, atol=1e-7, err_msg=name)


# --- training through an intervention


def steer(value, hook, vector):
    return value + vector


def test_a_steering_vector_learns_to_make_a_token_likely():
    model, tokens, target = HookedTransformer(Config(**TINY), seed=0), fixed_batch(), 5
    optimizer = optax.adam(0.1)

    def loss(vector, model):
        hooks = [("blocks.0.hook_resid_post", hook(steer, vector=vector))]
        logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
        return -jnp.mean(jax.nn.log_softmax(logits)[..., target])

    @jax.jit
    def step(vector, state, model):
        value, gradient = jax.value_and_grad(loss)(vector, model)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(vector, updates), state, value

    vector = jnp.zeros(model.cfg.d_model)
    state, losses = optimizer.init(vector), []
    for _ in range(60):
        vector, state, value = step(vector, state, model)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
    # the vector has the same effect in a Python hook
    python_hook = [("blocks.0.hook_resid_post", lambda value, hook: value + vector)]
    assert (jnp.argmax(model(tokens), -1) == target).mean() < 0.5
    assert (jnp.argmax(model.run_with_hooks(tokens, fwd_hooks=python_hook), -1) == target).mean() > 0.9
    np.testing.assert_allclose(loss(vector, model), jax.jit(loss)(vector, model), rtol=1e-5)


def test_a_vector_for_every_layer_gets_a_gradient_from_every_layer():
    """A hook on all layers with a row of data per layer. The gradient of each row is that of its layer."""
    model, tokens = HookedTransformer(Config(**TINY), seed=0), fixed_batch()

    def steer_rows(value, hook, rows):
        return value + rows[hook.layer()]

    def loss(rows):
        return model.run_with_hooks(
            tokens, return_type="loss", fwd_hooks=[("blocks.*.hook_resid_pre", hook(steer_rows, rows=rows))]
        )

    gradient = jax.jit(jax.grad(loss))(jnp.zeros((model.cfg.n_layers, model.cfg.d_model)))
    _, cache = model.run_with_cache(tokens, return_type="loss", incl_bwd=True, names_filter="blocks.*.hook_resid_pre")
    for layer in range(model.cfg.n_layers):
        expected = cache[f"blocks.{layer}.hook_resid_pre_grad"].sum((0, 1))
        np.testing.assert_allclose(gradient[layer], expected, rtol=1e-4, atol=1e-6)


# --- induction heads

LENGTH, VOCABULARY, BATCH, PERIODS = 40, 64, 32, (14, 20)
CHANCE = math.log(VOCABULARY)


def repeated_tokens(key, periods=PERIODS) -> tuple[jax.Array, jax.Array]:
    """Periodic sequences: tokens [b p] and random periods [b 1], so that attending a fixed distance back fails."""
    period_key, token_key = jax.random.split(key)
    period = jax.random.randint(period_key, (BATCH, 1), periods[0], periods[1] + 1)
    tokens = jax.random.randint(token_key, (BATCH, LENGTH), 0, VOCABULARY)
    return jnp.take_along_axis(tokens, jnp.arange(LENGTH) % period, axis=1), period


def repetition_loss(model, key, fwd_hooks=(), periods=PERIODS):
    """The mean loss on the tokens that induction can predict: those whose predecessor occurred one period before."""
    tokens, period = repeated_tokens(key, periods)
    losses = model.run_with_hooks(tokens, return_type="loss", loss_per_token=True, fwd_hooks=fwd_hooks)
    predictable = jnp.arange(LENGTH - 1) >= period
    return jnp.sum(losses * predictable) / jnp.sum(predictable)


def untrained() -> HookedTransformer:
    """A model with positions in queries and keys only. With positions in the residual stream, a tenth of the runs learn
    a circuit that the scores below miss: layer 1 attends to the next position, to which layer 0 has moved the token."""
    cfg = Config(
        n_layers=2, d_model=64, n_heads=4, d_head=16, d_vocab=VOCABULARY, n_ctx=LENGTH, attn_only=True,
        positional_embedding_type="shortformer",
    )  # fmt: skip
    return HookedTransformer(cfg, seed=0)


@pytest.fixture(scope="module")
def trained() -> HookedTransformer:
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(5e-3, b2=0.99, weight_decay=0.01))

    @jax.jit
    def train(model, keys):
        def step(carry, key):
            model, state = carry
            updates, state = optimizer.update(jax.grad(repetition_loss)(model, key), state, model)
            return (optax.apply_updates(model, updates), state), None

        return jax.lax.scan(step, (model, optimizer.init(model)), keys)[0][0]

    return train(untrained(), jax.random.split(jax.random.key(1), 600))


def attention_to(pattern: np.ndarray, queries: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The mean attention of every head [n] from masked queries [b p] to the position `offset` [b 1] before them."""
    source = np.maximum(np.arange(LENGTH) - offset, 0)
    attention = np.take_along_axis(pattern, source[:, None, :, None], axis=-1)[..., 0]
    return (attention * queries[:, None]).sum((0, 2)) / queries.sum()


def head_scores(model, key) -> tuple[np.ndarray, np.ndarray]:
    """The attention of layer 0's heads to the previous token, and that of layer 1's heads to the token that followed
    the previous occurrence of the query's token."""
    tokens, period = (np.asarray(array) for array in repeated_tokens(key))
    _, cache = model.run_with_cache(tokens, names_filter="blocks.*.attn.hook_pattern")
    first, second = (np.asarray(cache["pattern", layer]) for layer in range(2))
    all_but_first = np.broadcast_to(np.arange(LENGTH) >= 1, tokens.shape)
    previous = attention_to(first, all_but_first, np.ones_like(period))
    return previous, attention_to(second, np.arange(LENGTH) >= period, period - 1)


def test_induction_heads_appear(trained):
    key, before = jax.random.key(2), untrained()
    assert repetition_loss(before, key) == pytest.approx(CHANCE, rel=0.1)
    assert repetition_loss(trained, key) < 0.1 * CHANCE
    previous, induction = head_scores(trained, key)
    previous_before, induction_before = head_scores(before, key)
    assert induction_before.max() < 0.1
    assert induction.max() > 0.4
    # the heads may share the work
    assert previous.sum() > 2 * previous_before.sum()
    assert previous.max() > 0.25


def test_induction_needs_the_layer_before(trained):
    """Layer 0 writes the previous token to each position, and layer 1 uses it to find what followed a token."""

    def ablate(value, hook):
        return jnp.zeros_like(value)

    def uniform(value, hook):
        """Uniform attention: the layer still writes, but the previous token is not distinguished."""
        return jnp.tril(jnp.ones_like(value)) / jnp.arange(1, LENGTH + 1)[:, None]

    key = jax.random.key(3)
    assert repetition_loss(trained, key, [("blocks.0.hook_attn_out", ablate)]) > 0.9 * CHANCE
    assert repetition_loss(trained, key, [("blocks.0.attn.hook_pattern", uniform)]) > 0.5 * CHANCE
    assert repetition_loss(trained, key, [("blocks.1.hook_attn_out", ablate)]) > 0.9 * CHANCE


@pytest.mark.parametrize("periods", [(9, 13), (21, 26)])
def test_induction_works_for_periods_outside_the_training_data(trained, periods):
    assert repetition_loss(trained, jax.random.key(4), periods=periods) < 0.5 * CHANCE


# --- tokenized datasets


def documents(count, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS[3:], rng.integers(0, 20))) for _ in range(count)]


def rows_by_definition(texts, tokenizer, length, bos):
    rows = []
    for start in range(0, len(texts), 1000):
        joined = []
        for n, text in enumerate(texts[start : start + 1000]):
            joined += ([tokenizer.eos_token_id] if n else []) + [WORDS.index(word) for word in text.split()]
        size = length - bos
        if len(joined) < size:
            joined += [tokenizer.pad_token_id] * (size - len(joined))
        rows += [[0] * bos + joined[i * size : (i + 1) * size] for i in range(len(joined) // size)]
    return rows


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize(("count", "length"), [(2503, 20), (4, 11), (1, 64), (3, 400)])
def test_documents_are_joined_and_cut(bos, count, length):
    tokenizer = Tokenizer(word_tokenizer(), bos_token="<s>", eos_token="?", pad_token="<pad>")
    texts = documents(count)
    expected = rows_by_definition(texts, tokenizer, length, bos)
    rows = tokenize_and_concatenate(texts, tokenizer, max_length=length, add_bos_token=bos)
    assert rows["tokens"].tolist() == expected and rows["tokens"].dtype == np.int32
    records = ({"body": text, "other": 1} for text in texts)
    options = {"max_length": length, "add_bos_token": bos, "column_name": "body"}
    streamed = tokenize_and_concatenate(records, tokenizer, streaming=True, **options)
    assert [row["tokens"].tolist() for row in streamed] == expected


def test_no_documents_give_no_rows_and_the_pad_token_defaults_to_eos():
    tokenizer = Tokenizer(word_tokenizer(), bos_token="<s>", eos_token="?")
    assert tokenize_and_concatenate([], tokenizer, max_length=5)["tokens"].shape == (0, 5)
    assert tokenize_and_concatenate(["went"], tokenizer, max_length=4)["tokens"].tolist() == [[0, 7, 2, 2]]
    assert tokenize_and_concatenate([""], tokenizer, max_length=3)["tokens"].tolist() == [[0, 2, 2]]


class Dataset:
    """The part of `datasets.Dataset` that jaxlens uses."""

    def __init__(self, columns):
        self.columns, self.features, self.format = columns, dict.fromkeys(columns), None

    def map(self, function, batched, batch_size, remove_columns, num_proc=1):
        assert batched and set(remove_columns) == set(self.columns)
        self.processes, size = num_proc, len(next(iter(self.columns.values())))
        groups = [{c: v[i : i + batch_size] for c, v in self.columns.items()} for i in range(0, size, batch_size)]
        mapped = type(self)({"tokens": np.concatenate([function(group)["tokens"] for group in groups])})
        mapped.processes = num_proc
        return mapped

    def remove_columns(self, names):
        return Dataset({column: values for column, values in self.columns.items() if column not in names})

    def set_format(self, type, columns):
        self.format = type, columns


def test_a_hugging_face_dataset_gives_a_dataset():
    tokenizer = Tokenizer(word_tokenizer(), bos_token="<s>", eos_token="?", pad_token="<pad>")
    texts = documents(1200)
    dataset = Dataset({"text": texts, "n": list(range(1200))})
    rows = tokenize_and_concatenate(dataset, tokenizer, max_length=9, num_proc=4)
    assert rows.columns["tokens"].tolist() == rows_by_definition(texts, tokenizer, 9, True)
    assert rows.processes == 4 and rows.format == ("numpy", ["tokens"])
    streamed = tokenize_and_concatenate(dataset, tokenizer, streaming=True, max_length=9, set_format=False)
    assert streamed.processes == 1 and streamed.format is None
    assert list(keep_single_column(dataset, "n").columns) == ["n"]
    assert keep_single_column([{"a": 1, "b": 2}], "b") == [{"b": 2}]


def test_a_transformers_tokenizer_is_accepted():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=word_tokenizer(), bos_token="<s>", eos_token="?")
    rows = tokenize_and_concatenate(["went to", "the"], tokenizer, max_length=5)
    assert rows["tokens"].tolist() == [[0, 7, 8, 2, 9]] and tokenizer.pad_token is None


def test_rows_are_indexed_like_a_dataset_and_batched():
    rows = TokenDataset(np.arange(22).reshape(11, 2))
    assert len(rows) == 11 and rows[3]["tokens"].tolist() == [6, 7] and rows[-1]["tokens"].tolist() == [20, 21]
    assert rows[2:4]["tokens"].tolist() == rows[[2, 3]]["tokens"].tolist() == [[4, 5], [6, 7]]
    assert sum(row["tokens"].sum() for row in rows) == rows["tokens"].sum()
    shuffled = rows.shuffle(seed=0)
    assert sorted(shuffled["tokens"].tolist()) == rows["tokens"].tolist() != shuffled["tokens"].tolist()
    batches = Batches(rows, 4, seed=1)
    passes = [[batch["tokens"].tolist() for batch in batches] for _ in range(2)]
    assert passes[0] == passes[1] and len(passes[0]) == len(batches) == 2
    assert [len(batch) for batch in passes[0]] == [4, 4]
    assert len({tuple(row) for batch in passes[0] for row in batch}) == 8
    assert [batch["tokens"].tolist() for batch in Batches(rows, 4, seed=2)] != passes[0]


def test_datasets_have_short_names(monkeypatch):
    calls = []
    fake = types.SimpleNamespace(load_dataset=lambda *args, **options: calls.append((args, options)) or "rows")
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert utils.get_dataset("owt", data_dir="x") == utils.get_dataset("c4-code") == "rows"
    assert calls[0] == (("stas/openwebtext-10k",), {"split": "train", "data_dir": "x"})
    assert calls[1][0] == ("NeelNanda/c4-code-20k",)
