"""TransformerLens's helper functions, and sampling from logits."""

import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.mistakes import Case, unreached
from support.models import CONFIGS, model
from test_engine import compilations  # noqa: F401, a fixture
from test_models import close
from test_text import LONG, SHORT, word_tokenizer

from jaxlens import FactoredMatrix, HookedTransformer, Slice, Tokenizer, utils
from jaxlens.model.generation.sampling import sample_logits
from jaxlens.training.data import tokenize_and_concatenate

# --- arrays


def test_conversion_to_numpy():
    for value in (3, 2.5, True, "text", [1, 2], (1.0, 2.0), np.ones(2), np.float32(1), jnp.arange(3)):
        array = utils.to_numpy(value)
        assert isinstance(array, np.ndarray) and np.array_equal(array, np.asarray(value))
    assert utils.to_numpy(jnp.ones(2, jnp.bfloat16)).dtype == np.float32


def test_helpers_for_arrays():
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


def test_the_elementwise_order_of_two_matrices(capsys):
    x = np.random.default_rng(0).normal(size=(4, 5))
    utils.check_structure(x, 2 * x + 1)
    swapped = x.copy()
    swapped[[2, 3]] = swapped[[3, 2]]
    utils.check_structure(x, swapped)
    utils.check_structure(np.array([[0, 0], [0, 1]]), np.array([[0, 0], [0, -1]]), verbose=True)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "PASSED" and printed[1].startswith("row mismatch: [")
    assert printed[2:6] == ["Checking rows", "\trows 0:1", "\tt1: [True, False]", "\tt2: [True, True]"]
    assert printed[-1] == "row mismatch: [0]"


def test_memory_is_printed_if_it_is_reported(capsys, monkeypatch):
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


def text_model(**options):
    tokenizer = Tokenizer(word_tokenizer(), **{"bos_token": "<s>", "pad_token": "<pad>", **options})
    return HookedTransformer(CONFIGS["gpt2"], tokenizer, params=model("gpt2").params)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", ["<pad>", "<s>"])
def test_masks_and_tokens_without_bos(side, pad):
    the_model = text_model(padding_side=side, pad_token=pad)
    batch = the_model.to_tokens([LONG, SHORT])
    mask = utils.get_attention_mask(the_model.tokenizer, batch, True)
    assert mask.sum(1).tolist() == [11, 7]
    assert utils.get_attention_mask(None, batch, True).all()
    without = utils.get_tokens_with_bos_removed(the_model.tokenizer, batch)
    assert jnp.array_equal(without, the_model.to_tokens([LONG, SHORT], prepend_bos=False))


def test_prepending_bos():
    assert utils.get_input_with_manually_prepended_bos("<s>", "a") == "<s>a"
    assert utils.get_input_with_manually_prepended_bos("<s>", ["a", "b"]) == ["<s>a", "<s>b"]
    tokenizer = Tokenizer(word_tokenizer(), bos_token="<s>", default_prepend_bos=False, padding_side="left")
    copy = utils.get_tokenizer_with_bos(tokenizer)
    assert copy.to_tokens("went").tolist() == [[0, 7]] and tokenizer.to_tokens("went").tolist() == [[7]]
    assert copy.padding_side == "left"
    assert utils.get_tokenizer_with_bos(word_tokenizer()).to_tokens("went").tolist() == [[7]]  # no BOS token


def test_defaults_are_overridden_within_a_with_statement():
    the_model = text_model()
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
    the_model = text_model()
    assert jnp.array_equal(utils.get_nested_attr(the_model, "blocks.1.attn.W_Q"), the_model.blocks[1].attn.W_Q)
    utils.set_nested_attr(the_model, "tokenizer.padding_side", "left")
    assert the_model.tokenizer.padding_side == "left"
    utils.set_nested_attr(the_model, "name", "renamed")
    assert the_model.name == "renamed"


# --- the hub


def test_files_of_the_hub(tmp_path, monkeypatch):
    import huggingface_hub
    import torch

    calls = []

    def download(repo, name, **options):
        calls.append((repo, options))
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    (tmp_path / "a.json").write_text(json.dumps({"x": [1, 2]}))
    tensors = {"w": torch.ones(2, 3), "b": torch.ones(2, dtype=torch.bfloat16), "n": 4}
    torch.save(tensors, tmp_path / "a.pth")
    torch.save(tensors, tmp_path / "a.pt")
    assert utils.download_file_from_hf("me/model", "a.json", revision="main") == {"x": [1, 2]}
    for contents in (
        utils.download_file_from_hf("me/model", "a.pth", cache_dir=tmp_path),
        utils.download_file_from_hf("me/model", "a.pt", "inner", force_is_torch=True),
    ):
        assert np.array_equal(contents["w"], np.ones((2, 3))) and contents["b"].dtype == np.float32
        assert contents["n"] == 4
    assert utils.download_file_from_hf("me/model", "a.safetensors") == str(tmp_path / "a.safetensors")
    assert calls[0] == ("me/model", {"subfolder": ".", "cache_dir": None, "revision": "main"})
    assert [options["subfolder"] for _, options in calls] == [".", ".", "inner", "."]
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
def test_every_name_of_transformerlens_exists_or_raises_an_error_with_the_alternative(name):
    if name.startswith("init_") or name == "warn_if_mps":
        with pytest.raises(ImportError, match=f"{name}: (arrays are immutable|JAX does not use)"):
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


