"""The tables of the READMEs are those that the saved figures make."""

from pathlib import Path

from benchmarks import tables

REPO = Path(__file__).parent.parent


def test_tables_are_made_from_the_saved_figures():
    for table in (tables.table(), tables.table("h100_", tables.DENSITIES[1:])):
        assert len(table.splitlines()) > 3
        assert table in (REPO / "README.md").read_text()
    assert len(tables.profile().splitlines()) > 10
    assert tables.profile() in (REPO / "benchmarks" / "README.md").read_text()
    beside_torch = tables.versus_torch(tables.saved_cases("h200_versus_torch_vgg19"))
    assert len(beside_torch.splitlines()) > 10
    assert beside_torch in (REPO / "benchmarks" / "README.md").read_text()
