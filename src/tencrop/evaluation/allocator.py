"""Keep freed memory in the process, so that a network's next layer or batch writes to pages that exist already.

In inference every activation is freed right after the next layer. By default glibc gives blocks above 32 MB back to the
kernel at once, which clears every page again at the next layer: 8,000 page faults an image in EfficientNet-Lite0, at 32
images a batch, and about as much time in the kernel as in the network. `python bench/evaluation.py` measures it.
"""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD = -1  # parameters of mallopt, from glibc's malloc.h
M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Make malloc take large blocks from the heap and never shrink it; returns False where libc is not glibc.

    The cost: resident memory stays at its maximum, and blocks of varying sizes leave gaps. Not for training, whose
    gradients and activations live side by side: ResNet-18 at 32 images took 30% more memory and no less time.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Not M_MMAP_THRESHOLD: glibc rejects values above 32 MB in some versions, and activations are larger.
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
