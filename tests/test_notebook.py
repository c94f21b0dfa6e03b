"""The notebook runs from top to bottom, and its installation leaves JAX as it is."""

import importlib.metadata
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import jax
import nbformat
import pytest
from nbclient import NotebookClient

from dctps_jax.config import check_config
from dctps_jax.defaults import get_config

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "dctps_colab.ipynb"


def names_up_to(word):
    """Execute the code cells up to the first that has ``word`` and return their names."""
    names = {}
    for cell in nbformat.read(NOTEBOOK, 4).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
            if word in cell.source:
                return names
    raise AssertionError(f"no cell has {word!r}")


def test_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.setenv("DCTPS_NOTEBOOK_EPOCHS", "1")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"))
    notebook = nbformat.read(NOTEBOOK, 4)
    (training,) = (number for number, cell in enumerate(notebook.cells) if "import run\n" in cell.source)
    again = nbformat.v4.new_code_cell(notebook.cells[training].source)
    notebook.cells.insert(training + 1, again)
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    assert again.outputs[0].text.count("is finished. test accuracy") == 2
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    offsets = [
        json.loads((file.parent / "config.json").read_text())["model"]["offset"]
        for file in tmp_path.rglob("results.json")
    ]
    assert sorted(map(str, offsets)) == ["None", "dct"]
    assert all(f"offset {offset}" in outputs[-1].text for offset in offsets)


@pytest.mark.parametrize("name", ["ON_CPU", "ON_ACCELERATOR"])
def test_settings_are_sound(name):
    config = get_config()
    config.update_from_flattened_dict(names_up_to("ON_ACCELERATOR = ")[name])
    check_config(config)


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """The installation as where dctps_jax is not installed: its names, and what it asks pip for."""
    monkeypatch.chdir(tmp_path)
    asked = []

    def pip(command, **options):
        asked.append(command)
        constraints = Path(command[command.index("-c") + 1]).read_text().split()
        asked.append(constraints)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", pip)
    return names_up_to("def install"), asked


def test_installed_package_is_left_alone(bare):
    assert bare[1] == []


def test_installation_keeps_jax(bare):
    names, asked = bare
    names["INSTALL_FROM_INDEX"] = True
    names["install"]()
    command, constraints = asked
    assert command[-1] == "dctps_jax"
    assert {f"jax=={jax.__version__}", f"jaxlib=={importlib.metadata.version('jaxlib')}"} <= set(constraints)
    assert not [line for line in constraints if line.startswith(("flax", "jaxtyping"))]


def test_nothing_comes_from_an_index_unless_told_to(bare, tmp_path):
    names, asked = bare
    with pytest.raises(names["Stop"], match=rf"put a checkout, a wheel or a zip of it into {tmp_path}"):
        names["install"]()
    assert asked == []


def test_cells_after_a_failed_installation_stop_with_one_sentence(tmp_path):
    """In a kernel to which dctps_jax is not installed."""
    notebook = nbformat.read(NOTEBOOK, 4)
    hide = (
        "from importlib import metadata\nmetadata.distributions = lambda **_: []\nmetadata.version = lambda name: '1.0'"
    )
    hide += "\nimport sys\nsys.modules['dctps_jax'] = None"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"][:4]
    notebook.cells = [nbformat.v4.new_code_cell(hide), *code]
    client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    client.allow_errors = True
    client.execute()
    _, install, _, training = ("".join(out.get("text", "") for out in cell.outputs) for cell in code)
    assert install.startswith("dctps_jax is not installed; put a checkout") and install.count("\n") == 1
    assert training == "dctps_jax is not installed; run the cell below Installation, which says what to do.\n"
    assert not any(out.output_type == "error" for cell in code for out in cell.outputs)


def test_sources(bare, tmp_path, monkeypatch):
    find_source = bare[0]["find_source"]
    (tmp_path / "dctps_jax-0.1.0-py3-none-any.whl").touch()
    assert find_source() == str(tmp_path / "dctps_jax-0.1.0-py3-none-any.whl")
    checkout = tmp_path / "dctps_jax"
    (checkout / "notebooks").mkdir(parents=True)
    (checkout / "pyproject.toml").write_text('[project]\nname = "dctps_jax"\n')
    assert find_source() == str(checkout)
    monkeypatch.chdir(checkout / "notebooks")
    assert find_source() == str(checkout)


def test_old_jax_is_one_sentence(bare, monkeypatch):
    names, asked = bare
    versions = {"jax": "0.7.2"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions.get(name, "1.0"))
    with pytest.raises(
        names["Stop"], match=r"JAX is 0\.7\.2 here and dctps_jax needs 0\.10 or newer: run .*pip install"
    ):
        names["install"]()
    assert asked == []
