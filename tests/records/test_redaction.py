"""Redaction removes every credential and changes nothing else."""

import pytest

from tencrop.records.redaction import redact_arguments, redact_text, redact_values


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://user:secret@example.org/repo.git", "https://***@example.org/repo.git"),
        ("https://ghtoken@example.org/repo", "https://***@example.org/repo"),
        ("git@example.org:team/repo.git", "git@example.org:team/repo.git"),
        ("--token-file=x ghp_" + "a1" * 18, "--token-file=x ***"),
        ("data.root=/data/in@home lr=0.1", "data.root=/data/in@home lr=0.1"),
    ],
)
def test_text(text, masked):
    assert redact_text(text) == masked


def test_values_of_the_environment_and_netrc_are_recognized(monkeypatch, tmp_path):
    monkeypatch.setenv("SOME_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("SHORT_TOKEN", "yes")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine tracker.example login user password correct-horse\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert redact_text("key 0123456789abcdef, yes, correct-horse") == "key ***, yes, ***"


def test_arguments():
    given = [
        "experiment=alexnet",
        "tracker.api_key=abc",
        "--password",
        "abc",
        "model.kwargs.class_token=true",
        "-t",
        "x",
    ]
    assert redact_arguments(given) == [
        "experiment=alexnet",
        "tracker.api_key=***",
        "--password",
        "***",
        "model.kwargs.class_token=true",
        "-t",
        "x",
    ]


def test_values_keep_their_types():
    given = {"a": [1, None, 0.5, True], "data": {"source": "ftp://me:pw@h/x"}, "api_key": "abc", "num_tokens": "7"}
    assert redact_values(given) == {
        "a": [1, None, 0.5, True],
        "data": {"source": "ftp://***@h/x"},
        "api_key": "***",
        "num_tokens": "7",
    }
