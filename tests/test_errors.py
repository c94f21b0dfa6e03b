"""What messages are made of."""

import pytest

from dctps_jax.errors import did_you_mean, first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (MemoryError(), "MemoryError"),
        (ValueError("name in directory 'a" + "\x01b" * 1000), "name in directory 'a" + "\x01b" * 90 + " …"),
    ],
)
def test_first_line_is_short(error, line):
    assert first_line(error) == line


def test_the_closest_name_is_offered():
    assert did_you_mean("resnet81", ["resnet18", "vgg19"]) == " (did you mean 'resnet18'?)"
    assert did_you_mean("x", ["resnet18", "vgg19"]) == ""
