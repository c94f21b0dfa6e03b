"""Random resized crops (Szegedy et al. 2015): a part of an image, of random area and shape, another in each epoch."""

import math

import numpy as np

from dctps_jax.data.images import Box
from dctps_jax.seeds import STREAMS

AREAS = (0.08, 1.0)  # of the whole image
RATIOS = (3 / 4, 4 / 3)  # width ÷ height
_TRIES = 10


class RandomCrop:
    """Chooses a part of an image. It depends on the run's seed, the epoch, the image's row, and the image's size."""

    def __init__(self, seed: int, epoch: int, row: int):
        self._random = np.random.default_rng((seed, STREAMS.index("crop"), epoch, row))

    def __call__(self, width: int, height: int) -> Box:
        """Return a part with 8 to 100 % of the image's area, and a width of 3/4 to 4/3 of its height.

        If ten draws do not fit into the image, it is the largest part in the middle with such a shape.
        """
        for _ in range(_TRIES):
            area = width * height * self._random.uniform(*AREAS)
            ratio = math.exp(self._random.uniform(math.log(RATIOS[0]), math.log(RATIOS[1])))
            crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                left = int(self._random.integers(width - crop_width, endpoint=True))
                top = int(self._random.integers(height - crop_height, endpoint=True))
                return left, top, left + crop_width, top + crop_height
        ratio = min(max(width / height, RATIOS[0]), RATIOS[1])
        crop_width, crop_height = min(width, height * ratio), min(height, width / ratio)
        left, top = (width - crop_width) / 2, (height - crop_height) / 2
        return left, top, left + crop_width, top + crop_height
