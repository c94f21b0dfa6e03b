"""Checkpoints: bit for bit there and back, and nothing damaged is ever loaded."""

import logging
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dctps_jax import UserError
from dctps_jax.training import checkpoint
from dctps_jax.training.checkpoint import Checkpoints, digest, flatten, pack, unpack
from tests.training.small_runs import placement_on

# Reads that Orbax drops when one of them fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def make_tree(number=0):
    """A tree with what a training state holds; `number` tells one from another."""
    random = np.random.default_rng(number)
    odd = np.array([0.0, -0.0, np.nan, np.inf, 1e-45, np.finfo(np.float32).max], np.float32)
    return {
        "state": {
            "step": jnp.asarray(number, jnp.int32),
            "params": {"fc": {"kernel": jnp.asarray(random.normal(size=(5, 3)), jnp.float32), "odd": jnp.asarray(odd)}},
            "masks": {"fc": {"mask": jnp.asarray(random.random((5, 3)) < 0.5)}},
            "frozen": {},
            "half": jnp.asarray(random.normal(size=4), jnp.bfloat16),
        },
        "sums": (jnp.asarray(1.5, jnp.float32), jnp.asarray(7, jnp.int32)),
    }


def same_bits(one, other):
    def same(a, b):
        return a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()

    return jax.tree.structure(one) == jax.tree.structure(other) and jax.tree.all(jax.tree.map(same, one, other))


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of steps 10 and 20."""
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20):
        checkpoints.save("latest", step, make_tree(step))
    checkpoints.close()
    return tmp_path


def reopened(folder):
    return Checkpoints(folder).restore("latest", make_tree())


def assert_holds(restored, step):
    assert restored is not None and restored[0] == step and same_bits(restored[1], make_tree(step))


def test_there_and_back(saved):
    assert_holds(reopened(saved), 20)


def test_empty_folder_has_nothing(tmp_path):
    assert reopened(tmp_path) is None


def test_two_newest_and_one_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20, 30):
        checkpoints.save("latest", step, make_tree(step))
        checkpoints.save("best", step, make_tree(step))
    assert sorted(entry.name for entry in (tmp_path / "latest").iterdir()) == ["20", "30"]
    assert [entry.name for entry in (tmp_path / "best").iterdir()] == ["30"]
    # An earlier step, as when a run starts again from an older checkpoint.
    checkpoints.save("latest", 30, make_tree(31))
    assert same_bits(checkpoints.restore("latest", make_tree())[1], make_tree(31))


def files_of(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def test_any_damage_to_any_file_is_noticed_or_harmless(saved, tmp_path_factory, caplog):
    pristine = tmp_path_factory.mktemp("pristine") / "saved"
    shutil.copytree(saved, pristine)
    passed_over = []
    for name in files_of(pristine / "latest" / "20"):
        content = (pristine / "latest" / "20" / name).read_bytes()
        damages = {"missing": None}
        if content:
            middle = len(content) // 2
            damages |= {"empty": b"", "cut": content[:middle]}
            damages["flipped"] = content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]
        for damage, replacement in damages.items():
            shutil.rmtree(saved)
            shutil.copytree(pristine, saved)
            path = saved / "latest" / "20" / name
            path.unlink() if replacement is None else path.write_bytes(replacement)
            caplog.clear()
            restored = reopened(saved)
            assert restored is not None, (name, damage)
            assert_holds(restored, restored[0])
            if restored[0] == 10:
                passed_over.append((str(name.name), damage))
                assert "is damaged and passed over" in caplog.text and "latest/20" in caplog.text
                assert (saved / "damaged" / "latest_20").exists() and not (saved / "latest" / "20").exists()
    assert len(passed_over) > 8  # manifests, arrays and metadata at least, or the damage above does none


def flip_largest_file(folder):
    path = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_empty_step_directory_is_passed_over_and_can_be_written_again(saved):
    shutil.rmtree(saved / "latest" / "20")
    (saved / "latest" / "20").mkdir()
    checkpoints = Checkpoints(saved)
    assert_holds(checkpoints.restore("latest", make_tree()), 10)
    checkpoints.save("latest", 20, make_tree(20))
    assert_holds(reopened(saved), 20)


def test_interrupted_save_is_cleared_away(saved):
    (saved / "latest" / "20").rename(saved / "latest" / "20.orbax-checkpoint-tmp")
    checkpoints = Checkpoints(saved)
    assert_holds(checkpoints.restore("latest", make_tree()), 10)
    checkpoints.save("latest", 20, make_tree(20))
    assert_holds(reopened(saved), 20)
    assert sorted(entry.name for entry in (saved / "latest").iterdir()) == ["10", "20"]


def test_nothing_sound_left(saved, caplog):
    for step in ("10", "20"):
        flip_largest_file(saved / "latest" / step)
    with caplog.at_level(logging.WARNING, "dctps_jax"):
        assert reopened(saved) is None
    assert caplog.text.count("is damaged and passed over") == 2
    assert sorted(entry.name for entry in (saved / "damaged").iterdir()) == ["latest_10", "latest_20"]


def test_damaged_twice(saved):
    for name in ("latest_20", "latest_20_2"):
        flip_largest_file(saved / "latest" / "20")
        checkpoints = Checkpoints(saved)
        assert_holds(checkpoints.restore("latest", make_tree()), 10)
        assert (saved / "damaged" / name).exists()
        checkpoints.save("latest", 20, make_tree(20))
        checkpoints.close()


@pytest.mark.parametrize("change", ["shape", "dtype", "missing", "more"])
def test_checkpoint_of_another_network_is_never_loaded(saved, change):
    template = make_tree()
    fc = template["state"]["params"]["fc"]
    if change == "missing":
        del fc["odd"]
    elif change == "more":
        fc["bias"] = jnp.zeros(3)
    else:
        fc["kernel"] = jnp.zeros((3, 5)) if change == "shape" else jnp.zeros((5, 3), jnp.bfloat16)
    with pytest.raises(UserError, match="of another network, optimiser or version"):
        Checkpoints(saved).restore("latest", template)
    assert not (saved / "damaged").exists()  # nothing is wrong with it


def test_checkpoint_of_a_newer_version_is_named(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT_VERSION", checkpoint.FORMAT_VERSION + 1)
        Checkpoints(tmp_path).save("latest", 5, make_tree(5))
    with pytest.raises(UserError, match="was written by a newer dctps_jax"):
        Checkpoints(tmp_path).restore("latest", make_tree())
    assert not (tmp_path / "damaged").exists()


@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 4), (2, 4)])
def test_checkpoint_moves_between_numbers_of_devices(tmp_path, before, after):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("latest", 5, placement_on(before).put(make_tree(5)))
    template = placement_on(after).put(make_tree())
    restored = Checkpoints(tmp_path).restore("latest", template)
    assert_holds(restored, 5)
    for leaf in jax.tree.leaves(restored[1]):
        assert len(leaf.devices()) == after and leaf.is_fully_replicated


def test_digest_sees_every_bit_name_shape_and_type():
    arrays = {"a": np.zeros(6, np.float32), "b": np.arange(3)}
    assert digest(arrays) == digest(dict(reversed(arrays.items())))
    others = [
        {"a": np.array([-0.0, 0, 0, 0, 0, 0], np.float32), "b": arrays["b"]},
        {"a": arrays["a"].reshape(2, 3), "b": arrays["b"]},
        {"a": arrays["a"].view(np.int32), "b": arrays["b"]},
        {"a": arrays["a"], "c": arrays["b"]},
        {"a": arrays["a"]},
        {"b": arrays["a"], "a": arrays["b"]},
    ]
    digests = [digest(arrays), *map(digest, others)]
    assert len(set(digests)) == len(digests)


def test_names_are_paths():
    assert list(flatten(make_tree()))[:2] == ["state/half", "state/masks/fc/mask"]
    assert list(flatten(make_tree()))[-2:] == ["sums/0", "sums/1"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["float32", "int32", "bool", "bfloat16", "uint32"]),
            st.lists(st.integers(0, 4), max_size=3),
            st.integers(0, 2**32 - 1),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_packing_keeps_every_bit(kinds):
    arrays = {}
    for number, (dtype, shape, seed) in enumerate(kinds):
        size = math.prod(shape) * jnp.dtype(dtype).itemsize
        content = np.random.default_rng(seed).integers(0, 2 if dtype == "bool" else 256, size, dtype=np.uint8)
        arrays[f"a/{number}"] = content.view(jnp.dtype(dtype)).reshape(shape)
    unpacked = unpack(pack(arrays))
    assert list(unpacked) == list(arrays)
    for name, array in arrays.items():
        found = unpacked[name]
        assert found.dtype == array.dtype and found.shape == array.shape and found.tobytes() == array.tobytes()
    assert len(pack(arrays)) <= 1 + len({str(array.dtype) for array in arrays.values()})
