import asyncio
import random
import re
import time

import pytest

from herl import Criterion, Rubric, Task
from herl.data.formats import instruction_criterion
from herl.judge.ifbench_fixes import FIXES
from herl.judge.instruction_following import InstructionFollowingJudge
from herl.judge.words import words
from herl.testing import check_judge, make_rollout


def judge(text, *criteria, strict=True):
    task = Task(
        id="task", messages=({"role": "user", "content": "?"},), rubric=Rubric(criteria=tuple(criteria))
    )
    made = InstructionFollowingJudge(strict=strict)
    return asyncio.run(made.judge(task, make_rollout(text)))


@pytest.mark.parametrize(
    ("instruction", "kwargs", "good", "bad"),
    [
        ("punctuation:no_comma", {}, "No comma here.", "A comma, here."),
        ("change_case:english_lowercase", {}, "all of this is small.", "All of this is small."),
        ("keywords:existence", {"keywords": ["dough"]}, "Knead the dough.", "Knead it."),
        ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b", "* a"),
        ("startend:quotation", {}, '"Hello there."', "Hello there."),
        (
            "length_constraints:number_sentences",
            {"num_sentences": 3, "relation": "less than"},
            "Dr. Smith slept. He woke.",
            "One. Two. Three.",
        ),
        ("count:word_count_range", {"min_words": 2, "max_words": 3}, "just three words", "one"),
        ("count:numbers", {"N": 2}, "1 and 2", "1 and 2 and 3"),
        ("format:title_case", {}, "Every Word Is Big", "Every word is big"),
    ],
)
def test_checkers_of_both_benchmarks(instruction, kwargs, good, bad):
    criterion = instruction_criterion(instruction, kwargs)
    assert judge(good, criterion).verdicts[0].met is True
    assert judge(bad, criterion).verdicts[0].met is False


def test_loose_forgives_a_first_line_and_asterisks():
    criterion = instruction_criterion("startend:quotation", {})
    answer = 'Sure, here it is:\n"Hello there."'
    assert judge(answer, criterion).verdicts[0].met is False
    assert judge(answer, criterion, strict=False).verdicts[0].met is True


def test_an_empty_answer_follows_nothing():
    assert judge("  ", instruction_criterion("punctuation:no_comma", {})).reward == 0.0


def test_missing_data_unknown_instructions_and_odd_arguments_abstain_and_say_why():
    verdicts = judge(
        "Run home.",
        instruction_criterion("words:start_verb", {}),  # needs a part-of-speech tagger
        instruction_criterion("keywords:existence", {"number": 3}),
        instruction_criterion("format:sonnet", {}),
        Criterion(id="plain", text="Is kind."),
    ).verdicts
    assert [verdict.met for verdict in verdicts] == [None] * 4
    assert "LookupError" in verdicts[0].reason
    assert "kwargs.number" in verdicts[1].reason
    assert "format:sonnet" in verdicts[2].reason


def test_a_span_may_begin_at_the_first_word():
    kwargs = {"prompt_to_repeat": "one two three four five", "n_start": 0, "n_end": 1}
    criterion = instruction_criterion("repeat:repeat_span", kwargs)
    assert judge("one two", criterion).reward == 1.0
    assert judge("one", criterion).reward == 0.0


def test_a_missing_argument_abstains_and_is_never_drawn():
    criterion = instruction_criterion("keywords:letter_frequency", {"let_relation": "at least"})
    judgement = judge("aaaa bbbb", criterion)
    assert judgement.reward is None
    assert "kwargs.letter" in judgement.verdicts[0].reason


def test_keeps_the_contract():
    rubric = Rubric(criteria=(instruction_criterion("punctuation:no_comma", {}),))
    task = Task(id="task", messages=({"role": "user", "content": "?"},), rubric=rubric)
    assert check_judge(InstructionFollowingJudge(), task, "No comma.").reward == 1.0


def test_a_thesis_is_found_as_by_the_plain_pattern_in_linear_time():
    chance = random.Random(0)
    for _ in range(3000):
        text = "".join(chance.choices(["<i>", "</i>", "<em>", "</EM>", "a", " ", "<", "\n"], k=9)) + " end"
        plain = re.search(r"<(i|em)>([^<]*[^<\s][^<]*)</\1>", text, flags=re.IGNORECASE)
        after = plain is not None and bool(words(re.sub("<[^<>]*>", "", text[plain.end() :])))
        assert FIXES["format:thesis"](text) == after
    started = time.perf_counter()
    assert not FIXES["format:thesis"]("<i>" + "a " * 25_000)
    assert time.perf_counter() - started < 2
