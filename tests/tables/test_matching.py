"""Runs are matched to a row by recipe and test protocol, and not by their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tencrop.cli.choices import CONF
from tencrop.cli.compose import compose_training
from tencrop.config import Config, UserError
from tencrop.evaluation.results import load_result, save_result
from tencrop.report.matching import match_runs, refusals
from tencrop.tables.lines import Measurement, lines_of
from tencrop.tables.reading import read_table

FinishedRun = Callable[..., Path]
# what result.json says of the recipe's own evaluation, and the manifest of its data
FACTS: dict[str, Any] = {
    "data": "digits", "num_images": 500, "protocol": "center", "side": 36, "size": 32, "region": "whole",
    "filter": "bilinear", "averaging": "softmax", "views": 1, "selection": "last", "step": 10, "total_steps": 10,
    "weights": "raw", "precision": "fp32", "mean": [20, 20, 20], "std": [200, 200, 200],
}  # fmt: skip
DATA = {"classes": list("0123456789"), "splits": {"train": {"num_samples": 1297}, "val": {"num_samples": 500}}}


@pytest.fixture(scope="module")
def recipe() -> Config:
    return compose_training(["experiment=lenet5_digits"], CONF)


@pytest.fixture
def refused(write_row: Callable[..., Path], recipe: Config) -> Callable[..., list[str]]:
    """refused(facts, data, protocol={...}): why a result does not support the digits' row, so changed."""

    def reasons(facts: dict[str, Any], data: dict[str, Any] = DATA, **changes: Any) -> list[str]:
        table = read_table("digits", write_row(**changes))
        return refusals(facts, data, table.rows[0], table, recipe)

    return reasons


@pytest.fixture
def matched(write_row: Callable[..., Path], tmp_path: Path) -> Callable[..., Measurement | None]:
    """matched(overrides=[...]): ours for the digits' row, so changed, of the runs in runs/."""

    def match(**changes: Any) -> Measurement | None:
        table = read_table("digits", write_row(**changes))
        found = match_runs([table], [tmp_path / "runs"], kept=tmp_path / "hashes.json", on_broken=_raise)
        return found.get(("digits", "lenet5"))

    return match


def _raise(error: UserError) -> None:
    raise error


def test_seeds_are_matched_by_recipe_and_not_by_name(
    finished_run: FinishedRun, matched: Callable[..., Measurement | None], write_row: Callable[..., Path]
) -> None:
    first, second = finished_run("seed=1", num_wrong=11), finished_run("name=my_network", "seed=0", num_wrong=10)
    other = finished_run("optimizer.lr=0.002", "seed=4", num_wrong=100)
    hash = first.name.rpartition("-")[2]
    other.rename(other.with_name(f"seed4-{hash}"))  # learned otherwise, whatever the folder says
    finished_run("seed=2", num_wrong=10, status="interrupted")
    finished_run("seed=3", num_wrong=None)
    ours = matched()
    assert ours is not None
    assert ours == Measurement({1: pytest.approx((2.0, 2.2)), 5: (0.0, 0.0)}, 500, (second, first), seeds=(0, 1))  # type: ignore[dict-item]

    def verdicts(printed: str) -> str:
        table = read_table("digits", write_row(top1=printed))
        return lines_of(table, {("digits", "lenet5"): ours})[0].joined("verdict")

    assert verdicts("2.1") == "reproduced*"  # the band of two seeds is a guess
    assert verdicts("1.1") == "worse* / reproduced*"
    assert verdicts("3.1") == "better* / reproduced*"
    assert matched(overrides=["optimizer.lr=0.003"]) is None


