"""Checkpoints: bit for bit there and back, and nothing damaged is ever loaded."""

import contextlib
import logging
import math
import os
import resource
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dctps_jax.errors import DiskFull, UserError
from dctps_jax.runs import checkpoint_files
from dctps_jax.runs.checkpoint import Checkpoints, read_arrays
from dctps_jax.runs.packing import digest, flatten, pack, unpack
from tests.small_runs import placement_on, restored
from tests.unreadable_files import denied_permission, no_memory, unreachable_file


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
    return restored(Checkpoints(folder), make_tree())


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
    assert same_bits(restored(checkpoints, make_tree())[1], make_tree(31))


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
    # Nothing else of a checkpoint is read.
    damages = ("missing", "empty", "cut", "flipped")
    assert passed_over == [(name, damage) for name in ("metadata", "content.zip") for damage in damages]


def flip_largest_file(folder):
    path = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_empty_step_directory_is_passed_over_and_can_be_written_again(saved):
    shutil.rmtree(saved / "latest" / "20")
    (saved / "latest" / "20").mkdir()
    checkpoints = Checkpoints(saved)
    assert_holds(restored(checkpoints, make_tree()), 10)
    checkpoints.save("latest", 20, make_tree(20))
    assert_holds(reopened(saved), 20)


def test_interrupted_save_is_cleared_away(saved):
    (saved / "latest" / "20").rename(saved / "latest" / "20.orbax-checkpoint-tmp")
    checkpoints = Checkpoints(saved)
    assert_holds(restored(checkpoints, make_tree()), 10)
    checkpoints.save("latest", 20, make_tree(20))
    assert_holds(reopened(saved), 20)
    assert sorted(entry.name for entry in (saved / "latest").iterdir()) == ["10", "20"]


@pytest.mark.parametrize("is_written", [True, False])
def test_killed_while_it_replaced_a_checkpoint(saved, is_written):
    shutil.copytree(saved / "latest" / "20", saved / "latest" / "20.replaced")
    if is_written:  # but the old one not removed yet
        shutil.rmtree(saved / "latest" / "20.replaced" / "state")
    else:
        (saved / "latest" / "20").rename(saved / "latest" / "20.orbax-checkpoint-tmp")
    checkpoints = Checkpoints(saved)
    assert_holds(restored(checkpoints, make_tree()), 20)
    checkpoints.save("latest", 20, make_tree(20))
    assert sorted(entry.name for entry in (saved / "latest").iterdir()) == ["10", "20"]
    assert_holds(reopened(saved), 20)


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
        assert_holds(restored(checkpoints, make_tree()), 10)
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
        restored(Checkpoints(saved), template)
    assert not (saved / "damaged").exists()  # nothing is wrong with it


@pytest.mark.parametrize("version", [1, 4])
def test_checkpoint_of_another_format_is_unsupported_not_damaged(saved, version, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "FORMAT_VERSION", version)
        Checkpoints(saved).save("latest", 30, make_tree(30))
    message = f"latest/30 is of format {version}, but this version of dctps_jax reads the formats 2 and 3 only"
    with pytest.raises(UserError, match=message):
        restored(Checkpoints(saved), make_tree())
    with pytest.raises(UserError, match=message):
        read_arrays(saved, "latest")
    assert not (saved / "damaged").exists()


@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 4), (2, 4)])
def test_checkpoint_moves_between_numbers_of_devices(tmp_path, before, after):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("latest", 5, placement_on(before).put(make_tree(5)))
    template = placement_on(after).put(make_tree())
    found = restored(Checkpoints(tmp_path), template)
    assert_holds(found, 5)
    for leaf in jax.tree.leaves(found[1]):
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


@pytest.mark.parametrize("name", ["run[1]", "a*b", "what?", "{a,b}", "back\\slash", "two words", "dot.", "x" * 255])
def test_any_name_of_a_directory(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (Path(name), tmp_path / "link" / "below"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(Path(name).absolute(), target_is_directory=True)
        checkpoints = Checkpoints(folder)
        for step in (10, 20, 30):
            checkpoints.save("latest", step, make_tree(step))
        checkpoints.close()
        assert_holds(reopened(folder.absolute()), 30)
        assert sorted(entry.name for entry in (folder / "latest").iterdir()) == ["20", "30"]
        flip_largest_file(folder / "latest" / "30")
        assert_holds(reopened(folder), 20)
        assert read_arrays(folder, "latest")[0] == 20


@contextlib.contextmanager
def used_up_handles(path):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, limits[1]))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        with pytest.raises(OSError, match="Too many open files"):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for handle in taken:
            os.close(handle)


