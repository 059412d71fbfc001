"""The helper functions of TransformerLens's `utils` and `utilities`, defined here or imported from other modules.

Helpers that fill a torch tensor in place or move it between devices have no counterpart. The error for such a name
contains the JAX alternative (`absent.py`).
"""

import copy
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxlens._jax import from_torch, is_torch_tensor
from jaxlens.analysis.prompt_test import test_prompt as test_prompt
from jaxlens.errors import require
from jaxlens.hooks.names import get_act_name as get_act_name
from jaxlens.hooks.slice import Slice as Slice
from jaxlens.hooks.slice import SliceInput as SliceInput
from jaxlens.model.generation.sampling import sample_logits as sample_logits
from jaxlens.model.loss import lm_accuracy as lm_accuracy
from jaxlens.model.loss import lm_cross_entropy_loss as lm_cross_entropy_loss
from jaxlens.nn.mlp import ACTIVATION_FUNCTIONS, tanh_gelu
from jaxlens.nn.mlp import gelu_fast as gelu_fast
from jaxlens.nn.mlp import solu as solu
from jaxlens.text.tokenizer import Tokenizer
from jaxlens.training.data import get_dataset as get_dataset
from jaxlens.training.data import keep_single_column as keep_single_column
from jaxlens.training.data import tokenize_and_concatenate as tokenize_and_concatenate
from jaxlens.transformer_lens.absent import no_attribute
from jaxlens.transformer_lens.helpers import (  # noqa: F401
    CACHE_DIR,
    batch_addmm,
    complex_attn_linear,
    get_hf_token,
    get_rotary_pct_from_config,
    select_compatible_kwargs,
    simple_attn_linear,
    vanilla_addmm,
    xielu,
)
from jaxlens.weights.factored_matrix import FactoredMatrix
from jaxlens.weights.factored_matrix import composition_scores as composition_scores

ActivationFunction = Callable[[Array], Array]
SUPPORTED_ACTIVATIONS = ACTIVATION_FUNCTIONS
gelu_new = gelu_pytorch_tanh = tanh_gelu

# --- arrays


def to_numpy(tensor: Any) -> Any:
    """Converts an array, a torch tensor, a number, a string or a list to a numpy array. bfloat16 becomes float32.

    The values of a dict are converted one by one.

    Raises:
        TypeError: `tensor` has another type.
    """
    if isinstance(tensor, Mapping):
        return {name: to_numpy(value) for name, value in tensor.items()}
    if is_torch_tensor(tensor):
        tensor = from_torch(tensor)
    if isinstance(tensor, nnx.Variable):
        tensor = tensor.get_value()
    if isinstance(tensor, jax.Array | np.ndarray) and tensor.dtype == jnp.bfloat16:
        return np.asarray(tensor.astype(jnp.float32))
    if isinstance(tensor, jax.Array):
        return np.asarray(tensor)
    if isinstance(tensor, np.ndarray | np.generic | list | tuple | int | float | bool | str):
        return np.asarray(tensor)
    raise TypeError(f"tensor is a {type(tensor).__name__}; expected an array, a number, a string, a list or a dict")


def get_corner(tensor: Any, n: int = 3) -> Any:
    """The first `n` entries along every axis.

    Example:
        >>> get_corner(np.arange(20).reshape(4, 5), 2).tolist()
        [[0, 1], [5, 6]]
    """
    return tensor[(slice(n),) * tensor.ndim]


def get_matrix_corner(matrix: FactoredMatrix, n: int = 3) -> Array:
    """The first `n` entries along every axis of the product of a factored matrix."""
    return matrix.get_corner(n)


def remove_batch_dim(tensor: Float[Array, "1 *rest"]) -> Float[Array, "*rest"]:
    """Removes the first axis if its length is 1. Otherwise returns the tensor unchanged."""
    return tensor[0] if tensor.shape[0] == 1 else tensor


def transpose(tensor: Float[Array, "... a b"]) -> Float[Array, "... b a"]:
    """Exchanges the last two axes."""
    return jnp.swapaxes(tensor, -1, -2)


