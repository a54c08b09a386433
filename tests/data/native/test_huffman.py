"""The Huffman decoder of _huffman.h against libjpeg's: on JPEGs of random legal codes, and on damaged ones."""

import ctypes
import random
from collections.abc import Callable

import pytest

import tencrop.data.native.decoder as decoder
from data.native.test_decoder import compile_module, decode, jpeg
from tencrop.data.native.decoder import DecodeError
from tencrop.data.native.index import indexed_jpeg
from tencrop.data.native.reduce import jpeg_header
from tencrop.data.store.beton import JPEG

Outcome = tuple[str, bytes]  # the error or "", and the pixels
Code = dict[int, str]  # the bits of each symbol
# Horizontal and vertical sampling factors of each component, a byte each.
SAMPLINGS = [bytes.fromhex(factors) for factors in ("11", "111111", "211111", "221111", "411111", "121111", "222112")]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory) -> dict[str, ctypes.CDLL]:
    """The decoder as installed ("both"), without libjpeg's second try ("ours"), and without ours ("libjpeg")."""
    folder, built = tmp_path_factory.mktemp("huffman"), {"both": decoder._library()}
    for name, flag in (("ours", "-DLIBJPEG_DECIDES=0"), ("libjpeg", "-DHAVE_HUFFMAN_CODE=0")):
        compile_module("_decode", folder / f"{name}.so", "-O1", flag)
        built[name] = decoder.declare_functions(ctypes.CDLL(str(folder / f"{name}.so")))
    if not ctypes.c_int32.in_dll(built["ours"], "tencrop_decodes_huffman").value:
        pytest.skip("libjpeg's header jpegint.h is not installed")
    return built


@pytest.fixture
def outcomes(libraries, monkeypatch) -> Callable[[bytes, random.Random], dict[str, Outcome]]:
    """outcomes(file, rng) -> what each library makes of the whole file or of a random box."""

    def decode_by_all(file: bytes, rng: random.Random) -> dict[str, Outcome]:
        try:
            height, width, _ = jpeg_header(file)
        except DecodeError:
            height, width = 8, 8
        size = height, width = min(height, 200), min(width, 200)  # damage may have changed it
        box = (0, 0, height, width)
        if rng.random() < 0.5:
            top, left = rng.randrange(height), rng.randrange(width)
            box = (top, left, rng.randint(1, height - top), rng.randint(1, width - left))
        found = {}
        for name, library in libraries.items():
            monkeypatch.setattr(decoder, "_library", lambda library=library: library)
            try:
                found[name] = "", decode(file, JPEG, size, box, box[2:]).tobytes()
            except DecodeError as error:
                found[name] = str(error), b""
        return found

    return decode_by_all


def random_code(symbols: list[int], rng: random.Random) -> Code:
    """A canonical code of up to 16 bits in which no symbol's bits are all ones (ITU-T T.81, annex C)."""
    lengths = [0]
    prefers_long = rng.random() < 0.5
    while len(lengths) <= len(symbols):  # split a leaf of the tree in two
        shorter = [place for place, length in enumerate(lengths) if length < 16]
        place = max(shorter, key=lengths.__getitem__) if prefers_long and rng.random() < 0.3 else rng.choice(shorter)
        lengths += [lengths.pop(place) + 1] * 2
    code, bits, before = {}, -1, 0
    for symbol, length in zip(rng.sample(symbols, len(symbols)), sorted(lengths), strict=False):
        bits = (bits + 1) << (length - before)
        code[symbol], before = f"{bits:0{length}b}", length
    return code


def random_block(dc: Code, ac: Code, last_dc: int, rng: random.Random) -> tuple[str, int]:
    """The bits of a block of random coefficients, and its DC coefficient, which fits 16 bits."""
    size = rng.choice(list(dc))
    value = rng.getrandbits(size)
    difference = value - (0 if size == 0 or value >> (size - 1) else (1 << size) - 1)
    if abs(last_dc + difference) > 32767:
        size = difference = 0
    bits, place, end = dc[size] + digits(value, size), 1, rng.choice((1, 4, 20, 64))
    while place < 64:
        symbol = rng.choice(list(ac)) if place < end else 0
        run, size = symbol >> 4, symbol & 15
        if place + run > 63 or (size == 0 and run < 15):
            return bits + ac[0], last_dc + difference
        bits += ac[symbol] + digits(rng.getrandbits(size), size)
        place += run + 1
    return bits, last_dc + difference


def digits(value: int, size: int) -> str:
    return f"{value:0{size}b}" if size else ""


