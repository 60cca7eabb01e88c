"""Plays episodes: an answer gets the environment's reply and goes on, until it is over or reaches a limit.

    sampled turn -> step -> reply -> request of the next turn -> [sampler] -> sampled turn -> ...
                         -> over -> the whole answer

Steps run beside the sampler, many at once, so while one episode waits for its environment, turns of others
are sampled. The request of a next turn holds everything so far as token ids; nothing is rendered again. Its
seed is a hash of the answer's and of the turn's number, so an answer depends on its own episode alone.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from herl.environment import Conversation, Reply
from herl.environment.runner import EnvironmentRunner, Step
from herl.errors import DataError
from herl.models.chat_template import Today
from herl.models.replies import render_reply
from herl.seeds import derive_seed
from herl.types import FinishReason, Message, Rollout, SampleRequest, Task, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Place = tuple[str, str | None, bool, int]
"""What tells an answer from all others: its group, draft, whether its prompt shows the rubric, and index."""
CHARACTERS = 50
"""A reply of more characters than this for each token that is left has no room, and is not tokenized."""


def place_of(rollout: Rollout) -> Place:
    """Returns the place of an answer, or of one of its turns."""
    return rollout.group_id, rollout.parent_id, rollout.told, rollout.index


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """An answer that may go on."""

    request: SampleRequest
    """The request of the whole answer, that is of its first turn."""
    conversation: Conversation
    """As the environment knows it, up to the newest turn. It never sees hindsight, so it treats a revision as
    any answer."""
    said: Rollout
    """The turns so far, as one answer."""
    waited: float = 0.0
    """Seconds that its environment took."""

    @classmethod
    def first(cls, task: Task, request: SampleRequest, turn: Rollout) -> Episode:
        """Returns an episode with its first turn."""
        seed = derive_seed(request.seed, turn.index, "environment")
        conversation = Conversation(id=turn.id, task=task, messages=task.messages, seed=seed)
        return cls(request=request, conversation=conversation, said=turn)

    def then(self, turn: Rollout) -> Episode:
        """Returns the episode with one more turn."""
        said = replace(
            self.said,
            token_ids=(*self.said.token_ids, *turn.token_ids),
            logprobs=(*self.said.logprobs, *turn.logprobs),
            text=turn.text,
            finish_reason=turn.finish_reason,
            thinking=turn.thinking,
            thinking_tokens=self.said.thinking_tokens + turn.thinking_tokens,
            has_answer=turn.has_answer,
        )
        return replace(self, said=said)

    def replied(self, reply: Reply, reply_ids: tuple[int, ...], seconds: float) -> Episode:
        """Returns the episode with the environment's reply to its newest turn."""
        said, conversation = self.said, self.conversation
        messages = tuple(cast(Message, dict(one)) for one in reply.messages)
        _, thought = said.parts[-1]
        turn = Turn(
            text=said.text,
            end=len(said.token_ids),
            reply=messages,
            reply_ids=reply_ids,
            calls=tuple(reply.calls),
            thinking=said.thinking,
            thinking_tokens=thought,
        )
        return Episode(
            request=self.request,
            conversation=replace(
                conversation, messages=(*self.spoken, *messages), turn=conversation.turn + 1
            ),
            said=replace(said, turns=(*said.turns, turn)),
            waited=self.waited + seconds,
        )

    @property
    def spoken(self) -> tuple[Message, ...]:
        """All messages so far, with the newest answer."""
        return (*self.conversation.messages, {"role": "assistant", "content": self.said.text})


class Player:
    """Plays the episodes of a run.

    Args:
        runner: Runs its environment.
        tokenizer: The tokenizer, with its chat template.
        today: The date that the template sees.
    """

    def __init__(self, runner: EnvironmentRunner, tokenizer: PreTrainedTokenizerBase, today: Today) -> None:
        self._runner, self._tokenizer, self._today = runner, tokenizer, today
        self._limits = runner.environment

    def goes_on(self, said: Rollout) -> bool:
        """Whether the environment may reply to an answer: not to one that was cut off."""
        return self._limits.replies and said.finish_reason == "stop"

    def step(self, episode: Episode) -> Future[Step]:
        """Asks the environment for its reply to the newest turn."""
        said = episode.said
        places, thought = said.parts[-1]
        raw = self._tokenizer.decode([said.token_ids[i] for i in places[thought:]], skip_special_tokens=False)
        return self._runner.step(replace(episode.conversation, raw=str(raw)), said.text, episode.waited)

    def next(self, episode: Episode, step: Step) -> tuple[Episode, SampleRequest | None]:
        """Returns the episode after a step, and the request of its next turn; None if it is over.

        A reply that the chat template refuses makes the episode fail.
        """
        said = episode.said
        if step.reply is None:
            return replace(episode, said=replace(said, finish_reason=step.ended)), None
        if len(said.turns) + 1 >= self._limits.max_turns:
            return _over(episode, "turns", step.reply), None
        room = self._limits.max_tokens - said.length
        try:
            reply_ids = self._rendered(episode, step.reply, room)
        except DataError as error:
            self._runner.warn("step", episode.conversation, error)
            return _over(episode, "failed", step.reply), None
        if reply_ids is None:
            return _over(episode, "length", step.reply), None
        episode = episode.replied(step.reply, reply_ids, step.seconds)
        return episode, self._request(episode, room - len(reply_ids))

    def end(self, episode: Episode) -> Rollout:
        """Releases what an episode holds, and returns the whole answer."""
        if self._limits.replies:
            self._runner.end(replace(episode.conversation, messages=episode.spoken))
        return episode.said

    def _rendered(self, episode: Episode, reply: Reply, room: int) -> tuple[int, ...] | None:
        """The tokens of a reply; None if they leave no room for another turn."""
        if sum(len(one["content"]) for one in reply.messages) > CHARACTERS * room:
            return None
        said, task = episode.said, episode.conversation.task
        ids = render_reply(self._tokenizer, task, reply.messages, said.token_ids[-1], self._today.started)
        return ids if len(ids) < room else None

    def _request(self, episode: Episode, room: int) -> SampleRequest:
        """The request of an episode's next turn."""
        asked, said = episode.request, episode.said
        limit = min(asked.sampling.max_new_tokens, room)
        return replace(
            asked,
            prompt_ids=(*asked.prompt_ids, *said.sequence),
            n=1,
            first=said.index,
            sampling=replace(asked.sampling, max_new_tokens=limit),
            seed=derive_seed(asked.seed, said.index, "turn", len(said.turns)),
        )


def _over(episode: Episode, reason: FinishReason, unread: Reply) -> Episode:
    """Ends an episode that never reads its environment's last reply."""
    return replace(episode, said=replace(episode.said, finish_reason=reason, last_calls=tuple(unread.calls)))
