"""Damaged and hostile PyTorch files raise a CheckpointError, or have the values that torch reads from them.

Nothing in a file is executed, and no file needs much more memory than its size. Seeds determine the damage.
"""

import contextlib
import io
import pickle
import pickletools
import shutil
import struct
import tracemalloc
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.tiny import write_checkpoint
from test_fuzz import limited, seeded
from test_torch_files import assert_equals_torch, repacked

from jaxlens import CheckpointError
from jaxlens.checkpoints import load
from jaxlens.checkpoints.torch_files.file import TorchFile

SEEDS = 40


@pytest.fixture(scope="module")
def opt(tmp_path_factory):
    """A checkpoint with pytorch_model.bin."""
    folder = write_checkpoint(tmp_path_factory.mktemp("opt") / "opt", "opt")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture(scope="module", autouse=True)
def traced_memory(opt):
    """Starts to trace memory after all imports."""
    load(opt)
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """The bytes of a file with tied, transposed, expanded and half-precision tensors, and with other entries."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(30, 12, generator=random)
    layers = {f"h.{i}.w": torch.randn(12, 12, generator=random) for i in range(8)}
    small = {"half": weight[:3].half(), "expanded": weight[:1].expand(4, 12), "mask": torch.ones(9, 9).bool()}
    state = {"wte": weight, "head": weight, "transposed": weight.T, **small, **layers}
    path = tmp_path_factory.mktemp("intact") / "model.pt"
    torch.save({"model": state, "epoch": 3, "module": torch.nn.Linear(2, 2).state_dict()["bias"]}, path)
    return path.read_bytes()


@pytest.fixture
def outcomes():
    return Counter()


def theirs(path):
    """What torch reads from a file, or None if it raises an error."""
    with contextlib.suppress(Exception):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return None


@pytest.mark.filterwarnings("ignore:.*these entries are no weights")
def try_to_read(path, damage, outcomes):
    """Opens a file and reads all tensors. If that succeeds, the values must be those that torch reads."""
    with limited(damage):
        try:
            file = TorchFile(path)
            for name in file.names():
                file.read(name)
        except CheckpointError as error:
            assert len(str(error)) < 5000 and str(path) in str(error), damage
            outcomes["refused"] += 1
            return
    outcomes["read"] += 1
    expected = theirs(path)
    if expected is None:
        outcomes["read, but not by torch"] += 1
    else:
        expected = next((expected[key] for key in ("model", "state_dict") if key in expected), expected)
        tensors = {key: value for key, value in expected.items() if isinstance(value, torch.Tensor)}
        assert_equals_torch(file, {key: value for key, value in tensors.items() if type(key) is str})


# ---- bytes ----------------------------------------------------------------------------------------------------------


def pickle_range(data):
    """The start and end of the pickle, which is the first member and not compressed."""
    name, extra = struct.unpack_from("<HH", data, 26)
    start = 30 + name + extra
    return start, start + zipfile.ZipFile(io.BytesIO(data)).infolist()[0].file_size


def directory_start(data):
    return data.rindex(b"PK\1\2", 0, data.index(b"PK\1\2") + 4)


def flipped(data, start, end, random):
    data = bytearray(data)
    for i in random.integers(start, end, random.integers(1, 4)):
        data[i] ^= 1 << random.integers(8)
    return bytes(data)


def without_checksums(data):
    """A file whose checksums were not computed, as with `torch.serialization.set_crc32_options(False)`."""
    data, position = bytearray(data), directory_start(data)
    while data[position : position + 4] == b"PK\1\2":
        data[position + 16 : position + 20] = bytes(4)
        position += 46 + sum(struct.unpack_from("<HHH", data, position + 28))
    return bytes(data)


def in_the_pickle(data, random):
    return flipped(without_checksums(data), *pickle_range(data), random)


def in_the_values(data, random):
    info = random.choice([info for info in zipfile.ZipFile(io.BytesIO(data)).infolist() if "/data/" in info.filename])
    end = info.header_offset + 30 + sum(struct.unpack_from("<HH", data, info.header_offset + 26)) + info.file_size
    return flipped(data, end - info.file_size, end, random)


def in_the_directory(data, random):
    return flipped(data, directory_start(data), len(data), random)


def in_a_local_header(data, random):
    entry = random.choice(zipfile.ZipFile(io.BytesIO(data)).infolist())
    return flipped(data, entry.header_offset, entry.header_offset + 30, random)


def opcode(data, random):
    """Replaces a byte of the pickle by the code of an instruction."""
    data = without_checksums(data)
    i = random.integers(*pickle_range(data))
    codes = [code.code.encode("latin-1") for code in pickletools.opcodes]
    return data[:i] + codes[random.integers(len(codes))] + data[i + 1 :]


def cut(data, random):
    return data[: random.integers(0, len(data))]


def lengthened(data, random):
    return data + random.bytes(random.integers(1, 100))


def without_bytes(data, random):
    """Removes some bytes, after which the directory has wrong offsets."""
    start = random.integers(0, len(data))
    return data[:start] + data[start + random.integers(1, 60) :]


def swapped(data, random):
    """Exchanges the locations of two members in the directory."""
    data, entries, position = bytearray(data), [], directory_start(data)
    while data[position : position + 4] == b"PK\1\2":
        entries.append(position)
        position += 46 + sum(struct.unpack_from("<HHH", data, position + 28))
    a, b = (entries[i] + 42 for i in random.choice(len(entries), 2, replace=False))
    data[a : a + 4], data[b : b + 4] = data[b : b + 4], data[a : a + 4]
    return bytes(data)


DAMAGES = (
    in_the_pickle, in_the_values, in_the_directory, in_a_local_header, opcode, cut, lengthened, without_bytes, swapped,
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*these entries are no weights")
@pytest.mark.parametrize("damage", DAMAGES)
def test_bytes(damage, intact, tmp_path, outcomes):
    path = tmp_path / "model.pt"
    for seed in range(SEEDS):
        path.write_bytes(damage(intact, seeded(damage.__name__, seed)))
        try_to_read(path, (damage.__name__, seed), outcomes)
    assert outcomes["refused"] + outcomes["read"] == SEEDS
    assert outcomes["refused"] >= {lengthened: 0, in_the_directory: 10, in_a_local_header: 10}.get(damage, 20)


@pytest.mark.filterwarnings("ignore:.*these entries are no weights")
def test_the_intact_file(intact, tmp_path, outcomes):
    (tmp_path / "model.pt").write_bytes(intact)
    try_to_read(tmp_path / "model.pt", "intact", outcomes)
    assert outcomes == {"read": 1}


# ---- hostile pickles ------------------------------------------------------------------------------------------------

GLOBALS = (
    "os system", "posix system", "nt system", "subprocess Popen", "builtins eval", "__builtin__ eval", "builtins exec",
    "builtins getattr", "builtins __import__", "builtins open", "builtins compile", "operator attrgetter",
    "functools partial", "numpy load", "numpy.core.multiarray _reconstruct", "torch load", "torch.jit load",
    "os.path join", "torch hub",
    "torch.serialization load", "torch._utils _rebuild_wrapper_subclass", "torch.utils.cpp_extension load_inline",
    "collections.OrderedDict __class__", "collections OrderedDict.__class__.__base__.__subclasses__",
    "torch._utils _rebuild_tensor_v2.__globals__", "jaxlens CheckpointError", "pickle loads", "copyreg _reconstructor",
    "webbrowser open", "ctypes CDLL", "codecs decode", "sys exit", "pty spawn", "runpy run_path", "types CodeType",
)  # fmt: skip


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


V2, V3 = b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_tensor_v3\n"


def tensor(shape=(2,), strides=(1,), offset=0, storage=None, function=V2, rest=b"\x89N"):
    """The pickle of a tensor."""
    storage = persistent_id() if storage is None else storage
    return function + b"(" + storage + integer(offset) + integers(shape) + integers(strides) + rest + b"tR"


def persistent_id(*parts):
    default = (text("storage"), b"ctorch\nFloatStorage\n", text("0"), text("cpu"), integer(6))
    return b"(" + b"".join(parts or default) + b"tQ"


def integer(value):
    data = pickle.encode_long(value)
    return b"\x8b" + struct.pack("<i", len(data)) + data


def integers(values):
    return b"(" + b"".join(map(integer, values)) + b"t"


def state(*entries, before=b""):
    """A state dict with a valid tensor and with other entries."""
    items = [text("w") + tensor(), *(text(f"x{i}") + entry for i, entry in enumerate(entries))]
    return b"\x80\x02" + before + b"}(" + b"".join(items) + b"u."


def call_of(name, argument):
    module, _, attribute = name.partition(" ")
    return f"c{module}\n{attribute}\n".encode() + text(argument) + b"\x85R"


def chain(marker):
    """getattr(getattr(...)) up to os.system, as gadgets in pickles do."""
    get = b"cbuiltins\ngetattr\n"
    module = get + b"(cbuiltins\n__import__\n" + text("os") + b"\x85R" + text("system") + b"tR"
    return module + text(f"touch {marker}") + b"\x85R"


class Reduced:
    """Pickled as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def hostile(marker):
    """Pickles that torch would not write: their names, and their bytes."""
    import os

    touch = f"touch {marker}"
    for name in GLOBALS:
        yield f"calls {name}", state(call_of(name, touch))
        yield f"stacks {name}", state(b"".join(map(text, name.split(" "))) + b"\x93" + text(touch) + b"\x85R")
    for protocol in (2, 4):
        for function in (os.system, eval, exec):
            code = touch if function is os.system else f"__import__('os').system({touch!r})"
            yield f"reduces {function.__name__}", pickle.dumps({"w": Reduced(function, code)}, protocol)
    yield "a chain", state(chain(marker))
    yield "sets __setstate__", state(b"ccollections\nOrderedDict\n)R}" + text("__setstate__") + b"cos\nsystem\nsb")
    yield "an instance", state(b"(cos\nsystem\n" + text(touch) + b"o")
    yield "an old instance", state(b"(" + text(touch) + b"ios\nsystem\n")
    yield "extension 1", state(b"\x82\x01)R")
    yield "extension 2", state(b"\x83\x01\x01)R")
    yield "extension 4", state(b"\x84\x01\x01\x01\x01)R")
    yield "new object with keywords", state(b"ccollections\nOrderedDict\n)}\x92")
    yield "a function as a value", state(b"ctorch._utils\n_rebuild_tensor_v2\n")
    yield "calls a dict", state(b"})R")
    yield "calls a dtype", state(b"ctorch\nfloat32\n)R")
    yield "calls with a list", state(b"ctorch._utils\n_rebuild_parameter\n]R")
    yield "eight arguments", state(tensor(rest=b"\x89NNK\x01"))
    yield "too few arguments", state(b"ctorch._utils\n_rebuild_tensor_v2\n)R")
    yield "too many arguments", state(b"ccollections\nOrderedDict\n(K\x01K\x02tR")
    yield "attributes of a number", state(b"K\x01}b")
    yield "a parameter of a number", state(b"ctorch._utils\n_rebuild_parameter\n(K\x01\x88NtR")
    yield "a class without a function", state(b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nNNNtR")
    yield "another function for a class", state(
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ccollections\nOrderedDict\nctorch\nTensor\n)}tR"
    )
    for name, parts in {
        "a string": (text("storage"),),
        "of six": (text("storage"), b"ctorch\nFloatStorage\n", text("0"), text("cpu"), b"K\x06", b"K\x01"),
        "of another kind": (text("module"), b"ctorch\nFloatStorage\n", text("0"), text("cpu"), b"K\x06"),
        "of no class": (text("storage"), text("FloatStorage"), text("0"), text("cpu"), b"K\x06"),
        "with a number as key": (text("storage"), b"ctorch\nFloatStorage\n", b"K\x00", text("cpu"), b"K\x06"),
        "with a negative size": (text("storage"), b"ctorch\nFloatStorage\n", text("0"), text("cpu"), integer(-6)),
        "with a huge size": (text("storage"), b"ctorch\nFloatStorage\n", text("0"), text("cpu"), integer(10**4000)),
        "with a wrong size": (text("storage"), b"ctorch\nFloatStorage\n", text("0"), text("cpu"), b"K\x07"),
        "with a path": (text("storage"), b"ctorch\nFloatStorage\n", text("../../etc/passwd"), text("cpu"), b"K\x06"),
        "with an empty key": (text("storage"), b"ctorch\nFloatStorage\n", text(""), text("cpu"), b"K\x06"),
        "of a function": (text("storage"), b"ccollections\nOrderedDict\n", text("0"), text("cpu"), b"K\x06"),
    }.items():
        yield f"a persistent id {name}", state(tensor(storage=persistent_id(*parts)))
    yield "a persistent id of a number", state(b"K\x01Q")
    yield "a persistent id as text", state(b"Pstorage\n")
    for name, arguments in {
        "a huge offset": {"offset": 10**30}, "an offset outside": {"offset": 5}, "a negative offset": {"offset": -1},
        "a huge shape": {"shape": (2**62, 2**62), "strides": (1, 1)}, "a shape outside": {"shape": (7,)},
        "a negative shape": {"shape": (-2,)}, "a negative stride": {"strides": (-1,)},
        "a stride outside": {"strides": (6,)}, "a shape of 5000 digits": {"shape": (10**5000,), "strides": (0,)},
        "an empty huge shape": {"shape": (0, 10**5000), "strides": (1, 1)},
        "100 axes": {"shape": (1,) * 100, "strides": (1,) * 100}, "two strides": {"strides": (1, 1)},
        "a repeated value": {"shape": (2**40,), "strides": (0,)},
        "a repeated matrix": {"shape": (2**13, 2**13), "strides": (0, 0)},
        "no storage": {"storage": b"N"}, "a dict as metadata": {"rest": b"\x89N}" + text("neg") + b"\x88s"},
        "a dtype of text": {"function": V3, "rest": b"\x89N" + text("float32")},
        "a wider dtype": {"shape": (6,), "function": V3,
                          "rest": b"\x89Nctorch\nfloat64\n"},
    }.items():  # fmt: skip
        yield f"a tensor with {name}", state(tensor(**arguments))
    yield "deep tuples", state(b")" + b"\x85" * 100_000)
    yield "a deep key", b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s."
    yield "deep lists", state(b"]" * 50_000 + b"a" * 49_999)
    yield "deep dicts", b"\x80\x02" + (b"}" + text("model")) * 20_000 + b"K\x01" + b"s" * 20_000 + b"."
    yield "marks", b"\x80\x02" + b"(" * 50_000 + b"."
    yield "doubled tuples", state(b"]" + b"q\x00h\x00\x86" * 500)
    yield "doubled lists with POP", state(b"]q\x00" + b"0](h\x00h\x00eq\x00" * 500)
    yield "a huge memo", state(b"K\x01r\xff\xff\xff\xff")
    yield "an empty memo", state(b"h\x07")
    yield "an empty stack", b"\x80\x02R."
    yield "two results", b"\x80\x02}}."
    yield "no result", b"\x80\x02."
    yield "no end", state()[:-1]
    yield "no pickle", b""
    yield "a huge string", state(b"X\xff\xff\xff\x7fabc")
    yield "a string of 2^62 bytes", state(b"\x8d" + struct.pack("<Q", 2**62) + b"abc")
    yield "bytes of 2^62 bytes", state(b"\x8e" + struct.pack("<Q", 2**62) + b"abc")
    yield "a bytearray of 2^62 bytes", state(b"\x96" + struct.pack("<Q", 2**62) + b"abc")
    yield "a frame of 2^62 bytes", b"\x80\x04\x95" + struct.pack("<Q", 2**62) + state()[2:]
    yield "a number of 9000 digits", state(b"I" + b"9" * 9000 + b"\n")
    yield "a negative length", state(b"\x8b" + struct.pack("<i", -5))
    yield "an unknown instruction", state(b"\xff")
    yield "surrogates in a name", b"\x80\x02}X\x03\x00\x00\x00\xed\xa0\x80" + tensor() + b"s."
    yield "a long name", b"\x80\x02}" + text("x" * 10**6) + tensor() + b"s."
    yield "a long global", state(f"c{'x' * 10**5}\ny\n".encode())
    yield "items without values", b"\x80\x02}(" + text("w") + b"u."
    yield "items of a list", b"\x80\x02](" + text("w") + tensor() + b"u."
    yield "values of a dict", b"\x80\x02}(" + tensor() + b"e."


