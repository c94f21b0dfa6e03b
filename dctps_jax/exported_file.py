"""The file of an exported network: its metadata, its digest, and how it is read.

The metadata are texts: ``format`` ("dctps_jax"), ``format_version``, ``config`` and ``data`` (JSON), ``step``,
``digest``. With a network of the user's own, ``network`` (JSON) says what it was when it was trained. Older files lack
it.

- Version 2: the digest is a SHA-256 over the tensors and all metadata but the digest itself.
- Version 1: the digest covers the tensors only. Such a file is read with a warning, since nothing tells whether its
  classes, normalisation and config are as they were written.
"""

import logging
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dctps_jax.config import check_value
from dctps_jax.data.batches import Normalization, normalize
from dctps_jax.data.dataset import Size, height_and_width, size_of
from dctps_jax.errors import UserError
from dctps_jax.field import flat_fields
from dctps_jax.files import parse_json
from dctps_jax.runs.fields import check_data, check_network, check_object
from dctps_jax.runs.packing import digest
from dctps_jax.runs.workdir import ADDED_FIELDS
from dctps_jax.safetensors_file import check_digest, check_format, digest_of_file, read_safetensors, version_of
from dctps_jax.user_functions import is_import_path

FORMAT, FORMAT_VERSION = "dctps_jax", 2
# What the network is built of. Other fields may be of another version of dctps_jax.
MODEL_FIELDS = ("name", "offset", "alpha_trainable", "init", "width", "stable", "dtype")
CONFIG_FIELDS = (*(f"model.{field}" for field in MODEL_FIELDS), "execution.min_loop", "execution.remat", "seed")

logger = logging.getLogger("dctps_jax")


class Description(NamedTuple):
    """What an exported file says of its network."""

    config: dict[str, Any]
    class_names: tuple[str, ...]
    image_size: Size
    normalization: Normalization
    step: int
    fit: str = "squash"
    network: dict[str, Any] | None = None

    @property
    def dtype(self) -> str | None:
        """The type that the network computes in; None for a network of the user's own, whose function decides."""
        dtype = self.config["model"]["dtype"]
        return None if dtype == "auto" or is_import_path(self.config["model"]["name"]) else dtype

    def prepare(self, images: jax.Array) -> jax.Array:
        """Return uint8 images of :attr:`shape` as the network takes them."""
        return normalize(images, self.normalization)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return (*height_and_width(self.image_size), len(self.normalization.mean))


def read_exported_file(file: Path) -> tuple[Description, dict[str, np.ndarray]]:
    """Return what an exported file says of its network, and its tensors, once its digest is checked."""
    tensors, metadata = _content(file)
    check_format(file, metadata, FORMAT, FORMAT_VERSION, "dctps_jax.export")
    version = version_of(metadata)
    if version < 1:
        text = reprlib.repr(metadata.get("format_version", ""))
        raise UserError(
            f"{file} is damaged: its format_version is {text}, not a number from 1 to {FORMAT_VERSION}; export the run "
            "again"
        )
    found = digest(tensors) if version == 1 else digest_of_file(tensors, metadata)
    check_digest(file, metadata, found, "export the run again")
    if version == 1:
        logger.warning(
            "%s is of format 1, whose digest covers the weights only: classes, normalisation and config cannot be "
            "verified; export the run again",
            file,
        )
    try:
        return description_of(metadata), tensors
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{file} is damaged: its metadata do not describe a network ({error}); export the run again"
        ) from error


def _content(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return tensors and metadata of an exported file."""
    if not file.is_file():
        if file.is_dir():
            raise UserError(
                f"{file} is a directory; give the file of a network, which this makes of the directory of a run: "
                f"python -m dctps_jax.export {file} --output model.safetensors"
            )
        state = "is no file" if file.exists() else "does not exist"
        raise UserError(f"{file} {state}; write it with: python -m dctps_jax.export RUN --output {file}")
    return read_safetensors(file, "export the run again")


def description_of(metadata: Mapping[str, str]) -> Description:
    """Return what metadata say of a network; ``KeyError`` or ``ValueError`` for what does not describe one."""
    config, data, step = parse_json(metadata["config"]), parse_json(metadata["data"]), int(metadata["step"])
    check_data(data)
    check_network_config(config)
    for name, default in ADDED_FIELDS.items():
        if name.startswith("model."):
            config["model"].setdefault(name.removeprefix("model."), default)
    normalization = Normalization(tuple(data["mean"]), tuple(data["std"]))
    network = parse_json(metadata["network"]) if "network" in metadata else None
    if network is not None:
        check_network(network)
    names, size, fit = tuple(data["class_names"]), size_of(data["image_size"]), data.get("fit", "squash")
    return Description(config, names, size, normalization, step, fit, network)


def check_network_config(config: Any) -> None:
    """Raise ``ValueError`` for a config of which no network can be built."""
    check_object(config)
    values = dict(flat_fields(config))
    for field in CONFIG_FIELDS:
        if field not in values:
            raise ValueError(f"there is no field config.{field}")
        check_value(field, values[field])
