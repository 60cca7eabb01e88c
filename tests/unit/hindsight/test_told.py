"""The rubric told: a prompt that needs no attempts."""

from functools import partial

import pytest

from herl.errors import ConfigError
from herl.hindsight.gate import GatedHindsight, gated
from herl.hindsight.told import ToldBuilder
from herl.testing import check_hindsight_builder, make_judged, make_task
from herl.types import Criterion, Rubric, Task

PROMPT = """Answer this request.
Request: Describe the otter.
A good answer meets:
- Says {rubric}. (3)
- Avoid: Advertises a zoo. (2)
Meet them all. Reply with the answer only."""


def test_the_prompt_holds_the_request_and_the_whole_rubric_through_a_chat_message():
    rubric = Rubric(
        criteria=(
            Criterion(id="a", text="Says {rubric}.", weight=3),
            Criterion(id="b", text="Advertises a zoo.", weight=-2, undesirable=True),
        )
    )
    messages = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Describe the otter."},
    )
    task = Task(id="t", messages=messages, rubric=rubric, reference="The one good answer.")
    told = ToldBuilder().tell(task)
    assert told == (messages[0], {"role": "user", "content": PROMPT})


def test_a_task_without_a_rubric_has_nothing_to_tell():
    task = Task(id="t", messages=({"role": "user", "content": "x"},), rubric=Rubric(criteria=()))
    assert ToldBuilder().tell(task) is None
    assert ToldBuilder().build(task, [make_judged(0.5)]) == []


def test_at_test_time_the_best_attempt_gets_the_same_prompt_until_it_is_perfect():
    task, builder = make_task(), ToldBuilder(perfect=0.9)
    group = [make_judged(0.2, id="a"), make_judged(0.6, id="b"), make_judged(None, id="c")]
    [hindsight] = builder.build(task, group)
    assert (hindsight.parent.id, hindsight.messages) == ("b", builder.tell(task))
    assert builder.build(task, [*group, make_judged(0.9, id="d")]) == []


@pytest.mark.parametrize("template", ["{rubric}", "{request}", "{request} {rubric} {missed}"])
def test_a_template_has_both_fields_and_no_others(template):
    with pytest.raises(ConfigError, match=r"hindsight.template: expected the fields request, rubric"):
        ToldBuilder(template=template)


@pytest.mark.parametrize("builder", [ToldBuilder(), gated(ToldBuilder())])
def test_the_builder_keeps_the_contract(builder):
    check_hindsight_builder(builder)


def test_a_gate_closes_after_its_share_of_the_run_and_knows_no_rewards():
    gate, task = gated(ToldBuilder(), until=0.5), make_task()
    for progress, open in ((0.4, True), (0.5, False)):
        gate.begin_batch(progress)
        assert (gate.tell(task) is not None) == open
        gate.end_batch([])
        assert gate.tell(task) is not None, "it is open outside of training batches"
    for name in ("below_median", "only_flat"):
        with pytest.raises(
            ConfigError, match=rf"module.hindsight_gate.{name}: expected false with hindsight=told"
        ):
            partial(GatedHindsight, **{name: True})(ToldBuilder())
