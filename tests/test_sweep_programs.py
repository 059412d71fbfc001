"""The programs and the rows of sweeps: which prompts share a program, and what is computed in each layer."""

import jax.numpy as jnp
import numpy as np
import pytest
from support.models import CONFIGS, randomised, tokens
from support.programs import compilations
from test_models import close

from jaxlens.analysis.interventions.activation_patching import activation_patch
from jaxlens.analysis.interventions.sweep_batches import Batch, BatchShape, Filler
from jaxlens.analysis.interventions.sweep_rows import packings
from jaxlens.nn.packing import PackedRows

QUIET = {"progress": False}


def metric(logits):
    return logits[0, -1, 3] - logits[0, -1, 4]


def pair(n_prompts, length):
    clean = tokens(n_prompts, length)
    return clean, clean.at[:, length // 2].add(1) % 37


def test_prompts_of_other_lengths_share_the_loop_of_a_sweep():
    the_model = randomised(CONFIGS["llama"].replace(n_ctx=64))
    with compilations() as names:
        activation_patch(the_model, *pair(1, 8), metric, **QUIET)
    assert {"jit(_loop)", "jit(_finish)"} <= set(names)
    with compilations() as names:
        activation_patch(the_model, *pair(1, 24), metric, **QUIET)
    assert {"jit(_loop)", "jit(_finish)"}.isdisjoint(names)


def test_a_cache_shares_the_programs_around_the_layers_with_a_forward():
    the_model = randomised(CONFIGS["gpt2"].replace(d_vocab=41))
    logits = the_model(tokens(1, 8) % 41)
    with compilations() as names:
        again, cache = the_model.run_with_cache(tokens(1, 8) % 41)
    assert "jit(_stage)" not in names
    close(again, logits)
    assert jnp.array_equal(cache["unembed.hook_out"], again)


@pytest.mark.parametrize(("config", "n_prompts", "length"), [("llama", 3, 40), ("mistral", 2, 72), ("bloom", 5, 24)])
def test_sweeps_of_many_and_long_prompts_equal_hooked_runs(config, n_prompts, length):
    the_model = randomised(CONFIGS[config].replace(n_ctx=128))
    clean, corrupted = pair(n_prompts, length)

    def mean(logits):
        return jnp.mean(logits[:, -1, 3] - logits[:, -1, 4])

    found = activation_patch(the_model, corrupted, clean, mean, "mlp_out", **QUIET)
    _, cache = the_model.run_with_cache(clean)
    for layer, position in ((0, length // 2), (2, length - 1), (1, length // 2 + 1)):
        name = f"blocks.{layer}.hook_mlp_out"

        def put(value, hook, name=name, position=position):
            return value.at[:, position].set(cache[name][:, position])

        close(found.values[layer, position], mean(the_model.run_with_hooks(corrupted, fwd_hooks=[(name, put)])))


def batch(first, layers, shape, n_positions):
    filler = Filler(shape)
    for cell in range(len(layers)):
        assert filler.add(cell, (n_positions - first[cell]).tolist())
    return Batch.of(filler, np.array(layers), first, n_positions, 6)


PACKED = {"at_once": 1, "sequences": None, "slots": 8}


def test_a_layer_runs_the_blocks_whose_rows_have_joined():
    shape = BatchShape(cells=8, rows=32, block=8, grouped=1, read_cells=2, prompts=2, **PACKED)
    first = np.array([[4, 8], [4, 5], [2, 8], [8, 7]])  # 4, 4 + 3, 6 and 1 rows
    found = batch(first, [1, 1, 3, 4], shape, 8)
    assert found.running.tolist() == [0, 2, 2, 3, 3, 3]
    assert found.settled.tolist() == [0, 0, 1, 1, 1, 3]  # the row of the last cell has room beside those of layer 1
    assert (np.bincount(found.row_layers.ravel() + 1, minlength=6) == [14, 0, 11, 0, 6, 1]).all()
    for sequence, starts in enumerate(first.ravel()):
        rows = found.rows[sequence, starts:]
        assert (found.groups.ravel()[rows] == sequence).all()
        assert found.slots.ravel()[rows].tolist() == list(range(starts, 8))
        assert len(set((rows // 8).tolist())) <= 1  # in one block
    assert (found.rows >= 0).sum() == 18


def test_a_row_sees_its_sequence_only():
    shape = BatchShape(cells=4, rows=32, block=16, grouped=2, read_cells=2, prompts=2, **PACKED)
    first, mask = np.array([[4, 6], [2, 5]]), np.ones((2, 8), bool)
    found = batch(first, [0, 1], shape, 8)
    fields = packings(shape, found, mask)
    packed = PackedRows(**{name: jnp.asarray(field) for name, field in fields.items()})
    low, high = packed.bounds(jnp.full(packed.indices.shape, -9), packed.indices)
    for block in (0, 1):
        of_baseline, own = visible(low[:, block], high[:, block], packed.sources[block])
        used = found.row_layers[block] >= 0
        assert ((of_baseline | own).sum(-1)[used] == found.slots[block][used] + 1).all()  # all tokens up to its own
        assert (of_baseline.sum(-1)[used] == found.starts[block][used]).all()
        assert not (of_baseline & own).any()


def visible(low, high, sources):
    """The sources [r s] in each of the two intervals of every row."""
    return [(sources > low[:, None]) & (sources <= high[:, None]) for low, high in zip(low, high, strict=True)]


def test_a_batch_is_full_when_a_sequence_has_no_room():
    shape = BatchShape(cells=8, rows=16, block=8, grouped=1, read_cells=2, prompts=1, **PACKED)
    filler = Filler(shape)
    assert filler.add(0, [8])
    assert filler.add(1, [5])
    assert not filler.add(2, [4])
    assert filler.cells == [0, 1]