def is_square(x: Any) -> bool:
    """Whether a tensor is a square matrix."""
    return x.ndim == 2 and x.shape[0] == x.shape[1]


def is_lower_triangular(x: Any) -> bool:
    """Whether a tensor is a square matrix with zeros above the diagonal."""
    return is_square(x) and not np.triu(np.asarray(x), 1).any()


def check_structure(t1: Float[Array, "a b"], t2: Float[Array, "a b"], *, verbose: bool = False) -> None:
    """Prints whether the entries of two matrices decrease between the same rows, and between the same columns.

    Raises:
        ValueError: `t1` and `t2` are not matrices of the same shape.
    """
    t1, t2 = np.asarray(t1), np.asarray(t2)
    if t1.ndim != 2 or t1.shape != t2.shape:
        raise ValueError(f"t1 and t2 have shapes {t1.shape} and {t2.shape}; expected matrices of the same shape")
    mismatched = {}
    for axis, name in enumerate(("row", "column")):
        decreases = [-np.diff(matrix, axis=axis) >= 0 for matrix in (t1, t2)]
        mismatched[name] = np.flatnonzero((decreases[0] != decreases[1]).any(axis=1 - axis)).tolist()
        if verbose:
            print(f"Checking {name}s")
            for n in mismatched[name]:
                first, second = (np.take(decrease, n, axis=axis).tolist() for decrease in decreases)
                print(f"\t{name}s {n}:{n + 1}\n\tt1: {first}\n\tt2: {second}")
    failed = next((name for name in mismatched if mismatched[name]), None)
    print("PASSED" if failed is None else f"{failed} mismatch: {mismatched[failed]}")


def get_offset_position_ids(past_kv_pos_offset: int, attention_mask: Int[Array, "b offset_p"]) -> Int[Array, "b p"]:
    """The position of each token, without counting padding. The first `past_kv_pos_offset` columns are left out.

    Example:
        >>> get_offset_position_ids(1, np.array([[0, 1, 1, 1]])).tolist()
        [[0, 1, 2]]
    """
    return jnp.maximum(jnp.cumsum(jnp.asarray(attention_mask), axis=1) - 1, 0)[:, past_kv_pos_offset:]


def get_cumsum_along_dim(tensor: Float[Array, "..."], dim: int, reverse: bool = False) -> Float[Array, "..."]:
    """The cumulative sum along an axis, with `reverse` from the end."""
    return jax.lax.cumsum(jnp.asarray(tensor), axis=dim % tensor.ndim, reverse=reverse)


def repeat_along_head_dimension(
    tensor: Float[Array, "b p d"], n_heads: int, clone_tensor: bool = True
) -> Float[Array, "b p n d"]:
    """Repeats a tensor for every head. `clone_tensor` is ignored, because arrays are immutable."""
    return jnp.broadcast_to(tensor[:, :, None], (*tensor.shape[:2], n_heads, tensor.shape[2]))


