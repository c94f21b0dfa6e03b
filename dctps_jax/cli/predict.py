"""``predict.py`` and ``dctps-predict``: classify image files with an exported network."""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dctps_jax.command import command
from dctps_jax.data.dataset import MAX_PIXELS
from dctps_jax.data.images import FORMATS, SUFFIXES, as_grey, decode_image, max_file_bytes, resize
from dctps_jax.data.reading import read_file
from dctps_jax.errors import UserError
from dctps_jax.export import Description, read_exported

# This many images are computed at a time.
BATCH = 256


@command("predict.py")
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="file that python -m dctps_jax.export wrote")
    parser.add_argument(
        "images", type=Path, nargs="+", help=f"{', '.join(FORMATS)} files of any size, or folders of them"
    )
    parser.add_argument("--top", type=int, default=3, help="how many classes to name")
    parser.add_argument("--network", help="function that built a network of your own, as my_package.networks:build")
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="larger images are refused")
    arguments = parser.parse_args()
    if arguments.top < 1:
        raise UserError(f"--top is {arguments.top}; it must be at least 1")
    if arguments.max_pixels < 1:
        raise UserError(f"--max-pixels is {arguments.max_pixels}; it must be at least 1")
    description, model = read_exported(arguments.model, arguments.network)
    files = [file for path in arguments.images for file in (images_in(path) if path.is_dir() else [path])]
    if description.dtype not in (None, "float32"):
        print(f"computed in {description.dtype}, as the network was trained", file=sys.stderr)
    told: set[str] = set()
    for start in range(0, len(files), BATCH):
        images, batch = [], files[start : start + BATCH]
        for file in batch:
            image = decode_file(file, arguments.max_pixels)
            images.append(fitted(image, description))
            for kind, change in changes(image, description).items():
                if kind not in told:  # the first image of each kind stands for all
                    print(f"{file} {change}", file=sys.stderr)
                told.add(kind)
        logits = model(description.prepare(jnp.asarray(np.stack(images))))
        probabilities = np.asarray(jax.nn.softmax(logits.astype(jnp.float32)))
        for file, row in zip(batch, probabilities, strict=True):
            best = np.argsort(-row)[: arguments.top]
            print(f"{file}: {', '.join(f'{description.class_names[index]} {row[index]:.1%}' for index in best)}")


def images_in(folder: Path) -> list[Path]:
    """Return the image files below a folder; raise UserError if there are none."""
    files = sorted(path for path in folder.rglob("[!.]*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise UserError(f"{folder} holds no image; it may hold files of {', '.join(SUFFIXES)}")
    return files


def decode_file(file: Path, max_pixels: int) -> np.ndarray:
    """Return an image file as it is, uint8 RGB of its own size."""
    data = read_file(file, max_file_bytes(max_pixels), "give image files")
    return decode_image(data, str(file), max_pixels=max_pixels, limit_name="--max-pixels")


def fitted(image: np.ndarray, description: Description) -> np.ndarray:
    """Return an image of the size and with the channels of the images of training."""
    image = resize(image, description.image_size, description.fit)
    return image if description.shape[2] == 3 else as_grey(image)


def changes(image: np.ndarray, description: Description) -> dict[str, str]:
    """Return what :func:`fitted` changes in an image, by kind: sentences without the name of the image."""
    height, width, channels = description.shape
    found = {}
    if image.shape[:2] != (height, width):
        also = {"crop": " and cropped", "centre": " and cropped", "pad": " and padded"}.get(description.fit, "")
        found["size"] = f"has {image.shape[1]} x {image.shape[0]} pixels and is resized{also} to {width} x {height}"
    if channels == 1 and (image != image[..., :1]).any():
        found["colour"] = "is a colour image and is made grey, as the network takes grey images"
    return found


if __name__ == "__main__":
    main()
