"""Layers of every kind, for the tests of the sparse part."""

from dctps_jax.ops.geometry import Geometry

# The geometry and the spatial shape of the inputs.
CASES = {
    "3x3": (Geometry((3, 3, 4, 5), (1, 1), ((1, 1), (1, 1))), (5, 6)),
    "1x1": (Geometry((1, 1, 4, 5), (1, 1), ((0, 0), (0, 0))), (3, 2)),
    "valid": (Geometry((2, 3, 4, 5), (1, 1), ((0, 0), (0, 0))), (5, 6)),
    "asymmetric": (Geometry((3, 2, 4, 5), (1, 1), ((2, 0), (0, 1))), (4, 3)),
    "cropping": (Geometry((3, 3, 4, 5), (1, 1), ((-1, 0), (1, -2))), (6, 7)),
    "small map": (Geometry((5, 3, 4, 5), (1, 1), ((2, 2), (1, 1))), (2, 1)),
    "grouped": (Geometry((3, 3, 2, 6), (1, 1), ((1, 1), (1, 1)), 2), (4, 5)),
    "depthwise": (Geometry((3, 3, 1, 6), (1, 1), ((1, 1), (1, 1)), 6), (4, 5)),
    "depthwise, two each": (Geometry((2, 3, 1, 6), (1, 1), ((0, 1), (1, 1)), 3), (4, 5)),
    "linear": (Geometry((7, 5)), ()),
    "linear, even": (Geometry((8, 6)), ()),
    "one dimension": (Geometry((3, 4, 5), (1,), ((1, 1),)), (6,)),
    "three dimensions": (Geometry((2, 1, 3, 4, 5), (1, 1, 1), ((1, 0), (0, 0), (1, 1))), (3, 2, 4)),
    "strides 2, 2": (Geometry((3, 3, 4, 5), (2, 2), ((1, 1), (1, 1))), (5, 6)),
    "strides 1, 2": (Geometry((3, 3, 4, 5), (1, 2), ((1, 1), (0, 1))), (5, 6)),
    "strides 2, 1": (Geometry((2, 3, 4, 5), (2, 1), ((0, 0), (1, 1))), (5, 6)),
    "1x1, strides 2, 2": (Geometry((1, 1, 4, 5), (2, 2), ((0, 0), (0, 0))), (5, 6)),
    "grouped, strides 2, 1": (Geometry((3, 3, 2, 6), (2, 1), ((1, 1), (1, 1)), 2), (5, 5)),
    "depthwise, strides 1, 2": (Geometry((3, 3, 1, 6), (1, 2), ((1, 1), (1, 1)), 6), (5, 5)),
    "one dimension, strides 3": (Geometry((4, 4, 5), (3,), ((1, 2),)), (8,)),
    "more strides than kernel": (Geometry((2, 2, 4, 5), (3, 3), ((0, 0), (1, 0))), (8, 9)),
}
