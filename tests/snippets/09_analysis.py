"""Analyses"""

# %% attention to the previous token
[cache["pattern", layer].diagonal(-1, -2, -1).mean((0, -1)) for layer in range(model.cfg.n_layers)]

# %% attention to the current and the first token
[einops.reduce(pattern[..., 0], "batch head dest -> head", "mean") for pattern in (cache["pattern", 0], cache["pattern", 2])]

# %% induction scores
_, cache = model.run_with_cache(repeated_tokens)
[cache["pattern", layer].diagonal(-7, -2, -1).mean((0, -1)) for layer in range(model.cfg.n_layers)]

# %% induction scores from a hook
from transformer_lens import utils

scores = np.zeros((model.cfg.n_layers, model.cfg.n_heads))

def score(pattern, hook):
    stripe = pattern.diagonal(1 - 8, -2, -1)
    scores[hook.layer()] = utils.to_numpy(einops.reduce(stripe, "batch head position -> head", "mean"))

model.run_with_hooks(repeated_tokens, return_type=None, fwd_hooks=[(lambda name: name.endswith("pattern"), score)])
scores

# %% induction scores with keyword arguments
_, cache = model.run_with_cache(repeated_tokens)
cache["pattern", 1].diagonal(dim1=-2, dim2=-1, offset=-7).mean(dim=(0, -1))
# --- jaxlens
_, cache = model.run_with_cache(repeated_tokens)
cache["pattern", 1].diagonal(axis1=-2, axis2=-1, offset=-7).mean(axis=(0, -1))

# %% loss on the second half of repeated tokens
per_token = model(repeated_tokens, return_type="loss", loss_per_token=True)
per_token[:, :8].mean(), per_token[:, 8:].mean()

# %% detecting previous-token heads
from transformer_lens.head_detector import detect_head

detect_head(model, "When John and Mary went to the store", "previous_token_head")

# %% detecting duplicate-token heads
from transformer_lens.head_detector import detect_head

detect_head(model, "Then John and Mary gave John and Mary a bag", "duplicate_token_head")

# %% detecting induction heads
from transformer_lens.head_detector import detect_head

text = "Then John and Mary gave John and Mary a bag"
detect_head(model, text, "induction_head"), detect_head(model, text, "induction_head", error_measure="abs")

# %% detecting heads in several texts
from transformer_lens.head_detector import detect_head

texts = ["When John and Mary went to the store", "Then Tom had a drink of the bag"]
detect_head(model, texts, "previous_token_head")

# %% detecting heads without the current token
from transformer_lens.head_detector import detect_head

text = "When John and Mary went to the store"
detect_head(model, text, "previous_token_head", exclude_bos=True, exclude_current_token=True, error_measure="mul")

# %% detection scores of selected heads
from transformer_lens.head_detector import detect_head

text = "When John and Mary went to the store"
detect_head(model, text, "previous_token_head", heads=[(0, 1), (2, 0)]), detect_head(model, text, "previous_token_head", heads={1: [0, 2]})

# %% a custom detection pattern
from transformer_lens.head_detector import detect_head

text = "When John and Mary went to the store"
n = len(model.to_str_tokens(text))
detect_head(model, text, torch.eye(n))
# --- jaxlens
from jaxlens.head_detector import detect_head

text = "When John and Mary went to the store"
n = len(model.to_str_tokens(text))
detect_head(model, text, jnp.eye(n))

# %% detection patterns
from transformer_lens.head_detector import (
    get_duplicate_token_head_detection_pattern, get_induction_head_detection_pattern,
    get_previous_token_head_detection_pattern)

text = model.to_tokens("Then John and Mary gave John a bag")
(get_previous_token_head_detection_pattern(text), get_duplicate_token_head_detection_pattern(text),
 get_induction_head_detection_pattern(text))

# %% similarity to a detection pattern
from transformer_lens.head_detector import (
    compute_head_attention_similarity_score, get_previous_token_head_detection_pattern)

expected = get_previous_token_head_detection_pattern(tokens[:1])
(compute_head_attention_similarity_score(cache["pattern", 0][0, 1], expected, exclude_bos=False,
                                         exclude_current_token=False, error_measure="mul"),
 compute_head_attention_similarity_score(cache["pattern", 0][0, 1], expected, exclude_bos=True,
                                         exclude_current_token=True, error_measure="abs"))

# %% singular vectors of an OV circuit @gpt2
from transformer_lens import SVDInterpreter

svd = SVDInterpreter(model)
abs(svd.get_singular_vectors("OV", layer_index=1, num_vectors=3, head_index=0))

# %% singular vectors of an MLP
from transformer_lens.SVDInterpreter import SVDInterpreter

