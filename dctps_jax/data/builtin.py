"""The two sources that need no file: scikit-learn's digits, and random images for benchmarks."""

import numpy as np

from dctps_jax.data.dataset import Dataset, Options

_SIZE = 32


def load_digits(options: Options) -> Dataset:
    """Read scikit-learn's 1,797 hand-written digits as 32 × 32 RGB images: 1,437 to train on and 360 to test.

    The 8 × 8 originals (0 to 16) are scaled to 0 to 255, enlarged bilinearly and copied into three equal channels. The
    test part is the same in every run: every fifth image in the order of the labels, so that each digit has its share.
    ``mean`` and ``std`` are None.
    """
    from PIL import Image
    from sklearn import datasets

    flat, targets = datasets.load_digits(return_X_y=True)
    small = np.rint(np.reshape(flat, (-1, 8, 8)) * (255 / 16)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((_SIZE, _SIZE), Image.Resampling.BILINEAR)) for image in small]
    images = np.repeat(np.stack(large)[..., None], 3, axis=3)
    labels = np.asarray(targets, np.int32)

    is_test = np.zeros(len(labels), bool)
    is_test[np.argsort(labels, kind="stable")[::5]] = True
    class_names = tuple(str(digit) for digit in range(10))
    return Dataset("digits", images[~is_test], labels[~is_test], images[is_test], labels[is_test], class_names)


def make_synthetic(options: Options) -> Dataset:
    """Make 2,048 training and 512 test images of random pixels with random labels, the same at every call.

    There is nothing to learn in them: they are for measuring speed. ``options.image_size`` sets their size in pixels
    (0: 32). ``mean`` and ``std`` are None.
    """
    size = options.image_size or _SIZE
    random = np.random.default_rng(0)

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        images = random.integers(0, 256, (count, size, size, 3), np.uint8)
        return images, random.integers(0, 10, count, np.int32)

    class_names = tuple(f"class {label}" for label in range(10))
    return Dataset("synthetic", *part(2048), *part(512), class_names)
