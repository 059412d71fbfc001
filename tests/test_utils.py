"""TransformerLens's helpers, sampling from logits, and texts as rows of tokens."""

import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mistakes import Case, unreached
from models import CONFIGS, model
from test_models import close
from test_text import LONG, SHORT, WORDS, word_tokenizer

from jaxlens import FactoredMatrix, HookedTransformer, Slice, Tokenizer, data, optional, sampling, utils
from jaxlens.data import Batches, TokenDataset, keep_single_column, tokenize_and_concatenate
from jaxlens.sampling import sample_logits

# --- arrays


def test_anything_becomes_a_numpy_array():
    for value in (3, 2.5, True, "text", [1, 2], (1.0, 2.0), np.ones(2), np.float32(1), jnp.arange(3)):
        array = utils.to_numpy(value)
        assert isinstance(array, np.ndarray) and np.array_equal(array, np.asarray(value))
    assert utils.to_numpy(jnp.ones(2, jnp.bfloat16)).dtype == np.float32


def test_small_things_about_arrays():
    x = np.arange(24).reshape(2, 3, 4)
    assert np.array_equal(utils.get_corner(x, 2), x[:2, :2, :2])
    factored = FactoredMatrix(np.ones((2, 5, 3)), np.ones((3, 4)))
    assert utils.get_matrix_corner(factored, 2).shape == (2, 2, 2)
    assert utils.remove_batch_dim(x[:1]).shape == (3, 4) and utils.remove_batch_dim(x) is x
    assert np.array_equal(utils.transpose(x), np.swapaxes(x, 1, 2))
    assert utils.is_square(x[0, :, :3]) and not utils.is_square(x) and not utils.is_square(x[0])
    assert utils.is_lower_triangular(jnp.tri(4)) and not utils.is_lower_triangular(jnp.tri(4, k=1))
    assert not utils.is_lower_triangular(jnp.tri(4, 5))
    repeated = utils.repeat_along_head_dimension(jnp.asarray(x), 5)
    assert repeated.shape == (2, 3, 5, 4) and np.array_equal(repeated[:, :, 3], x)
    fans = {(5,): (1, 5), (2, 3): (2, 3), (4, 2, 3): (2, 12)}
    assert {shape: utils.calc_fan_in_and_fan_out(np.ones(shape)) for shape in fans} == fans
    assert utils.get_device() == jax.default_backend()
    assert utils.is_library_available("numpy") and not utils.is_library_available("no_such_library")


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_sums_along_an_axis(dim):
    x = np.random.default_rng(0).integers(0, 9, (3, 4, 5))
    close(utils.get_cumsum_along_dim(x, dim), np.cumsum(x, dim))
    close(utils.get_cumsum_along_dim(x, dim, reverse=True), np.flip(np.cumsum(np.flip(x, dim), dim), dim))


def test_positions_do_not_count_padding():
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert utils.get_offset_position_ids(0, mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]
    assert utils.get_offset_position_ids(3, mask).tolist() == [[1, 2], [2, 2]]


def test_whether_two_matrices_rise_and_fall_alike(capsys):
    x = np.random.default_rng(0).normal(size=(4, 5))
    utils.check_structure(x, 2 * x + 1)
    turned = x.copy()
    turned[[2, 3]] = turned[[3, 2]]
    utils.check_structure(x, turned)
    utils.check_structure(np.array([[0, 0], [0, 1]]), np.array([[0, 0], [0, -1]]), verbose=True)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "PASSED" and printed[1].startswith("row mismatch: [")
    assert printed[2:6] == ["Checking rows", "\trows 0:1", "\tt1: [True, False]", "\tt2: [True, True]"]
    assert printed[-1] == "row mismatch: [0]"


