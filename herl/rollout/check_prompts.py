"""Tries a model's tokenizer on the prompts of a run, before anything is sampled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from herl.environment import Environment, opened
from herl.errors import DataError, did_you_mean
from herl.models.chat_template import render_prompt
from herl.models.replies import check_append_only
from herl.sampler.thinking import knowledge
from herl.types import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_PROMPTS = 10_000
"""Prompts of a split that are tried, evenly spaced. All are rendered again before they are sampled."""


def check_prompts(
    splits: Mapping[str, Sequence[Task]],
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    environment: Environment,
) -> None:
    """Checks that the chat template accepts the prompts, and that the model knows all their tokens.

    Args:
        splits: Tasks by split name.
        tokenizer: The model's tokenizer.
        vocab_size: Number of tokens that the model has an embedding for.
        environment: Begins the conversations. Its replies must fit the chat template, too.

    Raises:
        DataError: names the split, its file, the prompt, and the template's words or the token.
        ConfigError: the chat template would rewrite the turns of an episode.
    """
    for split, tasks in splits.items():
        for task in _some(tasks):
            try:
                checked_prompt(task, tokenizer, vocab_size, environment)
            except DataError as error:
                file = getattr(tasks, "path", "")
                raise DataError(f"data.{split}{f' ({file})' if file else ''}: {error}") from error.__cause__
    _check_turns(splits, tokenizer, environment)


def checked_prompt(
    task: Task, tokenizer: PreTrainedTokenizerBase, vocab_size: int, environment: Environment
) -> tuple[int, ...]:
    """Returns the token ids of a task's prompt.

    Raises:
        DataError: the environment or the chat template refuses it, the environment lacks a tool that a
            criterion is about, or the model has no embedding for one of its tokens, or of a criterion, which
            a revision prompt may show.
    """
    _check_calls(task, environment)
    prompt_ids = render_prompt(tokenizer, opened(environment, task))
    if len(tokenizer) > vocab_size:
        _check_tokens(f"prompt '{task.id}'", prompt_ids, tokenizer, vocab_size)
        for criterion in task.rubric.criteria:
            ids = tokenizer.encode(criterion.text, add_special_tokens=False)
            _check_tokens(f"criterion '{criterion.id}' of prompt '{task.id}'", ids, tokenizer, vocab_size)
    return prompt_ids


def _check_calls(task: Task, environment: Environment) -> None:
    """Checks that the environment has the tools that criteria are about."""
    known = environment.tool_names
    if known is None:
        return
    for criterion in task.whole.rubric.criteria:
        check = criterion.check or {}
        if check.get("kind") == "calls_tool" and (tool := str(check.get("tool"))) not in known:
            names = ", ".join(sorted(known)) or "none: see environment=tools"
            raise DataError(
                f"prompt '{task.id}': criterion '{criterion.id}' expects calls of the tool '{tool}', which "
                f"the environment does not have.{did_you_mean(tool, known)} Its tools: {names}"
            )


def _check_turns(
    splits: Mapping[str, Sequence[Task]], tokenizer: PreTrainedTokenizerBase, environment: Environment
) -> None:
    if not environment.replies or environment.keep_turns:
        return
    template = str(tokenizer.chat_template)
    thinking = [(one.start, one.end) for one in knowledge(tokenizer).tags if one.start in template]
    for task in (tasks[0] for tasks in splits.values() if tasks):
        check_append_only(tokenizer, opened(environment, task), environment.roles, thinking)


def _check_tokens(
    where: str, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, vocab_size: int
) -> None:
    largest = max(ids, default=0)
    if largest >= vocab_size:
        raise DataError(
            f"{where}: expected tokens that the model has an embedding for (0 to {vocab_size - 1}), got "
            f"{tokenizer.convert_ids_to_tokens(largest)!r} ({largest}): the tokenizer has more tokens than "
            "the model. Resize the model's embedding, or remove the added token from the tokenizer"
        )


def _some(tasks: Sequence[Task]) -> Iterator[Task]:
    count = min(len(tasks), MAX_PROMPTS)
    return (tasks[place * len(tasks) // count] for place in range(count))
