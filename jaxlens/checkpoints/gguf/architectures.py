"""The architectures of llama.cpp that jaxlens reads: a table of facts.

An `Architecture` converts the metadata of a GGUF file to the fields of config.json, converts tensor names, and reverses
llama.cpp's changes to tensor values. The facts are those of llama.cpp's converter (conversion/*.py, formerly
convert_hf_to_gguf.py) and of its loader (src/models/*.cpp).
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxlens.checkpoints.gguf import config_llama as llama
from jaxlens.checkpoints.gguf import config_others as others
from jaxlens.checkpoints.gguf import names
from jaxlens.checkpoints.gguf.config_fields import Fields
from jaxlens.checkpoints.gguf.metadata import Metadata
from jaxlens.checkpoints.gguf.names import Entries


@dataclass(frozen=True)
class Architecture:
    """How to read one architecture. `model_types` are those of the families that read it; the first is the default.

    `config` returns the fields of config.json that depend on the architecture. `models` names published models.
    """

    model_types: tuple[str, ...]
    config: Callable[[Metadata], Fields]
    tensors: Entries | Callable[[Metadata], Entries]
    models: str = ""

    def entries(self, file: Metadata) -> Entries:
        return self.tensors(file) if callable(self.tensors) else self.tensors


def falcon_tensors(file: Metadata) -> Entries:
    return names.FALCON_TWO_NORMS if file.has("blk.0.attn_norm_2.weight") else names.FALCON_ONE_NORM


QK_LLAMA = names.llama(names.attention(), names.TWO_NORMS, *names.mlp(), *names.qk_norms())
GEMMA2 = names.llama(names.attention(), names.FOUR_NORMS, *names.mlp(), change=names.MINUS_ONE)
QK_MINUS_ONE = names.renamed(
    {f"attn_{x}_norm.weight": f"model.layers.{{i}}.self_attn.{x}_norm.weight" for x in "qk"}, names.MINUS_ONE, ""
)

ARCHITECTURES = {
    "llama": Architecture(
        ("llama", "mistral", "mixtral"), llama.llama, names.LLAMA, "Llama 1 to 3, Mistral, Mixtral, SmolLM, Yi, …"
    ),
    "mistral3": Architecture(
        ("ministral3", "mistral"), llama.ministral3, names.LLAMA, "Ministral 3, Mistral Small 3.1 and 3.2"
    ),
    "baichuan": Architecture(("llama",), llama.baichuan, names.LLAMA, "Baichuan and Baichuan 2, 7B"),
    "xverse": Architecture(("llama",), llama.as_llama, names.LLAMA, "XVERSE"),
    "internlm2": Architecture(("llama",), llama.as_llama, names.LLAMA, "InternLM 2"),
    "exaone": Architecture(("llama",), llama.as_llama, names.PLAIN_LLAMA, "EXAONE 3 and 3.5"),
    "arcee": Architecture(
        ("arcee",), llama.arcee, names.llama(names.rotated_attention(), names.TWO_NORMS, *names.UNGATED), "AFM"
    ),
    "smollm3": Architecture(("smollm3",), llama.smollm3, names.LLAMA, "SmolLM 3"),
    "apertus": Architecture(
        ("apertus",), llama.apertus,
        names.llama(names.attention(), names.APERTUS_NORMS, *names.UNGATED, *names.qk_norms()), "Apertus",
    ),
    "seed_oss": Architecture(("seed_oss",), llama.seed_oss, names.llama(
        names.attention(), names.TWO_NORMS | {"post_attention_norm": "post_attention_layernorm"}, *names.mlp()
    ), "Seed-OSS"),
    "ernie4_5": Architecture(("ernie4_5",), llama.ernie, names.PLAIN_LLAMA, "ERNIE 4.5 0.3B"),
    "granite": Architecture(("granite",), llama.granite, names.LLAMA, "Granite 3"),
    "granitemoe": Architecture(("granitemoe",), llama.granitemoe, names.GRANITE_MOE, "Granite 3 MoE"),
    "minicpm": Architecture(("granite",), llama.minicpm, names.LLAMA, "MiniCPM 1 and 2"),
    "hunyuan-dense": Architecture(
        ("hunyuan_v1_dense",), llama.hunyuan,
        names.llama(names.attention(), names.TWO_NORMS, *names.mlp(), *names.renamed(
            {"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"})),
        "Hunyuan, dense",
    ),
    "qwen": Architecture(("qwen",), llama.qwen, names.QWEN, "Qwen 1"),
    "qwen2": Architecture(("qwen2",), llama.qwen2, names.PLAIN_LLAMA, "Qwen 1.5, 2 and 2.5"),
    "qwen2vl": Architecture(("qwen2",), llama.qwen2, names.PLAIN_LLAMA, "the text model of Qwen 2 VL and 2.5 VL"),
    "qwen2moe": Architecture(("qwen2_moe",), llama.qwen2moe, names.MOE, "Qwen 1.5 MoE, Qwen 2 57B"),
    "qwen3": Architecture(("qwen3",), llama.with_biases, QK_LLAMA, "Qwen 3"),
    "qwen3vl": Architecture(("qwen3",), llama.qwen3vl, QK_LLAMA, "the text model of Qwen 3 VL"),
    "qwen3moe": Architecture(("qwen3_moe",), llama.qwen3moe, names.MOE, "Qwen 3 MoE"),
    "qwen3vlmoe": Architecture(("qwen3_moe",), llama.qwen3moe, names.MOE, "the text model of Qwen 3 VL MoE"),
    "gemma": Architecture(
        ("gemma",), llama.gemma,
        names.llama(names.attention(), names.TWO_NORMS, *names.mlp(), change=names.MINUS_ONE), "Gemma 1",
    ),
    "gemma2": Architecture(("gemma2",), llama.gemma2, GEMMA2, "Gemma 2"),
    "gemma3": Architecture(("gemma3_text",), llama.gemma3, (*GEMMA2, *QK_MINUS_ONE), "Gemma 3"),
    "olmo": Architecture(("olmo",), llama.olmo, names.LLAMA, "OLMo 1"),
    "olmo2": Architecture(
        ("olmo2", "olmo3"), llama.olmo2,
        names.llama(names.attention(), names.POST_NORMS, *names.mlp(), *names.qk_norms()), "OLMo 2 and 3",
    ),
    "olmoe": Architecture(("olmoe",), llama.olmoe, names.MOE, "OLMoE"),
    "exaone4": Architecture(
        ("exaone4",), llama.exaone4,
        names.llama(names.attention(), names.POST_NORMS, *names.mlp(), *names.qk_norms()), "EXAONE 4",
    ),
    "phi2": Architecture(("phi",), others.phi2, names.PHI2, "Phi 1, 1.5 and 2"),
    "phi3": Architecture(
        ("phi3",), others.phi3, names.llama(names.FUSED_QKV, names.TWO_NORMS, *names.FUSED_MLP), "Phi 3, 3.5 and 4"
    ),
    "phimoe": Architecture(
        ("phimoe",), others.phimoe, names.llama(names.attention(), names.TWO_NORMS, *names.SPARSE_MOE), "Phi 3.5 MoE"
    ),
    "chatglm": Architecture(
        ("glm",), others.glm, names.llama(names.attention(), names.TWO_NORMS, *names.FUSED_MLP), "GLM-4 9B"
    ),
    "glm4": Architecture(
        ("glm4",), others.glm, names.llama(names.attention(), names.GLM4_NORMS, *names.FUSED_MLP), "GLM-4-0414"
    ),
    "command-r": Architecture(
        ("cohere",), others.cohere,
        names.llama(names.attention(), {"attn_norm": "input_layernorm"}, *names.mlp(), *names.qk_norms()),
        "Command R, Aya 23",
    ),
    "cohere2": Architecture(
        ("cohere2",), others.cohere2,
        names.llama(names.attention(), {"attn_norm": "input_layernorm"}, *names.mlp()), "Command R7B, Command A",
    ),
    "stablelm": Architecture(("stablelm",), others.stablelm, names.STABLELM, "StableLM"),
    "orion": Architecture(("stablelm",), others.orion, names.PLAIN_LLAMA, "Orion"),
    "nemotron": Architecture(
        ("nemotron",), others.nemotron,
        names.llama(names.attention(), names.TWO_NORMS, *names.UNGATED, change=names.MINUS_ONE), "Nemotron, Minitron",
    ),
    "starcoder2": Architecture(
        ("starcoder2",), others.starcoder2,
        names.llama(
            names.attention(), names.TWO_NORMS, *names.renamed({"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"})
        ),
        "StarCoder 2",
    ),
    "gpt-oss": Architecture(("gpt_oss",), others.gpt_oss, names.GPT_OSS, "gpt-oss"),
    "deepseek2": Architecture(
        ("deepseek_v2", "deepseek_v3"), others.deepseek2, names.DEEPSEEK2, "DeepSeek V2, V2.5, V3 and R1"
    ),
    "gpt2": Architecture(("gpt2",), others.gpt2, names.GPT2, "GPT-2"),
    "gptj": Architecture(("gptj",), others.gptj, names.GPTJ, "GPT-J"),
    "gptneox": Architecture(("gpt_neox",), others.gptneox, names.GPTNEOX, "GPT-NeoX, Pythia"),
    "starcoder": Architecture(("gpt_bigcode",), others.starcoder, names.STARCODER, "StarCoder 1, SantaCoder"),
    "falcon": Architecture(("falcon",), others.falcon, falcon_tensors, "Falcon 7B, 11B, 40B and 180B"),
    "bloom": Architecture(("bloom",), others.bloom, names.BLOOM, "BLOOM"),
    "mpt": Architecture(("mpt",), others.mpt, names.MPT, "MPT"),
}  # fmt: skip
