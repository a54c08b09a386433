"""The C decoder against Pillow: pixels are equal, never close; damage is an error, never gray blocks."""

import ctypes.util
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import tencrop.data.native.decoder as decoder
from tencrop.data.loading.reference import resize
from tencrop.data.native.decoder import FILTERS, DecodeError, decode_batch
from tencrop.data.native.index import indexed_jpeg
from tencrop.data.store.beton import JPEG, RAW

SOURCES = Path(decoder.__file__).parent


def decode(payload: bytes, mode, stored_size, box, size, *, flip=False, filter="bilinear", slot=None) -> np.ndarray:
    """Decode one sample with decode_batch, into a slot that was filled with 7s."""
    images = np.full((1, *(slot or size), 3), 7, np.uint8)
    decode_batch(
        images,
        np.frombuffer(payload, np.uint8),
        pointers=np.zeros(1, np.uint64),
        payload_bytes=np.array([len(payload)], np.uint64),
        modes=np.array([mode], np.uint8),
        stored_sizes=np.array([stored_size], np.int32),
        boxes=np.array([box], np.int32),
        sizes=np.array([size], np.int32),
        flips=np.array([flip]),
        filter=filter,
        num_threads=1,
    )
    return images[0]


def expected(pixels: np.ndarray, box, size, *, flip=False, filter="bilinear") -> np.ndarray:
    top, left, height, width = box
    image = Image.fromarray(np.ascontiguousarray(pixels[top : top + height, left : left + width]))
    out_height, out_width = size
    resized = np.asarray(resize(image, out_height, out_width, filter))
    return resized[:, ::-1] if flip else resized


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def jpeg(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


@st.composite
def cuts(draw, longest=90):
    """(image size, box within it, output size)"""
    height, width = draw(st.integers(1, longest)), draw(st.integers(1, longest))
    box_height, box_width = draw(st.integers(1, height)), draw(st.integers(1, width))
    top, left = draw(st.integers(0, height - box_height)), draw(st.integers(0, width - box_width))
    out_height = draw(st.one_of(st.just(box_height), st.integers(1, 120)))
    out_width = draw(st.one_of(st.just(box_width), st.integers(1, 120)))
    return (height, width), (top, left, box_height, box_width), (out_height, out_width)


@settings(max_examples=300, deadline=None)
@given(cuts(), st.sampled_from(FILTERS), st.booleans(), st.integers(0, 9))
def test_raw_boxes_are_resized_as_pillow_does(cut, filter, flip, seed):
    stored_size, box, size = cut
    height, width = stored_size
    pixels = noise(height, width, seed)
    ours = decode(pixels.tobytes(), RAW, stored_size, box, size, flip=flip, filter=filter)
    assert np.array_equal(ours, expected(pixels, box, size, flip=flip, filter=filter))


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize(
    ("stored_size", "size"),
    [((1, 1), (224, 224)), ((1, 3000), (224, 224)), ((3000, 1), (64, 31)), ((2000, 1500), (3, 5)), ((9, 3000), (1, 1))],
)
def test_extreme_sizes(stored_size, size, filter):
    pixels, box = noise(*stored_size), (0, 0, *stored_size)
    ours = decode(pixels.tobytes(), RAW, stored_size, box, size, filter=filter)
    assert np.array_equal(ours, expected(pixels, box, size, filter=filter))


def test_extremes_of_contrast_do_not_overflow():
    """Black and white stripes drive bicubic sums out of [0, 255] on both sides."""
    pixels = np.zeros((60, 60, 3), np.uint8)
    pixels[::3], pixels[:, ::2] = 255, 255
    for size in ((224, 224), (41, 37), (7, 90)):
        ours = decode(pixels.tobytes(), RAW, (60, 60), (0, 0, 60, 60), size, filter="bicubic")
        assert np.array_equal(ours, expected(pixels, (0, 0, 60, 60), size, filter="bicubic"))


@pytest.fixture(scope="session")
def jpegs(photographs) -> list[tuple[bytes, np.ndarray]]:
    """Small JPEGs of every common kind, with Pillow's pixels of them."""
    china, flower = (photographs[name].resize((91, 67)) for name in ("china", "flower"))
    files = [
        jpeg(image, subsampling=subsampling, progressive=progressive)
        for image in (china, flower)
        for subsampling in ("4:4:4", "4:2:2", "4:2:0")
        for progressive in (False, True)
    ]
    files += [jpeg(china.convert("L")), jpeg(china.convert("L"), progressive=True)]
    files += [
        jpeg(china, restart_marker_blocks=3, subsampling="4:2:0"),
        jpeg(flower, quality=5),
        jpeg(flower, quality=100),
    ]
    files += [jpeg(china.crop((0, 0, *size))) for size in ((1, 1), (1, 60), (60, 1), (7, 9), (17, 33))]
    return [(file, np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))) for file in files]


