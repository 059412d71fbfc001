# %% [markdown]
# # Bring your own model
#
# **How does a checkpoint get into jaxlens, how do you know that it is computed correctly, and how does it get out?**
#
# The checkpoint of this notebook is a small folder in the format of Hugging Face, which a cell writes. Yours is the
# folder in which you trained a model, or a name on the hub. The conversion needs no torch. The comparison with
# transformers does, and is skipped if torch is not installed.

# %%
import importlib.util
import json
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from jaxlens import HookedTransformer, plot
from jaxlens.checkpoints import export
from jaxlens.checkpoints.inspector import look
from jaxlens.errors import CheckpointError

work = Path(tempfile.mkdtemp())
has_torch = all(importlib.util.find_spec(package) for package in ("torch", "transformers"))

# %% [markdown]
# ## A folder in the format of Hugging Face
#
# It has a config.json and a safetensors file, here of a Llama with random weights. Two query heads share each
# key/value head. Linear layers are stored as [out, in].


# %%
def write_checkpoint(folder, n_layers=3, d_model=32, d_mlp=80, d_vocab=50, n_heads=4, n_key_value_heads=2, **fields):
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": d_model,
        "intermediate_size": d_mlp, "num_hidden_layers": n_layers, "num_attention_heads": n_heads,
        "num_key_value_heads": n_key_value_heads, "vocab_size": d_vocab, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, **fields,
    }  # fmt: skip
    d_key_value = d_model // n_heads * n_key_value_heads
    linear = {
        "self_attn.q_proj": (d_model, d_model), "self_attn.k_proj": (d_key_value, d_model),
        "self_attn.v_proj": (d_key_value, d_model), "self_attn.o_proj": (d_model, d_model),
        "mlp.gate_proj": (d_mlp, d_model), "mlp.up_proj": (d_mlp, d_model), "mlp.down_proj": (d_model, d_mlp),
    }  # fmt: skip
    shapes = {"model.embed_tokens": (d_vocab, d_model), "model.norm": (d_model,), "lm_head": (d_vocab, d_model)}
    for layer in range(n_layers):
        norms = dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (d_model,))
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in (linear | norms).items()}
    random = np.random.default_rng(0)
    tensors = {}
    for name, shape in shapes.items():
        values = random.normal(size=shape) / shape[-1] ** 0.5 + (len(shape) == 1)  # norms are near 1
        tensors[f"{name}.weight"] = values.astype(np.float32)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


checkpoint = write_checkpoint(work / "mine")
print(sorted(path.name for path in checkpoint.iterdir()))

# %% [markdown]
# ## Look before you load
#
# `look` reads config.json and the headers of the tensors, and no weights. It is `jaxlens inspect` on the command line.

# %%
inspected = look(checkpoint)
print(inspected.checkpoint.cfg)
assert inspected.loads

# %% [markdown]
# A config.json with a field that jaxlens does not read is an error, because the model would otherwise be computed
# without it, and be wrong in silence. The same holds for tensors that nothing uses.

# %%
try:
    HookedTransformer.from_pretrained(write_checkpoint(work / "other", attention_window_of_mine=8))
except CheckpointError as error:
    print(str(error).replace(str(work), "…"))
else:
    raise AssertionError("an unknown field was ignored")

# %% [markdown]
# ## Load
#
# `from_pretrained_no_processing` keeps every weight as it is stored, so that the model can be exported again.
# `from_pretrained` folds norms and centers weights, as in TransformerLens. Both make the same predictions.

# %%
model = HookedTransformer.from_pretrained_no_processing(checkpoint)
processed = HookedTransformer.from_pretrained(checkpoint)
tokens = jnp.arange(24).reshape(2, 12) * 7 % 50
centered, of_processed = (each(tokens) - each(tokens).mean(-1, keepdims=True) for each in (model, processed))
error = float(jnp.abs(centered - of_processed).max() / jnp.abs(centered).max())
print(f"logits of raw and processed weights differ by {error:.0e} of the largest, after centering")
assert error < 1e-5

_, cache = model.run_with_cache(tokens)
plot.attention_patterns(cache, [str(token) for token in tokens[0].tolist()], layer=1, batch_idx=0)

# %% [markdown]
# ## Verify
#
# `verify` compares the residual stream before each layer, and the logits, with those of transformers in float32. On the
# command line it is `jaxlens verify FOLDER`. Run it once for every model that you bring.

