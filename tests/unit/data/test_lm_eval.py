"""Tasks of lm-evaluation-harness: prompts as its templates make them, verdicts as its exact_match counts."""

import json
import random
import re
import string

import pytest

from herl.checks import read_check
from herl.data.sources import read_tasks
from herl.errors import DataError
from herl.judge.rule import RuleJudge
from tests.support.llm_judges import judge_all

DOCUMENTS = [
    {"question": "Two and two?", "answer": "It is four.\n#### 4"},
    {"question": "A dozen times 100?", "answer": "So:\n#### 1,200"},
]
TASK = """
task: sums
tag: [math]
dataset_path: json
dataset_kwargs: {data_files: {train: sums.jsonl, test: sums.jsonl}}
training_split: train
test_split: test
output_type: generate_until
num_fewshot: 0
description: "Answer briefly."
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    ignore_punctuation: false
    regexes_to_ignore: [",", "\\\\$", "(?s).*#### ", "\\\\.$"]
generation_kwargs: {until: ["Question:"], do_sample: false, temperature: 0.0}
filter_list:
  - name: strict-match
    filter: [{function: regex, regex_pattern: "#### (\\\\-?[0-9\\\\.\\\\,]+)"}, {function: take_first}]
  - name: flexible-extract
    filter: [{function: regex, group_select: -1, regex_pattern: "(-?[$0-9.,]{2,})|(-?[0-9]+)"}, {function: take_first}]
metadata: {version: 1.0}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(one) + "\n" for one in DOCUMENTS))
    (tmp_path / "sums.yaml").write_text(TASK)
    return tmp_path


def test_a_document_is_a_prompt_with_a_criterion_for_each_pipeline(folder):
    tasks = read_tasks("lm_eval:sums.yaml:train")
    assert [dict(message) for message in tasks[0].messages] == [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "Question: Two and two?\nAnswer:"},
    ]
    assert [(c.id, c.text) for c in tasks[0].rubric.criteria] == [
        (name, f"Gives the right answer ({name}).") for name in ("strict-match", "flexible-extract")
    ]
    assert tasks[1].reference == "So:\n#### 1,200"
    assert [task.id for task in read_tasks("lm_eval:sums.yaml")] == ["1", "2"]


ANSWERS = {
    "#### 1200": (True, True),
    "It is $1,200.": (False, True),
    "first 7, then 1200": (False, True),
    "#### 1,200. Question: what is #### 3": (True, True),
    "1200, or 7": (False, False),
    "nothing": (False, False),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_is_right_where_lm_eval_counts_it(folder, answer):
    task = read_tasks("lm_eval:sums.yaml:test")[1]
    [judgement], _ = judge_all(RuleJudge(), [answer], task)
    assert tuple(verdict.met for verdict in judgement.verdicts) == ANSWERS[answer]


def naive(answer, target, until, pattern, which, ignored, case, punctuation, numbers):
    """lm-eval's path for one answer: stop texts, the filter "regex", exact_match."""
    for stop in until:
        answer = answer.split(stop)[0]
    found = re.findall(pattern, answer)
    answer = "[invalid]"
    if found:
        match = found[which]
        if isinstance(match, tuple):
            match = next((one for one in match if one), "[invalid]")
        answer = match.strip()
    pair = [answer, target]
    for one in ignored:
        pair = [re.sub(one, "", text) for text in pair]
    pair = [text.lower() for text in pair] if case else pair
    if punctuation:
        pair = [text.translate(str.maketrans("", "", string.punctuation)) for text in pair]
    if numbers:
        pair = [text.translate(str.maketrans("", "", string.digits)) for text in pair]
    return pair[0] == pair[1]


def test_the_check_is_the_naive_path_on_random_texts():
    rng = random.Random(0)
    met = 0
    for _ in range(3000):
        answer = "".join(rng.choice("aAb1,. \n|") for _ in range(rng.randint(0, 12)))
        target = "".join(rng.choice("aAb1,.") for _ in range(rng.randint(1, 2)))
        until = rng.choice([[], ["|"], ["\n", "b1"]])
        pattern, which = rng.choice([r"(a+)|([b1]+)", r"[aA]b?", r"\d", r"(.+)"]), rng.choice([0, -1])
        flags = [rng.random() < 0.5 for _ in range(3)]
        ignored = rng.choice([[], [","], [r"\.$", "b"]])
        check = read_check({
            "kind": "exact_match", "texts": [target], "until": until, "steps": [{"find": pattern, "which": which}],
            "ignore_patterns": ignored, "ignore_case": flags[0], "ignore_punctuation": flags[1], "ignore_numbers": flags[2],
        })  # fmt: skip
        expected = naive(answer, target, until, pattern, which, ignored, *flags)
        assert check.met(answer) == expected, (answer, target, pattern)
        met += expected
    assert 100 < met < 2900


