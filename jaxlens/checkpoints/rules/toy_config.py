"""The Config of TransformerLens's toy models, whose config.json contains the settings of a training run."""

from jaxlens.checkpoints.rules.config_helpers import activation
from jaxlens.checkpoints.rules.hf_config import Reader
from jaxlens.config import Config

CHECKED = (
    "attention_dir", "attn_scale", "attn_scores_soft_cap", "d_vocab_out", "gated_mlp", "n_key_value_heads",
    "norm_placement", "num_experts", "output_logits_soft_cap", "parallel_attn_mlp", "post_embedding_ln", "rotary_dim",
    "scale_attn_by_inverse_layer_idx", "tie_word_embeddings", "use_attn_scale", "use_local_attn",
    "use_normalization_before_and_after", "use_qk_norm", "window_size",
)  # fmt: skip
"""Fields of Config and of TransformerLens that change a forward pass, and that no toy model sets."""

UNSET = (None, -1)


def toy_config(hf: Reader) -> Config:
    """The Config of a toy model. Fields that TransformerLens does not read must have the value of the Config.

    The other fields are settings of the training run, without effect on a forward pass.
    """
    attn_only, sizes = hf.flag("attn_only"), ("n_layers", "d_model", "n_heads", "d_head", "d_vocab", "n_ctx")
    kind = hf("normalization", hf("normalization_type", None))
    if not isinstance(tokenizer_name := hf("tokenizer_name", None), str | None):
        raise hf.refused("tokenizer_name", "expected a string or null")
    absent = {"b_in", "b_out"} if attn_only else set()
    absent |= set() if kind == "LN" else {"norm"}
    cfg = Config(
        **{name: hf.size(name) for name in sizes},
        attn_only=attn_only,
        d_mlp=None if attn_only else hf.size("d_mlp"),
        act_fn="relu" if attn_only else activation(hf, "act_fn"),
        normalization_type=kind,
        final_rms=hf.flag("final_rms") or None,
        eps=hf.positive("eps", 1e-5),
        positional_embedding_type=_positions(hf),
        biases=tuple(hf("biases", [bias for bias in Config.biases if bias not in absent])),
        tokenizer_name=tokenizer_name,
    )
    for name, value in hf.unread().items():
        if name in CHECKED and value not in UNSET and value != getattr(cfg, name):
            raise hf.refused(name, f"expected {getattr(cfg, name)!r}, as in TransformerLens's toy models")
        hf(name, None)  # marks the field as read
    return cfg


def _positions(hf: Reader) -> str:
    if hf("shortformer_pos", None) is not None:
        return "shortformer" if hf.flag("shortformer_pos") else "standard"
    hf.expect("positional_embedding_type", "standard", "shortformer", because="toy models have learned positions")
    return hf("positional_embedding_type", "standard")
