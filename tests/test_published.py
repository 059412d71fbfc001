"""Models by TransformerLens's names, their training checkpoints, and TransformerLens's toy models."""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import errors as hub_errors
from jaxlens.loading_from_pretrained import (
    DEFAULT_MODEL_ALIAS,
    DEFAULT_MODEL_ALIASES,
    MODEL_ALIASES,
    OFFICIAL_MODEL_NAMES,
    get_checkpoint_labels,
    get_num_params_of_pretrained,
    get_official_model_name,
    get_pretrained_model_config,
    make_model_alias_map,
)
from safetensors.numpy import load_file
from support import toys
from support.mistakes import Case, unreached
from support.tiny import random_tokens, write_checkpoint
from test_text import word_tokenizer

from jaxlens import CheckpointError, HookedTransformer
from jaxlens.checkpoints import load, open_checkpoint
from jaxlens.checkpoints.inspector import look
from jaxlens.checkpoints.published.names import aliases, official_name, repository_of, similar_names
from jaxlens.checkpoints.published.training import find_training_checkpoint, labels_of
from jaxlens.cli import main

TOLERANCE = 1e-5


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A fake Hugging Face with folders by repository, or by (repository, revision). Returns it and its requests."""
    folders, requests = {}, []

    def snapshot_download(name, revision=None, **options):
        requests.append({"name": name, "revision": revision, **options})
        if (name, revision) not in folders:
            raise hub_errors.LocalEntryNotFoundError("offline")
        return str(folders[name, revision])

    def list_repo_files(name, token=None):
        folder = folders[name, None]
        return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.list_repo_files", list_repo_files)
    return folders, requests


@pytest.fixture(scope="module")
def pythia(tmp_path_factory):
    """Two tiny GPT-NeoX checkpoints with a tokenizer: the last, and that of an earlier step, without a tokenizer."""
    root = tmp_path_factory.mktemp("pythia")
    last, early = (write_checkpoint(root / name, "gpt_neox", seed) for seed, name in enumerate(("last", "early")))
    transformers.PreTrainedTokenizerFast(tokenizer_object=word_tokenizer(), bos_token="<s>").save_pretrained(last)
    return last, early


# --- names


def test_the_table_is_that_of_transformerlens():
    """The number and the contents of the table, of which the checksum is that of TransformerLens 3.5.1's table."""
    assert (len(OFFICIAL_MODEL_NAMES), len(MODEL_ALIASES), sum(map(len, MODEL_ALIASES.values()))) == (247, 230, 416)
    text = json.dumps([OFFICIAL_MODEL_NAMES, MODEL_ALIASES], sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "f17b1d7aea177a4d"
    assert DEFAULT_MODEL_ALIAS is DEFAULT_MODEL_ALIASES and len(DEFAULT_MODEL_ALIASES) == 247
    assert {"pythia-70m", "gpt2-small", "meta-llama/Llama-3.2-1B", "gpt2-large"} < {*DEFAULT_MODEL_ALIASES}


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("pythia-70m", "EleutherAI/pythia-70m"), ("Pythia", "EleutherAI/pythia-70m"), ("gpt2-small", "gpt2"),
        ("gpt2", "gpt2"), ("gemma-2-2b", "google/gemma-2-2b"), ("gpt-neo-125m", "EleutherAI/gpt-neo-125M"),
        ("tiny-stories-33M", "roneneldan/TinyStories-33M"), ("SOLU-1L", "NeelNanda/SoLU_1L512W_C4_Code"),
        ("llama-7b", "llama-7b-hf"), ("meta-llama/llama-2-7b-hf", "meta-llama/Llama-2-7b-hf"),
        ("attn-only-2l-demo", "NeelNanda/Attn-Only-2L512W-Shortformer-6B-big-lr"), ("yi-6b", "01-ai/Yi-6B"),
        ("qwen-1.8b", "Qwen/Qwen-1_8B"), ("stanford-gpt2-small-a", "stanford-crfm/alias-gpt2-small-x21"),
    ],
)  # fmt: skip
def test_a_name_stands_for_a_repository(name, repository):
    assert official_name(name) == get_official_model_name(name) == make_model_alias_map()[name.lower()] == repository


def test_every_name_stands_for_its_own_repository():
    names = [(name, repository) for repository, listed in aliases().items() for name in (*listed, repository)]
    assert all(official_name(name) == official_name(name.upper()) == repository for name, repository in names)
    assert official_name("my/model") is None and repository_of("my/model") == "my/model"


