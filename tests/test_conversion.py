"""The scripts in conversion/ and their commands: output, memory use, and recovery after a killed run."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from families import CASES, SIZES
from safetensors.numpy import load_file, save_file
from support.tiny import hf_logits, random_tokens, write_checkpoint
from test_gguf import vocabulary, weights
from test_gguf import write as write_gguf
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models

import jaxlens.checkpoints.families
from jaxlens import CheckpointError, Tokenizer
from jaxlens.checkpoints import converter, load, load_lazily, native
from jaxlens.checkpoints.inspector import look
from jaxlens.checkpoints.open import open_checkpoint, read_config
from jaxlens.checkpoints.safetensors_reader import read_json
from jaxlens.checkpoints.validate import UNKNOWN_TENSORS
from jaxlens.cli import COMMANDS, main
from jaxlens.cli.commands import families
from jaxlens.config import Rotary
from jaxlens.model import verify as verify_module

ROOT = Path(__file__).parents[1]
CONVERSION = ROOT / "conversion"
SCRIPTS = ("convert", "export", "inspect", "verify")
KINDS = ("gpt2", "gpt_neo", "llama", "qwen2", "gemma2", "gemma3")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A function that returns a tiny checkpoint, written by transformers in one file or in shards, with a tokenizer."""
    root, written = tmp_path_factory.mktemp("theirs"), {}

    def get(kind, **options):
        name = "-".join([f"tiny-random-{kind}", *map(str, options.values())])
        if name not in written:
            written[name] = write_checkpoint(root / name, kind, **options)
            words = FastTokenizer(models.WordLevel({"a": 0, "b": 1, "<s>": 2}, unk_token="a"))
            Tokenizer(words, bos_token="<s>").save(written[name])
        return written[name]

    return get


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tensors(folder):
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def run(capsys, *arguments, status=0):
    """The output of a command on stdout, or on stderr if it fails."""
    assert main(list(map(str, arguments))) == status
    printed = capsys.readouterr()
    return printed.err if status and printed.err else printed.out


def edit(folder, fields=None, **more):
    """Adds fields to the config.json and tensors to the weights of a folder."""
    if fields is not None:
        (folder / "config.json").write_text(json.dumps({**read_json(folder / "config.json"), **fields}))
    if more:
        save_file({**load_file(folder / "model.safetensors"), **more}, folder / "model.safetensors")
    return folder


# ---- converting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16", "shard": "20KB"}], ids=["one file", "shards"])
def test_a_conversion_equals_save_after_load_and_can_be_reversed(kind, options, theirs, tmp_path):
    """Bit for bit, although at most one tensor is in memory and some tensors are fused."""
    original = theirs(kind, **options)
    loaded = load(original, dtype=None)
    sharded = {"shard_bytes": 20_000} if "shard" in options else {}
    saved = converter.save(
        tmp_path / "saved", loaded.cfg, loaded.params, loaded.tokenizer, loaded.source, **sharded
    )  # fmt: skip
    assert converter.convert(original, tmp_path / "converted", **sharded) == ()
    assert contents(tmp_path / "converted") == contents(saved)
    assert len(list(saved.glob("*.safetensors"))) > 2 * len(sharded)
    back = tensors(converter.convert_back(tmp_path / "converted", tmp_path / "back"))
    if kind != "gemma3":  # only its language model is converted, and its tensors are renamed
        assert {name: (value.dtype, value.tobytes()) for name, value in back.items()} == {
            name: (value.dtype, value.tobytes()) for name, value in tensors(original).items()
        }
    if not options:
        assert np.array_equal(hf_logits(tmp_path / "back", random_tokens(0)), hf_logits(original, random_tokens(0)))


