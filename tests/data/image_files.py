"""The same images as a folder, parquet, array_record and tar files."""

import io
import tarfile

import numpy as np
from PIL import Image

CLASSES = ("ape", "bee", "cat")


def make_images(count, size=8, seed=0):
    """Return images and the labels 0, 1, 2, 0, …, sorted."""
    images = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)
    return images, np.sort(np.arange(count) % len(CLASSES)).astype(np.int32)


def encode(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def write_image_folder(folder, parts):
    for part, (images, labels) in parts.items():
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / part / CLASSES[label] / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(image))


def write_parquet_folder(folder, parts):
    import pyarrow.parquet

    for part, (images, labels) in parts.items():
        table = pyarrow.table({"image": [{"bytes": encode(image)} for image in images], "label": labels.tolist()})
        pyarrow.parquet.write_table(table, folder / f"{part}.parquet", row_group_size=4)


def write_array_record_folder(folder, parts):
    from array_record.python.array_record_module import ArrayRecordWriter

    for part, (images, labels) in parts.items():
        for shard in range(2):
            writer = ArrayRecordWriter(str(folder / f"{part}.array_record-0000{shard}-of-00002"), "group_size:1")
            half = slice(shard * len(images) // 2, (shard + 1) * len(images) // 2)
            for image, label in zip(images[half], labels[half].tolist(), strict=True):
                writer.write(label.to_bytes(4, "little") + encode(image))
            writer.close()


def write_webdataset_folder(folder, parts, labelled=True):
    for part, (images, labels) in parts.items():
        with tarfile.open(folder / f"{part}-000.tar", "w") as tar:
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                members = {"cls": str(label).encode(), "png": encode(image), "json": b"{}"}
                for suffix, content in members.items():
                    info = tarfile.TarInfo(f"{number:04}.{suffix}")
                    info.size = len(content)
                    if labelled or suffix != "cls":
                        tar.addfile(info, io.BytesIO(content))


WRITERS = {
    "image_folder": write_image_folder,
    "parquet_folder": write_parquet_folder,
    "array_record_folder": write_array_record_folder,
    "webdataset_folder": write_webdataset_folder,
}
