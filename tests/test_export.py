"""One file of a run: small, the same network again, as a program too, and every wrong file is a sentence."""

import json
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

from dctps_jax import UserError
from dctps_jax.export import describe_exported, export_run, export_stablehlo, load_exported
from dctps_jax.models import prunable_layers
from dctps_jax.training.checkpoint import read_arrays
from tests.training.small_runs import small_digits, small_run

REPO = Path(__file__).parents[1]
SETTINGS = {
    "dct": {},
    "frozen": {"model__alpha_trainable": False, "execution__form": "masked"},
    "dense": {"pruning__density": 1.0, "model__offset": None},
    "resnet": {"model__name": "small_resnet", "model__offset": None, "num_epochs": 1},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small_families):
    folder, digits = tmp_path_factory.mktemp("runs"), small_digits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dctps_jax.data.load", lambda *_, **__: digits)
        patch.setattr("jax.device_count", lambda: 1)
        for name, settings in SETTINGS.items():
            small_run(folder / name, batch_size=32, eval_batch_size=32, **settings)
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
    with pytest.raises(UserError, match=r"foreign\.safetensors is a safetensors file, but none of dctps_jax"):
        load_exported(tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match=r"newer dctps_jax \(format 2, this one knows 1\); update"):
        load_exported(changed(file, tmp_path / "newer.safetensors", format_version="2"))
    with pytest.raises(UserError, match="its metadata do not describe a network"):
        describe_exported(changed(file, tmp_path / "odd.safetensors", data="{}"))
    config = describe_exported(file).config
    config["model"]["offset"] = None
    with pytest.raises(UserError, match="does not hold the params of its own network"):
        load_exported(changed(file, tmp_path / "other.safetensors", config=json.dumps(config)))


def test_runs_that_cannot_be_exported(runs, tmp_path):
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        export_run(tmp_path, tmp_path / "model.safetensors")
    for name, missing in (("unfinished", "results.json"), ("empty", "checkpoints")):
        shutil.copytree(runs / "dct", tmp_path / name)
        target = tmp_path / name / missing
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        with pytest.raises(UserError, match=r"results\.json does not exist|holds no checkpoint"):
            export_run(tmp_path / name, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="is no directory"):
        export_run(runs / "dct", tmp_path / "nowhere" / "model.safetensors")
    with pytest.raises(UserError, match="it is a directory; name a file"):
        export_run(runs / "dct", tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_the_commands(runs, tmp_path):
    def call(*command):
        return subprocess.run([sys.executable, *command], cwd=REPO, capture_output=True, text=True, check=False)

    model = tmp_path / "model.safetensors"
    done = call("-m", "dctps_jax.export", str(runs / "dct"), "--output", str(model))
    assert done.returncode == 0 and "kB" in done.stdout
    for number, image in enumerate(small_digits().test_images[:2]):
        Image.fromarray(image).resize((50, 40)).save(tmp_path / f"{number}.png")
    done = call("predict.py", str(model), str(tmp_path / "0.png"), str(tmp_path / "1.png"), "--top", "2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and lines[0].startswith(f"{tmp_path / '0.png'}: ") and lines[0].count("%") == 2
    for arguments in ([str(tmp_path / "0.png"), str(tmp_path / "0.png")], [str(model), str(tmp_path / "no.png")]):
        done = call("predict.py", *arguments)
        assert done.returncode == 1 and done.stderr.startswith("predict.py: ") and "Traceback" not in done.stderr
