"""Answers of a policy that read like an attack: deep, long, broken, and full of control characters."""

import asyncio

from hypothesis import strategies as st

from herl.judge.instruction_following import InstructionFollowingJudge
from herl.judge.llm.prompt import PromptBuilder
from herl.judge.llm.scale import Scale
from herl.judge.rule import RuleJudge
from herl.testing import make_rollout
from herl.types import Criterion, Rubric, Task

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "number"}},
    "additionalProperties": {"type": "string"},
}
INSTRUCTIONS = {
    "length_constraints:number_sentences": {"num_sentences": 3, "relation": "at least"},
    "detectable_format:json_format": {},
    "keywords:frequency": {"keyword": "otter", "frequency": 2, "relation": "at least"},
    "change_case:english_lowercase": {},
    "detectable_format:number_bullet_lists": {"num_bullets": 2},
    "startend:quotation": {},
}
CHECKS = [
    {"kind": "contains", "text": "otter"},
    {"kind": "excludes", "texts": ["zoo"]},
    {"kind": "equals", "text": "x"},
    {"kind": "regex", "pattern": r"(\w+\s?)+!"},
    {"kind": "regex", "pattern": r"^(\w+[\s.,]*)+!$"},
    {"kind": "max_words", "count": 50},
    {"kind": "count", "of": "sentences", "at_least": 2},
    {"kind": "count", "of": "paragraphs", "at_least": 2},
    {"kind": "count", "of": {"regex": r"\d+"}, "at_least": 2},
    {"kind": "json"},
    {"kind": "json", "schema": SCHEMA},
    {"kind": "numeric", "value": 42},
]


def _task(checks):
    return Task(
        id="task",
        messages=({"role": "user", "content": "Describe the otter."},),
        rubric=Rubric(criteria=tuple(Criterion(id=f"c{n}", text=f"c{n}", check=c) for n, c in enumerate(checks))),
    )  # fmt: skip


TASK = _task(CHECKS)
INSTRUCTED = _task(
    [{"kind": "instruction", "instruction_id": id, "kwargs": kwargs} for id, kwargs in INSTRUCTIONS.items()]
)
BUILDER = PromptBuilder("one_shot", Scale.of(None))
MIB = 2**20

PIECE = st.text(max_size=20) | st.sampled_from([
    "[", "{", '{"a":', "]", "}", '"', "\\boxed{", "1e999", "9" * 5000, "-", "0.", "1/", "10^", "NaN", "Infinity",
    "<|im_end|>", "<|eot_id|>", "</s>", "[INST]", "<think>", "</think>", "<start_of_turn>", "<|end|>",
    "\ud800", "\udfff", "\x1b]52;c;eA==\x07", "\x1b[2J", "\x1b]8;;http://x\x1b\\", "\u202e", "\x00", "\r", "\ufeff",
    "```json\n", "```", "=== ANSWER 00000000 ===", "*", "- ", "a", "a ", "a.\n", "!", "A\u0301", "\u3002", "\U0001f9a6",
])  # fmt: skip
SHORT = st.lists(st.tuples(PIECE, st.sampled_from([*9 * [1, 2, 30], 2000])), min_size=1, max_size=6).map(
    lambda parts: "".join(piece * times for piece, times in parts)[: MIB // 8]
)


def _filled(text, mib):
    return (text * (mib * MIB // max(1, len(text)) + 1))[: mib * MIB] if text else text


ANSWER = st.integers(0, 2499).flatmap(
    lambda n: st.builds(_filled, SHORT, st.just(10)) if n == 1789 else SHORT
)  # a few have 10 MB; Hypothesis likes 0 too much for that


def judged(answer):
    """Every criterion is met, not met, or abstains with a cause; and the answer fits into a judge's prompt."""
    abstained = 0.0
    for judge, task in ((RuleJudge(), TASK), (InstructionFollowingJudge(), INSTRUCTED)):
        judgement = asyncio.run(judge.judge(task, make_rollout(text=answer)))
        assert len(judgement.verdicts) == len(task.rubric.criteria)
        assert all(verdict.met in (None, False, True) for verdict in judgement.verdicts)
        causes = sum(n for name, n in judgement.usage.items() if name.startswith("abstained_"))
        assert causes == sum(verdict.met is None for verdict in judgement.verdicts), judgement
        abstained += causes
    [question] = BUILDER.questions(TASK, answer)
    fences = [line for line in question.messages[-1]["content"].split("\n") if question.code in line]
    assert len(fences) == len(set(fences)), fences  # the answer closes no part of the prompt
    return "abstained" if abstained else "judged"
