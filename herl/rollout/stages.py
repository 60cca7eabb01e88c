"""The components and settings of a rollout, and the checks that they fit together."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from herl.advantages import Advantages, check_takes_groups, spares_new
from herl.bonus import BonusReward, NoBonus
from herl.distributed import gather, together
from herl.errors import ConfigError, check_above, check_at_least
from herl.hindsight import HindsightBuilder, NoHindsight
from herl.hindsight.teacher import NO_TEACHER, Teacher
from herl.judge import JudgeRunner
from herl.judge.base import check_gives_verdicts, needs_verdicts
from herl.models.chat_template import Today
from herl.replay import NoReplay, Replay
from herl.rollout.difficulty import Difficulty, check_difficulty
from herl.rollout.refill import Refill
from herl.sampler import Sampler
from herl.types import (
    Criterion,
    Group,
    Judged,
    Judgement,
    Member,
    Rollout,
    Rubric,
    SampleRequest,
    Sampling,
    Task,
    Verdict,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
TrainingContext = Literal["original", "hindsight", "both"]


@runtime_checkable
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
        refill: Rounds in which the groups of a batch that carry no signal are replaced by as many further
            prompts (dynamic sampling, DAPO, arXiv:2503.14476); 0 for none. Their answers count like others.
        skip_above: Prompts whose attempts earned at least this on average, when they were last sampled, are
            skipped as solved; None skips none (`herl.rollout.difficulty`).
        skip_below: Prompts whose attempts earned at most this are skipped as hopeless; None skips none.
        skip_chance: Probability with which such a prompt is sampled nevertheless, each time it comes up.
        mask_truncated: Whether answers that were cut off at max_new_tokens are left out of training (DAPO's
            overlong filtering, arXiv:2503.14476). They are still compared with the others.
        batches_ahead: 0, or 1 to draw each batch while the policy is updated on the one before, from weights
            before that update (`herl.rollout.ahead`).
        keep_flat_groups: Whether groups without signal are trained on too, with advantages of 0: they count
            in the mean over tokens and in the KL (reference code).
    """

    attempts_per_prompt: int = 8
    revisions_per_candidate: int = 1
    attempt: Sampling = field(default_factory=Sampling)
    revision: Sampling = field(default_factory=Sampling)
    heldout: Sampling | None = None
    training_context: TrainingContext = "original"
    max_prompt_tokens: int = 4096
    keep_flat_groups: bool = False
    refill: int = 0
    mask_truncated: bool = False
    skip_above: float | None = None
    skip_below: float | None = None
    skip_chance: float = 0.1
    batches_ahead: Literal[0, 1] = 0

    def __post_init__(self) -> None:
        check_difficulty(self.skip_above, self.skip_below, self.skip_chance)
        check_at_least("rollout", 0, refill=self.refill)
        if self.batches_ahead not in (0, 1):
            raise ConfigError(f"rollout.batches_ahead: expected 0 or 1, got {self.batches_ahead}")
        if self.refill and self.keep_flat_groups:
            raise ConfigError(
                f"rollout.refill: expected 0 with keep_flat_groups, which trains on the groups that a refill "
                f"replaces, got {self.refill}"
            )
        if self.attempts_per_prompt < 1 or self.revisions_per_candidate < 1:
            raise ConfigError(
                "rollout: expected attempts_per_prompt and revisions_per_candidate of at least 1, "
                f"got {self.attempts_per_prompt} and {self.revisions_per_candidate}"
            )
        _check_draws("attempt", self.attempt)
        _check_draws("revision", self.revision)
        _check_draws("heldout", self.heldout or self.attempt)
        if self.attempt.temperature == 0:
            raise ConfigError(
                "rollout.attempt.temperature: expected a number above 0 (attempts must differ to be "
                f"compared), got {self.attempt.temperature}"
            )

    @property
    def skips(self) -> bool:
        """Whether prompts may be skipped."""
        return self.skip_above is not None or self.skip_below is not None

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

    def check_stops(self, special: Sequence[str]) -> None:
        """Checks that no stop string holds one of these special tokens, which no text of an answer shows.

        Raises:
            ConfigError: one does.
        """
        kinds = {"attempt": self.attempt, "revision": self.revision, "heldout": self.heldout or self.attempt}
        for name, sampling in kinds.items():
            if wrong := [one for one in sampling.stop if any(token in one for token in special)]:
                raise ConfigError(
                    f"rollout.{name}.stop: expected texts without special tokens, which no answer's text "
                    f"shows, got {wrong[0]!r}; an answer ends by itself at the model's end token"
                )


