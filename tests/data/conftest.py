"""Fixtures shared by the tests of the data pipeline."""

from collections.abc import Callable

import numpy as np
import pytest

from tencrop.data.native.decoder import decode_batch
from tencrop.data.native.reduce import jpeg_header
from tencrop.data.store.beton import JPEG


@pytest.fixture(scope="session")
def decode_jpeg() -> Callable[[bytes], np.ndarray]:
    """decode_jpeg(file) -> uint8 [height, width, 3]: a whole JPEG, decoded by the loader's decoder."""

    def decode(file: bytes) -> np.ndarray:
        height, width, _ = jpeg_header(file)
        images = np.empty((1, height, width, 3), np.uint8)
        decode_batch(
            images,
            np.frombuffer(file, np.uint8),
            pointers=np.zeros(1, np.uint64),
            payload_bytes=np.array([len(file)], np.uint64),
            modes=np.array([JPEG], np.uint8),
            stored_sizes=np.array([[height, width]], np.int32),
            boxes=np.array([[0, 0, height, width]], np.int32),
            sizes=np.array([[height, width]], np.int32),
            flips=np.zeros(1, bool),
            filter="nearest",
            num_threads=1,
        )
        return images[0]

    return decode
