"""Checkpoints without the head of a language model: base models, and classifiers of sequences and of tokens."""

import json
import shutil

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from support.mistakes import Case, unreached
from support.tiny import random_tokens, write_checkpoint

from jaxlens import CheckpointError, Config, HookedTransformer
from jaxlens.checkpoints import converter
from jaxlens.cli import main

TOLERANCE = 1e-5
PADDING, LENGTHS = 3, (12, 7, 1)
FAMILIES = ["gpt2", "llama", "qwen2", "mistral", "gemma2", "gpt_neox", "phi3", "opt", "granite", "mixtral", "bloom"]
TIED = {"gpt2", "gemma2", "opt", "bloom"}
NO_SEQUENCES, NO_TOKENS, NO_SPANS = {"granite"}, {"granite", "opt"}, {"gemma2", "granite", "phi3"}


def families(*always, without=()):
    """A parameter for each family. Those that are not among `always` are left to `make test-all`."""
    kinds = [kind for kind in FAMILIES if kind not in without]
    values = [pytest.param(kind, marks=() if kind in always else pytest.mark.slow) for kind in kinds]
    return pytest.mark.parametrize("model_type", values)


def written(folder, model_type, kind, **fields):
    return write_checkpoint(folder, model_type, kind=kind, **{"pad_token_id": PADDING, "num_labels": 3, **fields})


def model_of(folder, **options):
    return HookedTransformer.from_pretrained_no_processing(str(folder), **options)


def theirs(folder, kind, tokens, mask=None):
    """The outputs of transformers. Positions count tokens, as in `generate`."""
    auto = getattr(transformers, f"AutoModel{kind}")
    model, info = auto.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    given = {"input_ids": torch.tensor(tokens)}
    if mask is not None:
        given["attention_mask"] = torch.tensor(mask)
        if "position_ids" in model.base_model.forward.__code__.co_varnames or model.config.model_type == "gpt2":
            given["position_ids"] = torch.tensor((mask.cumsum(-1) - 1).clip(0))
    with torch.no_grad():
        return model.eval()(**given, use_cache=False, output_hidden_states=True)


def padded(side):
    """Tokens of three lengths, padded on one side, and their mask."""
    tokens = random_tokens(0, max(LENGTHS), len(LENGTHS))
    tokens[tokens == PADDING] = PADDING + 1
    mask = np.array([[i < n if side == "right" else i >= max(LENGTHS) - n for i in range(max(LENGTHS))]
                     for n in LENGTHS])
    return np.where(mask, tokens, PADDING), mask.astype(int)


def assert_close(ours, expected):
    expected = expected.numpy()
    assert ours.shape == expected.shape
    assert np.abs(np.asarray(ours) - expected).max() <= TOLERANCE * np.abs(expected).max()


def tensors(folder):
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def assert_round_trip(folder, tmp_path):
    """Through the native format and back, every tensor is the same, bit for bit."""
    converter.convert(folder, tmp_path / "native")
    converter.convert_back(tmp_path / "native", tmp_path / "back")
    ours, original = tensors(tmp_path / "back"), tensors(folder)
    assert ours.keys() == original.keys()
    assert all(ours[name].tobytes() == value.tobytes() for name, value in original.items())


def edit_config(folder, **fields):
    config = {**json.loads((folder / "config.json").read_text()), **fields}
    config = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


@families("gpt2", "llama", "gpt_neox", "phi3")
def test_a_base_model_has_residual_streams_and_no_logits(tmp_path, model_type):
    folder = written(tmp_path / "theirs", model_type, "")
    tokens, expected = random_tokens(1, 20), None
    model, expected = model_of(folder), theirs(folder, "", tokens)
    names = [*(f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)), "unembed.hook_in"]
    output, cache = model.run_with_cache(tokens, return_type=None, names_filter=names)
    assert output is None
    for name, states in zip(names, expected.hidden_states, strict=True):
        assert_close(cache[name], states)
    if model_type in TIED:  # the embedding is the head
        assert model(tokens).shape == (*tokens.shape, model.cfg.d_vocab)
        assert model.cfg.output_head == "next_token"
        return
    assert model.cfg.output_head is None
    assert_close(model(tokens, stop_at_layer=-1), expected.hidden_states[-2])
    for wanted in ("logits", "loss", "both"):
        with pytest.raises(ValueError, match="no unembedding, so it computes no logits and no loss; pass return_type"):
            model(tokens, return_type=wanted)
    assert_round_trip(folder, tmp_path)


