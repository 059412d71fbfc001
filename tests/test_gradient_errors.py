"""What is said of mistakes in all that is made of gradients, and of results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.mistakes import Case, unreached
from support.models import model
from test_attribution import CLEAN, CORRUPT
from test_errors import reading

from jaxlens import ActivationNotFound, HookError
from jaxlens.analysis.attribution.compare import correlation
from jaxlens.analysis.attribution.edges import edge_attribution_patch
from jaxlens.analysis.attribution.integrated_gradients import integrated_gradients
from jaxlens.analysis.attribution.jacobian import residual_jacobian
from jaxlens.analysis.attribution.nodes import attribution_patch
from jaxlens.analysis.labelled_array import Labelled

LAST = lambda logits: logits[:, -1, 3]  # noqa: E731
LABELLED = Labelled(np.arange(6.0).reshape(2, 3), ("layer", "head"), {"layer": ["0", "1"], "head": ["0", "1", "2"]})


def attribute(nodes="z", metric=LAST, clean=CLEAN, corrupt=CORRUPT, **options):
    return attribution_patch(model("moe"), clean, corrupt, metric, nodes, **options)


def with_a_hook():
    with model("moe").hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", lambda pattern, hook: pattern)]):
        attribute("q", exact_softmax=True)


ERRORS = {
    "no such attributions": Case(lambda: attribute()["q"], ActivationNotFound, "there are no attributions of 'q'"),
    "no such layer": Case(lambda: attribute()["z", 4], ActivationNotFound, "no attributions of 'z' in layer 4"),
    "two kinds of neurons": Case(
        lambda: attribute("post")["post"], ActivationNotFound, "the axes of 'post' differ between layers: ['layer'"
    ),
    "no steps": Case(lambda: attribute(ig_steps=0), ValueError, "ig_steps is 0"),
    "half a step": Case(
        lambda: edge_attribution_patch(model("moe"), CLEAN, CORRUPT, LAST, ig_steps=0.5), ValueError, "ig_steps is 0.5"
    ),
    "no nodes": Case(lambda: attribute([]), ValueError, 'nodes is empty; name at least one activation, such as "z"'),
    "a node that there is not": Case(lambda: attribute("zz"), HookError, 'no hook point "blocks.*.hook_zz"'),
    "an exact softmax of outputs": Case(
        lambda: attribute("z", exact_softmax=True), ValueError, 'exact_softmax applies to "q" and "k", but the nodes'
    ),
    "an exact softmax past hooks": Case(with_a_hook, ValueError, "exact_softmax computes patterns without the model's"),
    "inputs of two lengths": Case(
        lambda: attribute(corrupt=CORRUPT[:, :5]), ValueError, "prompt 0 has 11 tokens"
    ),
    "inputs padded in two ways": Case(
        lambda: attribution_patch(reading(), ["word1 word2", "word3"], ["word1", "word3 word4"], LAST), ValueError,
        "prompt 0 has 3 tokens and 0 padding positions in clean, but 2 tokens and 1 padding positions in corrupt",
    ),
    "a metric of numbers": Case(
        lambda: attribute(metric=lambda logits: jnp.float32(float(logits[0, 0, 0]))), TypeError,
        "the metric converts logits to Python or numpy numbers (float, numpy, print), so",
    ),
    "a metric without a gradient": Case(
        lambda: attribute(metric=lambda logits: logits[0, -1, 3].item()), TypeError,
        "the metric's value (float32) has no gradient with respect to the logits: it is",
    ),
    "a metric of whole numbers": Case(
        lambda: attribute(metric=lambda logits: logits[:, -1].argmax(-1)), TypeError,
        "the metric's value (int32) has no gradient with respect to the logits: it is",
    ),
    "attribution under jit": Case(
        lambda: jax.jit(lambda clean: attribute(clean=clean)["z"].values)(CLEAN), ValueError,
        "call it outside jit, grad and vmap",
    ),
    "a metric of every token": Case(
        lambda: attribute(metric=lambda logits: logits[:, :, 3]), ValueError, "the metric has shape [2, 11]"
    ),
    "no points": Case(
        lambda: integrated_gradients(model("moe"), CLEAN, LAST, CORRUPT, 0), ValueError, "steps is 0"
    ),
    "a baseline of another shape": Case(
        lambda: integrated_gradients(model("moe"), CLEAN, LAST, np.zeros((3, 11, 14), np.float32)), ValueError,
        "the baseline has shape (3, 11, 14), which does not broadcast to (2, 11, 14)",
    ),
    "a baseline of another length": Case(
        lambda: integrated_gradients(model("moe"), CLEAN, LAST, CORRUPT[:, 1:]), ValueError,
        "in input, but 10 tokens and 0 padding positions in baseline",
    ),
    "a Jacobian backwards": Case(
        lambda: residual_jacobian(model("moe"), CLEAN, 3, 1), ValueError, "to_layer is 1, before from_layer 3"
    ),
    "a Jacobian from nowhere": Case(
        lambda: residual_jacobian(model("moe"), CLEAN, from_pos=slice(5, 5)), ValueError,
        "from_pos=slice(5, 5, None) or to_pos=None selects no position",
    ),
    "a change of another shape": Case(
        lambda: residual_jacobian(model("moe"), CLEAN, 0, 1, from_pos=3).matvec(np.ones(14)), ValueError,
        "the vector has shape (14,)",
    ),
    "no such rank": Case(
        lambda: residual_jacobian(model("moe"), CLEAN, 0, from_pos=1, to_pos=2).svd(15), ValueError,
        "rank is 15",
    ),
    "places that differ": Case(
        lambda: correlation(LABELLED, LABELLED.sum("layer")), ValueError,
        "attributions have the axes {'layer': 2, 'head': 3}, but patching has {'head': 3}",
    ),
    "nothing to correlate": Case(
        lambda: correlation(LABELLED.at(layer=0), Labelled(np.ones(3), ("head",), LABELLED.labels)), ValueError,
        "attributions or effects are constant, so their correlation is undefined",
    ),
    "labels of another length": Case(
        lambda: Labelled(np.ones(2), ("head",), LABELLED.labels), ValueError, "values have shape (2,)"
    ),
    "no such place": Case(lambda: LABELLED.at(layer=2), KeyError, '"there is no layer 2'),
    "no such axis": Case(lambda: LABELLED.sum("pos"), KeyError, "there is no axis 'pos'; the axes"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS.values(), ids=ERRORS)
def test_a_mistake_is_answered_with_what_was_wanted(case):
    case.check()


def test_every_error_is_reached_by_a_case():
    assert unreached(__file__, ERRORS.values()) == []
