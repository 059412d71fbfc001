"""Names: every public name and every module path of TransformerLens can be imported, and nothing is imported early."""

import importlib
import inspect
import pickle
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest
from support import transformerlens_names

import jaxlens
from jaxlens.transformer_lens.absent import ABSENT
from jaxlens.transformer_lens.names import MODULES

ROOT = Path(__file__).parents[1]
NAMES = {
    "jaxlens": """
        ActivationCache ActivationNotFound CheckpointError Config DirectLogitAttribution FactoredMatrix HookError
        HookPoint HookedRootModule HookedTransformer HookedTransformerConfig Output Rotary SVDInterpreter Slice
        Tokenizer direct_logit_attribution evals get_act_name head_detector hook hook_points lm_accuracy
        lm_cross_entropy_loss patching utilities utils
    """,
    "jaxlens.analysis": """
        ActivationCache Agreement Attributions DirectLogitAttribution EdgeScores Labelled Patched ResidualJacobian
        SVDInterpreter ablate activation_patch attribution_patch compare_with_patching
        compute_head_attention_similarity_score correlation detect_head direct_logit_attribution
        duplicate_token_scores edge_attribution_patch generic_activation_patch induction_scores integrated_gradients
        path_patch previous_token_scores residual_jacobian test_prompt
    """,
    "jaxlens.plot": """
        Picture attention attention_heads attention_pattern attention_patterns bars colored_tokens heatmap lines
        logit_lens logits together token_log_probs tokens
    """,
    "jaxlens.weights": """
        Processing center_unembed center_writing_weights fold_ln fold_value_biases process_weights
        refactor_factored_attn_matrices
    """,
    "jaxlens.convert": "Checkpoint Family Loaded Rule all_families export load load_lazily open_checkpoint",
    "jaxlens.checkpoint": "convert convert_back load save",
    "jaxlens.config": """
        ACTIVATIONS BIASES Config DTYPES Dynamic INIT_MODES Linear Llama3 LongRope Rotary Scaling WHOLE_PAST Yarn
    """,
    "jaxlens.errors": "ActivationNotFound CheckpointError HookError",
    "jaxlens.tokenizer": "ROLES Tokenizer",
    "jaxlens.data": """
        Batches DATASETS DOCUMENTS_AT_ONCE TokenDataset get_dataset keep_single_column padded
        tokenize_and_concatenate
    """,
    "jaxlens.loss": "Output lm_accuracy lm_cross_entropy_loss",
    "jaxlens.cli": "COMMANDS main make_parser",
    "jaxlens.utils": """
        LocallyOverridenDefaults SUPPORTED_ACTIVATIONS Slice USE_DEFAULT_VALUE calc_fan_in_and_fan_out
        check_structure clear_huggingface_cache composition_scores download_file_from_hf filter_dict_by_prefix
        gelu_fast get_act_name get_attention_mask get_corner get_cumsum_along_dim get_dataset get_device
        get_input_with_manually_prepended_bos get_matrix_corner get_nested_attr get_offset_position_ids
        get_tokenizer_with_bos get_tokens_with_bos_removed is_library_available is_lower_triangular is_square
        keep_single_column lm_accuracy lm_cross_entropy_loss logits_to_df override_or_use_default_value
        print_gpu_mem remove_batch_dim repeat_along_head_dimension sample_logits set_nested_attr solu test_prompt
        to_numpy tokenize_and_concatenate transpose
    """,
    "jaxlens.evals": """
        CORPORA IOIDataset MMLU_SUBJECTS ZOOM_IN evaluate evaluate_on_dataset induction_loss ioi_eval
        make_code_data_loader make_mmlu_data_loader make_owt_data_loader make_pile_data_loader make_wiki_data_loader
        mmlu_eval sanity_check
    """,
    "jaxlens.patching": """
        generic_activation_patch get_act_patch_attn_head_all_pos_every get_act_patch_attn_head_by_pos_every
        get_act_patch_attn_head_k_all_pos get_act_patch_attn_head_k_by_pos get_act_patch_attn_head_out_all_pos
        get_act_patch_attn_head_out_by_pos get_act_patch_attn_head_pattern_all_pos
        get_act_patch_attn_head_pattern_by_pos get_act_patch_attn_head_pattern_dest_src_pos
        get_act_patch_attn_head_q_all_pos get_act_patch_attn_head_q_by_pos get_act_patch_attn_head_v_all_pos
        get_act_patch_attn_head_v_by_pos get_act_patch_attn_out get_act_patch_block_every get_act_patch_direct_path
        get_act_patch_direct_path_all_sources get_act_patch_mlp_out get_act_patch_resid_mid get_act_patch_resid_pre
        layer_head_dest_src_pos_pattern_patch_setter layer_head_pattern_patch_setter
        layer_head_pos_pattern_patch_setter layer_head_vector_patch_setter layer_neuron_patch_setter
        layer_pos_head_vector_patch_setter layer_pos_patch_setter make_df_from_ranges
    """,
    "jaxlens.head_detector": """
        HEAD_NAMES compute_head_attention_similarity_score detect_head get_duplicate_token_head_detection_pattern
        get_induction_head_detection_pattern get_previous_token_head_detection_pattern get_supported_heads
    """,
    "jaxlens.hook_points": "HookPoint HookedRootModule LensHandle",
    "jaxlens.loading_from_pretrained": "get_pretrained_model_config",
    "jaxlens.train": "HookedTransformerTrainConfig optimizer_of train",
    "jaxlens.ActivationCache": "ActivationCache",
    "jaxlens.FactoredMatrix": "FactoredMatrix",
    "jaxlens.HookedTransformer": "HookedTransformer Output",
    "jaxlens.HookedTransformerConfig": "HookedTransformerConfig",
    "jaxlens.SVDInterpreter": "SVDInterpreter",
    "jaxlens.analysis.patching": """
        generic_activation_patch get_act_patch_attn_head_all_pos_every get_act_patch_attn_head_by_pos_every
        get_act_patch_attn_head_k_all_pos get_act_patch_attn_head_k_by_pos get_act_patch_attn_head_out_all_pos
        get_act_patch_attn_head_out_by_pos get_act_patch_attn_head_pattern_all_pos
        get_act_patch_attn_head_pattern_by_pos get_act_patch_attn_head_pattern_dest_src_pos
        get_act_patch_attn_head_q_all_pos get_act_patch_attn_head_q_by_pos get_act_patch_attn_head_v_all_pos
        get_act_patch_attn_head_v_by_pos get_act_patch_attn_out get_act_patch_block_every get_act_patch_mlp_out
        get_act_patch_resid_mid get_act_patch_resid_pre layer_head_dest_src_pos_pattern_patch_setter
        layer_head_pattern_patch_setter layer_head_pos_pattern_patch_setter layer_head_vector_patch_setter
        layer_neuron_patch_setter layer_pos_head_vector_patch_setter layer_pos_patch_setter make_df_from_ranges
    """,
}  # fmt: skip
"""The public names of version 0.1, by the module that they are imported from."""

