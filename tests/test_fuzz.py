"""Damaged checkpoints raise a CheckpointError or load correctly.

They never raise another exception, crash, hang, load other values than those in the files, or need much more memory
than the files. Seeds determine the damage.
"""

import contextlib
import json
import math
import os
import shutil
import signal
import sys
import time
import tracemalloc
import warnings
import zlib
from collections import Counter

import jax
import numpy as np
import pytest
from families import SIZES
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import load_file, save_file
from support.tiny import write_checkpoint
from test_gguf import vocabulary, weights
from test_gguf import write as write_gguf
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models

from jaxlens import CheckpointError, HookedTransformer, Tokenizer
from jaxlens.checkpoints import converter, load, native, open_checkpoint
from jaxlens.checkpoints.exporter import ExportedTensors
from jaxlens.checkpoints.open import read_config
from jaxlens.checkpoints.rules.hf_config import IGNORED_FIELDS, complete
from jaxlens.checkpoints.rules.wrappers import UNUSED_FIELDS

MAX_BYTES = 8 * 2**20
"""The limit for allocations by Python and NumPy. The checkpoints have 200 kB; config classes need most of it."""

MAX_SECONDS = 10
KINDS = {  # the checkpoints, and the options of write_checkpoint
    "gpt2": {}, "llama": {"shard": "20KB"}, "gemma2": {"dtype": "bfloat16"}, "gemma3": {}, "qwen3": {}, "phi3": {},
    "mixtral": {}, "jaxlens": {}, "gguf": {},
}  # fmt: skip
VALUES = (
    None, True, False, -1, 0, 1, 3, 2**31, 10**9, 2**63, 10**400, 0.5, -0.5, 1e-300, 1e308, math.nan, math.inf, "",
    "x", "12", "../../etc/passwd", [], [1], ["full_attention"] * 9, [["global"], 10**9], [[["global"], 10**9]], {},
    {"a": 1}, {"rope_type": "spiral"}, {"rope_type": "yarn", "factor": -1, "rope_theta": 1e4},
)  # fmt: skip
"""Replacements for the value of a config.json field."""


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory):
    """A function that returns an undamaged checkpoint of a kind."""
    root, written = tmp_path_factory.mktemp("undamaged"), {}

    def get(kind):
        if kind not in written:
            folder = root / kind
            if kind == "gguf":
                folder.mkdir()
                write_gguf(folder / "model.gguf", kind=Kind.Q8_0, extra=vocabulary())
            elif kind == "jaxlens":
                converter.convert(get("gpt2"), folder, shard_bytes=40_000)
            else:
                write_checkpoint(folder, kind, **KINDS[kind])
                words = FastTokenizer(models.WordLevel({"a": 0, "b": 1, "<s>": 2}, unk_token="a"))
                Tokenizer(words, bos_token="<s>").save(folder)
            written[kind] = folder
        return written[kind]

    return get


@pytest.fixture
def outcomes():
    """The numbers of damaged checkpoints that were refused and that loaded."""
    return Counter()


# ---- the expected outcome -------------------------------------------------------------------------------------------


class Timeout(BaseException):
    """Derived from BaseException, so that no `except Exception` catches it."""


@contextlib.contextmanager
def limited(damage):
    """Limits time and memory."""

    def stop(*arguments):
        raise Timeout(damage)

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(MAX_SECONDS)
    tracemalloc.reset_peak()
    before, start = tracemalloc.get_traced_memory()[0], time.perf_counter()
    try:
        yield
    finally:
        signal.alarm(0)
    assert tracemalloc.get_traced_memory()[1] - before < MAX_BYTES, f"{damage} needs more memory than the files"
    assert time.perf_counter() - start < MAX_SECONDS


def try_to_load(path, damage, outcomes):
    """Loads a damaged checkpoint. If it loads, the values must equal those that safetensors reads from the files."""
    with limited(damage), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loaded = load(path, dtype=None)
        except CheckpointError as error:
            assert len(str(error)) < 5000 and str(path) in str(error), damage
            outcomes["refused"] += 1
            return None
        except ValueError as error:
            assert "jax_enable_x64" in str(error), damage  # its largest tensor is in float64
            outcomes["refused"] += 1
            return None
    outcomes["loaded"] += 1
    not_finite = any(not np.isfinite(value).all() for value in map(np.asarray, loaded.params.values()))
    assert not_finite == any("NaN" in str(warning.message) for warning in caught), damage
    if path.is_dir():
        files = {name: value for file in path.glob("*.safetensors") for name, value in load_file(file).items()}
        family, _ = read_config(json.loads((path / "config.json").read_text()))
        exported = ExportedTensors(family, loaded.cfg, loaded.params)
        rename = family.spelling(family.rules(loaded.cfg), files)
        for name in exported.names():
            assert np.array_equal(files[rename(name)], exported.read(name), equal_nan=True), damage
    return loaded


