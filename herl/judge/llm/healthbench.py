"""The grader of HealthBench (arXiv:2505.08775): one question per criterion, in the published words.

The prompt is not part of herl. It is read, without running anything, from your copy of the published file
(healthbench_eval.py of openai/simple-evals, MIT), so scores are those of the published grader; other words
are accepted, and a warning says that they are not the published ones.

Unlike herl's own prompts, this one has no fences around its material: an answer that speaks to the grader is
not kept from it. Use it to measure, and `LLMJudge` to train. Only control tokens that a conversation or a
criterion spells are made harmless, by an invisible character (U+2060) in each, where simple-evals sends them
unchanged.
"""

from __future__ import annotations

import ast
import asyncio
import hashlib
import logging
import re
from collections import Counter
from pathlib import Path

from herl.errors import ConfigError, JudgeError, check_at_least
from herl.judge.aggregation import healthbench
from herl.judge.base import NO_ANSWER, Aggregation
from herl.judge.llm.base import ChatJudge
from herl.judge.llm.chat import Chat, ChatRequest
from herl.judge.llm.client import Limits
from herl.judge.llm.parse import read_met
from herl.judge.llm.reply_cache import ReplyCache
from herl.prompt_text import defuse
from herl.types import Criterion, Judgement, Rollout, Task, Verdict

logger = logging.getLogger(__name__)
NAME = "GRADER_TEMPLATE"
"""The published file's name for the prompt."""
PUBLISHED = "2adffd51fd259554ebcd036ad1072d4aa2b7ce3aec2bbffe36271f911632ed3c"
"""SHA-256 of the published prompt, in UTF-8."""
FIELD = re.compile("<<(conversation|rubric_item)>>")
SCHEMA = {
    "type": "object",
    "properties": {"explanation": {"type": "string"}, "criteria_met": {"type": "boolean"}},
    "required": ["explanation", "criteria_met"],
    "additionalProperties": False,
}
"""The form of a reply, for endpoints set to enforce one."""


class HealthBenchGrader(ChatJudge):
    """Asks a language model whether an answer meets a criterion, for each criterion on its own.

    Args:
        chat: The grading model. Published scores are those of gpt-4.1-2025-04-14.
        grader: healthbench_eval.py of openai/simple-evals, or a text file with its prompt.
        system: The system message before the prompt; empty for none.
        temperature: Of the grading model.
        max_tokens: Maximum number of tokens in a reply.
        limits: Limits on the requests to the model.
        cache: Stores replies; None for no cache.
        aggregation: How verdicts and points become the reward.

    Raises:
        ConfigError: `grader` has no such prompt.
    """

    def __init__(
        self,
        chat: Chat,
        grader: str,
        system: str = "You are a helpful assistant.",
        temperature: float = 0.5,
        max_tokens: int = 2048,
        limits: Limits | None = None,
        cache: ReplyCache | None = None,
        aggregation: Aggregation = healthbench,
    ) -> None:
        super().__init__(chat, limits, cache, aggregation)
        check_at_least("benchmark.judge", 1, max_tokens=max_tokens)
        check_at_least("benchmark.judge", 0, temperature=temperature)
        self._template = read_template(grader)
        self._system = system
        self._temperature = temperature
        self._max_tokens = max_tokens
        if hashlib.sha256(self._template.encode()).hexdigest() != PUBLISHED:
            logger.warning(
                "the prompt in %s is not the published grader prompt of HealthBench: do not compare these "
                "scores with published ones",
                grader,
            )

    async def judge(self, task: Task, rollout: Rollout) -> Judgement:
        """Returns a verdict per criterion; a verdict that could not be obtained abstains, with its cause."""
        usage: Counter[str] = Counter()
        asked = (self._verdict(task, rollout.text, criterion, usage) for criterion in task.rubric.criteria)
        return self.verdict_sum(task, rollout, await asyncio.gather(*asked), dict(usage))

    def unanswered(self, task: Task, rollout: Rollout) -> Judgement:
        """Returns 0 points: an attempt whose thinking never ended is an empty answer, which meets nothing."""
        verdicts = [Verdict(criterion_id=c.id, met=False, reason=NO_ANSWER) for c in task.rubric.criteria]
        return self.verdict_sum(task, rollout, verdicts, {"no_answer": 1.0})

    async def _verdict(self, task: Task, answer: str, criterion: Criterion, usage: Counter[str]) -> Verdict:
        try:
            parsed = await self.client.ask(
                self._request(task, answer, criterion), read_met, usage, f"task {task.id}: {criterion.id}"
            )
        except JudgeError as error:
            usage[f"abstained_{error.cause}"] += 1
            return Verdict(criterion_id=criterion.id, met=None, reason=str(error))
        return Verdict(criterion_id=criterion.id, met=bool(parsed.value), reason=parsed.reason)

    def _request(self, task: Task, answer: str, criterion: Criterion) -> ChatRequest:
        turns = [*task.messages, {"role": "assistant", "content": answer}]
        points = int(criterion.weight) if criterion.weight.is_integer() else criterion.weight
        fields = {
            "conversation": defuse("\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)),
            "rubric_item": defuse(f"[{points}] {criterion.text}"),
        }
        asked = {"role": "user", "content": FIELD.sub(lambda found: fields[found[1]], self._template)}
        told = ({"role": "system", "content": self._system},) if self._system else ()
        return ChatRequest(
            messages=(*told, asked),
            schema=SCHEMA,
            temperature=self._temperature,
            max_tokens=self._max_tokens,
            seed=0,
        )


def read_template(path: str) -> str:
    """Returns the grader prompt from a text file, or from the assignment to GRADER_TEMPLATE in a .py file,
    which is read and not run.

    Raises:
        ConfigError: there is no such file, or no prompt with <<conversation>> and <<rubric_item>> in it.
    """
    where = "benchmark.judge.grader: expected healthbench_eval.py of openai/simple-evals, or its text"
    try:
        text = Path(path).read_text(encoding="utf-8")
        found = _assigned(ast.parse(text)) if path.endswith(".py") else text
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}; cannot read '{path}': {error}") from error
    if found is None:
        raise ConfigError(f"{where}; '{path}' assigns no text to {NAME}")
    template = found.strip()
    if sorted(FIELD.findall(template)) != ["conversation", "rubric_item"]:
        raise ConfigError(f"{where}, with <<conversation>> and <<rubric_item>> once each; '{path}' is not so")
    return template


def _assigned(tree: ast.Module) -> str | None:
    """The literal that a module assigns to the name, whether or not it strips it."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == NAME for target in statement.targets
        ):
            for part in ast.walk(statement.value):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    return part.value
    return None
