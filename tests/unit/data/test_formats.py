"""Rows of public formats, hand-made, and the real prompts of IFBench."""

import json

import pytest

from herl import ConfigError, DataError
from herl.cache_folder import cache_folder
from herl.data.formats import Reading, task_of
from herl.data.rows import Row
from herl.data.sources import read_tasks
from herl.judge.instruction_following import load_checkers

RAR = {
    "question": "Which scan shows a stone in the ureter best?",
    "reference_answer": "A low-dose CT without contrast.",
    "question_source": "made up",
    "rubric": [
        {
            "title": "Names the scan",
            "description": "Essential Criteria: Names CT without contrast.",
            "weight": 5,
        },
        {"title": "Dose", "description": "Optional Criteria: Says that the dose is low.", "weight": "1"},
        {
            "title": "Plain film",
            "description": "Pitfall Criteria: Recommends a plain film alone.",
            "weight": -1,
        },
    ],
    "rubric_count": 3,
}
HEALTHBENCH = {
    "prompt_id": "a1",
    "prompt": [
        {"role": "user", "content": "I have a headache."},
        {"role": "assistant", "content": "For how long?"},
        {"role": "user", "content": "Two days."},
    ],
    "rubrics": [
        {"criterion": "Asks about fever.", "points": 6, "tags": ["level:example", "axis:completeness"]},
        {"criterion": "Names a dose that is dangerous.", "points": -8, "tags": []},
    ],
    "ideal_completions_data": {"ideal_completion": "Do you have a fever?"},
    "example_tags": ["theme:context"],
}
MULDIMIF = {
    "id": "17",
    "conversations": [{"role": "user", "content": "List three colours in capitals."}],
    "constraints": [["Content", "Number", "Lists three colours"], ["Language", "Case", "Uses capitals"]],
    "constraint_pattern": "Listing",
    "difficulty": "Level 1",
}
WRAPPED = {
    "prompt": "Plan a picnic.",
    "rubric": json.dumps([{"requirement": "Names a place.", "weight": 2}, {"requirement": "Names a time."}]),
    "data_source": "mine",
}
NESTED = {"instruction": "Plan a picnic.", "rubrics": {"criteria": ["Names a place.", "Names a time."]}}
INGREDIENTS = {"query": "Bake bread.", "rubrics": [{"Ingredient": "Names flour.", "Handler": "llm"}]}
VERL = {
    "prompt": [{"role": "user", "content": "Plan a picnic."}],
    "data_source": "mine",
    "reward_model": {
        "style": "rubric",
        "ground_truth": "",
        "rubrics": [{"criterion": "Names a place.", "points": 3}],
    },
}
CAPITAL = {"prompt": "Plan a picnic.", "Rubrics": [{"criterion": "Names a place.", "points": 3}]}
BOTH = {"prompt": "Plan a picnic.", "messages": [{"role": "user", "content": "Plan a picnic."}],
        "rubrics": [{"criterion": "Names a place.", "weight": 2}]}  # fmt: skip
SHARED_GPT = {
    "conversations": [{"from": "human", "value": "Hi"}],
    "checklist": ["Greets."],
}


def read(value, **reading):
    return task_of(Row(place="rows.jsonl:3", number=3, value=value), Reading(**reading))


def told(task):
    return [(c.text, c.weight, c.category, c.undesirable) for c in task.rubric.criteria]


def test_rar():
    with pytest.raises(
        DataError, match=r"rows.jsonl:3: rubric.2: .*negative_weight=met_is_bad or met_is_good"
    ):
        read(RAR)
    task = read(RAR, negative_weight="met_is_bad", source="rar")
    assert (task.request, task.reference, task.source) == (RAR["question"], RAR["reference_answer"], "rar")
    assert told(task) == [
        ("Names CT without contrast.", 5.0, "essential", False),
        ("Says that the dose is low.", 1.0, "optional", False),
        ("Recommends a plain film alone.", -1.0, "pitfall", True),
    ]
    assert not read(RAR, negative_weight="met_is_good").rubric.criteria[2].undesirable
    assert not any(criterion.named for criterion in task.rubric.criteria), "c1 is another one in every row"


