"""Weights"""

# %% embedding and unembedding
model.W_E, model.W_U, model.b_U

# %% position embeddings @gpt2
model.W_pos, model.W_E_pos

# %% attention weights, stacked over layers
model.W_Q, model.W_K, model.W_V, model.W_O

# %% attention biases, stacked over layers
model.b_Q, model.b_K, model.b_V, model.b_O

# %% MLP weights, stacked over layers
model.W_in, model.W_out, model.b_in, model.b_out

# %% gate weights @llama
model.W_gate

# %% a model without gates @gpt2
model.W_gate

# %% the weights of a head
model.W_Q[1, 2], model.W_O[0, 1], model.W_V[2, 0] @ model.W_O[2, 0]

# %% the weights of a layer
block = model.blocks[1]
block.attn.W_Q, block.attn.W_O, block.mlp.W_in, block.mlp.b_out

# %% key and value weights of a layer, per query head
model.blocks[1].attn.W_K, model.blocks[2].attn.W_V, model.blocks[1].attn.b_K

# %% key and value weights as stored @llama
model.blocks[1].attn._W_K, model.blocks[1].attn._W_V

# %% iterating over layers
[block.attn.b_O for block in model.blocks]

# %% the number of layers
len(model.blocks), model.blocks[-1].mlp.W_out

# %% the embedding and unembedding modules
model.embed.W_E, model.unembed.W_U, model.unembed.b_U

# %% the position embedding module @gpt2
model.pos_embed.W_pos

# %% the weight of the final norm @raw
model.ln_final.w, model.blocks[0].ln1.w

# %% the bias of the final norm @raw @gpt2
model.ln_final.b, model.blocks[0].ln2.b

# %% the state dict
weights = model.state_dict()
sorted(name for name in weights if not name.endswith(("mask", "IGNORE", "rotary_sin", "rotary_cos")))

# %% an entry of the state dict
weights = model.state_dict()
weights["blocks.1.attn.W_Q"], weights["unembed.W_U"]

# %% parameters by name
names = dict(model.named_parameters())
len(names), names["embed.W_E"], names["blocks.2.mlp.W_out"]

# %% the number of parameters
model.n_params_total, model.cfg.n_params

# %% counting parameters
sum(p.numel() for p in model.parameters())
# --- jaxlens
sum(p.size for p in model.parameters())

# %% loading a state dict
weights = model.state_dict()
model.load_state_dict(weights)
model(tokens, return_type="loss")

# %% processing weights @raw
model.process_weights_()
model(tokens), model.cfg.normalization_type

# %% only folding norms @raw
model.load_and_process_state_dict(model.state_dict(), fold_ln=True, center_writing_weights=False,
                                  center_unembed=False, fold_value_biases=False)
model(tokens), model.W_in, model.cfg.normalization_type

# %% only centering @raw @gpt2
model.process_weights_(fold_ln=False, center_writing_weights=True, center_unembed=True)
model(tokens), model.W_E, model.W_U

# %% centered writing weights @processed @gpt2
abs(model.W_E.mean(-1)).max() < 1e-6, abs(model.W_out.mean(-1)).max() < 1e-6, abs(model.W_U.mean(-1)).max() < 1e-6

# %% QK and OV circuits
QK, OV = model.QK, model.OV
QK.shape, OV.shape, QK[1, 2].AB, OV[0, 1].AB

# %% the factors of an OV circuit
OV = model.OV[1, 0]
OV.A, OV.B, OV.rdim, OV.ldim, OV.mdim, OV.ndim

# %% a custom factored matrix
from transformer_lens import FactoredMatrix

M = FactoredMatrix(model.W_V[0, 0], model.W_O[0, 0])
M.AB, M.BA, M.T.AB, M.norm(), M.shape

# %% singular values
from transformer_lens.FactoredMatrix import FactoredMatrix

M = FactoredMatrix(model.W_Q[1, 0], model.W_K[1, 0].T)
M.S, M.svd()[1], abs(M.U.T @ M.U), abs(M.V.T @ M.V)

# %% eigenvalues
eigenvalues = model.OV[0, 0].eigenvalues
eigenvalues.shape, abs(eigenvalues).max(), abs(eigenvalues).sum(), eigenvalues.real.sum()

# %% a copying score
eigenvalues = (model.W_E @ model.OV @ model.W_U).eigenvalues
score = eigenvalues.real.sum(-1) / abs(eigenvalues).sum(-1)
score

# %% products of factored matrices
full = model.W_E @ model.OV[1, 2] @ model.W_U
full.shape, full.AB, full[3:5].AB, full.get_corner()

