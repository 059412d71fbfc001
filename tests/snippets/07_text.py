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

# %% token ids as strings
model.to_str_tokens(tokens[0]), model.to_str_tokens(tokens[:1])

# %% tokens of several texts as strings
model.to_str_tokens(["When John", "Then Tom had a drink"])

# %% the text of token ids
model.to_string(tokens[0]), model.to_string(tokens), model.to_string([3, 4, 5])

# %% the text of a token id
model.to_string(5), model.to_string(tokens[0, 1])

# %% a single token
model.to_single_token(" Mary"), model.to_single_str_token(6)

# %% the first position of a token
model.get_token_position(" Mary", "When John and Mary went to the store")

# %% the first and last position of a token
text = "Then John and Mary gave John a bag"
first, last = (model.get_token_position(" John", text, mode=mode) for mode in ("first", "last"))
first, last, model.get_token_position(" John", text, prepend_bos=False), model.get_token_position(4, model.to_tokens(text))

# %% a batch of answers
names = [(" Mary", " John"), (" Tom", " Mary")]
torch.tensor([[model.to_single_token(name) for name in pair] for pair in names])
# --- jaxlens
names = [(" Mary", " John"), (" Tom", " Mary")]
jnp.array([[model.to_single_token(name) for name in pair] for pair in names])

# %% residual directions of tokens
(model.tokens_to_residual_directions(" Mary"), model.tokens_to_residual_directions(6),
 model.tokens_to_residual_directions(tokens), model.tokens_to_residual_directions(answers[:, 0]))

# %% attributes of the tokenizer
model.tokenizer.bos_token_id, model.tokenizer.pad_token_id, model.tokenizer.padding_side, model.tokenizer.bos_token

# %% decoding with the tokenizer
model.tokenizer.decode([3, 4, 5]), model.tokenizer.batch_decode([[3, 4], [5, 6]])

# %% the most likely next tokens
top = logits[0, -1].topk(3).indices
[model.to_single_str_token(int(token)) for token in top]
# --- jaxlens
_, top = jax.lax.top_k(logits[0, -1], 3)
[model.to_single_str_token(int(token)) for token in top]

# %% testing a prompt
from transformer_lens.utils import test_prompt

test_prompt("When John and Mary went to the store", " John", model, top_k=3)

# %% logits as a table
from transformer_lens.utilities import logits_to_df

logits_to_df(logits[0, -1], model.tokenizer, top_k=4)

# %% greedy sampling
from transformer_lens.utils import sample_logits

sample_logits(logits[:, -1], temperature=0.0)

# %% sampling from a single token
from transformer_lens.utils import sample_logits

sample_logits(logits[:, -1], top_k=1, temperature=0.7), sample_logits(logits[:, -1], top_p=0.001)

# %% sampling with a frequency penalty
from transformer_lens.utils import sample_logits

sample_logits(logits[:, -1], temperature=1e-4, freq_penalty=2.0, tokens=tokens)

# %% the attention mask of padded tokens
from transformer_lens.utils import get_attention_mask

padded = model.to_tokens(["When John and Mary went", "Then Tom"])
get_attention_mask(model.tokenizer, padded, prepend_bos=True)

# %% temporary defaults
from transformer_lens.utils import USE_DEFAULT_VALUE, LocallyOverridenDefaults

with LocallyOverridenDefaults(model, prepend_bos=False, padding_side="left"):
    inside = model.to_tokens(["When John and Mary", "Then"], prepend_bos=USE_DEFAULT_VALUE)
inside, model.to_tokens(["When John and Mary", "Then"])
# --- jaxlens
inside = model.to_tokens(["When John and Mary", "Then"], prepend_bos=False, padding_side="left")
inside, model.to_tokens(["When John and Mary", "Then"])

# %% setting the tokenizer of a model
tokenizer = model.tokenizer
model.set_tokenizer(tokenizer, default_padding_side="left")
model.to_tokens(["When John and Mary went", "Then Tom"])

# %% `to_tokens` with positional arguments
model.to_tokens(["When John", "Then"], False, "left", True, False)

# %% calling the tokenizer
model.tokenizer("When John and Mary")["input_ids"]

# %% encoding with the tokenizer
model.tokenizer.encode("When John"), model.tokenizer.encode("When John", add_special_tokens=False)
# --- jaxlens
model.tokenizer.encode("When John", add_special_tokens=True), model.tokenizer.encode("When John")

# %% the position of a token in token ids
model.get_token_position(" Mary", tokens[1]), model.get_token_position(6, tokens[1:])

# %% the vocabulary of the tokenizer
model.tokenizer.convert_ids_to_tokens([3, 4]), model.tokenizer.vocab_size, model.tokenizer.get_vocab()["ĠJohn"]

# %% adding and removing BOS
from transformer_lens.utils import get_input_with_manually_prepended_bos, get_tokens_with_bos_removed

(get_input_with_manually_prepended_bos("<s>", "When"), get_input_with_manually_prepended_bos("<s>", ["a", "b"]),
 get_tokens_with_bos_removed(model.tokenizer, tokens))

# %% nested attributes and defaults
from transformer_lens.utils import get_nested_attr, override_or_use_default_value

get_nested_attr(model, "cfg.d_model"), override_or_use_default_value(True), override_or_use_default_value(True, False)

# %% an IOI dataset
from transformer_lens.evals import IOIDataset

dataset = IOIDataset(
    model.tokenizer, templates=["Then [A] and [B] went to the [LOCATION]. [B] gave a [OBJECT] to [A]"],
    names=["John", "Mary", "Tom"], nouns={"[LOCATION]": ["store", "shops"], "[OBJECT]": ["bag", "drink"]},
    num_samples=4, seed=3)
[item["prompt"] for item in dataset], [item["IO"] for item in dataset]
# --- definition: TransformerLens prepends a second BOS to each prompt, and a BOS to each name
([model.to_tokens(sample["text"])[0] for sample in dataset.samples],
 [model.to_tokens(sample["IO"], prepend_bos=False)[0] for sample in dataset.samples])

# %% an IOI dataset with a seed
from transformer_lens.evals import IOIDataset

dataset = IOIDataset(
    model.tokenizer, templates=["Then [A] and [B] went to the [LOCATION]. [B] gave a [OBJECT] to [A]"],
    names=["John", "Mary", "Tom"], nouns={"[LOCATION]": ["store", "shops"], "[OBJECT]": ["bag", "drink"]},
    num_samples=4, symmetric=True, seed=5)
len(dataset), dataset.samples
