"""The components and settings of a rollout, and the checks that they fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol

from herl.bonus import BonusReward, NoBonus
from herl.errors import ConfigError
from herl.hindsight import HindsightBuilder, NoHindsight
from herl.judge import JudgeRunner
from herl.replay import NoReplay, Replay
from herl.rollout.render import Today
from herl.sampler import Sampler
from herl.types import Judged, Judgement, Member, Rollout, Rubric, SampleRequest, Sampling, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TrainingContext = Literal["original", "hindsight", "both"]


class Selection(Protocol):
    """Stage 6: which answers form the group that advantages compare (`herl.selection`)."""

    def __call__(
        self,
        task: Task,
        attempts: Sequence[Judged],
        revisions: Sequence[Judged],
        bonuses: Mapping[str, float],
        seed: int,
    ) -> list[Member]:
        """Returns the members of the group, in order.

        Args:
            task: The prompt and its rubric.
            attempts: The attempts at the prompt that could be judged.
            revisions: Revisions of some attempts, and replayed answers, that could be judged.
            bonuses: Bonus of each revised attempt, by rollout id.
            seed: All randomness is a hash of it.
        """
        ...


class Advantages(Protocol):
    """Stage 7: the rewards of all groups of a batch -> advantages (`herl.advantages`)."""

    def __call__(
        self, rewards: Sequence[Sequence[float]], is_attempt: Sequence[Sequence[bool]]
    ) -> list[list[float]]:
        """Returns one advantage for each member of each group.

        Args:
            rewards: Reward of each member, bonus included.
            is_attempt: Whether each member is an attempt; False for revisions and replayed answers.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPlan:
    """The number of answers per prompt, how they are drawn, and the context they are trained under.

    Args:
        attempts_per_prompt: Attempts in a group (n).
        revisions_per_candidate: Revisions of each attempt chosen for revision.
        attempt: How attempts are drawn. The trainer computes log-probs at its temperature.
        revision: How revisions are drawn.
        heldout: How held-out prompts are answered; None to use `attempt`.
        training_context: The context that revisions are trained under: the `original` prompt, the
            `hindsight` prompt that they were sampled under, or `both`.
        max_prompt_tokens: Longer prompts and revision prompts are dropped and counted, never truncated; so
            are those that leave no room for the longest answer in the model.
    """

    attempts_per_prompt: int = 8
    revisions_per_candidate: int = 1
    attempt: Sampling = field(default_factory=Sampling)
    revision: Sampling = field(default_factory=Sampling)
    heldout: Sampling | None = None
    training_context: TrainingContext = "original"
    max_prompt_tokens: int = 4096

    def __post_init__(self) -> None:
        if self.attempts_per_prompt < 1 or self.revisions_per_candidate < 1:
            raise ConfigError(
                "rollout: expected attempts_per_prompt and revisions_per_candidate of at least 1, "
                f"got {self.attempts_per_prompt} and {self.revisions_per_candidate}"
            )
        for name, sampling in (
            ("attempt", self.attempt),
            ("revision", self.revision),
            ("heldout", self.heldout or self.attempt),
        ):
            if sampling.temperature < 0 or not 0 < sampling.top_p <= 1 or sampling.max_new_tokens < 1:
                raise ConfigError(
                    f"rollout.{name}: expected temperature >= 0, top_p in (0, 1] and max_new_tokens >= 1, "
                    f"got {sampling.temperature}, {sampling.top_p} and {sampling.max_new_tokens}"
                )
        if self.attempt.temperature == 0:
            raise ConfigError(
                "rollout.attempt.temperature: expected a number above 0 (attempts must differ to be "
                f"compared), got {self.attempt.temperature}"
            )

    def within(self, max_tokens: int | None) -> RolloutPlan:
        """Returns the plan with prompts limited so that every answer has room in the model.

        Args:
            max_tokens: The model's limit on the tokens of a prompt with its answer; None for no limit.

        Raises:
            ConfigError: an answer alone may reach the limit.
        """
        if max_tokens is None:
            return self
        kinds = {"attempt": self.attempt, "revision": self.revision, "heldout": self.heldout or self.attempt}
        name, longest = max(kinds.items(), key=lambda kind: kind[1].max_new_tokens)
        if longest.max_new_tokens >= max_tokens:
            raise ConfigError(
                f"rollout.{name}.max_new_tokens: expected less than {max_tokens} (the model's limit for a "
                f"prompt with its answer), got {longest.max_new_tokens}"
            )
        return replace(
            self, max_prompt_tokens=min(self.max_prompt_tokens, max_tokens - longest.max_new_tokens)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """The components that collect() runs."""

    tokenizer: PreTrainedTokenizerBase
    sampler: Sampler
    judge_runner: JudgeRunner
    plan: RolloutPlan
    selection: Selection
    advantages: Advantages
    hindsight: HindsightBuilder = field(default_factory=NoHindsight)
    bonus: BonusReward = field(default_factory=NoBonus)
    replay: Replay = field(default_factory=NoReplay)
    today: Today = field(default_factory=Today)

    def __post_init__(self) -> None:
        if self.replay.needs_revisions and not self.hindsight.revises:
            raise ConfigError(
                "replay.of=revisions needs hindsight; use replay.of=best, or choose a hindsight builder"
            )
        if self.plan.attempts_per_prompt == 1 and not self.hindsight.revises:
            raise ConfigError(
                "rollout.attempts_per_prompt: expected at least 2 without hindsight, got 1: a single "
                "answer has nothing to be compared with"
            )
        if self.judge_runner.judge.holistic and self.hindsight.needs_verdicts:
            raise ConfigError(
                "judge: hindsight needs verdicts on each criterion, but a holistic judge gives one score "
                "for the whole answer: use algorithm=grpo, or another judge.mode"
            )


def trial_advantages(stages: Stages) -> list[float]:
    """Returns the advantages that a loss would get for a made-up group with rewards spread from 0 to 1."""
    count = max(2, stages.plan.attempts_per_prompt)
    task = Task(id="trial", messages=(), rubric=Rubric(criteria=()))
    request = SampleRequest(
        task_id=task.id, group_id=task.id, prompt_ids=(), n=count, sampling=stages.plan.attempt, seed=0
    )
    attempts = []
    for index in range(count):
        rollout = Rollout.answering(request, index, token_ids=(), logprobs=())
        judgement = Judgement(rollout_id=rollout.id, verdicts=(), reward=index / (count - 1))
        attempts.append(Judged(rollout=rollout, judgement=judgement))
    members = stages.selection(task, attempts, [], {}, 0)
    [advantages] = stages.advantages([[m.total for m in members]], [[True] * len(members)])
    return advantages
