"""Views of images: padded, and shifted to each position of a kernel."""

import jax.numpy as jnp

from dctps_jax.ops.views import pad_spatial, shifted_views


def test_padding_adds_zeros_or_crops():
    x = jnp.arange(1, 13).reshape(1, 3, 4, 1)
    padded = pad_spatial(x, ((1, -1), (-2, 1)))[0, :, :, 0]
    assert padded.tolist() == [[0, 0, 0], [3, 4, 0], [7, 8, 0]]
    assert pad_spatial(x, ((0, 0), (0, 0))) is x


def test_views_of_no_positions_are_empty():
    views = shifted_views(jnp.zeros((1, 2, 2, 1)), (3, 1), (0, 2), (2, 1))
    assert [view.shape for view in views] == [(1, 0, 2, 1)] * 3


def test_views_are_in_the_order_of_the_kernel():
    x = jnp.arange(20).reshape(1, 4, 5, 1)
    views = shifted_views(x, (2, 3), (2, 2), (2, 1))
    assert [view[0, :, :, 0].tolist() for view in views] == [
        [[0, 1], [10, 11]],
        [[1, 2], [11, 12]],
        [[2, 3], [12, 13]],
        [[5, 6], [15, 16]],
        [[6, 7], [16, 17]],
        [[7, 8], [17, 18]],
    ]