def test_similar_names_are_those_of_the_table():
    assert similar_names("Pythia-71m")[:1] == ["pythia-70m"] and similar_names("gpt2smal")[:1] == ["gpt2-small"]
    assert similar_names("owner/name") == []


def test_a_model_is_loaded_by_any_of_its_names(hub, pythia):
    folders, requests = hub
    folders["EleutherAI/pythia-70m", None] = pythia[0]
    tokens = random_tokens(0, 9)
    expected = HookedTransformer.from_pretrained(str(pythia[0]))(tokens)
    for name in ("pythia-70m", "PYTHIA", "EleutherAI/pythia-70m", "eleutherai/Pythia-19m"):
        model = HookedTransformer.from_pretrained(name, token="hf_x", cache_dir="/c", local_files_only=True)
        assert np.array_equal(model(tokens), expected)
        assert (model.name, model.cfg.model_name, model.cfg.from_checkpoint) == (name, "pythia-70m", False)
        assert model.to_tokens("john gave").tolist() == [[0, 4, 11]]
    assert {request["name"] for request in requests} == {"EleutherAI/pythia-70m"}
    assert requests[0] | {"revision": None, "token": "hf_x", "cache_dir": "/c", "local_files_only": True} == requests[0]


def test_the_command_line_takes_names(hub, pythia, capsys):
    folders, _ = hub
    folders["EleutherAI/pythia-70m", None] = pythia[0]
    assert main(["inspect", "pythia-70m"]) == 0
    assert "gpt_neox" in capsys.readouterr().out
    assert look("pythia").loads


def test_a_config_is_read_without_the_weights(hub, pythia, tmp_path):
    folders, requests = hub
    folders["EleutherAI/pythia-70m", None] = tmp_path
    shutil.copy(pythia[0] / "config.json", tmp_path)
    options = {"first_n_layers": 2, "n_ctx": 7, "trust_remote_code": False}
    cfg = get_pretrained_model_config("pythia-70m", dtype=torch.bfloat16, **options)
    whole = load(pythia[0]).cfg
    assert cfg == whole.first_layers(2).replace(dtype="bfloat16", n_ctx=7)
    assert cfg.model_name == "pythia-70m" and requests[0]["allow_patterns"] == ["config.json", "adapter_config.json"]
    folded = get_pretrained_model_config("pythia-70m", fold_ln=True, device="cpu", default_prepend_bos=False)
    assert (folded.normalization_type, folded.default_prepend_bos, folded.device) == ("LNPre", False, jax.devices()[0])
    given = transformers.GPTNeoXConfig.from_pretrained(pythia[0]).to_dict()
    assert get_pretrained_model_config("pythia-70m", given) == whole
    assert get_num_params_of_pretrained("pythia-70m") == whole.n_params
    folders["EleutherAI/pythia-70m", "step512"] = tmp_path
    assert get_pretrained_model_config("pythia-70m", checkpoint_index=10).checkpoint_value == 512


DTYPES = [{"dtype": torch.float16}, {"torch_dtype": torch.bfloat16}, {"torch_dtype": "float16"}]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dtype_of_torch_is_a_dtype(pythia, dtype):
    model = HookedTransformer.from_pretrained_no_processing(str(pythia[0]), trust_remote_code=False, **dtype)
    assert model.cfg.dtype == model.W_E.dtype.name == str(*dtype.values()).removeprefix("torch.")


def test_the_weights_of_a_transformers_model_have_the_tokenizer_of_the_name(hub, pythia):
    folders, requests = hub
    folders["EleutherAI/pythia-70m", None] = pythia[0]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(pythia[1])
    model = HookedTransformer.from_pretrained_no_processing("pythia", hf_model=theirs, torch_dtype=torch.float32)
    assert (model.name, model.cfg.model_name) == ("pythia", "pythia-70m")
    assert model.to_tokens("john gave").tolist() == [[0, 4, 11]] and len(requests) == 1
    assert np.array_equal(model.W_E, load(pythia[1]).params["embed.W_E"])


def test_importing_jaxlens_reads_no_table():
    table = "'jaxlens.checkpoints.published.table'"
    program = f"import jaxlens, jaxlens.checkpoints, sys; assert {table} not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


# --- training checkpoints


