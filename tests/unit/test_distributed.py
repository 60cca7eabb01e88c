"""What ranks tell each other, over gloo in real processes."""

import pytest
import torch.multiprocessing as mp

from herl import HerlError, SamplerError
from herl.distributed import gather, gather_results, rank, together, world_size
from herl.loss import Stats
from herl.metrics.running import RunningStats


def run_on_ranks(work, ranks, folder):
    mp.spawn(_rank, (work, ranks, f"file://{folder}/store"), nprocs=ranks)


def _rank(place, work, ranks, store):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=store, rank=place, world_size=ranks)
    work()
    dist.destroy_process_group()


def test_alone_nothing_needs_to_be_set_up():
    assert (rank(), world_size()) == (0, 1)
    assert gather("a") == ["a"]
    assert gather_results(lambda: 1) == [1]
    assert together(lambda: 1) == 1


def _gathers():
    assert world_size() == 3
    assert gather({"rank": rank()}) == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
    assert gather_results(lambda: rank() * 10) == [0, 10, 20]


def _one_fails():
    def work():
        if rank() == 1:
            raise SamplerError("the engine of rank 1 is gone")

    with pytest.raises(SamplerError, match="the engine of rank 1 is gone"):
        gather_results(work)


def _one_has_a_bug():
    def work():
        if rank() == 2:
            raise ZeroDivisionError("a bug in a plug-in")
        return rank()

    expected = ZeroDivisionError if rank() == 2 else HerlError
    with pytest.raises(expected, match="a bug in a plug-in"):
        together(work)
    assert together(rank) == rank(), "the ranks are still in step"


def _uneven_statistics():
    """Rank 0 saw three tokens and a revision, rank 1 one token, rank 2 nothing at all."""
    import torch

    stats = RunningStats()
    if rank() == 0:
        means = {
            "entropy": (torch.tensor(6.0), torch.tensor(3)),
            "ratio": (torch.tensor(2.0), torch.tensor(1)),
        }
        stats.add_stats(Stats(means=means, maxima={"drift": torch.tensor([0.1, 0.2])}))
    if rank() == 1:
        means = {"entropy": (torch.tensor(1.0), torch.tensor(1))}
        stats.add_stats(Stats(means=means, maxima={"drift": torch.tensor([0.5])}))
    assert stats.compute() == {"entropy": 7 / 4, "ratio": 2.0, "drift": 0.5}


@pytest.mark.parametrize("work", [_gathers, _one_fails, _one_has_a_bug, _uneven_statistics])
def test_three_ranks(tmp_path, work):
    run_on_ranks(work, 3, tmp_path)
