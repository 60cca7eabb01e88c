from dataclasses import replace

import pytest
import torch
from torchmetrics import MeanMetric

from herl.clock import PhaseClock
from herl.evaluation.intervals import evaluation_rows
from herl.metrics.collection import collection_metrics
from herl.metrics.rubric import RubricMetrics, rubric_metrics
from herl.metrics.throughput import throughput_metrics, trained_flops
from herl.rollout.collect import Collection
from herl.seeds import derive_seed
from herl.testing import make_experience, make_judged, make_rollout, make_task
from herl.types import Criterion, Group, Member, Rubric, Task
from herl.update.loss.base import Stats
from herl.update.running_stats import MAX_SAMPLES, RunningStats


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
    empty = Collection(groups=(), experiences=(), dropped={"prompts": 2})
    counts = {"train/groups": 0.0, "hindsight/revisions": 0.0}  # not means
    assert collection_metrics(empty) == {"train/dropped_prompts": 2.0} | counts


def test_seeds_are_a_hash_of_all_parts_with_their_order_and_type():
    seeds = {
        derive_seed(*parts)
        for parts in [(0, 1), (1, 0), (0, "1"), (1,), ("0", 1), (0, 1, 0), ("01",), (0, 1, "a")]
    }
    assert len(seeds) == 8
    assert derive_seed(0, "a") == derive_seed(0, "a")
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_percentiles_are_over_all_micro_batches():
    stats = RunningStats()
    values = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).float()
    for part in values.split(137):
        stats.add_stats(Stats(percentiles={"ratio": part}))
    assert stats.compute() == {"ratio_p01": 10.0, "ratio_p50": 500.0, "ratio_p99": 990.0}


def test_percentiles_of_very_many_values_are_those_of_a_part():
    stats = RunningStats()
    stats.add_stats(Stats(percentiles={"ratio": torch.linspace(0, 1, 5 * MAX_SAMPLES + 3)}))
    assert stats.compute() == pytest.approx(
        {"ratio_p01": 0.01, "ratio_p50": 0.5, "ratio_p99": 0.99}, abs=1e-4
    )


def answer(text, reward, *, id="group/0", parent_id=None, **met):
    return make_judged(reward, met=met, rollout=make_rollout(text, id=id, parent_id=parent_id))


def test_rubric_metrics_leave_out_what_was_not_judged():
    task = make_task({"fish": 3.0, "river": 2.0, "advert": -1.0})
    found = rubric_metrics(
        "heldout",
        [
            (task, answer("a", 1.0, fish=True, river=True, advert=False)),
            (task, answer("b", 0.5, fish=True, river=None, advert=True)),
            (task, answer("c", None, fish=None, river=None, advert=None)),
        ],
    )
    assert found == pytest.approx(
        {
            "heldout/reward": 0.75,
            "heldout/criteria_met": 0.75,
            "heldout/perfect": 0.5,
            "heldout/abstained": 4 / 9,
            "heldout/answer_tokens": 2.0,
            "heldout/quotes": 0.0,
            "heldout/truncated": 0.0,
            "heldout_criterion/fish": 1.0,
            "heldout_criterion/river": 1.0,
            "heldout_criterion/advert": 0.5,
        }
    )


def test_answers_that_recite_a_criterion_are_counted():
    task = make_task({"a fish in the river": 1.0})  # "Says a fish in the river."
    pairs = [(task, answer(text, 0.0)) for text in ("It says a fish in the river!", "A fish.")]
    assert rubric_metrics("revision", pairs)["revision/quotes"] == 0.5


def test_rubric_metrics_add_up_over_updates_and_hold_sums_and_counts():
    task = make_task({"fish": 1.0})
    pairs = [(task, answer("a", float(i % 3 == 0), fish=i % 3 == 0)) for i in range(20)]
    metrics = RubricMetrics("train")
    for start in (0, 1, 8):
        metrics.update(pairs[start : {0: 1, 1: 8, 8: 20}[start]])
    assert metrics.compute() == pytest.approx(rubric_metrics("train", pairs))
    mean = metrics._means["train/reward"]
    assert isinstance(mean, MeanMetric)
    assert (float(mean.mean_value), float(mean.weight)) == (7.0, 20.0)


def test_categories_have_curves_and_too_many_criteria_have_none():
    criteria = tuple(Criterion(id=str(i), text="x", category="AB"[i % 2]) for i in range(70))
    task = Task(id="t", messages=({"role": "user", "content": "x"},), rubric=Rubric(criteria=criteria))
    one = make_judged(0.5, met={str(i): i % 2 == 0 for i in range(70)})
    found = rubric_metrics("train", [(task, one)])
    assert {n: v for n, v in found.items() if "_" in n.split("/")[0]} == {
        "train_category/A": 1.0,
        "train_category/B": 0.0,
    }


