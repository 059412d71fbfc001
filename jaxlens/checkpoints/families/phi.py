"""Phi 1, 1.5 and 2: parallel attention and MLP behind one norm, biases everywhere, and partly rotated heads."""

from collections.abc import Iterator

from jaxlens.checkpoints.rules import Family, Reader, Rule
from jaxlens.checkpoints.rules.config_helpers import head_dim, llama_config, rotary_embedding
from jaxlens.checkpoints.rules.tensor_rules import LAYER, attention_rules, mlp_rules, norm_rules, unembed_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    biases = ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out", "norm", "b_U")
    norms = {}
    if hf.flag("qk_layernorm"):
        norms, biases = {"qk_norm": "head", "qk_norm_type": "LN"}, (*biases, "qk_norm")
    return llama_config(
        hf, eps="layer_norm_eps", normalization_type="LN", parallel_attn_mlp=True, shared_norm=True, gated_mlp=False,
        rotary=rotary_embedding(hf, d_head=head_dim(hf)), biases=biases, **norms,
    )  # fmt: skip


def rules(cfg: Config) -> Iterator[Rule]:
    yield Rule("model.embed_tokens.weight", "embed.W_E", "v d")
    yield from norm_rules(cfg, LAYER + "input_layernorm", "blocks.{l}.ln1")
    yield from attention_rules(cfg, out="dense", norm="{short}_layernorm")
    yield from mlp_rules(cfg, LAYER + "mlp.fc1", LAYER + "mlp.fc2")
    yield from norm_rules(cfg, "model.final_layernorm", "ln_final")
    yield from unembed_rules(cfg)


FAMILY = Family(model_types=("phi",), config=config, rules=rules)