def test_the_steps_of_training_checkpoints():
    labels, kind = get_checkpoint_labels("pythia-70m-deduped")
    assert kind == "step" and len(labels) == 154
    assert labels[:12] == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000] and labels[-2:] == [142000, 143000]
    labels, kind = get_checkpoint_labels("pythia-70m-v0")
    assert (len(labels), labels[0], labels[-1], kind) == (143, 1000, 143000, "step")
    labels, kind = get_checkpoint_labels("stanford-gpt2-medium-c")
    assert (len(labels), labels[-1], kind) == (609, 400000, "step")
    assert labels[9:12] == [90, 100, 150] and labels[47:50] == [1950, 2000, 2100] and labels[228] == 20000


@pytest.mark.parametrize(
    ("name", "index", "value", "found"),
    [
        ("pythia-160m", 0, None, (0, 0, "step0")), ("pythia-160m", None, 512, (10, 512, "step512")),
        ("pythia-160m", -1, None, (153, 143000, "step143000")), ("pythia-v0", 0, None, (0, 1000, "step1000")),
        ("stanford-gpt2-small-a", None, 400000, (608, 400000, "checkpoint-400000")),
        ("stanford-gpt2-small-a", np.int64(1), None, (1, 10, "checkpoint-10")),
    ],
)  # fmt: skip
def test_a_training_checkpoint_is_a_revision(name, index, value, found):
    repository = repository_of(name)
    checkpoint = find_training_checkpoint(repository, labels_of(repository, list), index, value)
    assert (checkpoint.index, checkpoint.value, checkpoint.revision) == found


def test_a_training_checkpoint_is_loaded_from_its_revision(hub, pythia):
    folders, requests = hub
    folders["EleutherAI/pythia-70m", None], folders["EleutherAI/pythia-70m", "step1000"] = pythia
    expected = load(pythia[1]).params["embed.W_E"]
    for argument in ({"checkpoint_index": 11}, {"checkpoint_value": 1000}, {"checkpoint_label": 1000}):
        model = HookedTransformer.from_pretrained_no_processing("pythia", **argument)
        assert np.array_equal(model.W_E, expected)
        cfg = model.cfg
        assert (cfg.from_checkpoint, cfg.checkpoint_index, cfg.checkpoint_value) == (True, 11, 1000)
        assert (cfg.checkpoint_label_type, cfg.model_name) == ("step", "pythia-70m")
        assert model.to_tokens("john gave").tolist() == [[0, 4, 11]], "the tokenizer is that of the main revision"
    assert [request["revision"] for request in requests[:2]] == ["step1000", None]
    assert cfg == HookedTransformer.from_pretrained_no_processing("pythia").cfg, "notes are not compared"


def test_a_training_checkpoint_is_loaded_from_the_cache_of_huggingface_hub(pythia, tmp_path):
    repository = tmp_path / "models--stanford-crfm--alias-gpt2-small-x21"
    for commit, folder in zip(("1" * 40, "2" * 40), pythia, strict=True):
        shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1" * 40)
    (repository / "refs" / "checkpoint-20").write_text("2" * 40)
    cached = {"cache_dir": tmp_path, "local_files_only": True}
    for index, folder in ((None, pythia[0]), (2, pythia[1])):
        loaded = load("stanford-gpt2-small-a", checkpoint_index=index, **cached)
        assert loaded.cfg.revision == ("1" if index is None else "2") * 40, "the commit"
        assert load(folder).cfg.revision is None
        assert np.array_equal(loaded.params["embed.W_E"], load(folder).params["embed.W_E"])
        assert loaded.tokenizer.bos_token == "<s>"
    with pytest.raises(CheckpointError, match="x21 at revision 'checkpoint-30', which is not in the local cache"):
        load("stanford-gpt2-small-a", checkpoint_value=30, **cached)


# --- toy models

TOYS = {
    "solu": ("neel", {}),
    "solu, norms without weights": ("neel", {"normalization": "absent", "normalization_type": "LNPre"}),
    "gelu": ("neel", {"act_fn": "gelu", "shortformer_pos": False}),
    "relu, a final RMSNorm": ("neel", {"act_fn": "relu", "final_rms": True}),
    "attention only": ("neel", {"attn_only": True, "act_fn": "gelu", "d_vocab_out": 13, "parallel_attn_mlp": False}),
    "shortformer": ("neel", {"attn_only": True, "shortformer_pos": True}),
    "old": ("neel-solu-old", {}),
    "old, 6 layers": ("neel-solu-old", {"n_layers": 6, "final_rms": True}),
    "old, 7 layers": ("neel-solu-old", {"n_layers": 7}),
    "old, 9 layers": ("neel-solu-old", {"n_layers": 9, "normalization": "LNPre"}),
    "othello": ("mingpt", {"architecture": "mingpt", "act_fn": "gelu"}),
}


