"""Stage 2 in more than one turn: what replies to the policy's answers.

    start(task) -> messages, tools        the conversation begins
    answer -> step(conversation, answer) -> reply -> answer -> step(...) -> None        it is over

`Environment` is the interface. `NoEnvironment` never replies, so that an answer is one turn.

runner.py    runs an environment for many episodes at once
tools.py     calls the tools that an answer asks for: calls.py reads the calls, tool.py is one tool,
             call_style.py is how a policy is shown tools, calls them, and reads their replies
catalog.py   the tool of the worked example

`herl.rollout.episodes` plays the episodes, and turns replies into tokens
that the policy reads and is never trained on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from herl.errors import ConfigError, DataError, check_above, check_at_least
from herl.prompt_text import visible
from herl.types import Message, Task, ToolCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How a conversation begins."""

    messages: Sequence[Message]
    """The prompt. The last message is the user's."""
    tools: Sequence[Mapping[str, Any]] = ()
    """The tools that the policy may call, as in `herl.types.Task.tools`; the chat template shows them."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the environment says to an answer."""

    messages: Sequence[Message]
    """At least one, of the roles in `Environment.roles`."""
    calls: Sequence[ToolCall] = ()
    """The tools that were called for it, for records, curves and checks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """An episode so far, as an environment sees it."""

    task: Task
    """With the messages and the tools that `Environment.start` returned."""
    messages: tuple[Message, ...]
    """All messages before the answer that is replied to. They are the same for a revision: hindsight is not
    shown, so that a revision is treated as any answer."""
    id: str = ""
    """The answer's, by which judges know it, too (`herl.types.Rollout.id`)."""
    turn: int = 0
    """Number of answers before this one."""
    raw: str = ""
    """The answer with its special tokens, for models whose calls begin with one, such as [TOOL_CALLS]."""
    seed: int = 0
    """A hash of the answer's coordinates, for an environment that draws at random: the same in any order of
    work, on any number of ranks, and in a run that is resumed."""
    state: dict[str, Any] = field(default_factory=dict)
    """The environment's own, kept over the turns of this episode and of no other."""


class Environment(ABC):
    """Replies to answers. Many episodes are played at once, on one event loop.

    Only `step` is required. What belongs to one episode lives in `Conversation.state`, so that one object
    serves all; a step that computes for long should do so elsewhere (`herl.environment.tools` uses a separate
    process), since it holds up all others.

    Args:
        max_turns: Answers in an episode.
        max_tokens: Tokens of an episode after its prompt, replies included. What would be longer is cut off
            before the reply that does not fit.
        max_seconds: Seconds that an episode may wait for its environment, in all its turns.
        keep_turns: Whether to go on with a chat template that would rewrite earlier turns, for example by
            taking out their thinking. They stay as they were sampled, which the model may not be used to.
    """

    replies: bool = True
    """False for `NoEnvironment` alone, whose answers are never shown to it."""
    roles: tuple[str, ...] = ("user",)
    """Roles of its replies. The chat template is tried with them before a run starts."""
    tool_names: frozenset[str] | None = None
    """The tools that an answer may call, so that criteria on others are found before a run; None if that is
    not known."""

    def __init__(
        self,
        max_turns: int = 8,
        max_tokens: int = 4096,
        max_seconds: float = 300.0,
        keep_turns: bool = False,
    ) -> None:
        check_at_least("environment", 1, max_turns=max_turns, max_tokens=max_tokens)
        check_above("environment", 0, max_seconds=max_seconds)
        self.max_turns = max_turns
        self.max_tokens = max_tokens
        self.max_seconds = max_seconds
        self.keep_turns = keep_turns

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: B027
        """Looks at the policy's tokenizer and chat template, before all else. Does nothing by default.

        Raises:
            ConfigError: the environment cannot work with it.
        """

    def start(self, task: Task) -> Opening:
        """Returns the beginning of a conversation: by default, the task's own messages and no tools.

        It must depend on the task alone, since a resumed run calls it again. It is called before `open`, too,
        when prompts are checked.

        Raises:
            DataError: the task does not fit the environment.
        """
        return Opening(messages=task.messages)

    @abstractmethod
    async def step(self, conversation: Conversation, answer: str) -> Reply | None:
        """Returns the reply to an answer, or None if the episode is over.

        An answer that cannot be understood deserves a reply that says so. If this method raises, the episode
        is over and cannot be judged; it abstains as if its judge had failed.

        Args:
            conversation: What was said before.
            answer: The policy's newest words, without thinking and special tokens.
        """

    async def end(self, conversation: Conversation) -> None:  # noqa: B027  # nothing to do is the right default
        """Releases what an episode holds, however it ended. Does nothing by default.

        Args:
            conversation: All that was said. Its last message is the last answer, which `step` was not asked
                to reply to if it was cut off. If the run was stopped meanwhile: as `step` saw it last.
        """

    def open(self) -> None:  # noqa: B027
        """Acquires what all episodes share, before a run. Safe to call twice."""

    def close(self) -> None:  # noqa: B027
        """Releases what `open` acquired. Safe to call twice."""


class NoEnvironment(Environment):
    """Never replies: an answer is one turn."""

    replies = False
    tool_names = frozenset()

    def __init__(self) -> None:
        super().__init__()

    async def step(self, conversation: Conversation, answer: str) -> None:
        """Ends the episode."""


def opened(environment: Environment, task: Task) -> Task:
    """Returns a task with the messages and tools that its conversation begins with.

    Raises:
        DataError: the environment refuses it; names the task.
    """
    if not environment.replies:
        return task
    try:
        opening = environment.start(task)
    except ConfigError:
        raise
    except Exception as error:  # of users' code
        kind = (
            ""
            if isinstance(error, DataError)
            else f"{type(environment).__name__}.start raised {type(error).__name__}: "
        )
        raise DataError(f"task '{task.id}': {kind}{error}") from error
    problem = _problem(opening)
    if problem:
        raise DataError(f"task '{task.id}': expected {type(environment).__name__}.start to {problem}")
    messages = tuple(dict(message) for message in opening.messages)
    return replace(task, messages=messages, tools=tuple(opening.tools))


def _problem(opening: object) -> str:
    """What a start should have done; "" if it did."""
    if not isinstance(opening, Opening):
        return f"return an Opening, got {type(opening).__name__}"
    if wrong := first_bad_message(opening.messages, {"role", "content"}):
        return f"return messages with a role and a content, as texts, got {wrong}"
    roles = [message["role"] for message in opening.messages]
    if roles[-1:] != ["user"]:
        return f"return messages that end with one of the user, got the roles {', '.join(roles) or 'of none'}"
    return ""


def first_bad_message(messages: object, texts: Collection[str] | None = None) -> str:
    """Returns the first of some messages that is no message, as it can be shown; "" if all are messages.

    Args:
        messages: What should be messages.
        texts: The fields that must be texts; None for all.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        return visible(repr(messages), 200)
    for one in messages:
        if (
            not isinstance(one, Mapping)
            or not {"role", "content"} <= one.keys()
            or not all(isinstance(one[field], str) for field in texts or one)
        ):
            return visible(repr(one), 200)
    return ""
