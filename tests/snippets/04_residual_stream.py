"""Decomposing the residual stream"""

# %% the residual stream before every layer
cache.accumulated_resid(layer=-1), cache.accumulated_resid()

# %% the residual stream, also between attention and MLP
stack, labels = cache.accumulated_resid(incl_mid=True, return_labels=True)
stack, labels

# %% the residual stream up to a layer, at a position
stack, labels = cache.accumulated_resid(layer=2, pos_slice=-1, return_labels=True)
stack, labels

# %% the residual stream up to the input of an MLP
stack, labels = cache.accumulated_resid(layer=1, mlp_input=True, return_labels=True)
stack, labels

# %% the residual stream, normalized for the unembedding
cache.accumulated_resid(layer=-1, apply_ln=True, pos_slice=-1)

# %% the residual stream, normalized for a layer @processed
cache.accumulated_resid(layer=2, apply_ln=True)

# %% the logit lens by hand
stack = cache.accumulated_resid(layer=-1, incl_mid=True, pos_slice=-1, apply_ln=True)
stack @ model.W_U + model.b_U

# %% the outputs of all layers
stack, labels = cache.decompose_resid(layer=-1, return_labels=True)
stack, labels

# %% the outputs of attention
stack, labels = cache.decompose_resid(mode="attn", return_labels=True, pos_slice=-1)
stack, labels

# %% the outputs of MLPs, without embeddings
stack, labels = cache.decompose_resid(mode="mlp", incl_embeds=False, return_labels=True, pos_slice=(2, 5))
stack, labels

# %% components of the input of an MLP and of a layer
stack, labels = cache.decompose_resid(1, mlp_input=True, return_labels=True)
stack, labels, cache.decompose_resid(layer=2)

# %% all components, normalized @processed
cache.decompose_resid(apply_ln=True, pos_slice=-1)

# %% computing head results
cache.compute_head_results()
cache["result", 1], len([name for name in cache.keys() if name.endswith("hook_result")])

# %% stacked head results
stack, labels = cache.stack_head_results(layer=-1, pos_slice=-1, return_labels=True)
stack, labels

# %% head results of the first layers
cache.stack_head_results(2), cache.stack_head_results(layer=1, pos_slice=[0, 2])

# %% heads and the remainder
stack, labels = cache.stack_head_results(layer=-1, incl_remainder=True, return_labels=True)
stack, labels[-2:]

# %% normalized head results @processed
cache.stack_head_results(layer=-1, pos_slice=-1, apply_ln=True)

# %% neuron results
cache.get_neuron_results(layer=1, neuron_slice=(0, 5), pos_slice=-1)

# %% results of selected neurons
cache.get_neuron_results(0, neuron_slice=[3, 7]), cache.get_neuron_results(1, pos_slice=2).shape

# %% stacked neuron results
stack, labels = cache.stack_neuron_results(layer=-1, pos_slice=-1, return_labels=True)
stack, labels

# %% some neurons and the remainder
stack, labels = cache.stack_neuron_results(2, neuron_slice=(0, 4), incl_remainder=True, return_labels=True)
stack, labels

# %% neuron results projected onto a direction
cache.stack_neuron_results(-1, pos_slice=-1, project_output_onto=model.W_U[:, 10])

# %% normalized neuron results projected onto several directions @processed
cache.stack_neuron_results(-1, pos_slice=-1, apply_ln=True, project_output_onto=model.W_U[:, :3])

# %% neuron results of a layer, projected onto a direction
cache.get_neuron_results(1, project_output_onto=model.W_U[:, 10] - model.W_U[:, 24])

# %% the full decomposition
stack, labels = cache.get_full_resid_decomposition(return_labels=True)
stack, labels

# %% the sum of the full decomposition
stack = cache.get_full_resid_decomposition(expand_neurons=False)
stack.sum(0), cache["resid_post", -1]

# %% the full decomposition with MLPs instead of neurons
stack, labels = cache.get_full_resid_decomposition(expand_neurons=False, pos_slice=-1, return_labels=True)
stack, labels

# %% the full decomposition up to an MLP, normalized @processed
stack, labels = cache.get_full_resid_decomposition(
    1, mlp_input=True, expand_neurons=False, apply_ln=True, pos_slice=-1, return_labels=True)
stack, labels

# %% the full decomposition projected onto a direction
cache.get_full_resid_decomposition(pos_slice=-1, project_output_onto=model.W_U[:, 10])

# %% normalizing a stack @processed
stack = cache.decompose_resid(layer=-1)
cache.apply_ln_to_stack(stack, layer=-1), cache.apply_ln_to_stack(stack[:, :, 3], pos_slice=3)

# %% normalizing a stack for an MLP @processed
stack = cache.decompose_resid(layer=1, mlp_input=True)
cache.apply_ln_to_stack(stack, layer=1, mlp_input=True)

# %% normalizing a stack of selected prompts @processed
stack = cache.decompose_resid(layer=-1, pos_slice=-1)
cache.apply_ln_to_stack(stack, layer=-1, pos_slice=-1, batch_slice=[1])