def test_memory_is_printed_where_it_is_counted(capsys, monkeypatch):
    utils.print_gpu_mem("after loading")
    device = types.SimpleNamespace(memory_stats=lambda: {"bytes_in_use": 3 * 2**29})
    monkeypatch.setattr(jax, "devices", lambda: [device])
    utils.print_gpu_mem("after running")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("after loading ~ ") and second.startswith("after running ~ 1.50 GiB allocated on")


def test_logits_as_a_table(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=dict))
    logits = jnp.array([0.0, 3.0, 1.0, 2.0])
    table = utils.logits_to_df(logits, Tokenizer(word_tokenizer()), top_k=3)
    assert list(table) == ["token_index", "token_string", "logit", "log_prob", "probability"]
    assert table["token_index"].tolist() == [1, 3, 2] and table["token_string"] == ["<pad>", "when", "?"]
    close(table["probability"], np.exp([3, 2, 1]) / np.exp([0, 1, 2, 3]).sum())
    close(table["log_prob"], np.log(table["probability"]))
    assert "token_string" not in utils.logits_to_df(logits) and len(utils.logits_to_df(logits)["logit"]) == 4


# --- tokens


def reading(**how):
    tokenizer = Tokenizer(word_tokenizer(), **{"bos_token": "<s>", "pad_token": "<pad>", **how})
    return HookedTransformer(CONFIGS["gpt2"], tokenizer, params=model("gpt2").params)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", ["<pad>", "<s>"])
def test_masks_and_tokens_without_bos(side, pad):
    the_model = reading(padding_side=side, pad_token=pad)
    batch = the_model.to_tokens([LONG, SHORT])
    mask = utils.get_attention_mask(the_model.tokenizer, batch, True)
    assert mask.sum(1).tolist() == [11, 7]
    assert utils.get_attention_mask(None, batch, True).all()
    without = utils.get_tokens_with_bos_removed(the_model.tokenizer, batch)
    assert jnp.array_equal(without, the_model.to_tokens([LONG, SHORT], prepend_bos=False))


def test_bos_in_front():
    assert utils.get_input_with_manually_prepended_bos("<s>", "a") == "<s>a"
    assert utils.get_input_with_manually_prepended_bos("<s>", ["a", "b"]) == ["<s>a", "<s>b"]
    given = Tokenizer(word_tokenizer(), bos_token="<s>", default_prepend_bos=False, padding_side="left")
    twin = utils.get_tokenizer_with_bos(given)
    assert twin.to_tokens("went").tolist() == [[0, 7]] and given.to_tokens("went").tolist() == [[7]]
    assert twin.padding_side == "left"
    assert utils.get_tokenizer_with_bos(word_tokenizer()).to_tokens("went").tolist() == [[7]]  # it has no BOS token


def test_other_defaults_for_the_length_of_a_block():
    the_model = reading()
    cfg, tokenizer = the_model.cfg, the_model.tokenizer
    with utils.LocallyOverridenDefaults(the_model, prepend_bos=False, padding_side="left"):
        assert the_model.to_tokens([LONG, SHORT])[1].tolist()[:4] == [1, 1, 1, 1]
        assert the_model.to_tokens("went").tolist() == [[7]]
        assert the_model("went").shape == (1, 1, 37)
    with utils.LocallyOverridenDefaults(the_model, prepend_bos=utils.USE_DEFAULT_VALUE):
        assert the_model.to_tokens("went").tolist() == [[0, 7]]
    with pytest.raises(ZeroDivisionError), utils.LocallyOverridenDefaults(the_model, padding_side="left"):
        raise ZeroDivisionError
    assert the_model.cfg is cfg and the_model.tokenizer is tokenizer and tokenizer.padding_side == "right"
    with utils.LocallyOverridenDefaults(model("gpt2"), padding_side="left", prepend_bos=False):
        assert not model("gpt2").cfg.default_prepend_bos
    assert utils.override_or_use_default_value(1, None) == 1 and utils.override_or_use_default_value(1, False) is False


