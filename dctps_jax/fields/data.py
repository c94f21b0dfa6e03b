"""The fields of the images: where they come from, and how they are changed for training."""

from dctps_jax import data
from dctps_jax.data.dataset import MAX_PIXELS
from dctps_jax.data.images import FITS
from dctps_jax.field import Allowed, Field, at_least
from dctps_jax.fields.values import FINITE, FROM_0_TO_1

DATA: dict[str, Field] = {
    "data.name": Field(
        "cifar10",
        "The data set. A function of yours gets each of `dir`, `image_size` and `seed` that its signature names.",
        choices=data.SOURCES,
        allowed=data.OWN,
    ),
    "data.dir": Field(
        "",
        'Folder of the files; "": `~/.cache/dctps_jax/data`, or below `$XDG_CACHE_HOME`. A run on one of the '
        "`…_folder` sources cannot change it.",
        resume=True,
    ),
    "data.channels": Field(
        3,
        "Channels of the images of `image_folder` and the other `…_folder` sources: 3, or 1 for grey images.",
        allowed=Allowed(lambda value: value in (1, 3), "3 or 1"),
        added=True,
    ),
    "data.cache_dir": Field(
        "", 'Folder for decoded copies of the images; "": `~/.cache/dctps_jax/decoded`.', resume=True
    ),
    "data.image_size": Field(
        0,
        "Resize the images of files, and of `synthetic`, to this many pixels a side.",
        allowed=at_least(1, zero="for the size the images have"),
    ),
    "data.fit": Field(
        "squash",
        "How an image of another shape gets the size `data.image_size`. `squash`: stretch it. `crop`: cut the middle. "
        "`pad`: add white margins. `centre`: cut 7/8 of the shorter side from the middle, of every image.",
        choices=FITS,
        added=True,
    ),
    "data.max_pixels": Field(
        MAX_PIXELS,
        "Image files with more pixels are refused before they are decoded.",
        allowed=Allowed(lambda value: 1 <= value <= 2**27, "at least 1 and at most 2^27"),
        resume=True,
    ),
    "data.download": Field(True, "Download an official archive that is missing.", resume=True),
    "data.streaming": Field(
        "auto",
        "`on`: read the images during training. `off`: keep all of them on each device. `auto`: read them during "
        "training if they would take more than a quarter of a device's memory.",
        choices=("auto", "on", "off"),
        added=True,
        resume=True,
    ),
    "data.processes": Field(
        0,
        "This many processes decode the image files of a streamed run.",
        allowed=at_least(1, zero="for threads of the program itself"),
        added=True,
        resume=True,
    ),
    "data.mean": Field((), "Mean of each channel, of pixels in [0, 1]; (): the data set's own."),
    "data.std": Field((), "Standard deviation of each channel; (): the data set's own."),
    "data.augment": Field(True, "Train on random crops and flips."),
    "data.crop": Field(
        "padded",
        "`padded`: crop the image out of a margin of 4 black pixels. `random_resized`: cut 8 to 100 % of the area out "
        "of the image file, while training, and bring it to `data.image_size` (Szegedy et al. 2015).",
        choices=("padded", "random_resized"),
        added=True,
    ),
    "data.cutout": Field(
        0,
        "Blank a square with this side, in pixels, in each training image (DeVries & Taylor 2017).",
        allowed=at_least(1, zero="for none"),
        added=True,
    ),
    "data.random_erasing": Field(
        0.0,
        "Blank a random rectangle in this share of the training images (Zhong et al. 2020).",
        allowed=FROM_0_TO_1,
        added=True,
    ),
    "data.mixup": Field(
        0.0,
        "Mix the images of a batch in pairs, with weights from Beta(mixup, mixup) (Zhang et al. 2018).",
        allowed=FINITE,
        added=True,
    ),
    "data.train_fraction": Field(
        0.9,
        "The share of the training images that are trained on; the others validate.",
        allowed=Allowed(lambda value: 0 < value < 1, "above 0 and below 1, e.g. 0.9"),
    ),
}