svd = SVDInterpreter(model)
abs(svd.get_singular_vectors("w_out", 0, num_vectors=1)), abs(svd.get_singular_vectors("w_in", 2, num_vectors=1))

# %% the logit lens
stack, labels = cache.accumulated_resid(layer=-1, incl_mid=False, pos_slice=-1, apply_ln=True, return_labels=True)
lens = einops.einsum(stack, model.W_U, "layer batch d, d v -> layer batch v") + model.b_U
lens.argmax(-1), lens[:, 0, 10] - lens[:, 0, 24], labels

# %% logits from the final residual stream
stream = cache["resid_post", -1]
model.unembed(model.ln_final(stream)), logits

# %% calling the final norm
model.ln_final(cache["resid_post", 0])

# %% calling a layer
model.blocks[1](cache["resid_pre", 1])

# %% calling an MLP
block = model.blocks[1]
block.mlp(block.ln2(cache["resid_mid", 1])), cache["mlp_out", 1]

# %% calling the embedding
model.embed(tokens)

# %% ablating each head @in_place
baseline = model(tokens, return_type="loss")
change = np.zeros((3, model.cfg.n_heads))
for layer in range(3):
    for head in range(model.cfg.n_heads):
        def ablate(z, hook):
            z[:, :, head] = 0
            return z
        hooks = [(f"blocks.{layer}.attn.hook_z", ablate)]
        change[layer, head] = model.run_with_hooks(tokens, return_type="loss", fwd_hooks=hooks) - baseline
change
# --- jaxlens
baseline = model(tokens, return_type="loss")
change = np.zeros((3, model.cfg.n_heads))
for layer in range(3):
    for head in range(model.cfg.n_heads):
        def ablate(z, hook):
            return z.at[:, :, head].set(0)
        hooks = [(f"blocks.{layer}.attn.hook_z", ablate)]
        change[layer, head] = model.run_with_hooks(tokens, return_type="loss", fwd_hooks=hooks) - baseline
change

# %% ablating the attention of each layer
names = [f"blocks.{layer}.hook_attn_out" for layer in range(3)]
[model.run_with_hooks(tokens, return_type="loss", fwd_hooks=[(name, lambda value, hook: value * 0)]) for name in names]

# %% resample ablation with the other prompt
model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: z.flip(0))])
# --- jaxlens
model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: jnp.flip(z, 0))])

# %% steering with the difference of two prompts
_, first = model.run_with_cache(tokens[:1], names_filter="blocks.1.hook_resid_pre")
_, second = model.run_with_cache(tokens[1:], names_filter="blocks.1.hook_resid_pre")
vector = first["resid_pre", 1][0, -1] - second["resid_pre", 1][0, -1]
model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_pre", lambda resid, hook: resid + 3.0 * vector)])

# %% projecting a direction out
direction = model.W_U[:, 10] / (model.W_U[:, 10] ** 2).sum() ** 0.5

def without(resid, hook):
    along = einops.einsum(resid, direction, "... d, d -> ...")
    return resid - along[..., None] * direction

model.run_with_hooks(tokens, fwd_hooks=[(lambda name: name.endswith("resid_post"), without)])

# %% freezing attention patterns
hooks = [(lambda name: name.endswith("hook_pattern"), lambda pattern, hook: cache[hook.name])]
model.run_with_hooks(corrupted_tokens, fwd_hooks=hooks)

# %% attention scores from queries and keys @gpt2
q, k = cache["q", 1], cache["k", 1]
einops.einsum(q, k, "b dest n h, b src n h -> b n dest src") / model.cfg.d_head**0.5

# %% values weighted by attention @gpt2
pattern, v = cache["pattern", 1], cache["v", 1]
einops.einsum(pattern, v, "b n dest src, b src n h -> b dest n h"), cache["z", 1]

