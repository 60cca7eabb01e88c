"""What hindsight finds before training, measured on the groups of a dry run."""

import random
from dataclasses import replace

import pytest

from herl.dry_run.uplift import shares, uplift
from herl.testing import make_group, make_judged


def group(attempts, revisions=()):
    drafts = [make_judged(reward, id=f"a{i}") for i, reward in enumerate(attempts)]
    revised = [make_judged(reward, id=f"r{i}", parent_id="a0") for i, reward in enumerate(revisions)]
    opened = make_group(*[one for one in (*drafts, *revised) if one.has_reward])
    return replace(opened, attempts=tuple(drafts), revisions=tuple(revised))


@pytest.mark.parametrize(
    ("attempts", "revisions", "expected"),
    [
        ([0.2, 0.4], [0.5], (1.0, 0.5)),
        ([0.2, 0.4], [0.4], (0.0, 0.5)),  # a tie beats nothing
        ([0.4, 0.4], [0.5, 0.3, 0.4, 0.2], (0.25, 0.0)),
        ([0.2, 1.0, 0.2, 0.2], [], (0.0, 0.25)),  # perfect: nothing to revise
        ([0.2, None, 0.4], [None, 0.5], (1.0, 0.5)),  # what abstains counts for nothing
        ([0.2, 0.4], [None], None),
        ([0.2, None], [0.5], None),
    ],
)
def test_the_chances_of_a_group(attempts, revisions, expected):
    assert shares(group(attempts, revisions)) == expected


def test_the_chance_of_a_plain_attempt_is_that_of_each_against_the_others():
    draw = random.Random(0)
    for _ in range(50):
        attempts = [draw.randint(0, 4) / 4 for _ in range(draw.randint(2, 6))]
        naive = 0
        for i, reward in enumerate(attempts):
            others = attempts[:i] + attempts[i + 1 :]
            naive += all(reward > other for other in others)
        assert shares(group(attempts, [0.5]))[1] == pytest.approx(naive / len(attempts))


@pytest.mark.parametrize(
    ("beaten", "count", "words"),
    [
        (32, 64, "Hindsight helps here: one answer with it beats the best attempt in 50 % ("),
        (2, 64, "Hindsight will hardly help here: one answer with it beats the best attempt in 3 % ("),
        (2, 8, "Too few prompts to say whether hindsight helps here: one answer with it beats"),
    ],
)
def test_one_sentence_says_what_the_shares_mean(beaten, count, words):
    groups = [group([0.2, 0.4, 0.4], [0.5 if i < beaten else 0.3]) for i in range(count)]
    found = uplift(groups)
    assert found["says"].startswith(words)
    assert found["groups"] == count
    mean, low, high = found["revision"]
    assert mean == pytest.approx(beaten / count, abs=1e-3)
    assert low < mean < high
    assert found["attempt"] == [0.0, 0.0, 0.0]
    assert uplift(groups) == found, "the same groups give the same interval"


def test_without_revisions_there_is_nothing_to_say():
    assert uplift([group([0.2, 0.4])]) is None
    assert uplift([]) is None
