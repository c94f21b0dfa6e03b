"""Images to train on: `load` reads a source by its name into a `Dataset`."""

from dctps_jax.data.dataset import Dataset
from dctps_jax.data.sources import IMAGE_SIZES, NUM_CLASSES, SOURCES, load

__all__ = ["IMAGE_SIZES", "NUM_CLASSES", "SOURCES", "Dataset", "load"]
