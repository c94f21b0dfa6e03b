"""Images a second that are read for training on ImageNet: ``python benchmarks/input.py --save input``.

JPEG files of 500×375 pixels are decoded, cropped at random, resized to 224 pixels and put into batches. Each way of
doing this runs in a process of its own. On a machine of two cores, these ways are compared:

- ``pil``: two threads of Pillow, with the crops of this package; the crops are thrown away;
- ``streamed``: the windows of a run, on the device, with a thread for each core, at most 16; ``streamed_processes``:
  the same with two processes that decode;
- ``torch``: PyTorch's DataLoader with torchvision's ImageFolder and RandomResizedCrop, with two workers.

``memory`` is the resident memory of a process that streams an epoch of small images, after each tenth of the epoch.
Needs the package installed, or ``PYTHONPATH=.``; ``torch`` needs torchvision, and is left out if that is missing.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

WAYS = ("pil", "streamed", "streamed_processes", "torch", "memory")
CORES = 2
_REPEATS = 100  # of the files in an epoch: ImageNet's epochs are long, so the start of the processes hardly counts


def write_images(folder: Path, count: int, width: int, height: int) -> None:
    """Write JPEG files of smooth random images, in the layout of ImageNet."""
    from PIL import Image

    random = np.random.default_rng(0)
    for part, number in [("val", 0), *(("train", number) for number in range(count))]:
        small = random.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        image = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
        image = np.clip(image + random.integers(-12, 13, image.shape), 0, 255).astype(np.uint8)
        path = folder / part / f"class{number % 2}" / f"{number:05}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, quality=90)


def batches(arguments: argparse.Namespace) -> Iterator[Any]:
    """Yield batches of ``arguments.batch_size`` images by ``arguments.way`` without end."""
    match arguments.way:
        case "pil":
            return _by_pil(arguments)
        case "torch":
            return _by_torch(arguments)
        case _:
            return _streamed(arguments, _REPEATS)


def _by_pil(arguments: argparse.Namespace) -> Iterator[Any]:
    from PIL import Image

    from dctps_jax.data.random_crop import RandomCrop

    paths = sorted(Path(arguments.folder).glob("train/*/*"))

    def decode(number: int) -> np.ndarray:
        with Image.open(io.BytesIO(paths[number % len(paths)].read_bytes())) as image:
            box = RandomCrop(0, number // len(paths), number % len(paths))(*image.size)
            size = arguments.size, arguments.size
            return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR, box=box))

    with ThreadPoolExecutor(CORES) as pool:
        start = 0
        while True:
            yield list(pool.map(decode, range(start, start + arguments.batch_size)))
            start += arguments.batch_size


def _by_torch(arguments: argparse.Namespace) -> Iterator[Any]:
    import torch  # pyright: ignore[reportMissingImports]
    from torchvision import datasets, transforms  # pyright: ignore[reportMissingImports]

    steps = [transforms.RandomResizedCrop(arguments.size), transforms.PILToTensor()]
    images = datasets.ImageFolder(str(Path(arguments.folder) / "train"), transforms.Compose(steps))
    loader = torch.utils.data.DataLoader(
        images, arguments.batch_size, shuffle=True, num_workers=CORES, drop_last=True, persistent_workers=True
    )
    while True:
        yield from loader


def _streamed(arguments: argparse.Namespace, repeats: int) -> Iterator[Any]:
    import jax

    from dctps_jax import data
    from dctps_jax.data.batches import Normalization
    from dctps_jax.training.placement import place_on_all_devices
    from dctps_jax.training.step_spec import StepSpec
    from dctps_jax.training.streamed_images import StreamedImages

    dataset = data.load(
        "image_folder",
        dir=arguments.folder,
        image_size=arguments.size,
        crop="random_resized",
        max_decoded_bytes=0,
    )
    processes = CORES if arguments.way == "streamed_processes" else 0
    images = StreamedImages(dataset.train_images, dataset.train_labels, place_on_all_devices(), processes)
    rows = np.tile(np.arange(len(dataset.train_labels)), repeats)
    spec = StepSpec(
        batch_size=arguments.batch_size,
        eval_batch_size=arguments.batch_size,
        steps_per_epoch=len(rows) // arguments.batch_size,
        steps_per_dispatch=1,
        normalization=Normalization((0.5,) * 3, (0.3,) * 3),
        augmented=True,
        seed=0,
    )
    epoch = 0
    while True:
        order = np.random.default_rng(epoch).permutation(rows)
        for window in images.windows(order, epoch * spec.steps_per_epoch, spec):
            yield jax.block_until_ready(window.pixels)
        epoch += 1


def measure_speed(arguments: argparse.Namespace) -> dict[str, Any]:
    given = batches(arguments)
    for _ in range(2):  # threads and processes start
        next(given)
    times = [time.perf_counter()]
    while times[-1] - times[0] < arguments.seconds:
        next(given)
        times.append(time.perf_counter())
    return {"images": (len(times) - 1) * arguments.batch_size, "seconds": times[-1] - times[0]}


def measure_memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Stream one epoch; return the resident memory after each tenth of it, in MB."""
    count = len(list(Path(arguments.folder).glob("train/*/*")))
    repeats = arguments.memory_images // count
    steps = repeats * count // arguments.batch_size
    started, megabytes = time.perf_counter(), []
    for step, _ in zip(range(1, steps + 1), _streamed(arguments, repeats), strict=False):
        if step % (steps // 10) == 0:
            megabytes.append(round(_resident_bytes() / 1e6))
    return {
        "images": steps * arguments.batch_size,
        "seconds": time.perf_counter() - started,
        "resident_mb": megabytes[:10],
    }


def _resident_bytes() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--images", type=int, default=1000, help="files that are written")
    parser.add_argument("--memory_images", type=int, default=100_000, help="images of the epoch of `memory`")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each way")
    parser.add_argument("--save", default="", help="name of a file in benchmarks/results/")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=224, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        measure = measure_memory if arguments.way == "memory" else measure_speed
        print(json.dumps(measure(arguments)))
        return
    import record

    result: dict[str, Any] = record.describe_run(arguments) | {"ways": {}}
    with tempfile.TemporaryDirectory() as place:
        for name, size in (("large", (500, 375)), ("small", (64, 64))):
            write_images(Path(place) / name, arguments.images, *size)
        large = [path.stat().st_size for path in Path(place, "large").glob("train/*/*")]
        result["mean_file_bytes"] = sum(large) / len(large)
        for way in arguments.ways:
            name, size = ("small", 32) if way == "memory" else ("large", arguments.size)
            options = [f"--way={way}", f"--folder={place}/{name}", f"--size={size}", f"--seconds={arguments.seconds}"]
            options += [f"--batch_size={arguments.batch_size}", f"--memory_images={arguments.memory_images}"]
            done = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
                print(f"{way}: left out ({reason})", flush=True)
                continue
            result["ways"][way] = figures = json.loads(done.stdout.splitlines()[-1])
            print(f"{way}: {figures['images'] / figures['seconds']:.0f} images/s {figures}", flush=True)
    record.save(arguments.save, result)


if __name__ == "__main__":
    main()