# %% the contribution of every source position
pattern, v = cache["pattern", 2], cache["v", 2]
v = einops.repeat(v, "b src k h -> b src (k g) h", g=model.cfg.n_heads // v.shape[2])
einops.einsum(pattern[:, :, -1], v, model.W_O[2], "b n src, b src n h, n h d -> b n src d")

# %% active neurons
neurons = cache["post", 1]
neurons[0, -1].argmax(-1), (neurons > 0).sum()

# %% the log-probability of each next token
log_probs = logits.log_softmax(dim=-1)
log_probs[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
# --- jaxlens
log_probs = jax.nn.log_softmax(logits, axis=-1)
jnp.take_along_axis(log_probs[:, :-1], tokens[:, 1:, None], -1)[..., 0]

# %% the rank of an answer
(logits[:, -1] > logits[:, -1, 10:11]).sum(-1)

# %% KL divergence between two runs
p = logits[:, -1].log_softmax(-1)
q = model(corrupted_tokens)[:, -1].log_softmax(-1)
(p.exp() * (p - q)).sum(-1)
# --- jaxlens
p = jax.nn.log_softmax(logits[:, -1])
q = jax.nn.log_softmax(model(corrupted_tokens)[:, -1])
(jnp.exp(p) * (p - q)).sum(-1)

# %% a sanity check of the loss
from transformer_lens.evals import sanity_check

sanity_check(model)

# %% evaluation functions
from transformer_lens import evals

callable(evals.induction_loss), callable(evals.ioi_eval), callable(evals.sanity_check)

# %% shape utilities
from transformer_lens import utils

(utils.remove_batch_dim(logits[:1]).shape, utils.transpose(model.W_U).shape, utils.is_square(model.W_E),
 utils.is_lower_triangular(cache["pattern", 0][0, 0]), utils.get_corner(logits, 2))

# %% slices
from transformer_lens.utils import Slice

x = np.arange(20).reshape(4, 5)
(Slice(1).apply(x), Slice((1, 4)).apply(x, dim=1), Slice([0, 2]).apply(x), Slice(None).apply(x), Slice((0, 4, 2)).indices(4))

# %% SoLU and GELU
from transformer_lens.utils import gelu_fast, gelu_new, solu

x = logits[0, -1]
gelu_new(x), gelu_fast(x), solu(x)

# %% repeating along a head axis
from transformer_lens.utils import repeat_along_head_dimension

repeat_along_head_dimension(cache["resid_pre", 0], n_heads=2)

# %% cumulative sums and positions
from transformer_lens.utils import get_cumsum_along_dim, get_offset_position_ids

mask = (tokens != 0) * 1
get_cumsum_along_dim(mask, dim=1), get_cumsum_along_dim(mask, 1, reverse=True), get_offset_position_ids(0, mask)

# %% filtering a dictionary by a prefix
from transformer_lens.utils import filter_dict_by_prefix

sorted(filter_dict_by_prefix(model.state_dict(), "blocks.0.attn")["W_Q"].shape)

# %% types for annotations
from transformer_lens import ActivationCache, HookedTransformer
from transformer_lens.hook_points import HookPoint

def hook(value, hook: HookPoint):
    assert isinstance(hook, HookPoint)
    return value

isinstance(model, HookedTransformer), isinstance(cache, ActivationCache), model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", hook)])

# %% common imports
from transformer_lens import (
    ActivationCache, FactoredMatrix, HookedTransformer, HookedTransformerConfig, SVDInterpreter, evals, head_detector,
    patching, utils)
from transformer_lens.ActivationCache import ActivationCache
from transformer_lens.HookedTransformer import HookedTransformer
from transformer_lens.hook_points import HookedRootModule, HookPoint
from transformer_lens.utilities import get_act_name, to_numpy

callable(get_act_name)

# %% `Slice.unwrap`
from transformer_lens.utils import Slice

Slice.unwrap(3).indices(7), Slice.unwrap((1, 4)).indices(7), Slice.unwrap(Slice(2)).mode

# %% inner products of position embeddings @gpt2
gram = model.W_pos @ model.W_pos.T
gram[:6, :6]

# %% the logit difference of each prompt
last = logits[:, -1]
(last[:, 10] - last[:, 24]).tolist()

# %% attention from the last position to the names
einops.reduce(cache["pattern", 2][:, :, -1, [1, 3]], "batch head name -> head", "mean")
# --- jaxlens
einops.reduce(cache["pattern", 2][:, :, -1, np.array([1, 3])], "batch head name -> head", "mean")

# %% entropy of attention
pattern = cache["pattern", 1]
-(pattern * (pattern + 1e-9).log()).sum(-1)
# --- jaxlens
pattern = cache["pattern", 1]
-(pattern * jnp.log(pattern + 1e-9)).sum(-1)

# %% projecting the residual stream onto a direction
direction = (model.W_E[4] - model.W_E[6]) / ((model.W_E[4] - model.W_E[6]) ** 2).sum() ** 0.5
[cache["resid_post", layer] @ direction for layer in range(3)]

# %% attention weighted by value norms
norms = cache["v", 1].norm(dim=-1)
norms = norms.repeat_interleave(model.cfg.n_heads // norms.shape[-1], dim=-1)
einops.einsum(cache["pattern", 1], norms, "b n dest src, b src n -> b n dest src")
# --- jaxlens
norms = jnp.linalg.norm(cache["v", 1], axis=-1)
norms = jnp.repeat(norms, model.cfg.n_heads // norms.shape[-1], axis=-1)
einops.einsum(cache["pattern", 1], norms, "b n dest src, b src n -> b n dest src")