def test_rewards_have_a_curve_for_each_source_unless_there_are_too_many():
    pairs = [
        (replace(make_task(), source=source), answer("a", reward))
        for source, reward in (
            ("math", 1.0),
            ("math", 0.5),
            ("chat", 0.25),
            ("chat", None),
            ("", 0.0),
            ("code", None),
        )
    ]
    found = {name: value for name, value in rubric_metrics("train", pairs).items() if "_source" in name}
    assert found == {"train_source/math": 0.75, "train_source/chat": 0.25}
    many = [(replace(make_task(), source=str(n)), answer("a", 1.0)) for n in range(65)]
    assert not any("_source" in name for name in rubric_metrics("train", many))
    assert sum("_source" in name for name in rubric_metrics("train", many[:64])) == 64


def test_a_criterion_whose_id_is_but_its_place_has_no_curve_of_its_own():
    task = replace(
        make_task(),
        rubric=Rubric(
            criteria=(
                Criterion(id="c1", text="a", category="facts", named=False),
                Criterion(id="tone", text="b", category="style"),
            )
        ),
    )
    pairs = [(task, make_judged(0.5, met={"c1": True, "tone": False}))]
    found = rubric_metrics("train", pairs)
    assert {name: value for name, value in found.items() if "_" in name.split("/")[0]} == {
        "train_category/facts": 1.0,
        "train_category/style": 0.0,
        "train_criterion/tone": 0.0,
    }
    assert found["train/criteria_met"] == 0.5
    rows = {row.name for row in evaluation_rows(pairs)}
    assert "criterion/tone" in rows
    assert "criterion/c1" not in rows


