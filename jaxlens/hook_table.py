"""Every hook point of a model: its name, the axes of its value, what it is, and when it exists.

This table is the only list of hook points. The names a model accepts, the order of its cache, the nearest-name
suggestions, the position axis of every activation and the documentation page all come from it.

Axes: b batch, p (query) position, s source position, d d_model, n query head, k key/value head, h d_head, m d_mlp,
e expert, f d_expert, x d_shared_expert, t d_v_head, r q_lora_rank, z kv_lora_rank, o output vocabulary, 1 an axis of
length one.
"""

import dataclasses
import difflib
import functools
import re
from collections.abc import Callable

from jaxlens.config import Config
from jaxlens.errors import HookError

Condition = Callable[[Config, int], bool]


@dataclasses.dataclass(frozen=True)
class Site:
    """One row: a hook point of the model, or of every block that meets `exists`.

    `on_request` sites cost something to make, or TransformerLens makes them only behind a flag: they exist when a hook
    or a names_filter asks for them, and are not part of an unfiltered cache.
    """

    name: str
    axes: str
    meaning: str
    exists: Condition = lambda cfg, layer: True
    on_request: bool = False

    @property
    def position_axis(self) -> int:
        """Which axis counts (query) positions, from the end."""
        letters = self.axes.split()
        return letters.index("p") - len(letters)


def _mixes(cfg: Config, layer: int) -> bool:
    return bool(cfg.moe_layers) and cfg.moe_layers[layer]


def _rotary(cfg: Config, layer: int) -> bool:
    return cfg.rotary_dim is not None


def _has_norm(*placements: str) -> Condition:
    return lambda cfg, layer: cfg.normalization_type is not None and cfg.norm_placement in placements


def _has_mlp(cfg: Config, layer: int) -> bool:
    return not cfg.attn_only


def _has_own_ln2(cfg: Config, layer: int) -> bool:
    return _has_mlp(cfg, layer) and not cfg.shared_norm and _has_norm("pre", "both")(cfg, layer)


def _has_ln2_post(cfg: Config, layer: int) -> bool:
    return _has_mlp(cfg, layer) and _has_norm("post", "both")(cfg, layer)


def _plain_mlp(cfg: Config, layer: int) -> bool:
    return _has_mlp(cfg, layer) and not _mixes(cfg, layer)


def _norm_inside_mlp(cfg: Config, layer: int) -> bool:
    return _plain_mlp(cfg, layer) and cfg.act_fn.endswith("_ln")


def _heads_read(cfg: Config, layer: int) -> bool:
    """Where heads share a latent, none reads the residual stream by itself."""
    return cfg.kv_lora_rank is None


def _ungrouped(cfg: Config, layer: int) -> bool:
    return cfg.n_heads == cfg.n_key_value_heads and _heads_read(cfg, layer)


def _norm_sites(place: str, axes: str, scale_axes: str, of: str, exists: Condition) -> list[Site]:
    return [
        Site(f"{place}.hook_scale", scale_axes, f"what {of} is divided by", exists),
        Site(f"{place}.hook_normalized", axes, f"{of}, divided; before weight and bias", exists),
    ]


def _qk_norm_sites(place: str, heads: str, of: str) -> list[Site]:
    """Per-head norms have a scale for every head, full-width ones a single scale."""
    head, full = ((lambda cfg, layer, kinds=kinds: cfg.qk_norm in kinds) for kinds in (("head", "heads"), ("full",)))
    return [
        *_norm_sites(place, f"b p {heads} h", f"b p {heads} 1", of, head),
        *_norm_sites(place, f"b p {heads} h", "b p 1 1", of, full),
    ]


def _always(cfg: Config, layer: int) -> bool:
    return True


def _latent_queries(cfg: Config, layer: int) -> bool:
    return cfg.q_lora_rank is not None


def _when(condition: Condition, rows: list[Site]) -> list[Site]:
    """Rows that exist only where the condition holds too."""
    return [
        dataclasses.replace(row, exists=lambda cfg, layer, row=row: condition(cfg, layer) and row.exists(cfg, layer))
        for row in rows
    ]


def _rotated_first(cfg: Config, layer: int) -> bool:
    return cfg.qk_norm_after_rotary


def _normed_first(cfg: Config, layer: int) -> bool:
    return not cfg.qk_norm_after_rotary


def _shares(cfg: Config, layer: int) -> bool:
    return _mixes(cfg, layer) and cfg.d_shared_expert is not None


