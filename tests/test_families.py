"""Laws 7 and 8: a checkpoint of transformers gives the same logits here, and its export has the same tensors."""

import json
import math
import re

import numpy as np
import pytest
import transformers
from families import CASES, PUBLISHED, REFUSED
from families.common import LLAMA3, LONGROPE, ROPE
from safetensors.numpy import load_file, save_file
from support.tiny import hf_logits, random_tokens, write_checkpoint

from jaxlens import CheckpointError, HookedTransformer
from jaxlens.checkpoints import all_families, export, load
from jaxlens.checkpoints.open import read_config
from jaxlens.nn.parameters import parameter_shapes

TOLERANCE = 1e-5
"""The allowed difference relative to the largest logit, in float32, for every family. Any larger one is a bug."""

LENGTH = 40

TOYS = ("neel", "neel-solu-old", "mingpt")
"""The families of TransformerLens's toy models, whose cases are in test_published.py."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_have_their_published_size(name):
    parameters, fields = PUBLISHED[name]
    cfg = read_config({"torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": True, **fields})[1]
    assert sum(math.prod(shape.shape) for shape in parameter_shapes(cfg).values()) == parameters


def logits(folder, tokens, **options):
    loaded = load(folder, **options)
    return np.asarray(HookedTransformer(loaded.cfg, params=loaded.params, source=loaded.source)(tokens))


def assert_equal_logits(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()


def tensors(folder):
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def assert_same_tensors(ours, theirs):
    assert sorted(ours) == sorted(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype, name
        assert ours[name].tobytes() == value.tobytes(), name


every_case = pytest.mark.parametrize(
    ("model_type", "fields"),
    [pytest.param(kind, case, id=f"{kind}-{i}") for kind in CASES for i, case in enumerate(CASES[kind])],
)


@every_case
def test_logits_and_round_trip(tmp_path, model_type, fields):
    for seed in range(2):
        theirs = write_checkpoint(tmp_path / f"theirs-{seed}", model_type, seed, **fields)
        tokens = random_tokens(seed, LENGTH)
        expected = hf_logits(theirs, tokens)
        loaded = load(theirs, n_ctx=64 if fields.get("max_position_embeddings", 64) < LENGTH else None)
        model = HookedTransformer(loaded.cfg, params=loaded.params, source=loaded.source)
        assert_equal_logits(np.asarray(model(tokens)), expected)

    ours = export(tmp_path / "ours", load(theirs).cfg, model.params, model.source)
    assert_same_tensors(tensors(ours), tensors(theirs))
    assert np.array_equal(hf_logits(ours, tokens), expected)


def log_probs(logits):
    logits = logits.astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


@pytest.mark.slow
@every_case
def test_processed_weights_keep_the_log_probabilities(tmp_path, model_type, fields):
    theirs, tokens = write_checkpoint(tmp_path, model_type, 1, **fields), random_tokens(1, LENGTH)
    n_ctx = 64 if fields.get("max_position_embeddings", 64) < LENGTH else None
    ours, expected = HookedTransformer.from_pretrained(theirs, n_ctx=n_ctx)(tokens), hf_logits(theirs, tokens)
    difference = log_probs(np.asarray(ours)) - log_probs(expected)
    assert np.abs(difference).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize(("model_type", "fields", "text"), REFUSED)
def test_unsupported_fields_are_refused(tmp_path, model_type, fields, text):
    theirs = json.loads((write_checkpoint(tmp_path, model_type) / "config.json").read_text())
    with pytest.raises(CheckpointError, match=re.escape(text)):
        read_config({**theirs, **fields})


def test_every_family_has_cases():
    in_transformers = {kind for kind in all_families() if kind in transformers.CONFIG_MAPPING}
    assert in_transformers == set(CASES) and set(all_families()) - in_transformers == {"jaxlens", "qwen", *TOYS}
    assert all(len(cases) >= 4 for cases in CASES.values())


def test_short_sequences_are_not_scaled(tmp_path):
    """Below the original context, dynamic and longrope use the frequencies for short sequences."""
    for i, parameters in enumerate((LONGROPE, {**ROPE, "rope_type": "dynamic", "factor": 4.0})):
        folder = write_checkpoint(tmp_path / str(i), "llama", rope_parameters=parameters)
        tokens = random_tokens(0, 12)
        assert_equal_logits(logits(folder, tokens), hf_logits(folder, tokens))


@pytest.mark.parametrize(
    ("model_type", "parameters", "n_ctx"),
    [
        ("llama", {**ROPE, "rope_type": "dynamic", "factor": 4.0}, 64),
        ("llama", {**ROPE, "rope_type": "dynamic", "factor": 2.6}, 41),
        ("llama", {**LONGROPE, "factor": 3.0, "attention_factor": 1.25}, 48),
        ("llama", {**LONGROPE, "factor": 4.0, "original_max_position_embeddings": 10}, 40),
        ("gpt_neox", {**ROPE, "rope_type": "dynamic", "factor": 3.0, "partial_rotary_factor": 0.6}, 48),
        ("falcon", {**ROPE, "rope_type": "dynamic", "factor": 4.0}, 64),
    ],
)
def test_scaled_contexts(tmp_path, model_type, parameters, n_ctx):
    """A model with max_position_embeddings = 16 runs up to the context that its scaling is made for.

    Each row has the logits that transformers computes for its tokens alone: below, at and past
    max_position_embeddings, in one batch with padding on either side.
    """
    folder = write_checkpoint(tmp_path, model_type, max_position_embeddings=16, rope_parameters=parameters)
    loaded = load(folder)
    assert loaded.cfg.n_ctx == n_ctx
    model, tokens = HookedTransformer(loaded.cfg, params=loaded.params), random_tokens(0, n_ctx, batch=4)
    lengths = (9, 16, 17, n_ctx)
    mask = np.arange(n_ctx) < np.array(lengths)[:, None]
    batch = np.asarray(model(tokens, attention_mask=mask))
    left = np.asarray(model(tokens[:, ::-1], attention_mask=mask[:, ::-1]))
    for row, length in enumerate(lengths):
        expected = hf_logits(folder, tokens[row : row + 1, :length])
        assert_equal_logits(np.asarray(model(tokens[row : row + 1, :length])), expected)
        assert_equal_logits(batch[row : row + 1, :length], expected)
        expected = hf_logits(folder, np.ascontiguousarray(tokens[row : row + 1, :length][:, ::-1]))
        assert_equal_logits(left[row : row + 1, n_ctx - length :], expected)
    with pytest.raises(ValueError, match=f"{n_ctx + 1} positions, more than the model's n_ctx = {n_ctx}"):
        model(random_tokens(0, n_ctx + 1))
    exported = export(tmp_path / "exported", loaded.cfg, loaded.params, loaded.source)
    assert load(exported).cfg == loaded.cfg


def test_a_scaled_context_that_is_too_long(tmp_path):
    fields = json.loads((write_checkpoint(tmp_path, "llama") / "config.json").read_text())
    rope = {**ROPE, "rope_type": "dynamic", "factor": 1e9}
    text = "rope_parameters.factor is 1000000000.0; expected a factor with which the context is shorter than 2^31"
    with pytest.raises(CheckpointError, match=re.escape(text)):
        read_config({**fields, "rope_parameters": rope})


def edit_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    config = {**config, **fields}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    return config


def rename_tensors(folder, rename, **more):
    renamed = {rename(name): value for name, value in tensors(folder).items()}
    save_file({**renamed, **more}, folder / "model.safetensors")


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"type": "linear", "factor": 4.0},
        {"rope_type": "llama3", **{name: value for name, value in LLAMA3.items() if name not in ROPE}},
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "finetuned": True},
    ],
    ids=str,
)
def test_rope_fields_of_older_files(tmp_path, scaling):
    """The older fields `rope_theta` and `rope_scaling` together mean the same as `rope_parameters`."""
    folder = write_checkpoint(tmp_path, "llama")
    edit_config(folder, rope_parameters=..., rope_theta=500.0, rope_scaling=scaling, torch_dtype="float32", dtype=...)
    tokens = random_tokens(0, LENGTH)
    assert_equal_logits(logits(folder, tokens), hf_logits(folder, tokens))


def test_rope_fields_of_older_gemma3_files(tmp_path):
    folder = write_checkpoint(tmp_path, "gemma3_text")
    scaling = {"rope_type": "linear", "factor": 8.0}
    older = {"rope_theta": 1000.0, "rope_local_base_freq": 100.0, "rope_scaling": scaling, "sliding_window_pattern": 2}
    edit_config(folder, rope_parameters=..., layer_types=..., _sliding_window_pattern=..., **older)
    tokens = random_tokens(0, LENGTH)
    loaded = load(folder)
    assert [rotary.base for rotary in loaded.cfg.rotary] == [100.0, 1000.0, 100.0, 1000.0]
    assert_equal_logits(logits(folder, tokens), hf_logits(folder, tokens))


def test_gpt2_as_openai_published_it(tmp_path):
    """Tensor names without the prefix "transformer.", causal masks as tensors, and the config.json fields of 2019."""
    folder = write_checkpoint(tmp_path / "theirs", "gpt2")
    expected = hf_logits(folder, random_tokens(0))
    masks = {f"h.{layer}.attn.bias": np.tril(np.ones((1, 1, 64, 64), np.float32)) for layer in range(3)}
    original = tensors(folder)
    rename_tensors(folder, lambda name: name.removeprefix("transformer."), **masks)
    edit_config(folder, n_ctx=64, task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}})
    loaded = load(folder)
    assert_equal_logits(logits(folder, random_tokens(0)), expected)
    exported = export(tmp_path / "ours", loaded.cfg, loaded.params, loaded.source)
    assert_same_tensors(tensors(exported), original)


@pytest.mark.parametrize(
    ("model_type", "buffer"),
    [
        ("gptj", "transformer.h.0.attn.masked_bias"),
        ("codegen", "transformer.h.0.attn.causal_mask"),
        ("gpt_neox", "gpt_neox.layers.0.attention.bias"),
        ("gpt_neox", "gpt_neox.layers.0.attention.rotary_emb.inv_freq"),
        ("qwen3", "model.layers.0.self_attn.rotary_emb.inv_freq"),
    ],
)
def test_masks_and_frequencies_in_older_files_are_ignored(tmp_path, model_type, buffer):
    folder = write_checkpoint(tmp_path, model_type)
    plain = load(folder).params
    rename_tensors(folder, lambda name: name.replace("embed_out", "lm_head"), **{buffer: np.ones((2, 2), bool)})
    for name, value in load(folder).params.items():
        assert np.array_equal(value, plain[name]), name


def test_gates_beyond_the_clamps(tmp_path):
    """Random weights rarely exceed gpt-oss's clamps at ±7. These biases exceed them on both sides."""
    folder = write_checkpoint(tmp_path, "gpt_oss")
    biases = {name: 150 * value for name, value in tensors(folder).items() if name.endswith("gate_up_proj_bias")}
    assert biases and all((value[..., ::2] > 7).any() and (abs(value) > 7).any() for value in biases.values())
    rename_tensors(folder, str, **biases)
    assert_equal_logits(logits(folder, random_tokens(0)), hf_logits(folder, random_tokens(0)))


