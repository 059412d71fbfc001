"""Under which key jit finds a program: what a trace may read of a model, by value, and nothing else."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from support.models import CONFIGS, model, randomised, tokens
from test_models import close
from tokenizers import models, pre_tokenizers

from jaxlens import Config, HookedTransformer, Tokenizer

CFG = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=4, n_ctx=8)
ROWS = np.array([[0, 0, 1, 2], [0, 1, 2, 1]])


def words(vocabulary=("<s>", "the", "cat", "?")) -> Tokenizer:
    """A new tokenizer that splits text at spaces."""
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(backend, bos_token="<s>")


class Counted:
    """A jitted forward, and how often it was traced."""

    def __init__(self):
        self.traces = 0
        self.run = jax.jit(self._forward)

    def _forward(self, model, given=None):
        self.traces += 1
        return model("the cat" if given is None else given)


def test_a_changed_padding_side_is_seen():
    the_model, program = HookedTransformer(CFG, words()), Counted()
    right = program.run(the_model, ROWS)
    close(right, the_model(ROWS))
    the_model.tokenizer.padding_side = "left"
    left = program.run(the_model, ROWS)
    close(left, the_model(ROWS))
    assert not np.allclose(left, right)
    the_model.tokenizer.padding_side = "right"
    close(program.run(the_model, ROWS), right)
    assert program.traces == 2


def test_equal_models_share_a_program():
    program = Counted()
    for seed in range(3):
        one = HookedTransformer(CFG, words(), seed=0)
        one = one.with_params({name: w * (1 + seed / 8) for name, w in one.params.items()})
        close(program.run(one, ROWS), one(ROWS))
    assert program.traces == 1


@pytest.mark.parametrize(
    "other",
    [
        lambda: HookedTransformer(CFG, words(("<s>", "cat", "the", "?"))), lambda: HookedTransformer(CFG, None),
        lambda: HookedTransformer(CFG, words(), name="another"),
        lambda: HookedTransformer(CFG.replace(default_prepend_bos=False), words()),
    ],
)  # fmt: skip
def test_models_that_a_trace_can_tell_apart_share_none(other):
    program = Counted()
    program.run(HookedTransformer(CFG, words()), ROWS)
    program.run(other(), ROWS)
    assert program.traces == 2


def test_text_in_a_jitted_function_is_that_of_each_model():
    program = Counted()
    for vocabulary in (("<s>", "the", "cat", "?"), ("<s>", "cat", "the", "?")):
        the_model = HookedTransformer(CFG, words(vocabulary), seed=0)
        close(program.run(the_model), the_model("the cat"))


def test_a_program_keeps_no_context_of_a_hook_point():
    class Kept:
        """An object that a weak reference can point to."""

    the_model, kept = randomised(CONFIGS["llama"]), Kept()
    reference = weakref.ref(kept)
    the_model.hook_dict["hook_embed"].ctx["kept"] = kept
    run = jax.jit(lambda model, given: model(given))
    run(the_model, tokens(1, 5))
    hooks = [("blocks.1.attn.hook_z", lambda z, hook: z * 2)]
    jax.grad(lambda model: model.run_with_hooks(tokens(1, 5), return_type="loss", fwd_hooks=hooks))(the_model)
    del the_model, kept
    gc.collect()
    assert reference() is None


def test_a_traced_model_has_the_contexts_of_its_hook_points():
    the_model = model("llama")
    the_model.hook_dict["hook_embed"].ctx["seen"] = 3
    seen = jax.jit(lambda model: jnp.array(model.hook_dict["hook_embed"].ctx["seen"]))(the_model)
    the_model.clear_contexts()
    assert int(seen) == 3
