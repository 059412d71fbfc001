"""TransformerLens's `loading_from_pretrained`: names of models, their configs, and their training checkpoints."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from jaxlens._jax import as_device
from jaxlens.checkpoints.find import training_labels
from jaxlens.checkpoints.loader import with_n_ctx
from jaxlens.checkpoints.open import open_config, read_config
from jaxlens.checkpoints.published.names import aliases, official_name, similar_names
from jaxlens.checkpoints.published.training import labels_of
from jaxlens.config import Config
from jaxlens.model.arguments import LOADING, check_only, renamed
from jaxlens.model.transformer import HookedTransformer
from jaxlens.transformer_lens.absent import no_attribute
from jaxlens.weights.plans import PASSES

OFFICIAL_MODEL_NAMES: list[str] = list(aliases())
"""The Hugging Face repositories that TransformerLens loads by name."""

MODEL_ALIASES: dict[str, list[str]] = {repository: list(names) for repository, names in aliases().items() if names}
"""The short names of these repositories."""

DEFAULT_MODEL_ALIASES: list[str] = [MODEL_ALIASES.get(name, [name])[0] for name in OFFICIAL_MODEL_NAMES]
"""The first short name of each repository of `OFFICIAL_MODEL_NAMES`, or the repository if it has none."""

DEFAULT_MODEL_ALIAS = DEFAULT_MODEL_ALIASES

NON_HF_HOSTED_MODEL_NAMES = [f"llama-{size}b-hf" for size in (7, 13, 30, 65)]
"""Names of models whose weights are not on Hugging Face. Load a folder, or pass `hf_model`."""

PYTHIA_CHECKPOINTS, PYTHIA_V0_CHECKPOINTS, STANFORD_CRFM_CHECKPOINTS = (
    labels_of(name, list)[0] for name in ("EleutherAI/pythia-70m", "EleutherAI/pythia-70m-v0", "stanford-crfm/")
)


def make_model_alias_map() -> dict[str, str]:
    """The repository of every name, in lower case.

    Example:
        >>> make_model_alias_map()["pythia"]
        'EleutherAI/pythia-70m'
    """
    return {
        name.lower(): repository
        for repository in OFFICIAL_MODEL_NAMES
        for name in (*MODEL_ALIASES.get(repository, ()), repository)
    }


def get_official_model_name(model_name: str) -> str:
    """The Hugging Face repository that a name stands for. The case of the name is ignored.

    Example:
        >>> get_official_model_name("gpt2-small"), get_official_model_name("gemma-2-2b")
        ('gpt2', 'google/gemma-2-2b')

    Raises:
        ValueError: TransformerLens does not have this name. The message suggests similar names.
    """
    if (repository := official_name(model_name)) is not None:
        return repository
    similar = " or ".join(map(repr, similar_names(model_name)))
    hint = f"did you mean {similar}?" if similar else "OFFICIAL_MODEL_NAMES and MODEL_ALIASES list its names."
    elsewhere = "HookedTransformer.from_pretrained also takes a folder or any Hugging Face id"
    raise ValueError(f"{model_name!r} is not a model of TransformerLens's table; {hint} {elsewhere}")


def get_pretrained_model_config(
    model_name: str, hf_cfg: Mapping[str, Any] | None = None, checkpoint_index: int | None = None,
    checkpoint_value: int | None = None, fold_ln: bool = False, device: Any = None, n_devices: int = 1,
    default_prepend_bos: bool | None = None, dtype: Any = "float32", first_n_layers: int | None = None,
    n_ctx: int | None = None, *, revision: str | None = None, token: str | bool | None = None, cache_dir: Any = None,
    local_files_only: bool = False, **transformerlens: Any,
) -> Config:  # fmt: skip
    """The config of a model, as `HookedTransformer.from_pretrained` would load it. Reads no weights.

    Of a Hugging Face repository, only config.json is downloaded. `hf_cfg` is the dict of a transformers config, which
    replaces config.json. `fold_ln` gives the config after the norms are folded. The other arguments are those of
    `from_pretrained`.

    Raises:
        CheckpointError: The checkpoint cannot be found or read.
        ValueError: An argument does not match the model.
    """
    dtype, checkpoint_value = renamed(transformerlens, dtype, checkpoint_value)
    elsewhere = "a config does not say where weights are; pass n_devices to HookedTransformer.from_pretrained"
    check_only({"n_devices": n_devices, **transformerlens}, LOADING | {"n_devices": (1, elsewhere)})
    if hf_cfg:
        repository = official_name(model_name) or model_name
        cfg = read_config(json.loads(json.dumps(hf_cfg)))[1].replace(model_name=repository.rpartition("/")[2])
    else:
        cfg = open_config(
            model_name, revision, checkpoint_index=checkpoint_index, checkpoint_value=checkpoint_value, token=token,
            cache_dir=cache_dir, local_files_only=local_files_only,
        )  # fmt: skip
    cfg = with_n_ctx(cfg if first_n_layers is None else cfg.first_layers(first_n_layers), n_ctx).replace(dtype=dtype)
    if default_prepend_bos is not None:
        cfg = cfg.replace(default_prepend_bos=default_prepend_bos)
    if device is not None:
        cfg = cfg.replace(weights_on=as_device(device))
    return PASSES["fold_ln"](cfg).cfg if fold_ln else cfg


def get_num_params_of_pretrained(model_name: str) -> int:
    """`n_params` of the model's config: the number of weights in its attention and MLP matrices."""
    return get_pretrained_model_config(model_name).n_params