def test_whole_jpegs_have_pillows_pixels(jpegs, decode_jpeg):
    """Though ours is the system's libjpeg-turbo and Pillow brings another version: the accurate integer transform and
    the smooth chroma are the same in all of them."""
    for file, pixels in jpegs:
        assert np.array_equal(decode_jpeg(file), pixels)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_boxes_of_jpegs_are_those_of_the_whole(jpegs, data):
    """Rows and columns outside the box are not decoded, without any effect on its pixels."""
    file, pixels = jpegs[data.draw(st.integers(0, len(jpegs) - 1))]
    height, width = pixels.shape[:2]
    box_height, box_width = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - box_height)), data.draw(st.integers(0, width - box_width))
    box, flip = (top, left, box_height, box_width), data.draw(st.booleans())
    for size in ((box_height, box_width), (32, 24)):
        ours = decode(file, JPEG, (height, width), box, size, flip=flip)
        assert np.array_equal(ours, expected(pixels, box, size, flip=flip))


def test_narrow_boxes_at_every_column(jpegs):
    """There libjpeg skips smooth chroma upsampling, unless more columns than the box are decoded."""
    for file, pixels in jpegs[:6]:
        height, width = pixels.shape[:2]
        for box_width in (1, 2, 3):
            for left in range(width - box_width + 1):
                box = ((7 * left) % (height - 5), left, 5, box_width)
                ours = decode(file, JPEG, (height, width), box, (5, box_width))
                assert np.array_equal(ours, expected(pixels, box, (5, box_width))), box


def test_photograph_at_full_size(photographs):
    """Long rows, many of them: the crops of a training epoch."""
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        file = jpeg(photographs["china"], subsampling=subsampling)
        pixels = np.asarray(Image.open(io.BytesIO(file)))
        for box in [(3, 5, 400, 600), (100, 101, 224, 333), (426, 0, 1, 640), (0, 639, 427, 1), (17, 16, 200, 16)]:
            ours = decode(file, JPEG, (427, 640), box, (224, 224), filter="bicubic", flip=True)
            assert np.array_equal(ours, expected(pixels, box, (224, 224), filter="bicubic", flip=True))


def test_the_slot_around_a_smaller_image_is_zero():
    pixels = noise(20, 30)
    slot = decode(pixels.tobytes(), RAW, (20, 30), (0, 0, 20, 30), (10, 15), slot=(13, 40))
    assert np.array_equal(slot[:10, :15], expected(pixels, (0, 0, 20, 30), (10, 15)))
    assert not slot[10:].any() and not slot[:, 15:].any()


def batch_of(files: list[bytes], sizes, num_threads: int) -> np.ndarray:
    num_bytes = np.array([len(file) for file in files], np.uint64)
    images = np.full((len(files), 40, 50, 3), 9, np.uint8)
    stored = np.array(sizes, np.int32)
    decode_batch(
        images,
        np.frombuffer(b"".join(files), np.uint8),
        pointers=np.concatenate([[0], np.cumsum(num_bytes)[:-1]]).astype(np.uint64),
        payload_bytes=num_bytes,
        modes=np.full(len(files), JPEG, np.uint8),
        stored_sizes=stored,
        boxes=np.concatenate([np.zeros_like(stored), stored], axis=1),
        sizes=np.full((len(files), 2), (40, 50), np.int32),
        flips=np.arange(len(files)) % 2 == 1,
        filter="bicubic",
        num_threads=num_threads,
    )
    return images


@pytest.mark.parametrize("num_threads", [2, 3, 64, 1000])
def test_threads_change_nothing(jpegs, num_threads):
    files, sizes = [file for file, _ in jpegs], [pixels.shape[:2] for _, pixels in jpegs]
    whole = batch_of(files, sizes, 1)
    assert np.array_equal(batch_of(files, sizes, num_threads), whole)
    for image, (_, pixels), flip in zip(whole, jpegs, [False, True] * len(jpegs), strict=False):
        box = (0, 0, *pixels.shape[:2])
        assert np.array_equal(image, expected(pixels, box, (40, 50), flip=flip, filter="bicubic"))


