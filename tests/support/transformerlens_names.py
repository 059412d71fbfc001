"""The modules of TransformerLens 3.5.1 and their public names, to test that each is in jaxlens or is said not to be.

Modules of which nothing is in jaxlens (`model_bridge`, `components.mlps`, …) are listed without names.
"""

MODULES = {
    "ActivationCache": "ActivationCache",
    "BertNextSentencePrediction": "BertNextSentencePrediction",
    "FactoredMatrix": "FactoredMatrix TensorLike",
    "HookedAudioEncoder": "HookedAudioEncoder",
    "HookedEncoder": "HookedEncoder",
    "HookedEncoderDecoder": "HookedEncoderDecoder",
    "HookedRootModule": "HookedRootModule",
    "HookedTransformer": "DTYPE_FROM_STRING HookedTransformer Loss LossPerToken Output SingleLoss",
    "SVDInterpreter": "OUTPUT_EMBEDDING SVDInterpreter VECTOR_TYPES",
    "__init__": """
        ActivationCache BertNextSentencePrediction FactoredMatrix HookedAudioEncoder HookedEncoder
        HookedEncoderDecoder HookedRootModule HookedTransformer HookedTransformerConfig SVDInterpreter
        TransformerBridgeConfig TransformerLensKeyValueCache TransformerLensKeyValueCacheEntry components
        conversion_utils evals factories head_detector hook_points loading patching supported_models tools
        train utilities
    """,
    "benchmarks": "",
    "cache": "",
    "cache.key_value_cache": "TransformerLensKeyValueCache",
    "cache.key_value_cache_entry": "TransformerLensKeyValueCacheEntry",
    "components": """
        AbstractAttention Attention BertBlock BertEmbed BertMLMHead BertNSPHead BertPooler Embed GatedMLP
        GroupedQueryAttention LayerNorm LayerNormPre MLP MoE PosEmbed RMSNorm RMSNormPre T5Attention
        T5Block TokenTypeEmbed TransformerBlock Unembed
    """,
    "components.abstract_attention": "",
    "components.attention": "",
    "components.bert_block": "",
    "components.bert_embed": "",
    "components.bert_mlm_head": "",
    "components.bert_nsp_head": "",
    "components.bert_pooler": "",
    "components.embed": "",
    "components.grouped_query_attention": "",
    "components.layer_norm": "",
    "components.layer_norm_pre": "",
    "components.mlps.can_be_used_as_mlp": "",
    "components.mlps.gated_mlp": "",
    "components.mlps.gated_mlp_4bit": "",
    "components.mlps.gpt_oss_moe": "",
    "components.mlps.mlp": "",
    "components.mlps.moe": "",
    "components.pos_embed": "",
    "components.rms_norm": "",
    "components.rms_norm_pre": "",
    "components.t5_attention": "",
    "components.t5_block": "",
    "components.token_typed_embed": "",
    "components.transformer_block": "",
    "components.unembed": "",
    "config": "HookedTransformerConfig TransformerBridgeConfig TransformerLensConfig",
    "config.hooked_transformer_config": "HookedTransformerConfig",
    "config.transformer_bridge_config": "TransformerBridgeConfig",
    "config.transformer_lens_config": "TransformerLensConfig",
    "conversion_utils": "",
    "evals": """
        DATASET_LOADERS DATASET_NAMES IOIDataset MMLU_ANSWER_LETTERS MMLU_SUBJECTS evaluate
        evaluate_on_dataset induction_loss ioi_eval make_code_data_loader make_mmlu_data_loader
        make_owt_data_loader make_pile_data_loader make_wiki_data_loader mmlu_eval sanity_check
    """,
    "factories": "",
    "head_detector": """
        DET_PAT_NOT_SQUARE_ERR ErrorMeasure HEAD_NAMES HeadName INVALID_HEAD_NAME_ERR LayerHeadTuple
        LayerToHead SEQ_LEN_ERR compute_head_attention_similarity_score detect_head
        get_duplicate_token_head_detection_pattern get_induction_head_detection_pattern
        get_previous_token_head_detection_pattern get_supported_heads
    """,
    "hook_points": "DeviceType HookFunction HookIntrospectionMixin HookPoint LensHandle NamesFilter",
    "lit": "",
    "loading_from_pretrained": """
        Config NEED_REMOTE_CODE_MODELS NON_HF_HOSTED_MODEL_NAMES PYTHIA_CHECKPOINTS PYTHIA_V0_CHECKPOINTS
        STANFORD_CRFM_CHECKPOINTS convert_hf_model_config convert_neel_model_config fill_missing_keys
        get_basic_config get_checkpoint_labels get_num_params_of_pretrained get_official_model_name
        get_pretrained_model_config get_pretrained_state_dict make_model_alias_map
    """,
    "model_bridge": "",
    "patching": """
        AxisNames CorruptedActivation Logits PatchedActivation generic_activation_patch
        get_act_patch_attn_head_all_pos_every get_act_patch_attn_head_by_pos_every
        get_act_patch_attn_head_k_all_pos get_act_patch_attn_head_k_by_pos
        get_act_patch_attn_head_out_all_pos get_act_patch_attn_head_out_by_pos
        get_act_patch_attn_head_pattern_all_pos get_act_patch_attn_head_pattern_by_pos
        get_act_patch_attn_head_pattern_dest_src_pos get_act_patch_attn_head_q_all_pos
        get_act_patch_attn_head_q_by_pos get_act_patch_attn_head_v_all_pos
        get_act_patch_attn_head_v_by_pos get_act_patch_attn_out get_act_patch_block_every
        get_act_patch_mlp_out get_act_patch_resid_mid get_act_patch_resid_pre
        layer_head_dest_src_pos_pattern_patch_setter layer_head_pattern_patch_setter
        layer_head_pos_pattern_patch_setter layer_head_vector_patch_setter
        layer_pos_head_vector_patch_setter layer_pos_patch_setter make_df_from_ranges
    """,
    "pretrained": "",
    "remote_module_loading": "",
    "supported_models": "DEFAULT_MODEL_ALIASES MODEL_ALIASES OFFICIAL_MODEL_NAMES",
    "tools": "analysis model_registry",
    "tools.analysis": """
        DirectLogitAttribution direct_logit_attribution get_act_patch_direct_path
        get_act_patch_direct_path_all_sources
    """,
    "tools.analysis.direct_logit_attribution": "DirectLogitAttribution TokenInput Unit direct_logit_attribution",
    "tools.analysis.direct_path_patching": "get_act_patch_direct_path get_act_patch_direct_path_all_sources",
    "tools.model_registry": """
        ArchitectureAnalysis ArchitectureGap ArchitectureGapsReport ArchitectureNotSupportedError
        ArchitectureStats CANONICAL_AUTHORS_BY_ARCH DataNotLoadedError DataValidationError
        HF_SUPPORTED_ARCHITECTURES ModelEntry ModelMetadata ModelNotFoundError ModelRegistryError ScanInfo
        SupportedModelsReport VerificationHistory VerificationRecord
    """,
    "train": "HookedTransformerTrainConfig train",
    "utilities": """
        ActivationFunction LocallyOverridenDefaults ModelWithCfg NonlinearityType SUPPORTED_ACTIVATIONS
        Slice SliceInput TypedModuleList USE_DEFAULT_VALUE calc_fan_in_and_fan_out
        calculate_available_device_cuda_memory check_structure clear_huggingface_cache composition_scores
        count_unique_devices determine_available_memory_for_available_devices download_file_from_hf
        filter_dict_by_prefix find_embedding_device gelu_fast gelu_new get_act_name get_attention_mask
        get_best_available_cuda_device get_best_available_device get_corner get_cumsum_along_dim
        get_dataset get_device get_device_for_block_index get_input_with_manually_prepended_bos
        get_matrix_corner get_nested_attr get_offset_position_ids get_rotary_pct_from_config
        get_tokenizer_with_bos get_tokens_with_bos_removed init_kaiming_normal_ init_kaiming_uniform_
        init_xavier_normal_ init_xavier_uniform_ is_library_available is_lower_triangular is_square
        keep_single_column lm_accuracy lm_cross_entropy_loss logits_to_df move_to_and_update_config
        override_or_use_default_value print_gpu_mem remove_batch_dim repeat_along_head_dimension
        resolve_device_map sample_logits select_compatible_kwargs set_nested_attr solu
        sort_devices_based_on_available_memory test_prompt to_numpy tokenize_and_concatenate transpose
        warn_if_mps
    """,
    "utilities.activation_functions": """
        ActivationFunction SUPPORTED_ACTIVATIONS XIELU gelu_fast gelu_new gelu_pytorch_tanh solu xielu
    """,
    "utilities.addmm": "batch_addmm vanilla_addmm",
    "utilities.aliases": "collect_aliases_recursive resolve_alias",
    "utilities.architectures": """
        AUDIO_ARCHITECTURES MASKED_LM_ARCHITECTURES MULTIMODAL_ARCHITECTURES
        NO_HT_COMPARISON_ARCHITECTURES SEQ2SEQ_ARCHITECTURES classify_architecture classify_model_config
        classify_model_name get_architectures_for_config is_audio_model is_encoder_decoder_model
        is_masked_lm_model is_multimodal_model
    """,
    "utilities.attention": "complex_attn_linear simple_attn_linear",
    "utilities.attribute_utils": "get_nested_attr set_nested_attr",
    "utilities.bridge_components": """
        apply_fn_to_all_components collect_all_components collect_all_submodules_of_component
        collect_components_of_block_bridge
    """,
    "utilities.cache": "get_pos_offset",
    "utilities.components_utils": "get_act_name",
    "utilities.defaults_utils": "LocallyOverridenDefaults USE_DEFAULT_VALUE override_or_use_default_value",
    "utilities.devices": "ModelWithCfg get_device move_to_and_update_config warn_if_mps",
    "utilities.exploratory_utils": "test_prompt",
    "utilities.gpu_utils": "print_gpu_mem",
    "utilities.hf_utils": """
        CACHE_DIR call_hf_with_retry clear_huggingface_cache download_file_from_hf enable_hf_retry
        get_dataset get_hf_token get_rotary_pct_from_config keep_single_column select_compatible_kwargs
    """,
    "utilities.initialization_utils": """
        NonlinearityType calc_fan_in_and_fan_out init_kaiming_normal_ init_kaiming_uniform_
        init_xavier_normal_ init_xavier_uniform_
    """,
    "utilities.library_utils": "is_library_available",
    "utilities.lm_utils": "lm_accuracy lm_cross_entropy_loss",
    "utilities.logits_utils": "logits_to_df sample_logits",
    "utilities.matrix": "composition_scores get_matrix_corner",
    "utilities.multi_gpu": """
        AvailableDeviceMemory calculate_available_device_cuda_memory cast_floating_params_to_dtype
        count_unique_devices determine_available_memory_for_available_devices find_embedding_device
        get_best_available_cuda_device get_best_available_device get_device_for_block_index
        resolve_device_map sort_devices_based_on_available_memory
    """,
    "utilities.slice": "Slice SliceInput",
    "utilities.tensors": """
        check_structure filter_dict_by_prefix get_corner get_cumsum_along_dim get_offset_position_ids
        is_lower_triangular is_square remove_batch_dim repeat_along_head_dimension to_numpy transpose
    """,
    "utilities.tokenize_utils": """
        get_attention_mask get_input_with_manually_prepended_bos get_tokenizer_with_bos
        get_tokens_with_bos_removed tokenize_and_concatenate
    """,
    "utilities.tracr": """
        infer_tracr_output_label make_tracr_categorical_unembed make_tracr_transformer_bridge_config
        make_tracr_transformer_bridge_state_dict
    """,
    "utilities.typed_module_list": "TypedModuleList",
    "utils": "",
    "weight_processing": "ProcessWeights",
}  # fmt: skip