def test_experts_in_one_tensor_or_in_many():
    """Converts between a family with separate tensors per expert and one with a single tensor."""
    from test_convert import Memory, exported, mixture

    from jaxlens.checkpoints.exporter import ExportedTensors
    from jaxlens.checkpoints.parameters import StoredParameters
    from jaxlens.nn.parameters import parameter_shapes

    cfg, family = mixture()
    random = np.random.default_rng(0)
    shapes = parameter_shapes(cfg).items()
    params = {name: random.normal(size=shape.shape).astype(np.float32) for name, shape in shapes}
    theirs, ours = exported(family, cfg, params), exported(native.FAMILY, cfg, params)
    stored = StoredParameters(family, cfg, Memory(theirs))
    assert list(stored) == list(params) and len(stored) == len(params)
    layouts = (family, theirs), (native.FAMILY, ours)
    for (before, tensors), (after, expected) in (layouts, layouts[::-1]):
        stored = Memory(tensors)
        converted = ExportedTensors(after, cfg, StoredParameters(before, cfg, stored))
        assert {name: converted.read(name).tobytes() for name in converted.names()} == {
            name: value.tobytes() for name, value in expected.items()
        }
        assert max(map(stored.read_names.count, stored.read_names)) == 1, "each tensor is read once"


def test_dtypes(theirs, tmp_path):
    original = theirs("llama", dtype="bfloat16")
    for dtype in (None, "float32", "float16", "float64"):
        folder = tmp_path / str(dtype)
        converter.convert(original, folder, dtype=dtype)
        assert {str(value.dtype) for value in tensors(folder).values()} == {dtype or "bfloat16"}
        back = converter.convert_back(folder, tmp_path / f"{dtype}-back")
        expected = {name: value.astype(dtype or value.dtype) for name, value in tensors(original).items()}
        assert {name: value.tobytes() for name, value in tensors(back).items()} == {
            name: value.tobytes() for name, value in expected.items()
        }
        assert read_json(back / "config.json")["dtype"] == (dtype or "bfloat16")


def test_a_gguf_file(tmp_path, capsys):
    file = write_gguf(tmp_path / "model.gguf", extra=vocabulary())
    assert run(capsys, "convert", file, tmp_path / "ours") == f"{tmp_path / 'ours'}: 87,552 parameters in float32\n"
    ours = load(tmp_path / "ours")
    assert ours.tokenizer.bos_token == "<s>" and ours.source["model_type"] == "llama"
    assert run(capsys, "export", file, tmp_path / "theirs") == f"{tmp_path / 'theirs'}: 87,552 parameters (llama)\n"
    exported = tensors(tmp_path / "theirs")
    assert all(np.array_equal(exported[name], value) for name, value in weights().items())


def test_processed_weights_that_no_checkpoint_can_express_are_not_exported(theirs, tmp_path, capsys):
    printed = run(capsys, "convert", theirs("llama"), tmp_path / "folded", "--process")
    assert f"{tmp_path / 'folded'}: " in printed and "\n  fold_ln\n" in printed
    assert "\n  not center_writing_weights: " in printed
    assert load(tmp_path / "folded").cfg.normalization_type == "RMSPre"
    error = run(capsys, "export", tmp_path / "folded", tmp_path / "back", status=1)
    assert error.startswith(f"jaxlens: {tmp_path / 'folded'}: a llama checkpoint cannot express this model: ")
    assert "fold_ln folded the weights of norms into the next layers" in error
    assert not (tmp_path / "back").exists()


def test_a_model_without_a_config_is_exported_with_a_given_config(theirs, tmp_path, capsys):
    loaded = load(theirs("llama"))
    converter.save(tmp_path / "ours", loaded.cfg, loaded.params)
    assert "this model has no Hugging Face config" in run(
        capsys, "export", tmp_path / "ours", tmp_path / "a", status=1
    )  # fmt: skip
    config = ("--config", theirs("llama") / "config.json")
    run(capsys, "export", tmp_path / "ours", tmp_path / "b", *config, "--dtype", "float16")
    assert load(tmp_path / "b", dtype=None).cfg == loaded.cfg.replace(dtype="float16")