TRANSFORMERLENS = (
    "ActivationCache.ActivationCache", "FactoredMatrix.FactoredMatrix", "HookedTransformer.HookedTransformer",
    "HookedTransformer.Output", "HookedTransformerConfig.HookedTransformerConfig", "SVDInterpreter.SVDInterpreter",
    "config.HookedTransformerConfig", "evals.IOIDataset", "head_detector.detect_head", "hook_points.HookPoint",
    "hook_points.HookedRootModule", "hook_points.LensHandle", "loading_from_pretrained.get_pretrained_model_config",
    "patching.generic_activation_patch", "train.HookedTransformerTrainConfig", "train.train", "utils.get_act_name",
    "utils.test_prompt", "utilities.get_act_name", "utilities.activation_functions.SUPPORTED_ACTIVATIONS",
    "utilities.attribute_utils.get_nested_attr", "utilities.defaults_utils.LocallyOverridenDefaults",
    "utilities.devices.get_device", "utilities.exploratory_utils.test_prompt",
    "utilities.hf_utils.download_file_from_hf", "utilities.lm_utils.lm_cross_entropy_loss",
    "utilities.logits_utils.sample_logits", "utilities.matrix.composition_scores", "utilities.slice.Slice",
    "utilities.tensors.to_numpy", "utilities.tokenize_utils.tokenize_and_concatenate",
)  # fmt: skip
"""Paths under `transformer_lens` that are also paths under `jaxlens`."""