@pytest.mark.parametrize("model_type", ["phi", "gptj"])
def test_tied_embeddings_are_no_head_without_its_bias(tmp_path, model_type):
    folder, tokens = written(tmp_path / "theirs", model_type, "", tie_word_embeddings=True), random_tokens(1, 9)
    model, expected = model_of(folder), theirs(folder, "", tokens).last_hidden_state
    assert model.cfg.output_head is None
    assert_close(model.run_with_cache(tokens, return_type=None)[1]["unembed.hook_in"], expected)
    assert_round_trip(folder, tmp_path)


def test_everything_else_of_a_base_model(tmp_path, capsys):
    folder = written(tmp_path / "theirs", "llama", "")
    model, tokens = HookedTransformer.from_pretrained(str(folder)), random_tokens(1, 9)
    _, cache = model.run_with_cache(tokens, return_type=None)
    assert "unembed.hook_out" not in cache and "ln_final.hook_normalized" in cache
    assert "no unembedding" in repr(model)
    for of_logits in (lambda: model.W_U, lambda: model.tokens_to_residual_directions(3), cache.logit_lens,
                      lambda: jax.jit(lambda model: model(tokens))(model)):
        with pytest.raises(ValueError, match="this model has no unembedding"):
            of_logits()
    assert jax.jit(lambda model: model(tokens, stop_at_layer=2))(model).shape == (2, 9, 36)
    assert main(["inspect", str(folder)]) == 0
    assert "no unembedding" in capsys.readouterr().out
    assert main(["verify", str(folder), "--length", "9"]) == 0
    assert "last hidden state" in capsys.readouterr().out


@pytest.mark.parametrize("architectures", [["LlamaForCausalLM"], None])
def test_a_base_model_that_config_json_calls_a_language_model(tmp_path, architectures):
    folder = written(tmp_path / "theirs", "llama", "")
    edit_config(folder, architectures=architectures)
    assert model_of(folder).cfg.output_head is None


def test_a_language_model_that_config_json_calls_a_base_model(tmp_path):
    folder = written(tmp_path / "theirs", "llama", "ForCausalLM")
    edit_config(folder, architectures=["LlamaModel"])
    assert model_of(folder).cfg.output_head == "next_token"