def test_paths_of_attributes():
    the_model = reading()
    assert jnp.array_equal(utils.get_nested_attr(the_model, "blocks.1.attn.W_Q"), the_model.blocks[1].attn.W_Q)
    utils.set_nested_attr(the_model, "tokenizer.padding_side", "left")
    assert the_model.tokenizer.padding_side == "left"
    utils.set_nested_attr(the_model, "name", "renamed")
    assert the_model.name == "renamed"


# --- the hub


def test_files_of_the_hub(tmp_path, monkeypatch):
    import huggingface_hub
    import torch

    asked = []
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repo, name, **how: asked.append((repo, how)) or str(tmp_path / name)
    )
    (tmp_path / "a.json").write_text(json.dumps({"x": [1, 2]}))
    tensors = {"w": torch.ones(2, 3), "b": torch.ones(2, dtype=torch.bfloat16), "n": 4}
    torch.save(tensors, tmp_path / "a.pth")
    torch.save(tensors, tmp_path / "a.pt")
    assert utils.download_file_from_hf("me/model", "a.json", revision="main") == {"x": [1, 2]}
    for held in (
        utils.download_file_from_hf("me/model", "a.pth", cache_dir=tmp_path),
        utils.download_file_from_hf("me/model", "a.pt", "inner", force_is_torch=True),
    ):
        assert np.array_equal(held["w"], np.ones((2, 3))) and held["b"].dtype == np.float32 and held["n"] == 4
    assert utils.download_file_from_hf("me/model", "a.safetensors") == str(tmp_path / "a.safetensors")
    assert asked[0] == ("me/model", {"subfolder": ".", "cache_dir": None, "revision": "main"})
    assert [how["subfolder"] for _, how in asked] == [".", ".", "inner", "."]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    utils.clear_huggingface_cache()
    assert not tmp_path.exists()
    utils.clear_huggingface_cache()


# --- names

TRANSFORMERLENS = (
    "download_file_from_hf", "clear_huggingface_cache", "keep_single_column", "get_dataset", "print_gpu_mem",
    "get_device", "get_corner", "to_numpy", "remove_batch_dim", "transpose", "is_square", "is_lower_triangular",
    "check_structure", "composition_scores", "get_offset_position_ids", "get_cumsum_along_dim",
    "repeat_along_head_dimension", "filter_dict_by_prefix", "lm_cross_entropy_loss", "lm_accuracy", "gelu_new",
    "gelu_fast", "solu", "calc_fan_in_and_fan_out", "init_xavier_uniform_", "init_xavier_normal_",
    "init_kaiming_uniform_", "init_kaiming_normal_", "is_library_available", "tokenize_and_concatenate",
    "get_tokenizer_with_bos", "get_input_with_manually_prepended_bos", "get_tokens_with_bos_removed",
    "get_attention_mask", "sample_logits", "SliceInput", "Slice", "get_act_name", "get_nested_attr",
    "set_nested_attr", "override_or_use_default_value", "LocallyOverridenDefaults", "USE_DEFAULT_VALUE",
    "test_prompt", "warn_if_mps",
)  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMERLENS)
def test_every_name_of_transformerlens_is_here_or_says_what_to_write(name):
    if name.startswith("init_") or name == "warn_if_mps":
        with pytest.raises(AttributeError, match=f"{name}.*: (arrays cannot be filled in place|JAX does not run on)"):
            getattr(utils, name)
    else:
        assert hasattr(utils, name)


def test_activation_functions():
    x = jnp.linspace(-3, 3, 7)
    cubic = x + 0.044715 * x**3
    close(utils.gelu_new(x), 0.5 * x * (1 + jnp.tanh((2 / np.pi) ** 0.5 * cubic)))
    close(utils.gelu_fast(x), utils.gelu_pytorch_tanh(x))
    close(utils.solu(x), x * jnp.exp(x) / jnp.exp(x).sum())
    assert set(utils.SUPPORTED_ACTIVATIONS) >= {"relu", "gelu", "gelu_new", "silu", "solu", "solu_ln"}


