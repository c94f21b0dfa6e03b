"""Lottery tickets: masks by magnitude of a finished run's weights, its weights of an earlier epoch, rounds of it."""

import shutil

import numpy as np
import pytest
from flax import nnx

from dctps_jax.errors import UserError
from dctps_jax.models import create_model, prunable_layers
from dctps_jax.pruning import load_masks
from dctps_jax.reports.records import read_records
from dctps_jax.runs.workdir import read_config
from dctps_jax.seeds import stream
from tests.killed_runs import run_until_killed
from tests.small_runs import STEPS_PER_EPOCH, arrays, assert_same_end, results, rows, small_run, steps

pytestmark = pytest.mark.usefixtures("small")
# At a rate at which the weights really change, in the plain network.
FIELDS = {"model__offset": None, "keep_epochs": (1,), "data__augment": False, "seed": 3}


def ticket(workdir, source, epoch, density, **fields):
    fields = {"pruning__method": "from_run", "pruning__run": str(source), "pruning__density": density} | fields
    small_run(workdir, **FIELDS | {"pruning__rewind_epoch": epoch} | fields)


@pytest.fixture(scope="module")
def dense(small, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("dense")
    small_run(workdir, **FIELDS | {"pruning__density": 1.0})
    return workdir


@pytest.fixture(scope="module")
def first_round(dense, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("first")
    ticket(workdir, dense, 1, 0.3)
    return workdir


def kernels(found):
    """The kernels in a checkpoint's arrays, zero where no weight is trained, by path."""
    masks = {name.split("/", 2)[2].rpartition("/")[0]: array for name, array in found.items() if "/supports/" in name}
    dense = {name.split("/", 2)[2].rpartition("/")[0]: array for name, array in found.items() if is_kernel(name)}
    whole = {}
    for path, array in dense.items():
        whole[path.replace("/", ".")] = array.ravel()
        if path in masks:
            whole[path.replace("/", ".")] = masks[path], array
    return whole


def is_kernel(name):
    return name.startswith("state/params/") and name.endswith("/kernel")


def assert_weights(found, expected):
    """The weights of a sparse checkpoint are those of a dense one, at its positions."""
    for path, (positions, values) in kernels(found).items():
        np.testing.assert_array_equal(values, expected[path].ravel()[positions], err_msg=path)


def largest(weights, density):
    flat = np.sort(np.concatenate([np.abs(array) for array in weights.values()]))[::-1]
    cut = flat[round(density * flat.size) - 1]
    return {path: np.abs(array) >= cut for path, array in weights.items()}


@pytest.mark.parametrize("density", [0.3, 0.5])  # compact, and masked
def test_epoch_0_is_the_initial_weights_under_masks_of_the_trained_ones(dense, tmp_path, density):
    ticket(tmp_path, dense, 0, density)
    masks, expected = load_masks(tmp_path / "masks.npz"), largest(kernels(arrays(dense)), density)
    for path, mask in masks.items():
        np.testing.assert_array_equal(mask.ravel(), expected[path])
    model = create_model("lenet", num_classes=10, offset=None, init="kaiming_normal", rngs=nnx.Rngs(stream(3, "init")))
    initial = {path: np.asarray(layer.kernel[...]) for path, layer in prunable_layers(model).items()}
    assert_weights(arrays(tmp_path, "kept", 0), initial)
    found = results(tmp_path)
    assert found["density_asked"] == density and found["density"] == pytest.approx(density, abs=1e-4)
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2] and not any("inherited" in row for row in rows(tmp_path))


def test_a_later_epoch_is_what_the_run_had_there(dense, first_round):
    assert_weights(arrays(first_round, "kept", STEPS_PER_EPOCH), kernels(arrays(dense, "kept", STEPS_PER_EPOCH)))
    inherited, own = rows(first_round)
    assert inherited == rows(dense)[0] | {"inherited": True}
    assert own["epoch"] == 2 and own["step"] == 2 * STEPS_PER_EPOCH and "inherited" not in own
    assert results(first_round)["best_epoch"] == 2
    (record,) = read_records(first_round)
    assert record.results is not None and dict(record.setting)["pruning.density"] == 0.3


def test_rounds_are_a_chain_of_runs(dense, first_round, tmp_path):
    ticket(tmp_path, first_round, 1, 0.1)
    first, second = (load_masks(folder / "masks.npz") for folder in (first_round, tmp_path))
    assert not any((second[path] & ~first[path]).any() for path in first)
    assert results(tmp_path)["density"] == pytest.approx(0.1, abs=1e-4)
    assert_weights(arrays(tmp_path, "kept", STEPS_PER_EPOCH), kernels(arrays(dense, "kept", STEPS_PER_EPOCH)))


@pytest.mark.parametrize("fields", [{}, {"model__offset": "dct", "optimizer__ema_decay": 0.9}])
def test_with_all_weights_of_a_run_it_is_that_run_again(tmp_path, fields):
    small_run(tmp_path / "source", **FIELDS | fields)
    for epoch in (0, 1):
        ticket(tmp_path / f"epoch_{epoch}", tmp_path / "source", epoch, 0.05, **fields)
        expected = arrays(tmp_path / "source")
        found = arrays(tmp_path / f"epoch_{epoch}")
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)
        again, before = rows(tmp_path / f"epoch_{epoch}"), rows(tmp_path / "source")
        assert [row | {"inherited": None} for row in again] == [row | {"inherited": None} for row in before]


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_killed_run_goes_on_without_its_source(dense, tmp_path, epoch):
    ticket(tmp_path / "plain", dense, epoch, 0.2, checkpoint_every_steps=2, sparse_training__method="set",
           sparse_training__update_every=2)  # fmt: skip
    source = shutil.copytree(dense, tmp_path / "source")
    fields = FIELDS | {"pruning__method": "from_run", "pruning__run": str(source), "pruning__density": 0.2}
    fields |= {"pruning__rewind_epoch": epoch, "checkpoint_every_steps": 2}
    fields |= {"sparse_training__method": "set", "sparse_training__update_every": 2}
    run_until_killed(tmp_path / "run", 1, **fields)  # before anything is saved
    run_until_killed(tmp_path / "run", 4, **fields)  # with its first checkpoints
    shutil.rmtree(source)
    run_until_killed(tmp_path / "run", 2, **fields)
    small_run(tmp_path / "run", **fields)
    assert_same_end(tmp_path / "run", tmp_path / "plain")
    for name in ("masks.npz", "masks_initial.npz"):
        plain, killed = load_masks(tmp_path / "plain" / name), load_masks(tmp_path / "run" / name)
        assert all(np.array_equal(plain[path], killed[path]) for path in plain)


