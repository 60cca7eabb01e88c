"""Reading a checkpoint runs no code, and damage is seen, whoever wrote it."""

import io
import pickle
import random
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import ModelParallelStrategy

from herl.errors import ConfigError
from herl.models.checkpoint_file import (
    CHECKSUMS,
    check_checkpoint_file,
    read_file,
    without_code,
    write_checksums,
)
from herl.models.export import PREFIX, load_checkpoint
from herl.models.fsdp import FSDPStrategy

SETTINGS = {"model.lora.alpha": 32.0}


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (open, (self.marker, "w"))


class Policy(torch.nn.Linear):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(30, 4)


def weights(policy):
    return {PREFIX + name: tensor for name, tensor in policy.state_dict().items()}


def trained():
    policy = Policy()
    torch.nn.init.normal_(policy.weight)
    return policy


def sharded(folder, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"state_dict": weights(trained()), **more}, checkpoint_id=folder, no_dist=True)
    torch.save({"epoch": 1, "herl": {"settings": SETTINGS}}, folder / "meta.pt")
    write_checksums(folder)
    return folder


def single(path):
    torch.save({"state_dict": weights(trained()), "herl": {"settings": SETTINGS}}, path)
    return path


def load(folder, state):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state


def test_a_sharded_checkpoint_is_read_as_it_was_written(tmp_path):
    folder = sharded(tmp_path / "a.ckpt", optimizer_0={"lr": 0.5, "betas": (0.9, 0.99), "names": ["a"]})
    check_checkpoint_file("resume", folder)
    policy = Policy()
    load_checkpoint(policy, folder, SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), trained().parameters(), strict=True))
    with without_code():
        found = load(folder, {"optimizer_0": {"lr": 0.0, "betas": (), "names": []}})
    assert found == {"optimizer_0": {"lr": 0.5, "betas": (0.9, 0.99), "names": ["a"]}}


@pytest.mark.parametrize("write", [sharded, single])
def test_a_checkpoint_of_other_settings_is_another_policy(tmp_path, write):
    path = write(tmp_path / "a.ckpt")
    with pytest.raises(ConfigError, match="model.lora.alpha: expected the checkpoint's 32.0, got 64.0"):
        load_checkpoint(Policy(), path, {"model.lora.alpha": 64.0})


@pytest.mark.parametrize("name", [".metadata", "__0.metadata"])
def test_metadata_cannot_run_code(tmp_path, name):
    folder = sharded(tmp_path / "a.ckpt")
    (folder / name).write_bytes(pickle.dumps(Evil(tmp_path / "marker")))
    (folder / CHECKSUMS).unlink()
    if name == ".metadata":
        with pytest.raises(ConfigError, match="open does not belong into the metadata of a checkpoint"):
            check_checkpoint_file("resume", folder)
        with pytest.raises(ConfigError, match="does not belong into the metadata"), without_code():
            load(folder, {"state_dict": weights(Policy())})
        with pytest.raises(ConfigError):
            load_checkpoint(Policy(), folder, SETTINGS)
    else:
        load_checkpoint(Policy(), folder, SETTINGS)
        with without_code():
            load(folder, {"state_dict": weights(Policy())})
    assert not (tmp_path / "marker").exists()


def test_values_beside_the_tensors_cannot_run_code(tmp_path):
    folder = sharded(tmp_path / "a.ckpt", optimizer_0={"lr": Evil(tmp_path / "marker")})
    with pytest.raises(ConfigError, match="Weights only load failed"), without_code():
        load(folder, {"optimizer_0": {"lr": 0.0}})
    assert not (tmp_path / "marker").exists()


def test_the_strategy_runs_no_code_of_a_checkpoint(tmp_path, monkeypatch):
    torch.save(Evil(tmp_path / "marker"), tmp_path / "meta.pt")
    monkeypatch.setattr(
        ModelParallelStrategy,
        "load_checkpoint",
        lambda self, path, weights_only: torch.load(path, weights_only=False),
    )
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        FSDPStrategy().load_checkpoint(tmp_path / "meta.pt")
    assert not (tmp_path / "marker").exists()


