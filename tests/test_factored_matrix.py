"""A factored matrix is what its factors multiply to: every operation is compared with the same on the product."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.mistakes import Case, unreached
from support.models import ADDITIVE, CONFIGS, LINEAR_HEADS, model, randomised, tokens
from test_models import close

from jaxlens import Config, FactoredMatrix, HookedTransformer
from jaxlens.weights import factored_matrix
from jaxlens.weights.factored_matrix import composition_scores

SHAPES = {  # leading axes of A and of B, and l, m, r
    "tall and wide": ((), (), 7, 3, 5),
    "square": ((), (), 6, 2, 6),
    "inner dimension largest": ((), (), 4, 9, 3),
    "few columns": ((2,), (2,), 8, 5, 3),
    "a stack": ((2, 3), (2, 3), 5, 2, 5),
    "leading axes broadcast": ((3,), (2, 1), 6, 4, 6),
    "one side stacked": ((), (4,), 5, 3, 7),
    "rank one": ((2,), (), 5, 1, 5),
}
every_shape = pytest.mark.parametrize("name", SHAPES)


@functools.cache
def factors(name, deficient=False, seed=0):
    leading_A, leading_B, l, m, r = SHAPES[name]  # noqa: E741
    rng = np.random.default_rng(seed)
    A, B = rng.normal(size=(*leading_A, l, m)), rng.normal(size=(*leading_B, m, r))
    if deficient:  # two equal columns, and a row of zeros
        A[..., -1], B[..., 0, :] = A[..., 0], 0
    return A.astype(np.float32), B.astype(np.float32)


def made(name, deficient=False, seed=0):
    """A factored matrix, and its product in float64."""
    A, B = factors(name, deficient, seed)
    return FactoredMatrix(A, B), np.matmul(A.astype(np.float64), B)


# --- shape and products


@every_shape
def test_it_has_the_shape_and_the_entries_of_its_product(name):
    factored, product = made(name)
    assert factored.shape == product.shape and factored.ndim == product.ndim
    assert (factored.ldim, factored.rdim) == product.shape[-2:]
    assert factored.mdim == SHAPES[name][3]
    assert factored.has_leading_dims == (product.ndim > 2)
    assert factored.pair[0].shape[:-2] == factored.pair[1].shape[:-2] == product.shape[:-2]
    assert repr(factored) == f"FactoredMatrix: Shape({product.shape}), Hidden Dim({factored.mdim})"
    close(factored.AB, product)
    close(factored.T.AB, np.swapaxes(product, -1, -2))
    close(factored.get_corner(2), product[(slice(2),) * product.ndim])
    if factored.ldim == factored.rdim:
        close(factored.BA, np.matmul(factored.B, factored.A))


@every_shape
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_products_from_either_side_are_those_of_the_matrix(name, array):
    factored, product = made(name)
    rng = np.random.default_rng(1)
    for width in (1, 2, 11):
        right = rng.normal(size=(factored.rdim, width)).astype(np.float32)
        left = rng.normal(size=(width, factored.ldim)).astype(np.float32)
        close((factored @ array(right)).AB, product @ right)
        close((array(left) @ factored).AB, left @ product)
        assert (factored @ array(right)).mdim == min(factored.mdim, factored.rdim)
        assert (array(left) @ factored).mdim == min(factored.mdim, factored.ldim)
    vectors = right[:, 0], left[0]
    close(factored @ array(vectors[0]), product @ vectors[0])
    close(array(vectors[1]) @ factored, vectors[1] @ product)


@every_shape
@pytest.mark.parametrize("other", ["tall and wide", "inner dimension largest", "rank one", "few columns"])
def test_products_of_two_keep_the_smaller_inner_dimension(name, other):
    left, product = made(name)
    A, B = factors(other, seed=2)
    middle = np.random.default_rng(3).normal(size=(left.rdim, A.shape[-2])).astype(np.float32)
    right = FactoredMatrix(middle @ A[0] if A.ndim > 2 else middle @ A, B[0] if B.ndim > 2 else B)
    composed = left @ right
    close(composed.AB, product @ np.float64(right.AB))
    assert composed.mdim <= min(left.mdim, left.rdim, right.mdim)
    close((right.T @ left.T).AB, np.swapaxes(composed.AB, -1, -2))


def test_a_stack_of_matrices_multiplies_a_stack():
    factored, product = made("a stack")
    stack = np.random.default_rng(4).normal(size=(2, 3, 5, 4)).astype(np.float32)
    close((factored @ stack).AB, product @ stack)
    close((np.swapaxes(stack, -1, -2) @ factored).AB, np.swapaxes(stack, -1, -2) @ product)


@every_shape
def test_multiples(name):
    factored, product = made(name)
    for number in (3, 0.5, np.float32(2), np.array([2.0]), jnp.float32(-1), jnp.ones((1, 1, 1, 1))):
        close((factored * number).AB, product * np.float64(np.reshape(number, ())))
        close((number * factored).AB, product * np.float64(np.reshape(number, ())))
        assert (factored * number).A.dtype == jnp.float32


def test_nothing_as_large_as_the_matrix_is_ever_made():
    """The full circuit of two heads, 400 × 400 and of rank 3: no value in the program has more entries than W_E."""
    W_E, A, B = jnp.ones((400, 20)), jnp.ones((2, 20, 3)), jnp.ones((2, 3, 20))

    def analyse(W_E, A, B):
        circuit = W_E @ FactoredMatrix(A, B) @ W_E.T
        parts = circuit.T.pair, circuit[0, :2].AB, circuit @ W_E[:, 0]
        return circuit.norm(), circuit.svd(), circuit.eigenvalues, parts

    sizes = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            sizes.extend(out.aval.size for out in equation.outvars)
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    visit(getattr(inner, "jaxpr", inner))

    visit(jax.make_jaxpr(analyse)(W_E, A, B).jaxpr)
    assert len(sizes) > 50 and max(sizes) <= W_E.size


# --- indices

INDICES = [
    0, -1, np.int64(1), slice(1, None), slice(None, None, 2), [1, 0, 1], np.array([0, 0]), np.array([True, False]),
    None, (1, 2), (0, slice(1)), (slice(None), -1), ([0, 1], [2, 0]), (None, 1), ..., (..., slice(2), slice(1, 3)),
    (1, ..., slice(3)), (slice(None), slice(None), [4, 0]), (0, 1, slice(None, None, -1), slice(2, 0, -1)),
    np.array([[True, False, True], [False, False, True]]),
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_an_index_means_what_it_means_for_the_product(index):
    factored, product = made("a stack")
    assert isinstance(factored[index], FactoredMatrix)
    close(factored[index].AB, product[index])


def test_a_single_row_or_column_keeps_its_axis():
    factored, product = made("a stack")
    close(factored[1, 2, 3].AB, product[1, 2, 3:4])
    close(factored[1, 2, -1, 0].AB, product[1, 2, -1:, :1])
    close(factored[..., 2, 3].AB, product[..., 2:3, 3:4])
    close(factored[0, :, [2, 0], [1, 4, 1]].AB, product[0][:, [2, 0]][..., [1, 4, 1]])
    flat, dense = made("tall and wide")
    close(flat[2].AB, dense[2:3])
    close(flat[:, jnp.array(-1)].AB, dense[:, -1:])


def test_an_index_may_be_traced():
    factored, product = made("a stack")
    close(jax.vmap(lambda i, j: factored[i, j].AB)(np.array([0, 1]), np.array([2, 0])), product[[0, 1], [2, 0]])
    close(jax.jit(lambda factored, i: factored[0, 1, i].AB)(factored, 3), product[0, 1, 3:4])


def test_another_axis():
    factored, product = made("a stack")
    for k in (0, 1, 2, -3, -4, -5):
        close(factored.unsqueeze(k).AB, np.expand_dims(product, k))


# --- decompositions


@every_shape
@pytest.mark.parametrize("deficient", [False, True])
def test_singular_values_and_vectors(name, deficient):
    factored, product = made(name, deficient)
    U, S, V = factored.svd()
    k = min(factored.ldim, factored.mdim, factored.rdim)
    assert S.shape == (*product.shape[:-2], k)
    close(U * S[..., None, :] @ V.mT, product)
    close(S, np.linalg.svd(product, compute_uv=False)[..., :k])
    for side in (U, V):
        close(side.mT @ side, np.broadcast_to(np.eye(k), (*product.shape[:-2], k, k)))
    close(factored.collapse_l(), S[..., :, None] * V.mT)
    close(factored.collapse_r(), U * S[..., None, :])
    assert factored.svd()[0] is U and factored.S is S
    assert jnp.array_equal(factored.V, V) and jnp.array_equal(factored.U, U)


@every_shape
@pytest.mark.parametrize("deficient", [False, True])
def test_norms_and_an_even_split(name, deficient):
    factored, product = made(name, deficient)
    close(factored.norm(), np.linalg.norm(product, axis=(-2, -1)))
    even = factored.make_even()
    close(even.AB, product)
    close(even.A.mT @ even.A, even.B @ even.B.mT)
    close(jnp.linalg.norm(even.A, axis=-2) ** 2, factored.S)


@pytest.mark.parametrize("name", [name for name, of in SHAPES.items() if of[2] == of[4]])
@pytest.mark.parametrize("deficient", [False, True])
def test_eigenvalues_are_those_of_the_product_but_for_zeros(name, deficient):
    factored, product = made(name, deficient)
    found = np.asarray(factored.eigenvalues)
    assert found.shape == (*product.shape[:-2], factored.mdim)
    for power in (1, 2, 3):  # which they are if their power sums are
        close((found**power).sum(-1).real, np.trace(np.linalg.matrix_power(product, power), axis1=-2, axis2=-1), 1e-4)
    close(np.abs(found).max(-1), np.abs(np.linalg.eigvals(product)).max(-1), 1e-4)


def test_half_precision_is_decomposed_in_float32():
    A, B = factors("a stack")
    half = FactoredMatrix(A.astype(jnp.bfloat16), B.astype(jnp.bfloat16))
    assert half.AB.dtype == jnp.bfloat16 and half.S.dtype == half.norm().dtype == jnp.float32
    assert half.eigenvalues.dtype == jnp.complex64
    close(half.norm(), np.linalg.norm(np.float64(half.A) @ np.float64(half.B), axis=(-2, -1)))


def test_the_old_name_of_V_says_so():
    factored, _ = made("square")
    with pytest.warns(DeprecationWarning, match=r"write \.V"):
        assert jnp.array_equal(factored.Vh, factored.V)


# --- transformations


@every_shape
def test_it_passes_through_jit_and_vmap(name):
    factored, _ = made(name)

    def everything(factored):
        parts = factored.T, factored[..., 0, :], factored @ jnp.ones(factored.rdim)
        return factored.AB, factored.norm(), factored.S, parts

    expected, found = everything(factored), jax.jit(everything)(factored)
    jax.tree.map(close, found, expected)
    assert found[3][0].shape == factored.T.shape
    if factored.ndim > 2:
        jax.tree.map(close, jax.vmap(everything)(factored), expected)


@pytest.mark.parametrize("name", ["tall and wide", "inner dimension largest", "a stack", "few columns"])
def test_gradients_are_derivatives(name):
    with jax.enable_x64(True):
        A, B = (jnp.asarray(factor, jnp.float64) for factor in factors(name))
        factored = FactoredMatrix(A, B)
        step = jax.tree.map(lambda w: jnp.asarray(np.random.default_rng(5).normal(size=w.shape)), factored)
        weights = jnp.arange(1.0, 1 + factored.S.shape[-1])
        measures = [
            lambda f: jnp.sum(f.S * weights), lambda f: jnp.sum(f.norm() ** 3),
            lambda f: jnp.sum(jnp.abs(f.U[..., 0])) + jnp.sum(f.make_even().A ** 4),
        ]  # fmt: skip
        if factored.ldim == factored.rdim:
            measures.append(lambda f: jnp.sum(jnp.abs(f.eigenvalues) ** 2))
        for measure in measures:
            gradient = jax.grad(measure)(factored)
            assert isinstance(gradient, FactoredMatrix)
            predicted = sum(jnp.sum(g * s) for g, s in zip(gradient.pair, step.pair, strict=True))
            shifted = [measure(jax.tree.map(lambda w, s: w + e * s, factored, step)) for e in (1e-6, -1e-6)]  # noqa: B023
            assert abs((shifted[0] - shifted[1]) / 2e-6 - predicted) <= 1e-6 * max(1.0, abs(predicted))


def test_the_norm_has_a_gradient_where_singular_values_coincide():
    gradient = jax.grad(lambda factored: factored.norm())(FactoredMatrix(jnp.eye(4)[:, :3], jnp.eye(3, 4)))
    close(gradient.A, np.eye(4)[:, :3] / 3**0.5)


def test_two_decompositions_in_one_program_do_not_wait_for_each_other():
    """On two cores, batched calls of LAPACK would."""
    stacks = [FactoredMatrix(*np.random.default_rng(seed).normal(size=(2, 9, 64, 64))) for seed in (1, 2)]
    for _ in range(3):
        jax.block_until_ready(jax.jit(lambda stacks: [(s.svd(), s.eigenvalues) for s in stacks])(stacks))


# --- composition


def dense_scores(left, right):
    """The definition, for every pair."""
    norm = functools.partial(np.linalg.norm, axis=(-2, -1))
    outer = left[(..., *[None] * (right.ndim - 2), slice(None), slice(None))]
    return norm(outer @ right) / norm(outer) / norm(right)


@pytest.mark.parametrize("left", ["a stack", "square", "few columns", "tall and wide", "rank one"])
@pytest.mark.parametrize("right", ["a stack", "one side stacked", "inner dimension largest"])
@pytest.mark.parametrize("strip", [factored_matrix.STRIP, 40])  # all at once; in strips that do not divide the axis
def test_composition_scores_follow_their_definition(left, right, strip, monkeypatch):
    monkeypatch.setattr(factored_matrix, "STRIP", strip)
    (left, dense_left), (right, dense_right) = made(left, seed=6), made(right, seed=7)
    middle = np.random.default_rng(8).normal(size=(left.rdim, right.ldim)).astype(np.float32)
    scores = factored_matrix._compose_all.__wrapped__(left, middle @ right)
    close(scores, dense_scores(dense_left, middle @ dense_right))
    assert scores.shape == left.shape[:-2] + right.shape[:-2]


def test_composition_matrix_by_matrix():
    (left, dense_left), (right, dense_right) = made("a stack"), made("a stack", seed=1)
    norm = functools.partial(np.linalg.norm, axis=(-2, -1))
    expected = norm(dense_left @ dense_right) / norm(dense_left) / norm(dense_right)
    close(composition_scores(left, right, broadcast_dims=False), expected)
    close(composition_scores(left[0], right, broadcast_dims=False)[0], expected[0])
    close(composition_scores(left, right)[1, 2, 1, 2], expected[1, 2])


# --- on a model


@pytest.mark.parametrize("name", LINEAR_HEADS)
def test_circuits_of_a_model(name):
    the_model, cfg = model(name), CONFIGS[name]
    group = cfg.n_heads // cfg.n_key_value_heads
    for layer in range(cfg.n_layers):
        attn = the_model.blocks[layer].attn
        for head in (0, cfg.n_heads - 1):
            QK, OV = attn.W_Q[head] @ attn._W_K[head // group].T, attn._W_V[head // group] @ attn.W_O[head]
            close(the_model.QK[layer, head].AB, QK)
            close(the_model.OV[layer, head].AB, OV)
            close(attn.QK[head].AB, QK)
            close(attn.OV[head].AB, OV)
    assert the_model.QK.shape == the_model.OV.shape == (cfg.n_layers, cfg.n_heads, cfg.d_model, cfg.d_model)
    assert the_model.OV.mdim == cfg.d_head
    assert the_model.n_params_total == sum(w.size for w in the_model.params.values())
    labels = the_model.all_head_labels()
    assert labels[:2] == ["L0H0", "L0H1"] and labels[-1] == f"L{cfg.n_layers - 1}H{cfg.n_heads - 1}"
    assert len(labels) == cfg.n_layers * cfg.n_heads


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma"])
def test_all_composition_scores_of_a_model(name):
    the_model, cfg = model(name), CONFIGS[name]
    QK, OV = np.float64(the_model.QK.AB), np.float64(the_model.OV.AB)
    later = np.triu(np.ones((cfg.n_layers, cfg.n_layers)), 1)[:, None, :, None]
    for mode, reads in (("Q", QK), ("K", np.swapaxes(QK, -1, -2)), ("V", OV)):
        close(the_model.all_composition_scores(mode), dense_scores(OV, reads) * later)


POST_NORM = Config(
    n_layers=3, d_model=14, n_heads=2, d_head=5, d_mlp=9, d_vocab=11, n_ctx=8, norm_placement="both", act_fn="gelu"
)


CONSTANT = [name for name in ADDITIVE if not (CONFIGS[name].num_experts and "b_out" in CONFIGS[name].biases)]


@pytest.mark.parametrize("name", [*CONSTANT, "biased norms after"])
def test_the_accumulated_bias_is_what_layers_add_that_read_nothing(name):
    the_model = model(name) if name in CONFIGS else randomised(POST_NORM)
    cfg = the_model.cfg
    empty = ("W_O", "W_out") if cfg.norm_placement == "pre" else ("ln1_post.w", "ln2_post.w")
    nothing = -1.0 if cfg.rmsnorm_uses_offset else 0.0
    empty = (*empty, "lora_O.scale", "lora_out.scale")
    silenced = {key: w * 0 + nothing if key.endswith(empty) else w for key, w in the_model.params.items()}
    _, cache = HookedTransformer(cfg, params=silenced).run_with_cache(tokens(1, 3, d_vocab=cfg.d_vocab))
    start = cache["resid_pre", 0]
    for layer in range(cfg.n_layers + 1):
        stream = cache["resid_post", layer - 1] if layer else start
        close(the_model.accumulated_bias(layer), (stream - start)[0, 0])
        mlps = sum(cache["mlp_out", before] for before in range(layer)) if not cfg.attn_only else 0
        close(the_model.accumulated_bias(layer, include_mlp_biases=False), (stream - start - mlps)[0, 0])
        if layer < cfg.n_layers and not cfg.attn_only:
            mlp_reads = stream if cfg.parallel_attn_mlp else cache["resid_mid", layer]
            close(the_model.accumulated_bias(layer, mlp_input=True), (mlp_reads - start)[0, 0])


# --- mistakes


def stack():
    return made("a stack")[0]


MISTAKES = {
    "factors that do not fit": Case(
        lambda: FactoredMatrix(np.ones((3, 2)), np.ones((3, 2))), ValueError, "the factors have shapes (3, 2) and (3"
    ),
    "a vector for a factor": Case(
        lambda: FactoredMatrix(np.ones(3), np.ones((3, 2))), ValueError, "the factors have shapes (3,) and (3, 2)"
    ),
    "leading axes that do not broadcast": Case(
        lambda: FactoredMatrix(np.ones((2, 4, 3)), np.ones((3, 3, 4))), ValueError, "(2,) and (3,) do not broadcast"
    ),
    "BA of a matrix that is not square": Case(lambda: made("few columns")[0].BA, ValueError, "BA needs a square"),
    "a product from the right": Case(lambda: stack() @ np.ones((4, 5)), ValueError, "the right operand of @ has shape"),
    "a product from the left": Case(lambda: np.ones(4) @ stack(), ValueError, "the left operand of @ has shape (4,)"),
    "times an array": Case(lambda: stack() * np.ones(5), ValueError, "* expects a scalar"),
    "too many indices": Case(lambda: stack()[0, 0, 0, 0, 0], IndexError, "has too many entries"),
    "an index out of range": Case(lambda: stack()[2], IndexError, "index 2 is out of range for axis 0"),
    "a row out of range": Case(lambda: stack()[..., [0, 5], :], IndexError, "index 5 is out of range for axis 2"),
    "a new axis among rows": Case(lambda: stack()[..., None], IndexError, "the index of rows or columns is None"),
    "an axis after the matrix": Case(lambda: stack().unsqueeze(-1), ValueError, "k is -1"),
    "matrices that cannot compose": Case(
        lambda: composition_scores(stack(), made("tall and wide")[0]), ValueError, "needs left.rdim == right.ldim"
    ),
    "stacks that cannot be paired": Case(
        lambda: composition_scores(stack(), stack()[:, [0, 1]], broadcast_dims=False), ValueError, "do not broadcast"
    ),
    "an unknown kind of composition": Case(
        lambda: model("gpt2").all_composition_scores("q"), ValueError, "mode is 'q'"
    ),
    "the bias of too many layers": Case(lambda: model("gpt2").accumulated_bias(5), ValueError, "layer is 5"),
    "the bias at an MLP after the last": Case(
        lambda: model("gpt2").accumulated_bias(4, mlp_input=True), ValueError, "layer is 4"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_answered_with_what_was_wanted(case):
    case.check()


def test_every_error_is_reached_by_a_case():
    assert unreached(__file__, MISTAKES.values()) == []
