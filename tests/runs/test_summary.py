"""The closing lines of runs, and the mean over seeds."""

import os

import pytest

from configs import lenet_digits
from dctps_jax.field import flat_fields
from dctps_jax.runs.summary import environment, last_line, summarize

RUN = {
    "best_val_accuracy": 0.5,
    "test_accuracy_final": 0.5,
    "density": 0.1,
    "density_asked": 0.1,
    "layer_densities": {},
    "trainable_parameters": 9,
}


def test_a_mean_is_over_all_seeds_or_unknown(tmp_path):
    """The checkpoint of a best epoch may be lost."""
    runs = [RUN | {"seed": seed, "test_accuracy_best": best} for seed, best in enumerate((0.9, None, 0.9))]
    results = summarize(runs, tmp_path, dict(flat_fields(lenet_digits.get_config())))
    assert "test_accuracy_best" not in results
    expected = "3 seeds: test accuracy of the best epoch unknown, of the last 50.00% ± 0.00%"
    assert last_line(results) == expected
    runs[1]["test_accuracy_best"] = 0.6
    results = summarize(runs, tmp_path, dict(flat_fields(lenet_digits.get_config())))
    assert last_line(results) == "3 seeds: test accuracy of the best epoch 80.00% ± 17.32%, of the last 50.00% ± 0.00%"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not bind processes to cores")
def test_the_environment_has_the_cores_that_the_process_may_use():
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert environment()["cores"] == 1
    finally:
        os.sched_setaffinity(0, cores)
    assert environment()["cores"] == len(cores) and "flax" in environment()