def test_the_kept_epochs_survive_a_kill(tmp_path):
    options = FIELDS | {"keep_epochs": (1, 2)}
    run_until_killed(tmp_path, 4, **options)
    small_run(tmp_path, **options)
    assert steps(tmp_path, "kept") == [STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH]


def test_each_seed_has_its_own_ticket(tmp_path):
    small_run(tmp_path / "source", **FIELDS | {"pruning__density": 1.0, "num_seeds": 2, "num_epochs": 1})
    ticket(tmp_path / "run", tmp_path / "source", 0, 0.1, num_seeds=2, num_epochs=1)
    for seed in ("seed_3", "seed_4"):
        masks = load_masks(tmp_path / "run" / seed / "masks.npz")
        expected = largest(kernels(arrays(tmp_path / "source" / seed)), 0.1)
        assert all(np.array_equal(mask.ravel(), expected[path]) for path, mask in masks.items())
    # So it is without rewinding.
    source = {"pruning__method": "from_run", "pruning__run": str(tmp_path / "run"), "num_epochs": 1}
    small_run(tmp_path / "masks", **source, seed=3, num_seeds=2)
    for seed in ("seed_3", "seed_4"):
        found, expected = (load_masks(tmp_path / name / seed / "masks.npz") for name in ("masks", "run"))
        assert all(np.array_equal(found[path], expected[path]) for path in expected)
    with pytest.raises(UserError, match=r"several seeds but not seed 7; name one of them, e\.g\. .*run/seed_3"):
        small_run(tmp_path / "other", **source, seed=7)


def test_layers_may_have_densities_of_their_own_and_patterns(dense, tmp_path):
    ticket(tmp_path / "layer", dense, 0, 0.1, pruning__scope="layer", num_epochs=1)
    densities = results(tmp_path / "layer")["layer_densities"].values()
    assert all(density == pytest.approx(0.1, abs=0.002) for density in densities)
    ticket(tmp_path / "nm", dense, 0, 0.2, pruning__pattern="1:5", pruning__dense_layers=("fcs.2",), num_epochs=1)
    mask = load_masks(tmp_path / "nm" / "masks.npz")["fcs.0"]
    assert (mask.reshape(-1, 5, mask.shape[1]).sum(axis=1) == 1).all()


@pytest.mark.parametrize(
    ("epoch", "density", "fields", "message"),
    [
        (2, 0.1, {"num_epochs": 3}, r"kept no checkpoint of step 10 .* kept steps 5\); .*keep_epochs='\(2,\)'"),
        (1, 0.1, {"batch_size": 60}, r"kept no checkpoint of step 3 \(1 · 3 steps of an epoch"),
        (2, 0.1, {}, "rewind_epoch is 2, where the run would begin, and it ends with config.num_epochs, 2; rewind"),
        (1, 0.1, {"optimizer__name": "sgd"}, "are those of another network or optimiser"),
        (1, 0.1, {"optimizer__ema_decay": 0.9}, r"the same config\.optimizer\.ema_decay"),
        (0, 0.1, {"model__name": "resnet18", "model__width": 4}, "name a run of the same network"),
        (0, 0.1, {"pruning__run": "nowhere"}, "which holds no run; name the directory of a finished run"),
        (0, 0.1, {"pruning__method": "epl"}, "only 'from_run' rewinds"),
        (0, 0.1, {"pruning__pattern": "2:4"}, "set the density to 0.5"),
    ],
)  # fmt: skip
def test_what_cannot_be_rewound_is_refused(dense, tmp_path, epoch, density, fields, message):
    with pytest.raises(UserError, match=message):
        ticket(tmp_path / "run", dense, epoch, density, **fields)
    assert not (tmp_path / "run" / "masks.npz").exists()


def test_more_weights_than_the_source_has_and_other_epochs_of_a_round_are_refused(first_round, tmp_path):
    with pytest.raises(UserError, match="weights are to be kept, and the masks that the network has keep"):
        ticket(tmp_path / "more", first_round, 1, 0.4)
    with pytest.raises(UserError, match="it began at epoch 1 itself, rewind to that one"):
        ticket(tmp_path / "earlier", first_round, 0, 0.1)


def test_a_run_that_is_not_finished_is_refused(tmp_path):
    run_until_killed(tmp_path / "source", 4, **FIELDS)
    assert read_config(tmp_path / "source")
    with pytest.raises(UserError, match="is the directory of a run that is not finished"):
        ticket(tmp_path / "run", tmp_path / "source", 0, 0.01)