def test_what_revisions_changed():
    task = make_task({"fish": 1.0, "river": 1.0, "brown": 1.0, "advert": -1.0})
    draft = answer("it eats fish now", 0.25, fish=True, river=False, brown=None, advert=True)
    copy = answer("it eats fish now ", 0.25, id="group/0/0", parent_id="group/0",
                  fish=True, river=False, brown=True, advert=True)  # fmt: skip
    other = answer("a river", 0.75, id="group/0/1", parent_id="group/0",
                   fish=False, river=True, brown=True, advert=False)  # fmt: skip
    unjudged = answer(
        "x", None, id="group/0/2", parent_id="group/0", fish=None, river=None, brown=None, advert=None
    )
    members = (Member(judged=draft, reward=0.25, bonus=0.025), Member(judged=other, reward=0.75))
    group = Group(
        id="g",
        task=task, prompt_ids=(1,), attempts=(draft,), revisions=(copy, other, unjudged), members=members,
        advantages=(-1.0, 1.0),
    )  # fmt: skip
    experiences = (
        make_experience(draft.rollout, advantage=-1.0),
        make_experience(other.rollout, advantage=0.5),
    )
    found = collection_metrics(Collection(groups=(group,), experiences=experiences, dropped={}))
    expected = {
        "hindsight/uplift": 0.25,
        "hindsight/mended": 2 / 4,  # river and advert by one of the two that were judged
        "hindsight/broken": 1 / 2,
        "hindsight/copies": 1 / 3,
        "hindsight/edit_distance": (0.0 + 1.0 + 1.0) / 3,
        "hindsight/accepted": 1.0,
        "hindsight/revised_groups": 1.0,
        "hindsight/gradient_share": 1 / 3,
        "bonus/mean": 0.025,
        "bonus/paid": 1.0,
        "train/perfect_groups": 0.0,
        "train/zero_signal_groups": 0.0,
        "train/reward_best": 0.25,
        "revision/reward": 0.5,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_a_criterion_is_suppressed_where_only_answers_with_a_negative_advantage_fulfill_it():
    task = make_task({"fish": 3.0, "river": 1.0, "rude": -1.0})
    both = answer("a", 1.0, fish=True, river=True, rude=True)
    fish = answer("b", 0.8, fish=True, river=False, rude=True)
    river = answer("c", 0.3, fish=False, river=True, rude=True)
    polite = answer("d", 0.2, fish=None, river=None, rude=False)  # fulfilled by not being met
    score = answer("e", 0.2)  # by a holistic judge
    cases = [
        ((fish, river), (1.0, -1.0), True),
        ((both, river), (1.0, -1.0), False),
        ((fish, polite), (1.0, -1.0), True),
        ((fish, polite), (-1.0, 1.0), True),
        ((fish, river), (0.0, 0.0), False),
        ((fish, river), (1.0, 0.0), False),
        ((score, score), (1.0, -1.0), None),
    ]
    groups = [
        Group(
            id=str(i), task=task, prompt_ids=(1,), advantages=advantages,
            members=tuple(Member(judged=one, reward=one.reward) for one in answers),
        )
        for i, (answers, advantages, _) in enumerate(cases)
    ]  # fmt: skip
    for group, (_, _, expected) in zip(groups, cases, strict=True):
        found = collection_metrics(Collection(groups=(group,), experiences=(), dropped={}))
        assert found.get("criteria/suppressed") == expected
    found = collection_metrics(Collection(groups=tuple(groups), experiences=(), dropped={}))
    assert found["criteria/suppressed"] == 3 / 6


def test_rates_of_a_step():
    rollout = make_rollout(token_ids=(1, 2, 3, 4))
    one = make_judged(1.0, rollout=rollout)
    group = Group(id="g", task=make_task(), prompt_ids=(1,), attempts=(one, one))
    collection = Collection(groups=(group,), experiences=(make_experience(rollout),), dropped={})
    found = throughput_metrics(collection, {"sample": 2.0, "revise": 2.0, "update": 0.5})
    assert found["throughput/answers_per_second"] == 2 / 4.5
    assert found["throughput/sampled_tokens_per_second"] == 8 / 4.0
    assert found["throughput/trained_tokens_per_second"] == 4 / 0.5
    assert found["time/step"] == 4.5
    assert 0.01 < found["throughput/memory_gib"] < 64


def test_a_lap_is_what_was_spent_since_the_last():
    clock = PhaseClock()
    clock.add({"sample": 2.0, "judge": 1.0})
    assert clock.lap() == {"sample": 2.0, "judge": 1.0}
    clock.add({"sample": 0.5})
    assert clock.lap() == {"sample": 0.5}
    assert clock.lap() == {}
    assert dict(clock.seconds) == {"sample": 2.5, "judge": 1.0}


def test_what_passed_in_another_thread_is_in_no_lap():
    clock = PhaseClock()
    clock.add({"update": 1.0})
    clock.add_beside({"sample": 2.0, "judge": 1.0})
    assert clock.lap() == {"update": 1.0}
    assert dict(clock.seconds) == {"update": 1.0, "sample": 2.0, "judge": 1.0}
    assert clock.lap() == {}


def test_phases_of_a_batch_drawn_ahead_give_rates_but_do_not_lengthen_the_step():
    one = make_judged(1.0, rollout=make_rollout(token_ids=(1, 2, 3, 4)))
    group = Group(id="g", task=make_task(), prompt_ids=(1,), attempts=(one,))
    beside = {"sample": 3.0, "judge": 1.0}
    collection = Collection(groups=(group,), experiences=(), dropped={}, beside=beside)
    found = throughput_metrics(collection, {"update": 2.0, "wait": 0.5, "judge": 0.5})
    assert found["throughput/answers_per_second"] == 1 / 3.0
    assert found["throughput/sampled_tokens_per_second"] == 4 / 3.0
    assert (found["time/step"], found["time/sample"], found["time/judge"]) == (3.0, 3.0, 1.5)


def test_a_clock_tells_what_is_being_done():
    clock = PhaseClock()
    assert clock.phase == ""
    with clock.time("sample"):
        with clock.time("judge"):
            assert clock.phase == "judge"
        assert clock.phase == "sample"
    assert clock.phase == ""


def test_a_float_keeps_its_digits():
    stats = RunningStats()
    stats.add("learning_rate", 1e-6)
    assert stats.compute() == {"learning_rate": 1e-6}


def test_flops_of_an_update_count_each_context_once_and_the_head_for_answers(policy):
    head, body = policy.get_output_embeddings().weight, 0
    embeddings = policy.get_input_embeddings().weight
    for parameter in policy.parameters():
        body += 0 if parameter is head or parameter is embeddings else parameter.numel()
    experiences = [
        make_experience(make_rollout(id=str(i), token_ids=[4] * 5), context_ids=(1, 2, 3)) for i in (0, 1)
    ]
    assert trained_flops(policy, experiences) == 6 * body * (3 + 10) + 6 * head.numel() * 10
    policy.requires_grad_(False)
    assert trained_flops(policy, experiences) == 4 * body * (3 + 10) + 4 * head.numel() * 10