def assert_traceable(loaded):
    """Asserts that a forward pass can be traced, so that the config is valid."""
    shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in loaded.params.items()}
    tokens = np.zeros((1, min(3, loaded.cfg.n_ctx)), int)
    jax.eval_shape(lambda params: HookedTransformer(loaded.cfg, params=params)(tokens), shapes)


@pytest.fixture(scope="module", autouse=True)
def traced_memory(undamaged):
    """Starts to trace memory after all imports."""
    load(undamaged("gpt2"))
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_undamaged_checkpoints_load(kind, undamaged, outcomes):
    try_to_load(path_of(undamaged(kind)), kind, outcomes)
    assert outcomes["loaded"]


def seeded(*name):
    return np.random.default_rng(zlib.crc32(repr(name).encode()))


def copy(undamaged, kind, tmp_path, name="damaged"):
    folder = tmp_path / name
    shutil.rmtree(folder, ignore_errors=True)
    return shutil.copytree(undamaged(kind), folder)


def weights_file(folder, random):
    return random.choice(sorted([*folder.glob("*.safetensors"), *folder.glob("*.gguf")]))


def path_of(folder):
    return folder / "model.gguf" if (folder / "model.gguf").exists() else folder


# ---- bytes ----------------------------------------------------------------------------------------------------------


def header_length(data):
    if data[:4] == b"GGUF":
        return data.index(b"output_norm.weight") + 40
    return 8 + int.from_bytes(data[:8], "little")


def flipped(data, random):
    """Changes up to three bytes of the header."""
    data = bytearray(data)
    for i in random.integers(0, header_length(data), random.integers(1, 4)):
        data[i] = random.integers(256)
    return bytes(data)


def digit(data, random):
    """Changes a digit of the header, and thereby a layer, shape or offset."""
    data = bytearray(data)
    digits = [i for i in range(8, header_length(data)) if chr(data[i]).isdigit()]
    data[random.choice(digits)] = random.choice(list(b"0123456789"))
    return bytes(data)


def cut(data, random):
    return data[: random.integers(0, len(data))]


def lengthened(data, random):
    return data + bytes(random.integers(1, 100))


def miscounted(data, random):
    """Changes the length of the header, or the number of tensors or metadata of a GGUF file."""
    start = 8 * random.integers(1, 3) if data[:4] == b"GGUF" else 0
    size = int(random.choice([0, 1, 7, len(data), 2**31, 2**63]))
    return data[:start] + size.to_bytes(8, "little") + data[start + 8 :]


def shuffled(data, random):
    """Moves some bytes of the header."""
    length = header_length(data)
    start, to = sorted(random.integers(8, length, 2))
    size = random.integers(1, 60)
    return data[:start] + data[start + size : to] + data[start : start + size] + data[to:]


BYTES = (flipped, digit, cut, lengthened, miscounted, shuffled)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes(kind, undamaged, tmp_path, outcomes):
    for damage in BYTES:
        for seed in range(8):
            random = seeded(kind, damage.__name__, seed)
            folder = copy(undamaged, kind, tmp_path)
            file = weights_file(folder, random)
            file.write_bytes(damage(file.read_bytes(), random))
            try_to_load(path_of(folder), (kind, damage.__name__, seed), outcomes)
    assert outcomes["refused"] > 24 and sum(outcomes.values()) == 48


# ---- tensors --------------------------------------------------------------------------------------------------------