@pytest.mark.parametrize("name", ["meta/metadata", "state/content.zip"])
@pytest.mark.parametrize("fails", [used_up_handles, denied_permission, unreachable_file, no_memory])
def test_what_is_no_damage_stops_with_its_reason_and_moves_nothing(saved, name, fails):
    before = files_of(saved)
    for read in (reopened, lambda folder: read_arrays(folder, "latest")):
        with fails(saved / "latest" / "20" / name):
            read(saved)
    assert files_of(saved) == before
    assert_holds(reopened(saved), 20)


def test_checkpoint_of_another_step_or_run_in_its_place_is_damaged(saved, tmp_path_factory):
    shutil.rmtree(saved / "latest" / "20")
    shutil.copytree(saved / "latest" / "10", saved / "latest" / "20")
    assert_holds(reopened(saved), 10)
    other = tmp_path_factory.mktemp("other")
    Checkpoints(other).save("latest", 10, make_tree(11))
    content = "latest/10/state/content.zip"
    shutil.copy(other / content, saved / content)
    assert reopened(saved) is None
    assert sorted(entry.name for entry in (saved / "damaged").iterdir()) == ["latest_10", "latest_20"]


def test_fifo_in_place_of_a_file_is_damage(saved):
    path = saved / "latest" / "20" / "state" / "content.zip"
    path.unlink()
    os.mkfifo(path)
    assert_holds(reopened(saved), 10)


@pytest.mark.parametrize("notes", ["[" * 100_000, "{", "\udcff"], ids=["deep", "cut short", "no UTF-8"])
def test_damaged_notes_of_orbax(saved, notes):
    (saved / "latest" / "10" / "_CHECKPOINT_METADATA").write_text(notes, errors="surrogateescape")
    checkpoints = Checkpoints(saved)
    checkpoints.save("latest", 30, make_tree(30))
    checkpoints.close()
    assert_holds(reopened(saved), 30)


@pytest.mark.parametrize("name", ["notes.txt", "007", "12.orbax-checkpoint-tmp", ".hidden", "-1", "3.5", "²"])
def test_other_entries_are_no_checkpoints(saved, name):
    (saved / "latest" / name).mkdir()
    (saved / "latest" / "30").write_text("a file")
    assert_holds(reopened(saved), 20)


@pytest.mark.parametrize("name", [".", "latest"])
def test_file_in_place_of_the_folder_is_named(tmp_path, name):
    folder = tmp_path / "checkpoints"
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("mine")
    with pytest.raises(UserError, match=r"latest is, or lies below, a file.*move the file away"):
        reopened(folder)
    assert (folder / name).read_text() == "mine"


def test_equal_contents_are_equal_files(tmp_path):
    for name in ("a", "b"):
        Checkpoints(tmp_path / name).save("latest", 10, make_tree(10), {"rows": [1]})
    contents = [(tmp_path / name / "latest/10/state/content.zip").read_bytes() for name in ("a", "b")]
    assert contents[0] == contents[1]


def test_record_is_kept(tmp_path):
    record = {"rows": [{"epoch": 1, "loss": 0.1 + 0.2}], "classes": ["ä", "🂡"]}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("latest", 10, make_tree(10), record)
    assert Checkpoints(tmp_path).newest("latest").record == record


def make_large_tree(number):
    return {"state": jnp.asarray(np.random.default_rng(number).normal(size=20_000), jnp.float32)}


def test_full_disk_keeps_what_is_there(small_disk):
    small_disk.resize(144)  # room for one checkpoint, and not for two
    folder = small_disk.folder / "checkpoints"
    checkpoints = Checkpoints(folder)
    checkpoints.save("latest", 10, make_large_tree(10))
    for step in (20, 10):  # a later one, and another one of the same step
        with pytest.raises(DiskFull, match=f"latest has no room for the checkpoint of step {step}, [6-8].,... bytes;"):
            checkpoints.save("latest", step, make_large_tree(20))
        assert [entry.name for entry in (folder / "latest").iterdir()] == ["10"]
        found = restored(Checkpoints(folder), make_large_tree(0))
        assert found is not None and found[0] == 10 and same_bits(found[1], make_large_tree(10))
    checkpoints.save("best", 1, make_tree(1))  # what was begun is cleared away


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