def test_half_precision_is_kept_bit_for_bit(tmp_path):
    for dtype in ("bfloat16", "float16"):
        theirs = write_checkpoint(tmp_path / dtype, "gemma2", dtype=dtype)
        loaded = load(theirs, dtype=None)
        assert loaded.cfg.dtype == dtype
        assert {str(value.dtype) for value in loaded.params.values()} == {dtype}
        ours = export(tmp_path / f"{dtype}-ours", loaded.cfg, loaded.params, loaded.source)
        assert_same_tensors(tensors(ours), tensors(theirs))
        assert json.loads((ours / "config.json").read_text())["dtype"] == dtype
        assert_equal_logits(logits(theirs, random_tokens(0)), hf_logits(theirs, random_tokens(0)))


def test_sharded_folders(tmp_path):
    theirs = write_checkpoint(tmp_path / "theirs", "llama", shard="20KB")
    assert len(list(theirs.glob("*.safetensors"))) > 2
    loaded = load(theirs)
    ours = export(tmp_path / "ours", loaded.cfg, loaded.params, loaded.source, shard_bytes=20_000)
    assert len(list(ours.glob("model-*-of-*.safetensors"))) > 2
    assert_same_tensors(tensors(ours), tensors(theirs))
    tokens = random_tokens(0)
    assert np.array_equal(hf_logits(ours, tokens), hf_logits(theirs, tokens))
    assert_equal_logits(logits(ours, tokens), hf_logits(theirs, tokens))


