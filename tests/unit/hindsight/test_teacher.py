from pathlib import Path

import pytest

from herl import ConfigError, Criterion, Rubric, Task
from herl.hindsight.teacher import NO_TEACHER, Teacher
from herl.testing import make_judged, make_rollout, make_task

GOLDEN = Path(__file__).parents[2] / "golden"
TASK = make_task({"fish": 3.0, "river": 2.0, "zoo": -4.0})


def told(teacher, attempt, task=TASK):
    messages = teacher.prompt(task, attempt)
    return None if messages is None else messages[-1]["content"]


def test_the_shipped_prompt_tells_the_whole_rubric():
    text = told(Teacher(coef=1.0), make_judged(0.2))
    assert text + "\n" == (GOLDEN / "teacher_prompt.txt").read_text()


def test_missed_criteria_depend_on_the_attempt_and_abstentions_are_not_missed():
    teacher = Teacher(coef=1.0, tell="missed", template="{request}|{criteria}")
    attempt = make_judged(0.2, met={"fish": False, "river": None, "zoo": True})
    assert told(teacher, attempt) == "Describe the otter.|- Says fish. (3)\n- Avoid: Says zoo. (4)"
    attempt = make_judged(0.2, met={"fish": True, "river": False, "zoo": False})
    assert told(teacher, attempt) == "Describe the otter.|- Says river. (2)"
    assert told(teacher, make_judged(0.2, met={"fish": True, "zoo": False})) is None, "nothing is missed"


@pytest.mark.parametrize("tell", ["rubric", "missed"])
def test_the_attempt_is_never_shown(tell):
    attempt = make_judged(0.2, met={"fish": False}, rollout=make_rollout("It swims well."))
    assert "It swims well." not in told(Teacher(coef=1.0, tell=tell), attempt)


@pytest.mark.parametrize(
    ("teacher", "reward", "taught"),
    [
        (Teacher(coef=1.0), 0.99, True),
        (Teacher(coef=1.0), 1.0, False),
        (Teacher(coef=1.0, perfect=2.0), 1.0, True),
        (NO_TEACHER, 0.0, False),
    ],
)
def test_perfect_attempts_need_no_teacher(teacher, reward, taught):
    assert (teacher.prompt(TASK, make_judged(reward)) is not None) == taught


def test_a_task_without_criteria_has_no_teacher():
    task = Task(id="task", messages=TASK.messages, rubric=Rubric(criteria=()))
    assert Teacher(coef=1.0).prompt(task, make_judged(0.2)) is None


def test_the_conversation_before_the_request_stays_and_braces_in_criteria_are_text():
    before = ({"role": "system", "content": "Be brief."},)
    task = Task(
        id="task",
        messages=(*before, {"role": "user", "content": "Use {criteria}."}),
        rubric=Rubric(criteria=(Criterion(id="c", text="Says {request}."),)),
    )
    first, last = Teacher(coef=1.0, template="{request} {criteria}").prompt(task, make_judged(0.2))
    assert (first, last["content"]) == (before[0], "Use {criteria}. - Says {request}. (1)")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coef": -0.1}, "teacher.coef: expected at least 0"),
        ({"clip": 0.0}, "teacher.clip: expected a number above 0"),
        ({"tell": "draft"}, "teacher.tell: expected rubric or missed, got draft"),
        ({"template": "{request} {draft}"}, "teacher.template: expected the fields criteria, request"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Teacher(**settings)