def test_an_image_without_huffman_tables_is_decoded_by_the_standard_ones(photographs):
    """As in Motion JPEG; also behind an image with tables of its own, which libjpeg would keep."""
    image = photographs["china"].resize((50, 40))
    own, standard = jpeg(image, optimize=True), jpeg(image)
    first, last = standard.index(b"\xff\xc4"), standard.rindex(b"\xff\xda")
    pixels = batch_of([own, standard], [(40, 50)] * 2, 1)
    assert np.array_equal(batch_of([own, standard[:first] + standard[last:]], [(40, 50)] * 2, 1), pixels)


@pytest.mark.parametrize("num_threads", [1, 4])
def test_the_first_damaged_image_is_named(jpegs, num_threads):
    files, sizes = [file for file, _ in jpegs], [pixels.shape[:2] for _, pixels in jpegs]
    for position in (12, 5, 9):
        files[position] = files[position][: len(files[position]) // 2]
    with pytest.raises(DecodeError, match="remature end") as caught:
        batch_of(files, sizes, num_threads)
    assert caught.value.position == 5


@pytest.mark.parametrize("progressive", [False, True])
def test_damage_is_an_error(photographs, progressive, decode_jpeg):
    file = jpeg(photographs["china"].resize((120, 80)), progressive=progressive, restart_marker_blocks=0)
    scan = file.rindex(b"\xff\xda") if not progressive else file.index(b"\xff\xda")
    with pytest.raises(DecodeError, match="remature end"):
        decode_jpeg(file[: scan + 40])
    with pytest.raises(DecodeError, match="Corrupt JPEG data"):
        decode_jpeg(file[: scan + 40] + b"\xff\xd9")  # the end marker, long before the end
    with pytest.raises(DecodeError):
        decode_jpeg(file[:100])


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "[Ee]mpty"), (b"not a picture at all", "Not a JPEG"), (b"\x89PNG\r\n\x1a\n" + bytes(50), "Not a JPEG")],
)
def test_other_files_are_refused(content, message, decode_jpeg):
    with pytest.raises(DecodeError, match=message):
        decode_jpeg(content)


def test_cmyk_is_refused(photographs, decode_jpeg):
    """prepare.py converts it; libjpeg cannot convert CMYK to RGB."""
    with pytest.raises(DecodeError, match="neither RGB nor grayscale"):
        decode_jpeg(jpeg(photographs["china"].resize((16, 16)).convert("CMYK")))


def test_a_jpeg_of_another_size_than_stored_is_refused(photographs):
    file = jpeg(photographs["china"].resize((16, 24)))
    with pytest.raises(DecodeError, match="size is not the one in the store's table"):
        decode(file, JPEG, (16, 24), (0, 0, 16, 24), (8, 8))
    with pytest.raises(DecodeError, match="not of height x width x 3 bytes"):
        decode(noise(8, 8).tobytes(), RAW, (9, 8), (0, 0, 8, 8), (8, 8))


@pytest.mark.parametrize("kind", ["baseline", "progressive", "restart markers"])
def test_flipped_bits_are_an_error_or_decode_as_in_libjpeg(photographs, kind, turbojpeg, decode_jpeg):
    """One bit in 300 places of the image data. Whatever libjpeg warns of is an error here, but for stray bytes before
    a marker; what it cannot see (a changed coefficient) is a changed picture in every decoder, and only the hashes of
    the manifest tell (prepare.py verify)."""
    image = photographs["china"].resize((160, 120))
    whole, noticed = jpeg(image, progressive=kind == "progressive", subsampling="4:2:0"), 0
    if kind == "restart markers":
        whole = indexed_jpeg(whole)
    generator = np.random.default_rng(0)
    for place in generator.integers(whole.index(b"\xff\xda") + 14, len(whole) - 2, 300):
        file = bytearray(whole)
        file[place] ^= 1 << int(generator.integers(8))
        pixels, warning = turbojpeg(bytes(file), 120, 160)
        try:
            ours = decode_jpeg(bytes(file))
        except DecodeError:
            noticed += 1
            assert warning
        else:
            assert not warning or "extraneous bytes" in warning
            assert np.array_equal(ours, pixels)
    assert noticed  # few: a Huffman stream soon falls into step again


