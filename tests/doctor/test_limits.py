"""Limits of files, locked memory and shared memory, planted."""

import resource

import pytest

from tencrop.doctor.limits import Limits, judge_limits, read_limits


def states(limits: Limits, *, num_local_ranks=8, is_gpu=True, loader="beton") -> dict[str, str]:
    found = judge_limits(limits, num_local_ranks=num_local_ranks, is_gpu=is_gpu, loader=loader)
    assert all(finding.remedy for finding in found if finding.state != "ok")
    return {finding.check: finding.state for finding in found}


def planted(*, open_files=65_536, locked_bytes=None, free_shared_bytes=8 << 30, has_infiniband=False) -> Limits:
    return Limits(open_files, locked_bytes, free_shared_bytes, has_infiniband)


@pytest.mark.parametrize(("limit", "state"), [(65_536, "ok"), (1024, "warning"), (128, "error")])
def test_open_files(limit, state):
    assert states(planted(open_files=limit))["open files"] == state


@pytest.mark.parametrize(("limit", "state"), [(None, "ok"), (8 << 30, "warning"), (64 << 10, "error")])
def test_locked_memory_matters_with_infiniband_only(limit, state):
    assert states(planted(locked_bytes=limit, has_infiniband=True))["locked memory"] == state
    assert states(planted(locked_bytes=limit, has_infiniband=False))["locked memory"] == "ok"
    assert states(planted(locked_bytes=limit, has_infiniband=True), is_gpu=False)["locked memory"] == "ok"


@pytest.mark.parametrize(
    ("free", "state"), [(8 << 30, "ok"), (512 << 20, "warning"), (63 << 20, "error"), (None, "error")]
)
def test_shared_memory_matters_for_several_gpus_and_the_torch_loader(free, state):
    limits = planted(free_shared_bytes=free)
    assert states(limits)["shared memory"] == state
    assert states(limits, num_local_ranks=1)["shared memory"] == "ok"
    assert states(limits, num_local_ranks=1, loader="torch")["shared memory"] == state


def test_the_limits_read_are_those_of_this_process():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        assert read_limits().open_files == soft - 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
