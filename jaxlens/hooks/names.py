"""Names of hook points: full names, TransformerLens's short names, and selection by name, wildcard or filter."""

import difflib
import functools
import re
from collections.abc import Callable

from jaxlens.config import Config
from jaxlens.errors import HookError
from jaxlens.hooks.table import ALIASES, BLOCK_NAMES, EMBED_NAMES, FINAL_NAMES, sites

HookName = str | Callable[[str], bool]

# --- TransformerLens's short names

ACTIVATION_ALIASES = {
    "attn": "pattern", "attn_logits": "attn_scores", "key": "k", "query": "q", "value": "v",
    "mlp_pre": "pre", "mlp_mid": "mid", "mlp_post": "post",
}  # fmt: skip
LAYER_TYPE_ALIASES = {"a": "attn", "attention": "attn", "m": "mlp", "b": "", "block": "", "blocks": ""}
IN_ATTENTION = ("k", "v", "q", "z", "rot_k", "rot_q", "result", "pattern", "attn_scores")
IN_MLP = ("pre", "post", "mid", "pre_linear")


def get_act_name(name: str, layer: int | str | None = None, layer_type: str | None = None) -> str:
    """The full name of an activation from its short name.

    Example:
        >>> get_act_name("k", 6, "a"), get_act_name("pre", 2), get_act_name("embed"), get_act_name("scale", 2, "ln2")
        ('blocks.6.attn.hook_k', 'blocks.2.mlp.hook_pre', 'hook_embed', 'blocks.2.ln2.hook_scale')
        >>> get_act_name("k6"), get_act_name("scale4ln1"), get_act_name("pre5"), get_act_name("scale")
        ('blocks.6.attn.hook_k', 'blocks.4.ln1.hook_scale', 'blocks.5.mlp.hook_pre', 'ln_final.hook_scale')
        >>> get_act_name("ln2.hook_out", 3), get_act_name("out", 3, "ln2")
        ('blocks.3.ln2.hook_out', 'blocks.3.ln2.hook_out')
    """
    if layer_type is None and ("." in name or name.startswith("hook_")):
        return name if layer is None else f"blocks.{layer}.{name}"
    packed = re.fullmatch(r"([a-z_]+)(\d+)(.*)", name)
    if layer is None and layer_type is None and packed:
        name, layer, layer_type = packed[1], int(packed[2]), packed[3] or None
    name = ACTIVATION_ALIASES.get(name, name)
    if name in IN_ATTENTION:
        layer_type = "attn"
    elif name in IN_MLP:
        layer_type = "mlp"
    else:
        layer_type = LAYER_TYPE_ALIASES.get(layer_type, layer_type)
    prefix = (f"blocks.{layer}." if layer is not None else "") + (f"{layer_type}." if layer_type else "")
    if name in ("scale", "normalized") and layer is None:
        prefix = "ln_final."
    return f"{prefix}hook_{name}"


# --- full names


