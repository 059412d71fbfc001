"""Arrays: where torch and JAX differ"""

# %% reduction along an axis
cache["pattern", 0].mean(dim=1), cache["resid_post", 1].sum(dim=(0, 1))
# --- jaxlens
cache["pattern", 0].mean(axis=1), cache["resid_post", 1].sum(axis=(0, 1))

# %% reduction with a positional axis argument
cache["pattern", 0].mean(1), cache["resid_post", 1].sum(1)

# %% reduction that keeps the axis
cache["mlp_out", 1].mean(dim=1, keepdim=True)
# --- jaxlens
cache["mlp_out", 1].mean(axis=1, keepdims=True)

# %% the maximum and its index
values, indices = logits.max(dim=-1)
values, indices
# --- jaxlens
logits.max(axis=-1), logits.argmax(axis=-1)

# %% the k largest values
values, indices = logits[:, -1].topk(5)
values, indices
# --- jaxlens
jax.lax.top_k(logits[:, -1], 5)

# %% sorting in descending order
logits[0, -1].sort(descending=True).values, logits[0, -1].argsort(descending=True)
# --- jaxlens
jnp.sort(logits[0, -1], descending=True), jnp.argsort(logits[0, -1], descending=True)

# %% softmax
logits.softmax(-1), logits.log_softmax(-1), torch.nn.functional.softmax(logits, dim=-1)
# --- jaxlens
jax.nn.softmax(logits), jax.nn.log_softmax(logits), jax.nn.softmax(logits, axis=-1)

# %% norms
cache["resid_post", 1].norm(dim=-1), model.W_U.norm(dim=0)
# --- jaxlens
jnp.linalg.norm(cache["resid_post", 1], axis=-1), jnp.linalg.norm(model.W_U, axis=0)

# %% standard deviation: torch divides by n - 1
cache["resid_post", 1].std(dim=-1), cache["resid_post", 1].var(dim=-1, unbiased=False)
# --- jaxlens
cache["resid_post", 1].std(axis=-1, ddof=1), cache["resid_post", 1].var(axis=-1)

# %% swapping two axes
model.W_Q.transpose(-1, -2), model.W_U.T, model.W_K.mT
# --- jaxlens
model.W_Q.swapaxes(-1, -2), model.W_U.T, model.W_K.mT

# %% permuting axes
cache["q", 0].permute(0, 2, 1, 3)
# --- jaxlens
cache["q", 0].transpose(0, 2, 1, 3)

# %% adding and removing an axis
logits.unsqueeze(0), logits[:, None], logits[:1].squeeze(0), logits[:1].squeeze()
# --- jaxlens
logits[None], logits[:, None], logits[:1].squeeze(0), logits[:1].squeeze()

# %% shapes
logits.shape, logits.size(0), logits.ndim, logits.numel(), len(logits)
# --- jaxlens
logits.shape, logits.shape[0], logits.ndim, logits.size, len(logits)

# %% reshaping
cache["z", 1].reshape(2, 7, -1), cache["z", 1].flatten(), logits.view(-1)
# --- jaxlens
cache["z", 1].reshape(2, 7, -1), cache["z", 1].flatten(), logits.reshape(-1)

# %% conversion to numbers and lists
loss = model(tokens, return_type="loss")
loss.item(), float(loss), tokens[0].tolist()

# %% conversion to NumPy
logits.detach().cpu().numpy()
# --- jaxlens
np.asarray(logits)

# %% a copy
logits.clone().detach()
# --- jaxlens
logits.copy()

# %% conversion to a dtype
logits.long(), (logits > 0).float(), logits.to(torch.float16).dtype == torch.float16
# --- jaxlens
logits.astype(int), (logits > 0).astype(float), logits.astype(jnp.float16).dtype == jnp.float16

# %% stacking and concatenating
torch.stack([cache["q", 0], cache["q", 1]]), torch.cat([cache["embed"], cache["resid_post", 0]], dim=1)
# --- jaxlens
jnp.stack([cache["q", 0], cache["q", 1]]), jnp.concatenate([cache["embed"], cache["resid_post", 0]], axis=1)

# %% new arrays
torch.zeros(2, 3), torch.ones(3), torch.zeros_like(logits), torch.arange(5), torch.eye(3), torch.tensor([1.0, 2.0])
# --- jaxlens
jnp.zeros((2, 3)), jnp.ones(3), jnp.zeros_like(logits), jnp.arange(5), jnp.eye(3), jnp.array([1.0, 2.0])

