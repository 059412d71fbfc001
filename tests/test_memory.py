"""What a long context costs: nothing until it is used, and then no array with two axes as long as the sequence."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.hlo import buffers

from jaxlens import Config, HookedTransformer, Rotary, hook
from jaxlens.model.loops import LoopInputs, Program, compiled_loop
from jaxlens.nn.sequence import sequence_info

N_CTX, SHORT = 131072, 512
SIZES = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 4, "d_mlp": 16, "d_vocab": 11}
ROTARY = {**SIZES, "positional_embedding_type": "rotary", "normalization_type": "RMS", "biases": ()}
CONFIGS = {
    "rotary": ROTARY,
    "rotary, windows": {**ROTARY, "windows": (64, None)},
    "rotary, blockwise": {**ROTARY, "attn_block": 128},
    "standard": SIZES,
    "shortformer": {**SIZES, "positional_embedding_type": "shortformer", "attn_only": True, "d_mlp": None},
}
WINDOWS = {"global": None, "local": 20, "alternating": (20, None)}
BLOCK, WINDOW = 32, 20


def logits(model, tokens):
    return model(tokens)


def everything(model, tokens):
    return model.run_with_cache(tokens, return_type="loss", incl_bwd=True)


def gradient(model, tokens):
    return jax.grad(lambda model: model(tokens, return_type="loss"))(model)


def shaped(cfg: Config, length: int):
    """A model without weights, only their shapes, and the shape of its tokens."""
    return jax.eval_shape(lambda: HookedTransformer(cfg)), jax.ShapeDtypeStruct((1, length), jnp.int32)


def compiled(program, cfg: Config, length: int):
    return jax.jit(program).lower(*shaped(cfg, length)).compile()


def planned_bytes(program, cfg: Config, length: int) -> tuple[int, int, int]:
    plan = compiled(program, cfg, length).memory_analysis()
    return plan.temp_size_in_bytes, plan.argument_size_in_bytes, plan.output_size_in_bytes


def arrays_within(jaxpr):
    """Every array of a program: constants, arguments and results of every operation, in every nested program too."""
    closed = hasattr(jaxpr, "consts")
    yield from jaxpr.consts if closed else ()
    inner = jaxpr.jaxpr if closed else jaxpr
    yield from (variable.aval for variable in (*inner.invars, *inner.constvars))
    for equation in inner.eqns:
        yield from (variable.aval for variable in equation.outvars)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if hasattr(value, "eqns"):
                yield from arrays_within(value)


def context_sized_axes(array) -> int:
    return sum(size >= N_CTX for size in np.shape(array))


def test_the_walk_over_a_program_finds_constants_and_nested_programs():
    table = np.zeros((3, N_CTX))

    @jax.jit
    def inner(x):
        return jax.lax.map(lambda row: row + jnp.sum(jnp.zeros((N_CTX, N_CTX))), x + table[0, 0] * table)

    shapes = [np.shape(array) for array in arrays_within(jax.make_jaxpr(inner)(jax.ShapeDtypeStruct((), float)))]
    assert (N_CTX, N_CTX) in shapes
    assert (3, N_CTX) in shapes


@pytest.mark.parametrize("program", [logits, everything, gradient])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_long_context_has_no_square_array_anywhere(name, program):
    model, tokens = shaped(Config(**CONFIGS[name], n_ctx=N_CTX), SHORT)
    long = {parameter for parameter, value in model.params.items() if context_sized_axes(value)}
    assert long <= {"pos_embed.W_pos"}
    found = list(arrays_within(jax.make_jaxpr(program)(model, tokens)))
    assert len(found) > 100
    assert max(map(context_sized_axes, found)) == len(long)


@pytest.mark.parametrize("program", [logits, everything, gradient])
@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("rotary")])
def test_an_unused_context_takes_no_memory(name, program):
    short, long = (Config(**CONFIGS[name], n_ctx=n_ctx) for n_ctx in (1024, N_CTX))
    assert planned_bytes(program, long, SHORT) == planned_bytes(program, short, SHORT)


def test_a_model_with_a_long_context_is_the_same_model():
    short, long = (HookedTransformer(Config(**ROTARY, n_ctx=n_ctx), seed=3) for n_ctx in (1024, N_CTX))
    tokens = np.random.default_rng(0).integers(0, SIZES["d_vocab"], (1, SHORT))
    assert {name: value.shape for name, value in short.params.items()} == {
        name: value.shape for name, value in long.params.items()
    }
    assert jnp.array_equal(short(tokens), long(tokens))
    edits = [("blocks.1.attn.hook_pattern", lambda value, hook: value * 0.5)]
    assert jnp.array_equal(short.run_with_hooks(tokens, fwd_hooks=edits), long.run_with_hooks(tokens, fwd_hooks=edits))


# --- long sequences


def attention_only(windows, attn_block: int) -> Config:
    """So small a model that an array with as many numbers as T×T can only come from attention."""
    return Config(
        n_layers=2, d_model=6, n_heads=2, d_head=3, d_vocab=5, n_ctx=4096, attn_only=True, windows=windows,
        attn_block=attn_block, positional_embedding_type="rotary", rotary=Rotary(dim=2),
    )  # fmt: skip


def shapes(program, cfg: Config, length: int) -> set[tuple[int, ...]]:
    return {shape for _, shape, _ in buffers(compiled(program, cfg, length).as_text())}


def squares(found: set[tuple[int, ...]], length: int) -> list[tuple[int, ...]]:
    return [shape for shape in found if sum(size >= length for size in shape) >= 2]


@pytest.mark.parametrize("program", [logits, gradient])
@pytest.mark.parametrize("windows", WINDOWS)
def test_blockwise_attention_has_no_square_array(windows, program):
    length = 1536
    found = shapes(program, attention_only(WINDOWS[windows], BLOCK), length)
    assert not squares(found, length)
    # not under another shape either: a square cut into blocks is as large
    assert max(map(math.prod, found)) < length**2 / 8
    assert squares(shapes(program, attention_only(WINDOWS[windows], length), length), length)


@pytest.mark.parametrize("program", [logits, gradient])
def test_a_local_layer_s_memory_grows_with_the_tokens_alone(program):
    """Blockwise and local: equal steps of tokens take equal memory, and scores are those of one block by one block."""
    cfg = attention_only(WINDOW, BLOCK)
    few, *longer = (planned_bytes(program, cfg, length)[0] for length in (768, 2048, 2560, 3072))
    first, second = np.diff(longer)
    assert second == pytest.approx(first, rel=0.05)
    assert longer[-1] <= 4 * few
    for length in (768, 3072):
        scores = {shape for shape in shapes(program, cfg, length) if BLOCK in shape and length in shape}
        assert not scores
        assert (1, 2, 1, BLOCK, BLOCK) in shapes(program, cfg, length)


def test_attention_in_blocks_needs_less_memory_than_attention_in_full():
    length = 1536
    local, whole, explicit = (
        planned_bytes(logits, attention_only(windows, block), length)[0]
        for windows, block in ((WINDOW, BLOCK), (None, BLOCK), (WINDOW, length))
    )
    assert local < whole
    assert 50 * whole < explicit


def test_a_layer_with_a_window_reads_its_window_only():
    """A value that is not a number reaches the queries of the window and of no later block."""

    def spoil(v, hook):
        return v.at[:, 0].set(jnp.nan)

    tokens = np.random.default_rng(0).integers(0, 5, (1, 300))
    for windows, first_finite in ((WINDOW, 2 * (WINDOW + BLOCK)), (None, None)):
        model = HookedTransformer(attention_only(windows, BLOCK))
        out = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_v", hook(spoil))])[0]
        assert jnp.isnan(out[0]).any()
        assert jnp.isfinite(out[first_finite:]).all() if first_finite else jnp.isnan(out[-1]).any()


# --- weights


def test_the_layer_of_a_single_token_copies_no_matrix_out_of_the_stack():
    cfg = Config(**{**ROTARY, "d_model": 64, "d_mlp": 768, "n_ctx": 8}, gated_mlp=True, act_fn="silu")
    model = jax.eval_shape(lambda: HookedTransformer(cfg))
    program, size = Program(cfg.stacks[0], frozenset(), 0), 4 * cfg.d_model * cfg.d_mlp

    def layers(stack, x):
        inputs = LoopInputs(stack, (sequence_info(cfg, jnp.ones((1, 1), bool)), (), None), {})
        return compiled_loop(program, inputs, x, {}, np.int32(0), np.int32(2))[0]

    x = jax.ShapeDtypeStruct((1, 1, cfg.d_model), jnp.float32)
    plan = jax.jit(layers).lower(model.modules.stacks[0], x).compile().memory_analysis()
    assert plan.temp_size_in_bytes < size
