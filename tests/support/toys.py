"""Tiny random checkpoints in the layouts of TransformerLens's toy models, and their logits by definition in NumPy."""

import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

SIZES = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 3, "d_mlp": 20, "d_vocab": 13, "n_ctx": 9}
RUN = {"lr": 1e-3, "seed": 5, "dtype": "float32", "device": "cuda", "wandb": True, "n_params": 7, "model_name": "x",
       "init_mode": "gpt2", "use_attn_scale": True, "attention_dir": "causal", "window_size": None}  # fmt: skip
"""Settings of a training run, as they are in the config.json of a toy model."""

MINGPT = {
    "embed.W_E": "tok_emb.weight", "pos_embed.W_pos": "pos_emb", "unembed.W_U": "head.weight",
    "ln_final.w": "ln_f.weight", "ln_final.b": "ln_f.bias",
    "attn.W_Q": "attn.query.weight", "attn.b_Q": "attn.query.bias",
    "attn.W_K": "attn.key.weight", "attn.b_K": "attn.key.bias", "attn.W_V": "attn.value.weight",
    "attn.b_V": "attn.value.bias", "attn.W_O": "attn.proj.weight", "attn.b_O": "attn.proj.bias",
    "mlp.W_in": "mlp.0.weight", "mlp.b_in": "mlp.0.bias", "mlp.W_out": "mlp.2.weight", "mlp.b_out": "mlp.2.bias",
    "ln1.w": "ln1.weight", "ln1.b": "ln1.bias", "ln2.w": "ln2.weight", "ln2.b": "ln2.bias",
}  # fmt: skip


def config(**changes):
    """The config.json of a toy model."""
    fields = {**SIZES, "act_fn": "solu_ln", "attn_only": False, "normalization": "LN", "tokenizer_name": None, **RUN}
    return {name: value for name, value in (fields | changes).items() if value != "absent"}


def tensors(fields, seed=0):
    """Random weights of a toy model, by TransformerLens's names."""
    rng = np.random.default_rng(seed)
    d, n, h, m, v, c = (fields[name] for name in ("d_model", "n_heads", "d_head", "d_mlp", "d_vocab", "n_ctx"))
    shapes = {"embed.W_E": (v, d), "pos_embed.W_pos": (c, d), "unembed.W_U": (d, v), "unembed.b_U": (v,)}
    norms = {"ln_final": d}
    for block in (f"blocks.{layer}." for layer in range(fields["n_layers"])):
        shapes |= {f"{block}attn.W_{x}": (n, d, h) for x in "QKV"} | {f"{block}attn.b_{x}": (n, h) for x in "QKV"}
        shapes |= {f"{block}attn.W_O": (n, h, d), f"{block}attn.b_O": (d,)}
        norms[f"{block}ln1"] = d
        if not fields["attn_only"]:
            shapes |= {f"{block}mlp.W_in": (d, m), f"{block}mlp.b_in": (m,)}
            shapes |= {f"{block}mlp.W_out": (m, d), f"{block}mlp.b_out": (d,)}
            norms |= {f"{block}ln2": d} | ({f"{block}mlp.ln": m} if fields["act_fn"].endswith("_ln") else {})
    if fields.get("normalization", fields.get("normalization_type")) == "LN":
        shapes |= {f"{name}.{weight}": (size,) for name, size in norms.items() for weight in "wb"}
    if fields.get("final_rms"):
        shapes.pop("ln_final.b", None)
    return {
        name: (rng.normal(size=shape) * 0.6 + name.endswith(".w")).astype(np.float32) for name, shape in shapes.items()
    }