# %% triangular matrices
torch.tril(torch.ones(4, 4)), torch.triu(torch.ones(4, 4), diagonal=1).bool()
# --- jaxlens
jnp.tril(jnp.ones((4, 4))), jnp.triu(jnp.ones((4, 4)), k=1).astype(bool)

# %% selecting by a condition
torch.where(logits > 0, logits, torch.tensor(0.0)), logits.clamp(min=-1, max=1), logits.abs(), logits.relu()
# --- jaxlens
jnp.where(logits > 0, logits, 0.0), logits.clip(-1, 1), abs(logits), jax.nn.relu(logits)

# %% masking
mask = torch.ones(7, 7).tril().bool()
cache["attn_scores", 0].masked_fill(~mask, 0.0)
# --- jaxlens
mask = jnp.tril(jnp.ones((7, 7), bool))
jnp.where(mask, cache["attn_scores", 0], 0.0)

# %% indexing with lists
logits[[0, 1], [-1, -1], [10, 24]]
# --- jaxlens
logits[np.array([0, 1]), np.array([-1, -1]), np.array([10, 24])]

# %% gathering along an axis
logits[:, -1].gather(-1, answers)
# --- jaxlens
jnp.take_along_axis(logits[:, -1], answers, -1)

# %% setting entries
result = torch.zeros(3, 4)
result[1] = 5.0
result[2, 1:3] += 1.0
result
# --- jaxlens
result = jnp.zeros((3, 4))
result = result.at[1].set(5.0)
result = result.at[2, 1:3].add(1.0)
result

# %% einsum
torch.einsum("bpd,dv->bpv", cache["resid_post", 1], model.W_U)
# --- jaxlens
jnp.einsum("bpd,dv->bpv", cache["resid_post", 1], model.W_U)

# %% einops
einops.rearrange(cache["z", 0], "b p n h -> b n p h"), einops.reduce(cache["pattern", 1], "b n d s -> n", "mean")

# %% einsum with named axes
einops.einsum(cache["z", 1], model.W_O[1], "batch pos head d_head, head d_head d_model -> batch pos head d_model")

# %% the singular values of a weight
torch.linalg.svd(model.W_out[0], full_matrices=False)[1], torch.svd(model.W_out[0]).S
# --- jaxlens
jnp.linalg.svd(model.W_out[0], full_matrices=False)[1], jnp.linalg.svd(model.W_out[0], compute_uv=False)

# %% a run without gradients
with torch.no_grad():
    logits = model(tokens)
logits
# --- jaxlens
logits = model(tokens)
logits

# %% the gradient of a weight
loss = model(tokens, return_type="loss")
loss.backward()
model.unembed.W_U.grad, model.blocks[1].mlp.W_in.grad
# --- jaxlens
def loss(params):
    return model.with_params(params)(tokens, return_type="loss")

gradients = jax.grad(loss)(model.params)
gradients["unembed.W_U"], gradients["blocks.*.mlp.W_in"][1]

# %% a training step @gpt2
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model(tokens, return_type="loss").backward()
optimizer.step()
model(tokens, return_type="loss")
# --- jaxlens
import optax

optimizer = optax.sgd(0.1)
gradients = jax.grad(lambda params: model.with_params(params)(tokens, return_type="loss"))(model.params)
updates, _ = optimizer.update(gradients, optimizer.init(model.params))
model = model.with_params(optax.apply_updates(model.params, updates))
model(tokens, return_type="loss")

# %% the gradient of the residual stream
resid = model(tokens, stop_at_layer=1).detach().requires_grad_()
model(resid, start_at_layer=1)[0, -1, 10].backward()
resid.grad
# --- jaxlens
resid = model(tokens, stop_at_layer=1)
jax.grad(lambda resid: model(resid, start_at_layer=1)[0, -1, 10])(resid)

# %% a training run @gpt2 @raw
from transformer_lens.train import HookedTransformerTrainConfig, train

dataset = [{"tokens": row} for row in repeated_tokens]
config = HookedTransformerTrainConfig(
    num_epochs=3, batch_size=2, lr=0.05, optimizer_name="SGD", momentum=0.5, max_grad_norm=1.0, weight_decay=0.1,
    warmup_steps=2, print_every=None, device="cpu")
train(model, config, dataset)(repeated_tokens, return_type="loss")

# %% a training run with Adam @gpt2 @raw
from transformer_lens import train

dataset = [{"tokens": row} for row in repeated_tokens]
config = train.HookedTransformerTrainConfig(
    num_epochs=2, batch_size=2, lr=0.01, weight_decay=0.01, print_every=None, device="cpu")
train.train(model, config, dataset)(repeated_tokens, return_type="loss")
