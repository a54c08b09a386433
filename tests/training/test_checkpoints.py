import hashlib
import json
import os
import pickle
import zipfile

import pytest
import torch

from tencrop.config import UserError
from tencrop.models import checkpoint_files
from tencrop.models.checkpoint_files import RefusedCheckpoint, weights_sha256
from tencrop.models.weights import load_weights
from tencrop.training.checkpoints import LAST, AtomicCheckpointIO, latest_valid_checkpoint, read_checkpoint, set_aside
from typed import present

FACTS = {
    "format": 2, "step": 7, "total_steps": 9, "is_complete": False, "model": "net", "seed": 0, "run_id": "ab",
    "ema_sha256": None,
}  # fmt: skip


def checkpoint(value: float = 1.0, **facts) -> dict:
    state = {"w": torch.full((3, 2), value)}
    own = {**FACTS, "weights_sha256": weights_sha256(state), **facts}
    return {"state_dict": {"model.w": state["w"]}, "tencrop": own, "names": ["a"], "rate": 0.1}


def save(path, value=1.0, **facts):
    AtomicCheckpointIO().save_checkpoint(checkpoint(value, **facts), path)


def value_in(content) -> float:
    return float(content["state_dict"]["model.w"][0, 0])


def flip(path, *, bit=0, at=0.5):
    """Flip a bit in the byte at a fraction of the file's length."""
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1 << bit
    path.unlink()  # a new file: the other name of a hard link is not touched
    path.write_bytes(content)


@pytest.fixture
def run(tmp_path):
    """A run folder with the manifest of seed 0 and an empty folder for checkpoints."""
    result = {"status": "running", "weights_sha256": None, "ema_sha256": None}
    manifest = {"run_id": "ab", "model": "net", "total_steps": 9, "seeds": {"seed": 0}, "result": result}
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def change_manifest(run, **changes):
    manifest = json.loads((run / "manifest.json").read_text()) | changes
    kept = {key: value for key, value in manifest.items() if value is not None}
    (run / "manifest.json").write_text(json.dumps(kept))


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(), path)
    back = AtomicCheckpointIO().load_checkpoint(path)
    assert torch.equal(back["state_dict"]["model.w"], torch.ones(3, 2))
    assert back["tencrop"]["step"] == 7 and back["names"] == ["a"] and back["rate"] == 0.1
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_a_full_disk_keeps_the_previous_checkpoint(small_disk):
    path = small_disk / "last.ckpt"
    save(path, 2.0)
    large = {"state_dict": {"w": torch.zeros(10_000_000)}}
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint(large, path)
    assert read_checkpoint(path)["state_dict"]["model.w"][0, 0] == 2.0
    assert os.listdir(small_disk) == ["last.ckpt"]


class Malicious:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("writer", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, writer):
    path, trace = tmp_path / "bad.ckpt", tmp_path / "executed"
    writer({"state_dict": {}, "extra": Malicious(trace)}, path)
    with pytest.raises(UserError, match=r"bad\.ckpt: not a checkpoint that can be read safely"):
        read_checkpoint(path)
    assert not trace.exists()


