import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tencrop.config import UserError
from tencrop.config.disk_errors import disk_sentence
from tencrop.data.store.beton import JPEG, METADATA_START, MIN_PAGE_BYTES, RAW, Beton, BetonWriter, EncodedSample
from tencrop.files import atomic_file
from typed import present

GENERATOR = np.random.default_rng(0)


def raw_sample(height: int, width: int, label: int) -> EncodedSample:
    pixels = GENERATOR.integers(256, size=(height, width, 3), dtype=np.uint8)
    return EncodedSample(pixels.tobytes(), RAW, height, width, label)


@pytest.fixture
def ffcv_reader():
    """ffcv.reader.Reader; restores torch's number of threads, which importing ffcv changes."""
    num_threads = torch.get_num_threads()
    reader = pytest.importorskip("ffcv.reader", reason="ffcv is not installed").Reader
    torch.set_num_threads(num_threads)
    yield reader
    torch.set_num_threads(num_threads)


def write_beton(path, samples, num_samples) -> int:
    with BetonWriter(path, num_samples) as writer:
        for sample in samples:
            writer.add(sample)
        writer.finish()
    return writer.count


def test_written_samples_are_read_back(tmp_path):
    samples = [raw_sample(3, 5, 7), EncodedSample(b"a JPEG file", JPEG, 40_000, 65_535, 2**40), raw_sample(1, 1, 0)]
    assert write_beton(tmp_path / "a.beton", samples, 3) == 3
    beton = Beton(tmp_path / "a.beton")
    assert beton.num_samples == 3
    for index, sample in enumerate(samples):
        assert beton.payload(index).tobytes() == sample.payload
    assert beton.modes.tolist() == [RAW, JPEG, RAW]
    assert beton.heights.tolist() == [3, 40_000, 1]
    assert beton.widths.tolist() == [5, 65_535, 1]
    assert beton.labels.tolist() == [7, 2**40, 0]
    assert beton.labels.dtype == np.int64


def test_same_samples_same_bytes(tmp_path):
    samples = [raw_sample(8, 8, label) for label in range(5)]
    for name in ("a", "b"):
        write_beton(tmp_path / name, iter(samples), len(samples))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_types_are_ffcvs(ffcv_reader):
    from ffcv.fields import IntField, RGBImageField
    from ffcv.types import ALLOC_TABLE_TYPE, FieldDescType, HeaderType, get_metadata_type

    from tencrop.data.store import beton

    assert HeaderType == beton.HEADER
    assert FieldDescType == beton.FIELD
    assert beton.ALLOCATION == ALLOC_TABLE_TYPE
    theirs = get_metadata_type([RGBImageField(), IntField()])
    assert beton.SAMPLE.itemsize == theirs.itemsize
    ours = present(beton.SAMPLE.fields)
    assert [ours[name][1] for name in present(beton.SAMPLE.names)] == [theirs.fields[name][1] for name in theirs.names]
    assert RGBImageField().metadata_type == beton.IMAGE


def test_ffcv_reads_the_tables(tmp_path, ffcv_reader):
    samples = [raw_sample(4, 6, 3), EncodedSample(b"jpeg", JPEG, 10, 20, 1)]
    write_beton(tmp_path / "a.beton", samples, 2)
    theirs, ours = ffcv_reader(str(tmp_path / "a.beton")), Beton(tmp_path / "a.beton")
    assert theirs.num_samples == 2
    assert theirs.field_names == ["image", "label"]
    assert theirs.page_size == MIN_PAGE_BYTES
    image, label = theirs.metadata["f0"], theirs.metadata["f1"]
    assert label.tolist() == ours.labels.tolist() == [3, 1]
    assert image["height"].tolist() == ours.heights.tolist()
    assert image["width"].tolist() == ours.widths.tolist()
    assert image["mode"].tolist() == ours.modes.tolist()
    assert theirs.alloc_table["ptr"].tolist() == ours.pointers.tolist()
    assert theirs.alloc_table["size"].tolist() == ours.payload_bytes.tolist()