def test_a_slice_from_what_stands_for_one():
    x = np.arange(12).reshape(3, 4)
    assert Slice.unwrap(1).apply(x).shape == (1, 4) and Slice(1).apply(x).shape == (4,)
    assert Slice.unwrap((0, 2)) == Slice(input_slice=(0, 2)) and Slice.unwrap(Slice(2)) == Slice(2)
    assert Slice(2).slice == 2 and Slice((0, 2)).slice == slice(0, 2) and Slice().slice == slice(None)
    assert np.array_equal(Slice([0, 2]).slice, [0, 2]) and np.array_equal(x[Slice([0, 2]).slice], x[[0, 2]])


# --- accuracy and sampling


def test_accuracy_is_how_often_the_likeliest_token_comes():
    logits = np.random.default_rng(0).normal(size=(3, 9, 5))
    row = np.random.default_rng(1).integers(0, 5, (3, 9))
    right = logits.argmax(-1)[:, :-1] == row[:, 1:]
    assert np.array_equal(utils.lm_accuracy(jnp.asarray(logits), jnp.asarray(row), per_token=True), right)
    close(utils.lm_accuracy(jnp.asarray(logits), jnp.asarray(row)), right.mean())


LOGITS = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32) * 2
SO_FAR = np.random.default_rng(1).integers(0, 7, (3, 6))
COUNTS = np.array([np.bincount(row, minlength=7) for row in SO_FAR])
N_DRAWS = 40_000


def softmax(logits):
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def repeated(logits, penalty):
    for row, seen in zip(logits, SO_FAR, strict=True):
        for token in set(seen.tolist()):
            row[token] = row[token] / penalty if row[token] > 0 else row[token] * penalty
    return logits


def nucleus(logits, p):
    for row in logits:
        order = np.argsort(-row)
        before = np.cumsum(softmax(row)[order]) - softmax(row)[order]
        row[order[before > p]] = -np.inf
    return logits


