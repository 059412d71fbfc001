"""The residual stream as a sum: TransformerLens's decomposition methods of ActivationCache.

Axes: c component (a row of a stack), m neuron, d d_model, o direction of a projection; "..." is batch and position,
whichever there are.

    resid_post = embed + pos_embed + Σ_layers (Σ_heads + Σ_neurons) + bias

The first axis of a stack is the component. The components add up to the residual stream in every architecture. A norm
after attention or MLP is applied to each head and neuron at its cached scale, and its bias is one of the biases. With
norm_placement="sum", a component is carried through the norms of all later additions.
"""

from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlens._jax import each_public_method, in_full_precision
from jaxlens.config import Config
from jaxlens.hooks.slice import Slice
from jaxlens.model.cache.any_mesh import cache_on_any_mesh
from jaxlens.model.cache.linear_norm import IDENTITY, LinearNorm, logit_direction
from jaxlens.model.cache.logit_lens import logit_lens, renormalise
from jaxlens.model.cache.terms import Reading, Rows, stacked
from jaxlens.model.cache.writers import ResidualPosition, Writers, norm_at, norm_named, read, read_layers

Stack = Float[Array, "c ... d"] | tuple[Float[Array, "c ... d"], list[str]]


@each_public_method(cache_on_any_mesh)
@in_full_precision
class Decomposition:
    """Mixin of ActivationCache. Arguments that several methods share:

    - `layer`: the stream up to the input of this layer's attention; None and -1 are the unembedding, -2 the last layer.
    - `mlp_input`: up to the input of this layer's MLP instead (in a parallel block, the same stream).
    - `pos_slice`: the positions: an integer (which removes the axis), a slice, a tuple or a list.
    - `apply_ln`: apply the norm before that input at its cached scale, without its bias, which belongs to no component.
    - `project_output_onto`: directions [d] or [d o] to project onto, or [... d o], with different directions per batch
      entry and position. The stack is then [c ...] or [c ... o], and no vectors of length d_model are stored.
    - `incl_remainder`: add a last row with the rest of the residual stream.
    - `return_labels`: also return the names of the rows.

    Raises (all methods):
        ActivationNotFound: The cache lacks an activation. The message names it.
        ValueError: There is no such layer, or weights are needed and the cache has no model.

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

    # --- the accumulated stream

    def accumulated_resid(
        self, layer: int | None = None, incl_mid: bool = False, apply_ln: bool = False, pos_slice: Any = None,
        mlp_input: bool = False, return_labels: bool = False,
    ) -> Stack:  # fmt: skip
        """The residual stream before every layer up to `layer`, and with `incl_mid` between attention and MLP.

        With `apply_ln` and the unembedding as `layer`, each row is normalized separately, bias included, as if the
        model stopped there. With an earlier `layer`, its norm is applied at the cached scale.
        """
        cfg, positions = self.cfg, Slice(pos_slice)
        until = ResidualPosition.of(cfg, layer, mlp_input)
        if incl_mid and (cfg.attn_only or cfg.parallel_attn_mlp):
            raise ValueError("incl_mid needs blocks with a residual stream between attention and MLP, hook_resid_mid")
        last = until.layer
        columns, terms = [("pre", "hook_resid_pre")] + [("mid", "hook_resid_mid")] * incl_mid, []
        labels = [f"{number}_{name}" for number in range(last) for name, _ in columns]
        if last:
            terms = [Rows(tuple(read_layers(self, site, range(last), positions) for _, site in columns))]
        ends = [ResidualPosition.of(cfg, last)] + [until] * (until.n_attn > last)
        terms += [Rows((read(self, end.stream, positions)[None],)) for end in ends]
        labels += ["final_post"] if last == cfg.n_layers else [f"{last}_pre", f"{last}_mid"][: len(ends)]
        if apply_ln and last == cfg.n_layers:
            stack = renormalise(norm_named(self, until.norm), stacked(tuple(terms), Reading()))
        else:
            norm = norm_at(self, until.norm, positions) if apply_ln else IDENTITY
            stack = stacked(tuple(terms), Reading(norm))
        return (stack, labels) if return_labels else stack

    logit_lens = logit_lens
    """The next-token prediction after each layer: the function of `jaxlens.model.cache.logit_lens`, as a method."""

    # --- the components of the stream

    def decompose_resid(
        self, layer: int | None = None, mlp_input: bool = False, mode: Literal["all", "mlp", "attn"] = "all",
        apply_ln: bool = False, pos_slice: Any = None, incl_embeds: bool = True, return_labels: bool = False,
        project_output_onto: Any = None,
    ) -> Stack:  # fmt: skip
        """What the embeddings and every attention and MLP add to the residual stream, in order."""
        if mode not in ("all", "mlp", "attn"):
            raise ValueError(f'mode is {mode!r}; expected "all", "mlp" or "attn"')
        until = ResidualPosition.of(self.cfg, layer, mlp_input)
        writers = Writers(self, Slice(pos_slice), until)
        names = ["attn"] * (mode != "mlp") + ["mlp"] * (mode != "attn" and not self.cfg.attn_only)
        terms, labels = writers.embeds() if incl_embeds else ([], [])
        if until.layer and names:
            terms.append(Rows(tuple(writers.layer_outputs(name, range(until.layer)) for name in names)))
            labels = labels + [f"{number}_{name}_out" for number in range(until.layer) for name in names]
        if until.n_attn > until.layer and "attn" in names:
            terms.append(Rows((writers.layer_outputs("attn", (until.layer,)),)))
            labels = [*labels, f"{until.layer}_attn_out"]
        return self._stack(terms, labels, writers, apply_ln, return_labels, project_output_onto)

    def stack_head_results(
        self, layer: int | None = -1, return_labels: bool = False, incl_remainder: bool = False, pos_slice: Any = None,
        apply_ln: bool = False, project_output_onto: Any = None,
    ) -> Stack:  # fmt: skip
        """What every head in the layers before `layer` adds to the residual stream: [(layer head) ... d]."""
        until = ResidualPosition.of(self.cfg, layer)
        writers = Writers(self, Slice(pos_slice), until)
        terms, labels = writers.heads(until.n_attn)
        return self._stack(terms, labels, writers, apply_ln, return_labels, project_output_onto, incl_remainder)

    def get_neuron_results(
        self, layer: int, neuron_slice: Any = None, pos_slice: Any = None, project_output_onto: Any = None
    ) -> Float[Array, "... m d"]:
        """What each neuron of one layer adds to the residual stream; a negative layer counts from the end."""
        n, which = self.cfg.n_layers, Slice(neuron_slice)
        if not -n <= layer < n:
            raise ValueError(f"layer is {layer}; expected {-n} to {n - 1}")
        terms, _ = Writers(self, Slice(pos_slice)).neurons((layer % n,), _kept_axis(which))
        reading = Reading.along(project_output_onto, self.cfg.d_model)
        results = stacked(tuple(terms), reading)
        return results[0] if which.mode == "int" else jnp.moveaxis(results, 0, -1 if reading.single else -2)

    def stack_neuron_results(
        self, layer: int | None, pos_slice: Any = None, neuron_slice: Any = None, return_labels: bool = False,
        incl_remainder: bool = False, apply_ln: bool = False, project_output_onto: Any = None, mlp_input: bool = False,
    ) -> Stack:  # fmt: skip
        """What every neuron in the layers before `layer` adds to the residual stream: [(layer neuron) ... d].

        The neurons of a mixture of experts are those of every expert, expert by expert, times the router's weight of
        the expert (zero if it was not chosen). `neuron_slice` indexes all of them."""
        until = ResidualPosition.of(self.cfg, layer, mlp_input)
        writers = Writers(self, Slice(pos_slice), until)
        terms, labels = writers.neurons(range(until.layer), _kept_axis(Slice(neuron_slice)))
        return self._stack(terms, labels, writers, apply_ln, return_labels, project_output_onto, incl_remainder)

    def get_full_resid_decomposition(
        self, layer: int | None = None, mlp_input: bool = False, expand_neurons: bool = True, apply_ln: bool = False,
        pos_slice: Any = None, return_labels: bool = False, project_output_onto: Any = None,
    ) -> Stack:  # fmt: skip
        """Every head, every neuron (or MLP), the embeddings, and the sum of all biases: the whole residual stream.

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
        until = ResidualPosition.of(self.cfg, layer, mlp_input)
        writers = Writers(self, Slice(pos_slice), until)
        n_mlp = 0 if self.cfg.attn_only else until.layer
        heads, head_labels = writers.heads(until.n_attn)
        if n_mlp and expand_neurons:
            mlps, mlp_labels = writers.neurons(range(n_mlp), Slice())
        elif n_mlp:
            mlps = [Rows((writers.layer_outputs("mlp", range(n_mlp)),))]
            mlp_labels = [f"{number}_mlp_out" for number in range(n_mlp)]
        else:
            mlps, mlp_labels = [], []
        embeds, embed_labels = writers.embeds()
        bias = writers.biases(until.n_attn, n_mlp * expand_neurons, like=read(self, "hook_embed", writers.positions))
        terms, labels = [*heads, *mlps, *embeds, bias], [*head_labels, *mlp_labels, *embed_labels, "bias"]
        return self._stack(terms, labels, writers, apply_ln, return_labels, project_output_onto)

    # --- functions of a stack

    def apply_ln_to_stack(
        self, residual_stack: Float[Array, "c ... d"], layer: int | None = None, mlp_input: bool = False,
        pos_slice: Any = None, batch_slice: Any = None, has_batch_dim: bool = True, recompute_ln: bool = False,
    ) -> Float[Array, "c ... d"]:  # fmt: skip
        """Applies the norm before a layer to terms of its input, at its cached scale.

        Terms are centered (LN), divided by the scale, and multiplied by the norm's weight unless that is folded. The
        norm's bias belongs to no term and is left out. Pass the `pos_slice` of the stack; it is applied to the scale.
        `batch_slice` is applied to the scale, and to the stack if that has a batch axis. `recompute_ln` normalizes
        each row separately instead, with the norm's bias.

        Raises:
            ValueError: The slices are not those of the stack.
        """
        until, batch = ResidualPosition.of(self.cfg, layer, mlp_input), Slice(batch_slice)
        stack = batch.apply(residual_stack, 1) if has_batch_dim else residual_stack
        if recompute_ln:
            return renormalise(norm_named(self, until.norm), stack)
        return stacked((Rows((stack,)),), Reading(self._norm_of(stack, until.norm, pos_slice, batch)))

    def logit_attrs(
        self, residual_stack: Float[Array, "c ... d"], tokens: Any, incorrect_tokens: Any = None, pos_slice: Any = None,
        batch_slice: Any = None, has_batch_dim: bool = True,
    ) -> Float[Array, "c ..."]:  # fmt: skip
        """What each component adds to the logits of `tokens`, minus the logits of `incorrect_tokens` if given.

        Tokens are a string, an id, or an array: [batch] (a token per prompt, for all its positions), [batch pos], or
        [pos]. If there are as many positions as prompts, write [pos] as [1 pos]. The attributions of
        `get_full_resid_decomposition` add up to the logits before a soft cap, without the biases `unembed.b_U` and
        (unless it is folded) `ln_final.b` times W_U.

        Raises:
            ValueError: The tokens or the slices do not fit the stack, or `incorrect_tokens` have another shape.
        """
        batch = Slice(batch_slice)
        stack = batch.apply(residual_stack, 1) if has_batch_dim else residual_stack
        has_batch_dim = has_batch_dim and batch.mode != "int"
        model, rows = self.require_model(), stack.shape[1:-1]
        direction = logit_direction(model, tokens, incorrect_tokens, rows, has_batch_dim)
        norm = self._norm_of(stack, "ln_final", pos_slice, batch)
        return stacked((Rows((stack,)),), Reading(norm, direction[..., None, :], single=True))

    def _norm_of(self, stack: Float[Array, "c ... d"], name: str, pos_slice: Any, batch: Slice) -> LinearNorm:
        """A norm at the scale of the batch and the positions of a stack."""
        norm, rows = norm_at(self, name, Slice(pos_slice), batch), stack.shape[1:-1]
        if norm.scale is not None and norm.scale.shape[:-1] != rows:
            shapes = f'the stack has rows {rows}, and the scale of "{name}" {norm.scale.shape[:-1]} (batch, position)'
            raise ValueError(f"{shapes}; pass the pos_slice and the batch_slice that the stack was made with")
        return norm

    def _stack(
        self, terms, labels, writers: Writers, apply_ln: bool, return_labels: bool, project: Any,
        incl_remainder: bool = False,
    ) -> Stack:  # fmt: skip
        """The terms as one array, after the norm with `apply_ln`, and projected onto `project` if given."""
        until, positions = writers.until, writers.positions
        whole = read(self, until.stream, positions) if incl_remainder or not terms else None
        terms = terms or [Rows((whole[None][:0],))]
        norm = norm_at(self, until.norm, positions) if apply_ln else IDENTITY
        reading = Reading.along(project, self.cfg.d_model, norm)
        stack = stacked(tuple(terms), reading, whole if incl_remainder else None)
        return (stack, labels + ["remainder"] * incl_remainder) if return_labels else stack


def _kept_axis(which: Slice) -> Slice:
    """A slice that keeps its axis: an integer becomes a list of one entry."""
    return Slice([which.index]) if which.mode == "int" else which
