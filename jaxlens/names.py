"""TransformerLens's short names for activations."""

import re

ACTIVATION_ALIASES = {
    "attn": "pattern", "attn_logits": "attn_scores", "key": "k", "query": "q", "value": "v",
    "mlp_pre": "pre", "mlp_mid": "mid", "mlp_post": "post",
}  # fmt: skip
LAYER_TYPE_ALIASES = {"a": "attn", "attention": "attn", "m": "mlp", "b": "", "block": "", "blocks": ""}
IN_ATTENTION = ("k", "v", "q", "z", "rot_k", "rot_q", "result", "pattern", "attn_scores")
IN_MLP = ("pre", "post", "mid", "pre_linear")


def get_act_name(name: str, layer: int | str | None = None, layer_type: str | None = None) -> str:
    """The full name of an activation from its short one.

    Example:
        >>> get_act_name("k", 6, "a"), get_act_name("pre", 2), get_act_name("embed"), get_act_name("scale", 2, "ln2")
        ('blocks.6.attn.hook_k', 'blocks.2.mlp.hook_pre', 'hook_embed', 'blocks.2.ln2.hook_scale')
        >>> get_act_name("k6"), get_act_name("scale4ln1"), get_act_name("pre5"), get_act_name("scale")
        ('blocks.6.attn.hook_k', 'blocks.4.ln1.hook_scale', 'blocks.5.mlp.hook_pre', 'ln_final.hook_scale')
    """
    if layer is None and layer_type is None:
        if "." in name or name.startswith("hook_"):
            return name
        if packed := re.fullmatch(r"([a-z_]+)(\d+)(.*)", name):
            name, layer, layer_type = packed[1], int(packed[2]), packed[3] or None
    name = ACTIVATION_ALIASES.get(name, name)
    if name in IN_ATTENTION:
        layer_type = "attn"
    elif name in IN_MLP:
        layer_type = "mlp"
    else:
        layer_type = LAYER_TYPE_ALIASES.get(layer_type, layer_type)
    place = (f"blocks.{layer}." if layer is not None else "") + (f"{layer_type}." if layer_type else "")
    if name in ("scale", "normalized") and layer is None:
        place = "ln_final."
    return f"{place}hook_{name}"