def filter_dict_by_prefix(dictionary: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose key starts with `prefix` and a dot. The prefix is removed from the keys.

    Example:
        >>> filter_dict_by_prefix({"blocks.0.attn.W_Q": 1, "blocks.10.ln1.w": 2}, "blocks.0")
        {'attn.W_Q': 1}
    """
    prefix = prefix if prefix.endswith(".") else f"{prefix}."
    return {name.removeprefix(prefix): value for name, value in dictionary.items() if name.startswith(prefix)}


def calc_fan_in_and_fan_out(tensor: Any) -> tuple[int, int]:
    """The number of inputs and outputs of a weight with axes [out], [in out] or [head in out].

    Raises:
        ValueError: The weight does not have one to three axes.
    """
    match tensor.shape:
        case (fan_out,):
            return 1, fan_out
        case (fan_in, fan_out):
            return fan_in, fan_out
        case (heads, fan_in, fan_out):
            return fan_in, heads * fan_out
    raise ValueError(f"tensor has shape {tensor.shape}; expected one to three axes")


def logits_to_df(logits: Float[Array, " v"], tokenizer: Any = None, top_k: int | None = None) -> Any:
    """A pandas DataFrame of all tokens, or the `top_k` likeliest tokens, sorted by probability.

    Its columns are token_index, token_string (with a tokenizer), logit, log_prob and probability.

    Raises:
        ValueError: `logits` has more than one axis.
        ImportError: The package pandas is not installed.
    """
    if np.ndim(logits) != 1:
        raise ValueError(f"logits have shape {np.shape(logits)}; expected those of one position, such as logits[0, -1]")
    pandas = require("pandas", "logits_to_df")
    log_probs = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
    order = np.argsort(-np.asarray(log_probs), kind="stable")[:top_k]
    columns: dict[str, Any] = {"token_index": order}
    if tokenizer is not None:
        columns["token_string"] = [tokenizer.decode([int(token)]) for token in order]
    columns |= {"logit": to_numpy(logits)[order], "log_prob": np.asarray(log_probs)[order]}
    return pandas.DataFrame(columns | {"probability": np.exp(columns["log_prob"])})


# --- tokens


def get_attention_mask(tokenizer: Any, tokens: Int[Array, "b p"], prepend_bos: bool) -> Int[Array, "b p"]:
    """1 for tokens and 0 for padding on the tokenizer's padding side. Without a tokenizer, 1 everywhere."""
    if tokenizer is None:
        return jnp.ones_like(tokens)
    return _wrapped(tokenizer).attention_mask(tokens, prepend_bos)


def get_tokenizer_with_bos(tokenizer: Any) -> Tokenizer:
    """A copy of a tokenizer that prepends BOS by default, if it has a BOS token."""
    copied = copy.copy(_wrapped(tokenizer))
    copied.default_prepend_bos = copied.bos_token_id is not None
    return copied


def get_input_with_manually_prepended_bos(bos_token: str, input: str | list[str]) -> str | list[str]:
    """Text that starts with the text of the BOS token."""
    return bos_token + input if isinstance(input, str) else [bos_token + text for text in input]


def get_tokens_with_bos_removed(tokenizer: Any, tokens: Int[Array, "b p"]) -> Int[Array, "b p-1"]:
    """Removes the BOS token at the start of each row. In rows padded on the left, it follows the padding."""
    tokens = jnp.asarray(tokens)
    if tokenizer.padding_side == "right":
        return tokens[..., 1:]
    if tokenizer.bos_token_id == tokenizer.pad_token_id:
        position = jnp.sum(jnp.cumsum(tokens != tokenizer.pad_token_id, axis=-1) == 0, axis=-1) - 1
    else:
        position = jnp.argmax(tokens == tokenizer.bos_token_id, axis=-1)
    columns = jnp.arange(tokens.shape[-1] - 1)
    return jnp.take_along_axis(tokens, columns + (columns >= position[..., None]), axis=-1)


def _wrapped(tokenizer: Any) -> Tokenizer:
    return tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer(tokenizer)


# --- defaults

USE_DEFAULT_VALUE = None
"""The value of an argument that selects the model's default."""


def override_or_use_default_value(default_flag: Any, override: Any = None) -> Any:
    """`override`, or `default_flag` if `override` is None."""
    return default_flag if override is None else override


class LocallyOverridenDefaults:
    """A context manager that changes the model's defaults for `prepend_bos` and `padding_side`.

    Example:
        >>> from jaxlens import Config, HookedTransformer
        >>> model = HookedTransformer(Config(n_layers=1, d_model=4, n_heads=1, d_head=4, d_vocab=5, n_ctx=4))
        >>> with LocallyOverridenDefaults(model, prepend_bos=False):
        ...     model.cfg.default_prepend_bos
        False

    Raises:
        ValueError: The name or the value of an override is invalid.
    """

    def __init__(self, model: Any, **overrides: Any):
        values = {"prepend_bos": (None, True, False), "padding_side": (None, "left", "right")}
        for name, value in overrides.items():
            if name not in values or value not in values[name]:
                allowed = " or ".join(f"{key} ({', '.join(map(repr, valid))})" for key, valid in values.items())
                raise ValueError(f"{name}={value!r} cannot override a default; expected {allowed}")
        self.model, self.overrides = model, {name: value for name, value in overrides.items() if value is not None}

    def __enter__(self) -> None:
        model, prepend_bos = self.model, self.overrides.get("prepend_bos")
        self._cfg, self._tokenizer = model.cfg, model.tokenizer
        if prepend_bos is not None:
            model.cfg = model.cfg.replace(default_prepend_bos=prepend_bos)
        if model.tokenizer is not None:
            model.tokenizer = copy.copy(model.tokenizer)
            model.tokenizer.padding_side = self.overrides.get("padding_side", self._tokenizer.padding_side)
            model.tokenizer.default_prepend_bos = self.overrides.get("prepend_bos", self._tokenizer.default_prepend_bos)

    def __exit__(self, *error: Any) -> None:
        self.model.cfg, self.model.tokenizer = self._cfg, self._tokenizer


def get_nested_attr(obj: Any, attr_str: str) -> Any:
    """The attribute at a dotted path such as "blocks.0.attn". A number is an index."""
    for name in attr_str.split("."):
        obj = obj[int(name)] if name.isdigit() else getattr(obj, name)
    return obj


def set_nested_attr(obj: Any, attr_str: str, value: Any) -> None:
    """Sets the attribute at a dotted path such as "blocks.0.attn"."""
    owner, _, name = attr_str.rpartition(".")
    setattr(get_nested_attr(obj, owner) if owner else obj, name, value)


# --- the device and the Hugging Face hub


def get_device() -> str:
    """The default platform of arrays: "cpu", "gpu" or "tpu"."""
    return jax.default_backend()


def print_gpu_mem(step_name: str = "") -> None:
    """Prints how much memory is allocated on the default device, if the platform reports it."""
    device = jax.devices()[0]
    in_use = (device.memory_stats() or {}).get("bytes_in_use")
    amount = "an unknown amount of memory" if in_use is None else f"{in_use / 2**30:.2f} GiB"
    print(f"{step_name} ~ {amount} allocated on {device}.")


def is_library_available(name: str) -> bool:
    """Whether a package is installed. Does not import it."""
    return name in sys.modules or importlib.util.find_spec(name) is not None


def download_file_from_hf(
    repo_name: str, file_name: str, subfolder: str = ".", cache_dir: str | Path | None = None,
    force_is_torch: bool = False, **kwargs: Any,
) -> Any:  # fmt: skip
    """Downloads a file from the Hugging Face hub. Returns the contents of a JSON or torch file, otherwise the path.

    A file is a torch file if its name ends in ".pth" or `force_is_torch` is set. Its tensors become numpy arrays.
    `kwargs` are passed to `hf_hub_download`.

    Raises:
        ImportError: The file is a torch file and the package torch is not installed.
    """
    from huggingface_hub import hf_hub_download

    path = hf_hub_download(repo_name, file_name, subfolder=subfolder, cache_dir=cache_dir, **kwargs)
    if path.endswith(".pth") or force_is_torch:
        torch = require("torch", f"the torch file {file_name}")
        contents = torch.load(path, map_location="cpu", weights_only=True)
        return jax.tree.map(lambda leaf: to_numpy(leaf) if isinstance(leaf, torch.Tensor) else leaf, contents)
    return json.loads(Path(path).read_text("utf-8")) if path.endswith(".json") else path


def clear_huggingface_cache() -> None:
    """Deletes the download cache of the Hugging Face hub. Files are downloaded again when they are needed."""
    from huggingface_hub.constants import HF_HUB_CACHE

    shutil.rmtree(HF_HUB_CACHE, ignore_errors=True)


def __getattr__(name: str) -> Any:
    raise no_attribute(f"utils.{name}")