HARMLESS = {
    "a frame of 2^62 bytes", "a function as a value", "deep tuples", "deep lists", "doubled tuples", "a huge memo",
}  # fmt: skip
"""Pickles from which the tensor `w` can be read."""


def archive(path, data, storages=(b"\0" * 24,)):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", data)
        for i, storage in enumerate(storages):
            file.writestr(f"archive/data/{i}", storage)
    return path


@pytest.mark.filterwarnings("ignore:.*these entries are no weights")
def test_hostile_pickles(tmp_path):
    marker, outcomes = tmp_path / "executed", Counter()
    for name, data in hostile(marker):
        path = archive(tmp_path / "model.pt", data)
        with limited(name):
            try:
                file = TorchFile(path)
                assert file.names() == ["w"] and file.read("w").tolist() == [0, 0], name
                outcomes["read"] += 1
                assert name in HARMLESS, name
            except CheckpointError as error:
                assert name not in HARMLESS, (name, error)
                assert len(str(error)) < 2000 and str(path) in str(error), name
                if (called := name.partition(" ")[2]) in GLOBALS:
                    named = called.replace(" ", ".")
                    assert f"its pickle names {named!r}, which is no tensor" in str(error), name
                outcomes["refused"] += 1
        assert not marker.exists(), name
    assert outcomes["refused"] > 130