def test_conversions_to_a_slice():
    x = np.arange(12).reshape(3, 4)
    assert Slice.unwrap(1).apply(x).shape == (1, 4) and Slice(1).apply(x).shape == (4,)
    assert Slice.unwrap((0, 2)) == Slice(input_slice=(0, 2)) and Slice.unwrap(Slice(2)) == Slice(2)
    assert Slice(2).slice == 2 and Slice((0, 2)).slice == slice(0, 2) and Slice().slice == slice(None)
    assert np.array_equal(Slice([0, 2]).slice, [0, 2]) and np.array_equal(x[Slice([0, 2]).slice], x[[0, 2]])


# --- accuracy and sampling


def test_accuracy_is_the_share_of_correct_predictions():
    logits = np.random.default_rng(0).normal(size=(3, 9, 5))
    row = np.random.default_rng(1).integers(0, 5, (3, 9))
    right = logits.argmax(-1)[:, :-1] == row[:, 1:]
    assert np.array_equal(utils.lm_accuracy(jnp.asarray(logits), jnp.asarray(row), per_token=True), right)
    close(utils.lm_accuracy(jnp.asarray(logits), jnp.asarray(row)), right.mean())


LOGITS = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32) * 2
PREVIOUS = np.random.default_rng(1).integers(0, 7, (3, 6))
COUNTS = np.array([np.bincount(row, minlength=7) for row in PREVIOUS])
N_DRAWS = 40_000


def softmax(logits):
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def repeated(logits, penalty):
    for row, previous in zip(logits, PREVIOUS, strict=True):
        for token in set(previous.tolist()):
            row[token] = row[token] / penalty if row[token] > 0 else row[token] * penalty
    return logits


def nucleus(logits, p):
    for row in logits:
        order = np.argsort(-row)
        before = np.cumsum(softmax(row)[order]) - softmax(row)[order]
        row[order[before > p]] = -np.inf
    return logits


