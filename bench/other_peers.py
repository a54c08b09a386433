"""Loaders of others that loading.py measures in their own virtual environment: NVIDIA DALI, tf.data and SPDL.

    PYTHON bench/other_peers.py NAME FOLDER [--workers 2] [--images 4000]
    PYTHON bench/other_peers.py NAME --check      exit code 1: the library cannot be imported

loading.py runs this; requirements.txt lists the libraries. FOLDER has the original JPEGs, named by index. As in
peers.py, the batches are uint8 [256, 224, 224, 3]: random-resized crops, mirrored with probability 1/2, on CPU cores.
Each pipeline is the one that its authors recommend for ImageNet. Their draws are their own.
"""

from __future__ import annotations

import argparse
import math
import os
import random
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from serving import serve

BATCH, SIZE = 256, 224
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)


class OtherPeer:
    def __init__(self, options: argparse.Namespace) -> None:
        self.workers = options.workers
        self.paths = sorted(str(path) for path in Path(options.folder).iterdir())
        self.num_batches = -(-options.images // len(self.paths)) * len(self.paths) // BATCH

    def drain(self) -> None:
        """Discard the batches that were prepared since the last epoch: they cost the next one no time."""

    def epoch(self, number: int) -> Iterator[int]:
        raise NotImplementedError


class Dali(OtherPeer):
    """NVIDIA DALI (its "ImageNet training in PyTorch" example) with its operators on the CPU.

    image_random_crop decodes the crop only; the flip stands for crop_mirror_normalize, which would also make floats.
    The batch is not copied out of DALI's buffer, as a training would have to.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        from nvidia.dali import fn, pipeline_def, types

        @pipeline_def(batch_size=BATCH, num_threads=self.workers, device_id=None, seed=0)
        def pipeline() -> Any:
            contents, _ = fn.readers.file(files=self.paths, random_shuffle=True, name="Reader")
            images = fn.decoders.image_random_crop(contents, random_area=AREA, random_aspect_ratio=ASPECT)
            images = fn.resize(images, size=[SIZE, SIZE], interp_type=types.INTERP_TRIANGULAR)
            return fn.flip(images, horizontal=fn.random.coin_flip(probability=0.5))

        self.pipeline = pipeline()
        self.pipeline.build()

    def drain(self) -> None:
        for _ in range(self.pipeline.prefetch_queue_depth):  # 2 by default; the pipeline knows no end of an epoch
            self.pipeline.run()

    def epoch(self, number: int) -> Iterator[int]:
        for _ in range(self.num_batches):
            (images,) = self.pipeline.run()
            yield len(images.as_array())

    def cut(self, index: int, box: np.ndarray) -> np.ndarray:
        top_left, height_width = np.split(box.astype(np.int32), 2)
        content = np.fromfile(self.paths[index], np.uint8)
        for name, value in (("content", content), ("start", top_left), ("shape", height_width)):
            self.cutter.feed_input(name, [value])
        (images,) = self.cutter.run()
        return np.array(images.as_array()[0])

    @cached_property
    def cutter(self) -> Any:
        from nvidia.dali import fn, pipeline_def, types

        @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
        def pipeline() -> Any:
            content, start, shape = (fn.external_source(name=name) for name in ("content", "start", "shape"))
            images = fn.decoders.image_slice(content, start=start, shape=shape, axes=[0, 1])
            return fn.resize(images, size=[SIZE, SIZE], interp_type=types.INTERP_TRIANGULAR)

        built = pipeline()
        built.build()
        return built


class TfData(OtherPeer):
    """tf.data as in TensorFlow's official ResNet: sample_distorted_bounding_box, decode_and_crop_jpeg, a resize.

    The resize is theirs, bilinear without antialiasing; decode_and_crop_jpeg transforms with the fast, inexact IDCT.
    Files instead of TFRecords: from the page cache, a file is read in about a hundredth of its decoding time.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        import tensorflow as tf

        self.tf = tf
        tf.config.threading.set_intra_op_parallelism_threads(self.workers)
        tf.config.threading.set_inter_op_parallelism_threads(self.workers)
        settings = tf.data.Options()
        settings.threading.private_threadpool_size = self.workers
        settings.deterministic = False
        files = tf.data.Dataset.from_tensor_slices(self.paths).shuffle(len(self.paths)).repeat()
        batches = files.map(self.random_crop, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH)
        self.batches = batches.take(self.num_batches).prefetch(tf.data.AUTOTUNE).with_options(settings)

    def random_crop(self, path: Any) -> Any:
        tf, content = self.tf, self.tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(content), tf.zeros([1, 0, 4]), min_object_covered=0.1,
            aspect_ratio_range=ASPECT, area_range=AREA, max_attempts=10, use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        return self.crop(content, tf.concat([begin[:2], size[:2]], 0), mirror=True)

    def crop(self, content: Any, box: Any, *, mirror: bool) -> Any:
        image = self.tf.image.decode_and_crop_jpeg(content, box, channels=3)
        image = self.tf.image.random_flip_left_right(image) if mirror else image
        return self.tf.cast(self.tf.round(self.tf.image.resize(image, [SIZE, SIZE])), self.tf.uint8)

    def epoch(self, number: int) -> Iterator[int]:
        for images in self.batches:
            yield len(images)

    def cut(self, index: int, box: np.ndarray) -> np.ndarray:
        return self.crop(self.tf.io.read_file(self.paths[index]), box, mirror=False).numpy()


class Spdl(OtherPeer):
    """SPDL: threads that call FFmpeg, which decodes the whole image; its filters crop, scale (bilinear) and flip.

    SPDL has no random crop: the box is drawn in Python, as torchvision does.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        import spdl.io
        import spdl.pipeline

        self.io, self.builder, self.random = spdl.io, spdl.pipeline.PipelineBuilder, random.Random(0)

    def epoch(self, number: int) -> Iterator[int]:
        paths = self.paths * -(-self.num_batches * BATCH // len(self.paths))
        self.random.shuffle(paths)
        pipeline = (
            self.builder()
            .add_source(paths[: self.num_batches * BATCH])
            .pipe(self.random_crop, concurrency=self.workers)
            .aggregate(BATCH)
            .pipe(self.io.convert_frames)
            .add_sink(2)
            .build(num_threads=self.workers)
        )
        with pipeline.auto_stop():
            for batch in pipeline:
                yield len(self.io.to_numpy(batch))

    def random_crop(self, path: str) -> Any:
        packets = self.io.demux_image(path)
        box = random_box(packets.height, packets.width, self.random)
        return self.crop(packets, box, ",hflip" if self.random.random() < 0.5 else "")

    def crop(self, packets: Any, box: tuple[int, int, int, int], flip: str) -> Any:
        top, left, height, width = box
        filters = f"crop={width}:{height}:{left}:{top}:exact=1,scale={SIZE}:{SIZE}:flags=bilinear{flip}"
        return self.io.decode_packets(packets, filter_desc=f"{filters},format=pix_fmts=rgb24")

    def cut(self, index: int, box: np.ndarray) -> np.ndarray:
        frames = self.crop(self.io.demux_image(self.paths[index]), tuple(box.tolist()), "")
        return np.array(self.io.to_numpy(self.io.convert_frames(frames)))


def random_box(height: int, width: int, rng: random.Random) -> tuple[int, int, int, int]:
    """(top, left, height, width) as torchvision's RandomResizedCrop draws it; the whole image after ten failures."""
    for _ in range(10):
        area = height * width * rng.uniform(*AREA)
        aspect = math.exp(rng.uniform(*map(math.log, ASPECT)))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            return rng.randint(0, height - box_height), rng.randint(0, width - box_width), box_height, box_width
    return 0, 0, height, width


OTHER_PEERS: dict[str, tuple[str, type[OtherPeer]]] = {
    "DALI": ("nvidia.dali", Dali),
    "tf.data": ("tensorflow", TfData),
    "SPDL": ("spdl.io", Spdl),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=OTHER_PEERS)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    module, peer = OTHER_PEERS[options.name]
    if options.check:
        check(module)
    else:
        serve(peer(options))


def check(module: str) -> None:
    import importlib

    library: Any = importlib.import_module(module)
    if module == "spdl.io":
        library.decode_config()  # loads FFmpeg's libraries, which the package does not bring


if __name__ == "__main__":
    main()