def test_a_language_model_without_its_head_is_damaged(tmp_path):
    folder = written(tmp_path / "theirs", "llama", "ForCausalLM")
    save_file({n: v for n, v in tensors(folder).items() if n != "lm_head.weight"}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 tensor is missing: lm_head\.weight"):
        model_of(folder)
    edit_config(folder, architectures=["LlamaModel"])
    assert model_of(folder).cfg.output_head is None


@families("gpt2", "llama", "gemma2", "gpt_neox", without=NO_SEQUENCES)
def test_a_classifier_of_sequences(tmp_path, model_type):
    kind = "ForSequenceClassification"
    folder = written(tmp_path / "theirs", model_type, kind)
    model = model_of(folder)
    assert (model.cfg.output_head, model.cfg.d_vocab_out) == ("sequence_labels", 3)
    for side in ("left", "right"):
        tokens, mask = padded(side)
        expected = theirs(folder, kind, tokens, mask).logits
        assert_close(model.label_scores(tokens, attention_mask=mask), expected)
        assert model(tokens, attention_mask=mask).shape == (*tokens.shape, 3)
    assert_close(model.label_scores(tokens), expected)  # padded on the right, without a mask
    assert_round_trip(folder, tmp_path)


@families("gpt2", "llama", without=NO_TOKENS)
def test_a_classifier_of_tokens(tmp_path, model_type):
    kind = "ForTokenClassification"
    folder, tokens = written(tmp_path / "theirs", model_type, kind), random_tokens(2, 11)
    model = model_of(folder)
    assert_close(model(tokens), theirs(folder, kind, tokens).logits)
    assert model.cfg.output_head == "token_labels"
    assert_round_trip(folder, tmp_path)


@families("llama", "gpt_neox", without=NO_SPANS)
def test_a_model_for_question_answering(tmp_path, model_type):
    kind = "ForQuestionAnswering"
    folder, tokens = written(tmp_path / "theirs", model_type, kind, num_labels=2), random_tokens(2, 11)
    model, expected = model_of(folder), theirs(folder, kind, tokens)
    assert_close(model(tokens), torch.stack((expected.start_logits, expected.end_logits), -1))
    assert_round_trip(folder, tmp_path)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_the_number_of_labels(tmp_path, number):
    """transformers does not write two labels to config.json. A reward model has one."""
    kind = "ForSequenceClassification"
    folder, tokens = written(tmp_path / "theirs", "llama", kind, num_labels=number), random_tokens(1, 6, 1)
    assert_close(model_of(folder).label_scores(tokens), theirs(folder, kind, tokens).logits)
    edit_config(folder, architectures=None, id2label=None)
    if number != 2:
        edit_config(folder, label2id=None)
    assert_close(model_of(folder).label_scores(tokens), theirs(folder, kind, tokens, None).logits if number == 2
                 else torch.tensor(np.asarray(model_of(folder)(tokens)[:, -1])))


def test_processing_and_analysis_of_a_reward_model(tmp_path, capsys):
    folder = written(tmp_path / "theirs", "llama", "ForSequenceClassification", num_labels=1)
    plain, processed, tokens = model_of(folder), HookedTransformer.from_pretrained(str(folder)), random_tokens(0, 8)
    assert "not center_unembed: the outputs are scores of labels" in repr(processed)
    expected = np.asarray(plain(tokens))
    assert np.abs(np.asarray(processed(tokens)) - expected).max() <= TOLERANCE * np.abs(expected).max()
    cache = processed.run_with_cache(tokens)[1]
    assert np.allclose(cache.logit_lens(positions=None).values[-1], processed(tokens), atol=1e-5)
    gradient = jax.grad(lambda residual: processed(residual, start_at_layer=0)[:, -1].sum())(cache["resid_pre", 0])
    assert np.abs(gradient).max() > 0
    with pytest.raises(ValueError, match="the outputs of this model are scores of labels"):
        plain(tokens, return_type="loss")
    assert main(["inspect", str(folder)]) == 0
    assert "scores of 1 label for the sequence" in capsys.readouterr().out
    assert main(["verify", str(folder), "--length", "8"]) == 0
    assert main(["export", str(folder), str(tmp_path / "exported")]) == 0


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return written(tmp_path_factory.mktemp("classifier") / "theirs", "llama", "ForSequenceClassification")


def with_config(folder, **fields):
    copied = shutil.copytree(folder, folder.parent / "changed", dirs_exist_ok=True)
    edit_config(copied, **fields)
    return model_of(copied)


def test_errors(classifier):
    cases = [
        Case(lambda: with_config(classifier, id2label=None, num_labels=0), CheckpointError,
             "num_labels is 0; expected a positive integer"),
        Case(lambda: with_config(classifier, id2label={"0": "A"}), CheckpointError,
             "score.weight is (3, 36), expected (1, 36)"),
        Case(lambda: HookedTransformer(Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_vocab=9, n_ctx=8))
             .label_scores([[1]]), ValueError,
             'label_scores needs output_head="sequence_labels"; this model has \'next_token\''),
    ]  # fmt: skip
    for case in cases:
        case.check()
    assert unreached(__file__, cases) == []
