"""A store that is truncated while it is mapped ends the process with an error that names it, and exit code 2."""

import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tencrop.config import Protocol, UserError
from tencrop.data.augmentation.plan import evaluation_plan
from tencrop.data.loading.reference import TorchLoader
from tencrop.data.store.manifest import open_split

PROTOCOL = Protocol("center", side=40, size=32, region="whole", filter="bilinear", average="softmax")

BEGINNING = """
import os, sys
from pathlib import Path
import numpy as np
from tencrop.data.store.manifest import open_split
from tencrop.data.native.mapped import watch
root = Path(sys.argv[1])
split = open_split(root, "train")
beton = split.beton
"""
READERS = {
    "a payload": ("train.beton", "split.beton.payload(3).tobytes()"),
    "a label": ("train.beton", "split.labels[3]"),
    "a name": ("train.files.npy", "split.names(3)"),
    "the sizes of the original files": ("train.files.npy", "split.original_sizes"),
    "threads of the decoder": (
        "train.beton",
        "from tencrop.data.native.decoder import decode_batch\n"
        "boxes, sizes = np.tile(np.int32([0, 0, 1, 1]), (24, 1)), np.ones((24, 2), np.int32)\n"
        "decode_batch(np.zeros((24, 1, 1, 3), np.uint8), beton.data, pointers=pointers, payload_bytes=num_bytes,\n"
        "    modes=modes, stored_sizes=split.stored_sizes, boxes=boxes, sizes=sizes,\n"
        "    flips=np.zeros(24, bool), filter='bilinear', num_threads=4)",
    ),
    "verification": (
        "val.beton",
        "import tencrop.data.preparation.verify as module\n"
        "fingerprint = module.store_fingerprint\n"
        "def cut(table, options):\n"
        "    if len(table) == 12: os.truncate(root / 'val.beton', 0)\n"
        "    return fingerprint(table, options)\n"
        "module.store_fingerprint = cut\n"
        "module.verify(root, num_threads=2, progress=False)",
    ),
}


def ended(code: str, root: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", BEGINNING + code, str(root)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def root(prepared_photos, tmp_path):
    return Path(shutil.copytree(prepared_photos, tmp_path / "data"))


@pytest.mark.parametrize("reader", READERS)
def test_reading_a_truncated_file_ends_with_an_error_message(reader, root):
    file, code = READERS[reader]
    kept = "pointers, num_bytes, modes = (np.array(a) for a in (beton.pointers, beton.payload_bytes, beton.modes))\n"
    cut = "" if reader == "verification" else f"os.truncate(root / '{file}', 0)\n"
    done = ended(f"{kept}{cut}{code}", root)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: {root / file}: has become shorter while it was read; delete ")
    assert done.stderr.count("\n") == 1 and done.stdout == ""


def test_a_failing_disk_is_reported(root, tmp_path):
    """The file still has its size, so the page exists but could not be read."""
    done = ended(
        "data = np.memmap(root / 'mean_image.npy', np.uint8, mode='r')\n"
        "watch(data, root / 'manifest.json', remedy='')\n"
        "os.truncate(root / 'manifest.json', 10**9)\n"
        "os.truncate(root / 'mean_image.npy', 0)\n"
        "data[0]",
        root,
    )
    assert done.returncode == 2 and done.stderr.startswith("error: the disk or file server failed to read")
    assert str(root / "manifest.json") in done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "data = np.memmap(root / 'mean_image.npy', np.uint8, mode='r')\nos.truncate(data.filename, 0)\ndata[0]",
        f"os.kill(os.getpid(), {int(signal.SIGBUS)})",
    ],
    ids=["another file", "sent by a process"],
)
def test_other_sigbus_signals_keep_their_effect(code, root):
    done = ended(code, root)
    assert (done.returncode, done.stderr) == (-signal.SIGBUS, "")


def test_unmapped_files_are_no_longer_watched(root):
    """More often than there are entries; a view keeps its file mapped and watched."""
    done = ended(
        "for _ in range(600):\n"
        "    watch(np.memmap(root / 'mean_image.npy', np.uint8, mode='r'), root / 'mean_image.npy', remedy='')\n"
        "labels = open_split(root, 'val').labels\n"
        "os.truncate(root / 'val.beton', 0)\n"
        "labels[0]",
        root,
    )
    assert done.returncode == 2 and f"error: {root / 'val.beton'}: has become shorter" in done.stderr


def test_the_reference_loader_checks_sizes_before_each_batch(root):
    """Its workers check, because torch installs a SIGBUS handler of its own there."""
    split = open_split(root, "train")
    plan = partial(evaluation_plan, stored_sizes=split.stored_sizes, protocol=PROTOCOL)
    loader = TorchLoader(split, lambda _: [np.arange(2)] * 3, lambda i, _: plan(i), filter="bilinear", num_threads=0)
    with loader, pytest.raises(UserError, match=r"train\.files\.npy: has 0 bytes and not the"):
        for number, _ in enumerate(loader.batches(0)):
            assert number == 0
            os.truncate(root / "train.files.npy", 0)
