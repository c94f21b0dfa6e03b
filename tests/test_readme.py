"""The README's table of training steps is the one that the saved figures make."""

from pathlib import Path

from benchmarks.readme_table import table

README = Path(__file__).parent.parent / "README.md"


def test_table_is_made_from_the_saved_figures():
    assert table() in README.read_text()
