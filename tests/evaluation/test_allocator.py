"""evaluation/allocator.py: freed memory is used again without page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from tencrop.evaluation.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
for number in range(60):
    if number == 30:  # before, small objects between the blocks make the heap grow a few times
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 * 2**20)  # 64 MB, freed at once
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_used_again_without_page_faults():
    def faults(word: str) -> int:
        return int(subprocess.run([sys.executable, "-c", FAULTS, word], check=True, capture_output=True).stdout)

    assert faults("keep") < faults("default") / 10