def stored(weights, layout, n_layers):
    """The tensors of a file in one of the three layouts. Masks are stored too."""
    out = {}
    for name, value in weights.items():
        block, _, rest = name.rpartition("blocks.")[2].partition(".") if name.startswith("blocks.") else ("", "", name)
        weight = name.rpartition(".")[2]
        if layout == "neel-solu-old":
            if weight.startswith("W_") and n_layers <= (8 if weight == "W_pos" else 6):
                value = np.swapaxes(value, -1, -2)
            name = "norm" + name.removeprefix("ln_final") if name.startswith("ln_final") else name.replace("ln", "norm")
        if layout == "mingpt":
            if name == "unembed.b_U":
                continue
            name = f"blocks.{block}.{MINGPT[rest]}" if block else MINGPT[rest]
            if weight in ("W_Q", "W_K", "W_V"):
                value = np.moveaxis(value, 1, 2).reshape(-1, value.shape[1])
            elif weight.startswith("b_") and value.ndim == 2:
                value = value.ravel()
            elif weight == "W_O":
                value = value.reshape(-1, value.shape[2]).T
            elif weight in ("W_in", "W_out", "W_U"):
                value = value.T
            elif weight == "W_pos":
                value = value[None]
        out[name] = np.ascontiguousarray(value)
    mask = np.tril(np.ones((9, 9), bool))[None, None] if layout == "mingpt" else np.tril(np.ones((9, 9), bool))
    return out | {f"blocks.{layer}.attn.mask": mask.copy() for layer in range(n_layers)}


def write(folder, layout="neel", file="SoLU_final.safetensors", seed=0, weights=None, **changes):
    """Writes a toy model. Returns its config.json and its weights by TransformerLens's names."""
    fields = config(**changes)
    weights = tensors(fields, seed) if weights is None else weights
    path = pathlib.Path(folder) / file
    path.parent.mkdir(parents=True, exist_ok=True)
    (pathlib.Path(folder) / "config.json").write_text(json.dumps(fields))
    save_file(stored(weights, layout, fields["n_layers"]), path)
    return fields, weights


# --- the logits, by definition


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gelu(x):
    from scipy.special import erf

    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


ACTIVATIONS = {
    "gelu": gelu, "relu": lambda x: np.maximum(x, 0), "solu": lambda x: x * softmax(x),
    "solu_ln": lambda x: x * softmax(x),
}  # fmt: skip


def norm(weights, name, x, centres=True):
    x = x - x.mean(-1, keepdims=True) if centres else x
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    return x * weights.get(f"{name}.w", 1) + weights.get(f"{name}.b", 0)


def logits(fields, weights, tokens):
    """The logits [b p v] of a toy model in float64, with the arithmetic of TransformerLens's components."""
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    get = lambda name: weights.get(name, 0)  # noqa: E731
    positions = weights["pos_embed.W_pos"][: tokens.shape[1]]
    shortformer = fields.get("shortformer_pos")
    x = weights["embed.W_E"][tokens] + (0 if shortformer else positions)
    hidden = np.triu(np.ones((tokens.shape[1],) * 2, bool), 1)
    for layer in range(fields["n_layers"]):
        name = f"blocks.{layer}."
        values = norm(weights, f"{name}ln1", x)
        moved = values + positions if shortformer else values
        inputs = {"Q": moved, "K": moved, "V": values}
        q, k, v = (
            np.einsum("bpd,ndh->bpnh", inputs[of], weights[f"{name}attn.W_{of}"]) + get(f"{name}attn.b_{of}")
            for of in "QKV"
        )
        scores = np.einsum("bqnh,bknh->bnqk", q, k) / np.sqrt(fields["d_head"])
        z = np.einsum("bnqk,bknh->bqnh", softmax(np.where(hidden, -np.inf, scores)), v)
        x = x + np.einsum("bqnh,nhd->bqd", z, weights[f"{name}attn.W_O"]) + get(f"{name}attn.b_O")
        if not fields["attn_only"]:
            pre = norm(weights, f"{name}ln2", x) @ weights[f"{name}mlp.W_in"] + get(f"{name}mlp.b_in")
            post = ACTIVATIONS[fields["act_fn"]](pre)
            post = norm(weights, f"{name}mlp.ln", post) if fields["act_fn"].endswith("_ln") else post
            x = x + post @ weights[f"{name}mlp.W_out"] + get(f"{name}mlp.b_out")
    return norm(weights, "ln_final", x, not fields.get("final_rms")) @ weights["unembed.W_U"] + get("unembed.b_U")
