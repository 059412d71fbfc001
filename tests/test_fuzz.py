"""Checkpoints damaged in a thousand ways: an error of the package's own, or a correct load, and never anything else.

Never another exception, a crash or a hang; nothing taken for what it is not; no more memory than the files account for.
What is damaged, and how, follows from seeds.
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
from test_gguf import vocabulary, weights
from test_gguf import write as write_gguf
from tiny import write_checkpoint
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models

from jaxlens import CheckpointError, HookedTransformer, Tokenizer, checkpoint
from jaxlens.convert import load, open_checkpoint
from jaxlens.convert.exporting import ExportedTensors
from jaxlens.convert.families import family_of, own
from jaxlens.convert.opening import read_config
from jaxlens.convert.reader import NEUTRAL, complete

MOST_BYTES = 8 * 2**20
"""That Python and numpy may take. The checkpoints have some 200 kB; config classes and headers are most of it."""

MOST_SECONDS = 10
KINDS = {  # what is damaged: how it is written
    "gpt2": {}, "llama": {"shard": "20KB"}, "gemma2": {"dtype": "bfloat16"}, "gemma3": {}, "qwen3": {}, "phi3": {},
    "mixtral": {}, "jaxlens": {}, "gguf": {},
}  # fmt: skip
STRANGE = (
    None, True, False, -1, 0, 1, 3, 2**31, 10**9, 2**63, 10**400, 0.5, -0.5, 1e-300, 1e308, math.nan, math.inf, "",
    "x", "12", "../../etc/passwd", [], [1], ["full_attention"] * 9, [["global"], 10**9], [[["global"], 10**9]], {},
    {"a": 1}, {"rope_type": "spiral"}, {"rope_type": "yarn", "factor": -1, "rope_theta": 1e4},
)  # fmt: skip
"""What a field of config.json may be set to."""

@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sound checkpoint of each kind."""
    root, written = tmp_path_factory.mktemp("whole"), {}

    def get(kind):
        if kind not in written:
            folder = root / kind
            if kind == "gguf":
                folder.mkdir()
                write_gguf(folder / "model.gguf", kind=Kind.Q8_0, extra=vocabulary())
            elif kind == "jaxlens":
                checkpoint.convert(get("gpt2"), folder, shard_bytes=40_000)
            else:
                write_checkpoint(folder, kind, **KINDS[kind])
                words = FastTokenizer(models.WordLevel({"a": 0, "b": 1, "<s>": 2}, unk_token="a"))
                Tokenizer(words, bos_token="<s>").save(folder)
            written[kind] = folder
        return written[kind]

    return get


@pytest.fixture
def outcomes():
    """How many damaged checkpoints were refused, and how many loaded."""
    return Counter()


# ---- what must come of it -------------------------------------------------------------------------------------------


class Hangs(BaseException):
    """It is nobody's to catch."""


@contextlib.contextmanager
def watched(what):
    """Neither much time nor much memory."""

    def stop(*arguments):
        raise Hangs(what)

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(MOST_SECONDS)
    tracemalloc.reset_peak()
    before, start = tracemalloc.get_traced_memory()[0], time.perf_counter()
    try:
        yield
    finally:
        signal.alarm(0)
    assert tracemalloc.get_traced_memory()[1] - before < MOST_BYTES, f"{what} takes memory that the files do not"
    assert time.perf_counter() - start < MOST_SECONDS


def tries(path, what, outcomes):
    """Loads a damaged checkpoint; what loads must be what the files say, read by somebody else."""
    with watched(what), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            loaded = load(path, dtype=None)
        except CheckpointError as error:
            assert len(str(error)) < 5000 and str(path) in str(error), what
            outcomes["refused"] += 1
            return None
        except ValueError as error:
            assert "jax_enable_x64" in str(error), what  # its largest tensor is in float64
            outcomes["refused"] += 1
            return None
    outcomes["loaded"] += 1
    strange = any(not np.isfinite(value).all() for value in map(np.asarray, loaded.params.values()))
    assert strange == any("NaN" in str(one.message) for one in told), what
    if path.is_dir():
        files = {name: value for file in path.glob("*.safetensors") for name, value in load_file(file).items()}
        family = family_of(json.loads((path / "config.json").read_text())["model_type"])
        again = ExportedTensors(family, loaded.cfg, loaded.params)
        spell = family.spelling(family.rules(loaded.cfg), files)
        for name in again.names():
            assert np.array_equal(files[spell(name)], again.read(name), equal_nan=True), what
    return loaded


