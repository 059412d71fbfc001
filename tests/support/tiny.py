"""Tiny random checkpoints, written to disk by transformers, and the logits that transformers computes from them.

Sizes are odd on purpose (families/common.py), norms and biases are random, and weights are large enough for attention
to be far from uniform: a mistake anywhere moves the logits.
"""

import pathlib

import numpy as np
import torch
import transformers
from families import SIZES

from jaxlens.checkpoints.families import family_of
from jaxlens.checkpoints.rules.wrappers import WRAPPERS


def write_checkpoint(
    folder: pathlib.Path, model_type: str, seed: int = 0, dtype: str = "float32", shard: str = "5GB",
    spread: float = 1.0, kind: str = "ForCausalLM", **fields,
) -> pathlib.Path:  # fmt: skip
    """A folder with config.json and random safetensors, as transformers' `save_pretrained` writes them.

    `spread` is the standard deviation of what has a row for every token: logits spread by √d_model times that. `kind`
    is the end of the class's name: "" for a base model, "ForSequenceClassification", …
    """
    config = transformers.CONFIG_MAPPING[model_type](
        **{**SIZES[model_type], "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, **fields}
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"AutoModel{kind}").from_config(config).to(getattr(torch, dtype))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                values = (1 if parameter.abs().sum() else 0) + 0.3 * values
            elif parameter.shape[0] != config.get_text_config().vocab_size:
                values = values * 1.5 / parameter.shape[1] ** 0.5
            else:
                values = values * spread
            parameter.copy_(values)
        for buffer in (model.get_buffer(name) for name in model.state_dict() if name in dict(model.named_buffers())):
            if buffer.is_floating_point() and not buffer.any():  # a weight that no gradient trains
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def hf_logits(folder: pathlib.Path, tokens: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
    """transformers' float32 logits [b p v]."""
    kind = transformers.AutoConfig.from_pretrained(folder).model_type
    reference = "eager" if kind in WRAPPERS else family_of(kind).reference
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=reference
    ).eval()
    mask = None if attention_mask is None else torch.tensor(attention_mask)
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens), attention_mask=mask, use_cache=False).logits.numpy()


def random_tokens(seed: int, length: int = 40, batch: int = 2, vocabulary: int = 61) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocabulary, (batch, length))
