import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tencrop.config import UserError
from tencrop.data.preparation.prepare import open_source
from tencrop.data.sources.folder import FolderSource, format_counts
from tencrop.data.sources.source import SourceFile, read_file


def tree(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


@pytest.fixture
def open_folder(data_config, tmp_path):
    """open_folder(...) -> FolderSource of tmp_path/source; keywords are `data_config`'s."""
    return lambda **options: FolderSource(data_config(tmp_path / "source", tmp_path / "root", **options))


def test_sample_index_is_the_bytewise_rank(tmp_path, open_folder):
    """By class, then file: upper case before lower case, 10 before 9, an accent after z."""
    names = ["train/b/10.jpg", "train/b/9.jpg", "train/B/z.jpg", "train/B/é.jpg", "train/a-1/0.png", "train/a/0.png"]
    tree(tmp_path / "source", *names, "val/a/1.jpg", "val/a-1/1.jpg", "val/B/1.jpg", "val/b/1.jpg")
    source = open_folder()
    assert source.classes == ["B", "a", "a-1", "b"]
    assert [(file.name, file.label) for file in source.files["train"]] == [
        ("B/z.jpg", 0),
        ("B/é.jpg", 0),
        ("a/0.png", 1),
        ("a-1/0.png", 2),
        ("b/10.jpg", 3),
        ("b/9.jpg", 3),
    ]
    assert source.files["train"][0].num_bytes == len("train/B/z.jpg")
    assert source.read("train", SourceFile("b/9.jpg", 3, 0)) == b"train/b/9.jpg"


def test_only_images_count(tmp_path, open_folder):
    """Images may be in subfolders of a class; hidden files, other extensions and loose files are ignored."""
    tree(tmp_path / "source", "train/a/images/1.JPEG", "train/a/2.webp", "train/a/notes.txt", "train/a/.3.jpg")
    tree(tmp_path / "source", "train/README.md", "train/.cache/1.jpg", "val/a/1.jpg")
    assert [file.name for file in open_folder().files["train"]] == ["a/2.webp", "a/images/1.JPEG"]


def test_what_is_left_out_is_counted(tmp_path, open_folder):
    """Thumbnails of a file server, files of macOS and Windows, extensions that torchvision ignores."""
    tree(tmp_path / "source", "train/a/1.JPEG", "train/a/@eaDir/1.JPEG/SYNOPHOTO_THUMB_M.jpg", "train/@eaDir/2.jpg")
    tree(tmp_path / "source", "train/a/._1.JPEG", "train/a/.DS_Store", "train/.cache/1.jpg", "train/a/__MACOSX/1.jpg")
    tree(
        tmp_path / "source", "train/a/Thumbs.db", "train/a/deep/2.jfif", "train/a/3.JPE", "train/a/4", "train/a/im.0001"
    )
    tree(tmp_path / "source", "train/README.md", "val/a/1.jpg", "val/labels.csv")
    source = open_folder()
    assert source.classes == ["a"]
    assert [file.name for file in source.files["train"]] == ["a/1.JPEG"]
    assert source.left_out == {
        "train": {
            "@eaDir": 2,
            "hidden": 3,
            "__MACOSX": 1,
            ".db": 1,
            ".jfif": 1,
            ".jpe": 1,
            "without an ending": 2,
            ".md": 1,
        },
        "val": {".csv": 1},
    }


def test_counts_in_words():
    assert format_counts(Counter({".jfif": 1200, "hidden": 1, ".db": 1})) == "1,200 .jfif, 1 .db, 1 hidden"
    assert format_counts(Counter({".a": 3, ".b": 2, ".c": 1, ".d": 1}), most=2) == "3 .a, 2 .b, 2 of 2 other endings"


def test_a_class_of_endings_that_are_left_out(tmp_path, open_folder):
    tree(tmp_path / "source", "train/a/1.jfif", "train/a/2.jfif", "val/a/1.jpg")
    with pytest.raises(UserError, match=r"train/a: the class folder has no image \(\.jpg .*\), but 2 \.jfif; add"):
        open_folder()


@pytest.mark.parametrize("name", ["data/train-00000-of-00294.parquet", "x.arrow", "data/train_images_0.tar.gz"])
@pytest.mark.parametrize("data", ["imagefolder", "imagenet", "tiny_imagenet"])
def test_hugging_faces_layout_is_named(tmp_path, data_config, name, data):
    tree(tmp_path / "source", name)
    with pytest.raises(UserError, match=rf"source/{name}: Hugging Face's layout .* is not read; write its images"):
        open_source(data_config(tmp_path / "source", tmp_path / "root", name=data))


def test_a_table_beside_folders_is_not_hugging_faces_layout(tmp_path, open_folder):
    tree(tmp_path / "source", "train/a/1.jpg", "valid/a/1.jpg", "labels.parquet")
    with pytest.raises(UserError, match=r"data\.splits\.val=val: .*/val does not exist \(.* has train, valid\)"):
        open_folder()


def test_splits_may_be_the_source_itself(tmp_path, open_folder):
    tree(tmp_path / "source", "a/1.jpg", "b/1.jpg")
    source = open_folder(splits=(".", "."))
    assert source.files["train"] == source.files["val"]
    assert source.classes == ["a", "b"]


def test_empty_class_folder(tmp_path, open_folder):
    tree(tmp_path / "source", "train/a/1.jpg", "train/b/notes.txt", "val/a/1.jpg", "val/b/1.jpg")
    with pytest.raises(UserError, match=r"train/b: the class folder has no image \(\.jpg .* remove the folder"):
        open_folder()


def test_missing_split(tmp_path, open_folder):
    tree(tmp_path / "source", "train/a/1.jpg", "test/a/1.jpg")
    with pytest.raises(UserError, match=r"data\.splits\.val=val: .*/val does not exist \(.* has test, train\)"):
        open_folder()
    assert open_folder(splits=("train", "test")).classes == ["a"]


def test_no_class_folders(tmp_path, open_folder):
    tree(tmp_path / "source", "train/1.jpg", "val/1.jpg")
    with pytest.raises(UserError, match=r"data\.splits\.train=train: .*/train has no class folders"):
        open_folder()


def test_classes_of_the_splits_differ(tmp_path, open_folder):
    tree(tmp_path / "source", "train/a/1.jpg", "train/b/1.jpg", "train/c/1.jpg", "val/a/1.jpg")
    with pytest.raises(UserError, match="class folder b and 1 more of the train split has no counterpart in val"):
        open_folder()
    tree(tmp_path / "source", "val/b/1.jpg", "val/c/1.jpg", "val/d/1.jpg")
    with pytest.raises(UserError, match="class folder d of the val split has no counterpart in train"):
        open_folder()


def test_names_that_differ_only_in_unicode_normalization_are_reported(tmp_path, open_folder):
    composed, decomposed = "caf\u00e9 d'or", "cafe\u0301 d'or"
    tree(tmp_path / "source", f"train/{composed}/1.jpg", "train/a/1.jpg", f"val/{decomposed}/1.jpg", "val/a/1.jpg")
    with pytest.raises(UserError, match=r"looks like .* of val, but its accents are encoded differently") as error:
        open_folder()
    remedy = str(error.value).partition("type: ")[2]
    subprocess.run(["bash", "-c", remedy], cwd=tmp_path / "source" / "val", check=True)
    assert open_folder().classes == ["a", composed]


def test_number_of_classes_differs(tmp_path, open_folder):
    tree(tmp_path / "source", "train/a/1.jpg", "val/a/1.jpg")
    with pytest.raises(UserError, match=r"data\.num_classes=1000: .* has 1 class folders"):
        open_folder(num_classes=1000)


def test_no_source(data_config, tmp_path):
    with pytest.raises(UserError, match=r"python prepare\.py data=imagefolder data\.source=FOLDER_OF_IMAGES"):
        FolderSource(data_config(None, tmp_path))
    with pytest.raises(UserError, match=r"data\.source=/nowhere: there is no such folder"):
        FolderSource(data_config("/nowhere", tmp_path))


def test_file_that_is_gone(tmp_path):
    with pytest.raises(UserError, match="the original file is gone"):
        read_file(tmp_path / "a.jpg")


def test_names_that_are_not_utf8(tmp_path, open_folder):
    tree(tmp_path / "source", "val/a/1.jpg", "train/a/1.jpg")
    (tmp_path / "source/train/a" / os.fsdecode(b"\xff.jpg")).write_bytes(b"x")
    assert os.fsencode(open_folder().files["train"][1].name) == b"a/\xff.jpg"


def test_a_pipe_or_a_device_among_the_images_is_refused_and_not_read(tmp_path, open_folder):
    """Reading a pipe waits for a writer, and /dev/zero never ends."""
    tree(tmp_path / "source", "train/a/1.jpg", "val/a/1.jpg")
    odd = tmp_path / "source" / "train" / "a" / "2.jpg"
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        make(odd)
        with pytest.raises(UserError, match=r"train/a/2\.jpg: is no plain file .*; remove it$"):
            open_folder()
        odd.unlink()
    odd.symlink_to("1.jpg")
    assert [file.name for file in open_folder().files["train"]] == ["a/1.jpg", "a/2.jpg"]


def test_a_subset_may_lack_classes_in_val_and_keeps_the_labels_of_train(tmp_path, open_folder, data_config):
    tree(tmp_path / "source", "train/a/1.jpg", "train/b/1.jpg", "train/c/1.jpg", "val/c/2.jpg", "val/a/2.jpg")
    with pytest.raises(UserError, match=r"b of the train split has no counterpart in val; .*data\.subset=true"):
        open_folder()
    data = data_config(tmp_path / "source", tmp_path / "root")
    data.subset = True
    source = FolderSource(data)
    assert [(file.name, file.label) for file in source.files["val"]] == [("a/2.jpg", 0), ("c/2.jpg", 2)]
    assert source.classes == ["a", "b", "c"]
    tree(tmp_path / "source", "val/d/1.jpg")
    with pytest.raises(UserError, match=r"class folder d of the val split has no counterpart in train; both"):
        FolderSource(data)