def test_a_broken_or_missing_file_is_named(tmp_path):
    path = tmp_path / "last.ckpt"
    with pytest.raises(UserError, match="there is no such checkpoint"):
        read_checkpoint(path)
    save(path)
    content = path.read_bytes()
    for broken in (b"", b"not a checkpoint", content[: len(content) // 2]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"last\.ckpt: (not a checkpoint|is damaged)"):
            read_checkpoint(path)


def test_plain_torch_reads_a_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    save(path, 3.0)
    assert value_in(torch.load(path, weights_only=True)) == 3.0
    assert value_in(torch.load(path, weights_only=True, mmap=True)) == 3.0
    assert zipfile.ZipFile(path).testzip() is None
    digest = hashlib.sha256(path.read_bytes()[:-64]).hexdigest()
    assert path.read_bytes().endswith(f"tencrop sha256 {digest}".encode())


def test_every_bit_of_a_checkpoint_is_covered_by_its_digest(tmp_path):
    """Flips every bit at the end of the archive (comment and digest), and samples of the rest."""
    path = tmp_path / "last.ckpt"
    save(path)
    content = path.read_bytes()
    end = 8 * (len(content) - 110)
    for position in (*range(0, end, 101), *range(end, 8 * len(content), 3)):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"last\.ckpt: is damaged"):
            read_checkpoint(path)
        with pytest.raises(UserError, match=r"last\.ckpt: is damaged"):
            load_weights(path)


def test_a_checkpoint_without_its_digest_is_damaged(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save(checkpoint(), path)
    with pytest.raises(UserError, match="its digest is missing"):
        read_checkpoint(path)


def test_checkpoints_of_earlier_code_without_digest_are_read_and_their_weights_compared(run):
    path = run / "checkpoints" / "last.ckpt"
    change_manifest(run, run_id=None, model=None, total_steps=None)
    old = checkpoint(2.0, format=1)
    del old["tencrop"]["run_id"]
    torch.save(old, path)
    assert value_in(read_checkpoint(path)) == float(load_weights(path).state["w"][0, 0]) == 2.0
    old["state_dict"]["model.w"][0, 0] = 2.5
    torch.save(old, path)
    for read in (read_checkpoint, load_weights):
        with pytest.raises(UserError, match=r"its weights are not those that were written \(weights_sha256\)"):
            read(path)


OTHERS = {"seed": 1, "run_id": "cd", "model": "other", "total_steps": 8}


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
@pytest.mark.parametrize("key", OTHERS)
def test_a_checkpoint_of_another_run_is_refused(run, key, name):
    path = run / "checkpoints" / name
    save(path, **{key: OTHERS[key]})
    for read in (read_checkpoint, load_weights):
        with pytest.raises(UserError, match=rf"{name}: is of another run: its {key} is {OTHERS[key]} and not"):
            read(path)
    (run / "manifest.json").unlink()  # a folder that is none of ours: nothing to compare with
    assert value_in(read_checkpoint(path)) == 1.0


def test_a_complete_run_must_have_its_final_weights(run):
    path = run / "checkpoints" / "last.ckpt"
    save(path, step=9, is_complete=True)
    ended = {"status": "complete", "weights_sha256": read_checkpoint(path)["tencrop"]["weights_sha256"]}
    change_manifest(run, result=ended | {"ema_sha256": None})
    assert value_in(read_checkpoint(path)) == 1.0
    save(path, 2.0, step=9, is_complete=True)
    with pytest.raises(UserError, match="is of another run: its weights_sha256 is"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"\xff", b"[]", b"{", b'{"seeds": 3}', b'{"seeds": {"seed": 0}, "result": []}'])
def test_an_unusable_manifest_gives_an_error_message(run, content):
    save(run / "checkpoints" / "last.ckpt")
    (run / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json: not the manifest of a run"):
        read_checkpoint(run / "checkpoints" / "last.ckpt")


def test_the_old_checkpoint_is_kept_as_previous(tmp_path, monkeypatch):
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    save(last, 1.0)
    assert not previous.exists()
    for value in (2.0, 3.0):
        save(last, value)
        assert (value_in(read_checkpoint(previous)), value_in(read_checkpoint(last))) == (value - 1, value)

    def refuse(*_):
        raise PermissionError(1, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    save(last, 4.0)
    assert (value_in(read_checkpoint(previous)), value_in(read_checkpoint(last))) == (3.0, 4.0)
    save(tmp_path / "best.ckpt", 5.0)
    save(tmp_path / "best.ckpt", 6.0)
    assert sorted(os.listdir(tmp_path)) == ["best.ckpt", "last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("fault", ["damaged", "of another run", "gone"])
def test_previous_replaces_an_invalid_checkpoint(run, fault):
    last, previous = (run / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    assert latest_valid_checkpoint(run) is None
    save(last, 1.0)
    found = present(latest_valid_checkpoint(run))
    assert found.path == last and found.refusal is None
    save(last, 2.0)
    match fault:
        case "damaged":
            flip(last)
        case "of another run":
            last.unlink()
            save(last, 2.0, seed=1)
            save(previous, 1.0)
        case "gone":
            last.unlink()
    found = present(latest_valid_checkpoint(run))
    assert found.path == previous and value_in(found.content) == 1.0
    sentence = {"damaged": "is damaged", "of another run": "is of another run", "gone": "there is no such checkpoint"}
    refusal = present(found.refusal)
    assert refusal.startswith(f"{last}: {sentence[fault]}") and "\n" not in refusal
    assert refusal.endswith("; resuming from previous.ckpt (step 7 of 9)")

    set_aside(run)
    assert not last.exists() and (run / "checkpoints" / "refused.ckpt").exists() == (fault != "gone")
    save(last, 5.0)  # leaves the only valid one in its place
    assert value_in(read_checkpoint(previous)) == 1.0
    assert value_in(present(latest_valid_checkpoint(run)).content) == 5.0
    save(last, 6.0)
    assert value_in(read_checkpoint(previous)) == 5.0


def test_an_error_message_if_no_checkpoint_is_valid(run):
    last, previous = (run / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    save(last)
    flip(last, bit=3)
    with pytest.raises(UserError, match=r"last\.ckpt: is damaged: .*; train\.py continues from previous\.ckpt in the"):
        latest_valid_checkpoint(run)
    save(previous)
    flip(previous, at=0.9)
    with pytest.raises(UserError, match=r"last\.ckpt: is damaged.* and previous\.ckpt beside it is damaged"):
        latest_valid_checkpoint(run)


def test_the_chosen_checkpoint_is_read_only_once(run):
    path = run / "checkpoints" / "last.ckpt"
    save(path)
    found = present(latest_valid_checkpoint(run))
    reader = AtomicCheckpointIO(found)
    path.unlink()
    assert reader.load_checkpoint(path) is found.content
    save(path, 2.0)
    assert value_in(reader.load_checkpoint(path)) == 2.0


def test_plain_weights_are_refused_as_a_checkpoint(tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="weights="):
        read_checkpoint(tmp_path / "weights.pth")


def test_objects_other_than_plain_data_cannot_be_saved(tmp_path):
    with pytest.raises(AssertionError, match=r"checkpoint\['callbacks'\]\[0\] is a PosixPath"):
        AtomicCheckpointIO().save_checkpoint({"callbacks": [tmp_path]}, tmp_path / "last.ckpt")


def test_the_weights_hash_covers_names_dtypes_shapes_and_bytes():
    state = {"b": torch.tensor([1, 2]), "a": torch.tensor([[0.5, -1.0]])}
    digest = hashlib.sha256()
    digest.update(b"a torch.float32 [1, 2]\n" + state["a"].numpy().tobytes())
    digest.update(b"b torch.int64 [2]\n" + state["b"].numpy().tobytes())
    assert weights_sha256(state) == digest.hexdigest()
    assert weights_sha256(dict(reversed(state.items()))) == digest.hexdigest()


def test_the_weights_hash_detects_every_change_but_ignores_memory_layout():
    weight = torch.arange(24.0).reshape(1, 2, 3, 4)
    one = weights_sha256({"w": weight})
    assert weights_sha256({"w": weight.to(memory_format=torch.channels_last)}) == one
    assert weights_sha256({"w": weight.bfloat16()}) == weights_sha256({"w": weight.bfloat16()})
    others = [{"v": weight}, {"w": weight.double()}, {"w": weight.reshape(2, 3, 4)}, {"w": weight + 1e-6}, {}]
    assert len({one, *map(weights_sha256, others)}) == 6
    assert weights_sha256({"empty": torch.zeros(0), "scalar": torch.tensor(3)})


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_checkpoint_that_is_no_file_is_refused(make, tmp_path, monkeypatch):
    """It is not opened: opening a named pipe would block forever."""
    (tmp_path / "checkpoints").mkdir()
    make(tmp_path / "checkpoints" / LAST)
    monkeypatch.setattr(checkpoint_files, "open", lambda *_: pytest.fail("was opened"), raising=False)
    with pytest.raises(RefusedCheckpoint, match=r"last\.ckpt: is not a file; train\.py continues from previous\.ckpt"):
        latest_valid_checkpoint(tmp_path)
