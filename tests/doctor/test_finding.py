"""Problems become findings, and the findings of several nodes one list."""

import errno

import pytest

from tencrop.config import UserError
from tencrop.doctor.finding import attempt, error, merged, ok, warning
from typed import present


def test_a_users_mistake_and_a_disks_error_become_errors_with_their_remedy():
    def refuse():
        raise UserError("data.root=x: holds no prepared data; prepare it with: prepare.py")

    assert attempt("data", refuse) == [
        error("data", "data.root=x: holds no prepared data", "prepare it with: prepare.py")
    ]

    def full():
        raise OSError(errno.ENOSPC, "No space left", "/runs/x")

    (found,) = attempt("runs", full)
    assert (found.state, found.text) == ("error", "the disk is full (/runs/x)") and "make room" in present(found.remedy)


def test_an_unknown_exception_is_ours_and_is_raised():
    with pytest.raises(ZeroDivisionError):
        attempt("data", lambda: [ok("data", str(1 // 0))])


def test_equal_findings_of_nodes_are_stated_once():
    same, of_b = ok("versions", "torch 2"), warning("clocks", "late", "chrony")
    found = merged({"a": [same], "b": [same, of_b]})
    assert [(finding.check, finding.hosts) for finding in found] == [("versions", ("a", "b")), ("clocks", ("b",))]


def test_nodes_with_other_versions_are_an_error():
    found = merged({"a": [ok("versions", "torch 2.6")], "b": [ok("versions", "torch 2.7")]})
    assert [finding.state for finding in found] == ["ok", "ok", "error"]
    assert found[-1].text == "differ between the nodes"