EMBED_SITES = (
    *_norm_sites("embed.ln", "b p d", "b p 1", "the token embedding", lambda cfg, layer: cfg.post_embedding_ln),
    Site("hook_embed", "b p d", "the token embedding"),
    Site(
        "hook_pos_embed",
        "b p d",
        "the position embedding; zero on padding",
        lambda cfg, layer: cfg.positional_embedding_type in ("standard", "shortformer", "sinusoidal"),
    ),
)

BLOCK_SITES = (
    Site("hook_resid_pre", "b p d", "the residual stream as the layer finds it"),
    Site("hook_attn_in", "b p n d", "what every head reads, a copy for each; before ln1", _ungrouped, on_request=True),
    Site("hook_q_input", "b p n d", "what every head's queries read; before ln1", _heads_read, on_request=True),
    Site("hook_k_input", "b p k d", "what every key head reads; before ln1", _heads_read, on_request=True),
    Site("hook_v_input", "b p k d", "what every value head reads; before ln1", _heads_read, on_request=True),
    *_norm_sites("ln1", "b p d", "b p 1", "the residual stream", _has_norm("pre", "both")),
    *_when(_latent_queries, [
        Site("attn.hook_q_latent", "b p r", "what queries are made of, before its norm"),
        *_norm_sites("attn.q_latent_norm", "b p r", "b p 1", "the latent of queries", _always),
    ]),
    Site("attn.hook_q", "b p n h", "queries, before QK-norm and rotation"),
    *_when(lambda cfg, layer: not _heads_read(cfg, layer), [
        Site("attn.hook_kv_latent", "b p z", "what keys and values are made of, before its norm"),
        *_norm_sites("attn.kv_latent_norm", "b p z", "b p 1", "the latent of keys and values", _always),
    ]),
    Site("attn.hook_k", "b p k h", "keys, before QK-norm and rotation; one per key/value head"),
    Site("attn.hook_v", "b p k t", "values; one per key/value head"),
    *_when(_normed_first, _qk_norm_sites("attn.q_norm", "n", "a query")),
    Site("attn.hook_rot_q", "b p n h", "queries, rotated", _rotary),
    *_when(_rotated_first, _qk_norm_sites("attn.q_norm", "n", "a query")),
    *_when(_normed_first, _qk_norm_sites("attn.k_norm", "k", "a key")),
    Site("attn.hook_rot_k", "b p k h", "keys, rotated", _rotary),
    *_when(_rotated_first, _qk_norm_sites("attn.k_norm", "k", "a key")),
    Site("attn.hook_attn_scores", "b n p s", "scores after scale, cap and mask (-inf where masked)"),
    Site("attn.hook_pattern", "b n p s", "attention probabilities; rows sum to 1 (less with a sink), to 0 on padding"),
    Site("attn.hook_z", "b p n t", "the values each head gathered"),
    Site("attn.hook_result", "b p n d", "what each head writes to the residual stream", on_request=True),
    *_norm_sites("ln1_post", "b p d", "b p 1", "attention's output", _has_norm("post", "both")),
    Site("hook_attn_out", "b p d", "what attention adds to the residual stream"),
    *_norm_sites("ln1_sum", "b p d", "b p 1", "the residual stream with attention's output", _has_norm("sum")),
    Site(
        "hook_resid_mid",
        "b p d",
        "the residual stream between attention and MLP",
        lambda cfg, layer: _has_mlp(cfg, layer) and not cfg.parallel_attn_mlp,
    ),
    Site("hook_mlp_in", "b p d", "what the MLP reads; before ln2", _has_mlp, on_request=True),
    *_norm_sites("ln2", "b p d", "b p 1", "the residual stream", _has_own_ln2),
    Site("mlp.hook_expert_weights", "b p e", "the router's probabilities, before the top k are chosen", _mixes),
    Site("mlp.hook_pre", "b p m", "before the activation function (gated: the gate)", _plain_mlp),
    Site(
        "mlp.hook_pre_linear",
        "b p m",
        "what the activated gate multiplies",
        lambda cfg, layer: _plain_mlp(cfg, layer) and cfg.gated_mlp,
    ),
    Site("mlp.hook_pre", "b p e f", "every expert's gate, before the activation function", _mixes),
    Site("mlp.hook_pre_linear", "b p e f", "what every expert's activated gate multiplies", _mixes),
    Site("mlp.hook_mid", "b p m", "after the activation function, before the norm that follows it", _norm_inside_mlp),
    *_norm_sites("mlp.ln", "b p m", "b p 1", "the activations", _norm_inside_mlp),
    Site("mlp.hook_post", "b p m", "the neurons: what W_out reads", _plain_mlp),
    Site("mlp.hook_post", "b p e f", "every expert's neurons", _mixes),
    Site(
        "mlp.hook_shared_gate",
        "b p 1",
        "how much of the shared expert's answer is added",
        lambda cfg, layer: _shares(cfg, layer) and cfg.shared_expert_gate,
    ),
    Site("mlp.shared.hook_pre", "b p x", "the shared expert's gate, before the activation function", _shares),
    Site("mlp.shared.hook_pre_linear", "b p x", "what the shared expert's activated gate multiplies", _shares),
    Site("mlp.shared.hook_post", "b p x", "the shared expert's neurons", _shares),
    *_norm_sites("ln2_post", "b p d", "b p 1", "the MLP's output", _has_ln2_post),
    Site("hook_mlp_out", "b p d", "what the MLP adds to the residual stream", _has_mlp),
    *_norm_sites("ln2_sum", "b p d", "b p 1", "the residual stream with the MLP's output", _has_norm("sum")),
    Site("hook_resid_post", "b p d", "the residual stream as the layer leaves it"),
)