@pytest.fixture(scope="session")
def turbojpeg():
    """turbojpeg(file, height, width) -> pixels, what libjpeg warns of ("" for nothing): another door to the library."""
    name = ctypes.util.find_library("turbojpeg")
    if name is None:
        pytest.skip("turbojpeg is not installed (Debian: libturbojpeg0)")
    library = ctypes.CDLL(name)
    library.tjInitDecompress.restype, library.tjGetErrorStr2.restype = ctypes.c_void_p, ctypes.c_char_p
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.tjDecompress2.argtypes = [pointer, ctypes.c_char_p, ctypes.c_ulong, pointer, *[number] * 5]
    library.tjGetErrorStr2.argtypes = library.tjDestroy.argtypes = [pointer]

    def decode(file: bytes, height: int, width: int) -> tuple[np.ndarray, str]:
        handle, pixels = library.tjInitDecompress(), np.empty((height, width, 3), np.uint8)
        accurate = 4096  # TJFLAG_ACCURATEDCT
        code = library.tjDecompress2(handle, file, len(file), pixels.ctypes.data, width, 0, height, 0, accurate)
        warning = library.tjGetErrorStr2(handle).decode() if code else ""
        library.tjDestroy(handle)
        return pixels, warning

    return decode


def test_harmless_irregularities_are_accepted(photographs, decode_jpeg):
    """ImageNet has files with stray bytes before or after the end marker; every decoder accepts them."""
    file = jpeg(photographs["flower"].resize((33, 21)))
    pixels = decode_jpeg(file)
    assert np.array_equal(decode_jpeg(file + bytes(100)), pixels)
    assert np.array_equal(decode_jpeg(file[:-2] + bytes(7) + file[-2:]), pixels)


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 0, 11, 5), (0, 8, 5, 3), (0, 0, 0, 5)])
def test_a_box_outside_the_image_is_an_assertion_error(box):
    with pytest.raises(AssertionError):
        decode(noise(10, 10).tobytes(), RAW, (10, 10), box, (5, 5))


@settings(max_examples=100, deadline=None)
@given(cut=cuts(), filter=st.sampled_from(FILTERS), flip=st.booleans())
def test_plain_c_equals_the_vector_code(plain_library, cut, filter, flip):
    stored_size, box, size = cut
    pixels = noise(*stored_size)
    arguments = (pixels.tobytes(), RAW, stored_size, box, size)
    ours = decode(*arguments, flip=flip, filter=filter)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "_library", lambda: plain_library)
        assert np.array_equal(decode(*arguments, flip=flip, filter=filter), ours)


def test_libjpegs_huffman_decoder_gives_the_same_pixels(plain_library, jpegs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "_library", lambda: plain_library)
        for file, pixels in jpegs:
            size = pixels.shape[:2]
            assert np.array_equal(decode(file, JPEG, size, (0, 0, *size), size), pixels)


@pytest.fixture(scope="session")
def plain_library(tmp_path_factory):
    """The decoder compiled without AVX2 code and without our Huffman decoder."""
    path = tmp_path_factory.mktemp("plain") / "decode.so"
    compile_module("_decode", path, "-O2", "-DHAVE_AVX2_CODE=0", "-DHAVE_HUFFMAN_CODE=0")
    return decoder.declare_functions(ctypes.CDLL(str(path)))


