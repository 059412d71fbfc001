"""A PyTorch model of the same shape for comparison: Hugging Face's implementation in float32."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxlens import Config
from jaxlens.checkpoints.gguf.file import smollm2_path

THREADS = 2


def build(cfg: Config, tokens: np.ndarray, attention: str = "eager") -> dict[str, Callable[[int], Any]]:
    """The forward and the loss gradient of the PyTorch model. If it cannot run, prints the reason and returns {}.

    `attention` is the name of an attention implementation of transformers, such as "eager" or "sdpa".
    """
    model = llama(cfg, attention)
    if model is None:
        return {}
    import torch

    inputs = torch.tensor(tokens, device=model.device)
    on_gpu = model.device.type == "cuda"

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


def llama(cfg: Config, attention: str) -> Any:
    """The PyTorch model with random weights. If it cannot run, prints the reason and returns None."""
    try:
        import torch
        import transformers
    except ImportError as error:
        print(f"no comparison with PyTorch: {error}")
        return None
    on_gpu = jax.default_backend() == "gpu"
    if on_gpu and not torch.cuda.is_available():
        print("no comparison with PyTorch: JAX runs on a GPU, and this PyTorch is built without CUDA")
        return None
    torch.set_num_threads(THREADS)
    config = transformers.LlamaConfig(**_fields(cfg), attn_implementation=attention)
    return transformers.LlamaForCausalLM(config).eval().to("cuda" if on_gpu else "cpu")


def pretrained(attention: str) -> Any:
    """The PyTorch model with the weights of SmolLM2, read from the same file as ours."""
    import torch
    import transformers

    path = smollm2_path()
    torch.set_num_threads(THREADS)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation=attention
    )
    return model.eval().to("cuda" if jax.default_backend() == "gpu" else "cpu")


def generate(model: Any, tokens: np.ndarray, n_new: int, mask: np.ndarray | None = None) -> np.ndarray:
    """The `n_new` likeliest next tokens of every row, one after the other. No token ends a row early."""
    import torch

    inputs = torch.tensor(tokens, device=model.device)
    mask = torch.ones_like(inputs) if mask is None else torch.tensor(mask, device=model.device)
    lengths = {"max_new_tokens": n_new, "min_new_tokens": n_new}
    with torch.inference_mode():
        result = model.generate(
            inputs, attention_mask=mask, do_sample=False, eos_token_id=None, pad_token_id=0, **lengths
        )
    return result[:, tokens.shape[1] :].cpu().numpy()


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
