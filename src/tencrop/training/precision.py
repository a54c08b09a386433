"""What float32 means on a GPU: all 24 bits of each factor, or TF32's 11. Set in every process that trains or evaluates.

torch lets cuDNN's convolutions round their factors to TF32 unless told otherwise, and matrix products not. Its newer
switches (fp32_precision, torch 2.9) must not be mixed with these two, which torch 2.6 knows as well.
"""

from __future__ import annotations

import torch


def set_precision(precision: str) -> dict[str, bool]:
    """Sets the process's switches for a `training.precision`, and returns them as `allow_tf32` reads them back.

    TF32 is for tf32 alone: under bf16, too, what autocast leaves in float32 is computed in float32.
    """
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return allow_tf32()


def allow_tf32() -> dict[str, bool]:
    """Whether matrix products and convolutions may use TF32 in this process, for records."""
    return {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32}
