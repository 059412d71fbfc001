"""OPT (and Galactica). The 350M model has norms after the sums, and embeds tokens in fewer dimensions than it computes
in."""

from collections.abc import Iterator

from jaxlens.config import Config
from jaxlens.convert.common import fairseq_config
from jaxlens.convert.layouts import fairseq_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family, Rule


def config(hf: Reader) -> Config:
    for name in ("enable_bias", "layer_norm_elementwise_affine"):
        hf.expect(name, True, because="a norm or a linear map without it has no rule here")
    hf.expect("_remove_final_layer_norm", False, because="where norms come first, one comes last as well")
    d_embed = hf.size("word_embed_proj_dim")
    return fairseq_config(
        hf,
        norm_placement="pre" if hf.flag("do_layer_norm_before") else "sum",
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
    unused=("dropout", "activation_dropout", "layerdrop", "init_std"),  # of training
    copies=(("lm_head.weight", "model.decoder.embed_tokens.weight"),),
)
