import hashlib
import os
import pickle

import pytest
import torch

from tencrop.config import UserError
from tencrop.training.checkpoints import AtomicCheckpointIO, read_checkpoint, weights_sha256


def checkpoint(value: float = 1.0) -> dict:
    return {"state_dict": {"model.w": torch.full((3, 2), value)}, "tencrop": {"step": 7}, "names": ["a"], "rate": 0.1}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(), path)
    back = AtomicCheckpointIO().load_checkpoint(path)
    assert torch.equal(back["state_dict"]["model.w"], torch.ones(3, 2))
    assert back["tencrop"] == {"step": 7} and back["names"] == ["a"] and back["rate"] == 0.1
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_a_full_disk_leaves_the_former_checkpoint(small_disk):
    path = small_disk / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(2.0), path)
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
    AtomicCheckpointIO().save_checkpoint(checkpoint(), path)
    content = path.read_bytes()
    for broken in (b"", b"not a checkpoint", content[: len(content) // 2]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"last\.ckpt: not a checkpoint"):
            read_checkpoint(path)


def test_plain_weights_are_no_checkpoint(tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="weights="):
        read_checkpoint(tmp_path / "weights.pth")


def test_objects_do_not_get_into_a_checkpoint(tmp_path):
    with pytest.raises(AssertionError, match=r"checkpoint\['callbacks'\]\[0\] is a PosixPath"):
        AtomicCheckpointIO().save_checkpoint({"callbacks": [tmp_path]}, tmp_path / "last.ckpt")


def test_the_hash_of_weights_is_that_of_names_types_shapes_and_bytes():
    state = {"b": torch.tensor([1, 2]), "a": torch.tensor([[0.5, -1.0]])}
    digest = hashlib.sha256()
    digest.update(b"a torch.float32 [1, 2]\n" + state["a"].numpy().tobytes())
    digest.update(b"b torch.int64 [2]\n" + state["b"].numpy().tobytes())
    assert weights_sha256(state) == digest.hexdigest()
    assert weights_sha256(dict(reversed(state.items()))) == digest.hexdigest()


def test_the_hash_sees_every_change_and_no_memory_order():
    weight = torch.arange(24.0).reshape(1, 2, 3, 4)
    one = weights_sha256({"w": weight})
    assert weights_sha256({"w": weight.to(memory_format=torch.channels_last)}) == one
    assert weights_sha256({"w": weight.bfloat16()}) == weights_sha256({"w": weight.bfloat16()})
    others = [{"v": weight}, {"w": weight.double()}, {"w": weight.reshape(2, 3, 4)}, {"w": weight + 1e-6}, {}]
    assert len({one, *map(weights_sha256, others)}) == 6
    assert weights_sha256({"empty": torch.zeros(0), "scalar": torch.tensor(3)})