def assert_close(ours, theirs, tolerance=TOLERANCE):
    assert np.abs(np.asarray(ours) - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_model_computes_what_its_definition_says(tmp_path, name):
    layout, changes = TOYS[name]
    fields, weights = toys.write(tmp_path, layout, **changes)
    if layout == "mingpt":
        del weights["unembed.b_U"]
    tokens = random_tokens(0, 7, vocabulary=13)
    expected = toys.logits(fields, weights, tokens)
    raw = HookedTransformer.from_pretrained_no_processing(str(tmp_path))
    assert_close(raw(tokens), expected)
    assert_close(raw(tokens[:, :1]), expected[:, :1])
    processed = HookedTransformer.from_pretrained(str(tmp_path))
    assert_close(jax.nn.log_softmax(processed(tokens)), np.asarray(jax.nn.log_softmax(expected)))
    assert processed.cfg.normalization_type == ("LN" if fields.get("shortformer_pos") else "LNPre")
    assert raw.cfg.final_rms == bool(fields.get("final_rms"))
    first = load(tmp_path, first_n_layers=1, n_ctx=5)
    assert np.array_equal(first.params["blocks.*.attn.W_O"][0], raw.W_O[0])
    assert np.array_equal(first.params["pos_embed.W_pos"], raw.W_pos[:5])


@pytest.mark.parametrize("layout", ["neel", "neel-solu-old", "mingpt"])
def test_a_toy_model_in_a_pytorch_file_is_the_same(tmp_path, layout):
    toys.write(tmp_path, layout, **({"architecture": "mingpt", "act_fn": "gelu"} if layout == "mingpt" else {}))
    tokens = random_tokens(0, 7, vocabulary=13)
    expected = HookedTransformer.from_pretrained_no_processing(str(tmp_path))(tokens)
    (stored,) = tmp_path.glob("*.safetensors")
    weights = {name: torch.from_numpy(value) for name, value in load_file(stored).items()}
    torch.save(weights, stored.with_suffix(".pth"))
    stored.unlink()
    assert (HookedTransformer.from_pretrained_no_processing(str(tmp_path))(tokens) == expected).all()


def test_the_layout_of_an_old_model_follows_from_its_name_or_its_tensors(tmp_path):
    """A model of 8 layers whose position table is square has no other sign of its layout than its name."""
    weights = toys.tensors(toys.config(n_layers=8, n_ctx=8, normalization="LNPre"))
    cached = tmp_path / "models--NeelNanda--SoLU_8L_v21_old" / "snapshots" / "0123"
    for folder, transposed in ((tmp_path / "new", False), (tmp_path / "SoLU_8L_v21_old", True), (cached, True)):
        toys.write(folder, n_layers=8, n_ctx=8, normalization="LNPre", weights=weights)
        read = load(folder).params["pos_embed.W_pos"]
        assert np.array_equal(read.T if transposed else read, weights["pos_embed.W_pos"])
    assert open_checkpoint(tmp_path / "SoLU_8L_v21_old").model_type == "neel-solu-old"


def test_biases_and_norm_weights_that_are_not_stored_are_those_of_transformerlens(tmp_path):
    fields = toys.config()
    weights = toys.tensors(fields)
    kept = {name: value for name, value in weights.items() if not any(part in name for part in ("b_U", "b_Q", "ln"))}
    toys.write(tmp_path, weights=kept)
    tokens = random_tokens(0, 7, vocabulary=13)
    model = HookedTransformer.from_pretrained_no_processing(str(tmp_path))
    assert_close(model(tokens), toys.logits(fields, kept, tokens))
    assert not model.b_U.any() and not model.b_Q.any() and model.cfg.normalization_type == "LNPre"


def test_toy_models_and_their_training_checkpoints_are_downloaded_by_name(hub, tmp_path):
    folders, requests = hub
    folders["NeelNanda/SoLU_1L512W_C4_Code", None] = tmp_path
    values = {f"checkpoints/SoLU_1L_0000{value}.safetensors": value for value in (500, 10000, 2000)}
    for seed, file in enumerate(("SoLU_1L_final.safetensors", *values)):
        toys.write(tmp_path, file=file, seed=seed)
    assert get_checkpoint_labels("solu-1l") == ([500, 2000, 10000], "step")
    assert get_checkpoint_labels(str(tmp_path)) == ([500, 2000, 10000], "step")
    weights = [toys.tensors(toys.config(), seed)["embed.W_E"] for seed in range(4)]
    for argument, expected, found in (
        ({}, weights[0], (None, None, None)), ({"checkpoint_index": 0}, weights[1], (0, 500, "step")),
        ({"checkpoint_value": 10000}, weights[2], (2, 10000, "step")),
        ({"checkpoint_index": -2}, weights[3], (1, 2000, "step")),
    ):  # fmt: skip
        for name in ("solu-1l", str(tmp_path)):
            model = HookedTransformer.from_pretrained_no_processing(name, **argument)
            assert np.array_equal(model.W_E, expected)
            cfg = model.cfg
            assert (cfg.checkpoint_index, cfg.checkpoint_value, cfg.checkpoint_label_type) == found
    patterns = requests[0]["allow_patterns"]
    assert {"config.json", "*final.pth"} <= {*patterns} and "*/*" in requests[0]["ignore_patterns"]
    assert "checkpoints/*_0000500.*" in requests[1]["allow_patterns"] and requests[1]["ignore_patterns"] == []
    assert get_pretrained_model_config("solu-1l") == load(tmp_path).cfg
    (tmp_path / "checkpoints" / "x_2000000000.safetensors").touch()
    assert get_checkpoint_labels("solu-1l")[1] == "token"


def test_the_tokenizer_of_a_toy_model_is_the_named_one(hub, pythia, tmp_path):
    folders, _ = hub
    toys.write(tmp_path, tokenizer_name="NeelNanda/digits", n_ctx=20, d_vocab=20)
    with pytest.warns(UserWarning, match="the model has no tokenizer: the tokenizer 'NeelNanda/digits' is not a local"):
        assert HookedTransformer.from_pretrained(str(tmp_path)).cfg.tokenizer_name is None
    folders["NeelNanda/digits", None] = pythia[0]
    model = HookedTransformer.from_pretrained(str(tmp_path))
    assert model.cfg.tokenizer_name == "NeelNanda/digits" and model.to_tokens("john gave").tolist() == [[0, 4, 11]]


def test_a_toy_model_is_inspected_and_converted(tmp_path, capsys):
    toys.write(tmp_path / "toy")
    assert main(["inspect", str(tmp_path / "toy")]) == 0
    assert "TransformerLens's toy models" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "toy"), str(tmp_path / "native")]) in (0, None)
    tokens = random_tokens(0, 7, vocabulary=13)
    ours, theirs = (HookedTransformer.from_pretrained(str(tmp_path / name))(tokens) for name in ("toy", "native"))
    assert np.array_equal(ours, theirs)