def test_a_folder_with_other_files_is_not_replaced(theirs, tmp_path, capsys, monkeypatch):
    (tmp_path / "thesis.txt").write_text("precious")
    monkeypatch.setattr(converter, "load_checkpoint", None)  # the check comes before loading
    for command in (("convert",), ("convert", "--process"), ("export",)):
        error = run(capsys, *command, theirs("llama"), tmp_path, status=1)
        assert "exists and contains other files" in error
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", ["losses.csv", "runs/1"])
def test_other_files_in_a_native_folder_are_not_lost(name, theirs, tmp_path, capsys):
    run(capsys, "convert", theirs("gpt2"), tmp_path / "ours")
    (tmp_path / "ours" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "ours" / name).write_text("precious")
    assert "exists and contains other files" in run(capsys, "convert", theirs("gpt2"), tmp_path / "ours", status=1)
    assert (tmp_path / "ours" / name).read_text() == "precious"


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_links_are_followed_and_the_current_folder_is_not_replaced(theirs, tmp_path, capsys, monkeypatch):
    (tmp_path / "disk").mkdir()
    for target in ("empty", "missing"):
        (tmp_path / target).symlink_to(tmp_path / "disk" / target)
    (tmp_path / "disk" / "empty").mkdir()
    for target in ("empty", "missing", "empty"):
        run(capsys, "convert", theirs("gpt2"), tmp_path / target)
        assert (tmp_path / target).is_symlink() and load(tmp_path / "disk" / target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "empty", "missing"]
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["empty", "missing"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert ". is the current folder, which cannot be replaced" in run(capsys, "convert", theirs("gpt2"), ".", status=1)


MEMORY = """
import sys
import transformers
from jaxlens.checkpoints import converter

transformers.CONFIG_MAPPING["gpt2"]  # the conversion needs it where the completed config is not on disk

def kilobytes(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))

def convert(source, folder):
    converter.convert(source, folder + "/ours")
    converter.convert_back(folder + "/ours", folder + "/back")

convert(sys.argv[1], sys.argv[3] + "/warm")  # imports and first allocations
before = kilobytes("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
convert(sys.argv[2], sys.argv[3] + "/large")
print((kilobytes("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_conversion_needs_memory_for_one_tensor(tmp_path, theirs):
    """In both directions: less than 1.3 times the largest shard, although the tensors are fused."""
    wide = {"n_embd": 240, "vocab_size": 4001, "n_layer": 12}
    large = write_checkpoint(tmp_path / "theirs", "gpt2", shard="12MB", **wide)
    shards = [file.stat().st_size for file in large.glob("*.safetensors")]
    program = [sys.executable, "-c", MEMORY, str(theirs("gpt2")), str(large), str(tmp_path)]
    peak = int(subprocess.run(program, check=True, capture_output=True, text=True).stdout)
    assert len(shards) > 2 and peak < 1.3 * max(shards), (peak, shards)


# ---- killed runs ----------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from jaxlens.cli import main
from jaxlens.checkpoints.folder_reader import TensorFolder

read, count = TensorFolder.read, 0

def read_and_kill(self, name):
    global count
    count += 1
    if count > 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, name)

TensorFolder.read = read_and_kill
main(["convert", *sys.argv[1:]])
"""


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_a_killed_run_leaves_no_incomplete_folder_and_can_be_repeated(theirs, tmp_path, capsys):
    original, folder = theirs("llama"), tmp_path / "[ours]"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(original), str(folder)])
    assert killed.returncode == -signal.SIGKILL
    (partial,) = tmp_path.iterdir()
    assert partial.name.startswith(".[ours].partial-") and list(partial.glob("*.safetensors"))
    with contextlib.suppress(CheckpointError):
        load(folder)
        raise AssertionError("the folder should not exist")
    running = tmp_path / ".[ours].partial-1"  # process 1 is running
    other = tmp_path / ".[ours].partial-of-mine"
    running.mkdir(), other.mkdir()
    run(capsys, "convert", original, folder)
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, running.name, other.name}
    assert contents(folder) == contents_of_conversion(original, tmp_path)