def test_healthbench():
    task = read(HEALTHBENCH)
    assert (task.id, [m["role"] for m in task.messages]) == ("a1", ["user", "assistant", "user"])
    assert told(task) == [
        ("Asks about fever.", 6.0, "axis:completeness", False),
        ("Names a dose that is dangerous.", -8.0, "", True),
    ]


def test_muldimif():
    task = read(MULDIMIF)
    assert (task.id, task.request) == ("17", "List three colours in capitals.")
    assert told(task) == [
        ("Lists three colours", 1.0, "Content", False),
        ("Uses capitals", 1.0, "Language", False),
    ]
    with pytest.raises(
        DataError, match=r"rows.jsonl:3: constraints: expected \[category, sub-category, text\], got"
    ):
        read(MULDIMIF | {"constraints": [["Content", "Number"]]})


@pytest.mark.parametrize(
    ("row", "request_text", "texts"),
    [
        (WRAPPED, "Plan a picnic.", ["Names a place.", "Names a time."]),
        (NESTED, "Plan a picnic.", ["Names a place.", "Names a time."]),
        (INGREDIENTS, "Bake bread.", ["Names flour."]),
        (SHARED_GPT, "Hi", ["Greets."]),
        (VERL, "Plan a picnic.", ["Names a place."]),
        (CAPITAL, "Plan a picnic.", ["Names a place."]),
        (BOTH, "Plan a picnic.", ["Names a place."]),
    ],
)
def test_other_names_of_the_same_things(row, request_text, texts):
    task = read(row)
    assert task.request == request_text
    assert [criterion.text for criterion in task.rubric.criteria] == texts


def test_instructions_in_words_and_in_the_shape_of_verl():
    check = {"instruction_id_list": ["count:numbers"], "kwargs": [{"N": 5.0, "x": None}]}
    hir = {"id": 7, "prompt": "Count.", "criteria": ["Uses five numbers."], "source": "x", **check}
    verl = {
        "prompt": [{"role": "user", "content": "Count."}],
        "reward_model": {"ground_truth": json.dumps(check)},
    }
    told = [(task.id, task.request, task.rubric.criteria[0].text) for task in (read(hir), read(verl))]
    assert told == [("7", "Count.", "Uses five numbers."), ("3", "Count.", "count: numbers (N: 5)")]
    assert read(hir).rubric.criteria[0].check["kwargs"] == {"N": 5}


def test_a_prompt_that_is_json_by_itself_stays_text():
    assert read({"prompt": '{"a": 1}', "rubric": ["Explains it."]}).request == '{"a": 1}'
    chat = json.dumps([{"role": "user", "content": "Hi"}])
    assert read({"prompt": chat, "rubric": ["Greets."]}).request == "Hi"


def test_tags_and_ideal_answers_of_other_versions_of_healthbench():
    tagged = [
        {"criterion": "Asks.", "points": 1, "tags": {"axis": "accuracy", "level": "x", "cluster": None}}
    ]
    ideal = {"ideal_completion": "Rest.", "ideal_completions_group": "I"}
    task = read(HEALTHBENCH | {"rubrics": tagged, "ideal_completions_data": ideal})
    assert (task.rubric.criteria[0].category, task.reference) == ("axis:accuracy", "Rest.")
    assert read(HEALTHBENCH | {"ideal_completions_data": None}).reference is None