@dataclasses.dataclass
class BasicConfig:
    """The sizes of a model and a few settings of its training, as `get_basic_config` returns them."""

    d_model: int = 768
    debug: bool = True
    layer_norm_eps: float = 1e-5
    d_vocab: int = 50257
    init_range: float = 0.02
    n_ctx: int = 1024
    d_head: int = 64
    d_mlp: int = 3072
    n_heads: int = 12
    n_layers: int = 12


def get_basic_config(model_name: str, **options: Any) -> BasicConfig:
    """The sizes of a model. `options` are those of `get_pretrained_model_config`."""
    cfg = get_pretrained_model_config(model_name, **options)
    sizes = {name: getattr(cfg, name) for name in ("d_model", "d_vocab", "n_ctx", "d_head", "d_mlp", "n_heads")}
    return BasicConfig(**sizes, n_layers=cfg.n_layers, layer_norm_eps=cfg.eps)


def get_pretrained_state_dict(
    official_model_name: str, cfg: Config, hf_model: Any = None, dtype: Any = "float32", **options: Any
) -> dict[str, Any]:
    """The weights of a pretrained model under TransformerLens's names, without processing.

    `cfg` selects the training checkpoint, and the number of layers. `options` are those of
    `HookedTransformer.from_pretrained`.
    """
    if hf_model is None and cfg.checkpoint_index is not None:
        options["checkpoint_index"] = cfg.checkpoint_index
    model = HookedTransformer.from_pretrained_no_processing(
        official_model_name, hf_model=hf_model, dtype=dtype, first_n_layers=cfg.n_layers, **options
    )
    return model.state_dict()


def __getattr__(name: str) -> Any:
    raise no_attribute(f"loading_from_pretrained.{name}")


def get_checkpoint_labels(model_name: str, **hub: Any) -> tuple[list[int], str]:
    """The values of a model's training checkpoints, and their kind: "step" or "token".

    `hub` are arguments of huggingface_hub: token, cache_dir and local_files_only. They matter for toy models, whose
    list of checkpoints is downloaded.

    Example:
        >>> labels, kind = get_checkpoint_labels("pythia-70m")
        >>> len(labels), labels[:4], labels[-1], kind
        (154, [0, 1, 2, 4], 143000, 'step')

    Raises:
        CheckpointError: The model has no training checkpoints, or the list of them cannot be downloaded.
    """
    values, kind = training_labels(model_name, **hub)
    return list(values), kind
