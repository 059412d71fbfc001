"""Names of TransformerLens that jaxlens does not have, and what to write instead."""

DECODERS = "jaxlens runs decoder-only transformers"
BRIDGE = "it belongs to TransformerBridge; use HookedTransformer, which loads these models and has all hook points"
IN_PLACE = "arrays are immutable; initialize weights with Config(init_mode=...), or use jax.nn.initializers"
ON_DEVICES = "use jax.device_put, with a sharding for several devices"
READS_FILES = (
    "HookedTransformer.from_pretrained reads the files of every family; for the weights of a transformers model, "
    "HookedTransformer.from_pretrained_no_processing(name, hf_model=hf_model).state_dict()"
)
PARTS = (
    "take the modules of a model: HookedTransformer(cfg).blocks[0].mlp (.attn, .ln1, .ln2), model.embed, "
    "model.pos_embed, model.ln_final, model.unembed; their classes are in jaxlens.nn"
)
REGISTRY = "`jaxlens families` lists what can be read, and `jaxlens inspect NAME` tells what a checkpoint is"

ABSENT = {
    "BertNextSentencePrediction": DECODERS, "HookedAudioEncoder": DECODERS, "HookedEncoder": DECODERS,
    "HookedEncoderDecoder": DECODERS, "TransformerBridge": "use HookedTransformer",
    "TransformerBridgeConfig": "use HookedTransformerConfig",
    "benchmarks": "`jaxlens verify PATH` compares a model with transformers",
    "components": PARTS,
    "config.TransformerBridgeConfig": "use HookedTransformerConfig",
    "config.transformer_bridge_config": "use jaxlens.config.HookedTransformerConfig",
    "conversion_utils": f"values at hook points have their own shapes; reshape in the hook function. {READS_FILES}",
    "factories": f"the config chooses modules and activation functions. {PARTS}",
    "head_detector.DET_PAT_NOT_SQUARE_ERR": "errors are ValueErrors with messages of their own",
    "head_detector.INVALID_HEAD_NAME_ERR": "errors are ValueErrors with messages of their own",
    "head_detector.SEQ_LEN_ERR": "errors are ValueErrors with messages of their own",
    "hook_points.HookIntrospectionMixin": "HookedRootModule and HookedTransformer have its method list_hooks",
    "lit": "jaxlens has no connection to the Learning Interpretability Tool; jaxlens.plot draws pictures",
    "loading_from_pretrained.NEED_REMOTE_CODE_MODELS": "jaxlens never runs code from a checkpoint",
    "loading_from_pretrained.convert_hf_model_config": "use get_pretrained_model_config, which returns a Config",
    "loading_from_pretrained.convert_neel_model_config": "use get_pretrained_model_config, which returns a Config",
    "loading_from_pretrained.fill_missing_keys": "use model.load_state_dict(state_dict, strict=False)",
    "model_bridge": BRIDGE,
    "pretrained": READS_FILES,
    "remote_module_loading": "jaxlens never runs code from a checkpoint",
    "tools.model_registry": REGISTRY,
    "utilities.aliases": BRIDGE,
    "utilities.architectures": REGISTRY,
    "utilities.bridge_components": BRIDGE,
    "utilities.multi_gpu": ON_DEVICES,
    "utilities.tracr": "build the model with a Config and HookedTransformer.with_params(params)",
    "utilities.typed_module_list": "use flax.nnx.List",
}  # fmt: skip
"""Paths under `transformer_lens`: modules, with everything in them, and names in modules."""

ABSENT |= {
    f"utils.{name}": reason
    for reason, names in {
        IN_PLACE: "init_xavier_uniform_ init_xavier_normal_ init_kaiming_uniform_ init_kaiming_normal_",
        ON_DEVICES: """
            move_to_and_update_config get_device_for_block_index calculate_available_device_cuda_memory
            count_unique_devices determine_available_memory_for_available_devices find_embedding_device
            get_best_available_cuda_device get_best_available_device resolve_device_map
            sort_devices_based_on_available_memory
        """,
        "JAX does not use torch's MPS backend": "warn_if_mps",
        "use flax.nnx.List": "TypedModuleList",
        "use jaxlens.HookedTransformer": "ModelWithCfg",
        "jax.nn.initializers take a scale and a mode, not the name of a function": "NonlinearityType",
        "use jaxlens.nn.mlp.xielu, a function of the two curvatures, or Config(act_fn='xielu')": "XIELU",
        "huggingface_hub repeats failed downloads itself": "call_hf_with_retry enable_hf_retry",
    }.items()
    for name in names.split()
}


def reason(path: str) -> str | None:
    """Why jaxlens does not have a path under `transformer_lens`, or None if this is not known.

    Example:
        >>> reason("components.mlps.MLP") == reason("components")
        True
    """
    while path and path not in ABSENT:
        path = path.rpartition(".")[0]
    return ABSENT.get(path)


def no_attribute(path: str) -> Exception:
    """The error for a name that a module does not have.

    It is an ImportError with the reason if there is one: `from module import name` shows no message of another error.
    """
    if (why := reason(path)) is not None:
        return ImportError(f"jaxlens has no {path}: {why}")
    module, _, name = path.rpartition(".")
    return AttributeError(f"module 'jaxlens.{module}' has no attribute {name!r}")
