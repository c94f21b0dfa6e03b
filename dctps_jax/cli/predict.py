"""``predict.py`` and ``dctps-predict``: classify image files with an exported network."""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dctps_jax.command import command
from dctps_jax.data.dataset import MAX_PIXELS
from dctps_jax.data.decoding import as_grey
from dctps_jax.data.images import FORMATS, decode_image, max_file_bytes
from dctps_jax.data.reading import read_file
from dctps_jax.errors import UserError
from dctps_jax.export import read_exported


@command("predict.py")
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="file that python -m dctps_jax.export wrote")
    parser.add_argument("images", type=Path, nargs="+", help=f"{', '.join(FORMATS)} files of any size")
    parser.add_argument("--top", type=int, default=3, help="how many classes to name")
    parser.add_argument("--network", help="function that built a network of your own, as my_package.networks:build")
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="larger images are refused")
    arguments = parser.parse_args()
    if arguments.top < 1:
        raise UserError(f"--top is {arguments.top}; it must be at least 1")
    if arguments.max_pixels < 1:
        raise UserError(f"--max-pixels is {arguments.max_pixels}; it must be at least 1")
    description, model = read_exported(arguments.model, arguments.network)
    images = np.stack([read_image(file, description.shape, arguments.max_pixels) for file in arguments.images])
    probabilities = np.asarray(jax.nn.softmax(model(description.prepare(jnp.asarray(images)))))
    for file, row in zip(arguments.images, probabilities, strict=True):
        best = np.argsort(-row)[: arguments.top]
        print(f"{file}: {', '.join(f'{description.class_names[index]} {row[index]:.1%}' for index in best)}")


def read_image(file: Path, shape: tuple[int, int, int], max_pixels: int) -> np.ndarray:
    """Return an image file as uint8 of that height, width and number of channels."""
    height, width, channels = shape
    data = read_file(file, max_file_bytes(max_pixels), "give image files")
    size = height if height == width else (height, width)
    image = decode_image(data, str(file), max_pixels=max_pixels, resize_to=size, limit_name="--max-pixels")
    return image if channels == 3 else as_grey(image)


if __name__ == "__main__":
    main()
