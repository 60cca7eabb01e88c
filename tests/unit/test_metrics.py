import pytest
import torch

from herl.clock import PhaseClock
from herl.loss import Stats
from herl.metrics.collection import collection_metrics
from herl.metrics.running import RunningStats
from herl.seeds import derive_seed


def test_sums_add_up_over_micro_batches_as_one_mean():
    stats = RunningStats()
    for total, count, drift in ((6.0, 3, [0.1, 0.4]), (1.0, 1, [0.2]), (0.0, 0, [])):
        stats.add_stats(
            Stats(
                means={"entropy": (torch.tensor(total), torch.tensor(count))},
                maxima={"mismatch_max": torch.tensor(drift)},
            )
        )
    stats.add("loss", 0.5)
    stats.add("loss", torch.tensor(1.5))
    assert stats.compute() == pytest.approx({"entropy": 7 / 4, "loss": 1.0, "mismatch_max": 0.4})


def test_what_is_no_number_is_shown():
    stats = RunningStats()
    for value in (float("nan"), 1.0):
        stats.add("loss", value)
        stats.add_stats(Stats(maxima={"mismatch_max": torch.tensor([value])}))
    assert all(value != value for value in stats.compute().values())


def test_a_mean_over_nothing_does_not_appear():
    stats = RunningStats()
    stats.add_stats(Stats(means={"revision_ratio": (torch.tensor(0.0), torch.tensor(0))}))
    assert stats.compute() == {}


def test_a_clock_adds_up_phases_also_when_they_raise():
    clock, other = PhaseClock(), PhaseClock()
    with pytest.raises(KeyError), clock.time("judge"):
        raise KeyError
    with other.time("judge"), other.time("sample"):
        pass
    clock.add(other.seconds)
    assert set(clock.seconds) == {"judge", "sample"}
    assert clock.seconds["judge"] > other.seconds["judge"]


def test_metrics_of_nothing_are_left_out():
    from herl.experience import Collection

    empty = Collection(groups=(), experiences=(), dropped={"prompts": 2})
    assert collection_metrics(empty) == {"train/dropped_prompts": 2.0}


def test_seeds_are_a_hash_of_all_parts_with_their_order_and_type():
    seeds = {
        derive_seed(*parts)
        for parts in [(0, 1), (1, 0), (0, "1"), (1,), ("0", 1), (0, 1, 0), ("01",), (0, 1, "a")]
    }
    assert len(seeds) == 8
    assert derive_seed(0, "a") == derive_seed(0, "a")
    assert all(0 <= seed < 2**63 for seed in seeds)