# %% normalizing a stack averaged over prompts @processed
stack = cache.stack_head_results(pos_slice=-1).mean(1)
_, single = model.run_with_cache(tokens[:1], remove_batch_dim=True)
single.apply_ln_to_stack(stack, layer=-1, pos_slice=-1, has_batch_dim=False)

# %% normalizing each row with its recomputed scale
stack = cache.accumulated_resid(layer=-1)
cache.apply_ln_to_stack(stack, layer=-1, recompute_ln=True)

# %% direct logit attribution @processed
stack = cache.decompose_resid(layer=-1, pos_slice=-1)
cache.logit_attrs(stack, tokens=answers[:, 0], pos_slice=-1)

# %% direct logit attribution of a logit difference @processed
stack, labels = cache.stack_head_results(layer=-1, pos_slice=-1, return_labels=True)
cache.logit_attrs(stack, tokens=answers[:, 0], incorrect_tokens=answers[:, 1], pos_slice=-1)

# %% direct logit attribution of a word @processed
stack = cache.decompose_resid(layer=-1)
cache.logit_attrs(stack, " Mary"), cache.logit_attrs(stack, " Mary", incorrect_tokens=" John"), cache.logit_attrs(stack, 10)

# %% direct logit attribution of the next tokens @processed
stack = cache.decompose_resid(layer=-1)
cache.logit_attrs(stack[:, :, :-1], tokens[:, 1:], pos_slice=(0, -1))

# %% direct logit attribution of selected prompts @processed
stack = cache.decompose_resid(layer=-1, pos_slice=-1)
cache.logit_attrs(stack, tokens=answers[1:, 0], pos_slice=-1, batch_slice=[1])

# %% direct logit attribution without a batch axis @processed
_, single = model.run_with_cache(tokens[:1], remove_batch_dim=True)
stack = single.decompose_resid(layer=-1, pos_slice=-1)
single.logit_attrs(stack, tokens=10, incorrect_tokens=24, pos_slice=-1, has_batch_dim=False)

# %% direct logit attribution with raw weights @raw
stack = cache.get_full_resid_decomposition(expand_neurons=False)
cache.logit_attrs(stack, tokens=10).sum(0)
# --- definition: TransformerLens omits the weight of the final norm, so the sum is not the logit (issue 523)
bias = 0 if model.ln_final.b is None else model.ln_final.b @ model.W_U[:, 10]
logits[..., 10] - model.b_U[10] - bias

# %% normalized head results with raw weights @raw
cache.stack_head_results(layer=-1, pos_slice=-1, apply_ln=True)
# --- definition: TransformerLens omits the weight of the norm (issue 523)
stack = cache.stack_head_results(layer=-1, pos_slice=-1)
centered = stack - stack.mean(-1, keepdims=True) if model.cfg.normalization_type == "LN" else stack
centered / cache["scale"][:, -1] * model.ln_final.w

# %% the residual stream as a sum of outputs
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

# %% components before layer 0
cache.accumulated_resid(layer=0), cache.decompose_resid(layer=0), cache.get_full_resid_decomposition(layer=0)

# %% head results before layer 0, and the remainder
cache.stack_head_results(layer=0, incl_remainder=True)
# --- definition: For `layer=0`, TransformerLens returns the residual stream after the last layer
cache["resid_pre", 0][None]

# %% the residual stream up to an MLP, also between attention and MLP
stack, labels = cache.accumulated_resid(layer=2, incl_mid=True, mlp_input=True, return_labels=True)
stack, labels

# %% the results of a single neuron
cache.stack_neuron_results(2, neuron_slice=[5], pos_slice=-1), cache.get_neuron_results(1, neuron_slice=5, pos_slice=-1)

# %% head results without a batch axis
_, single = model.run_with_cache(tokens[:1], remove_batch_dim=True)
stack, labels = single.stack_head_results(layer=-1, pos_slice=-1, return_labels=True)
stack, len(labels), single.stack_head_results(layer=2)

# %% layer outputs without a batch axis @processed
_, single = model.run_with_cache(tokens[0], remove_batch_dim=True)
stack = single.decompose_resid(layer=-1, pos_slice=-1, apply_ln=True)
stack @ model.W_U[:, 10], single.stack_head_results(apply_ln=True, pos_slice=(2, 4))

# %% logits from the normalized decomposition @processed
stack = cache.get_full_resid_decomposition(apply_ln=True, expand_neurons=False)
einops.einsum(stack, model.W_U, "component b p d, d v -> b p v") + model.b_U, logits

# %% labels of components, sorted by contribution @processed
stack, labels = cache.decompose_resid(layer=-1, pos_slice=-1, return_labels=True)
attributions = cache.logit_attrs(stack, tokens=answers[:, 0], incorrect_tokens=answers[:, 1], pos_slice=-1)
order = (-attributions.mean(1)).argsort()
[labels[int(i)] for i in order]