def run(code: str) -> str:
    """The output of a new Python process."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("module", NAMES)
def test_every_public_name_can_be_imported(module):
    missing = [name for name in NAMES[module].split() if not hasattr(importlib.import_module(module), name)]
    assert missing == []


def test_the_names_of_the_package_are_those_that_it_lists():
    assert {*NAMES["jaxlens"].split()} <= {*dir(jaxlens)}
    assert {*jaxlens.__all__} == {*jaxlens._EXPORTS}
    assert all(getattr(jaxlens, name) is not None for name in jaxlens.__all__)


@pytest.mark.parametrize("path", TRANSFORMERLENS)
def test_a_path_of_transformerlens_can_be_imported(path):
    module, _, name = path.rpartition(".")
    namespace = {}
    exec(f"from jaxlens.{module} import {name}", namespace)
    assert namespace[name] is getattr(sys.modules[f"jaxlens.{module}"], name)


@pytest.mark.parametrize("path", MODULES)
def test_a_path_gives_the_module_itself(path):
    module = importlib.import_module(f"jaxlens.{path}")
    assert module is importlib.import_module(f"jaxlens.{MODULES[path]}")
    assert module.__name__ == module.__spec__.name == f"jaxlens.{MODULES[path]}"
    assert importlib.reload(importlib.import_module("jaxlens.head_detector")) is jaxlens.head_detector


def test_a_class_is_not_hidden_by_the_module_of_its_name():
    code = "import jaxlens.FactoredMatrix, jaxlens.SVDInterpreter as module; from jaxlens import FactoredMatrix, utils"
    assert run(f"{code}; print(jaxlens.FactoredMatrix.__name__, FactoredMatrix is module, utils.__name__)").split() == [
        "FactoredMatrix", "False", "jaxlens.transformer_lens.utils",
    ]  # fmt: skip
    assert isinstance(jaxlens.ActivationCache, type) and jaxlens.patching.get_act_patch_resid_pre


def test_objects_of_such_a_module_can_be_pickled_and_read():
    function = jaxlens.utils.get_corner
    assert pickle.loads(pickle.dumps(function)) is function
    assert "def get_corner" in inspect.getsource(function)
    assert "get_corner" in pydoc.render_doc("jaxlens.utils") and "hook" in pydoc.render_doc(jaxlens)


@pytest.mark.parametrize("path", ABSENT)
def test_a_path_that_is_not_here_says_what_to_use_instead(path):
    module, _, name = path.rpartition(".")
    says = pytest.raises(ImportError, match=f"jaxlens has no {path}: ")
    with says:
        exec(f"from jaxlens.{module} import {name}" if module else f"from jaxlens import {name}")
    if path not in transformerlens_names.MODULES:
        return
    with says:
        importlib.import_module(f"jaxlens.{path}")
    with pytest.raises(ImportError, match=f"jaxlens has no {path}: "):
        importlib.import_module(f"jaxlens.{path}.any.module")


@pytest.mark.parametrize("path", transformerlens_names.MODULES)
def test_every_name_of_transformerlens_is_here_or_is_said_not_to_be(path):
    module = "jaxlens" if path == "__init__" else f"jaxlens.{path}"
    try:
        importlib.import_module(module)
    except ImportError as error:
        assert any(str(error).startswith(f"jaxlens has no {part}: ") for part in (path, path.partition(".")[0]))
    for name in transformerlens_names.MODULES[path].split():
        try:
            exec(f"from {module} import {name}")
        except ImportError as error:
            assert str(error).startswith("jaxlens has no ") and ": " in str(error), name


def test_an_unknown_name_is_an_attribute_error_and_an_unknown_module_an_import_error():
    assert not hasattr(jaxlens, "nothing")
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'jaxlens\.nothing'"):
        importlib.import_module("jaxlens.nothing")


def test_importing_the_package_imports_nothing_else():
    heavy = "('jax', 'flax', 'numpy', 'optax', 'tqdm', 'jaxlens.model', 'jaxlens.analysis')"
    assert run(f"import jaxlens, sys; print([name for name in {heavy} if name in sys.modules])").strip() == "[]"


def test_a_model_needs_no_analysis_and_no_progress_bar():
    model = "jaxlens.HookedTransformer(jaxlens.Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_vocab=9, n_ctx=8))"
    unused = "('tqdm', 'pandas', 'gguf', 'transformers', 'jaxlens.analysis', 'jaxlens.training', 'jaxlens.plot')"
    code = f"import jaxlens, sys; {model}([[1, 2]]); print([name for name in {unused} if name in sys.modules])"
    assert run(code).strip() == "[]"


def test_a_progress_bar_in_a_notebook_without_ipywidgets_warns_of_nothing():
    code = """
import sys, types, warnings
import flax.nnx  # before the kernel: it would import more of IPython
kernel = type("ZMQInteractiveShell", (), {})()
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: kernel)
sys.modules["ipykernel.zmqshell"] = types.ModuleType("zmqshell")  # by which tqdm recognizes a kernel
sys.modules["ipywidgets"] = None
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import jaxlens, jaxlens.training.train, jaxlens.training.evals
    config = jaxlens.Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_vocab=9, n_ctx=8)
    jaxlens.HookedTransformer(config).generate([[1, 2]], 2, stop_at_eos=False)
print([str(each.message) for each in caught if "IProgress" in str(each.message)])
"""
    assert run(code).strip() == "[]"


def test_editors_find_the_paths_in_stubs():
    """Each file of the stub package imports all names of the module that its path stands for."""
    stubs = {
        path.relative_to(ROOT / "jaxlens-stubs").with_suffix("").as_posix().removesuffix("/__init__"): path.read_text()
        for path in (ROOT / "jaxlens-stubs").rglob("*.pyi")
    }
    listed = {path: target for path, target in MODULES.items() if not path.startswith(("analysis.", "config."))}
    assert stubs == {path.replace(".", "/"): f"from jaxlens.{target} import *\n" for path, target in listed.items()}
