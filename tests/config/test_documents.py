import pytest

from tencrop.config import UserError
from tencrop.config.documents import (
    FILE_NAME,
    MAX_DEPTH,
    MAX_YAML_BYTES,
    NUMBER,
    Between,
    NotEmpty,
    check_shape,
    literal,
    read_json,
    read_yaml,
)


def read(reader, path, content: bytes, shape=object):
    path.write_bytes(content)
    return reader(path, shape, what="a document", remedy="write it again")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "Expecting value"),
        (b"\xff", "not UTF-8 at byte 0"),
        (b"9" * 5000, "an integer has 5000 digits"),
        (b"99999999999999999999", "an integer has more than 64 bits"),
        (b"[" * 100_000, f"nested more than {MAX_DEPTH} deep"),
        (b"[" * 60 + b"]" * 60, f"nested more than {MAX_DEPTH} deep"),
        (b'{"a": 1, "a": 2}', "a mapping has a duplicate key"),
        (b'"\\ud800"', "a text is not Unicode"),
        (b'"a\\u0000b"', "has a NUL in it"),
    ],
)
def test_broken_json(tmp_path, content, problem):
    with pytest.raises(UserError, match=rf"file: not a document \(.*{problem}.*\); write it again$"):
        read(read_json, tmp_path / "file", content)


BOMB = b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (i + 1, i + 1, i, i) for i in range(97, 121))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\xff", "not UTF-8 at byte 0"),
        (b"}{", "line 1"),
        (BOMB, "an anchor or alias, line 1"),
        (b"a: 1\nb: !!python/object/apply:os.system [ls]", "a tag, line 2"),
        (b"a: !!binary abc", "a tag"),
        (b"[" * 10_000, f"nested more than {MAX_DEPTH} deep"),
        (b"a: 1\nb: 2\na: 3", "a mapping has a duplicate key"),
        (b"a: " + b"9" * 5000, "5000 digits"),
        (b"1: a", "a key is not text"),
        (b"? [a]\n: b", "unhashable key"),
        (b"a: 0b_", "invalid literal"),
        (b"#" * (MAX_YAML_BYTES + 1), "larger than 262,144 bytes"),
        (b"--- a\n--- b", "another document"),
    ],
)
def test_broken_yaml(tmp_path, content, problem):
    with pytest.raises(UserError, match=rf"file: not a document \(.*{problem}.*\); write it again$"):
        read(read_yaml, tmp_path / "file", content)


def test_yaml_is_read_as_plain_data(tmp_path):
    content = b"a: ${oc.env:HOME}\nb: 2026-11-25\n_target_: os.system\n<<: {c: 1.0e-05}\n"
    value = {"a": "${oc.env:HOME}", "b": "2026-11-25", "_target_": "os.system", "<<": {"c": 1e-5}}
    assert read(read_yaml, tmp_path / "file", content) == value


@pytest.mark.parametrize("reader", [read_json, read_yaml])
def test_missing_files_and_folders_are_refused(tmp_path, reader):
    with pytest.raises(UserError, match="it is missing"):
        reader(tmp_path / "none", object, what="a document", remedy="write it")
    with pytest.raises(UserError, match="it is no file"):
        reader(tmp_path, object, what="a document", remedy="write it")


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (1, float),
        (None, (str, None)),
        ("b", {"a", "b"}),
        ("\udcff", FILE_NAME),
        (float("nan"), NUMBER),
        (0.5, Between(0.0, 1.0)),
        (1, Between(0.0, 1.0)),
        ([], [int]),
        ([1], NotEmpty(int)),
        ([1, "a"], [int, str]),
        ({"a": 1, "other": 2}, {"a": int, "b?": int}),
        ({"a": 1, "b": 2}, {str: int}),
    ],
)
def test_shapes(value, shape):
    check_shape(value, shape)


@pytest.mark.parametrize(
    ("value", "shape", "problem"),
    [
        (True, int, "it must be an integer, not true"),
        (1.0, int, "it must be an integer, not 1.0"),
        ("1", float, 'it must be a finite number, not "1"'),
        (float("inf"), float, "must be a finite number"),
        ("\udcff", str, "must be text"),
        (1, (str, None), "it must be text or null, not 1"),
        ("c", {"a", "b"}, "it must be a or b"),
        (["a"], {"a", "b"}, "it must be a or b, not a list"),
        (2, Between(0, 1), "from 0 to 1"),
        (0.5, Between(0, 1), "from 0 to 1"),
        (float("nan"), Between(0.0, 1.0), "from 0.0 to 1.0"),
        ([], NotEmpty(int), "a list that is not empty"),
        ([1, 2], [int, int, int], "is a list of 2 and must be a list of 3"),
        ({"a": [{"b": "x"}]}, {"a": [{"b": int}]}, r"a\[0\]\.b must be an integer"),
        ({"a": {}}, {"a": {"b": int}}, "a.b is missing"),
        ([], {"a": int}, "it must be a mapping, not a list"),
        ({}, [int], "it must be a list, not a mapping"),
        ({"a": {"b": "x"}}, {"a": {str: int}}, "a.b must be"),
    ],
)
def test_other_shapes(value, shape, problem):
    with pytest.raises(ValueError, match=problem):
        check_shape(value, shape)


def test_literal_text_is_not_interpolated():
    from omegaconf import OmegaConf

    texts = ["${a}", r"\${a}", r"\\${a}", "a\\", r"x\y${z", "${", "$${a}", "${oc.env:HOME}/b\\", "plain"]
    node = OmegaConf.create({"a": 1, "texts": literal(texts), "mapping": literal({"key": texts})})
    values = OmegaConf.to_container(node, resolve=True)
    assert values == {"a": 1, "texts": texts, "mapping": {"key": texts}}