FINAL_SITES = (
    *_norm_sites("ln_final", "b p d", "b p 1", "the residual stream", _has_norm("pre", "post", "both")),
    Site("unembed.hook_in", "b p d", "what the unembedding reads"),
    Site("unembed.hook_out", "b p o", "the logits"),
)

POSITION_AXES = {site.name: site.axes.split().index("p") for site in EMBED_SITES + BLOCK_SITES + FINAL_SITES}
"""Which axis counts (query) positions, from the front, of a value that has its batch axis."""

ALIASES = {"hook_in": "hook_resid_pre", "hook_out": "hook_resid_post"}
"""Newer TransformerLens names of a block's own hook points."""


@functools.cache
def sites(cfg: Config) -> dict[str, Site]:
    """Every hook point of a model by full name, in the order in which they fire.

    Example:
        >>> cfg = Config(n_layers=1, d_model=12, n_heads=3, d_head=5, d_vocab=50, n_ctx=16, attn_only=True)
        >>> [name for name in sites(cfg) if "resid" in name]
        ['blocks.0.hook_resid_pre', 'blocks.0.hook_resid_post']
    """
    table = {site.name: site for site in EMBED_SITES if site.exists(cfg, 0)}
    for layer in range(cfg.n_layers):
        table |= {f"blocks.{layer}.{site.name}": site for site in BLOCK_SITES if site.exists(cfg, layer)}
    return table | {site.name: site for site in FINAL_SITES if site.exists(cfg, 0)}


