from dataclasses import replace

import pytest

from herl.types import Criterion, Rubric, Task


def make(request, *criteria):
    rubric = Rubric(criteria=tuple(Criterion(id=str(n), text=text) for n, text in enumerate(criteria)))
    return Task(id="t", messages=({"role": "user", "content": request},), rubric=rubric)


SHORT = "Use at most 30 words."


@pytest.mark.parametrize(
    ("criteria", "text", "words", "quotes"),
    [
        ([SHORT], "Hello! Use at most 30 words.", 5, True),
        ([SHORT], "use AT most, (30) words", 5, True),
        ([SHORT], "Use at most thirty words.", 5, False),
        ([SHORT], "Use at most 30.", 5, False),
        ([SHORT], "Use at most 30.", 4, True),
        ([SHORT], "Words 30 most at use.", 2, False),
        (["Be kind.", SHORT], "Be kind and use at most 30 words", 5, True),
        (["Be kind."], "Be kind.", 5, False),
        (["Describe the otter and its river."], "We describe the otter and its river.", 6, True),
        (["Describe the otter and its river."], "We describe the otter.", 3, False),
        (["Di il perch\u00e9 ora."], "Il perche\u0301 ora.", 3, True),
        (["\u56de\u7b54\u4e0d\u8d85\u8fc7\u5341\u5b57"], "\u597d\u56de\u7b54\u4e0d\u8d85\u8fc7\u5341", 6, True),
        ([], "Use at most 30 words.", 1, False),
        ([SHORT], "", 1, False),
    ],
)  # fmt: skip
def test_an_answer_that_repeats_words_of_a_criterion_quotes_it(criteria, text, words, quotes):
    assert make("Describe the otter.", *criteria).quotes(text, words) == quotes


def test_words_of_the_request_are_no_quote():
    assert not make(f"Describe the otter. {SHORT}", SHORT).quotes(SHORT, 5)


def test_words_of_the_system_prompt_are_no_quote():
    task = make("Describe the otter.", SHORT)
    system = {"role": "system", "content": f"Be kind. {SHORT}"}
    assert task.quotes(SHORT, 5)
    assert not replace(task, messages=(system, *task.messages)).quotes(SHORT, 5)


def test_vowel_signs_do_not_divide_words():
    """Three Hindi words."""
    hindi = "\u0909\u0926\u092c\u093f\u0932\u093e\u0935 \u092e\u091b\u0932\u0940 \u0916\u093e\u0924\u093e"
    task = make("?", hindi)
    assert task.quotes(hindi, 3)
    assert not task.quotes(hindi, 4)
