"""Choose between float32 and TF32 arithmetic on a GPU; called in every process that trains or evaluates.

TF32 rounds the factors of a product from 24 significant bits to 11. By default torch allows it in cuDNN's convolutions
but not in matrix products, so "float32" would mean two things. The newer switches (fp32_precision, torch 2.9) must not
be mixed with the two used here, which torch 2.6 has as well.
"""

from __future__ import annotations

import torch


def set_precision(precision: str) -> dict[str, bool]:
    """Set this process's TF32 switches for a value of `training.precision`, and return them as read back from torch.

    Only precision=tf32 allows TF32. With bf16, the operations that autocast keeps in float32 stay in real float32.
    """
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return allow_tf32()


def allow_tf32() -> dict[str, bool]:
    """Whether matrix products and convolutions may use TF32 in this process; stored with every result."""
    return {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32}
