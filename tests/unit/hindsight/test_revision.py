from functools import partial
from pathlib import Path

import pytest

from herl import ConfigError, Criterion, NoHindsight, Rubric, Task
from herl.hindsight.candidates import all_imperfect, bottom_k, tied_best, top_k
from herl.hindsight.revision import RevisionBuilder
from herl.testing import check_hindsight_builder, make_judged, make_rollout, make_task
from herl.types import Turn

GOLDEN = Path(__file__).parents[2] / "golden"


def group(*rewards, met=()):
    counts = met or [0] * len(rewards)
    return [
        make_judged(reward, met={f"c{k}": k < count for k in range(3)}, id=f"group/{i}")
        for i, (reward, count) in enumerate(zip(rewards, counts, strict=True))
    ]


TASK = make_task({"c0": 1.0, "c1": 1.0, "c2": 1.0})


def ids(candidates):
    return [judged.rollout.id for judged in candidates]


def test_tied_best_takes_exact_ties_with_more_met_criteria_first():
    judged = group(0.5, 0.7, 0.7 + 1e-7, 0.7, met=(0, 1, 2, 2))
    assert ids(tied_best(TASK, judged)) == ["group/2", "group/3", "group/1"]
    assert ids(tied_best(TASK, judged, max_candidates=1)) == ["group/2"]


def test_top_k_takes_the_best_and_breaks_ties_by_met_criteria_then_by_order():
    judged = group(0.5, 0.7, 0.7, 0.6, met=(0, 1, 1, 0))
    assert ids(top_k(TASK, judged, k=1)) == ["group/1"]
    assert ids(top_k(TASK, judged, k=3)) == ["group/1", "group/2", "group/3"]


def test_bottom_k_takes_the_worst():
    assert ids(bottom_k(TASK, group(0.5, 0.7, 0.2, 0.6), k=2)) == ["group/2", "group/0"]


def test_all_imperfect_takes_everything_below_perfect():
    assert ids(all_imperfect(TASK, group(0.5, 1.0, 0.0))) == ["group/0", "group/2"]


def test_a_bad_thing_that_was_avoided_counts_as_fulfilled():
    task = make_task({"fish": 1.0, "rude": -1.0})
    rude, polite = (
        make_judged(0.5, met={"fish": True, "rude": True}, id="rude"),
        make_judged(0.5, met={"fish": True, "rude": False}, id="polite"),
    )
    assert ids(tied_best(task, [rude, polite])) == ["polite", "rude"]
    assert ids(top_k(task, [rude, polite], k=1)) == ["polite"]
    assert (rude.fulfilled_count(task), polite.fulfilled_count(task)) == (1, 2)


def test_a_group_with_a_perfect_attempt_is_not_revised():
    builder = RevisionBuilder(candidates=all_imperfect)
    judged = [
        make_judged(1.0, met={"fish": True, "river": True}),
        make_judged(0.0, met={"fish": False, "river": False}, id="group/1"),
    ]
    assert builder.build(make_task(), judged) == []
    assert len(builder.build(make_task(), judged[1:])) == 1


@pytest.mark.parametrize(("draft", "words"), [(False, "rewrite_prompt.txt"), (True, "revision_prompt.txt")])
def test_prompt_tells_request_met_missed_and_the_draft_if_wished_through_a_chat_message(draft, words):
    task = Task(
        id="t",
        messages=(
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Describe the otter."},
        ),
        rubric=Rubric(
            criteria=(
                Criterion(id="food", text="Says that it eats fish.", weight=3),
                Criterion(id="home", text="Says that it lives in rivers.", weight=4.5),
                Criterion(id="advert", text="Advertises a zoo.", weight=-2, undesirable=True),
                Criterion(id="unclear", text="Is kind.", weight=1),
            )
        ),
    )
    verdicts = {"food": True, "home": False, "advert": True, "unclear": None}
    rollout = make_rollout("It eats fish. {met} Visit our zoo today!")
    judged = make_judged(0.3, met=verdicts, rollout=rollout)
    [hindsight] = RevisionBuilder(draft=draft).build(task, [judged])
    assert hindsight.messages[0] == {"role": "system", "content": "Be brief."}
    assert hindsight.messages[-1]["role"] == "user"
    assert hindsight.messages[-1]["content"] + "\n" == (GOLDEN / words).read_text()
    assert [c.id for c in hindsight.met] == ["food"]
    assert [c.id for c in hindsight.missed] == ["home", "advert"]


def test_an_attempt_that_missed_nothing_that_could_be_judged_is_not_revised():
    judged = make_judged(0.6, met={"fish": True, "river": None})
    assert RevisionBuilder().build(make_task(), [judged]) == []


def test_a_template_without_its_fields_is_refused():
    with pytest.raises(ConfigError, match=r"hindsight.template: expected the fields"):
        RevisionBuilder(template="Improve {draft}.")
    with pytest.raises(ConfigError, match=r"request and optionally draft, met, missed; got reply, request"):
        RevisionBuilder(template="{request} {reply}")


def test_a_template_may_leave_out_draft_and_criteria():
    task = make_task()
    judged = make_judged(0.6, met={"fish": True, "river": False}, rollout=make_rollout("It eats fish."))
    for template, expected in (
        ("{request} Mend: {missed}", "Describe the otter. Mend: - Says river. (2)"),
        ("Better: {request}", "Better: Describe the otter."),
    ):
        [hindsight] = RevisionBuilder(template=template).build(task, [judged])
        assert hindsight.messages[-1]["content"] == expected


@pytest.mark.parametrize("builder", [NoHindsight(), RevisionBuilder(), RevisionBuilder(partial(top_k, k=3))])
def test_builders_keep_the_contract(builder):
    check_hindsight_builder(builder)


def test_the_draft_of_an_episode_shows_all_its_turns():
    turn = Turn(text="Let me see.", end=1, reply=({"role": "tool", "content": "42"},), reply_ids=())
    attempt = make_judged(0.5, met={"fish": False}, rollout=make_rollout("It is 42.", turns=[turn]))
    builder = RevisionBuilder(all_imperfect, template="{request} {met} {missed} {draft}")
    [hindsight] = builder.build(make_task(), [attempt])
    assert hindsight.messages[-1]["content"].endswith(attempt.rollout.transcript)
