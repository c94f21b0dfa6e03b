"""Classify image files with an exported network: ``python predict.py model.safetensors IMAGE [IMAGE …]``."""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dctps_jax.cli import command
from dctps_jax.data.images import decode_image
from dctps_jax.errors import UserError
from dctps_jax.export import read_exported


@command("predict.py")
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="file that python -m dctps_jax.export wrote")
    parser.add_argument("images", type=Path, nargs="+", help="PNG, JPEG, BMP or WebP files of any size")
    parser.add_argument("--top", type=int, default=3, help="how many classes to name")
    arguments = parser.parse_args()
    if arguments.top < 1:
        raise UserError(f"--top is {arguments.top}; it must be at least 1")
    description, model = read_exported(arguments.model)
    images = np.stack([read_image(file, description.image_size) for file in arguments.images])
    probabilities = np.asarray(jax.nn.softmax(model(description.prepare(jnp.asarray(images)))))
    for file, row in zip(arguments.images, probabilities, strict=True):
        best = np.argsort(-row)[: arguments.top]
        print(f"{file}: {', '.join(f'{description.class_names[index]} {row[index]:.1%}' for index in best)}")


def read_image(file: Path, size: int) -> np.ndarray:
    """Return an image file as uint8 ``[size, size, 3]``."""
    if not file.is_file():
        raise UserError(f"{file} {'is no file' if file.exists() else 'does not exist'}; give image files")
    return decode_image(file.read_bytes(), str(file), size)


if __name__ == "__main__":
    main()