def traces(loaded):
    """A forward can be traced: nothing in the config was accepted that no computation can do with."""
    shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in loaded.params.items()}
    tokens = np.zeros((1, min(3, loaded.cfg.n_ctx)), int)
    jax.eval_shape(lambda params: HookedTransformer(loaded.cfg, params=params)(tokens), shapes)


@pytest.fixture(scope="module", autouse=True)
def measured(whole):
    """Memory is counted once everything is imported."""
    load(whole("gpt2"))
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_damaged_loads(kind, whole, outcomes):
    tries(path_of(whole(kind)), kind, outcomes)
    assert outcomes["loaded"]


def seeded(*name):
    return np.random.default_rng(zlib.crc32(repr(name).encode()))


def copy(whole, kind, tmp_path, name="damaged"):
    folder = tmp_path / name
    shutil.rmtree(folder, ignore_errors=True)
    return shutil.copytree(whole(kind), folder)


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
    """A byte of the header changed, or a few of them."""
    data = bytearray(data)
    for at in random.integers(0, header_length(data), random.integers(1, 4)):
        data[at] = random.integers(256)
    return bytes(data)


def digit(data, random):
    """A digit of the header changed: other layers, other shapes, other places."""
    data = bytearray(data)
    digits = [at for at in range(8, header_length(data)) if chr(data[at]).isdigit()]
    data[random.choice(digits)] = random.choice(list(b"0123456789"))
    return bytes(data)


def cut(data, random):
    return data[: random.integers(0, len(data))]


def lengthened(data, random):
    return data + bytes(random.integers(1, 100))


def announced(data, random):
    """Another length of the header, or of a GGUF file's tensors and metadata."""
    at = 8 * random.integers(1, 3) if data[:4] == b"GGUF" else 0
    size = int(random.choice([0, 1, 7, len(data), 2**31, 2**63]))
    return data[:at] + size.to_bytes(8, "little") + data[at + 8 :]


def shuffled(data, random):
    """A stretch of the header moved elsewhere."""
    length = header_length(data)
    start, to = sorted(random.integers(8, length, 2))
    size = random.integers(1, 60)
    return data[:start] + data[start + size : to] + data[start : start + size] + data[to:]


BYTES = (flipped, digit, cut, lengthened, announced, shuffled)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes(kind, whole, tmp_path, outcomes):
    for damage in BYTES:
        for seed in range(8):
            random = seeded(kind, damage.__name__, seed)
            folder = copy(whole, kind, tmp_path)
            file = weights_file(folder, random)
            file.write_bytes(damage(file.read_bytes(), random))
            tries(path_of(folder), (kind, damage.__name__, seed), outcomes)
    assert outcomes["refused"] > 24 and sum(outcomes.values()) == 48


# ---- tensors --------------------------------------------------------------------------------------------------------


