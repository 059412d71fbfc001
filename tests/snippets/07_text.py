"""Text and tokens"""

# %% tokens of a text
model.to_tokens("When John and Mary went to the store")

# %% tokens without BOS
model.to_tokens("John gave a bag", prepend_bos=False)

# %% tokens of several texts
model.to_tokens(["When John and Mary went", "Then Tom"])

# %% padding on the left
model.to_tokens(["When John and Mary went", "Then Tom"], padding_side="left")

# %% tokens as strings
model.to_str_tokens("When John and Mary went")

# %% tokens as strings, without BOS
model.to_str_tokens("When John and Mary went", prepend_bos=False)

# %% strings of tokens
model.to_str_tokens(tokens[0]), model.to_str_tokens(tokens[:1])

# %% strings of several texts
model.to_str_tokens(["When John", "Then Tom had a drink"])

# %% the text of tokens
model.to_string(tokens[0]), model.to_string(tokens), model.to_string([3, 4, 5])

# %% the text of one token
model.to_string(5), model.to_string(tokens[0, 1])

# %% a single token
model.to_single_token(" Mary"), model.to_single_str_token(6)

# %% where a token stands
model.get_token_position(" Mary", "When John and Mary went to the store")

# %% where a token stands last
text = "Then John and Mary gave John a bag"
first, last = (model.get_token_position(" John", text, mode=mode) for mode in ("first", "last"))
first, last, model.get_token_position(" John", text, prepend_bos=False), model.get_token_position(4, model.to_tokens(text))

# %% a batch of answers
names = [(" Mary", " John"), (" Tom", " Mary")]
torch.tensor([[model.to_single_token(name) for name in pair] for pair in names])
# --- jaxlens
names = [(" Mary", " John"), (" Tom", " Mary")]
jnp.array([[model.to_single_token(name) for name in pair] for pair in names])

# %% directions of tokens
(model.tokens_to_residual_directions(" Mary"), model.tokens_to_residual_directions(6),
 model.tokens_to_residual_directions(tokens), model.tokens_to_residual_directions(answers[:, 0]))

# %% the tokenizer
model.tokenizer.bos_token_id, model.tokenizer.pad_token_id, model.tokenizer.padding_side, model.tokenizer.bos_token

# %% the tokenizer decodes
model.tokenizer.decode([3, 4, 5]), model.tokenizer.batch_decode([[3, 4], [5, 6]])

# %% the best guesses
top = logits[0, -1].topk(3).indices
[model.to_single_str_token(int(token)) for token in top]
# --- jaxlens
_, top = jax.lax.top_k(logits[0, -1], 3)
[model.to_single_str_token(int(token)) for token in top]

# %% a prompt tried out
from transformer_lens.utils import test_prompt

test_prompt("When John and Mary went to the store", " John", model, top_k=3)

# %% logits as a table
from transformer_lens.utilities import logits_to_df

logits_to_df(logits[0, -1], model.tokenizer, top_k=4)

# %% the most likely next token, greedily
from transformer_lens.utils import sample_logits

sample_logits(logits[:, -1], temperature=0.0)

# %% sampling one of one
from transformer_lens.utils import sample_logits

sample_logits(logits[:, -1], top_k=1, temperature=0.7), sample_logits(logits[:, -1], top_p=0.001)

# %% sampling with a penalty on what was said
from transformer_lens.utils import sample_logits

sample_logits(logits[:, -1], temperature=1e-4, freq_penalty=2.0, tokens=tokens)

# %% which positions are padding
from transformer_lens.utils import get_attention_mask

padded = model.to_tokens(["When John and Mary went", "Then Tom"])
get_attention_mask(model.tokenizer, padded, prepend_bos=True)

# %% defaults overridden for a while
from transformer_lens.utils import USE_DEFAULT_VALUE, LocallyOverridenDefaults

with LocallyOverridenDefaults(model, prepend_bos=False, padding_side="left"):
    inside = model.to_tokens(["When John and Mary", "Then"], prepend_bos=USE_DEFAULT_VALUE)
inside, model.to_tokens(["When John and Mary", "Then"])
# --- jaxlens
inside = model.to_tokens(["When John and Mary", "Then"], prepend_bos=False, padding_side="left")
inside, model.to_tokens(["When John and Mary", "Then"])

# %% a tokenizer given to a model
tokenizer = model.tokenizer
model.set_tokenizer(tokenizer, default_padding_side="left")
model.to_tokens(["When John and Mary went", "Then Tom"])

# %% tokens by position of the arguments
model.to_tokens(["When John", "Then"], False, "left", True, False)

# %% the tokenizer called
model.tokenizer("When John and Mary")["input_ids"]

# %% the tokenizer encodes
model.tokenizer.encode("When John"), model.tokenizer.encode("When John", add_special_tokens=False)
# --- jaxlens
model.tokenizer.encode("When John", add_special_tokens=True), model.tokenizer.encode("When John")

# %% where a token stands among tokens
model.get_token_position(" Mary", tokens[1]), model.get_token_position(6, tokens[1:])

# %% tokens of words
model.tokenizer.convert_ids_to_tokens([3, 4]), model.tokenizer.vocab_size, model.tokenizer.get_vocab()["ĠJohn"]

# %% BOS put in front or taken off
from transformer_lens.utils import get_input_with_manually_prepended_bos, get_tokens_with_bos_removed

(get_input_with_manually_prepended_bos("<s>", "When"), get_input_with_manually_prepended_bos("<s>", ["a", "b"]),
 get_tokens_with_bos_removed(model.tokenizer, tokens))

# %% nested attributes and defaults
from transformer_lens.utils import get_nested_attr, override_or_use_default_value

get_nested_attr(model, "cfg.d_model"), override_or_use_default_value(True), override_or_use_default_value(True, False)

# %% indirect objects
from transformer_lens.evals import IOIDataset

dataset = IOIDataset(
    model.tokenizer, templates=["Then [A] and [B] went to the [LOCATION]. [B] gave a [OBJECT] to [A]"],
    names=["John", "Mary", "Tom"], nouns={"[LOCATION]": ["store", "shops"], "[OBJECT]": ["bag", "drink"]},
    num_samples=4, seed=3)
[item["prompt"] for item in dataset], [item["IO"] for item in dataset]
# --- definition: TransformerLens puts a second BOS in front of a prompt, and one in front of a name
([model.to_tokens(sample["text"])[0] for sample in dataset.samples],
 [model.to_tokens(sample["IO"], prepend_bos=False)[0] for sample in dataset.samples])

# %% indirect objects, drawn by a seed
from transformer_lens.evals import IOIDataset

dataset = IOIDataset(
    model.tokenizer, templates=["Then [A] and [B] went to the [LOCATION]. [B] gave a [OBJECT] to [A]"],
    names=["John", "Mary", "Tom"], nouns={"[LOCATION]": ["store", "shops"], "[OBJECT]": ["bag", "drink"]},
    num_samples=4, symmetric=True, seed=5)
len(dataset), dataset.samples
