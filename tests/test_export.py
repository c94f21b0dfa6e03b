"""One file of a run: small, the same network again, as a program too, and every wrong file is a sentence."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dctps_jax import UserError, data, export
from dctps_jax.cli import predict
from dctps_jax.export import describe_exported, export_run, export_stablehlo, load_exported
from dctps_jax.models import prunable_layers
from dctps_jax.runs.checkpoint import read_arrays
from tests.commands import assert_one_sentence, call, call_into_closed_pipe
from tests.small_runs import small_digits, small_run, train_on_one_device

REPO = Path(__file__).parents[1]
# Written by version 0.1.0: LeNet-5 with 0.3 % of its weights after 8 epochs of configs/lenet_digits.py, and its test
# accuracy.
VERSION_1 = REPO / "tests" / "reference" / "export_version_1.safetensors"
VERSION_1_ACCURACY = 0.16944444444444445
SETTINGS = {
    "dct": {},
    "frozen": {"model__alpha_trainable": False, "execution__form": "masked"},
    "dense": {"pruning__density": 1.0, "model__offset": None},
    "hadamard": {"model__offset": "hadamard", "num_epochs": 1},
    "resnet": {"model__name": "small_resnet", "model__offset": None, "num_epochs": 1},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small_families):
    folder, digits = tmp_path_factory.mktemp("runs"), small_digits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dctps_jax.data.load", lambda *_, **__: digits)
        train_on_one_device(patch)
        for name, settings in SETTINGS.items():
            small_run(folder / name, **settings)
    return folder


@pytest.fixture(scope="module")
def file(runs):
    export_run(runs / "dct", runs / "dct.safetensors")
    return runs / "dct.safetensors"


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("checkpoint", ["best", "latest"])
def test_the_network_is_the_run_s(runs, name, checkpoint):
    output = runs / f"{name}_{checkpoint}.safetensors"
    export_run(runs / name, output, checkpoint)
    model, description = load_exported(output), describe_exported(output)
    step, arrays = read_arrays(runs / name / "checkpoints", checkpoint)
    assert description.step == step and description.class_names == tuple("0123456789") and description.image_size == 32
    for path, layer in prunable_layers(model).items():
        place = path.replace(".", "/")
        np.testing.assert_array_equal(layer.kernel[...], arrays[f"state/params/{place}/kernel"])
        if name != "dense":
            assert layer.support is not None and layer.mask is None
            np.testing.assert_array_equal(layer.support[...], arrays[f"state/supports/{place}/support"])
        alphas = [
            arrays[f"state/{part}/{place}/alpha"]
            for part in ("params", "frozen")
            if f"state/{part}/{place}/alpha" in arrays
        ]
        assert len(alphas) == (layer.alpha is not None)
    if checkpoint == "latest":
        # The accuracy on the test set that the run reported of its last state.
        digits = small_digits()
        logits = model(description.prepare(jnp.asarray(digits.test_images)))
        accuracy = float((logits.argmax(-1) == digits.test_labels).mean())
        assert accuracy == pytest.approx(json.loads((runs / name / "results.json").read_text())["test_accuracy_final"])


def test_a_network_with_another_offset_is_shipped(runs, tmp_path):
    model, image = tmp_path / "model.safetensors", tmp_path / "image.png"
    done = call(export.main, runs / "hadamard", "--output", model, "--stablehlo", tmp_path / "program")
    assert (done.code, done.err) == (0, "")
    Image.fromarray(small_digits().test_images[0]).save(image)
    done = call(predict.main, model, image, "--top", "1")
    assert (done.code, done.err) == (0, "")
    description, network = describe_exported(model), load_exported(model)
    images = jnp.asarray(small_digits().test_images[:3])
    logits = network(description.prepare(images))
    assert f"{image}: {int(logits[0].argmax())} " in done.out
    program = jax_export.deserialize(bytearray((tmp_path / "program").read_bytes()))
    np.testing.assert_allclose(program.call(images), logits, rtol=1e-4, atol=1e-4)


def test_old_names_of_methods_in_a_run_or_an_export_are_no_fault(runs, file, tmp_path):
    run, exported = tmp_path / "run", tmp_path / "old.safetensors"
    shutil.copytree(runs / "dct", run)
    config = edited((run / "config.json").read_text(), "execution", "method", value="factored_rows")
    (run / "config.json").write_text(edited(config, "execution", "layer_methods", value=[["fcs.*", "dense"]]))
    export_run(run, exported)
    assert "factored_rows" in metadata_of(exported)["config"]
    images = jnp.asarray(small_digits().test_images[:3])
    expected, found = (load_exported(path)(describe_exported(path).prepare(images)) for path in (file, exported))
    np.testing.assert_array_equal(found, expected)


def test_only_the_sparse_part_is_stored(runs, file):
    tensors = load_file(file)
    trained = json.loads((runs / "dct" / "results.json").read_text())["trainable_parameters"]
    floats = sum(array.size for array in tensors.values() if array.dtype == np.float32)
    assert floats == trained
    assert file.stat().st_size < 8 * trained + 10_000


def test_the_program_takes_any_batch_on_every_platform(file, tmp_path):
    export_stablehlo(file, tmp_path / "model.bin")
    program = jax_export.deserialize(bytearray((tmp_path / "model.bin").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    images = jnp.asarray(small_digits().test_images)
    model, description = load_exported(file), describe_exported(file)
    for count in (1, 7):
        expected = model(description.prepare(images[:count]))
        np.testing.assert_allclose(program.call(images[:count]), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(Exception, match="shape"):
        program.call(images[:1, :16])


def test_the_program_of_a_network_with_batch_norm(runs, tmp_path):
    export_run(runs / "resnet", tmp_path / "resnet.safetensors", "latest")
    export_stablehlo(tmp_path / "resnet.safetensors", tmp_path / "resnet.bin")
    program = jax_export.deserialize(bytearray((tmp_path / "resnet.bin").read_bytes()))
    model, description = (
        load_exported(tmp_path / "resnet.safetensors"),
        describe_exported(tmp_path / "resnet.safetensors"),
    )
    images = jnp.asarray(small_digits().test_images[:3])
    np.testing.assert_allclose(program.call(images), model(description.prepare(images)), rtol=1e-3, atol=1e-3)


def changed(file, target, **metadata):
    with safe_open(file, framework="numpy") as opened:
        kept = opened.metadata()
    save_file(load_file(file), target, kept | metadata)
    return target


def test_wrong_files_are_named(file, tmp_path):
    with pytest.raises(UserError, match="does not exist; write it with"):
        load_exported(tmp_path / "none.safetensors")
    content = file.read_bytes()
    for size in (0, 4, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "short.safetensors").write_bytes(content[:size])
        with pytest.raises(UserError, match=r"short\.safetensors is no safetensors file, or a truncated one"):
            load_exported(tmp_path / "short.safetensors")
    damaged = bytearray(content)
    damaged[-5] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(damaged)
    with pytest.raises(UserError, match=r"damaged\.safetensors is damaged"):
        load_exported(tmp_path / "damaged.safetensors")
    save_file({"a": np.ones(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(
        UserError, match=r"foreign\.safetensors is a safetensors file that dctps_jax\.export did not write"
    ):
        load_exported(tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match=r"newer dctps_jax \(format 3, this one knows 2\); update"):
        load_exported(changed(file, tmp_path / "newer.safetensors", format_version="3"))


def with_metadata(file, target, metadata):
    """`file` with other metadata, and its tensors as they are."""
    save_file(load_file(file), target, metadata)
    return target


def metadata_of(file):
    with safe_open(file, framework="numpy") as opened:
        return opened.metadata()


def edited(text, *path, value):
    """A JSON text with another value at a path."""
    whole = json.loads(text)
    node = whole
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = value
    return json.dumps(whole)


def renamed(text, *path, to):
    whole = json.loads(text)
    node = whole
    for name in path[:-1]:
        node = node[name]
    node[to] = node.pop(path[-1])
    return json.dumps(whole)


# What becomes of the metadata, and what the sentence says of a file of version 1, whose metadata have no digest.
CHANGES = {
    "class name": (lambda m: m | {"data": edited(m["data"], "class_names", 3, value="8")}, None),
    "normalisation": (lambda m: m | {"data": edited(m["data"], "std", 0, value=0.4)}, None),
    "step": (lambda m: m | {"step": "7"}, None),
    "config of another network": (
        lambda m: m | {"config": edited(m["config"], "model", "offset", value=None)},
        "does not hold the params",
    ),
    "renamed key of the config": (
        lambda m: m | {"config": renamed(m["config"], "model", "dtype", to="dtipe")},
        "no field config.model.dtype",
    ),
    "text for a number": (
        lambda m: m | {"config": edited(m["config"], "model", "width", value="64")},
        "config.model.width is '64'",
    ),
    "no network": (lambda m: m | {"config": edited(m["config"], "model", "name", value="lennet")}, "'lenet'"),
    "list for a config": (lambda m: m | {"config": "[]"}, "no JSON object"),
    "text for a group": (lambda m: m | {"config": edited(m["config"], "model", value="lenet")}, "config.model.name"),
    "no config": (lambda m: without(m, "config"), "'config'"),
    "no data": (lambda m: without(m, "data"), "'data'"),
    "no JSON": (lambda m: m | {"data": m["data"][:-1]}, "do not describe a network"),
    "deep JSON": (lambda m: m | {"data": "[" * 100_000}, "nested too deeply"),
    "empty data": (lambda m: m | {"data": "{}"}, "no field class_names"),
    "text for names": (lambda m: m | {"data": edited(m["data"], "class_names", value="0123456789")}, "class_names is"),
    "fewer names": (lambda m: m | {"data": edited(m["data"], "class_names", value=["a"])}, "does not hold the network"),
    "number for a name": (lambda m: m | {"data": edited(m["data"], "class_names", 0, value=0)}, "class_names is"),
    "half a size": (lambda m: m | {"data": edited(m["data"], "image_size", value=32.5)}, "image_size is 32.5"),
    "size below 1": (lambda m: m | {"data": edited(m["data"], "image_size", value=-32)}, "image_size is -32"),
    "two means": (lambda m: m | {"data": edited(m["data"], "mean", value=[0.5, 0.5])}, "mean is [0.5, 0.5]"),
    "not a number": (lambda m: m | {"data": edited(m["data"], "mean", 1, value=float("nan"))}, "mean is"),
    "deviation of 0": (lambda m: m | {"data": edited(m["data"], "std", 1, value=0)}, "std is"),
    "text for a mean": (lambda m: m | {"data": edited(m["data"], "mean", 1, value="0.5")}, "mean is"),
    "step that is no number": (lambda m: m | {"step": "x"}, "do not describe a network"),
    "no step": (lambda m: without(m, "step"), "'step'"),
}


def without(metadata, name):
    return {key: value for key, value in metadata.items() if key != name}


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_of_the_metadata_goes_unnoticed(file, tmp_path, change):
    act, sentence = CHANGES[change]
    with pytest.raises(UserError, match="its digest does not match its content"):
        load_exported(with_metadata(file, tmp_path / "now.safetensors", act(metadata_of(file))))
    if sentence is not None:
        old = act(metadata_of(VERSION_1))
        with pytest.raises(UserError, match=re.escape(sentence)) as caught:
            load_exported(with_metadata(VERSION_1, tmp_path / "old.safetensors", old))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("version", [None, "", "two", "1.5", "0", "-1", "1e0", "١٢٣x", "9" * 5000])
def test_odd_versions(file, tmp_path, version):
    metadata = without(metadata_of(file), "format_version") | ({} if version is None else {"format_version": version})
    with pytest.raises(UserError, match=r"odd\.safetensors (is damaged: its format_version is|was written by a newer)"):
        load_exported(with_metadata(file, tmp_path / "odd.safetensors", metadata))


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_digest_that_is_missing_or_of_another_version(file, tmp_path, version):
    for source in (file, VERSION_1):
        metadata = metadata_of(source) | {"format_version": version}
        for found in (without(metadata, "digest"), metadata | {"digest": "0" * 64}):
            with pytest.raises(UserError, match="its digest does not match its content"):
                load_exported(with_metadata(source, tmp_path / "odd.safetensors", found))
    metadata = metadata_of(file) | {"format_version": "1"}
    with pytest.raises(UserError, match="its digest does not match its content"):
        load_exported(with_metadata(file, tmp_path / "odd.safetensors", metadata))


def test_flipped_bytes_are_noticed(file, tmp_path):
    """Wherever they lie: a file that can still be read says what the whole one says."""
    content, target = file.read_bytes(), tmp_path / "flipped.safetensors"
    header = 8 + int.from_bytes(content[:8], "little")
    places = np.random.default_rng(0)
    for place in [*places.integers(0, header, 150), *places.integers(header, len(content), 20)]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << places.integers(8)
        target.write_bytes(damaged)
        try:
            found = describe_exported(target)
        except UserError as error:
            assert str(target) in str(error) and "\n" not in str(error)
        else:
            assert found == describe_exported(file)


def test_files_of_version_1_are_read_with_a_warning(caplog):
    model, description = load_exported(VERSION_1), describe_exported(VERSION_1)
    assert "is of format 1, whose digest covers the weights only" in caplog.text
    digits = data.load("digits")
    logits = model(description.prepare(jnp.asarray(digits.test_images)))
    assert float((logits.argmax(-1) == digits.test_labels).mean()) == pytest.approx(VERSION_1_ACCURACY)


def test_runs_that_cannot_be_exported(runs, tmp_path):
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        export_run(tmp_path, tmp_path / "model.safetensors")
    for name, missing in (("unfinished", "results.json"), ("empty", "checkpoints")):
        shutil.copytree(runs / "dct", tmp_path / name)
        target = tmp_path / name / missing
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        with pytest.raises(UserError, match=r"a run that is not finished; give the command|holds no checkpoint"):
            export_run(tmp_path / name, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="nowhere is no directory"):
        export_run(runs / "dct", tmp_path / "nowhere" / "model.safetensors")
    with pytest.raises(UserError, match="is a directory; name a file"):
        export_run(runs / "dct", tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_the_commands(runs, tmp_path, monkeypatch):
    model = tmp_path / "model.safetensors"
    done = call(export.main, runs / "dct", "--output", model)
    assert done.code == 0 and done.err == "" and "kB" in done.out
    images = []
    for number, image in enumerate(small_digits().test_images[:2]):
        images.append(tmp_path / f"{number}{os.fsdecode(bytes([0xE9]))}.png")
        Image.fromarray(image).resize((50, 40)).save(images[-1])
    done = call(predict.main, model, *images, "--top", "2")
    resized = f"{tmp_path / '0'}\\udce9.png has 50 x 40 pixels and is resized to 32 x 32\n"
    assert done.code == 0 and done.err == resized, done
    monkeypatch.setattr(predict, "BATCH", 1)
    assert call(predict.main, model, *images, "--top", "2").out == done.out
    lines = done.out.splitlines()
    assert len(lines) == 2 and lines[0].startswith(f"{tmp_path / '0'}\\udce9.png: ") and lines[0].count("%") == 2
    done = call(predict.main, VERSION_1, images[0])
    assert done.code == 0 and done.out.count("\n") == 1
    assert done.err.startswith(f"warning: {VERSION_1} is of format 1") and done.err.endswith(f"\n{resized}")

    closed = call_into_closed_pipe(predict.main, model, images[0])
    assert closed.code == 141 and closed.err.endswith(" is resized to 32 x 32\n")
    folder = tmp_path / "folder" / "inside"
    folder.mkdir(parents=True)
    assert_one_sentence(call(predict.main, model, folder.parent), "predict.py", f"{folder.parent} holds no image")
    Image.new("RGB", (5, 6)).save(folder / "a.JPG", "JPEG")
    (folder / "notes.txt").touch()
    done = call(predict.main, model, folder.parent, images[0])
    assert done.out.startswith(f"{folder / 'a.JPG'}: ") and done.out.count("\n") == 2
    done = call(predict.main, runs / "dct", images[0])
    assert_one_sentence(done, "predict.py", "is a directory", f"python -m dctps_jax.export {runs / 'dct'} --output")
    for arguments in ([images[0], images[0]], [model, tmp_path / "no.png"], [tmp_path, images[0]]):
        assert_one_sentence(call(predict.main, *arguments), "predict.py", str(tmp_path))
    assert_one_sentence(call(predict.main, model, images[0], "--top", "0"), "predict.py", "--top is 0")
    (tmp_path / "eps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    done = call(predict.main, model, tmp_path / "eps.png")
    assert_one_sentence(done, "predict.py", "eps.png cannot be read as an image (not one of PNG")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    done = call(predict.main, model, tmp_path / "device.png")
    assert_one_sentence(done, "predict.py", "device.png cannot be read (it is a device, not a regular file)")
    done = call(predict.main, model, images[0], "--max-pixels", "1999")
    assert_one_sentence(done, "predict.py", "has 50 x 40 pixels, but --max-pixels allows 1,999")
    assert_one_sentence(call(predict.main, model, images[0], "--max-pixels", "0"), "predict.py", "--max-pixels is 0")
    done = call(export.main, runs / "dct", "--output", tmp_path / "new", "--stablehlo", tmp_path / "none" / "program")
    assert_one_sentence(done, "export", "--stablehlo is ", "is no directory")
    done = call(export.main, runs / "dct", "--output", tmp_path / "new", "--stablehlo", tmp_path / "new")
    assert_one_sentence(done, "export", "name two files")
    assert not (tmp_path / "new").exists()


def without_digests(results):
    """What version 0.1.0 wrote: nothing tells the fields that were changed, but what they hold."""
    return {name: value for name, value in results.items() if name != "digests"}


DAMAGES = {
    "results without data": ("results.json", lambda text: renamed(text, "data", to="date"), "what the data were"),
    "results with texts": ("results.json", lambda text: edited(text, "density", value="0.05"), "density is '0.05'"),
    "data with texts": ("results.json", lambda text: edited(text, "data", "mean", 0, value="1"), "mean is"),
    "results of no UTF-8": ("results.json", lambda text: b"\xff" + text.encode(), "cannot be read as JSON"),
    "foreign config": ("config.json", lambda text: '{"a": 1}', "there is no field model.name"),
    "config with a text": (
        "config.json",
        lambda text: edited(text, "execution", "min_loop", value="64"),
        "min_loop is",
    ),
    "config of another network": ("config.json", lambda text: edited(text, "model", "name", value="lennet"), "'lenet'"),
    "checkpoints that are a file": ("checkpoints", None, "must be a folder of checkpoints"),
    "config that is a folder": ("config.json", None, "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_runs_are_one_sentence(runs, tmp_path, damage):
    name, change, sentence = DAMAGES[damage]
    target = shutil.copytree(runs / "dct", tmp_path / "run") / name
    results = tmp_path / "run" / "results.json"
    results.write_text(json.dumps(without_digests(json.loads(results.read_text()))))
    if change is not None:
        changed = change(target.read_text())
        target.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    elif target.is_dir():
        shutil.rmtree(target)
        target.touch()
    else:
        target.unlink()
        target.mkdir()
    done = call(export.main, tmp_path / "run", "--output", tmp_path / "model")
    assert_one_sentence(done, "export", str(tmp_path / "run"), sentence)
    assert not (tmp_path / "model").exists()


def test_altered_digits_of_a_run_are_noticed(runs, tmp_path):
    run = shutil.copytree(runs / "dct", tmp_path / "run")
    for name, fields in (("results.json", ("data", "mean", 0)), ("config.json", ("model", "width"))):
        before = (run / name).read_text()
        (run / name).write_text(edited(before, *fields, value=0.25 if fields[-1] == 0 else 8))
        assert_one_sentence(call(export.main, run, "--output", tmp_path / "model"), "export", str(run), "restore")
        (run / name).write_text(before)
    shutil.rmtree(run / "checkpoints/latest/10")
    done = call(export.main, run, "--output", tmp_path / "model", "--checkpoint", "latest")
    assert_one_sentence(done, "export", str(run / "checkpoints/latest"), "ends at step 5, but the run at step 10")
    shutil.rmtree(run / "checkpoints/best")
    shutil.copytree(runs / "frozen/checkpoints/best", run / "checkpoints/best")
    assert_one_sentence(call(export.main, run, "--output", tmp_path / "model"), "export", "a checkpoint of another run")
    assert not (tmp_path / "model").exists()


def test_few_file_handles_are_enough(runs, tmp_path):
    command = f"ulimit -n 8; {sys.executable} -m dctps_jax.export {runs / 'dct'} --output {tmp_path / 'model'}"
    done = subprocess.run(["bash", "-c", command], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == "" and (tmp_path / "model").exists()
