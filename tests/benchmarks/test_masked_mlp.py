"""`benchmarks/masked_mlp.py`: the variants that it times train the same network."""

import importlib.util
import runpy
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "masked_mlp.py"))


@pytest.mark.parametrize("variant", ["scipy_csr", "torch_masks", "torch_csr"])
def test_the_variants_have_the_same_losses(variant):
    library = SCRIPT["LIBRARIES"][variant]
    if importlib.util.find_spec(library.partition(".")[0]) is None:
        pytest.skip(f"{library} is not installed")
    problem = SCRIPT["make_problem"](0.001)
    ours, theirs = (SCRIPT["VARIANTS"][name](problem) for name in ("package", variant))
    for numbers in (range(1), range(1, 4)):
        assert ours(numbers) == pytest.approx(theirs(numbers), rel=1e-4)
