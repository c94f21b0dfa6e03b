"""Imports point one way: a module of the package may import from its own group and from those above it in the list."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dctps_jax"
# A name is a module or a folder of the package.
GROUPS = [
    [
        "errors",
        "aligned",
        "arguments",
        "field",
        "user_functions",
        "seeds",
        "files",
        "npz",
        "command",
        "precision",
        "losses",
    ],
    ["offsets", "dct", "ops", "partitioning", "supports", "stacks", "kernels"],
    ["conv_arguments", "layers", "layer_kinds", "data"],
    ["prunable", "frozen"],
    ["models", "pruning", "layer_conversion", "conversion", "conversion_table", "torch_compat"],
    ["optimizers", "fields", "defaults", "contradictions", "config"],
    ["distributed"],
    ["runs", "accounts", "safetensors_file", "delta", "network_file"],
    ["training"],
    ["exported_file", "reports"],
    ["export"],
    ["cli"],
]
PLACES = {name: place for place, group in enumerate(GROUPS) for name in group}


def module_names(file):
    """The modules of the package that a file imports, at its head or inside a function."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def group_of(module):
    """The name in `GROUPS` of a dotted module; None for other packages and for what the package's face exports."""
    parts = module.split(".")
    return parts[1] if parts[0] == "dctps_jax" and len(parts) > 1 and parts[1] in PLACES else None


def test_every_module_has_a_place():
    entries = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert entries - {"__init__"} == PLACES.keys()


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_one_way(file):
    name = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if name == "__init__":
        return
    later = [module for module in module_names(file) if PLACES.get(group_of(module) or "", 0) > PLACES[name]]
    assert not later, f"{name} comes before {later}"
