"""DeepSeek V3."""

from families import deepseek_v2
from families.common import YARN

SIZES = {**deepseek_v2.SIZES, "n_shared_experts": 1, "n_group": 3, "topk_group": 2, "num_nextn_predict_layers": 0,
         "num_key_value_heads": 6}  # fmt: skip
CASES = [
    {},
    {"q_lora_rank": None, "first_k_dense_replace": 0, "routed_scaling_factor": 1.7, "tie_word_embeddings": True},
    {"rope_interleave": False, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}, "n_group": 1,
     "topk_group": 1},
    {"norm_topk_prob": False, "first_k_dense_replace": 2, "n_shared_experts": 2, "hidden_act": "gelu"},
]  # fmt: skip
REFUSED = [({"scoring_func": "softmax"}, "scoring_func is 'softmax'; expected 'sigmoid': transformers' DeepSeek")]
PUBLISHED = {
    "DeepSeek-V3 (without the multi-token prediction layer)": (671_026_419_200, {
        **deepseek_v2.V2_LITE, "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168,
        "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61,
        "num_attention_heads": 128, "num_key_value_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256,
        "num_experts_per_tok": 8, "first_k_dense_replace": 3, "q_lora_rank": 1536, "n_group": 8, "topk_group": 4,
        "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 2.5,
        "num_nextn_predict_layers": 1, "ep_size": 1,
    }),
    "Moonlight-16B-A3B": (15_960_110_208, {  # computed by hand; the model card says 16 billion
        **deepseek_v2.V2_LITE, "model_type": "deepseek_v3", "vocab_size": 163840, "hidden_size": 2048,
        "intermediate_size": 11264, "moe_intermediate_size": 1408, "num_hidden_layers": 27,
        "num_attention_heads": 16, "num_key_value_heads": 16, "n_shared_experts": 2, "n_routed_experts": 64,
        "num_experts_per_tok": 6, "first_k_dense_replace": 1, "q_lora_rank": None, "n_group": 1, "topk_group": 1,
        "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True,
        "routed_scaling_factor": 2.446, "num_nextn_predict_layers": 0, "ep_size": 1, "rope_theta": 50000.0,
    }),
}  # fmt: skip