def test_a_document_that_a_template_does_not_fit_is_named_with_its_line(folder):
    with (folder / "sums.jsonl").open("a") as file:
        file.write('{"question": "Why?"}\n')
    with pytest.raises(
        DataError, match=r"sums.jsonl:3: sums.yaml: doc_to_target: UndefinedError: 'answer' is"
    ):
        read_tasks("lm_eval:sums.yaml")


def test_several_right_answers_plain_steps_and_defaults(folder):
    (folder / "a.yaml").write_text(
        "dataset_path: json\ndataset_kwargs: {data_files: {test: sums.jsonl}}\ntest_split: test\n"
        "doc_to_text: question\ndoc_to_target: \"['Four', '4']\"\n"
        "filter_list: [{name: low, filter: [{function: lowercase}, {function: remove_whitespace}]}]\n"
    )
    (folder / "b.yaml").write_text("include: a.yaml\nfilter_list: null\n")
    [low] = read_tasks("lm_eval:a.yaml")[0].rubric.criteria
    check = read_check(low.check)
    assert [check.met(text) for text in (" 4", "4\n\nmore", "Four", "4 ")] == [True, True, False, False]
    task = read_tasks("lm_eval:b.yaml")[0]
    assert task.request == "Two and two?"
    assert [read_check(c.check).met("Four") for c in task.rubric.criteria] == [True]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_fewshot: 0", "num_fewshot: 5", "num_fewshot: expected 0, got 5"),
        ("output_type: generate_until", "output_type: multiple_choice", "output_type: expected generate_until, got 'multiple_choice'"),
        ("metric: exact_match", "metric: f1", r"metric_list: expected exact_match alone, got \['f1'\]"),
        ("aggregation: mean", "aggregation: median", "metric_list.aggregation: expected mean, got 'median'"),
        ("function: take_first}]\nmetadata", "function: majority_vote}]\nmetadata", "filter_list: expected regex, take_first, .* got 'majority_vote'"),
        ("tag: [math]", "repeats: 8", "repeats: expected 1, got 8"),
        ("tag: [math]", "process_docs: !function utils.f", "process_docs: expected a task without it"),
        ("tag: [math]", "doc_to_choice: [a, b]", "doc_to_choice: expected a task without it"),
        ('doc_to_target: "{{answer}}"', "doc_to_target: !function utils.f", "doc_to_target: expected a template, since no code of a task is run, got !function"),
        ("{train: sums.jsonl, test: sums.jsonl}}", "{train: sums.jsonl}}", "dataset_kwargs.data_files.test: expected the path of one file, got nothing"),
        ("{data_files:", "{trust_remote_code: true, data_files:", "dataset_kwargs: expected data_files alone"),
        ("{{answer}}", "{{result}}", "doc_to_target: UndefinedError: 'result' is undefined"),
        ("{{answer}}", "{{''.__class__.__mro__}}", "doc_to_target: SecurityError"),
        ("task: sums", "task: [", "expected a task of lm-evaluation-harness"),
        ("test_split: test", "", "test_split: expected a split, here or as in lm_eval:sums.yaml:train, got nothing"),
    ],
)  # fmt: skip
def test_what_would_be_another_task_is_refused(folder, old, new, message):
    assert old in TASK
    (folder / "sums.yaml").write_text(TASK.replace(old, new))
    with pytest.raises(DataError, match=f"sums.yaml.*{message}"):
        read_tasks("lm_eval:sums.yaml")


# What a hostile or careless task may not do

PLAIN = (
    "dataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\ndoc_to_text: a\n"
)


def targets(folder, document, template):
    (folder / "rows.jsonl").write_text(json.dumps(document) + "\n")
    (folder / "plain.yaml").write_text(PLAIN + f"doc_to_target: {json.dumps(template)}\n")
    return read_tasks("lm_eval:plain.yaml")[0].rubric.criteria[0].check["texts"]


@pytest.mark.parametrize(
    ("document", "template", "texts"),
    [
        ({"a": "[1, 2]"}, "a", ["[1, 2]"]),
        ({"a": ["x", "y"]}, "a", ["x", "y"]),
        ({"a": 42}, "a", ["42"]),
        ({"a": "['x', 'y']"}, "{{a}}", ["x", "y"]),
        ({"a": "[x]"}, "{{a}}", ["[x]"]),
        ({"a": "x, y"}, "{{ (a | replace(',', ';')).split('; ') }}", ["x", "y"]),
        ({"a": "x"}, "{% for i in range(3) %}{{ a + i|string }}{% if i < 2 %}-{% endif %}{% endfor %}", ["x0-x1-x2"]),
    ],
)  # fmt: skip
def test_a_column_is_taken_as_it_is_and_the_result_of_a_template_may_be_a_list(
    folder, document, template, texts
):
    assert list(targets(folder, document, template)) == texts


