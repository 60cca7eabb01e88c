"""Communication between ranks, over gloo in real processes."""

import sys
import threading

import pytest

from herl import HerlError, SamplerError
from herl.distributed import (
    gather,
    gather_results,
    new_group,
    rank,
    speaking_in,
    together,
    world_size,
)
from herl.update.loss.base import Stats
from herl.update.running_stats import RunningStats
from tests.support.ranks import run_on_ranks


def test_alone_nothing_needs_to_be_set_up():
    assert (rank(), world_size()) == (0, 1)
    assert gather("a") == ["a"]
    assert gather_results(lambda: 1) == [1]
    assert together(lambda: 1) == 1
    assert new_group() is None


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


def _one_exits():
    def work():
        if rank() == 1:
            sys.exit(3)

    with pytest.raises(HerlError, match="rank 1 failed with SystemExit: 3"):
        together(work)
    assert gather(rank()) == [0, 1, 2]


def _two_threads():
    """What a thread says in its own group never answers what the main thread asks, in whichever order."""
    group, started = new_group(), threading.Event()

    def beside():
        with speaking_in(group):
            started.set()
            said.extend(gather(("beside", n, rank())) for n in range(50))

    said = []
    thread = threading.Thread(target=beside)
    if rank() == 0:
        thread.start()
        started.wait()
    main = [gather(("main", n, rank())) for n in range(50)]
    if rank() != 0:
        thread.start()
    thread.join()
    assert main == [[("main", n, place) for place in range(3)] for n in range(50)]
    assert said == [[("beside", n, place) for place in range(3)] for n in range(50)]


def _one_has_a_bug():
    def work():
        if rank() == 2:
            raise ZeroDivisionError("a bug in a plug-in")
        return rank()

    expected = ZeroDivisionError if rank() == 2 else HerlError
    with pytest.raises(expected, match="a bug in a plug-in"):
        together(work)
    assert together(rank) == rank(), "the ranks are still in step"


def _one_fails_between_exchanges():
    """Wherever one rank fails, and in whatever exchange the others wait then, all end, and are in step."""

    def rounds(failing, at):
        def work():
            found = []
            for number in range(4):
                if rank() in failing and number == at:
                    raise SamplerError(f"rank {rank()} before exchange {number}")
                if number == 0:
                    found.append(gather(number))
                elif number == 1:
                    found.append(together(rank))
                elif number == 2:
                    found.append(gather_results(rank))
            return found

        return work

    for failing in ((0,), (1,), (2,), (1, 2), (0, 1, 2)):
        for at in range(4):  # the last is after all exchanges
            with pytest.raises(SamplerError, match=f"rank {failing[0]} before exchange {at}"):
                together(rounds(failing, at))
    assert together(rounds((), 9)) == [[0] * 3, rank(), [0, 1, 2]], "the ranks are still in step"


def _errors_that_all_ranks_raise_pass_through():
    """An inner error is not told twice, even if it is raised from another one, or again later."""
    known = SamplerError("the server is gone")

    def inner():
        if rank() == 1:
            raise known

    def outer():
        try:
            together(inner)
        except SamplerError as error:
            raise ValueError("no answers") from error

    for _ in range(2):
        with pytest.raises(SamplerError, match="the server is gone"):
            together(lambda: together(lambda: together(inner)))
        with pytest.raises(SamplerError if rank() == 1 else HerlError, match="the server is gone"):
            together(inner)
    with pytest.raises(ValueError if rank() == 0 else HerlError, match="no answers"):
        together(outer)
    with pytest.raises(HerlError, match="gone"):
        together(lambda: (gather(1), inner(), gather(2), gather(3)))
    assert gather(rank()) == [0, 1, 2]


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


@pytest.mark.integration
@pytest.mark.parametrize(
    "work",
    [
        _gathers,
        _one_fails,
        _one_exits,
        _two_threads,
        _one_has_a_bug,
        _one_fails_between_exchanges,
        _errors_that_all_ranks_raise_pass_through,
        _uneven_statistics,
    ],
)
def test_three_ranks(tmp_path, work):
    run_on_ranks(work, 3, tmp_path)


def _packing_is_chosen_together():
    """In a sharded model, with a correct kernel and with one that fails in the second layer or in backward."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh

    from herl.models import shared_attention
    from herl.models.fsdp import load_sharded
    from herl.models.pretrained import PretrainedModel
    from herl.update.packing_probe import choose_packing

    cpu, sound = torch.device("cpu"), shared_attention.blockwise_attention
    model = PretrainedModel(path="tiny", gradient_checkpointing=True)
    policy = load_sharded(model, init_device_mesh("cpu", (world_size(),)))
    ids = torch.arange(3, 40)[None]

    def gradient():
        policy.train()
        policy(input_ids=ids, labels=ids).loss.backward()
        found = torch.cat([p.grad.full_tensor().flatten() for p in policy.parameters()])
        policy.zero_grad()
        return found

    before = gradient()
    assert choose_packing(policy, cpu) == "shared"
    assert torch.equal(gradient(), before)
    calls = []

    def second_fails(*arguments, **settings):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no kernel")
        return sound(*arguments, **settings)

    def backward_fails(*arguments, **settings):
        output = sound(*arguments, **settings)
        output.register_hook(lambda gradient: gradient.view(-1, 7, 11, 13))
        return output

    for failing in (second_fails, backward_fails):
        shared_attention.blockwise_attention = failing
        assert choose_packing(policy, cpu) == "packed"
        assert all(parameter.grad is None for parameter in policy.parameters())
        torch.testing.assert_close(gradient(), before, rtol=1e-6, atol=0)
    shared_attention.blockwise_attention = sound


def _one_rank_cannot_try_a_packing():
    """Every rank has the whole model; a fault on one is known to all, and none waits."""
    import torch

    from herl.models import shared_attention
    from herl.models.pretrained import PretrainedModel
    from herl.update.packing_probe import choose_packing

    sound = shared_attention.blockwise_attention

    def attend(*arguments, **settings):
        if rank() == 1:
            raise RuntimeError("no kernel on this card")
        return sound(*arguments, **settings)

    shared_attention.blockwise_attention = attend
    assert choose_packing(PretrainedModel(path="tiny").load(), torch.device("cpu")) == "packed"


def _choices():
    _packing_is_chosen_together()
    _one_rank_cannot_try_a_packing()


@pytest.mark.integration
def test_two_ranks_choose_the_same_rows(tmp_path):
    run_on_ranks(_choices, 2, tmp_path)


def _nested_alone():
    raise ZeroDivisionError("a bug")


def test_alone_an_error_is_raised_as_it_is():
    for work in (_nested_alone, lambda: together(_nested_alone)):
        with pytest.raises(ZeroDivisionError, match="a bug"):
            together(work)