EXPECTED = {  # what a sampler's options make of the logits, by definition
    "plain": ({}, lambda x: x),
    "cold": ({"temperature": 0.5}, lambda x: x / 0.5),
    "top k": ({"top_k": 3}, lambda x: np.where(x < np.sort(x)[:, -3:-2], -np.inf, x)),
    "top k of more than all": ({"top_k": 100}, lambda x: x),
    "nucleus": ({"top_p": 0.7}, lambda x: nucleus(x, 0.7)),
    "nucleus of one token": ({"top_p": 0.01}, lambda x: np.where(x < x.max(-1, keepdims=True), -np.inf, x)),
    "repetition": ({"repetition_penalty": 2.0, "tokens": SO_FAR}, lambda x: repeated(x, 2.0)),
    "frequency": ({"freq_penalty": 0.7, "tokens": SO_FAR}, lambda x: x - 0.7 * COUNTS),
    "all": (
        {"temperature": 2.0, "top_p": 0.8, "repetition_penalty": 1.5, "freq_penalty": 0.2, "tokens": SO_FAR},
        lambda x: nucleus(repeated(x, 1.5) / 2 - 0.2 * COUNTS, 0.8),
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_tokens_are_drawn_as_often_as_they_are_likely(name):
    options, meant = EXPECTED[name]
    expected = softmax(meant(LOGITS.astype(np.float64)))
    n = N_DRAWS // 3
    how = {key: jnp.tile(value, (n, 1)) if key == "tokens" else value for key, value in options.items()}
    drawn = np.asarray(sample_logits(jnp.tile(LOGITS, (n, 1)), key=3, **how)).reshape(n, 3)
    found = np.array([np.bincount(column, minlength=7) for column in drawn.T]) / n
    assert (found[expected == 0] == 0).all()
    assert (np.abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / n) + 1e-9).all()


def test_temperature_zero_is_greedy():
    assert np.array_equal(sample_logits(LOGITS, temperature=0.0), LOGITS.argmax(-1))
    penalised = sample_logits(LOGITS, temperature=0, repetition_penalty=50.0, tokens=SO_FAR)
    assert np.array_equal(penalised, repeated(LOGITS.copy(), 50.0).argmax(-1))
    assert np.array_equal(sample_logits(LOGITS, temperature=0, freq_penalty=9.0, tokens=SO_FAR), LOGITS.argmax(-1))


def test_a_draw_is_repeated_by_its_key_or_by_numpys_seed():
    many = np.zeros((200, 7), np.float32)
    assert np.array_equal(sample_logits(many, key=1), sample_logits(many, key=jax.random.key(1)))
    assert not np.array_equal(sample_logits(many, key=1), sample_logits(many, key=2))
    np.random.seed(0)
    first, second = sample_logits(many), sample_logits(many)
    assert not np.array_equal(first, second)
    np.random.seed(0)
    assert np.array_equal(sample_logits(many), first)
    compiled = jax.jit(lambda logits, key: sample_logits(logits, top_k=3, key=key))
    assert np.array_equal(compiled(many, jax.random.key(1)), sample_logits(many, top_k=3, key=1))


def test_new_numbers_compile_nothing():
    sample_logits(LOGITS, top_p=0.5, temperature=0.7, key=0)
    before = sampling._choose._cache_size()
    sample_logits(LOGITS + 1, top_p=0.9, temperature=1.7, key=1)
    assert sampling._choose._cache_size() == before


# --- texts as rows of tokens


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
    how = {"max_length": length, "add_bos_token": bos, "column_name": "body"}
    streamed = tokenize_and_concatenate(records, tokenizer, streaming=True, **how)
    assert [row["tokens"].tolist() for row in streamed] == expected


def test_nothing_gives_no_rows_and_a_missing_pad_token_is_eos():
    tokenizer = Tokenizer(word_tokenizer(), bos_token="<s>", eos_token="?")
    assert tokenize_and_concatenate([], tokenizer, max_length=5)["tokens"].shape == (0, 5)
    assert tokenize_and_concatenate(["went"], tokenizer, max_length=4)["tokens"].tolist() == [[0, 7, 2, 2]]
    assert tokenize_and_concatenate([""], tokenizer, max_length=3)["tokens"].tolist() == [[0, 2, 2]]


class Dataset:
    """As much of `datasets.Dataset` as is used of it."""

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


def test_a_dataset_of_hugging_face_stays_one():
    tokenizer = Tokenizer(word_tokenizer(), bos_token="<s>", eos_token="?", pad_token="<pad>")
    texts = documents(1200)
    given = Dataset({"text": texts, "n": list(range(1200))})
    rows = tokenize_and_concatenate(given, tokenizer, max_length=9, num_proc=4)
    assert rows.columns["tokens"].tolist() == rows_by_definition(texts, tokenizer, 9, True)
    assert rows.processes == 4 and rows.format == ("numpy", ["tokens"])
    streamed = tokenize_and_concatenate(given, tokenizer, streaming=True, max_length=9, set_format=False)
    assert streamed.processes == 1 and streamed.format is None
    assert list(keep_single_column(given, "n").columns) == ["n"]
    assert keep_single_column([{"a": 1, "b": 2}], "b") == [{"b": 2}]


def test_a_tokenizer_of_transformers_will_do():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=word_tokenizer(), bos_token="<s>", eos_token="?")
    rows = tokenize_and_concatenate(["went to", "the"], theirs, max_length=5)
    assert rows["tokens"].tolist() == [[0, 7, 8, 2, 9]] and theirs.pad_token is None


