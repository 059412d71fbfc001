"""Writes hook_points.md from the hook table: `python docs/hook_points.py`."""

from pathlib import Path

from jaxlens.hooks.table import BLOCK_SITES, EMBED_SITES, FINAL_SITES

DIFFERENCES = (
    "`ln1.hook_scale` and `ln1.hook_normalized` fire once per layer. With split inputs, TransformerLens runs ln1 three "
    "times and gives these points an axis of heads. Here the split inputs are normalised without hooks, and an edit of "
    "ln1 changes each of them by as much as it changed the shared input.",
    "`attn.q_norm.*` and `attn.k_norm.*` keep their axes `b p n h`; TransformerLens flattens all but the last.",
    "`ln1.hook_out`, `ln2.hook_out`, `attn.hook_in` and `mlp.hook_in` come from TransformerLens 4; version 3 has none "
    "of them. With split inputs, they behave as `ln1.hook_normalized` does.",
    "Norms are named by their place: the norm after attention is `ln1_post` in every family (TransformerLens calls it "
    "`ln1` in OLMo 2), and `hook_attn_out` is always what is added to the residual stream.",
    "`hook_attn_in` exists only where every query head has its own key/value head; in grouped models use "
    "`hook_q_input`, `hook_k_input` and `hook_v_input`.",
    "Mixture-of-experts values have an expert axis, `b p e f`, under `mlp.hook_pre` and its neighbours; "
    "TransformerLens has one name per expert and keeps only the tokens routed to it.",
    "`unembed.hook_out` holds the logits after a soft cap; TransformerLens 4 has those before it.",
    "`hook_tokens` and the shortformer's `attn.hook_attn_input` do not exist.",
)
"""How names, shapes and order differ from TransformerLens's, each with its reason."""


def page() -> str:
    """The page as Markdown."""
    lines = [
        "# Hook points",
        "",
        "Generated from `jaxlens/hooks/table.py` by `make pages`; do not edit.",
        "",
        "Names, shapes and order are those of TransformerLens's HookedTransformer. Axes: `b` batch, `p` (query)",
        "position, `s` source position, `d` d_model, `n` query head, `k` key/value head, `h` d_head, `m` d_mlp, `e`",
        "expert, `f` d_expert, `x` d_shared_expert, `t` d_v_head (d_head in most models), `r` q_lora_rank, `z`",
        "kv_lora_rank, `o` output vocabulary. A model has the hook points of the modules that its config describes.",
        "Those marked *on request* exist when a hook or a names_filter selects them.",
        "`blocks.{l}.hook_in` and `blocks.{l}.hook_out` are other names for `hook_resid_pre` and `hook_resid_post`.",
        "",
        "`attn.hook_in` and `mlp.hook_in` are what attention and the MLP read (the MLP's is the input of transcoders).",
        "They are other names for `ln1.hook_out` and `ln2.hook_out`. If attention and MLP share ln1 (GPT-J, Phi-2),",
        "they are hook points of their own: an edit of `ln1.hook_out` changes what both read, and an edit of",
        "`mlp.hook_in` only what the MLP reads. Norms without weights, such as those that `fold_ln` folded, have no",
        "`hook_out`. Load the model with `from_pretrained_no_processing` or `fold_ln=False`, or use `hook_normalized`,",
        "which folded weights read.",
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


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page(), "utf-8")
