"""The per-layer table."""

from dctps_jax.accounts.layer_table import layer_table

SHAPES = {"conv1": (3, 3, 3, 16), "layer1.0.conv1": (3, 3, 16, 16), "fc": (64, 10)}
SIZES = {"conv1": 432, "layer1.0.conv1": 2304, "fc": 640}


def test_whole_table():
    table = layer_table(SHAPES, {"conv1": 432, "layer1.0.conv1": 0, "fc": 1}, SIZES)
    assert table.splitlines() == [
        "layer           kernel     kept     of   density",
        "conv1           3×3×3×16    432    432     100 %",
        "layer1.0.conv1  3×3×16×16     0  2,304       0 %  no weight is trained here",
        "fc              64×10         1    640  0.1562 %",
        "---------------------------------------------------------------------------",
        "total                       433  3,376   12.83 %",
    ]


def test_large_numbers_have_separators_and_columns_stay_aligned():
    sizes = {"a": 23_652_032, "longer.name": 7}
    table = layer_table({"a": (1, 23_652_032), "longer.name": (7, 1)}, {"a": 2365, "longer.name": 7}, sizes)
    lines = table.splitlines()
    assert "23,652,032" in lines[1] and "0.009999 %" in lines[1]
    assert len({len(line) for line in lines}) == 1
    assert "no weight" not in table


def test_layers_keep_the_order_of_the_shapes():
    counts = {"fc": 1, "conv1": 2, "layer1.0.conv1": 3}
    lines = layer_table(SHAPES, counts, SIZES).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == list(SHAPES)