def test_rows_are_read_as_a_dataset_is_and_in_batches():
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
    asked = []
    fake = types.SimpleNamespace(load_dataset=lambda *args, **how: asked.append((args, how)) or "rows")
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert utils.get_dataset("owt", data_dir="x") == utils.get_dataset("c4-code") == "rows"
    assert asked[0] == (("stas/openwebtext-10k",), {"split": "train", "data_dir": "x"})
    assert asked[1][0] == ("NeelNanda/c4-code-20k",)


# --- mistakes


def sample(**how):
    return sample_logits(LOGITS, **{"key": 0, **how})


def without(package, function):
    """What happens where a package is not installed."""
    held = sys.modules.get(package)
    sys.modules[package] = None
    try:
        return function()
    finally:
        del sys.modules[package]
        if held is not None:
            sys.modules[package] = held


def cut(**special):
    return tokenize_and_concatenate(["went"], Tokenizer(word_tokenizer(), **special), max_length=4)


MISTAKES = {
    "numpy of a set": Case(lambda: utils.to_numpy({1}), TypeError, "a string or a list; got set"),
    "structures of different shapes": Case(
        lambda: utils.check_structure(np.ones((2, 3)), np.ones((3, 2))), ValueError, "got shapes (2, 3) and (3, 2)"
    ),
    "the fans of a scalar": Case(lambda: utils.calc_fan_in_and_fan_out(np.ones(())), ValueError, "got shape ()"),
    "a default that there is not": Case(
        lambda: utils.LocallyOverridenDefaults(model("gpt2"), truncate=True), ValueError,
        "truncate=True cannot be overridden; there are prepend_bos (None, True, False) and padding_side",
    ),
    "a side that there is not": Case(
        lambda: utils.LocallyOverridenDefaults(model("gpt2"), padding_side="top"), ValueError, "padding_side='top'"
    ),
    "what cannot be done in place": Case(lambda: utils.init_xavier_normal_, AttributeError, "jax.nn.initializers"),
    "an unknown name": Case(lambda: utils.get_act_names, AttributeError, "has no attribute 'get_act_names'"),
    "no pandas": Case(
        lambda: without("pandas", lambda: utils.logits_to_df(np.ones(3))), ImportError, "run `pip install pandas`"
    ),
    "top k and top p": Case(
        lambda: sample(top_k=1, top_p=0.5), ValueError, "top_k (1) and top_p (0.5) exclude each other"
    ),
    "top none": Case(lambda: sample(top_k=0), ValueError, "top_k is 0; wanted 1 or more"),
    "no probability": Case(lambda: sample(top_p=0.0), ValueError, "top_p is 0.0; wanted a probability above 0"),
    "a negative temperature": Case(lambda: sample(temperature=-1), ValueError, "temperature is -1 and repetition"),
    "a penalty without tokens": Case(lambda: sample(freq_penalty=1.0), ValueError, "[batch, pos]; got None"),
    "a penalty for embeddings": Case(
        lambda: sample(repetition_penalty=2.0, tokens=np.ones((3, 2, 4))), ValueError, "pos]; got shape (3, 2, 4)"
    ),
    "no key in a compiled function": Case(
        lambda: jax.jit(sample_logits)(LOGITS), ValueError, "the same numbers for ever; give sample_logits a key="
    ),
    "documents without EOS": Case(lambda: cut(bos_token="<s>"), ValueError, "the tokenizer has no EOS token"),
    "documents without BOS": Case(lambda: cut(eos_token="?"), ValueError, "the tokenizer has no BOS token"),
    "an unknown dataset": Case(lambda: utils.get_dataset("imagenet"), ValueError, "no dataset 'imagenet'; there are"),
    "no datasets": Case(
        lambda: without("datasets", lambda: utils.get_dataset("wiki")), ImportError,
        "get_dataset needs the package datasets; run `pip install datasets`",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_answered_with_what_was_wanted(case):
    case.check()


def test_every_error_is_reached_by_a_case():
    assert unreached((utils, data, sampling, optional), MISTAKES.values()) == []
