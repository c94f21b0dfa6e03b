"""Images of one's own: scikit-learn's digits as they are, 8×8 pixels in one channel."""

import numpy as np
from sklearn.datasets import load_digits


def load(*, num_test: int = 297):
    """``data.name=examples.own_network.digits:load``: images and labels to train on, images and labels to test on."""
    flat, labels = load_digits(return_X_y=True)
    images = np.rint(flat * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return (images[:-num_test], labels[:-num_test]), (images[-num_test:], labels[-num_test:])