def _check_draws(name: str, sampling: Sampling) -> None:
    """Checks the limits of settings, which are those of vLLM."""
    if sampling.temperature < 0 or not 0 < sampling.top_p <= 1 or sampling.max_new_tokens < 1:
        raise ConfigError(
            f"rollout.{name}: expected temperature >= 0, top_p in (0, 1] and max_new_tokens >= 1, "
            f"got {sampling.temperature}, {sampling.top_p} and {sampling.max_new_tokens}"
        )
    if sampling.top_k < 0 or not 0 <= sampling.min_p <= 1:
        raise ConfigError(
            f"rollout.{name}: expected top_k >= 0 (0 for all tokens) and min_p in [0, 1], "
            f"got {sampling.top_k} and {sampling.min_p}"
        )
    check_above(f"rollout.{name}", 0, repetition_penalty=sampling.repetition_penalty)
    for key, value in (
        ("presence_penalty", sampling.presence_penalty), ("frequency_penalty", sampling.frequency_penalty)
    ):  # fmt: skip
        if not -2 <= value <= 2:
            raise ConfigError(f"rollout.{name}.{key}: expected a number in [-2, 2], got {value}")
    if isinstance(sampling.stop, str) or not all(sampling.stop):
        raise ConfigError(
            f"rollout.{name}.stop: expected a list of texts, none of them empty, got {sampling.stop!r}"
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
    teacher: Teacher = NO_TEACHER
    today: Today = field(default_factory=Today)
    refill: Refill = field(default_factory=Refill)
    difficulty: Difficulty = field(default_factory=Difficulty)

    def __post_init__(self) -> None:
        self.plan.check_stops(self.tokenizer.all_special_tokens)
        if self.plan.refill and self.teacher.flat_groups:
            raise ConfigError(
                "rollout.refill: expected 0 with teacher.flat_groups, which trains on the groups that a "
                f"refill replaces, got {self.plan.refill}"
            )
        if self.replay.needs_revisions and not self.hindsight.revises:
            raise ConfigError(
                "replay.of=revisions needs hindsight; use replay.of=best, or choose a hindsight builder"
            )
        if self.hindsight.tells and not isinstance(self.bonus, NoBonus):
            raise ConfigError(
                "bonus: expected none with hindsight=told, whose answers have no draft to be paid, got "
                f"{type(self.bonus).__name__}: use algorithm=told, or bonus=none"
            )
        if self._joins_new and not spares_new(self.advantages):
            raise ConfigError(
                "selection.joins=new needs advantages that do not punish an answer for joining with a lower "
                "reward: use advantages=by_criterion, or selection.joins=better"
            )
        if self._joins_new and not self.adds_answers:
            raise ConfigError(
                "selection.joins=new needs answers that may join: choose a hindsight builder or "
                "replay=buffer, or use selection.joins=better"
            )
        if self.plan.mask_truncated and getattr(self.selection, "keywords", {}).get("worst"):
            raise ConfigError(
                "rollout.mask_truncated: expected false with selection=extremes, whose pairs would lose an "
                "answer"
            )
        self.check_verdicts()

    @property
    def _joins_new(self) -> bool:
        return bool(getattr(self.selection, "keywords", {}).get("joins") == "new")

    @property
    def adds_answers(self) -> bool:
        """Whether there may be more answers than attempts."""
        return self.hindsight.revises or not isinstance(self.replay, NoReplay)

    def check_verdicts(self) -> None:
        """Checks that the judge gives verdicts if some part of the run needs them.

        Raises:
            ConfigError: the judge is holistic.
        """
        needed = {
            "hindsight": self.hindsight.needs_verdicts,
            "advantages": needs_verdicts(self.advantages),
            "selection": self._joins_new,
            "teacher": self.teacher.needs_verdicts,
        }
        check_gives_verdicts(self.judge_runner.judge, needed)

    def open(self, prompts: object = None, *, trains: bool = True) -> None:
        """Opens the judge runner, and agrees with the other ranks on the run's date.

        Args:
            prompts: The data module that further prompts are drawn from (`herl.rollout.refill`).
            trains: Whether the run trains on its prompts.
        """
        self.refill.pin(prompts, self.plan.refill, trains=trains)
        together(self.judge_runner.open)
        self.today.pin(gather(self.today.started.isoformat())[0])

    def check_outcome(self, counts: Mapping[str, int]) -> None:
        """Checks that some answer of the run could be judged; warns if there was none.

        Args:
            counts: The run's counts (`herl.metrics.collection.collection_counts`).

        Raises:
            AbstentionLimit: there were answers, and none could be judged.
        """
        if counts.get("batches") and not counts.get("answers_sampled"):
            logger.warning(
                "nothing was trained: all prompts of the run have more than %d tokens "
                "(rollout.max_prompt_tokens, and room for the answer in the model)",
                self.plan.max_prompt_tokens,
            )
        self.judge_runner.check_judged()


def check_signal(stages: Stages) -> None:
    """Refuses settings under which no group can ever have an advantage other than 0.

    Tries selection and advantages on made-up groups: attempts that all differ, and, if there is hindsight or
    replay, the same with answers that beat them all.

    Raises:
        ConfigError: the policy would never be updated, or advantages expect something else than groups.
    """
    check_takes_groups(stages.advantages)
    count = stages.plan.attempts_per_prompt
    joined = stages.adds_answers
    for better in (0.0, 0.5) if joined else (0.0,):
        for scale in (1.0, 100.0):  # a threshold may fit rewards beyond 1
            if any(_trial(stages, [scale * (i + 1) / count for i in range(count)], better * scale)):
                return
    if count > 1:
        raise ConfigError(
            "selection, advantages: expected groups whose members can differ in their advantages, but these "
            "two leave every group with advantages of 0: with selection=best use advantages=ones, otherwise "
            "lower advantages.tolerance or selection.at_least"
        )
    why = (
        "a revision takes the place of the only attempt and has nothing to be compared with: use "
        "selection.placement=append, or more attempts"
        if joined
        else "a single answer has nothing to be compared with"
    )
    where = "" if joined else " without hindsight"
    raise ConfigError(f"rollout.attempts_per_prompt: expected at least 2{where}, got 1: {why}")


def trial_advantages(stages: Stages) -> list[float]:
    """Returns the advantages that a loss would get for a made-up group with rewards spread from 0 to 1."""
    count = max(2, stages.plan.attempts_per_prompt)
    return _trial(stages, [index / (count - 1) for index in range(count)])


def _trial(stages: Stages, rewards: Sequence[float], better: float = 0.0) -> list[float]:
    """The advantages of a made-up group with these attempts, each of which fulfills one criterion more.

    If `better` is above 0, a revision joins that earns this much more than the best attempt and fulfills all
    criteria.
    """
    criteria = [Criterion(id=str(i), text="trial") for i in range(len(rewards) - (not better))]
    task = Task(id="trial", messages=(), rubric=Rubric(criteria=tuple(criteria)))
    request = SampleRequest(
        task_id=task.id, group_id=task.id, prompt_ids=(), n=1, sampling=stages.plan.attempt, seed=0
    )
    attempts = [_made_up(request, i, reward, criteria, fulfilled=i) for i, reward in enumerate(rewards)]
    revisions = []
    if better:
        asked = replace(request, parent_id=attempts[-1].rollout.id)
        revisions = [_made_up(asked, 0, max(rewards) + better, criteria, fulfilled=len(criteria))]
    members = stages.selection(task, attempts, revisions, {}, 0)
    group = Group(
        id=task.id, task=task, prompt_ids=(), attempts=tuple(attempts), revisions=tuple(revisions),
        members=tuple(members),
    )  # fmt: skip
    [advantages] = stages.advantages([group], 0)
    return advantages


def _made_up(
    request: SampleRequest, index: int, reward: float, criteria: Sequence[Criterion], *, fulfilled: int
) -> Judged:
    rollout = Rollout.answering(request, index, token_ids=(), logprobs=())
    verdicts = tuple(Verdict(criterion_id=one.id, met=i < fulfilled) for i, one in enumerate(criteria))
    return Judged(
        rollout=rollout, judgement=Judgement(rollout_id=rollout.id, verdicts=verdicts, reward=reward)
    )