EXPECTED = {  # the options of the sampler, and the logits that they give by definition
    "plain": ({}, lambda x: x),
    "cold": ({"temperature": 0.5}, lambda x: x / 0.5),
    "top k": ({"top_k": 3}, lambda x: np.where(x < np.sort(x)[:, -3:-2], -np.inf, x)),
    "top k of more than all": ({"top_k": 100}, lambda x: x),
    "nucleus": ({"top_p": 0.7}, lambda x: nucleus(x, 0.7)),
    "nucleus of one token": ({"top_p": 0.01}, lambda x: np.where(x < x.max(-1, keepdims=True), -np.inf, x)),
    "repetition": ({"repetition_penalty": 2.0, "tokens": PREVIOUS}, lambda x: repeated(x, 2.0)),
    "frequency": ({"freq_penalty": 0.7, "tokens": PREVIOUS}, lambda x: x - 0.7 * COUNTS),
    "all": (
        {"temperature": 2.0, "top_p": 0.8, "repetition_penalty": 1.5, "freq_penalty": 0.2, "tokens": PREVIOUS},
        lambda x: nucleus(repeated(x, 1.5) / 2 - 0.2 * COUNTS, 0.8),
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_tokens_are_drawn_as_often_as_they_are_likely(name):
    options, transform = EXPECTED[name]
    expected = softmax(transform(LOGITS.astype(np.float64)))
    n = N_DRAWS // 3
    options = {key: jnp.tile(value, (n, 1)) if key == "tokens" else value for key, value in options.items()}
    drawn = np.asarray(sample_logits(jnp.tile(LOGITS, (n, 1)), key=3, **options)).reshape(n, 3)
    frequencies = np.array([np.bincount(column, minlength=7) for column in drawn.T]) / n
    assert (frequencies[expected == 0] == 0).all()
    assert (np.abs(frequencies - expected) < 5 * np.sqrt(expected * (1 - expected) / n) + 1e-9).all()


def test_temperature_zero_is_greedy():
    assert np.array_equal(sample_logits(LOGITS, temperature=0.0), LOGITS.argmax(-1))
    penalized = sample_logits(LOGITS, temperature=0, repetition_penalty=50.0, tokens=PREVIOUS)
    assert np.array_equal(penalized, repeated(LOGITS.copy(), 50.0).argmax(-1))
    assert np.array_equal(sample_logits(LOGITS, temperature=0, freq_penalty=9.0, tokens=PREVIOUS), LOGITS.argmax(-1))


def test_sampling_is_reproducible_with_a_key_or_numpys_seed():
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


def test_new_numbers_compile_nothing(compilations):  # noqa: F811
    sample_logits(LOGITS, top_p=0.5, temperature=0.7, key=0)
    logits = jax.block_until_ready(LOGITS + 1)
    compilations.clear()
    for top_p, temperature in ((0.9, 1.7), (1, 2), (np.float64(0.9), np.float64(0.7)), (0.5, np.float32(0.7))):
        sample_logits(logits, top_p=top_p, temperature=temperature, key=1)
    assert not compilations


# --- errors


def sample(**options):
    return sample_logits(LOGITS, **{"key": 0, **options})


def without(package, function):
    """Calls `function` as if a package were not installed."""
    module = sys.modules.get(package)
    sys.modules[package] = None
    try:
        return function()
    finally:
        del sys.modules[package]
        if module is not None:
            sys.modules[package] = module


def tokenize(**special):
    return tokenize_and_concatenate(["went"], Tokenizer(word_tokenizer(), **special), max_length=4)


MISTAKES = {
    "numpy of a set": Case(lambda: utils.to_numpy({1}), TypeError, "tensor is a set; expected an array"),
    "the structure of matrices of different shapes": Case(
        lambda: utils.check_structure(np.ones((2, 3)), np.ones((3, 2))), ValueError, "shapes (2, 3) and (3, 2)"
    ),
    "the fans of a scalar": Case(lambda: utils.calc_fan_in_and_fan_out(np.ones(())), ValueError, "tensor has shape ()"),
    "an unknown default": Case(
        lambda: utils.LocallyOverridenDefaults(model("gpt2"), truncate=True), ValueError,
        "truncate=True cannot override a default; expected prepend_bos (None, True, False) or",
    ),
    "an unknown side": Case(
        lambda: utils.LocallyOverridenDefaults(model("gpt2"), padding_side="top"), ValueError, "padding_side='top'"
    ),
    "initialization in place": Case(lambda: utils.init_xavier_normal_, ImportError, "jax.nn.initializers"),
    "logits of several positions": Case(
        lambda: utils.logits_to_df(np.ones((3, 5))), ValueError, "logits have shape (3, 5); expected those of one"
    ),
    "an unknown name": Case(lambda: utils.get_act_names, AttributeError, "has no attribute 'get_act_names'"),
    "no pandas": Case(
        lambda: without("pandas", lambda: utils.logits_to_df(np.ones(3))), ImportError, "run `pip install pandas`"
    ),
    "top k and top p": Case(
        lambda: sample(top_k=1, top_p=0.5), ValueError, "top_k=1 and top_p=0.5 cannot be combined"
    ),
    "top k of zero": Case(lambda: sample(top_k=0), ValueError, "top_k is 0; expected an integer, 1 or more"),
    "a key of text": Case(lambda: sample(key="abc"), TypeError, "the seed or key is a str; expected an integer or a"),
    "min p above one": Case(lambda: sample(min_p=2.0), ValueError, "min_p is 2.0; expected a share of the highest"),
    "top p of zero": Case(lambda: sample(top_p=0.0), ValueError, "top_p is 0.0; expected a probability"),
    "no frequency penalty": Case(lambda: sample(freq_penalty=float("nan")), ValueError, "freq_penalty is nan"),
    "a negative temperature": Case(lambda: sample(temperature=-1), ValueError, "temperature is -1; expected a number"),
    "no temperature": Case(lambda: sample(temperature=None), ValueError, "temperature is None; expected a number"),
    "a temperature of text": Case(lambda: sample(temperature="1"), ValueError, "temperature is '1'; expected a number"),
    "two temperatures": Case(
        lambda: sample(temperature=np.array([1.0, 2.0])), ValueError, "temperature is array([1., 2.]); expected"
    ),
    "no repetition penalty": Case(lambda: sample(repetition_penalty=0), ValueError, "repetition_penalty is 0; exp"),
    "top p of text": Case(lambda: sample(top_p="a"), ValueError, "top_p is 'a'; expected a probability"),
    "a penalty without tokens": Case(lambda: sample(freq_penalty=1.0), ValueError, "[batch, pos], got None"),
    "a penalty for embeddings": Case(
        lambda: sample(repetition_penalty=2.0, tokens=np.ones((3, 2, 4))), ValueError, "got shape (3, 2, 4)"
    ),
    "no key in a compiled function": Case(
        lambda: jax.jit(sample_logits)(LOGITS), ValueError, "inside jit, sample_logits needs key="
    ),
    "documents without EOS": Case(lambda: tokenize(bos_token="<s>"), ValueError, "the tokenizer has no EOS token"),
    "documents without BOS": Case(lambda: tokenize(eos_token="?"), ValueError, "the tokenizer has no BOS token"),
    "an unknown dataset": Case(lambda: utils.get_dataset("imagenet"), ValueError, "dataset_name is 'imagenet'"),
    "no datasets": Case(
        lambda: without("datasets", lambda: utils.get_dataset("wiki")), ImportError,
        "get_dataset needs the package datasets; run `pip install datasets`",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_raises_the_expected_error(case):
    case.check()


def test_every_error_is_reached_by_a_case():
    assert unreached(__file__, MISTAKES.values()) == []