def contents_of_conversion(original, tmp_path):
    converter.convert(original, tmp_path / "again")
    return contents(tmp_path / "again")


def test_a_run_killed_between_its_two_renames_is_reversed(theirs, tmp_path, monkeypatch):
    converter.convert(theirs("gpt2"), tmp_path / "ours")
    before = contents(tmp_path / "ours")
    (tmp_path / "ours").rename(tmp_path / f".ours.old-{os.getpid()}")
    (tmp_path / f".ours.partial-{10**30}").mkdir()
    monkeypatch.setattr(converter, "write_tensors", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        converter.convert(theirs("llama"), tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"] and contents(tmp_path / "ours") == before


def test_a_native_folder_can_be_replaced_also_by_itself(theirs, tmp_path):
    converter.convert(theirs("gpt2"), tmp_path / "ours")
    before = contents(tmp_path / "ours")
    converter.convert(tmp_path / "ours", tmp_path / "ours")
    assert contents(tmp_path / "ours") == before
    converter.convert(theirs("llama"), tmp_path / "ours")
    assert load(tmp_path / "ours").source["model_type"] == "llama"


# ---- inspecting -----------------------------------------------------------------------------------------------------


def test_inspect_lists_unread_fields_and_unknown_tensors_without_reading_weights(theirs, tmp_path, capsys, monkeypatch):
    folder = shutil.copytree(theirs("gemma2"), tmp_path / "changed")
    more = {"model.layers.0.new.weight": np.zeros(3, np.float32), "score": np.zeros(2, np.int32)}
    edit(folder, {"new_switch": 3, "other": "x"}, **more, **{"model.norm.weight": np.zeros(7, np.float32)})
    monkeypatch.setattr("jaxlens.checkpoints.folder_reader.TensorFolder.read", None)
    inspected = look(folder)
    assert not inspected.loads
    assert inspected.checkpoint.unread == {"new_switch": 3, "other": "x"}
    assert set(inspected.problems) == {UNKNOWN_TENSORS, "of the wrong shape"}
    printed = run(capsys, "inspect", folder, status=1)
    assert "fields that jaxlens does not read: 2\n  new_switch = 3\n  other = 'x'\n" in printed
    assert "not part of this architecture: 2\n  model.layers.0.new.weight\n  score\n" in printed
    assert "of the wrong shape: 1\n  model.norm.weight is (7,), expected (36,) = [d]\n" in printed
    with pytest.raises(CheckpointError, match="fields that jaxlens does not read"):
        load(folder)


def test_inspect_draws_the_attention_mask_of_each_layer(theirs, capsys):
    printed = run(capsys, "inspect", theirs("gemma3_text")).splitlines()
    first = printed.index("attention   0")
    assert printed[first + 1 : first + 4] == [
        "            LLGL",
        "         L  a window of 7, rope base 10,000",
        "         G  all previous positions, rope base 1,000,000",
    ]
    assert printed[first + 4 : first + 7] == [
        "              #.......      #.......",
        "              .#......      ##......",
        "              ..#.....      ###.....",
    ]
    assert "config.json fields that jaxlens does not read: none" in printed


def test_inspect_shows_sizes_and_positional_embeddings(theirs, tmp_path, capsys):
    scaled = {"rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 4.0}}
    printed = run(capsys, "inspect", edit(shutil.copytree(theirs("llama"), tmp_path / "a"), scaled))
    assert "3 layers, d_model 36, 6 heads of size 8 (2 key/value heads), d_mlp 44, vocabulary 61, context 64" in printed
    assert "G  all previous positions, rope base 500, scaling Linear by 4\n" in printed
    count = sum(value.size for value in tensors(theirs("llama")).values())
    assert f"parameters  {count:,}\n" in printed
    assert f"memory      float32 {4 * count / 1024:.1f} KiB, bfloat16 {2 * count / 1024:.1f} KiB" in printed
    assert "positions: standard" in run(capsys, "inspect", theirs("gpt2"))
    from test_convert import mixture

    from jaxlens.cli.commands.inspect import human, positions, sizes
    from jaxlens.config import Rotary

    assert ", d_mlp 7, 3 experts of size 7 (2 per token), " in sizes(mixture()[0])
    cfg = load_lazily(theirs("llama")).cfg
    assert positions(cfg, None) == "no positions"
    assert positions(cfg, Rotary(dim=4)) == "rope base 10,000 on 4 of 8 dimensions"
    assert human(5 * 2**40) == "5.0 TiB"


# ---- verifying ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "gemma3"])
def test_a_checkpoint_is_compared_with_transformers(kind, theirs, capsys, tmp_path):
    results = ("--results", tmp_path / "RESULTS.md")
    printed = run(capsys, "verify", theirs(kind), "--length", "20", *results)
    kept = {"gemma3": "gemma3_text"}.get(kind, kind)
    assert printed.startswith(f"{theirs(kind)} ({kept}), ") and "2 × 20 tokens" in printed
    layers = look(theirs(kind)).checkpoint.cfg.n_layers
    rows = [line.split()[0] for line in printed.splitlines() if line.startswith(("blocks", "unembed", "logits "))]
    assert rows == [*(f"blocks.{layer}.hook_resid_pre" for layer in range(layers)), "unembed.hook_in", "logits"]
    assert printed.splitlines()[-1] == "passed: logits must agree within 1e-05 of the largest logit"
    table = (tmp_path / "RESULTS.md").read_text().splitlines()
    assert table[-1].startswith(f"| {theirs(kind).name} | `{kept}` | ") and "2 × 20" in table[-1]
    assert table[-1].count(" | ") == table[-3].count(" | ") and "transformers 5" in table[-1]


def test_the_reference_uses_the_attention_of_the_family(capsys, tmp_path):
    """Only transformers' eager attention adds the ALiBi of Falcon twice."""
    folder = write_checkpoint(tmp_path / "falcon", "falcon", **CASES["falcon"][3])
    assert "passed" in run(capsys, "verify", folder, "--length", "9", "--results", tmp_path / "RESULTS.md")


def test_a_native_folder_is_compared_with_transformers(theirs, tmp_path, capsys, monkeypatch):
    converter.convert(theirs("gpt2"), tmp_path / "ours")
    assert "passed" in run(capsys, "verify", tmp_path / "ours", "--text", "a b b a")
    monkeypatch.setattr(verify_module, "load", load_scaled)
    printed = run(capsys, "verify", tmp_path / "ours", "--batch", "1", status=1)
    assert printed.splitlines()[-1] == "FAILED: logits must agree within 1e-05 of the largest logit"
    assert verify_module.difference("", np.zeros((2, 3)), np.ones((2, 2)).view(WithNumpy)).largest == np.inf


class WithNumpy(np.ndarray):
    def numpy(self):
        return np.asarray(self)


def load_scaled(*arguments, **options):
    loaded = load(*arguments, **options)
    return dataclasses.replace(loaded, params={name: value * 1.001 for name, value in loaded.params.items()})


def test_a_last_hidden_state_of_another_width_is_not_compared(tmp_path, capsys):
    narrow = {"word_embed_proj_dim": 20, "do_layer_norm_before": False}
    folder = write_checkpoint(tmp_path / "opt", "opt", **narrow)
    printed = run(capsys, "verify", folder, "--length", "9", "--results", tmp_path / "RESULTS.md")
    assert re.search(r"^unembed\.hook_in +has another shape in transformers$", printed, re.MULTILINE)
    assert "inf" not in (tmp_path / "RESULTS.md").read_text()


def test_a_gguf_file_is_compared_with_transformers(tmp_path, capsys):
    words = vocabulary(tokens=["<s>", "</s>", *"abcdefghi"], token_type=[3, 3, *[1] * 9], merges=[])
    file = write_gguf(tmp_path / "model.gguf", {name: value / 8 for name, value in weights().items()}, extra=words)
    assert "(llama), 87,552 parameters" in run(capsys, "verify", file, "--length", "10")


def test_a_pytorch_file_is_compared_with_transformers(theirs, tmp_path, capsys):
    folder = shutil.copytree(theirs("gpt2"), tmp_path / "pickled")
    torch.save(transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "passed" in run(capsys, "verify", folder, "--length", "9", "--results", tmp_path / "RESULTS.md")


@pytest.mark.parametrize(
    ("kind", "versions"), [("deepseek_v2", ("5.14.1", "5.15.0")), ("olmo3", ("5.12.1", "5.13.0.dev0"))]
)
def test_versions_of_transformers_with_a_wrong_rotary_scaling(kind, versions, tmp_path, capsys, monkeypatch):
    scaled = next(fields for fields in CASES[kind] if "yarn" in str(fields))
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "scaled", kind, **scaled))
    wrong, correct = versions
    monkeypatch.setattr("importlib.metadata.version", lambda package: wrong)
    error = run(capsys, "verify", tmp_path / "scaled", status=1)
    needed = ".".join(correct.split(".")[:2])
    problem = f"transformers {wrong} computes the rotary scaling of {kind} incorrectly; expected at least {needed}"
    assert error == f"jaxlens: {problem}; run `pip install 'transformers>={needed}'`\n"
    plain = dataclasses.replace(checkpoint, cfg=checkpoint.cfg.replace(rotary=Rotary()))
    assert verify_module.check_version(plain) is None
    monkeypatch.setattr("importlib.metadata.version", lambda package: correct)
    assert verify_module.check_version(checkpoint) is None


def test_errors_of_verify(theirs, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("jaxlens.cli.commands.verify.verify", None)  # the check comes before loading
        for path, why in ((tmp_path, "choose another"), (tmp_path / "no" / "R.md", "there is no folder")):
            assert why in run(capsys, "verify", theirs("gpt2"), "--results", path, status=1)

    def fail(*arguments, **options):
        raise OSError("no such class")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)
        error = run(capsys, "verify", theirs("gpt2"), status=1)
    assert f"transformers cannot open {theirs('gpt2')}: no such class" in error
    monkeypatch.setitem(sys.modules, "torch", None)
    error = run(capsys, "verify", theirs("gpt2"), status=1)
    assert error == "jaxlens: comparing with transformers needs the package torch; run `pip install torch`\n"


# ---- families -------------------------------------------------------------------------------------------------------


def test_families_are_listed_and_written_to_a_file(tmp_path, capsys):
    printed = run(capsys, "families")
    assert "gemma3_text, gemma3\n    Gemma 3 (text): " in printed
    table = run(capsys, "families", "--markdown")
    assert re.search(r"^\| `llama` \| Llama 1 to 3.* \| .*Also from GGUF files\. \|$", table, re.MULTILINE)
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`([\w-]+)`", row)} >= {*CASES, "jaxlens"}
    page = tmp_path / "page.md"
    page.write_text(f"before\n{families.BEGIN}old\n{families.END}\nafter\n")
    assert run(capsys, "families", "--update", page) == ""
    assert page.read_text() == f"before\n{families.BEGIN}{table}{families.END}\nafter\n"
    page.write_text("no table")
    error = run(capsys, "families", "--update", page, status=1)
    assert "the file has no lines for the table; add the lines <!-- jaxlens families --> and <!-- end -->" in error


def test_a_new_module_in_the_folder_is_a_family(theirs, tmp_path, monkeypatch, capsys):
    """The first of the four steps in CONTRIBUTING.md is a new module. No list of modules has to be changed."""
    (tmp_path / "cousin.py").write_text(
        '"""A cousin of Llama."""\n'
        "from jaxlens.checkpoints.families.llama import FAMILY as LLAMA\n"
        "from jaxlens.checkpoints.rules.rule import Family\n\n"
        'FAMILY = Family(("cousin",), LLAMA.config, LLAMA.rules, LLAMA.unused)\n'
    )
    package = jaxlens.checkpoints.families
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    folder = edit(shutil.copytree(theirs("llama"), tmp_path / "theirs"), {"model_type": "cousin"})
    assert "cousin\n    A cousin of Llama." in run(capsys, "families")
    ours, llama = load(folder), load(theirs("llama"))
    assert ours.cfg == llama.cfg and ours.source["model_type"] == "cousin"
    assert "family      cousin: A cousin of Llama." in run(capsys, "inspect", folder)
    sys.modules.pop("jaxlens.checkpoints.families.cousin")
    steps = re.search(r"## Add a family\n\n(.*?)\n## ", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[1]
    assert re.findall(r"^(\d)\. ", steps, re.MULTILINE) == ["1", "2", "3", "4"]


# ---- scripts --------------------------------------------------------------------------------------------------------


def script(name, *arguments):
    """Starts a script as a file, without this repository on the path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    program = [sys.executable, str(CONVERSION / f"{name}.py"), *map(str, arguments)]
    return subprocess.Popen(program, stdout=-1, stderr=-1, text=True, env=environment, cwd=CONVERSION)


def test_every_script_runs_as_a_file(theirs, tmp_path, capsys):
    """inspect.py has the name of a module of Python's standard library."""
    original = theirs("gpt2")
    started = {
        "inspect": script("inspect", original),
        "convert": script("convert", original, tmp_path / "ours"),
        "export": script("export", "--help"),
        "verify": script("verify", original, "--results", tmp_path / "RESULTS.md", "--length", "9"),
    }
    printed = {name: process.communicate() for name, process in started.items()}
    assert {name: process.returncode for name, process in started.items()} == dict.fromkeys(SCRIPTS, 0), printed
    assert printed["inspect"][0] == run(capsys, "inspect", original)
    assert printed["convert"][0].endswith("parameters in float32\n") and load(tmp_path / "ours")
    assert printed["export"][0].startswith("usage: jaxlens export [-h]")
    assert "tiny-random-gpt2" in (tmp_path / "RESULTS.md").read_text()


def test_scripts_only_run_commands():
    """They contain no names of tensors or config.json fields."""
    fields = {name for sizes in SIZES.values() for name in read_config_fields(sizes)}
    names = set()
    for kind, sizes in SIZES.items():
        family, cfg = read_config({"model_type": kind, **sizes})
        names |= {word for rule in family.rules(cfg) for word in rule.theirs.split(".") if "_" in word}
    assert {"q_proj", "c_attn"} <= names and {"hidden_size", "n_embd", "layer_types"} <= fields | {"layer_types"}
    for file in CONVERSION.glob("*.py"):
        words = set(re.findall(r"\w+", file.read_text()))
        assert not words & (names | fields), file
        assert len(file.read_text().splitlines()) < 25
        assert file.stem == "script" or file.stem in COMMANDS
    assert {file.stem for file in CONVERSION.glob("*.py")} == {*SCRIPTS, "script"}


def read_config_fields(value):
    """The names of all fields, including those of nested objects."""
    for name, inner in value.items():
        yield name
        yield from read_config_fields(inner) if isinstance(inner, dict) else ()


def test_the_readme_shows_the_output_of_every_command(theirs, tmp_path, capsys, monkeypatch):
    """Runs every command in the README. Numbers that depend on the machine may differ."""
    for kind in ("gemma3_text", "gpt2"):
        shutil.copytree(theirs(kind), tmp_path / theirs(kind).name)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```console\n\$ python conversion/(\w+)\.py (.*?)\n(.*?)```", readme(), re.DOTALL)
    assert [name for name, *_ in blocks] == ["inspect", "convert", "export", "verify"]
    for name, arguments, shown in blocks:
        printed = run(capsys, name, *arguments.split())
        assert without_measurements(printed) == without_measurements(shown), name


def readme():
    return (CONVERSION / "README.md").read_text()


def without_measurements(text):
    return re.sub(r" *\d\.\de[-+]\d\d", " #", text)
