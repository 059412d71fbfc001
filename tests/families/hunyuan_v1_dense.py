"""Hunyuan (dense)."""

from families.common import LLAMA, LLAMA3, rope

ALPHA = {"rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0}
SIZES = {**LLAMA, "rope_parameters": rope(**ALPHA)["rope_parameters"]}
CASES = [
    {},
    {"attention_bias": True, "tie_word_embeddings": True, "hidden_act": "gelu", "rope_parameters": LLAMA3},
    {"head_dim": 6, "num_key_value_heads": None, "rms_norm_eps": 0.1, **rope(rope_type="default")},
    {"head_dim": 10, "num_key_value_heads": 1, **rope(**ALPHA, beta_fast=32, beta_slow=1, mscale=1.0)},
    {"max_position_embeddings": 16, **rope(rope_type="dynamic", factor=4.0)},
]
REFUSED = [
    ({"use_qk_norm": False}, "use_qk_norm is False; expected True: transformers' dense Hunyuan"),
    ({"attention_head_dim": 9}, "attention_head_dim is 9; expected 8: it must equal head_dim"),
    (rope(rope_type="linear", factor=2.0, alpha=3.0), "rope_parameters.alpha is 3.0; expected null"),
]
PUBLISHED = {
    "Hunyuan-7B-Instruct": (7_504_568_320, {
        "model_type": "hunyuan_v1_dense", "add_classification_head": False, "attention_bias": False,
        "attention_dropout": 0.1, "attention_head_dim": 128, "cla_share_factor": 2, "class_num": 0,
        "dense_list": [4096, 0], "eod_token_id": 127967, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
        "im_end_id": 6, "im_newline_id": 12, "im_start_id": 5, "intermediate_size": 14336, "mask_init_id": 13,
        "max_position_embeddings": 32768, "mlp_bias": False, "norm_type": "rms", "num_attention_heads": 32,
        "num_experts": 1, "num_hidden_layers": 32, "num_key_value_heads": 8, "org_vocab_size": 128167,
        "pad_id": 127961, "pool_type": "last", "position_embedding_xdrope": False, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": {"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0,
                                                "mscale": 1.0, "mscale_all_dim": 0.0, "type": "dynamic"},
        "rope_theta": 10000.0, "text_end_id": 7, "text_start_id": 6, "tie_word_embeddings": True, "use_cla": False,
        "use_qk_norm": True, "use_rotary_pos_emb": True, "vocab_size": 128167,
    }),
    "Hunyuan-1.8B-Instruct": (1_791_080_448, {
        "model_type": "hunyuan_v1_dense", "attention_bias": False, "attention_head_dim": 128, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144, "max_position_embeddings": 262144,
        "num_attention_heads": 16, "num_hidden_layers": 32, "num_key_value_heads": 4, "rms_norm_eps": 1e-05,
        "rope_scaling": {"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0,
                         "mscale_all_dim": 0.0, "type": "dynamic"},
        "rope_theta": 10000.0, "tie_word_embeddings": True, "use_cla": False, "use_qk_norm": True,
        "vocab_size": 120818,
    }),
}  # fmt: skip
