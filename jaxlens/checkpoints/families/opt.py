"""OPT, and models of the same architecture: Galactica.

The 350M model has norms after the residual additions, and a token embedding that is narrower than the residual stream.
"""

from collections.abc import Iterator

from jaxlens.checkpoints.rules import Family, Reader, Rule
from jaxlens.checkpoints.rules.config_helpers import fairseq_config
from jaxlens.checkpoints.rules.tensor_rules import fairseq_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    for name, value in {"learned_embeddings": True, "scale_embeddings": False}.items():  # fields of Galactica
        hf.expect(name, value, because="transformers' OPT supports no other value")
    hf.expect("_remove_final_layer_norm", False, because="jaxlens implements pre-norm OPT with a final norm only")
    if not (norm_first := hf.flag("do_layer_norm_before")):
        hf.expect("layer_norm_elementwise_affine", True, because="norms after the residual additions need weights")
    d_embed = hf.size("word_embed_proj_dim")
    linear = ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out") if hf.flag("enable_bias") else ()
    return fairseq_config(
        hf, norm_placement="pre" if norm_first else "sum",
        normalization_type="LN" if hf.flag("layer_norm_elementwise_affine") else "LNPre", biases=("norm", *linear),
        d_embed=None if d_embed == hf.size("hidden_size") else d_embed,
    )  # fmt: skip


def rules(cfg: Config) -> Iterator[Rule]:
    yield from fairseq_rules(cfg, "model.decoder.", "final_layer_norm")
    if cfg.d_embed:
        yield Rule("model.decoder.project_in.weight", "embed.W_proj", "d w -> w d")
        yield Rule("model.decoder.project_out.weight", "unembed.W_proj", "w d -> d w")


FAMILY = Family(
    model_types=("opt",), config=config, rules=rules, copies=(("lm_head.weight", "model.decoder.embed_tokens.weight"),)
)