def test_a_field_map_names_what_nobody_could_guess():
    row = {
        "q": "Plan a picnic.",
        "gold": "At noon.",
        "marks": [{"what": "Names a time.", "worth": 2, "note": "x"}],
        "x": 1,
    }
    fields = {"prompt": "q", "reference": "gold", "rubric": "marks", "text": "what", "weight": "worth"}
    task = read({**row, "marks": [{"what": "Names a time.", "worth": 2}]}, fields=fields)
    assert (task.request, task.reference, told(task)) == (
        "Plan a picnic.",
        "At noon.",
        [("Names a time.", 2.0, "", False)],
    )
    with pytest.raises(ConfigError, match=r"data.fields.promptt: expected one of .*Did you mean 'prompt'"):
        read(row, fields={"promptt": "q"})


def test_ifbench_prompts_read_as_they_are():
    """`herl fetch ifbench` fetches them."""
    tasks = read_tasks(cache_folder() / "data" / "ifbench" / "IFBench_test.jsonl")
    assert len(tasks) == 294
    criteria = [criterion for task in tasks for criterion in task.rubric.criteria]
    assert len(criteria) == 335
    kinds = {criterion.check["instruction_id"] for criterion in criteria}
    assert len(kinds) == 57
    assert kinds <= set(load_checkers())


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"query": "Sum up.", "context": "A long text.", "checklist": ["Is short."]}, "context"),
        ({"question": "Why?", "instruction": "Be brief.", "checklist": ["Is short."]}, "instruction"),
        ({"prompt": "Why?", "system_prompt": "Be brief.", "checklist": ["Is short."]}, "system_prompt"),
        ({"prompt": "Why?", "images": ["a.png"], "checklist": ["Is short."]}, "images"),
        ({"prompt": "B", "messages": [{"role": "user", "content": "A"}], "checklist": ["x"]}, "prompt"),
        (
            {
                "prompt": "A",
                "instruction_id_list": ["punctuation:no_comma"],
                "kwargs": [{}],
                "history": [["a", "b"]],
            },
            "history",
        ),
        (MULDIMIF | {"system": "Be brief."}, "system"),
    ],
)
def test_a_column_that_looks_like_a_part_of_the_prompt_is_an_error_until_it_is_dropped(row, column):
    with pytest.raises(DataError, match=rf"rows.jsonl:3: {column}: .*data.train.ignore=\[{column}\]"):
        read(row)
    assert read(row, ignore=[column]).messages


def test_columns_about_a_prompt_and_columns_that_repeat_it_are_no_error():
    about = {"question_source": "x", "prompt_id": "p", "context": "", "problem_type": "y", "canary": "z"}
    assert read({"question": "Why is it so?", "query": "Why is it so?", "checklist": ["Is short."], **about})


@pytest.mark.parametrize(("given", "prompt"), [("Otters swim.", "Sum up.\n\nOtters swim."), ("", "Sum up.")])
def test_instruction_and_input_form_one_prompt(given, prompt):
    assert read({"instruction": "Sum up.", "input": given, "checklist": ["Is short."]}).request == prompt


def test_what_a_message_holds_besides_text_is_not_dropped():
    message = {"role": "user", "content": "Look.", "images": ["a.png"]}
    with pytest.raises(DataError, match="expected messages of a role and a text, got 'images' as well"):
        read({"messages": [message], "rubric": ["Is short."]})


def test_null_is_missing_at_any_depth_but_not_in_what_is_the_users_own():
    schema = {"properties": {"x": {"const": None}}}
    check = {"kind": "x-json_schema", "schema": schema, "count": None}
    criterion = {"text": "x", "weight": None, "check": check}
    task = read({"prompt": "Hi", "messages": None, "rubric": [criterion], "meta": {"a": None}})
    assert task.rubric.criteria[0].check == {"kind": "x-json_schema", "schema": schema}
    assert task.meta == {"a": None}


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "a\ud800", "rubric": ["x"]}, "prompt"),
        ({"prompt": "a", "rubric": [{"text": "x\udc00"}]}, "rubric.0.text"),
        ({"prompt": "a", "rubric": ["x"], "id": "\ud800"}, "id"),
        ({"prompt": "a", "rubric": ["x"], "reference": "\ud800"}, "reference"),
        ({"prompt": "a", "rubric": ["x"], "meta": {"k": ["\ud800"]}}, "meta.k.0"),
        ({"prompt": "\ud800", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}, "prompt"),
    ],
)
def test_half_a_surrogate_pair_is_an_error_that_names_its_field(row, field):
    with pytest.raises(DataError, match=rf"rows.jsonl:3: {field}: expected Unicode text, got the lone surr"):
        read(row)


