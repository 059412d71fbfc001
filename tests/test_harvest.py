"""Harvests: what they store, how they continue, and how they are read."""

import errno
import functools
import json
import multiprocessing
import os
import pickle
import random
import shutil
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file
from support.harvesting import NAMES, harvest_all, rows_of_tokens, small_model
from support.processes import free_port, run_together

from jaxlens import HookedTransformer, HookError, Tokenizer, batch, hook
from jaxlens.batch.fingerprint import fingerprint
from jaxlens.batch.harvests import index, shard_file, write

RESID, Z = NAMES


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A complete harvest, which tests only read."""
    return harvest_all(tmp_path_factory.mktemp("stored") / "harvest")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def close(value, expected):
    np.testing.assert_allclose(value, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


# --- what is stored


def test_every_token_of_every_document_is_a_row(model, stored):
    rows, n_ctx = rows_of_tokens(), model.cfg.n_ctx
    assert len(stored) == sum(map(len, rows)) and stored.is_complete and len(stored.shards) > 20
    everything = stored[:]
    assert everything["tokens"].tolist() == [token for row in rows for token in row]
    assert everything["document"].tolist() == [i for i, row in enumerate(rows) for _ in row]
    assert everything["position"].tolist() == [i % n_ctx for row in rows for i in range(len(row))]
    assert everything["part"].tolist() == [i // n_ctx for row in rows for i in range(len(row))]
    for number in (0, 1, 17, 149):
        parts = [rows[number][first : first + n_ctx] for first in range(0, len(rows[number]), n_ctx)]
        caches = [model.run_with_cache([part])[1] for part in parts]
        for name in NAMES:
            close(stored.document(number)[name], np.concatenate([cache[name][0] for cache in caches]))


def test_shards_are_plain_safetensors(stored):
    tensors = load_file(stored.folder / "shard-00000.safetensors")
    assert set(tensors) == {*NAMES, "document", "tokens", "position", "part"}
    assert tensors[Z].shape == (stored.shards[0].rows, 3, 6) and tensors[RESID].dtype == np.float32
    index = json.loads((stored.folder / "index.json").read_text())
    assert index["shapes"] == {RESID: [24], Z: [3, 6]} and index["rows"] == len(stored)
    assert index["dtype"] == "float32" and index["skip"] == "bos and padding"


def test_batch_sizes_change_nothing_but_rounding(stored, tmp_path):
    other = harvest_all(tmp_path / "other", batch_tokens=1000)
    assert [shard.rows for shard in other.shards] == [shard.rows for shard in stored.shards]
    mine, others = stored[:], other[:]
    for name in mine:
        close(others[name], mine[name])


def test_half_precision(model, stored, tmp_path):
    half = batch.harvest(model, rows_of_tokens(20), RESID, tmp_path / "half", dtype="bfloat16")
    torch = pytest.importorskip("torch")
    batch.harvest(model, rows_of_tokens(20), RESID, tmp_path / "half", dtype=torch.bfloat16)  # the same harvest
    assert half[0][RESID].dtype.name == "bfloat16" and half.index["dtype"] == "bfloat16"
    np.testing.assert_allclose(half[:][RESID].astype(np.float32), stored[: len(half)][RESID], rtol=2**-8, atol=1e-4)


def test_only_the_needed_layers_run(model):
    """A NaN in a later layer would reach the results of a run of all layers."""
    name = "blocks.*.attn.W_V"
    broken = model.with_params({**model.params, name: model.params[name].at[1:].set(np.nan)})
    rows = next(batch.harvest(broken, [[1, 2, 3]], RESID))
    assert np.isfinite(rows[RESID]).all()
    assert np.isnan(next(batch.harvest(broken, [[1, 2, 3]], Z))[Z]).any()


def test_hooks_act(model, tmp_path):
    zero = hook(lambda z, hook, scale: z * scale, scale=0.0)
    rows = batch.harvest(model, [[1, 2, 3]], Z, tmp_path / "a", hooks=[("blocks.1.attn.hook_z", zero)])
    assert not rows[:][Z].any()
    with pytest.raises(batch.HarvestError, match="hooks"):
        batch.harvest(model, [[1, 2, 3]], Z, tmp_path / "a")


@pytest.mark.parametrize(
    ("skip", "kept"),
    [("padding", [1, 5, 2, 5, 9]), ("bos and padding", [5, 2, 5, 9]), ([5, 9], [1, 2]),
     ("special tokens and padding", [5, 5, 9])],
)  # fmt: skip
def test_skipped_tokens(model, skip, kept):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(i): i for i in range(50)}, unk_token="0"))
    words.add_special_tokens(["1", "2"])
    with_tokenizer = HookedTransformer(model.cfg, Tokenizer(words, bos_token="1", eos_token="2"), params=model.params)
    (rows,) = batch.harvest(with_tokenizer, [[1, 5, 2, 5, 9]], RESID, skip=skip)
    assert rows["tokens"].tolist() == kept


def test_long_documents_are_cut_on_request(model):
    with pytest.warns(UserWarning, match=r"document 2 has 27 tokens and is cut to max_length = 20"):
        rows = list(batch.harvest(model, rows_of_tokens(10), RESID, max_length=20, split=False))
    assert sum(len(shard["tokens"]) for shard in rows) == sum(min(20, len(row)) for row in rows_of_tokens(10))


def test_stream_equals_the_stored_rows(model, stored):
    streamed = list(batch.harvest(model, iter(rows_of_tokens()), NAMES, shard_tokens=100, batch_tokens=160))
    assert [len(rows["tokens"]) for rows in streamed] == [shard.rows for shard in stored.shards]
    whole = stored[:]
    assert all(np.array_equal(np.concatenate([rows[name] for rows in streamed]), whole[name]) for name in whole)


def test_documents_are_tokenized_while_others_run(model, stored, tmp_path):
    readers = []

    def rows():
        for row in rows_of_tokens():
            readers.append(threading.current_thread())
            yield row

    batch.harvest(model, rows(), NAMES, tmp_path / "a", shard_tokens=100, batch_tokens=160)
    assert threading.current_thread() not in readers[1:] and len(readers) == 150
    streamed = batch.harvest(model, rows(), NAMES, shard_tokens=100, batch_tokens=160)
    next(streamed)
    streamed.close()
    readers[-1].join(5)
    assert not any(thread.is_alive() for thread in readers[150:])


# --- interruptions


def fails_after(n: int):
    """Rows of tokens that end with an error after `n` of them."""
    yield from rows_of_tokens()[:n]
    raise RuntimeError("the connection was lost")


def test_an_interrupted_harvest_continues(model, stored, tmp_path):
    folder, options = tmp_path / "harvest", {"shard_tokens": 100, "batch_tokens": 160}
    with pytest.raises(RuntimeError, match="connection"):
        batch.harvest(model, fails_after(70), NAMES, folder, **options)
    partial = batch.Harvest(folder)
    assert not partial.is_complete and 0 < len(partial) < len(stored)
    assert partial.verify() == [f"the harvest is not complete; it has {len(partial.shards)} shards so far"]
    before = contents(folder)
    batch.harvest(model, iter(rows_of_tokens()), NAMES, folder, **options)
    after, undisturbed = contents(folder), contents(stored.folder)
    del after["index.json"], undisturbed["index.json"]  # an iterator has no fingerprint in the index
    assert after == undisturbed and all(after[name] == before[name] for name in before if name != "index.json")


def test_a_missing_shard_is_written_again(stored, tmp_path):
    folder = tmp_path / "harvest"
    shutil.copytree(stored.folder, folder)
    (folder / "shard-00003.safetensors").unlink()
    assert "shard-00003" in " ".join(batch.Harvest(folder).verify())
    harvest_all(folder)
    assert contents(folder) == contents(stored.folder)


def kill_at_random(folder: Path, moments: random.Random, n_kills: int, n_shards: int) -> int:
    """Starts the harvest and kills its process, until `n_kills` were killed and the harvest is complete."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.harvesting"])
    killed = 0
    while True:
        process = context.Process(target=harvest_all, args=(str(folder), jax.config.jax_compilation_cache_dir))
        process.start()
        if killed == n_kills:
            process.join(timeout=60)
            assert process.exitcode == 0
            return killed
        seen = len(list(folder.glob("shard-*"))) if folder.exists() else 0
        target = seen + moments.randrange(0, max(1, (n_shards - seen) // 2))
        deadline = time.monotonic() + 60
        while process.is_alive() and len(list(folder.glob("shard-*"))) < target and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(moments.random() * (0.01 if target > seen else 1.0))
        process.kill()
        process.join()
        killed += process.exitcode == -9
        if process.exitcode == 0:  # it was complete already
            shutil.rmtree(folder)


@pytest.mark.parametrize("n_kills", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_ends_with_the_same_bytes(stored, tmp_path, n_kills):
    folder = tmp_path / "harvest"
    assert kill_at_random(folder, random.Random(n_kills), n_kills, len(stored.shards)) == n_kills
    assert contents(folder) == contents(stored.folder)


def test_two_processes_write_the_same_harvest(stored, tmp_path):
    script, address = Path(__file__).parent / "support" / "harvest_process.py", f"localhost:{free_port()}"
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
    }  # fmt: skip
    run_together([[sys.executable, script, address, "2", str(i), tmp_path / "harvest"] for i in range(2)], environment)
    assert contents(tmp_path / "harvest") == contents(stored.folder)


@pytest.mark.parametrize("moment", ["read_text", "replace"])
def test_another_process_begins_at_the_same_moment(stored, tmp_path, monkeypatch, moment):
    """Another process starts the same harvest after this one finds no index, or while it writes one."""
    folder, original = tmp_path / "harvest", getattr(Path, moment)

    def of_another_process():
        with monkeypatch.context() as other:
            other.setattr(jax, "process_index", lambda: 1)
            index.write_index(folder, {**stored.index, "shards": [], "rows": 0})
            shutil.copy(stored.folder / "shard-00000.safetensors", folder)

    def interrupted(path, *args):
        monkeypatch.setattr(Path, moment, original)
        if moment == "read_text":
            assert not path.exists()
            of_another_process()
            raise FileNotFoundError(path)
        of_another_process()
        return original(path, *args)

    monkeypatch.setattr(Path, moment, interrupted)
    harvest_all(folder)
    assert contents(folder) == contents(stored.folder)


def test_a_full_disk_keeps_complete_shards(stored, tmp_path, monkeypatch):
    written = []

    def fill_up(descriptor):
        written.append(descriptor)
        if len(written) > 4:  # the index is the first file
            raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "harvest"
    with monkeypatch.context() as patch:
        patch.setattr(shard_file.os, "fsync", fill_up)
        patch.setattr(shard_file, "sync_folder", lambda folder: None)
        with pytest.raises(OSError, match=r"shard-00003.safetensors could not be written: No space left"):
            harvest_all(folder)
    assert [path.name for path in sorted(folder.glob("*"))][-1] == "shard-00002.safetensors"
    assert not list(folder.glob(".*"))
    harvest_all(folder)
    assert contents(folder) == contents(stored.folder)


def test_too_little_space_is_refused_before_the_first_token(model, tmp_path, monkeypatch):
    monkeypatch.setattr(write.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 0, 1000))
    with pytest.raises(OSError, match=r"about 60 tokens of 116 bytes each need 0.00 GB more, but .* GB free"):
        batch.harvest(model, [[1] * 30, [2] * 30], RESID, tmp_path / "harvest")
    assert not list((tmp_path / "harvest").glob("shard-*"))


# --- refusals


@pytest.mark.parametrize(
    ("change", "field"),
    [({"names": [RESID]}, "shapes"), ({"dtype": "float16"}, "dtype"), ({"skip": "padding"}, "skip"),
     ({"max_length": 10}, "max_length"), ({"shard_tokens": 50}, "shard_tokens"), ({"split": False}, "split"),
     ({"data": rows_of_tokens(10)}, "data"), ({"model": small_model(seed=1)}, "model")],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:document")
def test_a_folder_of_other_arguments_is_refused(model, stored, change, field):
    before = contents(stored.folder)
    arguments = {"model": model, "data": rows_of_tokens(), "names": NAMES, "shard_tokens": 100, **change}
    with pytest.raises(batch.HarvestError, match=f"holds a harvest with other arguments: {field} is"):
        batch.harvest(folder=stored.folder, **arguments)
    assert contents(stored.folder) == before


def scaled_by(factor):
    return lambda value, hook: value * factor


class Scaled:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, value, hook):
        return value * self.factor

    def method(self, value, hook):
        return value * self.factor


FACTOR = 1.0


def of_global(value, hook):
    return value * FACTOR


def partly(factor):
    return functools.partial(lambda factor, value, hook: value * factor, factor)


@pytest.mark.parametrize("make", [scaled_by, Scaled, lambda factor: Scaled(factor).method, partly, lambda _: of_global])
def test_a_hook_that_reads_another_value_is_another_hook(model, tmp_path, monkeypatch, make):
    def harvest_with(factor):
        monkeypatch.setitem(globals(), "FACTOR", factor)
        return batch.harvest(model, [[1, 2]], RESID, tmp_path / "a", hooks=[(RESID, make(factor))])

    first = harvest_with(2.0)
    assert np.array_equal(harvest_with(2.0)[:][RESID], first[:][RESID])
    with pytest.raises(batch.HarvestError, match="other arguments: hooks is"):
        harvest_with(3.0)


def test_a_hook_may_hold_arrays_and_models(model):
    array, large = np.arange(4.0), np.zeros((300, 300))
    pairs = [(array, array + 1), (jnp.asarray(array), jnp.asarray(array + 1)), ([array], [array + 1])]
    pairs += [(large, large + 1), ({"a": (1, {2})}, {"a": (1, {3})}), (model, small_model(seed=1))]
    for one, other in pairs:
        assert fingerprint(scaled_by(one)) == fingerprint(scaled_by(one)) != fingerprint(scaled_by(other))


def test_hooks_of_any_shape_have_a_fingerprint():
    cyclic = []
    cyclic.append(cyclic)

    def reads_itself(value, hook):
        return reads_itself, later, cyclic

    def same(function):
        return fingerprint(function) == fingerprint(function)

    assert same(reads_itself)  # `later` has no value yet
    later = 1
    assert later and all(map(same, (reads_itself, jax.jit(reads_itself), np.mean, len, Scaled)))


def test_a_call_that_stored_nothing_leaves_the_folder_to_the_next(model, tmp_path):
    for data in ([], [[1], []]):
        with pytest.raises(ValueError, match="no token"):
            batch.harvest(model, data, RESID, tmp_path)
    assert len(batch.harvest(model, [[1], [2]], RESID, tmp_path)) == 2


def test_a_complete_harvest_is_not_written_again(stored, monkeypatch):
    def refuse(*arguments):
        raise PermissionError("a read-only folder")

    monkeypatch.setattr(write.index_file, "write_index", refuse)
    assert len(harvest_all(stored.folder)) == len(stored)


def test_a_file_that_has_grown_is_other_data(model, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("[1, 2]\n" * 70)
    batch.harvest(model, path, RESID, tmp_path / "a")
    with path.open("a") as file:
        file.write("[3]\n")
    with pytest.raises(batch.HarvestError, match="other arguments: data is"):
        batch.harvest(model, path, RESID, tmp_path / "a")


def test_numpy_integers_are_integers(model, tmp_path):
    sizes = {name: np.int64(30) for name in ("shard_tokens", "batch_tokens", "max_length")}
    for skip in (np.array([1, 3]), {3, 1}):
        assert len(batch.harvest(model, [[1, 2]], RESID, tmp_path / "a", skip=skip, **sizes)) == 1


def test_a_folder_of_other_files_is_refused(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(batch.HarvestError, match=r"holds other files and no index.json"):
        batch.harvest(model, [[1, 2]], RESID, tmp_path)
    (tmp_path / "index.json").write_text("[]")
    with pytest.raises(batch.HarvestError, match="is not the index of a harvest"):
        batch.harvest(model, [[1, 2]], RESID, tmp_path)
    with pytest.raises(batch.HarvestError, match="holds no harvest"):
        batch.Harvest(tmp_path / "nowhere")


def test_a_second_writer_is_refused(model, tmp_path):
    with write._only_writer(tmp_path), pytest.raises(batch.HarvestError, match="another process writes to"):
        batch.harvest(model, [[1, 2]], RESID, tmp_path)


@pytest.mark.parametrize("damage", ["cut", "header", "value"])
def test_a_damaged_shard_is_noticed(stored, tmp_path, damage):
    folder = tmp_path / "harvest"
    shutil.copytree(stored.folder, folder)
    path = folder / "shard-00002.safetensors"
    whole = path.read_bytes()
    damaged = {"cut": whole[:-5], "header": whole[:8] + b"#" + whole[9:], "value": whole[:-1] + b"\x55"}[damage]
    path.write_bytes(damaged)
    (problem,) = batch.Harvest(folder).verify()
    assert "shard-00002.safetensors" in problem and "delete" in problem
    if damage != "value":
        with pytest.raises(batch.HarvestError, match=r"shard-00002.safetensors cannot be read: .* delete the file"):
            harvest_all(folder)
    path.unlink()
    harvest_all(folder)
    assert contents(folder) == contents(stored.folder) and not batch.Harvest(folder).verify()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"names": "blocks.0.attn.hook_pattern"}, HookError, "does not have one value per token"),
        ({"names": "blocks.9.hook_resid_post"}, HookError, "no hook point"),
        ({"skip": "nothing"}, ValueError, 'skip is \'nothing\'; expected "padding"'),
        ({"skip": "special tokens and padding"}, ValueError, "no tokenizer that knows special tokens"),
        ({"skip": ["<eos>"]}, ValueError, r"skip is \['<eos>'\]; expected \"padding\""),
        ({"skip": [1.5]}, ValueError, r"skip is \[1.5\]; expected"),
        ({"dtype": "int8"}, ValueError, "dtype is 'int8'; expected a floating dtype such as"),
        ({"dtype": "float64"}, ValueError, "dtype is 'float64'; expected a floating dtype .* needs jax_enable_x64"),
        ({"dtype": "bf16"}, ValueError, "dtype is 'bf16'; expected a floating dtype such as"),
        ({"shard_tokens": 0}, ValueError, "shard_tokens is 0; expected a positive integer"),
        ({"shard_tokens": True}, ValueError, "shard_tokens is True; expected a positive integer"),
        ({"max_length": 5.5}, ValueError, "max_length is 5.5; expected 1 to 40"),
        ({"max_length": 99}, ValueError, "max_length is 99; expected 1 to 40"),
        ({"data": []}, ValueError, "no token of the data is stored"),
        ({"data": [[1, 2], [77]]}, ValueError, "document 1: token 77 is out of the vocabulary"),
        ({"data": [[1], []]}, ValueError, "document 1 has no tokens"),
        ({"data": ["text"]}, ValueError, "this model has no tokenizer"),
        ({"data": [1, 2]}, TypeError, "document 0 is 1; expected a text"),
        ({"data": "corpus"}, ValueError, "a string is a path"),
        ({"data": "corpus.txt"}, FileNotFoundError, "there is no file"),
        ({"data": 5}, TypeError, "data is a int"),
        ({"folder": __file__}, batch.HarvestError, r"test_harvest.py is a file, or in one; choose the path of a fol"),
        ({"folder": f"{__file__}/a"}, batch.HarvestError, "is a file, or in one; choose the path of a folder"),
    ],
)
def test_bad_input(model, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        batch.harvest(**{"model": model, "data": [[1, 2]], "names": RESID, "folder": tmp_path / "a", **arguments})


# --- reading


def test_a_harvest_can_be_sent_to_another_process(stored):
    assert np.array_equal(pickle.loads(pickle.dumps(stored))[:9][RESID], stored[:9][RESID])


@pytest.mark.parametrize("rows", [np.ones(3, bool), True, [[0, 1]], 1.0, "tokens"])
def test_other_rows_are_refused(stored, rows):
    with pytest.raises(TypeError, match=r"rows are integers, a slice or a mask of \d+ rows; got"):
        stored[rows]


def test_the_row_that_is_out_of_range_is_named(stored):
    with pytest.raises(IndexError, match="row -9999 is out of range"):
        stored[[3, -9999]]


def test_a_column_may_be_named_without_a_list(stored):
    assert [*next(stored.batches(4, names="tokens"))] == ["tokens"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffle": False}, "shuffle is False; expected an integer of at least 0 .the seed., or None"),
        ({"shuffle": True}, "shuffle is True"),
        ({"size": 2.0}, "size is 2.0; expected a positive integer"),
        ({"start": -1}, "start is -1; expected an integer of at least 0"),
        ({"epochs": 1.5}, "epochs is 1.5; expected an integer of at least 0, or None for epochs without end"),
    ],
)
def test_batches_of_bad_numbers(stored, options, message):
    with pytest.raises(ValueError, match=message):
        next(stored.batches(**{"size": 4, **options}))


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.pop("shapes"),
        lambda index: index.update(shards=None),
        lambda index: index["shards"][0].pop("rows"),
        lambda index: index["shards"][0].update(rows=9999),
        lambda index: index["shards"][0].update(rows="many"),
        lambda index: index["shards"][0].update(first="many"),
        lambda index: index["shapes"].update({RESID: [23]}),
        lambda index: index["shapes"].update({"blocks.2.hook_resid_post": [24]}),
        lambda index: index.update(shards=[]),
        lambda index: index["shards"].pop(),
    ],
)
def test_a_changed_index_is_noticed(stored, tmp_path, change):
    folder = tmp_path / "a"
    shutil.copytree(stored.folder, folder)
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(batch.HarvestError, match="changed"):
        batch.Harvest(folder)[0]