def test_many_tensors_that_repeat_values(tmp_path):
    """Each is below the limit; together they would need much memory."""
    repeated = text("y{}") + tensor((2**20,), (0,))
    entries = [repeated.replace(b"y{}", b"y%02d" % i).replace(b"\3\0\0\0y", b"\3\0\0\0y") for i in range(90)]
    path = archive(tmp_path / "model.pt", b"\x80\x02}(" + b"".join(entries) + b"u.")
    with limited("repeated"), pytest.raises(CheckpointError, match=r"repeats the values of 24 bytes; save it without"):
        TorchFile(path)


# ---- hostile zip files ----------------------------------------------------------------------------------------------


def overlapping(path, data):
    """The first storage is so long that it contains the second."""
    archive(path, data, (bytes(24), bytes(24)))
    raw = bytearray(path.read_bytes())
    entry = raw.rindex(b"PK\1\2", 0, raw.rindex(b"PK\1\2"))
    raw[entry + 20 : entry + 28] = struct.pack("<II", 90, 90)
    path.write_bytes(raw)


def exchanged(path, data):
    """Two entries of the directory have exchanged locations."""
    archive(path, data, (bytes(24), b"\1" * 24))
    raw = bytearray(path.read_bytes())
    second = raw.rindex(b"PK\1\2")
    first = raw.rindex(b"PK\1\2", 0, second)
    for entry, other in ((first, second), (second, first)):
        raw[entry + 42 : entry + 46] = path.read_bytes()[other + 42 : other + 46]
    path.write_bytes(raw)


