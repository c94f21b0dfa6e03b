"""Settings for every test: eight fake CPU devices, strict rank promotion, programs that compile fast and only once for
all tests, the processes that they start, and the next run of the tests. And D as the original holds it."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

# Most of a test is the compiler's time. It compiles in half the time at level 1 and without the fusion emitters, which
# translate each fusion by way of MLIR. At level 0 the programs are so slow that the traces of training take four times
# as long.
COMPILE_FAST = "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false"

# Where pytest keeps its own notes. JAX names an entry by a digest of program, options and versions.
COMPILED = Path(__file__).parents[1] / ".pytest_cache" / "compiled"
MAX_COMPILED_BYTES = 2 * 10**9


def xla_takes(flags):
    """XLA ends a process that has a flag which this version of it does not know."""
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    return subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True).returncode == 0


os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit it
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    os.environ["XLA_FLAGS"] = f"{flags} {COMPILE_FAST}" if xla_takes(COMPILE_FAST) else flags
    if COMPILED.exists() and sum(entry.stat().st_size for entry in COMPILED.iterdir()) > MAX_COMPILED_BYTES:
        shutil.rmtree(COMPILED)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(COMPILED)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dctps_jax import data, models
from dctps_jax.offsets import OFFSETS
from dctps_jax.offsets.dct import conv_kernel
from tests import small_networks, small_runs
from tests.small_disk import SmallDisk

jax.config.update("jax_numpy_rank_promotion", "raise")


# How the names of slow tests begin: networks at their full size, whose small ones are among the others, and whole runs
# of several seconds each. `pytest` leaves them out, `pytest -m slow` runs them alone, and .ci/run runs both.
SLOW = (
    "tests/benchmarks/test_layers.py",
    "tests/benchmarks/test_masked_mlp.py::test_the_variants_have_the_same_losses[scipy_csr]",
    "tests/benchmarks/test_tpu.py",
    "tests/data/test_augmentation.py::test_a_tpu_makes_the_same_pixels[shape1",
    "tests/data/test_augmentation.py::test_a_tpu_makes_the_same_pixels[shape2",
    "tests/data/test_augmentation.py::test_a_tpu_makes_the_same_pixels[shape3",
    "tests/data/test_augmentation.py::test_a_tpu_makes_the_same_pixels[shape4",
    "tests/data/test_reading_ahead.py::test_another_process_reads_the_same_until_it_is_killed",
    "tests/data/test_reading_ahead.py::test_no_shared_memory_is_left",
    "tests/data/test_reading_ahead.py::test_the_error_of_another_process_is_the_same",
    "tests/distributed/test_exit_timeout.py::test_the_other_one_is_gone[0]",
    "tests/distributed/test_runs.py::test_a_",
    "tests/distributed/test_runs.py::test_another_job",
    "tests/distributed/test_runs.py::test_goes_on",
    "tests/distributed/test_runs.py::test_images",
    "tests/distributed/test_runs.py::test_launch",
    "tests/distributed/test_runs.py::test_other",
    "tests/distributed/test_runs.py::test_processes",
    "tests/distributed/test_runs.py::test_rigl",
    "tests/distributed/test_runs.py::test_several",
    "tests/distributed/test_runs.py::test_streamed",
    "tests/distributed/test_runs.py::test_two",
    "tests/distributed/test_start.py::test_a_process_that_waits_says_so_and_leaves_with_one_sentence[1]",
    "tests/experiments/test_start.py::test_figures",
    "tests/experiments/test_trials.py::test_runs_are_kept_and_made_once",
    "tests/faults/test_runs.py::test_right_or_one_sentence[again]",
    "tests/faults/test_runs.py::test_right_or_one_sentence[restore]",
    "tests/faults/test_runs.py::test_right_or_one_sentence[resume]",
    "tests/layer_kinds/test_layer_kinds.py::test_a_converted_layer_equals_the_plain_one_with_k_written_out[ConvTranspose-arguments21",
    "tests/layer_kinds/test_layer_kinds.py::test_a_converted_layer_equals_the_plain_one_with_k_written_out[ConvTranspose-arguments22",
    "tests/layer_kinds/test_layer_kinds.py::test_a_converted_layer_equals_the_plain_one_with_k_written_out[ConvTranspose-arguments23",
    "tests/layer_kinds/test_layer_kinds.py::test_a_converted_layer_equals_the_plain_one_with_k_written_out[ConvTranspose-arguments24",
    "tests/layer_kinds/test_layer_kinds.py::test_a_converted_layer_equals_the_plain_one_with_k_written_out[ConvTranspose-arguments25",
    "tests/layer_kinds/test_layer_kinds.py::test_a_converted_layer_equals_the_plain_one_with_k_written_out[ConvTranspose-arguments26",
    "tests/layer_kinds/test_layer_kinds.py::test_a_converted_layer_equals_the_plain_one_with_k_written_out[ConvTranspose-arguments27",
    "tests/layer_kinds/test_layer_kinds.py::test_a_converted_layer_equals_the_plain_one_with_k_written_out[ConvTranspose-arguments28",
    "tests/layer_kinds/test_layer_kinds.py::test_a_converted_layer_equals_the_plain_one_with_k_written_out[ConvTranspose-arguments29",
    "tests/layer_kinds/test_layer_kinds.py::test_a_converted_layer_equals_the_plain_one_with_k_written_out[ConvTranspose-arguments30",
    "tests/layer_kinds/test_layer_kinds.py::test_a_converted_layer_equals_the_plain_one_with_k_written_out[ConvTranspose-arguments31",
    "tests/layer_kinds/test_layer_kinds.py::test_a_converted_layer_equals_the_plain_one_with_k_written_out[Einsum-arguments16",
    "tests/layer_kinds/test_layer_kinds.py::test_a_converted_layer_equals_the_plain_one_with_k_written_out[Einsum-arguments17",
    "tests/layer_kinds/test_layer_kinds.py::test_a_converted_layer_equals_the_plain_one_with_k_written_out[Einsum-arguments18",
    "tests/layer_kinds/test_layer_kinds.py::test_a_converted_layer_equals_the_plain_one_with_k_written_out[Einsum-arguments19",
    "tests/layer_kinds/test_layer_kinds.py::test_a_converted_layer_equals_the_plain_one_with_k_written_out[LinearGeneral-arguments1",
    "tests/layer_kinds/test_layer_kinds.py::test_a_converted_layer_equals_the_plain_one_with_k_written_out[LinearGeneral-arguments2",
    "tests/layer_kinds/test_layer_kinds.py::test_a_converted_layer_equals_the_plain_one_with_k_written_out[LinearGeneral-arguments3",
    "tests/layer_kinds/test_layer_kinds.py::test_a_converted_layer_equals_the_plain_one_with_k_written_out[LinearGeneral-arguments4",
    "tests/layer_kinds/test_layer_kinds.py::test_a_converted_layer_equals_the_plain_one_with_k_written_out[LinearGeneral-arguments5",
    "tests/layer_kinds/test_layer_kinds.py::test_a_converted_layer_equals_the_plain_one_with_k_written_out[LinearGeneral-arguments6",
    "tests/layer_kinds/test_layer_kinds.py::test_a_converted_layer_equals_the_plain_one_with_k_written_out[LinearGeneral-arguments7",
    "tests/layer_kinds/test_layer_kinds.py::test_a_mesh_with_explicit_axes",
    "tests/layer_kinds/test_layer_kinds.py::test_a_new_layer_without_offset_equals_that_of_flax_from_the_same_seed",
    "tests/layer_kinds/test_layer_kinds.py::test_attention_is_pruned_by_scores_as_other_layers_are",
    "tests/layer_kinds/test_layer_kinds.py::test_in_programs_as_nnx_users_write_them",
    "tests/layer_kinds/test_layer_kinds.py::test_parameters_in_half_precision[LinearGeneral-arguments1-options1-shape1-float16",
    "tests/models/test_blocks.py::test_a_loop_is_one_and_leaves_statistics_alone_in_evaluation",
    "tests/models/test_blocks.py::test_lists_of_weights_of_different_length_share_a_loop",
    "tests/models/test_blocks.py::test_running_changes_nothing[fixup",
    "tests/models/test_blocks.py::test_running_changes_nothing[resnet18",
    "tests/models/test_blocks.py::test_running_changes_nothing[vgg11",
    "tests/models/test_models.py::test_every_network_maps_both_sizes_to_logits[",
    "tests/models/test_models.py::test_only_training_mode_changes_the_statistics",
    "tests/models/test_models.py::test_the_deepest_network",
    "tests/models/test_precision.py",
    "tests/offsets/test_dct_transform.py::test_a_corner_is_transformed_as_by_its_matrix",
    "tests/offsets/test_dct_transform.py::test_each_direction_is_the_others_gradient",
    "tests/offsets/test_dct_transform.py::test_the_error_is_of_the_size_of_the_dtypes",
    "tests/ops/test_depthwise.py::test_blocks_and_parts_add_up[6-spatial0-strides0-500]",
    "tests/ops/test_rows.py::test_what_goes_into_rows_comes_out_of_them",
    "tests/ops/test_sparse_part.py::test_products_and_gradients_are_those_of_the_dense_kernel[depthwise",
    "tests/ops/test_sparse_part.py::test_products_and_gradients_are_those_of_the_dense_kernel[strides",
    "tests/ops/test_sparse_part.py::test_products_and_gradients_are_those_of_the_dense_kernel[valid",
    "tests/pruning/test_dynamic.py::test_regrown_weights_and_moments_start_at_zero",
    "tests/pruning/test_dynamic.py::test_rigl_equals_the_original_where_it_is_right",
    "tests/pruning/test_dynamic.py::test_updates_do_not_delay_the_learning_rate",
    "tests/pruning/test_dynamic_sparse.py::test_a_layer_under_two_names_moves_as_under_one[False]",
    "tests/pruning/test_dynamic_sparse.py::test_an_nnx_model_ends_as_in_the_trainer",
    "tests/pruning/test_dynamic_sparse.py::test_counts_stay_and_what_is_not_trained_is_zero[rigl-tx",
    "tests/pruning/test_own_losses.py::test_float_targets",
    "tests/pruning/test_schedules.py::test_fixup_networks_cannot_be_scored_by_gradients_with_or_without_offset",
    "tests/pruning/test_scores.py::test_every_method_keeps_the_exact_count_and_leaves_the_model_alone",
    "tests/pruning/test_scores.py::test_fixup_networks_without_offset_are_refused",
    "tests/pruning/test_scores.py::test_grasp_equals_an_explicit_hessian",
    "tests/pruning/test_scores.py::test_masks_equal_the_authors_bit_for_bit[lenet-dct",
    "tests/pruning/test_scores.py::test_masks_equal_the_authors_bit_for_bit[resnet18",
    "tests/pruning/test_scores.py::test_scores_of_dct_layers_are_those_of_the_effective_kernel",
    "tests/pruning/test_scores.py::test_synflow_is_finite_in_float32_at_full_width",
    "tests/pruning/test_scores.py::test_synflow_rescaling_keeps_the_order",
    "tests/reports/test_masks.py::test_command",
    "tests/reports/test_report.py::test_a_long_legend_is_not_cut_off",
    "tests/runs/test_checkpoint_format_2.py::test_it_goes_on_and_ends_as_one_undisturbed",
    "tests/runs/test_checkpoint_format_2.py::test_masks_that_only_their_file_knows[static]",
    "tests/runs/test_repair.py",
    "tests/test_cli.py::test_full_and_read_only_disks",
    "tests/test_cli.py::test_help_into_a_pipe",
    "tests/test_configs.py::test_network_and_support_can_be_built",
    "tests/test_conversion.py::test_a_network_that_was_cast_keeps_its_type[dct-compact]",
    "tests/test_delta.py::test_a_network_begins_as_its_base_and_trains_the_sparse_part_alone[compact]",
    "tests/test_delta.py::test_every_method_adds_to_a_frozen_kernel",
    "tests/test_delta.py::test_fisher_is_the_mean",
    "tests/test_delta.py::test_supports_are_chosen_by_the_scores_of_the_trained_kernels",
    "tests/test_delta.py::test_the_base_and_the_file_are_the_trained_network_again",
    "tests/test_documents.py::test_blocks_work[docs/",
    "tests/test_documents.py::test_what_the_page_on_extending_adds_trains_together",
    "tests/test_examples.py::test_char_transformer",
    "tests/test_examples.py::test_finetune_digits",
    "tests/test_examples.py::test_mixer_digits",
    "tests/test_examples.py::test_vit_digits",
    "tests/test_execution.py::test_networks_compute_the_same_by_every_method[fixup_resnet20",
    "tests/test_execution.py::test_networks_compute_the_same_by_every_method[fixup_small",
    "tests/test_execution.py::test_networks_compute_the_same_by_every_method[mobilenet_v2",
    "tests/test_execution.py::test_networks_compute_the_same_by_every_method[resnet18",
    "tests/test_execution.py::test_networks_compute_the_same_by_every_method[small_mobilenet",
    "tests/test_execution.py::test_networks_compute_the_same_by_every_method[small_resnet",
    "tests/test_execution.py::test_networks_compute_the_same_by_every_method[small_vgg",
    "tests/test_execution.py::test_networks_compute_the_same_by_every_method[vgg11",
    "tests/test_execution.py::test_no_method_needs_much_more_memory_than_another",
    "tests/test_execution.py::test_products_with_the_hessian",
    "tests/test_execution.py::test_without_jit_too",
    "tests/test_export.py",
    "tests/test_nnx_programs.py::test_a_mesh_with_explicit_axes",
    "tests/test_nnx_programs.py::test_a_network_on_a_mesh",
    "tests/test_nnx_programs.py::test_a_program_computes_what_it_computes_with_plain_layers[masked",
    "tests/test_nnx_programs.py::test_a_program_for_batches_of_any_size[compact-None]",
    "tests/test_nnx_programs.py::test_a_program_for_batches_of_any_size[masked",
    "tests/test_nnx_programs.py::test_forward_mode_in_a_program_for_every_platform_while_a_network_trains",
    "tests/test_nnx_programs.py::test_networks_on_a_mesh",
    "tests/test_nnx_programs.py::test_parameters_in_half_precision",
    "tests/test_notebook.py::test_runs_from_top_to_bottom",
    "tests/test_own_network.py",
    "tests/test_parity.py::test_float32_is_as_close_to_float64_as_the_original_is[parity_fixup",
    "tests/test_parity.py::test_float32_is_as_close_to_float64_as_the_original_is[parity_resnet18",
    "tests/test_parity.py::test_float64_forward_and_gradients_equal_the_original[parity_fixup",
    "tests/test_parity.py::test_float64_forward_and_gradients_equal_the_original[parity_mobilenet",
    "tests/test_parity.py::test_float64_forward_and_gradients_equal_the_original[parity_resnet18",
    "tests/test_partitioning.py::test_a_converted_network_is_divided_as_it_was[AxisType.Explicit",
    "tests/test_partitioning.py::test_a_layer_that_is_divided_among_devices",
    "tests/test_stacks.py::test_a_stack_trains_like_its_layers_one_by_one",
    "tests/test_stacks.py::test_every_method_chooses_equally_many_weights_in_each_layer",
    "tests/test_stacks.py::test_several_axes_of_layers",
    "tests/test_stacks.py::test_stacks_of_every_kind_of_layer[ConvTranspose",
    "tests/test_stacks.py::test_stacks_of_every_kind_of_layer[Embed-compact",
    "tests/test_stacks.py::test_stacks_of_every_kind_of_layer[LinearGeneral",
    "tests/test_stacks.py::test_stacks_of_every_kind_of_layer[attention",
    "tests/test_stacks.py::test_stacks_of_every_kind_of_layer[batch axes",
    "tests/test_stacks.py::test_stacks_of_every_kind_of_layer[transposed kernel",
    "tests/test_torch_compat.py::test_names_shapes_and_layouts_are_the_originals[mobilenet",
    "tests/test_torch_compat.py::test_round_trip",
    "tests/test_train_cli.py::test_a_run_that_grows_ends_as_if_it_had_been_started_so",
    "tests/test_train_cli.py::test_a_run_through_kills_and_signals_ends_as_one_undisturbed",
    "tests/test_train_cli.py::test_a_second_signal_is_survived_and_a_third_is_not",
    "tests/test_train_cli.py::test_a_signal_before_training_ends_the_process_at_once",
    "tests/training/test_compilation.py::test_an_epoch_without_updates_after_one_with_updates_has_its_program",
    "tests/training/test_compilation.py::test_each_program_is_traced_once[1-lengths0-rigl",
    "tests/training/test_compilation.py::test_each_program_is_traced_once[2",
    "tests/training/test_compilation.py::test_each_program_is_traced_once[5",
    "tests/training/test_compiled_programs.py",
    "tests/training/test_forms.py",
    "tests/training/test_gradual_pruning.py::test_a_run",
    "tests/training/test_gradual_pruning.py::test_an_update_is_a_step_and_then_prunes",
    "tests/training/test_growth.py",
    "tests/training/test_loop.py::test_devices_give_the_same_losses[4",
    "tests/training/test_loop.py::test_steps_per_dispatch_does_not_change_the_losses",
    "tests/training/test_memory.py::test_no_page_is_mapped_again",
    "tests/training/test_precision.py::test_a_run_that_goes_on_keeps_its_type",
    "tests/training/test_precision.py::test_exports_predictions_and_reports_name_the_type",
    "tests/training/test_precision.py::test_seeds_share_a_type",
    "tests/training/test_progress.py::test_what_takes_long_before_the_first_table_is_announced",
    "tests/training/test_recipes.py::test_a_run_with_all_of_it_ends_the_same_when_it_is_killed",
    "tests/training/test_recipes.py::test_label_smoothing_changes_the_training_loss_only",
    "tests/training/test_rewinding.py",
    "tests/training/test_run.py::test_a_run_whose_config_has_the_old_names_of_methods_goes_on",
    "tests/training/test_run.py::test_a_run_with_another_offset_is_resumed",
    "tests/training/test_run.py::test_checkpoints_hold_the_trained_weights_and_their_moments_only",
    "tests/training/test_run.py::test_full_disks_on_its_way_lose_nothing",
    "tests/training/test_run.py::test_killed_at_any_write_it_ends_the_same",
    "tests/training/test_run.py::test_loss_that_is_not_finite_ends_the_run[176",
    "tests/training/test_run.py::test_number_of_saves_is_what_was_asked_for",
    "tests/training/test_run.py::test_resumed_in_the_middle_of_an_epoch",
    "tests/training/test_run.py::test_run_moves_to_a_platform_with_another_number_of_steps_a_dispatch",
    "tests/training/test_run.py::test_several_seeds_and_their_mean",
    "tests/training/test_shards.py::test_a_run",
    "tests/training/test_shards.py::test_a_state_on_the_host_changes_its_form_there",
    "tests/training/test_shards.py::test_from_the_command_line",
    "tests/training/test_shards.py::test_plain_descent_equals_to_rounding[8",
    "tests/training/test_shards.py::test_ten_steps",
    "tests/training/test_shards.py::test_weights_move",
    "tests/training/test_shards.py::test_what_an_optimiser_does",
    "tests/training/test_sparse_training.py",
    "tests/training/test_streaming.py::test_a_broken_image_in_the_middle_of_an_epoch_is_named_and_mended",
    "tests/training/test_streaming.py::test_a_run_goes_on_reading_as_it_began",
    "tests/training/test_streaming.py::test_a_streamed_run_stopped_in_an_epoch_ends_as_a_resident_one",
    "tests/training/test_streaming.py::test_on_two_devices",
    "tests/training/test_streaming.py::test_the_config_of_imagenet_trains",
    "tests/training/test_traces.py::test_float32_trace_stays_close[trace_fixup",
    "tests/training/test_traces.py::test_float64_trace_equals_the_original[trace_fixup",
    "tests/training/test_traces.py::test_vanishing_preactivations_make_one_trace_ill_conditioned",
)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def small_families():
    """Have create_model make a small network of each family, by the names in FAMILIES."""
    with pytest.MonkeyPatch.context() as patch:
        for name, family in small_networks.FAMILIES.items():
            patch.setitem(models.MODELS, name, family)
        yield


@pytest.fixture
def original_offset(monkeypatch):
    """The original rounds D to float32 in every precision; ours is exact. Networks must be built within the test."""

    def rounded(shape, dtype):
        return jnp.asarray(conv_kernel(shape).astype(np.float32), dtype)

    monkeypatch.setitem(OFFSETS, "dct", dataclasses.replace(OFFSETS["dct"], kernel=rounded))


@pytest.fixture(scope="session")
def digits():
    return small_runs.small_digits()


@pytest.fixture(scope="module")
def small(digits):
    """Makes `run()` small: few images, one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.SOURCES, "digits", data.Source(lambda options: digits, image_size=32))
        small_runs.train_on_one_device(patch)
        yield


@pytest.fixture(scope="module")
def plain(small, tmp_path_factory):
    """The directory of a run that nothing disturbed: 2 epochs, a checkpoint every 2 steps."""
    workdir = tmp_path_factory.mktemp("plain")
    small_runs.small_run(workdir, checkpoint_every_steps=2)
    return workdir


@pytest.fixture
def small_disk(tmp_path):
    disk = SmallDisk(tmp_path / "disk")
    if not disk.mount():
        pytest.skip("only root may mount a small disk")
    yield disk
    disk.unmount()
