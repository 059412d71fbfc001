"""The tensors of llama.cpp's architectures: their names, those of Hugging Face, and the changes between the two.

An `Entry` describes a tensor of Hugging Face, and the tensors of a GGUF file from which it is made. `{i}` in a name
stands for the layer, and `{e}` for the expert or head. If a name ends in neither `.weight` nor `.bias`, the entry
describes both. The functions return the entries of a module of a layer, or of several modules.
"""

import dataclasses
from collections.abc import Iterable, Mapping

from jaxlens.checkpoints.gguf.changes import (
    SAME,
    Alternating,
    AsRow,
    Change,
    Joined,
    KeysAndValues,
    Part,
    Plus,
    Rows,
    Transposed,
    by_group,
    by_head,
    halves,
    qkv_sizes,
    two_halves,
)

STORED = "blk.{i}."
LAYER = "model.layers.{i}."
GPT_LAYER = "transformer.h.{i}."
SUFFIXES = (".weight", ".bias")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor of Hugging Face, `theirs`, and the GGUF tensors from which `change` makes it, `stored`.

    If `theirs` contains `{e}` and `stored` does not, the expert or head is an entry of the first axis of `stored`.
    """

    theirs: str
    stored: tuple[str, ...]
    change: Change = SAME


Entries = tuple[Entry, ...]


def renamed(names: Mapping[str, str], change: Change = SAME, theirs: str = LAYER, stored: str = STORED) -> Entries:
    """One entry for each name in a GGUF file (key), with the prefixes `theirs` and `stored`."""
    return tuple(Entry(theirs + name, (stored + key,), change) for key, name in names.items())


def outside(names: Mapping[str, str]) -> Entries:
    """Entries outside the layers."""
    return renamed(names, theirs="", stored="")


def attention(
    prefix: str = LAYER + "self_attn.", out: str = "o_proj", queries: Change = SAME, keys: Change = SAME,
) -> Entries:  # fmt: skip
    """Projections of attention: separate in Hugging Face, and separate or fused in the file."""
    changes = {"q": queries, "k": keys, "v": SAME}
    separate = (Entry(f"{prefix}{x}_proj", (f"{STORED}attn_{x}",), change) for x, change in changes.items())
    fused = (
        Entry(f"{prefix}{x}_proj", (f"{STORED}attn_qkv",), Part(i, qkv_sizes, change))
        for i, (x, change) in enumerate(changes.items())
    )
    return (*separate, *fused, Entry(prefix + out, (f"{STORED}attn_output",)))


def rotated_attention() -> Entries:
    """`attention` of architectures whose rotation acts on adjacent rows in llama.cpp, and on halves in Hugging Face."""
    return attention(queries=halves("heads"), keys=halves("kv_heads"))


def qk_norms(names: str = "{}_norm") -> Entries:
    return renamed({f"attn_{x}_norm": f"self_attn.{names.format(x)}" for x in "qk"})


def mlp(prefix: str = "mlp.") -> Entries:
    return renamed({f"ffn_{kind}": f"{prefix}{kind}_proj" for kind in ("gate", "up", "down")})


def experts(prefix: str = "mlp.", names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")) -> Entries:
    """A router and experts: separate tensors in Hugging Face, and tensors with all experts in the file.

    Older files have separate tensors, and some newer files have gate and up in one tensor.
    """
    kinds = dict(zip(("gate", "up", "down"), names, strict=True))
    each = LAYER + prefix + "experts.{e}."
    return (
        *renamed({"ffn_gate_inp": f"{prefix}gate"}),
        *(Entry(each + name, (f"{STORED}ffn_{kind}_exps",)) for kind, name in kinds.items()),
        *(Entry(each + name, (f"{STORED}ffn_{kind}.{{e}}",)) for kind, name in kinds.items()),
        *(Entry(each + name, (f"{STORED}ffn_gate_up_exps",), Part(i, two_halves)) for i, name in enumerate(names[:2])),
    )


def shared_expert(prefix: str = "mlp.shared_expert.") -> Entries:
    return renamed({f"ffn_{kind}_shexp": f"{prefix}{kind}_proj" for kind in ("gate", "up", "down")})


def llama(
    attention: Iterable[Entry], norms: Mapping[str, str], *modules: Entry, change: Change = SAME
) -> Entries:  # fmt: skip
    """All tensors of a model with Llama's names. `change` applies to the weights of the norms."""
    weights = {f"{stored}.weight": f"{LAYER}{name}.weight" for stored, name in norms.items()}
    biases = {f"{stored}.bias": f"{LAYER}{name}.bias" for stored, name in norms.items()}
    return (
        *outside({"token_embd": "model.embed_tokens", "output": "lm_head"}),
        *outside({"output_norm.bias": "model.norm.bias"}),
        *renamed({"output_norm.weight": "model.norm.weight"}, change, "", ""),
        *renamed(weights, change, theirs=""), *renamed(biases, theirs=""), *attention, *modules,
    )  # fmt: skip