def test_a_shard_lies_inside_its_folder(tmp_path):
    folder = sharded(tmp_path / "a.ckpt")
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    places = metadata.storage_data
    metadata.storage_data = {key: replace(one, relative_path="../x") for key, one in places.items()}
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    write_checksums(folder)
    with pytest.raises(ConfigError, match="expected shards inside .* got '../x'"):
        check_checkpoint_file("resume", folder)


def test_damage_is_named_with_the_checkpoint_before(tmp_path):
    earlier, newer = single(tmp_path / "batch-00000001.ckpt"), single(tmp_path / "batch-00000002.ckpt")
    data = bytearray(newer.read_bytes())
    place = data.find(trained().weight.detach().numpy().tobytes())
    data[place + 9] ^= 4
    newer.write_bytes(data)
    with pytest.raises(ConfigError) as error:
        check_checkpoint_file("resume", newer)
    for said in (f"resume: '{newer}' is damaged", "expected CRC-32", "data/", f"resume={earlier}"):
        assert said in str(error.value)
    check_checkpoint_file("resume", earlier)


def test_a_shard_that_is_damaged_or_missing_is_named(tmp_path):
    folder = sharded(tmp_path / "a.ckpt")
    shard = folder / "__0_0.distcp"
    data = bytearray(shard.read_bytes())
    data[data.find(trained().weight.detach().numpy().tobytes()) + 9] ^= 4
    shard.write_bytes(data)
    with pytest.raises(
        ConfigError, match=r"'.*__0_0.distcp' is damaged.*from byte .*its folder has no other"
    ):
        check_checkpoint_file("resume", folder)
    shard.unlink()
    with pytest.raises(ConfigError, match=r"'.*__0_0.distcp' is damaged.*FileNotFound"):
        check_checkpoint_file("resume", folder)


def test_no_flipped_bit_changes_a_weight_unseen(tmp_path):
    draw = random.Random(0)
    wanted = weights(trained())
    for place in (single(tmp_path / "a.ckpt"), sharded(tmp_path / "b.ckpt")):
        files = sorted(place.iterdir()) if place.is_dir() else [place]
        seen = 0
        for number in range(60):
            file = files[number % len(files)]
            whole = file.read_bytes()
            data = bytearray(whole)
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            file.write_bytes(data)
            try:
                check_checkpoint_file("resume", place)
            except ConfigError:
                seen += 1
            else:
                policy = Policy()
                load_checkpoint(policy, place, SETTINGS)
                found = weights(policy)
                assert all(torch.equal(found[name], wanted[name]) for name in wanted), (file, data)
            file.write_bytes(whole)
        assert seen >= 20
        check_checkpoint_file("resume", place)


def test_a_checkpoint_without_checksums_is_read_with_a_line(tmp_path, caplog):
    folder = sharded(tmp_path / "a.ckpt")
    (folder / CHECKSUMS).unlink()
    check_checkpoint_file("resume", folder)
    assert "has no CHECKSUMS" in caplog.text
    changed = bytearray((folder / ".metadata").read_bytes())
    write_checksums(folder)
    changed[-20] ^= 1
    (folder / ".metadata").write_bytes(changed)
    with pytest.raises(ConfigError, match=r".metadata' is damaged.*expected SHA-256 \w+, got \w+"):
        check_checkpoint_file("resume", folder)


def test_reading_leaves_torch_as_it_was(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    before = dcp.FileSystemReader.read_metadata
    with without_code():
        pass
    assert dcp.FileSystemReader.read_metadata is before
    data = io.BytesIO()
    torch.save(Evil(tmp_path / "marker"), data)
    data.seek(0)
    torch.load(data, weights_only=False).close()
    assert (tmp_path / "marker").exists()
    with pytest.raises(ConfigError):
        read_file("checkpoint", tmp_path / "marker")
    shutil.rmtree(tmp_path)