def test_sound_baseline_jpegs_are_decoded_by_our_huffman_decoder_alone(jpegs, photographs, tmp_path):
    """Without libjpeg's, which would hide a mistake of ours at half the speed. Quality 100 has codes of 16 bits."""
    compile_module("_decode", tmp_path / "decode.so", "-O2", "-DLIBJPEG_DECIDES=0")
    files = [jpeg(photographs["china"], quality=quality, optimize=quality % 2) for quality in (100, 91, 30, 1)]
    files += [indexed_jpeg(file) for file in files] + [file for file, _ in jpegs]
    library = decoder.declare_functions(ctypes.CDLL(str(tmp_path / "decode.so")))
    if not ctypes.c_int32.in_dll(library, "tencrop_decodes_huffman").value:
        pytest.skip("libjpeg's header jpegint.h is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "_library", lambda: library)
        for file in files:
            pixels = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
            size = pixels.shape[:2]
            assert np.array_equal(decode(file, JPEG, size, (0, 0, *size), size), pixels)
        with pytest.raises(DecodeError, match="irregular"):
            decode(files[0][:20000] + b"\xff\xd9", JPEG, (427, 640), (0, 0, 427, 640), (427, 640))


def compile_module(name: str, path: Path, *flags: str) -> None:
    """Build one of the C modules that read JPEGs; skip without a compiler, libjpeg headers or support for the flags."""
    compiler = os.environ.get("CC", "gcc")
    headers = "#include <stdio.h>\n#include <jpeglib.h>\nint main(void) { return 0; }\n"
    try:
        trial = [compiler, *flags, "-x", "c", "-o", str(path), "-"]
        subprocess.run(trial, input=headers, text=True, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot compile here: {error}")
    warnings = ["-Wall", "-Wextra", "-Werror"]
    command = [compiler, *flags, *warnings, "-shared", "-fPIC", "-o", str(path), str(SOURCES / f"{name}.c")]
    subprocess.run([*command, "-ljpeg", "-lm"], check=True)


def test_no_invalid_memory_access_under_sanitizers(tmp_path, jpegs):
    """Runs the C modules under the address and undefined-behavior sanitizers, in a separate process."""
    script = tmp_path / "check.py"
    for name in ("_decode", "_reduce", "_index"):
        sanitizers = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
        compile_module(name, tmp_path / f"{name}.so", "-g", "-O1", *sanitizers)
    for number, (file, _) in enumerate(jpegs):
        (tmp_path / f"{number}.jpg").write_bytes(file)
    script.write_text(SANITIZED)
    names = [f"-print-file-name=lib{name}.so" for name in ("asan", "ubsan")]
    runtime = [subprocess.check_output([os.environ.get("CC", "gcc"), name], text=True).strip() for name in names]
    environment = {
        "LD_PRELOAD": ":".join(runtime),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": str(SOURCES.parents[2]),
    }
    result = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0 and result.stdout.strip() == "sound", result.stderr[-3000:]


SANITIZED = """
import ctypes, io, pathlib, sys
import numpy as np
from PIL import Image
import tencrop.data.native.decoder as decoder
import tencrop.data.native.index as index
import tencrop.data.native.reduce as reduce

folder = pathlib.Path(sys.argv[0]).parent
decoder.load_library = reduce.load_library = index.load_library = lambda name: ctypes.CDLL(str(folder / f"{name}.so"))
generator = np.random.default_rng(0)
libc = ctypes.CDLL(None)  # malloc under the sanitizer: bytes behind a payload or a slot are out of bounds
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]


def guarded(shape):
    num_bytes = int(np.prod(shape))
    address = libc.malloc(num_bytes)
    return np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address)).reshape(shape), address


def cut(payload, mode, height, width):
    box_height, box_width = int(generator.integers(1, height + 1)), int(generator.integers(1, width + 1))
    top, left = generator.integers(0, height - box_height + 1), generator.integers(0, width - box_width + 1)
    size = [box_height, box_width] if generator.random() < 0.2 else generator.integers(1, 40, 2).tolist()
    data, data_address = guarded(len(payload))
    data[:] = np.frombuffer(payload, np.uint8)
    images, images_address = guarded((1, size[0], size[1], 3))
    try:
        decoder.decode_batch(
            images, data, pointers=np.zeros(1, np.uint64), payload_bytes=np.array([len(payload)], np.uint64),
            modes=np.array([mode], np.uint8), stored_sizes=np.array([[height, width]], np.int32),
            boxes=np.array([[top, left, box_height, box_width]], np.int32), sizes=np.array([size], np.int32),
            flips=np.array([generator.random() < 0.5]), filter=decoder.FILTERS[generator.integers(4)], num_threads=1,
        )
    except decoder.DecodeError:
        pass
    libc.free(data_address), libc.free(images_address)


def read_to_the_end(file):
    try:
        header = reduce.jpeg_header(file)
        reduce.color_sums(reduce.reduced_jpeg(file, header, int(generator.choice([1, 2, 4, 8]))))
    except decoder.DecodeError:
        pass
    try:
        index.indexed_jpeg(file)
    except decoder.DecodeError:
        pass


files = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
files += [index.indexed_jpeg(file) for file in files]
for file in files:
    width, height = Image.open(io.BytesIO(file)).size
    for number in range(40):
        damaged = bytearray(file)
        if number % 2:  # bytes changed anywhere behind the header
            for place in generator.integers(len(file) // 3, len(file), 4):
                damaged[place] = generator.integers(256)
        cut(bytes(damaged), 0, height, width)
        read_to_the_end(bytes(damaged))
for _ in range(400):
    height, width = (int(length) for length in generator.integers(1, 50, 2))
    cut(bytes(3 * height * width), 1, height, width)
for _ in range(100):  # many pixels to few: filters of many pairs at the end of a row
    cut(bytes(3 * 2 * 2000), 1, 2, 2000)
print("sound")
"""