@pytest.mark.parametrize(
    ("document", "template"), [({"a": "q", "n": 42}, "[{{n}}]"), ({"a": [1, 2]}, "a"), ({"a": None}, "a")]
)
def test_right_answers_that_are_no_texts_are_refused_with_key_and_row(folder, document, template):
    with pytest.raises(DataError, match="rows.jsonl:1: doc_to_target: expected a text that is not empty"):
        targets(folder, document, template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 9**(9**9) }}",
        "{{ 'a' * 10**10 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ a.format(1) }}",
        "{{ a|center(999999999) }}",
        "{{ a|indent(999999999) }}",
        "{{ a|map('center', 999999999)|first }}",
        "{% for i in range(999) %}{% for j in range(999) %}{% endfor %}{% endfor %}",
        "{% for i in range(1001) %}{% endfor %}",
        "{% for i in [[]] recursive %}{{ loop([i]) }}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% set b = a + a %}{{ b }}",
        "{{ lipsum(n=99999) }}",
        "{{ " + "(" * 5000 + "a" + ")" * 5000 + " }}",
        "{{ a" + "|list|string" * 20 + " }}",
        "{{ a" + "|replace('a', 'aaaaaaaaaa')" * 20 + " }}",
        "{{ a" + ".replace('a', 'aaaaaaaaaa')" * 20 + " }}",
        "{{ b|join(b|join(b)) + b|join(b|join(b|join(b))) }}",
        "{{ b.join(b.join(b.join(b))) }}",
        "{% for i in range(1000) %}{{ b }}{% endfor %}",
    ],
)
def test_a_template_cannot_hold_up_the_run_or_fill_the_memory(folder, template):
    with pytest.raises(DataError, match=r"plain\.yaml: doc_to_target: (\w+Error|TemplateRuntimeError): "):
        targets(folder, {"a": "a", "b": "b" * 2000}, template)


def test_a_description_is_always_a_template(folder):
    (folder / "sums.yaml").write_text(TASK.replace('"Answer briefly."', "answer"))
    assert read_tasks("lm_eval:sums.yaml")[0].messages[0]["content"] == "answer"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  - metric: exact_match", "  - !function u.f\n  - metric: exact_match", r"metric_list.0: expected exact_match alone, got !function"),
        ("  - name: strict-match\n    filter", "  - filter", "filter_list.0: expected name and filter of each, got {'filter'"),
        ('{until: ["Question:"], do_sample: false, temperature: 0.0}', "5", "generation_kwargs: expected settings, .* got 5"),
        ('until: ["Question:"]', "until: [null]", "generation_kwargs.*: expected settings, with until as a text or texts, got"),
        ("tag: [math]", "fewshot_delimiter: null", "fewshot_delimiter: expected a text, got nothing"),
        ("tag: [math]", "include: 5", "include: expected a path or a list of paths, got 5"),
        ("tag: [math]", "include: [..]", "expected a task of lm-evaluation-harness: no file of at most"),
        ("tag: [math]", "include: sums.yaml", "include: expected at most 32 files"),
        ("tag: [math]", "x: &x {a: 1}\ny: {<<: [*x, *x]}", "expected a task of lm-evaluation-harness: could not determine .*merge"),
        ("tag: [math]", f"x: {'[' * 5000}", "expected a task of lm-evaluation-harness"),
        ("test: sums.jsonl}", "test: 'lm_eval:sums.yaml'}", "data_files.test: expected the path of one file, got 'lm_eval:sums.yaml'"),
        ("    filter: [{function: regex, group_select", f"    filter: [{'{function: take_first}, ' * 100}{{function: regex, group_select", "filter_list.1: expected at most 100 entries"),
        ("test: sums.jsonl}", "test: 'hf:a/b'}", "data_files.test: expected the path of one file, got 'hf:a/b'"),
    ],
)  # fmt: skip
def test_a_task_of_another_shape_is_refused_by_its_key(folder, old, new, message):
    assert old in TASK
    (folder / "sums.yaml").write_text(TASK.replace(old, new))
    with pytest.raises(DataError, match=f"(?s)(sums.yaml|[.][.]): .*{message}"):
        read_tasks("lm_eval:sums.yaml")


def test_files_that_include_each_other_many_times_and_nested_aliases_end_soon(folder):
    for i in range(8):
        (folder / f"{i}.yaml").write_text(f"include: [{', '.join([f'{i + 1}.yaml'] * 10)}]\n")
    (folder / "8.yaml").write_text("task: x\n")
    with pytest.raises(DataError, match="0.yaml: include: expected at most 32 files, got more"):
        read_tasks("lm_eval:0.yaml")
    nested = "".join(f"  - &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 11))
    (folder / "sums.yaml").write_text(TASK + f"laugh:\n  - &a0 [1]\n{nested}")
    with pytest.raises(DataError, match="laugh: expected a task without it") as error:
        read_tasks("lm_eval:sums.yaml")
    assert len(str(error.value)) < 3000
