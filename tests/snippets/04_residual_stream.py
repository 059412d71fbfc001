"""The residual stream, taken apart"""

# %% the stream before every layer
cache.accumulated_resid(layer=-1), cache.accumulated_resid()

# %% the stream between attention and MLP too
stack, labels = cache.accumulated_resid(incl_mid=True, return_labels=True)
stack, labels

# %% up to a layer, at one position
stack, labels = cache.accumulated_resid(layer=2, pos_slice=-1, return_labels=True)
stack, labels

# %% up to what an MLP reads
stack, labels = cache.accumulated_resid(layer=1, mlp_input=True, return_labels=True)
stack, labels

# %% the stream as the unembedding reads it
cache.accumulated_resid(layer=-1, apply_ln=True, pos_slice=-1)

# %% the stream as an earlier layer reads it @processed
cache.accumulated_resid(layer=2, apply_ln=True)

# %% the logit lens by hand
stack = cache.accumulated_resid(layer=-1, incl_mid=True, pos_slice=-1, apply_ln=True)
stack @ model.W_U + model.b_U

# %% what every layer adds
stack, labels = cache.decompose_resid(layer=-1, return_labels=True)
stack, labels

# %% what attention adds
stack, labels = cache.decompose_resid(mode="attn", return_labels=True, pos_slice=-1)
stack, labels

# %% what MLPs add, without embeddings
stack, labels = cache.decompose_resid(mode="mlp", incl_embeds=False, return_labels=True, pos_slice=(2, 5))
stack, labels

# %% what a layer and an MLP read
stack, labels = cache.decompose_resid(1, mlp_input=True, return_labels=True)
stack, labels, cache.decompose_resid(layer=2)

# %% everything, normalised @processed
cache.decompose_resid(apply_ln=True, pos_slice=-1)

# %% results of heads by computation
cache.compute_head_results()
cache["result", 1], len([name for name in cache.keys() if name.endswith("hook_result")])

# %% results of heads, stacked
stack, labels = cache.stack_head_results(layer=-1, pos_slice=-1, return_labels=True)
stack, labels

# %% results of heads of the first layers
cache.stack_head_results(2), cache.stack_head_results(layer=1, pos_slice=[0, 2])

# %% heads, and what they leave
stack, labels = cache.stack_head_results(layer=-1, incl_remainder=True, return_labels=True)
stack, labels[-2:]

# %% heads, normalised @processed
cache.stack_head_results(layer=-1, pos_slice=-1, apply_ln=True)

# %% results of neurons
cache.get_neuron_results(layer=1, neuron_slice=(0, 5), pos_slice=-1)

# %% results of single neurons
cache.get_neuron_results(0, neuron_slice=[3, 7]), cache.get_neuron_results(1, pos_slice=2).shape

# %% neurons, stacked
stack, labels = cache.stack_neuron_results(layer=-1, pos_slice=-1, return_labels=True)
stack, labels

# %% some neurons, and what they leave
stack, labels = cache.stack_neuron_results(2, neuron_slice=(0, 4), incl_remainder=True, return_labels=True)
stack, labels

# %% neurons along a direction
cache.stack_neuron_results(-1, pos_slice=-1, project_output_onto=model.W_U[:, 10])

# %% neurons along several directions, normalised @processed
cache.stack_neuron_results(-1, pos_slice=-1, apply_ln=True, project_output_onto=model.W_U[:, :3])

# %% one layer's neurons along a direction
cache.get_neuron_results(1, project_output_onto=model.W_U[:, 10] - model.W_U[:, 24])

# %% the whole decomposition
stack, labels = cache.get_full_resid_decomposition(return_labels=True)
stack, labels

# %% the whole decomposition adds up
stack = cache.get_full_resid_decomposition(expand_neurons=False)
stack.sum(0), cache["resid_post", -1]

# %% the whole decomposition with MLPs unexpanded
stack, labels = cache.get_full_resid_decomposition(expand_neurons=False, pos_slice=-1, return_labels=True)
stack, labels

# %% up to an MLP, normalised @processed
stack, labels = cache.get_full_resid_decomposition(
    1, mlp_input=True, expand_neurons=False, apply_ln=True, pos_slice=-1, return_labels=True)
stack, labels

# %% the whole decomposition along a direction
cache.get_full_resid_decomposition(pos_slice=-1, project_output_onto=model.W_U[:, 10])

# %% a stack, normalised @processed
stack = cache.decompose_resid(layer=-1)
cache.apply_ln_to_stack(stack, layer=-1), cache.apply_ln_to_stack(stack[:, :, 3], pos_slice=3)

# %% a stack as an MLP in the middle reads it @processed
stack = cache.decompose_resid(layer=1, mlp_input=True)
cache.apply_ln_to_stack(stack, layer=1, mlp_input=True)

# %% a stack of some prompts @processed
stack = cache.decompose_resid(layer=-1, pos_slice=-1)
cache.apply_ln_to_stack(stack, layer=-1, pos_slice=-1, batch_slice=[1])

# %% a stack averaged over prompts @processed
stack = cache.stack_head_results(pos_slice=-1).mean(1)
_, single = model.run_with_cache(tokens[:1], remove_batch_dim=True)
single.apply_ln_to_stack(stack, layer=-1, pos_slice=-1, has_batch_dim=False)

# %% every row normalised by itself
stack = cache.accumulated_resid(layer=-1)
cache.apply_ln_to_stack(stack, layer=-1, recompute_ln=True)

