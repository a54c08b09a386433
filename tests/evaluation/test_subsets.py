"""A subset of the val split, by a list of file names: the same scores as of the whole split, for its images only."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tencrop.config import UserError, learning_hash
from tencrop.data.store.manifest import read_manifest
from tencrop.evaluation.ensembles import ensemble
from tencrop.evaluation.evaluate import evaluate_targets
from tencrop.evaluation.inference import open_val_split
from tencrop.evaluation.results import protocol_label
from tencrop.evaluation.subsets import evaluated_index
from tencrop.evaluation.targets import EvaluationTarget


@pytest.fixture
def subset(make_config, tmp_path: Path) -> Path:
    """A list of 4 of the 501 images, in another order and with blank lines, two of them without their folder."""
    split = open_val_split(make_config())
    names = [split.names(index) for index in (500, 1, 250, 77)]
    assert names[1] == "class0/006.png" and names[0] == "class5/497.png"
    path = tmp_path / "subset.txt"
    path.write_text(f"{names[0]}\n\n{names[1].partition('/')[2]}\n{names[2]}  \n{names[3].partition('/')[2]}\n")
    return path


def test_a_subset_has_the_scores_of_the_whole_split(
    make_config, new_network, save_checkpoint, subset: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_config("protocol=flip_pair", "protocol.filter=bilinear")
    part = make_config("protocol=flip_pair", "protocol.filter=bilinear", f"data.subset_of_val={subset}")
    assert learning_hash(part) == learning_hash(config)
    path = save_checkpoint(tmp_path / "last.ckpt", config, new_network(config))
    manifest = read_manifest(config.data.root)
    (whole,) = evaluate_targets([EvaluationTarget(config, path, manifest, tmp_path / "out")])
    (chosen,) = evaluate_targets([EvaluationTarget(part, path, manifest, tmp_path / "out")])
    index = [1, 77, 250, 500]
    assert evaluated_index(part, open_val_split(part)).tolist() == index
    assert chosen.scores.index.tolist() == [0, 1, 2, 3]
    assert torch.equal(chosen.scores.labels, whole.scores.labels[index])
    torch.testing.assert_close(chosen.scores.softmax, whole.scores.softmax[index], rtol=0, atol=1e-5)
    wrong = (whole.scores.softmax_ranks[index] >= 1).float().mean()
    assert chosen.scores.samples is not None and chosen.scores.samples.tolist() == index
    assert chosen.result["split_fingerprint"] == whole.result["source_fingerprint"]
    assert chosen.result["top1_error"] == wrong and chosen.result["num_images"] == 4
    assert chosen.result["subset"] == chosen.scores.metadata["subset"] == "4 of 501 images"
    assert "subset" not in whole.result and "subset" not in whole.scores.metadata
    assert protocol_label(chosen.result) == f"{protocol_label(whole.result)}, 4 of 501 images"
    assert (
        chosen.result["scores"].startswith("flip_pair-bilinear-subset") and len(list((tmp_path / "out").iterdir())) == 4
    )
    assert chosen.result["source_fingerprint"] != whole.result["source_fingerprint"]
    # the same images in another order, all with their folder: found saved, and no second result
    split = open_val_split(config)
    (tmp_path / "again.txt").write_text("\n".join(split.names(sample) for sample in reversed(index)))
    part.data.subset_of_val = str(tmp_path / "again.txt")
    (again,) = evaluate_targets([EvaluationTarget(part, path, manifest, tmp_path / "out")])
    assert again.result == chosen.result and len(list((tmp_path / "out").iterdir())) == 4
    assert whole.scores.samples is None and "split_fingerprint" not in whole.result
    with pytest.raises(UserError, match="cannot be averaged: their data"):
        ensemble([whole.scores, chosen.scores], ["whole", "chosen"])


def test_a_list_of_the_whole_split_is_the_whole_split(make_config, tmp_path: Path) -> None:
    split = open_val_split(make_config())
    (tmp_path / "all.txt").write_text("\n".join(split.names(index) for index in range(501)))
    config = make_config(f"data.subset_of_val={tmp_path}/all.txt")
    assert np.array_equal(evaluated_index(config, split), np.arange(501))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; give a list of file names, one a line"),
        ("\n  \n", "is empty"),
        ("class0/006.png\nclass0/007.png\n", "class0/007.png: the val split has no such image"),
        ("class0/006.png\n006.png\n", "class0/006.png is listed twice"),
        (None, "there is no such file; give a list of file names"),
    ],
)
def test_a_wrong_list_is_refused(content: str | None, message: str, make_config, tmp_path: Path) -> None:
    path = tmp_path / "subset.txt"
    if content is not None:
        path.write_text(content)
    config = make_config(f"data.subset_of_val={path}")
    with pytest.raises(UserError, match=f"data.subset_of_val={path}: {message}"):
        evaluated_index(config, open_val_split(config))


def test_a_name_of_two_images_needs_its_folder(make_config, tmp_path: Path) -> None:
    split = SimpleNamespace(files={"name": np.array([b"cat/1.png", b"dog/1.png", b"dog/2.png"])}, num_samples=3)
    path = tmp_path / "subset.txt"
    config = make_config(f"data.subset_of_val={path}")
    path.write_text("dog/1.png\n2.png\n")
    assert evaluated_index(config, split).tolist() == [1, 2]  # type: ignore[arg-type]
    path.write_text("1.png\n")
    with pytest.raises(UserError, match=r"1\.png: several images have this name; give it as CLASS/FILE"):
        evaluated_index(config, split)  # type: ignore[arg-type]
