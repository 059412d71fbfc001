"""The residual stream as a sum: TransformerLens's methods of ActivationCache that take it apart and read it.

Axes: c component (a row of a stack), n head, m neuron (of experts: expert by expert), d d_model, o direction of a
projection; "..." is batch and position, whichever the cache and its slices leave.

    resid_post = embed + pos_embed + Σ_layers (Σ_heads + Σ_neurons) + bias

Every stack has its components first and adds up to the residual stream, in every architecture: a norm after attention
or MLP acts on each head and neuron at the scale it had in the run, and its bias counts as a bias. Where every sum
passes a norm, a component is what those that come after it make of what was written. Which activations a method reads
is what it names where the cache does not hold it.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlens.analysis.components import (
    Station,
    biases,
    head_units,
    layer_outputs,
    neuron_labels,
    neuron_units,
    norm_at,
    norm_of,
    onward,
    read,
    read_layers,
)
from jaxlens.analysis.final_norm import IDENTITY, logit_direction
from jaxlens.analysis.logit_lens import Kind, LogitLensResult, logit_lens, renormalise
from jaxlens.analysis.terms import Reading, Rows, Term, carried, stacked
from jaxlens.config import Config
from jaxlens.slices import Slice

Stack = Float[Array, "c ... d"] | tuple[Float[Array, "c ... d"], list[str]]


class Decomposition:
    """Mixin of ActivationCache. Arguments that several methods share:

    - `layer`: up to what this layer's attention reads; None and -1 are the unembedding, -2 is the last layer.
    - `mlp_input`: up to what this layer's MLP reads instead (in a parallel block, the same stream).
    - `pos_slice`: which positions; a number, whose axis goes away, a slice, a tuple or a list.
    - `apply_ln`: as the norm in front of that layer makes of it, at its cached scale and with its weight, but without
      its bias, which belongs to no component.
    - `project_output_onto`: along directions [d] or [d o], or [... d o] with others for each batch item and position.
      The stack is then [c ...] or [c ... o], and vectors of d_model numbers are never made.
    - `incl_remainder`: with a last row, what the components leave of the residual stream.
    - `return_labels`: with a list of the names of the rows.

    Raises (all of them):
        ActivationNotFound: the cache lacks an activation; the message names it.
        ValueError: there is no such layer; or weights are needed and the cache has no model.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> _, cache = model.run_with_cache([[1, 2, 3]])
        >>> stack, labels = cache.decompose_resid(pos_slice=-1, return_labels=True)
        >>> labels, stack.shape
        (['embed', 'pos_embed', '0_attn_out', '0_mlp_out', '1_attn_out', '1_mlp_out'], (6, 1, 8))
        >>> cache.logit_attrs(stack, tokens=7, incorrect_tokens=4, pos_slice=-1).shape
        (6, 1)
        >>> cache.stack_head_results(1, incl_remainder=True, return_labels=True)[1]
        ['L0H0', 'L0H1', 'remainder']
    """

    cfg: Config
    has_batch_dim: bool

    # --- the stream as it grows

    def accumulated_resid(
        self, layer: int | None = None, incl_mid: bool = False, apply_ln: bool = False, pos_slice: Any = None,
        mlp_input: bool = False, return_labels: bool = False,
    ) -> Stack:  # fmt: skip
        """The residual stream in front of every layer up to `layer`, and with `incl_mid` between attention and MLP.

        `apply_ln` normalises every row: at the unembedding by itself, bias included, as the model would if it stopped
        there; at an earlier layer by the scale of that layer.
        """
        cfg, positions = self.cfg, Slice(pos_slice)
        station = Station.of(cfg, layer, mlp_input)
        if incl_mid and (cfg.attn_only or cfg.parallel_attn_mlp):
            raise ValueError("incl_mid adds what is between attention and MLP, and there is nothing in these blocks")
        last = station.layer
        columns, terms = [("pre", "hook_resid_pre")] + [("mid", "hook_resid_mid")] * incl_mid, []
        labels = [f"{number}_{name}" for number in range(last) for name, _ in columns]
        if last:
            terms = [Rows(tuple(read_layers(self, site, range(last), positions) for _, site in columns))]
        ends = [Station.of(cfg, last)] + [station] * (station.n_attn > last)
        terms += [Rows((read(self, end.stream, positions)[None],)) for end in ends]
        labels += ["final_post"] if last == cfg.n_layers else [f"{last}_pre", f"{last}_mid"][: len(ends)]
        if apply_ln and last == cfg.n_layers:
            stack = renormalise(norm_of(self, station), stacked(tuple(terms), Reading()))
        else:
            norm = norm_at(self, station, positions) if apply_ln else IDENTITY
            stack = stacked(tuple(terms), Reading(norm))
        return (stack, labels) if return_labels else stack

    def logit_lens(
        self, layers: Sequence[int] | None = None, incl_mid: bool = False, positions: Any = -1,
        batch_slice: Any = None, lens: Callable[[jax.Array, int], jax.Array] | None = None, apply_ln: bool = True,
        vocab: Any = None, targets: Any = None, return_type: Kind = "logits", top_k: int | None = None,
    ) -> LogitLensResult:  # fmt: skip
        """What the model would say if it stopped after each layer: `accumulated_resid` through the final norm and W_U.

        The last entry gives the model's own logits. `layers` chooses entries by index. One of three chooses tokens:
        `vocab` some of them, `targets` some with their ranks (a list is shared by all rows, an array has one for each),
        `top_k` the likeliest. `lens(entry, index)` changes an entry before the norm, as a tuned lens does (2303.08112).

        Example:
            >>> import jaxlens
            >>> model = jaxlens.HookedTransformer(jaxlens.Config(
            ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
            >>> logits, cache = model.run_with_cache([[1, 2, 3]])
            >>> cache.logit_lens(top_k=4)
            LogitLensResult(0_pre to final_post, 4 tokens: (3, 1, 4))
            >>> bool(jnp.allclose(cache.logit_lens(positions=None).values[-1], logits, atol=1e-5))
            True
        """
        return logit_lens(
            self, layers, incl_mid, positions, batch_slice, lens, apply_ln, vocab, targets, return_type, top_k
        )

    # --- the stream taken apart

    def decompose_resid(
        self, layer: int | None = None, mlp_input: bool = False, mode: Literal["all", "mlp", "attn"] = "all",
        apply_ln: bool = False, pos_slice: Any = None, incl_embeds: bool = True, return_labels: bool = False,
        project_output_onto: Any = None,
    ) -> Stack:  # fmt: skip
        """What the embeddings and every attention and MLP layer added, in order."""
        if mode not in ("all", "mlp", "attn"):
            raise ValueError(f'mode is {mode!r}; wanted "all", "mlp" or "attn"')
        station, positions = Station.of(self.cfg, layer, mlp_input), Slice(pos_slice)
        names = ["attn"] * (mode != "mlp") + ["mlp"] * (mode != "attn" and not self.cfg.attn_only)
        terms, labels = self._embeds(positions, station.n_sums) if incl_embeds else ([], [])
        if station.layer and names:
            columns = [layer_outputs(self, name, range(station.layer), positions, station.n_sums) for name in names]
            terms.append(Rows(tuple(columns)))
            labels += [f"{number}_{name}_out" for number in range(station.layer) for name in names]
        if station.n_attn > station.layer and "attn" in names:
            terms.append(Rows((layer_outputs(self, "attn", (station.layer,), positions, station.n_sums),)))
            labels.append(f"{station.layer}_attn_out")
        return self._stack(terms, labels, station, positions, apply_ln, return_labels, project_output_onto)

    def stack_head_results(
        self, layer: int | None = -1, return_labels: bool = False, incl_remainder: bool = False, pos_slice: Any = None,
        apply_ln: bool = False, project_output_onto: Any = None,
    ) -> Stack:  # fmt: skip
        """What every head in the layers before `layer` adds to the residual stream: [(layer head) ... d]."""
        station, positions = Station.of(self.cfg, layer), Slice(pos_slice)
        terms, labels = self._heads(station.n_attn, positions, station.n_sums)
        return self._stack(
            terms, labels, station, positions, apply_ln, return_labels, project_output_onto, incl_remainder
        )

    def get_neuron_results(
        self, layer: int, neuron_slice: Any = None, pos_slice: Any = None, project_output_onto: Any = None
    ) -> Float[Array, "... m d"]:
        """What each neuron of one layer adds to the residual stream; a negative layer counts from the end."""
        n, chosen = self.cfg.n_layers, Slice(neuron_slice)
        self._needs_neurons()
        if not -n <= layer < n:
            raise ValueError(f"layer is {layer}; wanted {-n} to {n - 1}")
        which = Slice([chosen.index]) if chosen.mode == "int" else chosen
        reading = Reading.along(project_output_onto, self.cfg.d_model)
        results = stacked((neuron_units(self, (layer % n,), Slice(pos_slice), which, n_sums=0),), reading)
        return results[0] if chosen.mode == "int" else jnp.moveaxis(results, 0, -1 if reading.single else -2)

    def stack_neuron_results(
        self, layer: int | None, pos_slice: Any = None, neuron_slice: Any = None, return_labels: bool = False,
        incl_remainder: bool = False, apply_ln: bool = False, project_output_onto: Any = None, mlp_input: bool = False,
    ) -> Stack:  # fmt: skip
        """What every neuron in the layers before `layer` adds to the residual stream: [(layer neuron) ... d].

        The neurons of a mixture of experts are those of every expert, one expert after the other, times the weight that
        the router gave it (zero where it was not chosen); `neuron_slice` counts through them.
        """
        station, positions = Station.of(self.cfg, layer, mlp_input), Slice(pos_slice)
        terms, labels = self._neurons(station.layer, positions, Slice(neuron_slice), station.n_sums)
        return self._stack(
            terms, labels, station, positions, apply_ln, return_labels, project_output_onto, incl_remainder
        )

    def get_full_resid_decomposition(
        self, layer: int | None = None, mlp_input: bool = False, expand_neurons: bool = True, apply_ln: bool = False,
        pos_slice: Any = None, return_labels: bool = False, project_output_onto: Any = None,
    ) -> Stack:  # fmt: skip
        """Every head, every neuron (or MLP), the embeddings, and the sum of all biases: the whole stream.

        Example:
            >>> import jaxlens
            >>> model = jaxlens.HookedTransformer(jaxlens.Config(
            ...     n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=3, d_vocab=10, n_ctx=8))
            >>> _, cache = model.run_with_cache([[1, 2, 3]])
            >>> stack, labels = cache.get_full_resid_decomposition(return_labels=True)
            >>> labels
            ['L0H0', 'L0H1', 'L0N0', 'L0N1', 'L0N2', 'embed', 'pos_embed', 'bias']
            >>> bool(jnp.allclose(stack.sum(0), cache["resid_post", -1], atol=1e-5))
            True
        """
        station, positions = Station.of(self.cfg, layer, mlp_input), Slice(pos_slice)
        n_mlp, n_sums = 0 if self.cfg.attn_only else station.layer, station.n_sums
        heads, head_labels = self._heads(station.n_attn, positions, n_sums)
        if n_mlp and expand_neurons:
            mlps, mlp_labels = self._neurons(n_mlp, positions, Slice(), n_sums)
        elif n_mlp:
            mlps = [Rows((layer_outputs(self, "mlp", range(n_mlp), positions, n_sums),))]
            mlp_labels = [f"{number}_mlp_out" for number in range(n_mlp)]
        else:
            mlps, mlp_labels = [], []
        embeds, embed_labels = self._embeds(positions, n_sums)
        like = read(self, "hook_embed", positions)
        bias = biases(self, station.n_attn, n_mlp * expand_neurons, positions, like, n_sums)
        terms, labels = [*heads, *mlps, *embeds, bias], [*head_labels, *mlp_labels, *embed_labels, "bias"]
        return self._stack(terms, labels, station, positions, apply_ln, return_labels, project_output_onto)

    # --- stacks read

    def apply_ln_to_stack(
        self, residual_stack: Float[Array, "c ... d"], layer: int | None = None, mlp_input: bool = False,
        pos_slice: Any = None, batch_slice: Any = None, has_batch_dim: bool = True, recompute_ln: bool = False,
    ) -> Float[Array, "c ... d"]:  # fmt: skip
        """What the norm in front of a layer makes of terms of its input, at its cached scale: centred (LN), divided,
        and times the norm's weight unless that is folded. The norm's bias is left out, since it belongs to no term.

        `pos_slice` has been applied to the stack and is applied to the scale; `batch_slice` is applied to both, to the
        stack only if it has a batch axis. `recompute_ln` normalises every row by itself instead, bias included.
        """
        station, positions, batch = Station.of(self.cfg, layer, mlp_input), Slice(pos_slice), Slice(batch_slice)
        stack = batch.apply(residual_stack, 1) if has_batch_dim else residual_stack
        if recompute_ln:
            return renormalise(norm_of(self, station), stack)
        return stacked((Rows((stack,)),), Reading(norm_at(self, station, positions, batch)))

    def logit_attrs(
        self, residual_stack: Float[Array, "c ... d"], tokens: Any, incorrect_tokens: Any = None, pos_slice: Any = None,
        batch_slice: Any = None, has_batch_dim: bool = True,
    ) -> Float[Array, "c ..."]:  # fmt: skip
        """What each component adds to the logits of `tokens`, or to how far they are above those of `incorrect_tokens`.

        Tokens are a string, a number, or an array: [batch] (one for each prompt, at all of its positions), [batch pos],
        or [pos], which is to be [1 pos] where there are as many positions as prompts. The attributions of
        `get_full_resid_decomposition` add up to the logits before a soft cap, but for what no component adds:
        `unembed.b_U`, and `ln_final.b` times W_U where that is not folded into b_U.

        Raises:
            ValueError: the tokens do not fit the stack, or are not of the same shape as the incorrect ones.
        """
        batch = Slice(batch_slice)
        stack = batch.apply(residual_stack, 1) if has_batch_dim else residual_stack
        has_batch_dim = has_batch_dim and batch.mode != "int"
        model, rows = self.needs_model(), stack.shape[1:-1]
        direction = logit_direction(model, tokens, incorrect_tokens, rows, has_batch_dim)
        norm = norm_at(self, Station.of(self.cfg), Slice(pos_slice), batch)
        return stacked((Rows((stack,)),), Reading(norm, direction[..., None, :], single=True))

    # --- what the methods are made of

    def _embeds(self, positions: Slice, n_sums: int) -> tuple[list[Term], list[str]]:
        """The embeddings that are terms of the stream; a shortformer's positions are not."""
        names = ["embed"] + ["pos_embed"] * (self.cfg.positional_embedding_type in ("standard", "sinusoidal"))
        passed = onward(self, [0], positions, n_sums)
        embeds = [read(self, f"hook_{name}", positions)[None] for name in names]
        return [Rows((carried(embed, passed),)) for embed in embeds], names

    def _heads(self, n_layers: int, positions: Slice, n_sums: int) -> tuple[list[Term], list[str]]:
        labels = [f"L{layer}H{head}" for layer in range(n_layers) for head in range(self.cfg.n_heads)]
        return [head_units(self, range(n_layers), positions, n_sums)] if n_layers else [], labels

    def _neurons(
        self, n_layers: int, positions: Slice, which: Slice, n_sums: int
    ) -> tuple[list[Term], list[str]]:  # fmt: skip
        self._needs_neurons()
        if not n_layers:
            return [], []
        which = Slice([which.index]) if which.mode == "int" else which
        labels = neuron_labels(self.cfg, range(n_layers), which)
        return [neuron_units(self, range(n_layers), positions, which, n_sums)], labels

    def _needs_neurons(self) -> None:
        if self.cfg.attn_only:
            raise ValueError("this model has attention only, and no neurons")

    def _stack(
        self, terms, labels, station: Station, positions: Slice, apply_ln: bool, return_labels: bool, project: Any,
        incl_remainder: bool = False,
    ) -> Stack:  # fmt: skip
        """The terms read where they are read, as one array."""
        whole = read(self, station.stream, positions) if incl_remainder or not terms else None
        terms = terms or [Rows((whole[None][:0],))]
        reading = Reading.along(project, self.cfg.d_model, norm_at(self, station, positions) if apply_ln else IDENTITY)
        stack = stacked(tuple(terms), reading, whole if incl_remainder else None)
        return (stack, labels + ["remainder"] * incl_remainder) if return_labels else stack