TWO_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
FOUR_NORMS = {
    "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
POST_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
GLM4_NORMS = {
    "attn_norm": "input_layernorm", "post_attention_norm": "post_self_attn_layernorm",
    "ffn_norm": "post_attention_layernorm", "post_ffw_norm": "post_mlp_layernorm",
}  # fmt: skip
GPT_OSS_NORMS = {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
APERTUS_NORMS = {"attn_norm": "attention_layernorm", "ffn_norm": "feedforward_layernorm"}

UNGATED = renamed({"ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"})
FUSED_MLP = renamed({"ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj"})
SPARSE_MOE = experts("block_sparse_moe.", ("w1", "w3", "w2"))
MINUS_ONE = Plus(-1)

LLAMA = llama(rotated_attention(), TWO_NORMS, *mlp(), *SPARSE_MOE)
PLAIN_LLAMA = llama(attention(), TWO_NORMS, *mlp())
MOE = llama(
    attention(), TWO_NORMS, *mlp(), *qk_norms(), *experts(), *shared_expert(),
    *renamed({"ffn_gate_inp_shexp": "mlp.shared_expert_gate"}, AsRow()),
)  # fmt: skip
GPT_OSS = llama(
    attention(), GPT_OSS_NORMS, *renamed({"ffn_gate_inp": "mlp.router"}),
    *renamed({"attn_sinks.weight": "self_attn.sinks"}),
    Entry(LAYER + "mlp.experts.gate_up_proj", tuple(f"{STORED}ffn_{x}_exps.weight" for x in ("gate", "up")),
          Alternating()),
    Entry(LAYER + "mlp.experts.gate_up_proj_bias", tuple(f"{STORED}ffn_{x}_exps.bias" for x in ("gate", "up")),
          Alternating()),
    *renamed({"ffn_down_exps.weight": "mlp.experts.down_proj"}, Transposed()),
    *renamed({"ffn_down_exps.bias": "mlp.experts.down_proj_bias"}),
)  # fmt: skip
GRANITE_MOE = llama(
    rotated_attention(), TWO_NORMS,
    *renamed({"ffn_gate_inp": "block_sparse_moe.router.layer", "ffn_down_exps": "block_sparse_moe.output_linear"}),
    Entry(LAYER + "block_sparse_moe.input_linear", (f"{STORED}ffn_gate_exps", f"{STORED}ffn_up_exps"), Joined()),
    *renamed({"ffn_gate_up_exps": "block_sparse_moe.input_linear"}),
)  # fmt: skip
LATENT_ATTENTION = (
    *renamed({
        "attn_q": "self_attn.q_proj", "attn_q_a": "self_attn.q_a_proj", "attn_q_a_norm": "self_attn.q_a_layernorm",
        "attn_q_b": "self_attn.q_b_proj", "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
        "attn_kv_a_norm": "self_attn.kv_a_layernorm", "attn_kv_b": "self_attn.kv_b_proj",
        "attn_output": "self_attn.o_proj",
    }),
    Entry(LAYER + "self_attn.kv_b_proj.weight", (f"{STORED}attn_k_b.weight", f"{STORED}attn_v_b.weight"),
          KeysAndValues()),
)  # fmt: skip
DEEPSEEK2 = llama(
    LATENT_ATTENTION, TWO_NORMS, *mlp(), *experts(), *shared_expert("mlp.shared_experts."),
    *renamed({"exp_probs_b.bias": "mlp.gate.e_score_correction_bias"}),
)  # fmt: skip
STABLELM = (
    *PLAIN_LLAMA,
    *renamed({f"attn_{x}_norm.weight": f"self_attn.{x}_layernorm.norms.{{e}}.weight" for x in "qk"}),
)
PHI2 = (
    *outside({"token_embd": "model.embed_tokens", "output_norm": "model.final_layernorm", "output": "lm_head"}),
    *attention(out="dense"),
    *renamed({"attn_norm": "input_layernorm", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"}),
)
FUSED_QKV = renamed({"attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj"})

# ---- names of GPT ---------------------------------------------------------------------------------------------------

GPT_OUTSIDE = {"token_embd": "transformer.wte", "output_norm": "transformer.ln_f", "output": "lm_head"}
GPT_NORMS = renamed({"attn_norm": "ln_1", "ffn_norm": "ln_2"}, theirs=GPT_LAYER)
GPT_MODULES = {
    "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
}  # fmt: skip
GPT2 = (
    *outside(GPT_OUTSIDE | {"position_embd": "transformer.wpe"}), *GPT_NORMS,
    *renamed(GPT_MODULES, Transposed(), GPT_LAYER),
)  # fmt: skip
STARCODER = (
    *outside(GPT_OUTSIDE | {"position_embd": "transformer.wpe"}), *GPT_NORMS, *renamed(GPT_MODULES, theirs=GPT_LAYER),
)  # fmt: skip
GPTJ = (
    *outside(GPT_OUTSIDE), *GPT_NORMS, *attention(GPT_LAYER + "attn.", "out_proj"),
    *renamed({"ffn_up": "mlp.fc_in", "ffn_down": "mlp.fc_out"}, theirs=GPT_LAYER),
)  # fmt: skip
QWEN = (
    *outside(GPT_OUTSIDE), *GPT_NORMS,
    *renamed({
        "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_gate": "mlp.w2", "ffn_up": "mlp.w1",
        "ffn_down": "mlp.c_proj",
    }, theirs=GPT_LAYER),
)  # fmt: skip
BLOOM_MODULES = {
    "attn_output": "self_attention.dense", "ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h",
}  # fmt: skip
BLOOM_OUTSIDE = {
    "token_embd": "transformer.word_embeddings", "token_embd_norm": "transformer.word_embeddings_layernorm",
    "output_norm": "transformer.ln_f", "output": "lm_head",
}  # fmt: skip
BLOOM = (
    *outside(BLOOM_OUTSIDE), *renamed(TWO_NORMS | BLOOM_MODULES, theirs=GPT_LAYER),
    *renamed({"attn_qkv": "self_attention.query_key_value"}, Rows(by_head), GPT_LAYER),
)  # fmt: skip
FALCON = (
    *outside(BLOOM_OUTSIDE), *renamed(BLOOM_MODULES, theirs=GPT_LAYER),
    *renamed({"attn_qkv": "self_attention.query_key_value"}, Rows(by_group), GPT_LAYER),
)  # fmt: skip
FALCON_ONE_NORM = (*FALCON, *renamed({"attn_norm": "input_layernorm"}, theirs=GPT_LAYER))
FALCON_TWO_NORMS = (*FALCON, *renamed({"attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"}, theirs=GPT_LAYER))
MPT = (
    *outside({"token_embd": "transformer.wte", "output_norm": "transformer.norm_f", "output": "lm_head"}),
    *renamed({
        "attn_norm": "norm_1", "attn_qkv": "attn.Wqkv", "attn_output": "attn.out_proj", "ffn_norm": "norm_2",
        "ffn_up": "ffn.up_proj", "ffn_down": "ffn.down_proj",
    }, theirs="transformer.blocks.{i}."),
)  # fmt: skip
GPTNEOX = (
    *outside({"token_embd": "gpt_neox.embed_in", "output_norm": "gpt_neox.final_layer_norm", "output": "embed_out"}),
    *renamed({
        **TWO_NORMS, "attn_output": "attention.dense", "ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h",
    }, theirs="gpt_neox.layers.{i}."),
    *renamed({"attn_qkv": "attention.query_key_value"}, Rows(by_head), "gpt_neox.layers.{i}."),
)  # fmt: skip