# %% direct logit attribution @processed
stack = cache.decompose_resid(layer=-1, pos_slice=-1)
cache.logit_attrs(stack, tokens=answers[:, 0], pos_slice=-1)

# %% direct attribution of a logit difference @processed
stack, labels = cache.stack_head_results(layer=-1, pos_slice=-1, return_labels=True)
cache.logit_attrs(stack, tokens=answers[:, 0], incorrect_tokens=answers[:, 1], pos_slice=-1)

# %% direct logit attribution of a word @processed
stack = cache.decompose_resid(layer=-1)
cache.logit_attrs(stack, " Mary"), cache.logit_attrs(stack, " Mary", incorrect_tokens=" John"), cache.logit_attrs(stack, 10)

# %% direct logit attribution of the next tokens @processed
stack = cache.decompose_resid(layer=-1)
cache.logit_attrs(stack[:, :, :-1], tokens[:, 1:], pos_slice=(0, -1))

# %% direct logit attribution of some prompts @processed
stack = cache.decompose_resid(layer=-1, pos_slice=-1)
cache.logit_attrs(stack, tokens=answers[1:, 0], pos_slice=-1, batch_slice=[1])

# %% direct logit attribution without a batch axis @processed
_, single = model.run_with_cache(tokens[:1], remove_batch_dim=True)
stack = single.decompose_resid(layer=-1, pos_slice=-1)
single.logit_attrs(stack, tokens=10, incorrect_tokens=24, pos_slice=-1, has_batch_dim=False)

# %% direct logit attribution on unprocessed weights @raw
stack = cache.get_full_resid_decomposition(expand_neurons=False)
cache.logit_attrs(stack, tokens=10).sum(0)
# --- definition: TransformerLens leaves the final norm's weight out, so its sum is not the logit (#523)
bias = 0 if model.ln_final.b is None else model.ln_final.b @ model.W_U[:, 10]
logits[..., 10] - model.b_U[10] - bias

# %% heads, normalised, on unprocessed weights @raw
cache.stack_head_results(layer=-1, pos_slice=-1, apply_ln=True)
# --- definition: TransformerLens leaves the norm's weight out (#523)
stack = cache.stack_head_results(layer=-1, pos_slice=-1)
centred = stack - stack.mean(-1, keepdims=True) if model.cfg.normalization_type == "LN" else stack
centred / cache["scale"][:, -1] * model.ln_final.w

# %% the residual stream by hand
resid = cache["hook_embed"] + (cache["pos_embed"] if "hook_pos_embed" in cache.keys() else 0)
for layer in range(model.cfg.n_layers):
    resid = resid + cache["attn_out", layer] + cache["mlp_out", layer]
resid, cache["resid_post", -1]

# %% contributions of heads to a logit difference, as a table @processed
directions = model.tokens_to_residual_directions(answers)
difference = directions[:, 0] - directions[:, 1]
per_head = cache.stack_head_results(layer=-1, pos_slice=-1, apply_ln=True)
table = einops.einsum(per_head, difference, "component batch d_model, batch d_model -> component") / len(difference)
einops.rearrange(table, "(layer head) -> layer head", layer=model.cfg.n_layers)

# %% contributions of layers to a logit difference @processed
directions = model.tokens_to_residual_directions(answers)
difference = directions[:, 0] - directions[:, 1]
per_layer, labels = cache.decompose_resid(layer=-1, pos_slice=-1, return_labels=True)
scaled = cache.apply_ln_to_stack(per_layer, layer=-1, pos_slice=-1)
einops.einsum(scaled, difference, "... batch d_model, batch d_model -> ...") / 2, labels

# %% in front of the first layer
cache.accumulated_resid(layer=0), cache.decompose_resid(layer=0), cache.get_full_resid_decomposition(layer=0)

# %% no heads, and what they leave
cache.stack_head_results(layer=0, incl_remainder=True)
# --- definition: TransformerLens takes the last layer's stream for what comes before the first
cache["resid_pre", 0][None]

# %% between attention and MLP of the last layers
stack, labels = cache.accumulated_resid(layer=2, incl_mid=True, mlp_input=True, return_labels=True)
stack, labels

# %% one neuron
cache.stack_neuron_results(2, neuron_slice=[5], pos_slice=-1), cache.get_neuron_results(1, neuron_slice=5, pos_slice=-1)

# %% heads without a batch axis
_, single = model.run_with_cache(tokens[:1], remove_batch_dim=True)
stack, labels = single.stack_head_results(layer=-1, pos_slice=-1, return_labels=True)
stack, len(labels), single.stack_head_results(layer=2)

# %% layers without a batch axis @processed
_, single = model.run_with_cache(tokens[0], remove_batch_dim=True)
stack = single.decompose_resid(layer=-1, pos_slice=-1, apply_ln=True)
stack @ model.W_U[:, 10], single.stack_head_results(apply_ln=True, pos_slice=(2, 4))

# %% logits of the normalised sum @processed
stack = cache.get_full_resid_decomposition(apply_ln=True, expand_neurons=False)
einops.einsum(stack, model.W_U, "component b p d, d v -> b p v") + model.b_U, logits

# %% the top contributions, in words @processed
stack, labels = cache.decompose_resid(layer=-1, pos_slice=-1, return_labels=True)
attributions = cache.logit_attrs(stack, tokens=answers[:, 0], incorrect_tokens=answers[:, 1], pos_slice=-1)
order = (-attributions.mean(1)).argsort()
[labels[int(i)] for i in order]
