"""A template that refuses a prompt, or a tokenizer larger than the model, is found before anything is sampled."""

from copy import deepcopy
from dataclasses import replace

import pytest

from herl import Criterion, DataError, Rubric
from herl.data.sources import ListedTasks
from herl.environment import NoEnvironment
from herl.rollout.check_prompts import MAX_PROMPTS, check_prompts, checked_prompt
from herl.testing import make_task

NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
)
SYSTEM = {"role": "system", "content": "Be brief."}


def with_system(task):
    return replace(task, messages=(SYSTEM, *task.messages))


@pytest.fixture
def changed(tokenizer):
    """A tokenizer that a test may change."""
    return deepcopy(tokenizer)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (NO_SYSTEM, "System role not supported"),
        ("{{ messages[0]['content'] | no_such_filter }}", "no_such_filter"),
        ("{{ messages[0].name.first }}", "has no attribute 'name'"),
        ("{{ messages[0]['content'] + 1 }}", "can only concatenate str"),
        ("{{ 1 // 0 }}", "by zero"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_a_template_that_refuses_is_quoted_with_file_and_prompt(changed, template, words):
    changed.chat_template = template
    tasks = ListedTasks([with_system(make_task(id="a7"))])
    tasks.path = "rows.jsonl"
    with pytest.raises(DataError) as error:
        check_prompts({"train": tasks}, changed, len(changed), NoEnvironment())
    said = str(error.value)
    assert said.startswith(
        "data.train (rows.jsonl): prompt 'a7': the model's chat template refuses the roles "
    )
    assert "system, user" in said
    assert words in said


def test_each_prompt_is_tried(changed):
    changed.chat_template = (
        "{% if 'panda' in messages[0]['content'] %}{{ raise_exception('no pandas') }}{% endif %}x"
    )
    tasks = [make_task(id="a"), make_task(id="b", request="Describe the panda.")]
    with pytest.raises(DataError, match=r"data\.heldout: prompt 'b': .* no pandas"):
        check_prompts({"train": tasks[:1], "heldout": tasks}, changed, len(changed), NoEnvironment())


def test_each_sequence_of_roles_is_tried(changed):
    changed.chat_template = NO_SYSTEM + "x"
    plain = [make_task(id=str(number)) for number in range(5)]
    check_prompts({"train": plain, "heldout": ()}, changed, len(changed), NoEnvironment())
    for split in ("train", "heldout"):
        tasks = {"train": plain, "heldout": plain} | {split: [*plain, with_system(make_task(id="late"))]}
        with pytest.raises(DataError, match=rf"data\.{split}: prompt 'late'"):
            check_prompts(tasks, changed, len(changed), NoEnvironment())


def test_a_tokenizer_larger_than_the_model_is_an_error_where_a_prompt_or_criterion_uses_it(changed):
    known = len(changed)
    changed.add_tokens(["<ANSWER>"])
    task = make_task(id="a")
    check_prompts({"train": [task]}, changed, known, NoEnvironment())  # no prompt has the token
    asks = make_task(id="b", request="Put it in <ANSWER>.")
    judged = replace(task, rubric=Rubric(criteria=(Criterion(id="tag", text="Uses <ANSWER>."),)))
    for bad, where in ((asks, "prompt 'b'"), (judged, "criterion 'tag' of prompt 'a'")):
        with pytest.raises(DataError, match=rf"{where}: .* \(0 to {known - 1}\), got '<ANSWER>' \({known}\)"):
            check_prompts({"train": [task, bad]}, changed, known, NoEnvironment())
        assert (
            max(checked_prompt(bad, changed, known + 1, NoEnvironment())) <= known
        )  # the model has a row for it


def test_of_many_prompts_some_are_tried_evenly_spaced(changed):
    class Counting(list):
        reads = 0

        def __getitem__(self, place):
            self.reads += 1
            return super().__getitem__(place)

    tasks = Counting([make_task(id="a")] * (3 * MAX_PROMPTS))
    check_prompts({"train": tasks}, changed, len(changed), NoEnvironment())
    assert tasks.reads == MAX_PROMPTS
