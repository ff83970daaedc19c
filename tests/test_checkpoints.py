"""Checkpoints: whole or not there, and nothing that is not one gets in."""

import json
import pickle

import pytest
import torch

from evidence.experiments.storage import checkpoints
from evidence.inference import Snapshot


def snapshot(epoch=1, step=0):
    generator = torch.Generator().manual_seed(epoch)
    tensors = {"model.w": torch.randn(3, 2, generator=generator), "rng.torch": torch.arange(5)}
    return Snapshot(tensors, {"identity": {}, "position": {"epoch": epoch, "step": step}})


def test_what_is_saved_is_loaded(tmp_path):
    path = checkpoints.save(tmp_path, snapshot(), {"data_sha256": "abc"})
    loaded, meta = checkpoints.load(path)
    assert loaded.meta == snapshot().meta
    assert meta["data_sha256"] == "abc"
    for name, tensor in snapshot().tensors.items():
        assert torch.equal(loaded.tensors[name], tensor)
        assert loaded.tensors[name].dtype == tensor.dtype


def test_the_newest_two_are_kept(tmp_path):
    for epoch, step in ((1, 0), (1, 500), (2, 0), (10, 0)):
        checkpoints.save(tmp_path, snapshot(epoch, step), {})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["epoch-00002-step-000000", "epoch-00010-step-000000"]
    assert checkpoints.newest(tmp_path).name == names[-1]
    assert checkpoints.newest(tmp_path / "nowhere") is None


def test_a_crash_while_writing_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    checkpoints.save(tmp_path, snapshot(1), {})

    def crash(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoints, "signed", crash)
    with pytest.raises(OSError, match="no space"):
        checkpoints.save(tmp_path, snapshot(2), {})
    monkeypatch.undo()
    assert checkpoints.load(checkpoints.newest(tmp_path))[0].meta["position"]["epoch"] == 1
    checkpoints.save(tmp_path, snapshot(3), {})
    assert not list(tmp_path.glob(".unfinished*"))


def flip_a_byte(path):
    file = path / "tensors.safetensors"
    payload = bytearray(file.read_bytes())
    payload[-1] ^= 1
    file.write_bytes(payload)


def truncate(path):
    file = path / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def truncate_meta(path):
    (path / "meta.json").write_text((path / "meta.json").read_text()[:-9])


def remove_tensors(path):
    (path / "tensors.safetensors").unlink()


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, truncate_meta, remove_tensors])
def test_damage_is_found(tmp_path, damage):
    path = checkpoints.save(tmp_path, snapshot(), {})
    damage(path)
    with pytest.raises(ValueError, match=r"corrupt checkpoint .*delete this folder") as error:
        checkpoints.load(path)
    assert "\n" not in str(error.value)


def test_foreign_files_are_refused(tmp_path):
    path = checkpoints.save(tmp_path, snapshot(), {})
    (path / "meta.json").write_text(json.dumps({"format": "another-1"}))
    with pytest.raises(ValueError, match="foreign checkpoint"):
        checkpoints.load(path)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_a_pickle_is_never_loaded(tmp_path):
    path = checkpoints.save(tmp_path, snapshot(), {})
    (path / "tensors.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="corrupt checkpoint"):
        checkpoints.load(path)
