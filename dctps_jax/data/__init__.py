"""Images to train on: ``load`` reads a source by its name into a ``Dataset``."""

from dctps_jax.data.dataset import Dataset
from dctps_jax.data.sources import OWN, SOURCES, Source, load

__all__ = ["OWN", "SOURCES", "Dataset", "Source", "load"]