# %%
if has_torch:
    from jaxlens.model.verify import verify

    result = verify(checkpoint)
    for entry in (*result.residuals, result.logits):
        print(f"{entry.name:24} differs by {entry.relative:.0e} of the largest value")
    assert result.passed and result.logits.relative < 1e-5
else:
    print("torch is not installed; with it, run: jaxlens verify", checkpoint)

# %% [markdown]
# ## Edit a weight
#
# The edit is a rank-one change of one matrix, as in ROME (Meng et al. 2022). The *key* is what the neurons of the last
# MLP hold at the end of a prompt, and the change adds a *value* to the output for this key: the direction that
# separates the wanted token from the present answer. So `W_out` gets the outer product of key and value.

# %%
layer, prompt, wanted = 2, tokens[:1], 3
_, cache = model.run_with_cache(prompt, names_filter=f"blocks.{layer}.mlp.hook_post")
key = cache["post", layer][0, -1]
present = int(model(prompt)[0, -1].argmax())
value = 40 * (model.W_U[:, wanted] - model.W_U[:, present]) / jnp.linalg.norm(model.W_U[:, wanted])
change = jnp.outer(key, value) / (key @ key)

weights = model.params["blocks.*.mlp.W_out"]  # [layer, d_mlp, d_model]
edited = model.with_params(model.params | {"blocks.*.mlp.W_out": weights.at[layer].add(change)})
answer = int(edited(prompt)[0, -1].argmax())
print(f"after the prompt comes {present}; in the edited model {answer}")
assert present != wanted and answer == wanted

# %% [markdown]
# The change has rank one, but other activations overlap with the key. How often does the answer change elsewhere?

# %%
others = jnp.asarray(np.random.default_rng(1).integers(0, 50, (200, 12)))
changed = float((edited(others)[:, -1].argmax(-1) != model(others)[:, -1].argmax(-1)).mean())
to_wanted = float((edited(others)[:, -1].argmax(-1) == wanted).mean())
print(f"{changed:.0%} of 200 random prompts have another answer, {to_wanted:.0%} the wanted one")
assert changed < 0.75

# %% [markdown]
# ## Export
#
# The edited model becomes a folder for transformers. `model.source` is the config.json that it came with. All tensors
# but the edited one are equal to those of the checkpoint, bit for bit. On the command line, `jaxlens export` does this
# for a folder that `model.save` wrote.

# %%
exported = export(work / "edited", edited.cfg, edited.params, edited.source, tokenizer=edited.tokenizer)
before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, exported))
different = [name for name in before if not np.array_equal(before[name], after[name])]
print("changed:", different)
assert before.keys() == after.keys() and different == [f"model.layers.{layer}.mlp.down_proj.weight"]

singular = np.linalg.svd(after[different[0]] - before[different[0]], compute_uv=False)
plot.bars(singular[:8], [str(number) for number in range(1, 9)], title="Singular values of the change: rank one")

# %% [markdown]
# ## Run it in transformers

# %%
if has_torch:
    import torch
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(exported, attn_implementation="eager").eval()
    with torch.inference_mode():
        their_logits = theirs(torch.tensor(np.array(tokens))).logits.numpy()
    ours = np.asarray(edited(tokens))
    error = np.abs(their_logits - ours).max() / np.abs(ours).max()
    print(f"answer in transformers: {their_logits[0, -1].argmax()}; logits differ by {error:.0e} of the largest")
    assert their_logits[0, -1].argmax() == wanted and error < 1e-5
else:
    print(f'with torch: AutoModelForCausalLM.from_pretrained("{exported}")')

# %% [markdown]
# ## Try this next
#
# - Put your own folder in place of `checkpoint`. [docs/models.md](../docs/models.md) lists the architectures, and
#   [docs/files.md](../docs/files.md) the files: PyTorch files, GGUF, quantized weights and LoRA adapters load the same
#   way.
# - Make the edit more precise: replace the key by `C⁻¹ key`, with the covariance C of `mlp.hook_post` on many prompts.
# - `model.save(folder)` keeps processed weights too. `HookedTransformer.from_pretrained(folder)` loads them.
# - Is your architecture missing? [CONTRIBUTING.md](../CONTRIBUTING.md) adds a family in one file.
