import hashlib
import io
import os
import stat
import tarfile
import zipfile

import pytest

from tencrop.config import UserError
from tencrop.data.sources.archives import check_md5, small_files, tar_members, zip_members
from tencrop.data.sources.source import TAR, ZIP, SourceFile, SourceLocation, read_original


def tar_bytes(*members: tuple[str, bytes, bytes]) -> bytes:
    """A tar of (name, content, type)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content, kind in members:
            entry = tarfile.TarInfo(name)
            entry.type, entry.size, entry.linkname = kind, len(content), "target"
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


FILES = [("a/1.JPEG", b"first" * 300, tarfile.REGTYPE), ("./b.JPEG", b"second", tarfile.REGTYPE)]


def test_members_are_at_their_offsets(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes(("a", b"", tarfile.DIRTYPE), *FILES))
    members = list(tar_members(path))
    assert [member.name for member in members] == ["a/1.JPEG", "b.JPEG"]
    place = SourceLocation(str(tmp_path), {"train": "a.tar"}, {"train": TAR})
    for member, (_, content, _) in zip(members, FILES, strict=True):
        assert member.num_bytes == len(content)
        assert read_original(place, "train", SourceFile("c/x", 0, member.num_bytes, member.offset)) == content


def test_a_tar_within_a_tar(tmp_path):
    path = tmp_path / "outer.tar"
    inner = tar_bytes(*FILES)
    path.write_bytes(tar_bytes(("x", b"0", tarfile.REGTYPE), ("inner.tar", inner, tarfile.REGTYPE)))
    outer = list(tar_members(path))
    members = list(tar_members(path, outer[1]))
    content = path.read_bytes()
    assert [content[m.offset : m.offset + m.num_bytes] for m in members] == [content for _, content, _ in FILES]


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.JPEG", "a/../../x.JPEG", "..", "a\\..\\x"])
def test_names_that_lead_outside_are_refused(tmp_path, name):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes((name, b"x", tarfile.REGTYPE)))
    with pytest.raises(UserError, match=r"a\.tar: the name of member .* leads outside of the archive"):
        list(tar_members(path))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(UserError, match=r"a\.zip: the name of member .* leads outside of the archive"):
        list(zip_members(tmp_path / "a.zip"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes(("x.JPEG", b"", kind)))
    for read in (lambda: list(tar_members(path)), lambda: small_files(path, wanted=lambda name: True)):
        with pytest.raises(UserError, match=r"x\.JPEG is a link, a device or sparse; archive plain files only"):
            read()


def test_links_in_a_zip_are_refused(tmp_path):
    entry = zipfile.ZipInfo("x.JPEG")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(UserError, match=r"x\.JPEG is a link"):
        list(zip_members(tmp_path / "a.zip"))


@pytest.mark.parametrize("num_bytes", [100, 600, 1500, 2048, 2300, 3072])
def test_truncated_tars_are_refused(tmp_path, num_bytes):
    """Within a header, within a file, between two files, within the second header, before the end marker."""
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes(*FILES)[:num_bytes])
    with pytest.raises(
        UserError, match=r"a\.tar: (truncated within a/1\.JPEG|not a tar archive, or damaged|damaged or trunc)"
    ):
        list(tar_members(path))


def test_a_damaged_header_is_not_the_end(tmp_path):
    path = tmp_path / "a.tar"
    content = bytearray(tar_bytes(*FILES))
    content[2048] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged or truncated after byte 2048"):
        list(tar_members(path))


def test_files_that_are_not_archives_are_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"<html>404 Not Found</html>" * 100)
    with pytest.raises(UserError, match="not a tar archive, or damaged"):
        list(tar_members(tmp_path / "a"))
    with pytest.raises(UserError, match="not a tar archive, or damaged"):
        small_files(tmp_path / "a", wanted=lambda name: True)
    with pytest.raises(UserError, match="not a zip archive, or truncated"):
        list(zip_members(tmp_path / "a"))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_members_are_read_by_their_offset(tmp_path, method):
    contents = {"d/a.txt": b"some text " * 20_000, "d/b.JPEG": os.urandom(100_000), "empty": b""}
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    place = SourceLocation(str(tmp_path), {"val": "a.zip"}, {"val": ZIP})
    members = {member.name: member for member in zip_members(tmp_path / "a.zip")}
    assert members.keys() == contents.keys()
    for name, (_, offset, num_bytes) in members.items():
        assert read_original(place, "val", SourceFile("c/x", 0, num_bytes, offset)) == contents[name]
    wrong = SourceFile("c/x", 0, members["d/a.txt"].num_bytes, members["d/a.txt"].offset + 1)
    with pytest.raises(UserError, match="c/x is no longer at its offset"):
        read_original(place, "val", wrong)


def test_an_archive_that_is_gone(tmp_path):
    place = SourceLocation(str(tmp_path), {"val": "a.tar"}, {"val": TAR})
    with pytest.raises(UserError, match=r"a\.tar: the archive is gone"):
        read_original(place, "val", SourceFile("c/x", 0, 1, 0))
    (tmp_path / "a.tar").write_bytes(b"12345")
    with pytest.raises(UserError, match="c/x is no longer at its offset, or the archive is truncated"):
        read_original(place, "val", SourceFile("c/x", 0, 4, 3))


def test_md5(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 5_000_000)
    read: list[int] = []
    check_md5(path, hashlib.md5(b"x" * 5_000_000).hexdigest(), read.append)
    assert sum(read) == 5_000_000
    with pytest.raises(UserError, match=r"its MD5 is .*, but 0 was published; download it again"):
        check_md5(path, "0")
