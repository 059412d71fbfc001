"""OPT (and Galactica). The 350M model has norms after the sums, and embeds tokens in fewer dimensions than it computes
in."""

from collections.abc import Iterator

from jaxlens.config import Config
from jaxlens.convert.common import fairseq_config
from jaxlens.convert.layouts import fairseq_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family, Rule


def config(hf: Reader) -> Config:
    for name, only in {"learned_embeddings": True, "scale_embeddings": False}.items():  # Galactica's
        hf.expect(name, only, because="transformers' OPT knows no other")
    hf.expect("_remove_final_layer_norm", False, because="where norms come first, one comes last as well")
    if not (first := hf.flag("do_layer_norm_before")):
        hf.expect("layer_norm_elementwise_affine", True, because="norms of sums have weights here")
    d_embed = hf.size("word_embed_proj_dim")
    linear = ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out") if hf.flag("enable_bias") else ()
    return fairseq_config(
        hf,
        norm_placement="pre" if first else "sum",
        normalization_type="LN" if hf.flag("layer_norm_elementwise_affine") else "LNPre",
        biases=("norm", *linear),
        d_embed=None if d_embed == hf.size("hidden_size") else d_embed,
    )


def rules(cfg: Config) -> Iterator[Rule]:
    yield from fairseq_rules(cfg, "model.decoder.", "final_layer_norm")
    if cfg.d_embed:
        yield Rule("model.decoder.project_in.weight", "embed.W_proj", "d w -> w d")
        yield Rule("model.decoder.project_out.weight", "unembed.W_proj", "w d -> d w")


FAMILY = Family(
    model_types=("opt",),
    config=config,
    rules=rules,
    copies=(("lm_head.weight", "model.decoder.embed_tokens.weight"),),
)