@pytest.mark.parametrize(
    ("criterion", "why"),
    [
        ({"criterion": "x", "importance": 3}, "rubric.importance: expected a field"),
        ({"criterion": "x", "negative": True}, "rubric.negative"),
        ({"requirement": "x", "Weight": 5}, "rubric.Weight"),
        ({"criterion": "x", "checks": {"kind": "json"}}, "rubric.checks"),
        ({"criterion": "x", "points": 5, "weight": 1}, "one of weight and points"),
        ({"criterion": "x", "description": "y"}, "one of description and criterion"),
    ],
)
def test_a_field_of_a_criterion_that_may_change_its_meaning_is_not_dropped(criterion, why):
    with pytest.raises(DataError, match=why):
        task_of(Row(place="rows.jsonl:3", number=3, value={"question": "q", "rubrics": [criterion]}))


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"input": "5"}, "input"),
        ({"choices": ["a", "an", "mal"]}, "choices"),
        ({"topic_passage": "A long story."}, "topic_passage"),
        ({"few_shot": "Q: a A: b"}, "few_shot"),
        ({"extra_info": {"context": "A long story."}}, "extra_info.context"),
        ({"rubric_items": ["z"]}, "rubric_items"),
    ],
)
def test_what_stands_in_the_prompt_by_accident_is_not_excused(more, name):
    row = {"problem": "Sort the 15 numbers of an animal, a mammal.", "rubrics": ["y"]}
    with pytest.raises(DataError, match=f"rows.jsonl:3: {name}: expected"):
        task_of(Row(place="rows.jsonl:3", number=3, value=row | more))


@pytest.mark.parametrize(
    "more",
    [
        {"has_image": True}, {"num_turns": 3}, {"prompt_id": "p"}, {"turns": 3}, {"question_source": "web"},
        {"input": "Sort the 15 numbers"}, {"extra_info": {"question": "Sort the 15 numbers of a list.", "index": 3}},
    ],
)  # fmt: skip
def test_columns_about_the_prompt_or_with_its_own_words_are_excused(more):
    row = {"problem": "Sort the 15 numbers of a list.", "rubrics": ["y"]} | more
    assert task_of(Row(place="rows.jsonl:3", number=3, value=row)).request == row["problem"]


def test_a_column_that_has_a_native_name_is_not_lost_where_another_one_is_mapped():
    reading = Reading(fields={"prompt": "q", "rubric": "rubric"})
    row = {"prompt": "SYSTEM: pirate", "q": "Q", "rubric": ["x"]}
    with pytest.raises(DataError, match="prompt: expected a column that the prompt does not need"):
        task_of(Row(place="rows.jsonl:3", number=3, value=row), reading)


def test_a_rubric_beside_instructions_is_not_dropped():
    row = {
        "prompt": "p",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
        "rubric": ["Is kind."],
    }
    with pytest.raises(DataError, match="rubric: expected one rubric"):
        task_of(Row(place="rows.jsonl:3", number=3, value=row))


@pytest.mark.parametrize("kwargs", ["[]", "[ ]", "\n[\n {} ]"])
def test_json_in_a_text_column_may_have_any_white_space(kwargs):
    rubric = '[ {"text": "Says fish."} ]' if kwargs == "[]" else '[\n "Says fish." ]'
    row = {"prompt": "p", "rubric": rubric}
    assert task_of(Row(place="r:1", number=1, value=row)).rubric.criteria[0].text == "Says fish."