def split_name(name: str) -> tuple[str, int | None]:
    """A full name as site and layer: "blocks.3.attn.hook_z" is ("attn.hook_z", 3); others have no layer."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    return (match[2], int(match[1])) if match else (name, None)


def matching(cfg: Config, names: "str | Callable[[str], bool]") -> list[str]:
    """The full names that a hook's name, a wildcard `blocks.*.` or a filter function stands for.

    A filter function stands for a point that exists only on request if it picks it out: one that would take any other
    name in its place ("attn" in name, say) does not ask for it.

    Raises:
        HookError: nothing matches; the message offers the nearest names.
    """
    table = sites(cfg)
    if callable(names):
        found = [name for name in table if names(name) and (exists(cfg, name) or not names(_another(name)))]
        if not found:
            raise HookError(
                f"the filter {getattr(names, '__name__', names)!r} matches none of the model's {len(table)} hook "
                "points; they are listed by `model.hook_dict`"
            )
        return found
    if not isinstance(names, str):
        raise HookError(f"a hook point is named by a string or a filter function, not by {type(names).__name__}")
    return _named(cfg, names)


def exists(cfg: Config, name: str) -> bool:
    """Whether a hook point is there without being asked for: most are, the others by a switch (`cfg.switched_on`)."""
    site = sites(cfg)[name]
    return not site.on_request or site.name in cfg.switched_on


def _another(name: str) -> str:
    """The name that a neighbour of this hook point might have: hook_mlp_another beside hook_mlp_in."""
    return f"{name.rpartition('_')[0]}_another"


def _named(cfg: Config, name: str) -> list[str]:
    table = sites(cfg)
    head, _, tail = name.rpartition(".")
    if head.startswith("blocks.") and head.count(".") == 1 and tail in ALIASES:
        name = f"{head}.{ALIASES[tail]}"
    if name in table:
        return [name]
    if name.startswith("blocks.*."):
        wanted = name.removeprefix("blocks.*.")
        if found := [full for full in table if full.startswith("blocks.") and split_name(full)[0] == wanted]:
            return found
    raise HookError(_unknown(cfg, name))


def _unknown(cfg: Config, name: str) -> str:
    """What to say of a name that no hook point of this model has."""
    everywhere = {f"blocks.{layer}.{site.name}" for site in BLOCK_SITES for layer in ("*", *range(cfg.n_layers))}
    site, layer = split_name(name)
    if layer is not None and layer >= cfg.n_layers and any(site == row.name for row in BLOCK_SITES):
        return f'there is no hook point "{name}": the model has layers 0 to {cfg.n_layers - 1}'
    if name in everywhere or name in {site.name for site in EMBED_SITES + FINAL_SITES}:
        return f'there is no hook point "{name}" in this model: its config leaves that part out'
    in_blocks = dict.fromkeys(split_name(full)[0] for full in sites(cfg) if full.startswith("blocks."))
    candidates = list(sites(cfg)) + [f"blocks.*.{site}" for site in in_blocks]
    short = [full for full in sites(cfg) if full.split(".")[-1] in (name, f"hook_{name}")][:1]
    near = short + difflib.get_close_matches(name, candidates, n=3, cutoff=0.5)
    offered = " or ".join(f'"{full}"' for full in dict.fromkeys(near))
    advice = f"did you mean {offered}?" if near else "`model.hook_dict` lists them"
    return f'there is no hook point "{name}"; {advice}'


def page() -> str:
    """The documentation page of all hook points, as Markdown; `make docs` writes it."""
    lines = [
        "# Hook points",
        "",
        "Generated from `jaxlens/hook_table.py` by `make docs`; do not edit.",
        "",
        "Names, shapes and order are those of TransformerLens's HookedTransformer. Axes: `b` batch, `p` (query)",
        "position, `s` source position, `d` d_model, `n` query head, `k` key/value head, `h` d_head, `m` d_mlp, `e`",
        "expert, `f` d_expert, `x` d_shared_expert, `t` d_v_head (d_head in most models), `r` q_lora_rank, `z`",
        "kv_lora_rank, `o` output vocabulary. A hook point that a model's config leaves out does not exist in it;",
        "those marked *on request* exist when a hook or a names_filter asks for them.",
        "`blocks.{l}.hook_in` and `blocks.{l}.hook_out` are other names of `hook_resid_pre` and `hook_resid_post`.",
        "",
        "| name | axes | what it is |",
        "|---|---|---|",
    ]
    rows: dict[tuple[str, str], str] = {}
    for prefix, group in (("", EMBED_SITES), ("blocks.{l}.", BLOCK_SITES), ("", FINAL_SITES)):
        for site in group:
            rows[f"{prefix}{site.name}", site.axes] = site.meaning + (" (*on request*)" if site.on_request else "")
    lines += [f"| `{name}` | `{axes}` | {meaning} |" for (name, axes), meaning in rows.items()]
    lines += ["", "## Where they differ from TransformerLens", "", *(f"- {difference}" for difference in DIFFERENCES)]
    return "\n".join([*lines, ""])


DIFFERENCES = (
    "`ln1.hook_scale` and `ln1.hook_normalized` fire once per layer. TransformerLens runs ln1 three times when its "
    "split inputs are on, and then gives these an axis for heads; here the split "
    "inputs are normalised silently, and an edit of ln1 moves each of them by as much as it moved the shared one.",
    "`attn.q_norm.*` and `attn.k_norm.*` keep their axes `b p n h`; TransformerLens flattens all but the last.",
    "Norms are named by their place: the norm after attention is `ln1_post` in every family (TransformerLens calls it "
    "`ln1` in OLMo 2), and `hook_attn_out` is always what is added to the residual stream.",
    "`hook_attn_in` exists only where every query head has a key/value head of its own; in grouped models use "
    "`hook_q_input`, `hook_k_input` and `hook_v_input`.",
    "Mixture-of-experts values have an expert axis, `b p e f`, under `mlp.hook_pre` and its neighbours; "
    "TransformerLens names every expert's by number and holds only the tokens routed to it.",
    "`hook_tokens` and the shortformer's `attn.hook_attn_input` do not exist.",
)
"""How names, shapes and order differ, each with its reason."""

