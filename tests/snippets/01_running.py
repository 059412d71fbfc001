"""Running a model"""

# %% logits
model(tokens)

# %% logits from the method `forward`
model.forward(tokens, return_type="logits")

# %% the mean loss
model(tokens, return_type="loss")

# %% the loss per token
model(tokens, return_type="loss", loss_per_token=True)

# %% logits and loss
both = model(tokens, return_type="both")
both.logits[:, -1], both.loss

# %% unpacking logits and loss
logits, loss = model(tokens, return_type="both", loss_per_token=True)
logits[0, :3], loss

# %% no return value
model(tokens, return_type=None)

# %% a prompt without a batch axis
model(tokens[0])

# %% positional arguments
model(tokens, "loss", True)

# %% stopping at a layer gives the residual stream
model(tokens, stop_at_layer=2)

# %% stopping before the last layer, with a negative index
model(tokens, stop_at_layer=-1)

# %% starting at a layer
resid = model(tokens, stop_at_layer=1)
model(resid, start_at_layer=1)

# %% starting at a layer and stopping at a later layer
resid = model(tokens, stop_at_layer=1)
model(resid, start_at_layer=1, stop_at_layer=2)

# %% the loss of a run that starts at a layer
resid = model(tokens, stop_at_layer=2)
model(resid, start_at_layer=2, tokens=tokens, return_type="loss")

# %% the cache of a run that starts at a layer
resid = model(tokens, stop_at_layer=2)
_, late = model.run_with_cache(resid, start_at_layer=2)
list(late.keys())

# %% the cache of a run that stops at a layer
resid, early = model.run_with_cache(tokens, stop_at_layer=1)
resid, list(early.keys())

# %% logits from the residual stream before layer 0
logits = model(cache["resid_pre", 0], start_at_layer=0)
logits[:, -1]

# %% an attention mask for padding on the left
mask = tokens != 0
model(tokens, attention_mask=mask)[:, 1:]

# %% the loss of given logits
model.loss_fn(logits, tokens), model.loss_fn(logits, tokens, per_token=True)

# %% the cross-entropy loss of logits
from transformer_lens.utils import lm_cross_entropy_loss

lm_cross_entropy_loss(logits, tokens), lm_cross_entropy_loss(logits, tokens, per_token=True)

# %% the accuracy of the most likely token
from transformer_lens.utils import lm_accuracy

lm_accuracy(logits, tokens), lm_accuracy(logits, tokens, per_token=True)

# %% evaluation mode
model.eval()
model(tokens, return_type="loss")

# %% a model on the CPU
model.cpu()(tokens)

# %% a model moved to the device of its config
model.to(model.cfg.device)(tokens)

# %% the logits of a text
model("When John and Mary went to the shops")

# %% a padded batch of texts
model(["When John and Mary went to the store", "Then Tom had a drink"])[:, :5]

# %% the loss of a text
model("When John and Mary went to the shops", return_type="loss")

# %% text without BOS
model("John gave a bag to Mary", prepend_bos=False)

# %% padding on the left
model(["When John and Mary went to the store", "Then Tom had a drink"], padding_side="left")[:, -1]

# %% logits and loss of a text
both = model("When John and Mary went", return_type="both")
both.logits, both.loss

# %% the loss of given logits, with a mask
mask = tokens != 9
model.loss_fn(logits, tokens, attention_mask=mask), model.loss_fn(logits, tokens, mask, per_token=True)

# %% hooks and the loss per token
hooks = [("blocks.1.hook_mlp_out", lambda value, hook: value * 0)]
model.run_with_hooks(tokens, return_type="loss", loss_per_token=True, fwd_hooks=hooks)

# %% hooks in a run that stops at a layer
hooks = [("blocks.0.hook_resid_post", lambda value, hook: value * 2)]
model.run_with_hooks(tokens, stop_at_layer=2, fwd_hooks=hooks)

# %% hooks in a run that starts at a layer
hooks = [("blocks.2.hook_attn_out", lambda value, hook: value * 2)]
model.run_with_hooks(cache["resid_pre", 2], start_at_layer=2, fwd_hooks=hooks)

# %% the residual stream before layer 0
residual, found_tokens, shortformer_pos_embed, mask = model.input_to_embed(tokens)
residual, found_tokens, shortformer_pos_embed, mask

# %% a copy of a model
import copy

twin = copy.deepcopy(model)
twin.add_hook("hook_embed", lambda value, hook: value * 0)
model(tokens, return_type="loss"), twin(tokens, return_type="loss")

# %% `zero_grad`, `requires_grad_` and `train`
model.zero_grad()
model.requires_grad_(False)
model.train()
model(tokens, return_type="loss"), model.eval() is model

# %% the loss of padded texts
model(["When John and Mary went to the store", "Then Tom had a drink"], return_type="loss")
# --- definition: TransformerLens includes the predictions of padding on the right
texts = ["When John and Mary went to the store", "Then Tom had a drink"]
each = [model(text, return_type="loss", loss_per_token=True).sum() for text in texts]
sum(each) / sum(len(model.to_str_tokens(text)) - 1 for text in texts)
