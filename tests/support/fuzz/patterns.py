"""Patterns in rubrics, among them many that take forever, on answers that provoke it."""

import asyncio

from hypothesis import strategies as st

from herl.checks import patterns, read_check
from herl.judge.rule import RuleJudge
from herl.testing import make_rollout
from herl.types import Criterion, Rubric, Task

SECONDS = 0.05
"""Limit of one match in these cases; runs allow more."""

ATOM = st.sampled_from([
    "a", "b", r"\w", r"\s", r"\d", ".", "[a-z]", "[^a]", r"\b", "^", "$", r"\1", "(?i)", r"\p{L}", "[[:alpha:]]",
    "(?:aa?)", "é", "\\", "[", "(", "*", "{1,", "(?P<x>a)", "(?R)", "(?:a|a)", "(?=a)", "(?<!a)", "(?>a+)", "{e<=2}",
])  # fmt: skip
PATTERN = st.recursive(
    ATOM,
    lambda inner: st.lists(inner, min_size=1, max_size=3).map("".join)
    | st.tuples(inner, st.sampled_from(["*", "+", "?", "{2,}", "{0,99}", "*?", "++"])).map(lambda p: f"({p[0]}){p[1]}")
    | st.tuples(inner, inner).map(lambda p: f"({p[0]}|{p[1]})"),
    max_leaves=8,
) | st.text(max_size=12)  # fmt: skip
ANSWER = st.builds(
    lambda piece, times, end: piece * times + end,
    st.sampled_from(["a", "ab", "a ", "aaaa.", "é", "x1"]),
    st.sampled_from([1, 20, 40, 4000]),
    st.sampled_from(["", "!", "\n", "b"]),
)
KIND = st.sampled_from(["regex", "count", "schema"])
CASE = st.tuples(KIND, PATTERN, ANSWER)


def matched(case):
    """The pattern is refused when the data is read, or found, or not found, or it abstains for lack of time."""
    kind, pattern, answer = case
    check = {
        "regex": {"kind": "regex", "pattern": pattern},
        "count": {"kind": "count", "of": {"regex": pattern}, "at_least": 1},
        "schema": {"kind": "json", "schema": {"type": "string", "pattern": pattern}},
    }[kind]
    read_check(check)
    task = Task(
        id="task",
        messages=({"role": "user", "content": "x"},),
        rubric=Rubric(criteria=(Criterion(id="c", text="c", check=check),)),
    )
    before, patterns.SECONDS = patterns.SECONDS, SECONDS
    try:
        judgement = asyncio.run(RuleJudge().judge(task, make_rollout(text=answer)))
    finally:
        patterns.SECONDS = before
    [verdict] = judgement.verdicts
    if verdict.met is None:
        assert judgement.usage.get("abstained_timeout") == 1, (verdict.reason, judgement.usage)
        return "abstained: timeout"
    return "judged"
