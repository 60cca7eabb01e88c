"""How FSDP divides the ranks, and when gradients travel."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from herl.errors import ConfigError
from herl.models.fsdp import FSDPStrategy, check_trainer, synchronize_gradients


def on(nodes, cards, **options):
    strategy = FSDPStrategy(**options)
    strategy.num_nodes = nodes
    strategy.parallel_devices = [torch.device("cpu")] * cards
    return strategy


@pytest.mark.parametrize(("shards", "expected"), [("all", 16), ("node", 8), (4, 4), (1, 1)])
def test_a_copy_lies_on_all_ranks_those_of_a_node_or_a_number(shards, expected):
    assert on(2, 8, shards=shards).shard_count(16) == expected


@pytest.mark.parametrize("shards", [0, -2, "cards", 1.5])
def test_other_shards_are_refused(shards):
    with pytest.raises(ConfigError, match=r"trainer.strategy.shards: expected all, node or a number"):
        FSDPStrategy(shards=shards)


def test_shards_divide_the_ranks():
    trainer = L.Trainer(accelerator="cpu", devices=4, strategy=FSDPStrategy(shards=3), logger=False)
    with pytest.raises(ConfigError, match="a number that divides the 4 processes of the run, got 3"):
        check_trainer(trainer)


@pytest.mark.parametrize(("once", "within"), [(False, [True, True]), (True, [False, True])])
def test_copies_exchange_gradients_once_a_step_and_shards_each_time_or_once(once, within):
    """Flags of rank 0 of four, whose process group sends nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        policy = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
        for module in [*policy, policy]:
            fully_shard(module, mesh=mesh)
        strategy = on(1, 4, shards=2, reduce_gradients_once=once)
        groups = [layer._get_fsdp_state()._fsdp_param_group for layer in policy]
        found = []
        for last in (False, True):
            synchronize_gradients(SimpleNamespace(strategy=strategy), policy, last)
            found += [(group.reduce_grads, group.all_reduce_grads) for group in groups]
        assert [reduces for reduces, _ in found] == [one for one in within for _ in groups]
        assert [crosses for _, crosses in found] == [False, False, True, True]
    finally:
        dist.destroy_process_group()