TENSORS = {
    "removed": lambda value: None,
    "of integers": lambda value: np.zeros(value.shape, np.int32),
    "of booleans": lambda value: np.zeros(value.shape, bool),
    "of bytes": lambda value: np.zeros((*value.shape, 2), np.uint8),
    "with one more axis": lambda value: value[None],
    "flat": lambda value: value.reshape(-1)[:-1],
    "empty": lambda value: value[:0],
    "scalar": lambda value: value.reshape(-1)[:1].reshape(()),
    "with rows and columns swapped": lambda value: value.T if value.ndim > 1 else value[:, None],
    "too long": lambda value: np.concatenate([value, value]),
    "in float64": lambda value: value.astype(np.float64),
    "NaN": lambda value: value * np.nan,
    "infinite": lambda value: value / 0,
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gguf"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_tensors(kind, undamaged, tmp_path, outcomes):
    for damage, change in TENSORS.items():
        for seed in range(2):
            random = seeded(kind, damage, seed)
            folder = copy(undamaged, kind, tmp_path)
            file = weights_file(folder, random)
            tensors = load_file(file)
            name = random.choice([name for name in tensors if "vision" not in name and "multi_modal" not in name])
            shape, value = tensors[name].shape, change(tensors.pop(name))
            tensors |= {} if value is None else {name: np.ascontiguousarray(value)}
            save_file(tensors, file)
            loaded = try_to_load(folder, (kind, damage, name), outcomes)
            valid = damage in ("NaN", "infinite") or (damage.endswith("swapped") and value.shape == shape)
            assert (loaded is not None) == valid or damage == "in float64", (kind, damage, name)
    assert outcomes["refused"] >= 16 and outcomes["loaded"] >= 6


def test_values_too_large_for_the_dtype_cause_a_warning(undamaged):
    with pytest.warns(UserWarning, match="weights contain NaN or infinity: "):
        load(huge(undamaged("gpt2")), dtype="float16")


def huge(folder):
    tensors = load_file(folder / "model.safetensors")
    copied = shutil.copytree(folder, folder.with_name("huge"))
    save_file({name: value * np.float32(1e9) for name, value in tensors.items()}, copied / "model.safetensors")
    return copied


# ---- wrong headers --------------------------------------------------------------------------------------------------


def with_header(folder, change):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = header_length(data)
    header = change(data[8:length].decode().rstrip())
    file.write_bytes(len(header).to_bytes(8, "little") + header.encode() + data[length:])


HEADERS = {
    "the same tensor twice": lambda text: text[:-1] + ',"lm_head.weight":' + text.split('"lm_head.weight":')[1][:60],
    "a field twice": lambda text: text.replace('"dtype":"F32"', '"dtype":"F32","dtype":"F32"', 1),
    "the tensors of another layer": lambda text: text.replace("layers.1.", "layers.0."),
    "a huge shape": lambda text: text.replace('"shape":[36]', '"shape":[99999999999999]', 1),
    "a shape above 2^63": lambda text: text.replace('"shape":[36]', '"shape":[9223372036854775807,9]', 1),
    "a negative shape": lambda text: text.replace('"shape":[36]', '"shape":[-36]', 1),
    "offsets in reverse": lambda text: text.replace('"data_offsets":[0,', '"data_offsets":[99999,', 1),
    "an offset past the end": lambda text: text.replace('"data_offsets":[0,', '"data_offsets":[0,9', 1),
    "an unknown type": lambda text: text.replace('"F32"', '"F33"', 1),
    "a type of four bits": lambda text: text.replace('"F32"', '"F4"', 1),
    "invalid metadata": lambda text: text.replace('{"format":"pt"}', "3"),
    "invalid JSON": lambda text: text[1:],
    "a list": lambda text: f"[{text}]",
    "no tensors": lambda text: "{}",
    "deep": lambda text: '{"a":' * 5000 + text + "}" * 5000,
}


@pytest.mark.parametrize("damage", HEADERS)
def test_headers(damage, undamaged, tmp_path, outcomes):
    folder = copy(undamaged, "qwen3", tmp_path)
    with_header(folder, HEADERS[damage])
    assert try_to_load(folder, damage, outcomes) is None


def test_a_name_that_occurs_twice(undamaged, tmp_path):
    """safetensors uses one of the two entries without an error."""
    folder = copy(undamaged, "qwen3", tmp_path)
    with_header(folder, lambda text: "{" + norm_entry(text) + text[1:])
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' occurs twice"):
        load(folder)


def norm_entry(text):
    entry = text[text.index('"model.norm.weight":') :]
    return entry[: entry.index("}") + 1] + ","


# ---- the index ------------------------------------------------------------------------------------------------------

NAMES = ("../model.safetensors", "/etc/passwd", "..", "", ".", "a\0b.safetensors", "x" * 400 + ".safetensors",
         "\ud800.safetensors", "con.safetensors", "a\\b.safetensors", "~/x.safetensors", "model.SAFETENSORS",
         "tokenizer.json", 3, None, [], {})  # fmt: skip
INDICES = {
    "no weight_map": lambda index: {},
    "a list": lambda index: {"weight_map": []},
    "an empty weight_map": lambda index: {"weight_map": {}},
    "one more tensor": lambda index: {"weight_map": {**index["weight_map"], "x": min(index["weight_map"].values())}},
    "one tensor less": lambda index: {"weight_map": dict(list(index["weight_map"].items())[1:])},
    "one file": lambda index: {"weight_map": dict.fromkeys(index["weight_map"], min(index["weight_map"].values()))},
}


def test_indices(undamaged, tmp_path, outcomes):
    """Files outside the folder are not opened."""
    edits = {**INDICES, **{repr(name)[:20]: pointing_to(name) for name in NAMES}}
    for damage, edit in edits.items():
        folder = copy(undamaged, "llama", tmp_path)
        file = folder / "model.safetensors.index.json"
        file.write_text(json.dumps(edit(json.loads(file.read_text()))))
        assert try_to_load(folder, damage, outcomes) is None, damage


def pointing_to(name):
    def edit(index):
        first, *_ = index["weight_map"]
        return {"weight_map": {**index["weight_map"], first: name}}

    return edit


# ---- JSON -----------------------------------------------------------------------------------------------------------

TEXTS = {
    "empty": lambda text: "", "null": lambda text: "null", "a number": lambda text: "3", "a list": lambda text: "[]",
    "cut": lambda text: text[: len(text) // 2], "text after the end": lambda text: text + "}",
    "a field twice": lambda text: text.replace("{", '{"model_type": "gpt2", ', 1),
    "deep": lambda text: text.replace("{", '{"x": ' + "[" * 900 + "]" * 900 + ",", 1),
    "deeper": lambda text: text.replace("{", '{"x": ' + '{"n": ' * 20_000 + "1" + "}" * 20_000 + ",", 1),
    "an unknown field": lambda text: text.replace("{", '{"qk_layernorm": true, ', 1),
    "a huge number": lambda text: text.replace("{", '{"x": ' + "9" * 5000 + ",", 1),
    "a surrogate": lambda text: text.replace("{", '{"\\ud800": 1, ', 1),
    "invalid UTF-8": lambda text: text.replace("{", '{"é": 1, ', 1).encode("latin-1"),
    "a comment": lambda text: "// comment\n" + text,
    "model_type is a list": lambda text: text.replace('"model_type": ', '"model_type": [], "was": ', 1),
    "an unknown model_type": lambda text: text.replace('"model_type": "', '"model_type": "x', 1),
    "no model_type": lambda text: text.replace('"model_type": ', '"was": ', 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["gemma2", "jaxlens"])
def test_json(kind, undamaged, tmp_path, outcomes):
    for damage, edit in TEXTS.items():
        folder = copy(undamaged, kind, tmp_path)
        text = edit((folder / "config.json").read_text())
        (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        assert try_to_load(folder, damage, outcomes) is None, damage


def test_tokenizers(undamaged, tmp_path, outcomes):
    edits = [
        *(("tokenizer.json", text) for text in ("", "{}", "[]", '{"model": 3}', '{"version": "1.0", "model": null}')),
        *(("tokenizer_config.json", text) for text in ("{", "[3]", '{"bos_token": 3}', '{"bos_token": {}}')),
        *(
            ("tokenizer_config.json", json.dumps({"added_tokens_decoder": value}))
            for value in (3, [1], {"x": 1}, {"1": {}}, {"1": {"content": "b", "unknown": 3}}, {"7": {"content": 4}})
        ),
        *(("special_tokens_map.json", text) for text in ("3", '{"bos_token": ["x"]}')),
        ("tokenizer_config.json", '{"chat_template": [3]}'), ("tokenizer_config.json", '{"padding_side": "up"}'),
    ]  # fmt: skip
    for file, text in edits:
        folder = copy(undamaged, "gpt2", tmp_path)
        (folder / file).write_text(text)
        try_to_load(folder, (file, text), outcomes)
    assert outcomes["refused"] > len(edits) / 2


# ---- fields ---------------------------------------------------------------------------------------------------------


def fields_of(kind):
    return json.loads(json.dumps(complete({"model_type": kind, **SIZES[kind]})))


def test_fields_of_every_family():
    """Invalid values are refused. A value that is accepted but does not change the Config has a valid type."""
    outcomes = Counter()
    for kind in SIZES:
        base, random = fields_of(kind), seeded(kind)
        family, cfg = read_config(base)
        read = [name for name in base if name not in {*IGNORED_FIELDS, *UNUSED_FIELDS, *family.unused}]
        for name, i in zip(random.choice(read, 25), random.integers(0, len(VALUES), 25), strict=True):
            value = VALUES[i]
            with limited((kind, name, value)):
                try:
                    changed = read_config({**base, name: value})[1]
                except CheckpointError as error:
                    assert len(str(error)) < 5000
                    outcomes["refused"] += 1
                    continue
            # a value of a valid type may have an effect only together with other fields
            valid = type(value) in (bool, int) or value in (None, {}, base[name])
            assert valid or changed != cfg, (kind, name, value)
            outcomes["accepted"] += 1
    assert outcomes["refused"] > 6 * outcomes["accepted"] and outcomes["refused"] > 300


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "qwen3", "phi3"])
def test_fields_of_a_checkpoint(kind, undamaged, tmp_path, outcomes):
    """If the tensors match a changed config, the model can run."""
    folder, random = copy(undamaged, kind, tmp_path), seeded(kind)
    base = json.loads((folder / "config.json").read_text())
    names = [name for name in base if name not in IGNORED_FIELDS]
    before = load(folder).cfg
    for _ in range(50):
        name, value = random.choice(names), VALUES[random.integers(len(VALUES))]
        (folder / "config.json").write_text(json.dumps({**base, name: value}))
        loaded = try_to_load(folder, (kind, name, value), outcomes)
        if loaded is not None and loaded.cfg.replace(dtype=before.dtype) != before:
            assert_traceable(loaded)
    assert outcomes["refused"] > 20


def test_fields_of_the_native_format(undamaged, tmp_path, outcomes):
    folder, random = copy(undamaged, "jaxlens", tmp_path), seeded("own")
    base = json.loads((folder / "config.json").read_text())
    rotary = native.fields(read_config(fields_of("qwen3"))[1], None)["config"]["rotary"]
    for name in [*base["config"], *base["config"], "source", "version", "rotary"]:
        value = VALUES[random.integers(len(VALUES))]
        if name == "rotary":
            value = [{**rotary[0], random.choice(list(rotary[0])): value}] * 3
        nested = name in base["config"]
        changed = {**base, "config": {**base["config"], name: value}} if nested else {**base, name: value}
        (folder / "config.json").write_text(json.dumps(changed))
        loaded = try_to_load(folder, (name, value), outcomes)
        if loaded is not None:
            assert_traceable(loaded)
    assert outcomes["refused"] > 3 * outcomes["loaded"]


def test_too_many_layers(undamaged, tmp_path, outcomes):
    """The error does not need memory for every layer."""
    folder = copy(undamaged, "gpt2", tmp_path)
    base = json.loads((folder / "config.json").read_text())
    for count in (9_999, 10_001, 10**9):
        (folder / "config.json").write_text(json.dumps({**base, "n_layer": count}))
        try_to_load(folder, count, outcomes)
    with pytest.raises(
        CheckpointError, match=r"config\.json describes a model of [\d,]+ tensors; the checkpoint has \d+"
    ):
        (folder / "config.json").write_text(json.dumps({**base, "n_layer": 9_999}))
        load(folder)
    assert outcomes == {"refused": 3}


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="needs links and pipes")
def test_folders_pipes_and_links_instead_of_files(undamaged, tmp_path, outcomes):
    def link(path):
        path.symlink_to(path.name)

    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        for make in (os.mkdir, os.mkfifo, link):
            folder = copy(undamaged, "gpt2", tmp_path)
            (folder / name).unlink()
            make(folder / name)
            try_to_load(folder, (name, make.__name__), outcomes)
    assert outcomes["refused"] >= 6


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_wrong_header_length_needs_no_memory(undamaged, tmp_path):
    """Measures the memory of the process, because libraries also allocate outside of Python."""

    def peak():
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

    folder = copy(undamaged, "qwen3", tmp_path)
    data = (folder / "model.safetensors").read_bytes()
    before = peak()
    for size in (90_000_000, 2**33, 2**62):
        (folder / "model.safetensors").write_bytes(size.to_bytes(8, "little") + data[8:])
        with pytest.raises(CheckpointError):
            open_checkpoint(folder)
    assert peak() - before < 20_000


def test_gguf_numbers(tmp_path, outcomes):
    """Metadata of the wrong type, or too large."""
    for key in ("embedding_length", "block_count", "attention__head_count", "context_length", "rope__freq_base"):
        for value in (2**31 - 1, -1.5, "x", [], [1, 2], True, 0.0, 1e30):
            with contextlib.suppress(OverflowError, ValueError, KeyError):  # some values cannot be written
                write_gguf(tmp_path / "model.gguf", extra=vocabulary(), **{key: value})
                try_to_load(tmp_path / "model.gguf", (key, value), outcomes)
    assert outcomes["refused"] > 25
    assert set(weights()) == set(open_checkpoint(write_gguf(tmp_path / "valid.gguf")).tensors.names())
