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