def test_a_later_format_is_refused(stored, tmp_path):
    (tmp_path / "index.json").write_text(json.dumps({**stored.index, "format": "jaxlens harvest 2"}))
    with pytest.raises(batch.HarvestError, match="has the format 'jaxlens harvest 2'; this version of jaxlens reads"):
        batch.Harvest(tmp_path)


def test_a_moved_folder_is_reported(stored, tmp_path):
    shutil.copytree(stored.folder, tmp_path / "a")
    rows = batch.Harvest(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(batch.HarvestError, match=r"there is no file .*; open the folder where it is now, or"):
        rows[0]


def test_rows_by_number(stored):
    whole = stored[:]
    numbers = np.random.default_rng(0).integers(-len(stored), len(stored), 200)
    none = np.zeros(0, int)
    for rows in (5, -1, slice(90, 350), slice(None, None, 7), numbers, whole["tokens"] == 3, slice(5, 5), none):
        found = stored[rows]
        assert all(np.array_equal(found[name], whole[name][rows]) for name in whole)
    with pytest.raises(IndexError, match="out of range"):
        stored[len(stored)]
    with pytest.raises(TypeError, match="rows are integers"):
        stored["tokens"]
    with pytest.raises(IndexError, match="there is no document 150"):
        stored.document(150)
    with pytest.raises(TypeError, match="integer"):
        stored.document(1.5)
    with pytest.raises(KeyError, match=r"no 'blocks.7'"):
        next(stored.batches(5, names=["blocks.7"]))


@pytest.mark.parametrize("shuffle", [None, 3])
def test_batches_contain_every_row_once_and_can_be_resumed(stored, monkeypatch, shuffle):
    monkeypatch.setattr("jaxlens.batch.harvests.order.CHUNK", 30)
    monkeypatch.setattr("jaxlens.batch.harvests.order.POOL", 7)
    keys = [(batch_["document"] * 100 + batch_["part"] * 50 + batch_["position"]) for batch_ in stored.batches(64)]
    expected = np.concatenate(keys)
    batches = list(stored.batches(64, shuffle=shuffle, epochs=2))
    n = -(-len(stored) // 64)
    assert len(batches) == 2 * n and {len(each["tokens"]) for each in batches[: n - 1]} == {64}
    seen = [each["document"] * 100 + each["part"] * 50 + each["position"] for each in batches]
    for epoch in (seen[:n], seen[n:]):
        assert np.array_equal(np.sort(np.concatenate(epoch)), np.sort(expected))
    if shuffle is not None:
        assert not np.array_equal(np.concatenate(seen[:n]), np.concatenate(seen[n:]))
        documents = [len(np.unique(each["document"])) for each in batches[: n - 1]]
        assert np.mean(documents) > 2 * np.mean([len(np.unique(each["document"])) for each in stored.batches(64)])
    for start in (1, 7, n - 1, n, n + 5):
        rest = list(stored.batches(64, shuffle=shuffle, epochs=2, start=start))
        assert len(rest) == 2 * n - start
        for mine, theirs in zip(rest, batches[start:], strict=True):
            assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    whole = list(stored.batches(64, shuffle=shuffle, drop_last=True, names=["tokens"]))
    assert len(whole) == len(stored) // 64 and list(whole[0]) == ["tokens"]


def test_hidden_states_of_vllm(tmp_path):
    values = [np.random.default_rng(i).normal(size=(n, 3, 8)).astype(np.float32) for i, n in enumerate((5, 2))]
    for i, value in enumerate(values):
        save_file({"hidden_states": value, "token_ids": np.arange(len(value))}, tmp_path / f"request-{i}.safetensors")
    rows = batch.HiddenStates(tmp_path)
    assert len(rows) == 7 and rows.names == ["hidden_states"]
    assert np.array_equal(rows[5]["hidden_states"], values[1][0]) and rows[5]["document"] == 1
    assert sum(len(each["tokens"]) for each in rows.batches(4, shuffle=0)) == 7
    save_file({"token_ids": np.arange(3)}, tmp_path / "z.safetensors")
    with pytest.raises(batch.HarvestError, match="has no hidden_states"):
        batch.HiddenStates(tmp_path)
    with pytest.raises(batch.HarvestError, match="holds no safetensors file"):
        batch.HiddenStates(tmp_path / "nowhere")


def test_a_dataset_is_that_of_the_rows_that_are_in_the_folder_now(model, tmp_path):
    """The package datasets keeps what it made of an earlier harvest in the same folder."""
    pytest.importorskip("datasets")
    for of in (model, small_model(seed=1)):
        rows = batch.harvest(of, [[1, 2, 3], [4, 5], [6, 7, 8]], RESID, tmp_path / "a")
        assert np.array_equal(rows.to_dataset(2).with_format("numpy")[0][RESID], rows[:2][RESID])
        states = {"hidden_states": rows[:][RESID][:, None], "token_ids": rows[:]["tokens"]}
        save_file(states, tmp_path / "states.safetensors")
        found = batch.HiddenStates(tmp_path).to_dataset(2).with_format("numpy")[0]["hidden_states"]
        assert np.array_equal(found, rows[:2][RESID])
        shutil.rmtree(tmp_path / "a")


@pytest.mark.parametrize("shard_tokens", [2, 100])
def test_documents_without_stored_rows_are_empty_wherever_they_are(model, tmp_path, shard_tokens):
    data = [[3], [1, 2], [3], [4, 5], [3], [3]]
    rows = batch.harvest(model, data, RESID, tmp_path / "a", skip=[3], shard_tokens=shard_tokens)
    assert rows.n_documents == 6 and [len(rows.document(i)["tokens"]) for i in range(6)] == [0, 2, 0, 2, 0, 0]
    before = contents(tmp_path / "a")
    (tmp_path / "a" / rows.shards[-1].file).unlink()
    batch.harvest(model, data, RESID, tmp_path / "a", skip=[3], shard_tokens=shard_tokens)
    assert contents(tmp_path / "a") == before


def test_a_data_hook_of_a_global_is_traced_again(model, tmp_path, monkeypatch):
    def scaled(value, hook, by):
        return value * by * FACTOR

    hooks, found = [(RESID, hook(scaled, by=1.0))], []
    for factor in (1.0, 4.0):
        monkeypatch.setitem(globals(), "FACTOR", factor)
        found.append(batch.harvest(model, [[1, 2]], RESID, tmp_path / str(factor), hooks=hooks)[:][RESID])
    np.testing.assert_allclose(found[1], 4 * found[0], rtol=1e-6)


def test_dataset_in_the_layout_of_saelens(stored):
    pytest.importorskip("datasets")
    with pytest.raises(KeyError, match=r"there is no 'blocks.9'"):
        stored.to_dataset(2, "blocks.9")
    with pytest.warns(UserWarning, match="rows do not fill a context"):
        dataset = stored.to_dataset(32, [Z])
    assert len(dataset) == len(stored) // 32 and set(dataset.column_names) == {Z, "token_ids"}
    row = dataset.with_format("numpy")[2]
    assert np.array_equal(row[Z], stored[64:96][Z].reshape(32, 18))
    assert np.array_equal(row["token_ids"], stored[64:96]["tokens"])