# --- mistakes


def offline(*args, **kwargs):
    raise hub_errors.LocalEntryNotFoundError("offline")


def opening(name, files=(), **arguments):
    """Opens a checkpoint without network access. `files` are those that a repository with toy models lists."""

    def open_it():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("huggingface_hub.snapshot_download", offline)
            patch.setattr("huggingface_hub.list_repo_files", offline if files is None else lambda *a, **k: files)
            return open_checkpoint(name, **arguments)

    return open_it


def absent_gguf_file():
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.snapshot_download", lambda name, **options: folder)
        return open_checkpoint("owner/name/model.gguf")


def broken_toy(change=lambda folder: None, **changes):
    def open_it():
        with tempfile.TemporaryDirectory() as folder:
            toys.write(folder, **changes)
            change(Path(folder))
            return open_checkpoint(folder)

    return open_it


def without_weights(folder):
    (folder / "SoLU_final.safetensors").unlink()


def adapter_of(base):
    """Opens the adapter of a base model."""
    with tempfile.TemporaryDirectory() as folder:
        fields = {"peft_type": "LORA", "base_model_name_or_path": base}
        (Path(folder) / "adapter_config.json").write_text(json.dumps(fields))
        open_checkpoint(folder)


MISTAKES = {
    "an adapter whose base model is not there": Case(
        lambda: adapter_of("/no/where"), CheckpointError,
        "is an adapter of /no/where, which cannot be opened; pass the base model itself, with adapter=",
    ),
    "several adapters": Case(
        opening(".", adapter=["a", "b"]), TypeError,
        "adapter is a list; expected a folder or a Hugging Face id",
    ),
    "an adapter that is none": Case(
        opening(".", adapter="."), CheckpointError, "expected a LoRA adapter that peft saved"
    ),
    "a repository that is not there": Case(
        opening("pythia-70m"), CheckpointError, "is not a local folder or file; it stands for EleutherAI/pythia-70m"
    ),
    "a typing error": Case(opening("gpt2-smal"), CheckpointError, "Similar names are 'gpt2-small', "),
    "an encoder": Case(
        opening("bert-base-cased"), CheckpointError, "google-bert/bert-base-cased, which jaxlens does not load: BERT"
    ),
    "an encoder and a decoder": Case(opening("t5-small"), CheckpointError, "does not load: T5 has an encoder"),
    "a model of audio": Case(opening("w2v2-base"), CheckpointError, "does not load: wav2vec 2.0 encodes audio"),
    "weights of no repository": Case(opening("llama-7b"), CheckpointError, "llama-7b-hf, which jaxlens does not load"),
    "an index too large": Case(
        opening("pythia", checkpoint_index=154), ValueError, "checkpoint_index is 154; expected 0 to 153, or a negative"
    ),
    "a step between two": Case(
        opening("pythia", checkpoint_value=1400), ValueError,
        "EleutherAI/pythia-70m has no checkpoint of step 1400; the nearest is checkpoint_value=1000",
    ),
    "a step after the last": Case(
        opening("pythia", checkpoint_value=10**6), ValueError, "the nearest is checkpoint_value=143000"
    ),
    "an index and a step": Case(
        opening("pythia", checkpoint_index=1, checkpoint_value=1), ValueError, "is 1 and checkpoint_value is 1; pass"
    ),
    "a step in words": Case(opening("pythia", checkpoint_value="step1"), ValueError, "is 'step1'; expected an integer"),
    "a step and a revision": Case(
        opening("pythia", revision="step1", checkpoint_value=1), ValueError, "revision is 'step1', and a training"
    ),
    "a model without checkpoints": Case(
        opening("gpt2", checkpoint_index=1), CheckpointError, "gpt2 has no training checkpoints; leave out"
    ),
    "toy models without a list": Case(
        opening("solu-1l", None, checkpoint_index=1), CheckpointError, "SoLU_1L512W_C4_Code, which is not in the local"
    ),
    "toy models without network access": Case(
        opening("solu-1l", local_files_only=True, checkpoint_index=1), CheckpointError, "local_files_only is set, and"
    ),
    "a toy model without checkpoints": Case(
        opening("solu-1l", ["SoLU_final.pth"], checkpoint_index=1), CheckpointError, "has no training checkpoints"
    ),
    "a toy model without weights": Case(broken_toy(without_weights), CheckpointError, "weights; expected …final.pth"),
    "a toy model with two files of weights": Case(
        broken_toy(lambda folder: shutil.copy(folder / "SoLU_final.safetensors", folder / "a_final.safetensors")),
        CheckpointError, "contains SoLU_final.safetensors, a_final.safetensors; expected one file with weights",
    ),
    "a toy model of an unknown architecture": Case(
        broken_toy(architecture="gpt-5"), CheckpointError, "model_type is 'gpt-5', which is not supported"
    ),
    "a toy model with a parallel MLP": Case(
        broken_toy(parallel_attn_mlp=True), CheckpointError, "parallel_attn_mlp is True; expected False, as in Transf"
    ),
    "a toy model with rotary positions": Case(
        broken_toy(positional_embedding_type="rotary"), CheckpointError, "toy models have learned positions"
    ),
    "a toy model with a number for a tokenizer": Case(
        broken_toy(tokenizer_name=3), CheckpointError, "tokenizer_name is 3; expected a string or null"
    ),
    "a GGUF file that a repository does not have": Case(
        absent_gguf_file, CheckpointError, "the repository owner/name has no file model.gguf; check the name"
    ),
    "a GGUF file and a step": Case(
        opening("owner/name/model.gguf", checkpoint_value=1), CheckpointError, "model.gguf has no training checkpoints"
    ),
    "a GGUF file without network access": Case(
        opening("owner/name/model.gguf"), CheckpointError, "it stands for owner/name, which is not in the local cache"
    ),
    "a single file": Case(lambda: open_checkpoint(__file__), CheckpointError, "is a single file; pass the folder"),
    "weights of two models": Case(
        lambda: HookedTransformer.from_pretrained("pythia", hf_model=object(), checkpoint_value=1), ValueError,
        "checkpoint_value and hf_model are given; expected one of them",
    ),
}


@pytest.mark.parametrize("case", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_explained(case):
    case.check()


def test_every_error_is_reached_by_a_case():
    assert unreached(__file__, MISTAKES.values()) == []