# %% a factored matrix times a vector
M = model.OV[0, 1]
M @ model.W_E[7], model.W_E[7] @ M

# %% a factored matrix times a factored matrix
composed = model.OV[0, 1] @ model.OV[1, 0]
composed.AB, (composed * 2).AB, (0.5 * composed).norm()

# %% an even split of a factored matrix
even = model.QK[0, 0].make_even()
even.AB, even.norm(), even.A.shape

# %% collapsing a factored matrix @gpt2
M = model.OV[0, 0]
M.collapse_l().shape, M.collapse_r().shape, (M.collapse_l().T @ M.collapse_l()), M.pair[0]

# %% axes of a factored matrix
M = model.OV[0]
M.unsqueeze(0).shape, M.has_leading_dims, M[:2].shape, M[1].AB, M[:, 3:7].AB, M[0, :, :4].AB

# %% composition scores of all heads
model.all_composition_scores("Q"), model.all_composition_scores("K"), model.all_composition_scores("V")

# %% composition scores of two circuits
from transformer_lens.utils import composition_scores

composition_scores(model.OV[0], model.QK[1]), composition_scores(model.OV[0], model.OV[2], broadcast_dims=False)

# %% labels of heads
model.all_head_labels()

# %% accumulated biases
model.accumulated_bias(2), model.accumulated_bias(layer=1, mlp_input=True), model.accumulated_bias(3, include_mlp_biases=False)

# %% the full OV circuit of a layer
einops.einsum(model.W_E[:4], model.W_V[0], model.W_O[0], model.W_U,
              "t d, n d h, n h m, m v -> n t v")

# %% virtual weights between the MLPs of two layers
einops.einsum(model.W_out[0], model.W_in[1], "m1 d, d m2 -> m1 m2")

# %% the direct path
model.W_E @ model.W_U

# %% cosine similarity of unembeddings
unit = model.W_U / model.W_U.norm(dim=0)
unit.T @ unit
# --- jaxlens
unit = model.W_U / jnp.linalg.norm(model.W_U, axis=0)
unit.T @ unit

# %% the full QK circuit of positions @gpt2
scores = model.W_pos @ model.QK[0, 1].AB @ model.W_pos.T / model.cfg.d_head**0.5
scores[:8, :8]

# %% the corner of a circuit
from transformer_lens.utils import get_corner

get_corner(model.W_U), get_corner(model.W_Q, 2), get_corner(model.OV[0, 0].AB)

# %% changing a weight
weights = model.state_dict()
weights["blocks.0.attn.W_O"] = weights["blocks.0.attn.W_O"] * 0
model.load_state_dict(weights)
model(tokens)

# %% calling the modules of a layer
block = model.blocks[0]
read = block.ln1(cache["resid_pre", 0])
block.attn(query_input=read, key_input=read, value_input=read), cache["attn_out", 0]

# %% unembedding a position
model.unembed(model.ln_final(cache["resid_post", -1][:, -1])), logits[:, -1]

# %% calling the embedding modules @gpt2
model.embed(tokens) + model.pos_embed(tokens), cache["resid_pre", 0]

# %% loading some weights
weights = model.state_dict()
model.load_state_dict({"embed.W_E": weights["embed.W_E"] * 2}, strict=False)
model.W_E, model(tokens, return_type="loss")

# %% indexing factored matrices
M = model.OV
M[0].shape, M[1, 2].shape, M[:, 1].shape, M[1, 2, :3].AB, M[1, 2, :2, 1:3].AB, len(M.shape)

# %% singular values of all heads
model.OV.S, model.QK[1].S

# %% the composition score of two heads
from transformer_lens.utils import composition_scores

composition_scores(model.OV[0, 1], model.QK[2, 0])

# %% folding the value biases of a state dict @raw
weights = model.state_dict()
folded = model.fold_value_biases(weights)
model.load_state_dict(folded)
model(tokens), model.b_V, model.b_O

# %% centering the unembedding @raw
weights = model.center_unembed(model.state_dict())
weights["unembed.W_U"], weights["unembed.b_U"]

# %% centering the writing weights @raw @gpt2
weights = model.center_writing_weights(model.state_dict())
weights["blocks.1.mlp.W_out"], weights["pos_embed.W_pos"]

# %% the corner of a factored matrix
from transformer_lens.utils import get_matrix_corner

get_matrix_corner(model.OV[0, 0], 2)

# %% fan-in and fan-out
from transformer_lens.utils import calc_fan_in_and_fan_out

calc_fan_in_and_fan_out(model.W_Q[0]), calc_fan_in_and_fan_out(model.W_E)