@pytest.mark.parametrize(
    "model_type", ["gpt2", "gpt_neo", "qwen2", "gemma2", "gemma3_text", "codegen", "smollm3", "exaone4", "qwen3_moe"]
)
def test_the_first_layers_are_a_complete_model(tmp_path, model_type):
    """Its weights are those of the same layers of the full model, and it can be exported."""
    theirs = write_checkpoint(tmp_path / "theirs", model_type)
    full, cut = load(theirs), load(theirs, first_n_layers=2)
    assert cut.cfg.n_layers == 2
    for name, value in cut.params.items():
        expected = full.params[name][:2] if name.startswith("blocks") else full.params[name]
        assert np.array_equal(value, expected), name
    exported = export(tmp_path / "ours", cut.cfg, cut.params, cut.source)
    tokens = random_tokens(0)
    assert_equal_logits(logits(theirs, tokens, first_n_layers=2), hf_logits(exported, tokens))


def test_an_export_spells_fields_as_the_checkpoint_does(tmp_path):
    """Configs of transformers accept standard names, such as num_hidden_layers for GPT-2's n_layer."""
    theirs = write_checkpoint(tmp_path / "theirs", "gpt2")
    names = {"n_layer": "num_hidden_layers", "n_positions": "max_position_embeddings"}
    fields = json.loads((theirs / "config.json").read_text())
    fields = {names.get(name, name): value for name, value in fields.items()}
    (theirs / "config.json").write_text(json.dumps(fields))
    cut = load(theirs, first_n_layers=2, n_ctx=50)
    exported = export(tmp_path / "ours", cut.cfg, cut.params, cut.source)
    written = json.loads((exported / "config.json").read_text())
    assert (written["num_hidden_layers"], written["max_position_embeddings"]) == (2, 50)
    assert not {"n_layer", "n_positions"} & written.keys()
    tokens = random_tokens(0)
    assert_equal_logits(logits(theirs, tokens, first_n_layers=2), hf_logits(exported, tokens))


