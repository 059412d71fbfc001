"""Tiny random checkpoints, written to disk by transformers, and the logits that transformers computes from them.

Sizes are odd on purpose (heads not a power of two, heads wider than the residual stream, three query heads to a key
head), norms and biases are random, and weights are large enough for attention to be far from uniform: a mistake
anywhere moves the logits.
"""

import pathlib

import numpy as np
import torch
import transformers

WINDOW = 7
"""Shorter than every test sequence."""

_LLAMA = {
    "vocab_size": 61,
    "hidden_size": 36,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
_GEMMA = {**_LLAMA, "query_pre_attn_scalar": 10, "sliding_window": WINDOW}
_VISION = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}

SIZES = {
    "gpt2": {"vocab_size": 61, "n_embd": 30, "n_layer": 3, "n_head": 6, "n_positions": 64},
    "gpt_neo": {
        "vocab_size": 61,
        "hidden_size": 30,
        "num_layers": 3,
        "num_heads": 6,
        "max_position_embeddings": 64,
        "attention_types": [[["global", "local"], 1], [["local"], 1]],
        "window_size": WINDOW,
    },
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "sliding_window": WINDOW},
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": {**_GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {**_GEMMA, "num_hidden_layers": 4, "sliding_window_pattern": 3},
    "gemma3": {"text_config": {**_GEMMA, "num_hidden_layers": 4}, "vision_config": _VISION, "mm_tokens_per_image": 4},
}
"""A config of every `model_type`, to which the fields of a test are added."""


def write_checkpoint(
    folder: pathlib.Path, model_type: str, seed: int = 0, dtype: str = "float32", shard: str = "5GB", **fields
) -> pathlib.Path:
    """A folder with config.json and random safetensors, as transformers' `save_pretrained` writes them."""
    config = transformers.CONFIG_MAPPING[model_type](
        **{**SIZES[model_type], "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, **fields}
    )
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                values = (1 if parameter.abs().sum() else 0) + 0.3 * values
            elif parameter.shape[0] != config.get_text_config().vocab_size:
                values = values * 1.5 / parameter.shape[1] ** 0.5
            parameter.copy_(values)
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def hf_logits(folder: pathlib.Path, tokens: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
    """transformers' float32 eager logits [b p v]."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    mask = None if attention_mask is None else torch.tensor(attention_mask)
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens), attention_mask=mask, use_cache=False).logits.numpy()


def random_tokens(seed: int, length: int = 40, batch: int = 2, vocabulary: int = 61) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocabulary, (batch, length))
