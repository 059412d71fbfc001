"""LoRA adapters, which peft wrote: merged when a checkpoint is loaded, or kept beside the weights."""

import json
import re
import shutil
import sys
import warnings

import jax
import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file, save_file
from support.adapters import config, torch_model, write_adapter
from support.memory import peak_memory
from support.mistakes import Case, unreached
from support.tiny import random_tokens, write_checkpoint

import jaxlens
from jaxlens import CheckpointError, HookedTransformer
from jaxlens.checkpoints import arrays, converter, export, find
from jaxlens.checkpoints.adapters import merge
from jaxlens.checkpoints.folder_reader import TensorFolder
from jaxlens.checkpoints.open import open_config
from jaxlens.checkpoints.safetensors_reader import SafetensorsFile
from jaxlens.cli import main

warnings.filterwarnings("ignore", module="peft")

TOLERANCE = 1e-5
TOKENS = random_tokens(1, 12)


def theirs(model, tokens=TOKENS):
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens)).logits.numpy()


def loaded(source, **options):
    return HookedTransformer.from_pretrained_no_processing(str(source), **options)


def assert_close(ours, expected):
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A function that returns a tiny checkpoint of a model_type."""
    root, written = tmp_path_factory.mktemp("bases"), {}

    def get(model_type, **fields):
        key = (model_type, *fields.items())
        if key not in written:
            written[key] = write_checkpoint(root / str(len(written)), model_type, **fields)
        return written[key]

    return get


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
MERGED = {
    "plain": ("llama", config("q_proj", "v_proj", "down_proj")),
    "in bfloat16": ("llama-bfloat16", config("all-linear")),
    "patterns": ("llama", config(r".*\.[qo]_proj", use_rslora=True, rank_pattern={"q_proj": 5},
                                 alpha_pattern={"layers.1.self_attn.q_proj": 2})),
    "DoRA of all linear layers": ("llama", config("all-linear", use_dora=True)),
    "layers, embeddings": ("llama", config("q_proj", "embed_tokens", "lm_head", layers_to_transform=[0, 2])),
    "saved modules": ("llama", config("q_proj", modules_to_save=["lm_head", "embed_tokens", "input_layernorm"])),
    "Conv1D, all biases": ("gpt2", config("c_attn", "c_proj", "c_fc", fan_in_fan_out=True, bias="all")),
    "Conv1D, its biases": ("gpt2", config("c_attn", "c_proj", bias="lora_only")),
    "Conv1D, DoRA": ("gpt2", config("all-linear", use_dora=True)),
    "a bias of its own": ("gpt2", config("c_attn", lora_bias=True)),
    "tied, both adapted": ("gpt2", config("c_attn", "wte", "lm_head")),
    "tied, one update of both": ("gemma2", config("q_proj", "embed_tokens", ensure_weight_tying=True)),
    "tied, DoRA of the embedding": ("gpt2", config("c_attn", "wte", use_dora=True)),
    "tied, an embedding of its own": ("gpt2", config("c_attn", modules_to_save=["wte"])),
    "tied, a head of its own": ("gpt2", config("c_attn", modules_to_save=["lm_head"])),
    "tied, some tokens": ("gpt2", config("c_attn", trainable_token_indices={"wte": [1, 5, 9]})),
    "tied, some tokens of the head": ("qwen2", config("q_proj", trainable_token_indices={"lm_head": [3, 7]})),
    "tied, other tokens of the head": (
        "qwen2", config("q_proj", trainable_token_indices={"embed_tokens": [3, 5], "lm_head": [3]})
    ),
    "tied, a scaled embedding": ("gemma2", config("q_proj", "embed_tokens")),
    "fused by head": ("gpt_neox", config("query_key_value", "dense", "dense_h_to_4h", "embed_out")),
    "fused by kind": ("phi3", config("qkv_proj", "gate_up_proj")),
    "biases": ("qwen2", config("q_proj", "gate_proj", bias="all")),
    "experts of one tensor each": ("mixtral", config("gate", target_parameters=EXPERTS)),
    "stacked experts": ("gpt_oss", config("q_proj", target_parameters=EXPERTS)),
    "all linear layers with latents": ("deepseek_v3", config("all-linear")),
}  # fmt: skip


@pytest.mark.parametrize("case", MERGED)
def test_a_merged_adapter_has_the_logits_of_peft(tmp_path, bases, case):
    (model_type, _, dtype), lora = MERGED[case][0].partition("-"), MERGED[case][1]
    base, adapter = bases(model_type, **({"dtype": dtype} if dtype else {})), tmp_path / "adapter"
    expected = theirs(write_adapter(adapter, base, lora))
    model = loaded(base, adapter=adapter)
    assert_close(model(TOKENS), expected)
    again = export(tmp_path / "exported", model.cfg, model.params, model.source)
    assert_close(theirs(torch_model(again)), expected)


def test_an_adapter_names_its_base_model(tmp_path, bases, capsys):
    base, adapter = bases("llama"), tmp_path / "adapter"
    expected = theirs(write_adapter(adapter, base, config("q_proj"), safe=False))
    assert (adapter / "adapter_model.bin").is_file()
    model = loaded(adapter)
    assert_close(model(TOKENS), expected)
    assert model.name == str(adapter)
    converter.convert(adapter, tmp_path / "native")
    assert_close(loaded(tmp_path / "native")(TOKENS), expected)
    assert main(["inspect", str(adapter)]) == 0
    assert "LoRA of rank 3; changes 3 modules" in capsys.readouterr().out
    assert main(["verify", str(adapter), "--length", "12"]) == 0
    assert open_config(adapter) == model.cfg


def test_commands_merge_an_adapter(tmp_path, bases, capsys):
    base, adapter = str(bases("llama", max_position_embeddings=128)), str(tmp_path / "adapter")
    expected = theirs(write_adapter(adapter, base, config("q_proj", "down_proj")))
    options = ["--adapter", adapter]
    assert main(["convert", base, str(tmp_path / "native"), *options]) == 0
    assert_close(loaded(tmp_path / "native")(TOKENS), expected)
    assert main(["export", base, str(tmp_path / "exported"), *options]) == 0
    assert_close(theirs(torch_model(tmp_path / "exported")), expected)
    assert main(["verify", base, "--length", "12", *options]) == 0
    capsys.readouterr()
    assert main(["inspect", base, *options]) == 0
    assert "LoRA of rank 3; changes 6 modules" in capsys.readouterr().out
    scores = []
    for arguments in (["--model", base, *options], ["--model", str(tmp_path / "native")]):
        assert main(["heads", *arguments, "--json"]) == 0
        scores.append(json.loads(capsys.readouterr().out))
    assert scores[0] == {**scores[1], "model": base, "adapter": adapter}


def test_a_repository_with_an_adapter(tmp_path, bases, monkeypatch):
    adapter = tmp_path / "adapter"
    expected = theirs(write_adapter(adapter, bases("llama"), config("q_proj")))
    asked = []

    def download(name, repository, revision=None, *, files=(), ignored=(), **hub):
        asked.append((repository, revision, "adapter_model.safetensors" in files, hub["token"]))
        return adapter

    monkeypatch.setattr(find, "download", download)
    assert_close(loaded("someone/an-adapter", revision="v2", token="abc")(TOKENS), expected)
    assert asked == [("someone/an-adapter", "v2", False, "abc"), ("someone/an-adapter", "v2", True, "abc")]
    assert_close(loaded(bases("llama"), adapter="someone/an-adapter")(TOKENS), expected)


def test_a_vocabulary_that_training_extended(tmp_path, bases):
    for model_type, target in (("llama", "q_proj"), ("gpt2", "c_attn")):
        base, adapter, tokens = bases(model_type), tmp_path / model_type, random_tokens(2, 12, vocabulary=67)
        expected = theirs(write_adapter(adapter, base, config(target), vocabulary=67), tokens)
        model = loaded(adapter)
        assert model.cfg.d_vocab == 67
        assert_close(model(tokens), expected)


@pytest.mark.parametrize(("model_type", "target", "task"), [
    ("llama", "q_proj", "SEQ_CLS"), ("gpt2", "c_attn", "SEQ_CLS"), ("gpt2", "c_attn", "TOKEN_CLS"),
    ("llama", "q_proj", "TOKEN_CLS"),
])
def test_an_adapter_with_a_head_of_labels(tmp_path, bases, model_type, target, task):
    """The base model is a language model. The adapter replaces its head."""
    kind = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}[task]
    base, adapter = bases(model_type), tmp_path / "adapter"
    options = {"kind": kind, "num_labels": 3, "pad_token_id": 60}
    expected = theirs(write_adapter(adapter, base, config(target, task_type=task), **options), TOKENS % 60)
    for model in (loaded(adapter), loaded(adapter, merge=False)):
        ours = model.label_scores(TOKENS % 60) if task == "SEQ_CLS" else model(TOKENS % 60)
        assert_close(ours, expected)


@pytest.mark.parametrize("case", ["plain", "DoRA of all linear layers", "Conv1D, DoRA"])
def test_merging_in_many_parts(tmp_path, bases, case, monkeypatch):
    """Values do not depend on how many rows are computed at a time."""
    model_type, lora = MERGED[case]
    write_adapter(tmp_path / "adapter", bases(model_type), lora)
    whole = loaded(tmp_path / "adapter").params
    monkeypatch.setattr(arrays, "AT_ONCE", 100)
    monkeypatch.setattr(arrays, "IN_THREAD", 50)
    monkeypatch.setattr(arrays, "SUMMED", 7)
    monkeypatch.setattr(merge, "ROWS", 3)
    for name, value in loaded(tmp_path / "adapter").params.items():
        assert_close(value, whole[name])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_merging_needs_little_more_memory_than_the_weights(tmp_path, apart):
    """At most 1.3 times the parameters."""
    sizes = {"hidden_size": 768, "intermediate_size": 1024, "head_dim": 64, "vocab_size": 301}
    base = write_checkpoint(tmp_path / "base", "llama", **sizes)
    folders = {use_dora: tmp_path / f"adapter-{use_dora}" for use_dora in (False, True)}
    for use_dora, folder in folders.items():
        write_adapter(folder, base, config("all-linear", use_dora=use_dora))
        loaded(folder)  # completes the config with transformers, which takes memory only once
    ratios = peak_memory(apart, folders.values())
    assert len(ratios) == 2 and max(ratios) < 1.3, ratios


def test_rows_of_a_base_model_that_ends_early(tmp_path):
    """A matrix is read row by row, in any dtype; a file that lost its end since it was opened is noticed."""
    path = tmp_path / "model.safetensors"
    values = np.arange(12).reshape(4, 3)
    stored = {name: values.astype(name) for name in ("float64", "float16", "float32")}
    save_file(stored, path)
    file = SafetensorsFile(path)
    for name, value in stored.items():
        assert np.array_equal(arrays.whole(file.by_rows(name)), value)
    rows = [file.by_rows(name) for name in ("float16", "float32")]
    assert np.array_equal(rows[1].part(slice(1, 3)), stored["float32"][1:3])
    path.write_bytes(path.read_bytes()[: -sum(value.nbytes for value in stored.values())])
    for few in rows:
        with pytest.raises(CheckpointError, match="cannot be read as safetensors: it ends before the end of float"):
            few.array()


# --- an adapter beside the weights


APART = {
    "separate": ("llama", config("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
                                 rank_pattern={"q_proj": 5})),
    "Conv1D": ("gpt2", config("c_attn", "c_proj", "c_fc", layers_to_transform=[0, 2])),
    "fused by head": ("gpt_neox", config("query_key_value", "dense", "dense_h_to_4h")),
    "fused by kind": ("phi3", config("qkv_proj", "gate_up_proj")),
}  # fmt: skip


@pytest.mark.parametrize("case", APART)
def test_an_adapter_apart_scales_between_the_base_model_and_the_merged_one(tmp_path, bases, case):
    model_type, lora = APART[case]
    base, adapter = bases(model_type), tmp_path / "adapter"
    expected = theirs(write_adapter(adapter, base, lora))
    model = loaded(base, adapter=adapter, merge=False)
    assert_close(model(TOKENS), expected)
    assert np.array_equal(model.with_adapter_scale(0)(TOKENS), loaded(base)(TOKENS))
    assert_close(model.merge_adapter()(TOKENS), expected)
    first = loaded(base, adapter=adapter, merge=False, first_n_layers=2)
    assert_close(first(TOKENS, stop_at_layer=2), model(TOKENS, stop_at_layer=2))


@pytest.mark.parametrize("fields", [
    {"modules_to_save": ["lm_head", "embed_tokens", "input_layernorm"]}, {"trainable_token_indices": [1, 5, 60]},
])
def test_modules_that_an_adapter_replaces_do_not_depend_on_its_scale(tmp_path, bases, fields):
    base, adapter = bases("llama"), tmp_path / "adapter"
    reference = write_adapter(adapter, base, config("q_proj", "down_proj", **fields))
    model = loaded(base, adapter=adapter, merge=False)
    assert_close(model(TOKENS), theirs(reference))
    for module in reference.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.set_scale("default", 0)
    assert_close(model.with_adapter_scale(0)(TOKENS), theirs(reference))


@pytest.fixture(scope="module")
def apart(tmp_path_factory, bases):
    adapter = tmp_path_factory.mktemp("apart") / "adapter"
    write_adapter(adapter, bases("llama"), config("q_proj", "o_proj", "down_proj"))
    return adapter


@pytest.fixture(scope="module")
def model(apart):
    return loaded(apart, merge=False)


def test_the_scale_is_data(model):
    """Other scales compile nothing of the model, and the scale can be mapped, differentiated and traced."""
    model.with_adapter_scale(0.5)(TOKENS)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    half = model.with_adapter_scale(0.25)(TOKENS)
    assert not [name for name in compiled if "compile" in name]
    merged = model.with_adapter_scale(0.25).merge_adapter()
    assert_close(half, merged(TOKENS))

    def logits(scale):
        return model.with_adapter_scale(scale)(TOKENS)

    mapped = jax.vmap(logits)(jax.numpy.array([0.0, 0.25, 1.0]))
    assert_close(mapped[1], half)
    assert_close(jax.jit(logits)(0.25), half)
    gradient = jax.grad(lambda scale: logits(scale)[0, -1, 3])(0.25)
    step = 1e-2
    numeric = (logits(0.25 + step) - logits(0.25 - step))[0, -1, 3] / (2 * step)
    assert abs(gradient - numeric) < 2e-2 * abs(numeric)


def test_a_scale_for_each_layer(model, bases):
    last = model.with_adapter_scale([0.0, 0.0, 1.0])
    assert np.array_equal(last(TOKENS, stop_at_layer=2), loaded(bases("llama"))(TOKENS, stop_at_layer=2))
    assert np.abs(last(TOKENS) - loaded(bases("llama"))(TOKENS)).max() > 1e-2


def test_the_effect_of_an_adapter_is_a_hook_point(model, bases):
    names = [f"blocks.1.{site}.hook_out" for site in ("attn.lora_Q", "attn.lora_O", "mlp.lora_out")]
    _, cache = model.run_with_cache(TOKENS)
    assert set(names) <= cache.keys()
    q = np.einsum("bpd,ndh->bpnh", cache["blocks.1.ln1.hook_out"], model.W_Q[1]) + cache[names[0]]
    assert_close(cache["q", 1], q)
    off = [(lambda name: ".lora_" in name, lambda value, hook: value * 0)]
    base = loaded(bases("llama"))(TOKENS)
    assert_close(model.run_with_hooks(TOKENS, fwd_hooks=off), base)
    assert_close(jax.jit(lambda m: m.run_with_hooks(TOKENS, fwd_hooks=off))(model), base)
    scaled = [(lambda name: ".lora_" in name, jaxlens.hook(lambda value, hook, by: value * by, by=0.25))]
    assert_close(model.run_with_hooks(TOKENS, fwd_hooks=scaled), model.with_adapter_scale(0.25)(TOKENS))
    results = model.run_with_cache(TOKENS, names_filter=["blocks.1.attn.hook_result", "blocks.1.hook_attn_out"])[1]
    assert_close(results["result", 1].sum(2), results["attn_out", 1])
    assert_close(cache.stack_head_results(2)[6:].sum(0), cache["attn_out", 1])
    both = [("blocks.1.attn.hook_result", lambda value, hook: value), (names[1], lambda value, hook: value * 0)]
    alone = model.run_with_hooks(TOKENS, fwd_hooks=both[1:])
    assert_close(model.run_with_hooks(TOKENS, fwd_hooks=both), alone)


def test_training_changes_the_factors(model):
    gradients = jax.grad(lambda params: model.with_params(params)(TOKENS, return_type="loss"))(model.params)
    assert all(np.abs(gradients[f"blocks.*.attn.lora_Q.{name}"]).max() > 0 for name in ("A", "B", "scale"))


def test_saving_and_processing_a_model_with_an_adapter(model, tmp_path):
    converter.save(tmp_path / "native", model.cfg, model.params, source=model.source)
    assert np.array_equal(loaded(tmp_path / "native")(TOKENS), model(TOKENS))
    processed = HookedTransformer.from_pretrained(str(tmp_path / "native"))
    assert "not fold_ln: the adapter is not merged; use `model.merge_adapter()` first" in repr(processed)
    folded = model.merge_adapter().processed(center_unembed=False)
    assert folded.cfg.normalization_type == "RMSPre"
    assert_close(folded(TOKENS), model(TOKENS))
    with pytest.raises(CheckpointError, match=r"adapter is not merged: export model\.merge_adapter"):
        export(tmp_path / "hf", model.cfg, model.params, model.source)


REFUSED = {  # adapters that are only merged, and what the error says about them
    "DoRA": ("llama", config("q_proj", use_dora=True), "it changes model.layers.0.self_attn.q_proj.weight (DoRA), "),
    "an embedding": ("llama", config("q_proj", "embed_tokens"), "it changes model.embed_tokens.weight; "),
    "a head": ("llama", config("q_proj", "lm_head"), "it changes lm_head.weight; "),
    "tied": ("gpt2", config("c_attn", "lm_head"), "it changes lm_head.weight; "),
    "a router": ("mixtral", config("gate"), "it changes model.layers.0.block_sparse_moe.gate.weight, "),
    "experts": ("mixtral", config("q_proj", target_parameters=EXPERTS), "adapter contains ['W_"),
    "stacked experts": ("gpt_oss", config("q_proj", target_parameters=EXPERTS), "0.mlp.experts.gate_up_proj, "),
    "a shared expert": ("qwen2_moe", config("up_proj"), "it changes model.layers.0.mlp.shared_expert.up_proj.weight, "),
    "latents": ("deepseek_v3", config("q_a_proj"), "it changes model.layers.0.self_attn.q_a_proj.weight, "),
    "a map of latents": ("deepseek_v3", config("o_proj"), "adapter"),
    "a bias of its own": ("gpt2", config("c_attn", lora_bias=True), "also adds to transformer.h.0.attn.c_attn.bias, "),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_adapters_that_cannot_be_kept_apart(tmp_path, bases, case, monkeypatch):
    """The error says what to do, before weights are read."""
    model_type, lora, text = REFUSED[case]
    write_adapter(tmp_path, bases(model_type), lora)
    monkeypatch.setattr(TensorFolder, "read", None)
    with pytest.raises(CheckpointError, match=f"{re.escape(text)}.*oad it with merge=True"):
        loaded(tmp_path, merge=False)


# --- mistakes


@pytest.fixture
def changed(apart, tmp_path):
    """A function that loads a copy of the adapter with other fields or tensors."""

    def load(remove=(), tensors=None, options=None, base=None, **fields):
        folder = shutil.copytree(apart, tmp_path / "changed", dirs_exist_ok=True)
        written = {**json.loads((folder / "adapter_config.json").read_text()), **fields}
        (folder / "adapter_config.json").write_text(json.dumps(written))
        values = {**load_file(folder / "adapter_model.safetensors"), **(tensors or {})}
        save_file({n: v for n, v in values.items() if n not in remove}, folder / "adapter_model.safetensors")
        return loaded(base or folder, **(options or {}), **({"adapter": folder} if base else {}))

    return load


Q = "base_model.model.model.layers.0.self_attn.q_proj."
EMBEDDING = "base_model.model.model.embed_tokens"


def mistakes(changed, bases, apart, model, tmp_path):
    zeros = np.zeros
    base = bases("llama")
    modules = sorted({name.partition(".lora_")[0] for name in load_file(apart / "adapter_model.safetensors")})
    without = shutil.copytree(apart, tmp_path / "without")
    (without / "adapter_model.safetensors").unlink()
    fields = {
        "peft_type": ("IA3", "peft_type is 'IA3'; expected 'LORA', the only kind of adapter that jaxlens supports"),
        "layer_replication": ([[0, 1]], "jaxlens does not support repeated layers of the base model"),
        "init_lora_weights": ("pissa_niter_4", "it changes the weights of the base model before training; save"),
        "brand_new": (3, "has fields that jaxlens does not read: brand_new = 3"),
        "base_model_name_or_path": (None, "pass the base model, and the adapter as adapter="),
        "r": (0, "r is 0; expected a positive number"),
        "lora_alpha": ("7", "lora_alpha is '7'; expected a positive number"),
        "rank_pattern": ({"q_proj": "x"}, "expected an object with a number for each module"),
        "target_modules": ({"a": 1}, "expected a list of names, or null"),
        "layers_to_transform": ("1", "expected a layer, a list of layers, or null"),
        "trainable_token_indices": ({"wte": [-1]}, "expected a list of tokens, also for each module, or null"),
        "alpha_pattern": ({"q_(": 3}, "expected regular expressions, but 'q_(' is none: missing )"),
        "use_dora": (True, "use_dora does not match the weights of model.layers.0"),
        "lora_bias": (True, "lora_bias does not match the weights of model.layers.0"),
    }
    yield from (
        Case(lambda name=name, value=value: changed(**{name: value}), CheckpointError, text)
        for name, (value, text) in fields.items()
    )
    yield Case(lambda: changed(r=4), CheckpointError, "the rank of model.layers.0.mlp.down_proj is 4, but its weights")
    yield Case(lambda: changed(target_modules=["o_proj", "down_proj"]), CheckpointError,
               "target_modules does not select model.layers.0.self_attn.q_proj")
    yield Case(lambda: changed(base_model_name_or_path="/no/where"), CheckpointError,
               "is an adapter of /no/where, which cannot be opened; pass the base model itself, with adapter=")
    yield Case(lambda: changed(remove=[f"{Q}lora_B.weight"]), CheckpointError, "lora_B (); expected two factors")
    yield Case(lambda: changed(tensors={f"{Q}lora_A.weight": zeros(0)}), CheckpointError, "save the adapter again")
    yield Case(lambda: changed(tensors={"x.lora_A.weight": zeros((3, 36))}), CheckpointError,
               "tensors that are not part of a LoRA: x.lora_A.weight (F64)")
    yield Case(lambda: changed(tensors={f"{Q[:-1]}x.bias": zeros(36)}), CheckpointError,
               "the adapter changes model.layers.0.self_attn.q_projx.bias, which the base model does not have")
    yield Case(lambda: changed(base=bases("gpt2")), CheckpointError, "Pass the base model of the adapter")
    wider = {f"{Q}lora_A.weight": zeros((3, 8), np.float32)}
    for merged in (True, False):
        yield Case(lambda merged=merged: changed(tensors=wider, options={"merge": merged}), CheckpointError,
                   "q_proj.weight of the base model is (48, 36), but the adapter's update is (48, 8)")
    magnitudes = {f"{module}.lora_magnitude_vector": zeros(7, np.float32) for module in modules}
    yield Case(lambda: changed(tensors=magnitudes, use_dora=True), CheckpointError,
               "lora_magnitude_vector has 7 values; expected 36, one for each output of model.layers.0.mlp.down_proj.")
    yield Case(lambda: changed(tensors={f"{EMBEDDING}.token_adapter.trainable_tokens_delta": zeros((1, 36))},
                               trainable_token_indices=[3, 60]), CheckpointError,
               "has shape (1, 36); expected (2, 36), a row of model.embed_tokens.weight for each of the tokens in")
    yield Case(lambda: changed(tensors={f"{EMBEDDING}.token_adapter.trainable_tokens_delta": zeros((1, 36))},
                               trainable_token_indices=[61]), CheckpointError, "which are below 61; save the adapter")
    tied = tmp_path / "tied"
    write_adapter(tied, bases("qwen2", tie_word_embeddings=True),
                  config("embed_tokens", use_dora=True, ensure_weight_tying=True))
    yield Case(lambda: loaded(bases("qwen2", tie_word_embeddings=True), adapter=tied), CheckpointError,
               "has ensure_weight_tying, but DoRA gives each of the tied tensors magnitudes of its own; train it")
    biases = {f"{module}.lora_B.bias": zeros(7, np.float32) for module in modules}
    yield Case(lambda: changed(tensors=biases, lora_bias=True, base=bases("llama", attention_bias=True, mlp_bias=True)),
               CheckpointError, "lora_B.bias has shape (7,); expected (36,), that of model.layers.0.mlp.down_proj.bias")
    yield Case(lambda: changed(lora_bias=True, use_dora=True), CheckpointError,
               "lora_bias is True; expected false with use_dora")
    experts = "base_model.model.model.layers.0.mlp.experts.lora_"
    stacked = {f"{experts}A.weight": zeros((3, 7), np.float32), f"{experts}B.weight": zeros((9, 3), np.float32)}
    down = [f"base_model.model.model.layers.{i}.mlp.down_proj.lora_{AB}.weight" for i in range(3) for AB in "AB"]
    yield Case(lambda: changed(down, stacked, target_parameters=EXPERTS, base=bases("mixtral")), CheckpointError,
               "has an update of shape (9, 7) and 3 rows; expected that of gate_up_proj (88, 36), down_proj (36, 44)")
    yield Case(lambda: loaded(without), CheckpointError, "but no weights; expected adapter_model.safetensors or")
    yield Case(lambda: loaded(base, adapter=base), CheckpointError, "expected a LoRA adapter that peft saved")
    yield Case(lambda: loaded(base, adapter=[apart, apart]), TypeError,
               "adapter is a list; expected a folder or a Hugging Face id. To use several adapters, merge them into")
    yield Case(lambda: loaded(base, merge=False), ValueError, "is no adapter; pass one as adapter=")
    write_adapter(tmp_path / "biased", bases("gpt2"), config("c_attn", lora_bias=True))
    yield Case(lambda: loaded(tmp_path / "biased", merge=False), CheckpointError,
               "merge=False keeps low-rank updates apart, but this adapter also adds to transformer.h.0.attn.c_attn")
    norm = {"base_model.model.model.norm.weight": zeros(36, np.float32)}
    factors = [*load_file(apart / "adapter_model.safetensors")]
    yield Case(lambda: changed(factors, norm, {"merge": False}), CheckpointError,
               "has no low-rank updates, which merge=False keeps apart; load it with merge=True")
    shapes = {"A": (3, 61), "B": (36, 3)}
    low = {f"{EMBEDDING}.lora_embedding_{AB}": zeros(shape, np.float32) for AB, shape in shapes.items()}
    yield Case(lambda: changed(tensors=low, target_modules="all-linear", options={"merge": False}), CheckpointError,
               "it changes model.embed_tokens.weight; merge=False supports low-rank updates of the linear maps of")
    yield Case(lambda: model.with_adapter_scale([1, 2]), ValueError,
               "the scale has shape (2,); expected one number, or 3, one for each layer")
    yield Case(lambda: loaded(base).with_adapter_scale(1), ValueError,
               "this model has no adapter beside its weights; load one with from_pretrained(base, adapter=folder")


def test_mistakes(changed, bases, apart, model, tmp_path):
    cases = [*mistakes(changed, bases, apart, model, tmp_path)]
    for case in cases:
        shutil.rmtree(tmp_path / "changed", ignore_errors=True)
        case.check()
    assert unreached(__file__, cases) == []