def changed_values(path, data):
    archive(path, data, (b"\7" * 24,))
    path.write_bytes(path.read_bytes().replace(b"\7" * 24, b"\7" * 23 + b"\6"))


def renamed(path, data, name):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr(name, bytes(24))


def twice(path, data):
    with zipfile.ZipFile(path, "w") as file, pytest.warns(UserWarning, match="Duplicate"):
        for content in (bytes(24), b"\1" * 24):
            file.writestr("archive/data/0", content)
        file.writestr("archive/data.pkl", data)


def bomb(path, data):
    """A pickle that unpacks to 200 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        with file.open("archive/data.pkl", "w", force_zip64=True) as opened:
            for _ in range(50):
                opened.write(b"N" * 2**22)
        file.writestr("archive/data/0", bytes(24))


def method(path, data, compression):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", data * 20)
        file.writestr("archive/data/0", bytes(24))


def edited(path, data, offset, value):
    """Changes a field of the entry of data/0 in the directory."""
    archive(path, data)
    raw = bytearray(path.read_bytes())
    i = raw.rindex(b"PK\1\2") + offset
    raw[i : i + len(value)] = value
    path.write_bytes(raw)


ZIPS = {
    "overlapping members": (overlapping, "its members overlap, or reach past the end of the file"),
    "exchanged members": (exchanged, "archive/data/0 has no header at byte"),
    "changed values": (changed_values, "data/0 does not have the checksum in the file's directory"),
    "a member twice": (twice, "a member occurs twice"),
    "a member outside": (lambda *a: renamed(*a, "../data/0"), "or its members are not in one folder"),
    "a member of another folder": (lambda *a: renamed(*a, "other/data/0"), "or its members are not in one folder"),
    "an absolute member": (lambda *a: renamed(*a, "/archive/data/0"), "or its members are not in one folder"),
    "a missing member": (lambda *a: renamed(*a, "archive/data/1"), "w needs 24 bytes, and has no data"),
    "a member in a parent": (lambda *a: renamed(*a, "archive/../data/0"), "w needs 24 bytes, and has no data"),
    "a short storage": (lambda *a: archive(*a, (bytes(20),)), "w needs 24 bytes, and has 20 bytes"),
    "a long storage": (lambda *a: archive(*a, (bytes(28),)), "w needs 24 bytes, and has 28 bytes"),
    "no pickle": (lambda path, data: renamed(path, data, "archive/x") or repacked(path, without_pickle), "no data.pkl"),
    "a bomb": (bomb, "and unpacks to 209,715,200; expected at most 100 times as many"),
    "bzip2": (lambda *a: method(*a, zipfile.ZIP_BZIP2), "archive/data.pkl is encrypted, or compressed with method 12"),
    "lzma": (lambda *a: method(*a, zipfile.ZIP_LZMA), "archive/data.pkl is encrypted, or compressed with method 14"),
    "encrypted": (lambda *a: edited(*a, 8, b"\1"), "archive/data/0 is encrypted, or compressed with method 0"),
    "a wrong size": (lambda *a: edited(*a, 24, b"\x19"), "archive/data/0 has 24 bytes; expected 25"),
    "a size past the end": (lambda *a: edited(*a, 20, b"\xff\xff\0\0\xff\xff\0\0"), "reach past the end of the file"),
    "an offset past the end": (lambda *a: edited(*a, 42, b"\xff\xff\0"), "archive/data/0 has no header at byte 65535"),
    "an offset to other data": (lambda *a: edited(*a, 42, b"\3\0\0\0"), "archive/data/0 has no header at byte 3"),
    "deflated": (lambda *a: edited(*a, 10, b"\x08"), "cannot be read as a PyTorch file: "),
}  # fmt: skip


def without_pickle(name, data):
    return None if name.endswith("data.pkl") else data


@pytest.mark.parametrize("damage", ZIPS)
def test_hostile_zip_files(damage, tmp_path):
    write, text = ZIPS[damage]
    path = tmp_path / "model.pt"
    write(path, state())
    with limited(damage), pytest.raises(CheckpointError) as error:
        TorchFile(path).read("w")
    assert str(error.value).startswith(f"{path} cannot be read as a PyTorch file: ")
    assert text in str(error.value)


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def test_damaged_checkpoints(opt, tmp_path, outcomes):
    """Through `load`: an error with the path, or the values that torch reads from the file."""
    folder, intact = shutil.copytree(opt, tmp_path / "opt"), load(opt).params
    data = (folder / "pytorch_model.bin").read_bytes()
    for damage in (in_the_pickle, opcode, in_the_directory, cut):
        for seed in range(8):
            (folder / "pytorch_model.bin").write_bytes(damage(data, seeded("opt", damage.__name__, seed)))
            with limited((damage.__name__, seed)):
                try:
                    params = load(folder).params
                except CheckpointError as error:
                    assert len(str(error)) < 5000 and str(folder) in str(error)
                    outcomes["refused"] += 1
                    continue
            outcomes["loaded"] += 1
            assert theirs(folder / "pytorch_model.bin") is None or all(
                np.array_equal(params[name], value) for name, value in intact.items()
            )
    assert outcomes["refused"] > 16
