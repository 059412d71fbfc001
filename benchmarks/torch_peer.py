"""A PyTorch model of the same shape for comparison: Hugging Face's implementation in float32."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxlens import Config

THREADS = 2


def build(cfg: Config, tokens: np.ndarray, attention: str = "eager") -> dict[str, Callable[[int], Any]]:
    """The forward and the loss gradient of the PyTorch model. If it cannot run, prints the reason and returns {}.

    `attention` is the name of an attention implementation of transformers, such as "eager" or "sdpa".
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        print(f"no comparison with PyTorch: {error}")
        return {}
    on_gpu = jax.default_backend() == "gpu"
    if on_gpu and not torch.cuda.is_available():
        print("no comparison with PyTorch: JAX runs on a GPU, and this PyTorch is built without CUDA")
        return {}
    torch.set_num_threads(THREADS)
    config = transformers.LlamaConfig(**_fields(cfg), attn_implementation=attention)
    model = transformers.LlamaForCausalLM(config).eval().to("cuda" if on_gpu else "cpu")
    inputs = torch.tensor(tokens, device=model.device)

    def forward(call: int) -> None:
        with torch.inference_mode():
            model(input_ids=inputs, use_cache=False)
        if on_gpu:
            torch.cuda.synchronize()

    def gradient(call: int) -> None:
        model.zero_grad(set_to_none=True)
        model(input_ids=inputs, labels=inputs, use_cache=False).loss.backward()
        if on_gpu:
            torch.cuda.synchronize()

    return {"forward": forward, "gradient": gradient}


def _fields(cfg: Config) -> dict[str, Any]:
    return {
        "vocab_size": cfg.d_vocab,
        "hidden_size": cfg.d_model,
        "intermediate_size": cfg.d_mlp,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_key_value_heads,
        "head_dim": cfg.d_head,
        "max_position_embeddings": cfg.n_ctx,
        "rms_norm_eps": cfg.eps,
        "tie_word_embeddings": cfg.tie_word_embeddings,
    }