def entropy_coded(bits: str) -> bytes:
    """Padded with ones, and a zero stuffed behind each 0xFF."""
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def random_jpeg(rng: random.Random) -> bytes:
    """A legal baseline JPEG of noise with random Huffman codes, sampling factors and restart interval."""
    samplings, height, width = rng.choice(SAMPLINGS), rng.randint(1, 50), rng.randint(1, 60)
    file = b"\xff\xd8" + segment(0xDB, b"\x00" + bytes([1] * 64))
    planes = b"".join(bytes([i, sampling, 0]) for i, sampling in enumerate(samplings))
    size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    file += segment(0xC0, b"\x08" + size + bytes([len(samplings)]) + planes)
    dc = random_code([0, *rng.sample(range(1, 16), rng.randint(1, 15))], rng)
    ac = random_code([0, 0xF0, *rng.sample(range(1, 0xF0), rng.choice((2, 30, 160)))], rng)
    for table, code in ((b"\x00", dc), (b"\x10", ac)):
        lengths = [len(bits) for bits in code.values()]
        file += segment(0xC4, table + bytes(lengths.count(length) for length in range(1, 17)) + bytes(code))
    num_blocks = [(sampling >> 4) * (sampling & 15) for sampling in samplings]
    widest, highest = max(sampling >> 4 for sampling in samplings), max(sampling & 15 for sampling in samplings)
    num_columns = -(-width // (8 * widest))
    num_mcus = num_columns * -(-height // (8 * highest))
    interval = rng.choice((num_mcus, 1, 3, num_columns))  # of restart markers, in MCUs
    if interval < num_mcus:
        file += segment(0xDD, interval.to_bytes(2, "big"))
    tables = b"".join(bytes([i, 0]) for i in range(len(samplings)))
    file += segment(0xDA, bytes([len(samplings)]) + tables + b"\x00\x3f\x00")
    for number, first in enumerate(range(0, num_mcus, interval)):
        bits, last_dc = "", [0] * len(samplings)
        for _ in range(min(interval, num_mcus - first)):
            for component, count in enumerate(num_blocks):
                for _ in range(count):
                    block, last_dc[component] = random_block(dc, ac, last_dc[component], rng)
                    bits += block
        file += (bytes([0xFF, 0xD0 + (number - 1) % 8]) if number else b"") + entropy_coded(bits)
    return file + b"\xff\xd9"


def test_legal_codes_are_decoded_by_ours_as_by_libjpeg(outcomes):
    """Among them codes of 16 bits with values of 15, which no encoder of photographs writes."""
    for seed in range(80):
        rng = random.Random(seed)
        file = random_jpeg(rng)
        for _ in range(3):
            found = outcomes(file, rng)
            assert found["ours"] == found["libjpeg"] and not found["ours"][0], seed


def damaged(file: bytes, rng: random.Random) -> bytes:
    """Flipped bits, bytes cut out or inserted, another marker, a cut end, or noise; mostly in the scan."""
    start = file.rindex(b"\xff\xda") if rng.random() < 0.8 else 2
    at, changed = rng.randrange(start, len(file)), bytearray(file)
    match rng.randrange(6):
        case 0:
            changed[at] ^= 1 << rng.randrange(8)
        case 1:
            del changed[at : at + rng.randint(1, 3)]
        case 2:
            changed[at:at] = rng.randbytes(rng.randint(1, 3))
        case 3:
            changed[at:at] = bytes([0xFF, rng.choice((0, 1, 0xC4, *range(0xD0, 0xDE), 0xFE, 0xFF))])
        case 4:
            changed[at:] = rng.choice((b"", b"\xff", b"\xff\xff", b"\xff\xd9"))
        case 5:
            changed[at : at + 20] = rng.randbytes(20)
    return bytes(changed)


def test_damage_is_what_libjpeg_says(outcomes, photographs):
    """The same pixels or the same error as from libjpeg alone, though most damages are met by ours first."""
    image = photographs["china"].resize((75, 50))
    files = [jpeg(image, subsampling=kind, quality=quality) for kind, quality in (("4:2:0", 60), ("4:4:4", 97))]
    files += [jpeg(image, restart_marker_blocks=2), jpeg(image.convert("L")), indexed_jpeg(files[0])]
    files += [random_jpeg(random.Random(seed)) for seed in range(15)]
    num_by_ours = num_errors = 0
    for number in range(1000):
        rng = random.Random(number)
        found = outcomes(damaged(rng.choice(files), rng), rng)
        assert found["both"] == found["libjpeg"], number
        if found["ours"][0] == "":
            assert found["ours"] == found["libjpeg"], number
            num_by_ours += 1
        num_errors += found["libjpeg"][0] != ""
    assert num_by_ours > 100 and num_errors > 100


def test_a_file_that_ends_in_fill_bytes_is_damaged_as_in_libjpeg(outcomes, photographs):
    """All blocks are there, but 0xFF may stand any number of times before a marker, and the marker is missing."""
    file = jpeg(photographs["china"].resize((20, 30)))
    found = outcomes(file[:-1] + b"\xff", random.Random(0))
    assert found["both"] == found["libjpeg"] == ("Premature end of JPEG file", b"")