TENSORS = {
    "gone": lambda value: None,
    "of whole numbers": lambda value: np.zeros(value.shape, np.int32),
    "of booleans": lambda value: np.zeros(value.shape, bool),
    "of bytes": lambda value: np.zeros((*value.shape, 2), np.uint8),
    "with an axis more": lambda value: value[None],
    "flat": lambda value: value.reshape(-1)[:-1],
    "empty": lambda value: value[:0],
    "a number": lambda value: value.reshape(-1)[:1].reshape(()),
    "turned round": lambda value: value.T if value.ndim > 1 else value[:, None],
    "too long": lambda value: np.concatenate([value, value]),
    "in float64": lambda value: value.astype(np.float64),
    "NaN": lambda value: value * np.nan,
    "infinite": lambda value: value / 0,
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gguf"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_tensors(kind, whole, tmp_path, outcomes):
    for what, change in TENSORS.items():
        for seed in range(2):
            random = seeded(kind, what, seed)
            folder = copy(whole, kind, tmp_path)
            file = weights_file(folder, random)
            tensors = load_file(file)
            name = random.choice([name for name in tensors if "vision" not in name and "multi_modal" not in name])
            shape, value = tensors[name].shape, change(tensors.pop(name))
            tensors |= {} if value is None else {name: np.ascontiguousarray(value)}
            save_file(tensors, file)
            loaded = tries(folder, (kind, what, name), outcomes)
            sound = what in ("NaN", "infinite") or (what == "turned round" and value.shape == shape)
            assert (loaded is not None) == sound or what == "in float64", (kind, what, name)
    assert outcomes["refused"] >= 16 and outcomes["loaded"] >= 6


def test_too_large_for_the_number_type_is_told(whole):
    with pytest.warns(UserWarning, match="there are NaN or infinite numbers in "):
        load(huge(whole("gpt2")), dtype="float16")


def huge(folder):
    tensors = load_file(folder / "model.safetensors")
    copied = shutil.copytree(folder, folder.with_name("huge"))
    save_file({name: value * np.float32(1e9) for name, value in tensors.items()}, copied / "model.safetensors")
    return copied


# ---- headers that lie -----------------------------------------------------------------------------------------------


def with_header(folder, change):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = header_length(data)
    header = change(data[8:length].decode().rstrip())
    file.write_bytes(len(header).to_bytes(8, "little") + header.encode() + data[length:])


LIES = {
    "the same tensor twice": lambda text: text[:-1] + ',"lm_head.weight":' + text.split('"lm_head.weight":')[1][:60],
    "an entry twice": lambda text: text.replace('"dtype":"F32"', '"dtype":"F32","dtype":"F32"', 1),
    "a tensor of another's numbers": lambda text: text.replace("layers.1.", "layers.0."),
    "a huge shape": lambda text: text.replace('"shape":[36]', '"shape":[99999999999999]', 1),
    "a shape beyond all numbers": lambda text: text.replace('"shape":[36]', '"shape":[9223372036854775807,9]', 1),
    "a negative shape": lambda text: text.replace('"shape":[36]', '"shape":[-36]', 1),
    "places in reverse": lambda text: text.replace('"data_offsets":[0,', '"data_offsets":[99999,', 1),
    "a place past the end": lambda text: text.replace('"data_offsets":[0,', '"data_offsets":[0,9', 1),
    "an unknown type": lambda text: text.replace('"F32"', '"F33"', 1),
    "a type of four bits": lambda text: text.replace('"F32"', '"F4"', 1),
    "metadata that are none": lambda text: text.replace('{"format":"pt"}', "3"),
    "no JSON": lambda text: text[1:],
    "a list": lambda text: f"[{text}]",
    "nothing": lambda text: "{}",
    "deep": lambda text: '{"a":' * 5000 + text + "}" * 5000,
}


@pytest.mark.parametrize("what", LIES)
def test_headers(what, whole, tmp_path, outcomes):
    folder = copy(whole, "qwen3", tmp_path)
    with_header(folder, LIES[what])
    assert tries(folder, what, outcomes) is None


def test_a_name_that_occurs_twice_is_named(whole, tmp_path):
    """The library takes one of the two, and says nothing."""
    folder = copy(whole, "qwen3", tmp_path)
    with_header(folder, lambda text: "{" + again(text) + text[1:])
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' occurs twice"):
        load(folder)


def again(text):
    entry = text[text.index('"model.norm.weight":') :]
    return entry[: entry.index("}") + 1] + ","


# ---- the index ------------------------------------------------------------------------------------------------------

NAMES = ("../model.safetensors", "/etc/passwd", "..", "", ".", "a\0b.safetensors", "x" * 400 + ".safetensors",
         "\ud800.safetensors", "con.safetensors", "a\\b.safetensors", "~/x.safetensors", "model.SAFETENSORS",
         "tokenizer.json", 3, None, [], {})  # fmt: skip
INDICES = {
    "no map": lambda index: {},
    "a list": lambda index: {"weight_map": []},
    "an empty map": lambda index: {"weight_map": {}},
    "a tensor more": lambda index: {"weight_map": {**index["weight_map"], "x": min(index["weight_map"].values())}},
    "a tensor less": lambda index: {"weight_map": dict(list(index["weight_map"].items())[1:])},
    "all in one": lambda index: {"weight_map": dict.fromkeys(index["weight_map"], min(index["weight_map"].values()))},
}


def test_indices(whole, tmp_path, outcomes):
    """None of these is opened, wherever it points."""
    edits = {**INDICES, **{repr(name)[:20]: pointing(name) for name in NAMES}}
    for what, edit in edits.items():
        folder = copy(whole, "llama", tmp_path)
        file = folder / "model.safetensors.index.json"
        file.write_text(json.dumps(edit(json.loads(file.read_text()))))
        assert tries(folder, what, outcomes) is None, what


def pointing(name):
    def edit(index):
        first, *_ = index["weight_map"]
        return {"weight_map": {**index["weight_map"], first: name}}

    return edit


# ---- JSON -----------------------------------------------------------------------------------------------------------

TEXTS = {
    "empty": lambda text: "", "null": lambda text: "null", "a number": lambda text: "3", "a list": lambda text: "[]",
    "cut": lambda text: text[: len(text) // 2], "more after it": lambda text: text + "}",
    "a field twice": lambda text: text.replace("{", '{"model_type": "gpt2", ', 1),
    "deep": lambda text: text.replace("{", '{"x": ' + "[" * 900 + "]" * 900 + ",", 1),
    "deeper": lambda text: text.replace("{", '{"x": ' + '{"n": ' * 20_000 + "1" + "}" * 20_000 + ",", 1),
    "a field that is unknown": lambda text: text.replace("{", '{"qk_layernorm": true, ', 1),
    "a number beyond all": lambda text: text.replace("{", '{"x": ' + "9" * 5000 + ",", 1),
    "a surrogate": lambda text: text.replace("{", '{"\\ud800": 1, ', 1),
    "no UTF-8": lambda text: text.replace("{", '{"é": 1, ', 1).encode("latin-1"),
    "a comment": lambda text: "// comment\n" + text,
    "model_type is a list": lambda text: text.replace('"model_type": ', '"model_type": [], "was": ', 1),
    "model_type is nobody's": lambda text: text.replace('"model_type": "', '"model_type": "x', 1),
    "model_type is gone": lambda text: text.replace('"model_type": ', '"was": ', 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["gemma2", "jaxlens"])
def test_json(kind, whole, tmp_path, outcomes):
    for what, edit in TEXTS.items():
        folder = copy(whole, kind, tmp_path)
        text = edit((folder / "config.json").read_text())
        (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        assert tries(folder, what, outcomes) is None, what


def test_tokenizers(whole, tmp_path, outcomes):
    edits = [
        *(("tokenizer.json", text) for text in ("", "{}", "[]", '{"model": 3}', '{"version": "1.0", "model": null}')),
        *(("tokenizer_config.json", text) for text in ("{", "[3]", '{"bos_token": 3}', '{"bos_token": {}}')),
        *(
            ("tokenizer_config.json", json.dumps({"added_tokens_decoder": value}))
            for value in (3, [1], {"x": 1}, {"1": {}}, {"1": {"content": "b", "odd": 3}}, {"7": {"content": 4}})
        ),
        *(("special_tokens_map.json", text) for text in ("3", '{"bos_token": ["x"]}')),
        ("tokenizer_config.json", '{"chat_template": [3]}'), ("tokenizer_config.json", '{"padding_side": "up"}'),
    ]  # fmt: skip
    for file, text in edits:
        folder = copy(whole, "gpt2", tmp_path)
        (folder / file).write_text(text)
        tries(folder, (file, text), outcomes)
    assert outcomes["refused"] > len(edits) / 2


# ---- fields ---------------------------------------------------------------------------------------------------------


def fields_of(kind):
    return json.loads(json.dumps(complete({"model_type": kind, **SIZES[kind]})))


def test_fields_of_every_family():
    """What makes no sense is refused. What changes nothing in the Config is at least of the right type."""
    outcomes = Counter()
    for kind in SIZES:
        base, random = fields_of(kind), seeded(kind)
        family, cfg = read_config(base)
        asked = [name for name in base if name not in {*NEUTRAL, *family.unused}]
        for name, at in zip(random.choice(asked, 25), random.integers(0, len(STRANGE), 25), strict=True):
            value = STRANGE[at]
            with watched((kind, name, value)):
                try:
                    changed = read_config({**base, name: value})[1]
                except CheckpointError as error:
                    assert len(str(error)) < 5000
                    outcomes["refused"] += 1
                    continue
            idle = type(value) in (bool, int) or value in (None, {}, base[name])  # it may matter beside others
            assert idle or changed != cfg, (kind, name, value)
            outcomes["accepted"] += 1
    assert outcomes["refused"] > 6 * outcomes["accepted"] and outcomes["refused"] > 300


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "qwen3", "phi3"])
def test_fields_of_a_checkpoint(kind, whole, tmp_path, outcomes):
    """What is accepted beside real tensors loads, and can be computed with."""
    folder, random = copy(whole, kind, tmp_path), seeded(kind)
    base = json.loads((folder / "config.json").read_text())
    names = [name for name in base if name not in NEUTRAL]
    before = load(folder).cfg
    for _ in range(50):
        name, value = random.choice(names), STRANGE[random.integers(len(STRANGE))]
        (folder / "config.json").write_text(json.dumps({**base, name: value}))
        loaded = tries(folder, (kind, name, value), outcomes)
        if loaded is not None and loaded.cfg.replace(dtype=before.dtype) != before:
            traces(loaded)
    assert outcomes["refused"] > 20


def test_fields_of_our_own(whole, tmp_path, outcomes):
    folder, random = copy(whole, "jaxlens", tmp_path), seeded("own")
    base = json.loads((folder / "config.json").read_text())
    turned = own.fields(read_config(fields_of("qwen3"))[1], None)["config"]["rotary"]
    for name in [*base["config"], *base["config"], "source", "version", "rotary"]:
        value = STRANGE[random.integers(len(STRANGE))]
        if name == "rotary":
            value = [{**turned[0], random.choice(list(turned[0])): value}] * 3
        inside = name in base["config"]
        changed = {**base, "config": {**base["config"], name: value}} if inside else {**base, name: value}
        (folder / "config.json").write_text(json.dumps(changed))
        loaded = tries(folder, (name, value), outcomes)
        if loaded is not None:
            traces(loaded)
    assert outcomes["refused"] > 3 * outcomes["loaded"]


def test_more_than_there_is(whole, tmp_path, outcomes):
    """Layers and experts by the thousand are refused before they are listed."""
    folder = copy(whole, "gpt2", tmp_path)
    base = json.loads((folder / "config.json").read_text())
    for count in (9_999, 10_001, 10**9):
        (folder / "config.json").write_text(json.dumps({**base, "n_layer": count}))
        tries(folder, count, outcomes)
    with pytest.raises(CheckpointError, match=r"config\.json announces [\d,]+ tensors, and there are \d+"):
        (folder / "config.json").write_text(json.dumps({**base, "n_layer": 9_999}))
        load(folder)
    assert outcomes == {"refused": 3}


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="needs links and pipes")
def test_things_that_are_no_files(whole, tmp_path, outcomes):
    def link(path):
        path.symlink_to(path.name)

    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        for make in (os.mkdir, os.mkfifo, link):
            folder = copy(whole, "gpt2", tmp_path)
            (folder / name).unlink()
            make(folder / name)
            tries(folder, (name, make.__name__), outcomes)
    assert outcomes["refused"] >= 6


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_lying_file_takes_no_memory_beyond_python_either(whole, tmp_path):
    """Of what libraries take that are not Python's, only the process's memory tells."""

    def peak():
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

    folder = copy(whole, "qwen3", tmp_path)
    data = (folder / "model.safetensors").read_bytes()
    before = peak()
    for size in (90_000_000, 2**33, 2**62):
        (folder / "model.safetensors").write_bytes(size.to_bytes(8, "little") + data[8:])
        with pytest.raises(CheckpointError):
            open_checkpoint(folder)
    assert peak() - before < 20_000


def test_gguf_numbers(tmp_path, outcomes):
    """Metadata of the wrong type or beyond all sizes."""
    for key in ("embedding_length", "block_count", "attention__head_count", "context_length", "rope__freq_base"):
        for value in (2**31 - 1, -1.5, "x", [], [1, 2], True, 0.0, 1e30):
            with contextlib.suppress(OverflowError, ValueError, KeyError):  # what the writer itself refuses
                write_gguf(tmp_path / "model.gguf", extra=vocabulary(), **{key: value})
                tries(tmp_path / "model.gguf", (key, value), outcomes)
    assert outcomes["refused"] > 25
    assert set(weights()) == set(open_checkpoint(write_gguf(tmp_path / "sound.gguf")).tensors.names())