# In a process of its own: numba's finalizers of what ffcv compiled raise KeyErrors at the end.
STOCK_LOADER = """
import sys
import numpy as np
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import ToTensor

for path, os_cache in (("raw.beton", True), ("raw.beton", False), ("jpeg.beton", True)):
    pipelines = {"image": [SimpleRGBImageDecoder(), ToTensor()], "label": [IntDecoder(), ToTensor()]}
    loader = Loader(path, batch_size=2, num_workers=1, order=OrderOption.SEQUENTIAL, os_cache=os_cache,
                    drop_last=False, pipelines=pipelines)
    batches = [(images.numpy().copy(), labels.numpy().copy()) for images, labels in loader]
    images, labels = (np.concatenate(parts) for parts in zip(*batches))
    np.savez(f"{path}-{os_cache}.npz", images=images, labels=labels[:, 0])
"""


def test_ffcv_loads_pixels_and_labels(tmp_path, photographs):
    """A stock Loader: raw images exactly, from the mapped file and page by page; JPEG as ffcv decodes.

    ffcv asks libjpeg for its fast inverse DCT, Pillow for the accurate one: some levels apart, most pixels less.
    """
    pytest.importorskip("ffcv.reader", reason="ffcv is not installed")
    raw = [raw_sample(1000, 900, label) for label in range(7)]  # 2.7 MB each: three to a page
    write_beton(tmp_path / "raw.beton", raw, len(raw))
    decoded, jpegs = [], []
    for label in range(5):
        buffer = io.BytesIO()
        photographs["china"].crop((label, 100, label + 90, 160)).save(buffer, "JPEG", quality=90, subsampling="4:4:4")
        decoded.append(np.asarray(Image.open(buffer)))
        jpegs.append(EncodedSample(buffer.getvalue(), JPEG, 60, 90, label))
    write_beton(tmp_path / "jpeg.beton", jpegs, len(jpegs))

    finished = subprocess.run([sys.executable, "-c", STOCK_LOADER], cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    for name in ("raw.beton-True", "raw.beton-False"):
        loaded = np.load(tmp_path / f"{name}.npz")
        assert loaded["labels"].tolist() == list(range(7))
        assert [image.tobytes() for image in loaded["images"]] == [sample.payload for sample in raw]
    loaded = np.load(tmp_path / "jpeg.beton-True.npz")
    assert loaded["labels"].tolist() == list(range(5))
    assert np.abs(loaded["images"].astype(int) - np.stack(decoded)).max() <= 8  # 4 was measured


def test_ours_reads_what_ffcv_wrote(tmp_path, ffcv_reader):
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    images = [GENERATOR.integers(256, size=(9, 7, 3), dtype=np.uint8) for _ in range(10)]
    writer = DatasetWriter(str(tmp_path / "a.beton"), {"image": RGBImageField(), "label": IntField()}, num_workers=1)
    writer.from_indexed_dataset([(image, index) for index, image in enumerate(images)], shuffle_indices=False)
    beton = Beton(tmp_path / "a.beton")
    assert beton.labels.tolist() == list(range(10))
    for index, image in enumerate(images):
        assert beton.payload(index).tobytes() == image.tobytes()


def test_no_sample_crosses_a_page(tmp_path):
    """Also if a sample larger than 8 MB increases the page size in between."""
    sizes = [3_000_000, 3_000_000, 3_000_000, 20_000_000, 9, 5_000_000, 8_388_608, 1]
    samples = [EncodedSample(bytes([index]) * size, JPEG, 1, 1, 0) for index, size in enumerate(sizes)]
    write_beton(tmp_path / "a.beton", samples, len(samples))
    beton = Beton(tmp_path / "a.beton")
    assert beton.page_size == 4 * MIN_PAGE_BYTES
    first = beton.pointers // beton.page_size
    last = (beton.pointers + beton.payload_bytes - 1) // beton.page_size
    assert first.tolist() == last.tolist()
    for index, size in enumerate(sizes):
        payload = beton.payload(index)
        assert len(payload) == size
        assert (payload == index).all()


def test_fewer_samples_than_announced(tmp_path):
    assert write_beton(tmp_path / "a.beton", [raw_sample(2, 2, 1)], 5) == 1
    assert Beton(tmp_path / "a.beton").labels.tolist() == [1]


def test_an_unfinished_file_does_not_appear_under_its_name(tmp_path, small_disk: Path):
    """Neither after an error nor on a full disk."""
    with BetonWriter(tmp_path / "a.beton", 2) as writer:
        writer.add(raw_sample(10, 10, 0))
    assert not (tmp_path / "a.beton").exists()
    with pytest.raises(OSError, match="No space left"):
        write_beton(small_disk / "a.beton", (raw_sample(100, 100, label) for label in range(100)), 100)
    assert not (small_disk / "a.beton").exists()


def test_an_error_keeps_the_file_that_was_there(tmp_path):
    write_beton(tmp_path / "a.beton", [raw_sample(2, 2, 1)], 1)
    before = (tmp_path / "a.beton").read_bytes()
    with pytest.raises(ZeroDivisionError):
        write_beton(tmp_path / "a.beton", (1 // 0 for _ in range(2)), 2)
    assert (tmp_path / "a.beton").read_bytes() == before


def test_truncated_files_are_refused(tmp_path):
    path = tmp_path / "a.beton"
    write_beton(path, [raw_sample(20, 20, label) for label in range(4)], 4)
    whole = path.read_bytes()
    for length in (0, 10, METADATA_START, METADATA_START + 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.beton: .*(too short|truncated|not a \.beton)"):
            Beton(path)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "a.beton"
    path.write_bytes(b"\x89PNG" + bytes(10_000))
    with pytest.raises(UserError, match=r"not a \.beton file of version 2"):
        Beton(path)
    with pytest.raises(UserError, match="no such file"):
        Beton(tmp_path / "b.beton")


def test_other_fields_are_refused(tmp_path):
    path = tmp_path / "a.beton"
    write_beton(path, [raw_sample(2, 2, 1)], 1)
    content = bytearray(path.read_bytes())
    content[24] = 4  # type_id of the first field: an array
    path.write_bytes(content)
    with pytest.raises(UserError, match="not an image and an integer label"):
        Beton(path)


@pytest.mark.parametrize("byte", ["mode", "pointer", "size"])
def test_invalid_pointers_are_refused(tmp_path, byte):
    path = tmp_path / "a.beton"
    write_beton(path, [raw_sample(2, 2, 1), raw_sample(2, 2, 1)], 2)
    content = bytearray(path.read_bytes())
    second = METADATA_START + 24
    content[{"mode": second, "pointer": second + 9, "size": len(content) - 4}[byte]] = 9
    path.write_bytes(content)
    with pytest.raises(UserError, match="the table entry of sample 1 is invalid"):
        Beton(path)


def test_a_killed_writer_leaves_no_file_under_the_name(tmp_path):
    """And the remains do not disturb the next writer."""
    program = f"""
import os, signal
from pathlib import Path
from tencrop.data.store.beton import BetonWriter, EncodedSample
writer = BetonWriter(Path({str(tmp_path / "a.beton")!r}), 2)
writer.add(EncodedSample(bytes(5_000_000), 0, 1, 1, 0))
os.kill(os.getpid(), signal.SIGKILL)
"""
    source = Path(__file__).resolve().parents[3] / "src"
    finished = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(source)})
    assert finished.returncode == -9
    assert not (tmp_path / "a.beton").exists()
    write_beton(tmp_path / "a.beton", [raw_sample(2, 2, 1)], 1)
    assert os.listdir(tmp_path) == ["a.beton"]
    assert Beton(tmp_path / "a.beton").num_samples == 1


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with atomic_file(tmp_path / "a") as first, atomic_file(tmp_path / "a") as second:
        first.write(b"first")
        second.write(b"second")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"first"  # the last to end stays


def test_a_full_disk_is_named(small_disk):
    with pytest.raises(OSError) as failure, atomic_file(small_disk / "a") as file:
        file.write(bytes(2_000_000))
    assert disk_sentence(failure.value).startswith(f"the disk is full ({small_disk / 'a'})")
    with pytest.raises(OSError) as failure, BetonWriter(small_disk / "b", 1) as writer:
        writer.add(EncodedSample(bytes(4_000_000), 0, 1, 1, 0))
        writer.sync()
    assert disk_sentence(failure.value).startswith(f"the disk is full ({small_disk / 'b.partial'})")
    assert [path.name for path in small_disk.iterdir()] == ["b.partial"]


def test_a_read_only_folder_is_named_by_the_file_that_is_wanted(read_only, tmp_path):
    (tmp_path / "here").mkdir()
    folder = read_only(tmp_path / "here")
    with pytest.raises(OSError) as failure, atomic_file(folder / "a"):
        pass
    assert disk_sentence(failure.value).startswith(f"the file system is read-only ({folder / 'a'});")