@pytest.mark.parametrize(
    ("model_type", "name"), [("llama", "sliding_window"), ("mistral", "layer_types"), ("gpt2", "rope_scaling")]
)
def test_a_null_field_is_an_absent_field(tmp_path, model_type, name):
    fields = json.loads((write_checkpoint(tmp_path, model_type) / "config.json").read_text())
    assert read_config({**fields, name: None})[1] == read_config(fields)[1]


def test_a_shorter_context_has_fewer_learned_positions(tmp_path):
    theirs = write_checkpoint(tmp_path / "theirs", "gpt2")
    full, short = load(theirs), load(theirs, n_ctx=50)
    assert np.array_equal(short.params["pos_embed.W_pos"], full.params["pos_embed.W_pos"][:50])
    exported = export(tmp_path / "ours", short.cfg, short.params, short.source)
    assert json.loads((exported / "config.json").read_text())["n_positions"] == 50
    assert np.array_equal(hf_logits(exported, random_tokens(0)), hf_logits(theirs, random_tokens(0)))


@pytest.mark.parametrize(("model_type", "field"), [("bloom", "seq_length"), ("mpt", "max_seq_len")])
def test_a_shorter_context_is_exported_in_the_field_of_the_family(tmp_path, model_type, field):
    short = load(write_checkpoint(tmp_path / "theirs", model_type), n_ctx=50)
    exported = export(tmp_path / "ours", short.cfg, short.params, short.source)
    assert json.loads((exported / "config.json").read_text())[field] == 50
    assert load(exported).cfg == short.cfg