@functools.lru_cache(maxsize=65536)
def split_name(name: str) -> tuple[str, int | None]:
    """Splits a full name into site and layer.

    Example:
        >>> split_name("blocks.3.attn.hook_z"), split_name("hook_embed")
        (('attn.hook_z', 3), ('hook_embed', None))
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    return (match[2], int(match[1])) if match else (name, None)


def without_alias(cfg: Config, name: str) -> str:
    """The name of the hook point that a name stands for: TransformerLens 4's name of a site is replaced.

    A name of a hook point of the model is kept. The name may be a wildcard, or end with "_grad".

    Example:
        >>> cfg = Config(n_layers=1, d_model=12, n_heads=3, d_head=5, d_vocab=50, n_ctx=16)
        >>> without_alias(cfg, "blocks.0.mlp.hook_in"), without_alias(cfg, "blocks.*.hook_out")
        ('blocks.0.ln2.hook_out', 'blocks.*.hook_resid_post')
    """
    block, site = _block_and_site(name)
    stem = site.removesuffix("_grad")
    target = ALIASES.get(stem)
    is_alias = block and f"blocks.0.{stem}" not in sites(cfg) and f"blocks.0.{target}" in sites(cfg)
    return f"{block}{target}{site.removeprefix(stem)}" if is_alias else name


def _block_and_site(name: str) -> tuple[str, str]:
    """Splits "blocks.3." or "blocks.*." from a name."""
    match = re.match(r"blocks\.[^.]*\.", name)
    return (match[0], name[match.end() :]) if match else ("", name)


def matching(cfg: Config, names: HookName) -> list[str]:
    """The full names that `names` selects: a full name, a wildcard such as "blocks.*.hook_mlp_out", or a filter.

    A filter selects an on-request point only if it is specific, that is, rejects other names with the same beginning.
    `lambda name: "attn" in name` does not select `hook_attn_in`; `lambda name: name.endswith("hook_attn_in")` does.
    """
    table = sites(cfg)
    if callable(names):
        selected = [n for n in table if names(n) and (is_cached_by_default(cfg, n) or not names(_sibling(n)))]
        if selected:
            return selected
        label, count = getattr(names, "__name__", names), len(table)
        raise HookError(f"the filter {label!r} matches none of the model's {count} hook points; see `model.hook_dict`")
    if not isinstance(names, str):
        raise HookError(f"a hook name is a string or a filter function; got {type(names).__name__}")
    name = without_alias(cfg, names)
    if name in table:
        return [name]
    if name.startswith("blocks.*."):
        site = name.removeprefix("blocks.*.")
        if selected := [full for full in table if full.startswith("blocks.") and split_name(full)[0] == site]:
            return selected
    raise HookError(_unknown(cfg, names))


def is_cached_by_default(cfg: Config, name: str) -> bool:
    """Whether an unfiltered cache contains a hook point. On-request points must be in `cfg.switched_on`."""
    site = sites(cfg)[name]
    return not site.on_request or site.name in cfg.switched_on


def why_not_cached(cfg: Config, name: str) -> str:
    """Why the cache of a run may hold no activation of this name, "blocks.*" included, or an empty string."""
    of_model = [entry for entry in sites(cfg) if name in (entry, f"blocks.*.{split_name(entry)[0]}")]
    if of_model and not any(is_cached_by_default(cfg, entry) for entry in of_model):
        return f'it is cached only on request, with names_filter="{name}"'
    return why_no_norm_output(cfg, name)


def _sibling(name: str) -> str:
    """A made-up name with the same beginning: hook_mlp_another for hook_mlp_in."""
    return f"{name.rpartition('_')[0]}_another"


def _unknown(cfg: Config, name: str) -> str:
    """The error message for a name that matches no hook point of this model."""
    site, layer = split_name(without_alias(cfg, name))
    site = site.removeprefix("blocks.*.")
    if layer is not None and layer >= cfg.n_layers and site in BLOCK_NAMES:
        return f'there is no hook point "{name}": the model has layers 0 to {cfg.n_layers - 1}'
    if reason := why_no_norm_output(cfg, name):
        return f'there is no hook point "{name}" in this model: {reason}'
    if (site in BLOCK_NAMES and name != site) or name in (*EMBED_NAMES, *FINAL_NAMES):
        return f'there is no hook point "{name}" in this model: its config leaves that module out'
    in_blocks = dict.fromkeys(split_name(full)[0] for full in sites(cfg) if full.startswith("blocks."))
    candidates = list(sites(cfg)) + [f"blocks.*.{site}" for site in in_blocks]
    short = [full for full in sites(cfg) if full.split(".")[-1] in (name, f"hook_{name}")][:1]
    near = short + difflib.get_close_matches(name, candidates, n=3, cutoff=0.5)
    offered = " or ".join(f'"{full}"' for full in dict.fromkeys(near))
    advice = f"did you mean {offered}?" if near else "`model.hook_dict` lists them"
    return f'there is no hook point "{name}"; {advice}'


def why_no_norm_output(cfg: Config, name: str) -> str:
    """Why a model lacks the input of attention or of the MLP that `name` stands for, and what to use. Else empty."""
    block, site = _block_and_site(name)
    output = ALIASES.get(site, site)
    if output not in ("ln1.hook_out", "ln2.hook_out"):
        return ""
    norm = "ln1" if site == "mlp.hook_in" and cfg.shared_norm else output.removesuffix(".hook_out")
    if f"blocks.0.{norm}.hook_normalized" in sites(cfg):
        if f"blocks.0.{norm}.hook_out" in sites(cfg):
            return ""
        why = f'its norms have no weights (normalization_type="{cfg.normalization_type}")'
        why = f"{why}, because fold_ln moved them into the next linear map or the checkpoint has none"
        return f'{why}; load the model with fold_ln=False, or use "{block}{norm}.hook_normalized"'
    if site == "attn.hook_in" or (site == "mlp.hook_in" and not cfg.attn_only):
        parallel = site == "attn.hook_in" or cfg.parallel_attn_mlp
        return f'no norm precedes this input; use "{block}hook_resid_{"pre" if parallel else "mid"}"'
    return ""