def test_the_guesses_of_a_recipe_come_along(
    finished_run: FinishedRun,
    matched: Callable[..., Measurement | None],
    write_row: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finished_run()
    monkeypatch.setattr("tencrop.report.matching.guesses_of", lambda recipe: [f"optimizer.{recipe.optimizer.name}"])
    ours = matched(protocol={"filter": None})
    assert ours is not None and ours.guesses == ("optimizer.sgd",)
    table = read_table("digits", write_row(protocol={"filter": None}))
    assert lines_of(table, {("digits", "lenet5"): ours})[0].guessed == "protocol.filter, optimizer.sgd"


def test_runs_with_another_protocol_support_no_claim(
    finished_run: FinishedRun, matched: Callable[..., Measurement | None], write_row: Callable[..., Path]
) -> None:
    folder = finished_run()
    ours = matched(protocol={"side": 40, "name": "ten_crop", "average": "softmax"})
    assert ours == Measurement({}, 0, (folder,), "protocol center, not ten_crop; side 36, not 40")
    line = lines_of(read_table("digits", write_row()), {("digits", "lenet5"): ours})[0]
    assert line.joined("verdict") == "no claim"
    assert line.joined("ours") == line.joined("difference") == "–"
    assert line.run == f"lenet5_digits/{folder.name}: protocol center, not ten_crop; side 36, not 40"


ENSEMBLE: list[dict[str, Any]] = [
    {"id": "lenet5", "row": "LeNet-5", "top1": "2.0", "top5": "0.0", "experiment": "lenet5_digits"},
    {"id": "two", "row": "2 LeNets", "top1": "1.8", "top5": "0.0", "members": [{"row": "lenet5", "seeds": 2}]},
    {"id": "three", "row": "3 LeNets", "top1": "1.7", "top5": "0.0", "members": [{"row": "lenet5", "seeds": 3}]},
    {"id": "ten_views", "row": "2 LeNets, ten views", "top1": "1.7", "top5": "0.0",
     "members": [{"row": "lenet5", "seeds": 2, "protocol": {"name": "ten_crop", "average": "softmax"}}]},
]  # fmt: skip


def test_an_ensemble_is_matched_by_the_runs_of_its_members(
    finished_run: FinishedRun, write_table: Callable[..., Path], tmp_path: Path
) -> None:
    folders = [finished_run(f"seed={seed}", num_wrong=10 + seed) for seed in range(3)]
    other = finished_run("optimizer.lr=0.002", "seed=3")
    table = read_table("digits", write_table(rows=ENSEMBLE))

    def found(*members: Path, wrong: str | None = None) -> dict[str, Measurement]:
        result = load_result(folders[0] / "predictions" / "center.result.json")
        hashes = [wrong or f"{int(folder.name[4]):064x}" for folder in members]
        facts: dict[str, object] = {"selection": None}
        facts["checkpoint"] = [f"{folder}/checkpoints/last.ckpt" for folder in members]
        out = tmp_path / "evaluations" / "ensemble-0123abcd"
        facts |= {"weights_sha256": " + ".join(hashes), "seed": None, "run_id": None}
        save_result(out / "center.result.json", result | facts)
        paths = [tmp_path / "runs", tmp_path / "evaluations"]
        matched = match_runs([table], paths, kept=tmp_path / "hashes.json", on_broken=_raise)
        return {row: ours for (_, row), ours in matched.items() if row != "lenet5"}

    ours = found(*folders[:2])
    assert ours["two"] == Measurement({1: (2.0,), 5: (0.0,)}, 500, (tmp_path / "evaluations" / "ensemble-0123abcd",))
    assert ours["ten_views"].refused == "protocol center, not ten_crop" and set(ours) == {"two", "ten_views"}
    assert set(found(*folders)) == {"three"}
    assert found(folders[0], other) == {}  # one learned otherwise
    assert found(*folders, other) == {}
    assert found(*folders[:2], wrong="f" * 64) == {}  # of weights that the runs do not end with


def test_a_run_counts_once_however_many_files_it_has(
    finished_run: FinishedRun, matched: Callable[..., Measurement | None]
) -> None:
    folders = [finished_run(f"seed={seed}", num_wrong=10 + seed) for seed in range(2)]
    own = folders[0] / "predictions" / "center.result.json"
    for name, changes in (("center-logits", {"averaging": "logits"}), ("center-final", {})):
        save_result(own.with_name(f"{name}.result.json"), load_result(own) | changes)
    ours = matched()
    assert ours == Measurement({1: pytest.approx((2.0, 2.2)), 5: (0.0, 0.0)}, 500, tuple(folders), seeds=(0, 1))  # type: ignore[dict-item]


@pytest.fixture
def ensembles_of_two(
    finished_run: FinishedRun, write_table: Callable[..., Path], tmp_path: Path
) -> Callable[..., Measurement | None]:
    """ensembles_of_two([((1, 0), "logits")], average="softmax"): ours for two LeNets whose row states this average, of
    ensembles with these seeds and averages."""
    single = finished_run("seed=0") / "predictions" / "center.result.json"
    for seed in (1, 2):
        finished_run(f"seed={seed}")

    def match(ensembles: Sequence[tuple[tuple[int, ...], str]], average: str | None = None) -> Measurement | None:
        result = load_result(single)
        protocol = {key: result[key] for key in ("protocol", "side", "size", "region", "resize", "filter", "views")}
        for number, (seeds, averaging) in enumerate(ensembles):
            members = [protocol | {"weights_sha256": f"{seed:064x}", "weights": "raw"} for seed in seeds]
            facts = {"members": members, "checkpoint": [None, None], "averaging": averaging}
            out = tmp_path / "evaluations" / f"ensemble-{number}"
            save_result(out / "center.result.json", result | facts | {"selection": None, "seed": None, "run_id": None})
        of_row = {"row": "lenet5", "seeds": 2, "protocol": {"name": "center", "average": average}}
        table = read_table("digits", write_table(rows=[ENSEMBLE[0], ENSEMBLE[1] | {"members": [of_row]}]))
        paths = [tmp_path / "runs", tmp_path / "evaluations"]
        return match_runs([table], paths, kept=tmp_path / "hashes.json", on_broken=_raise).get(("digits", "two"))

    return match


def test_an_ensemble_counts_once_in_whichever_order(ensembles_of_two: Callable[..., Measurement | None]) -> None:
    ours = ensembles_of_two([((0, 1), "softmax"), ((1, 0), "softmax"), ((1, 2), "softmax")])
    assert ours is not None and [folder.name for folder in ours.runs] == ["ensemble-0", "ensemble-2"]
    assert len(ours.errors[1]) == 2


def test_the_average_of_an_ensemble_counts_even_with_one_view(
    ensembles_of_two: Callable[..., Measurement | None],
) -> None:
    ours = ensembles_of_two([((0, 1), "logits")], average="softmax")
    assert ours is not None and ours.refused == "averaging logits, not softmax"
    mixed = [((0, 1), "logits"), ((0, 2), "softmax"), ((1, 2), "softmax")]
    ours = ensembles_of_two(mixed, average="softmax")
    assert ours is not None and len(ours.errors[1]) == 2
    ours = ensembles_of_two(mixed)  # a row that leaves it open: the two averages are not mixed
    assert ours is not None and [folder.name for folder in ours.runs] == ["ensemble-1", "ensemble-2"]


def test_one_network_under_two_protocols_is_matched_member_by_member(
    finished_run: FinishedRun, write_table: Callable[..., Path], tmp_path: Path
) -> None:
    folders = [finished_run(f"seed={seed}", num_wrong=10 + seed) for seed in range(2)]
    rows = [*ENSEMBLE[:1], {**ENSEMBLE[0], "id": "ten", "row": "Ten", "protocol": {"name": "ten_crop", "side": 40}}]
    rows.append(
        {"id": "both", "row": "Both", "top1": "1.8", "top5": "0.0", "members": [{"row": "ten"}, {"row": "lenet5"}]}
    )
    table = read_table("digits", write_table(rows=rows))

    def found(*members: tuple[int, str, int], **changes: Any) -> Measurement | None:
        """Our errors for an ensemble of (seed, protocol, side)."""
        result = load_result(folders[0] / "predictions" / "center.result.json")
        same = {"size": 32, "region": "whole", "resize": "shorter_side", "filter": "bilinear"}
        facts = [
            same | {"weights_sha256": f"{seed:064x}", "weights": "raw", "protocol": name, "side": side, "views": 10}
            for seed, name, side in members
        ]
        result |= {"checkpoint": [None] * len(members), "members": facts, "protocol": "a + b", "side": "36 + 40"}
        out = tmp_path / "evaluations" / "ensemble-0123abcd"
        save_result(out / "both.result.json", result | {"selection": None, "seed": None, "run_id": None} | changes)
        paths = [tmp_path / "runs", tmp_path / "evaluations"]
        return match_runs([table], paths, kept=tmp_path / "hashes.json", on_broken=_raise).get(("digits", "both"))

    center, ten = (0, "center", 36), (0, "ten_crop", 40)
    ours = found(center, ten)
    assert ours is not None and ours.errors == {1: (2.0,), 5: (0.0,)}, "in any order, and without checkpoints"
    assert ours.seeds == (0,), "of one network, whose seed it has"
    assert found(ten, center) == ours
    assert found(center, (1, "ten_crop", 40)) is None, "two networks"
    assert found(center) is None and found(center, ten, (1, "ten_crop", 40)) is None
    assert found(center, (0, "ten_crop", 36)).refused == "side 36, not 40"  # type: ignore[union-attr]
    assert found(ten, (0, "ten_crop", 44)).refused == "protocol ten_crop, not center; side 44, not 36"  # type: ignore[union-attr]
    assert found(center, ten, num_images=499).refused == "499 images, not 500"  # type: ignore[union-attr]


def test_the_recipe_measured_in_its_own_way_supports_the_row(refused: Callable[..., list[str]]) -> None:
    assert refused(FACTS) == []
    assert refused(FACTS | {"side": [36, 40]}, protocol={"side": [36, 40]}) == []


OTHERS = {"name": "dense", "side": 48, "size": 28, "region": "square", "resize": "warp", "filter": "bicubic"}


@pytest.mark.parametrize("key", OTHERS)
def test_every_key_of_the_protocol_counts_where_the_paper_states_it(
    key: str, refused: Callable[..., list[str]]
) -> None:
    found = "shorter_side" if key == "resize" else FACTS["protocol" if key == "name" else key]
    name = "protocol" if key == "name" else key
    assert refused(FACTS, protocol={key: OTHERS[key]}) == [f"{name} {found}, not {OTHERS[key]}"]
    if key != "name":  # a row that can be trained states it
        assert refused(FACTS, protocol={key: None}) == []


def test_averages_differ_where_there_are_several_views(refused: Callable[..., list[str]]) -> None:
    ten = {"name": "ten_crop", "average": "logits"}
    facts = FACTS | {"protocol": "ten_crop", "views": 10}
    assert refused(facts, protocol=ten) == ["averaging softmax, not logits"]
    assert refused(FACTS, protocol={"average": "logits"}) == []  # one view: nothing is averaged


CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "images": ({"num_images": 400}, "400 images, not 500"),
    "other data": ({"data": "cifar10"}, "not trained on all of digits"),
    "weights": ({"weights": "ema"}, "ema weights, not raw"),
    "selection": ({"selection": "best"}, "not the last weights"),
    "step": ({"total_steps": 20}, "not the last weights"),
    "precision": ({"precision": "bf16"}, "precision bf16"),
    "mean": ({"mean": [0, 0, 0]}, "mean [0, 0, 0]"),
    "mean of other data": ({"changed_normalization": ["mean"]}, "mean [20, 20, 20]"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_results_on_other_images_or_weights_support_no_claim(case: str, refused: Callable[..., list[str]]) -> None:
    changes, reason = CHANGED[case]
    assert refused(FACTS | changes) == [reason]


def test_a_run_on_part_of_the_data_supports_no_claim(refused: Callable[..., list[str]]) -> None:
    part = DATA | {"splits": {"train": {"num_samples": 1000}, "val": {"num_samples": 500}}}
    assert refused(FACTS, part) == ["not trained on all of digits"]


def test_a_filter_that_the_paper_does_not_state_is_the_recipe_s_own(refused: Callable[..., list[str]]) -> None:
    facts = FACTS | {"filter": "bicubic"}
    assert refused(facts, protocol={"filter": None}) == ["filter bicubic"]
    assert refused(facts, protocol={"filter": "bicubic"}) == []


def test_a_table_on_fewer_images_requires_that_number(write_table: Callable[..., Path], recipe: Config) -> None:
    table = read_table("digits", write_table(num_images=450))
    assert refusals(FACTS, DATA, table.rows[0], table, recipe) == ["500 images, not 450"]
    assert refusals(FACTS | {"num_images": 450}, DATA, table.rows[0], table, recipe) == []


def test_data_of_unknown_size_support_no_claim(write_table: Callable[..., Path], recipe: Config) -> None:
    table = read_table("digits", write_table(data="imagefolder"))
    facts = FACTS | {"data": "imagefolder"}
    (reason,) = refusals(facts, DATA, table.rows[0], table, recipe)
    assert reason.startswith("data=imagefolder does not say which images")


def test_fingerprints_identify_the_images_of_a_folder(write_table: Callable[..., Path], recipe: Config) -> None:
    digests = {"train": "1" * 64, "val": "2" * 64}
    table = read_table("digits", write_table(data="imagefolder", data_fingerprint=digests))
    facts = FACTS | {"data": "imagefolder", "source_fingerprint": digests["val"], "num_images": 7}

    def reasons(train: str = digests["train"], **changes: Any) -> list[str]:
        data = {"splits": {"train": {"source_fingerprint": train}}}
        return refusals(facts | changes, data, table.rows[0], table, recipe)

    assert reasons() == []
    assert reasons(train="3" * 64) == ["other train images"]
    assert reasons(source_fingerprint="3" * 64) == ["other val images"]
    assert reasons(data="digits") == ["data=digits, not imagefolder"]


def test_a_changed_score_file_is_refused(
    finished_run: FinishedRun, write_row: Callable[..., Path], tmp_path: Path
) -> None:
    scores = finished_run() / "predictions" / "center.safetensors"
    content = bytearray(scores.read_bytes())
    content[-8] ^= 1
    scores.write_bytes(content)
    errors: list[UserError] = []
    table = read_table("digits", write_row())
    found = match_runs([table], [tmp_path / "runs"], kept=tmp_path / "hashes.json", on_broken=errors.append)
    assert found == {} and len(errors) == 1 and "center" in str(errors[0])


def test_hashes_are_cached_until_conf_changes(
    matched: Callable[..., Measurement | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs" / "a" / "seed0-ffffffff"
    folder.mkdir(parents=True)
    for name in ("config.yaml", "manifest.json"):
        (folder / name).touch()
    composed: list[Sequence[str]] = []
    monkeypatch.setattr("tencrop.tables.recipes.Composer.compose", lambda self, words: composed.append(words))
    monkeypatch.setattr("tencrop.tables.recipes.learning_hash", lambda config: "00000000")
    assert matched() is None and composed == [("experiment=lenet5_digits",)]
    assert matched() is None and len(composed) == 1
    monkeypatch.setattr("tencrop.tables.recipes._digest", lambda: "of other files")
    matched()
    assert len(composed) == 2
    (tmp_path / "hashes.json").write_text("{")
    matched()
    assert len(composed) == 3


def test_a_missing_folder_is_refused(write_row: Callable[..., Path], tmp_path: Path) -> None:
    table = read_table("digits", write_row())
    with pytest.raises(UserError, match="nowhere: there is no such folder"):
        match_runs([table], [tmp_path / "nowhere"], kept=tmp_path / "hashes.json", on_broken=_raise)
