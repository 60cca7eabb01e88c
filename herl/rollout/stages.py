"""The components and settings of a rollout, and the checks that they fit together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from herl.advantages import Advantages, spares_new
from herl.bonus import BonusReward, NoBonus
from herl.distributed import gather, together
from herl.environment import Environment
from herl.environment.runner import EnvironmentRunner
from herl.errors import ConfigError, check_above, check_at_least, check_keywords_at_least
from herl.hindsight import HindsightBuilder, NoHindsight
from herl.hindsight.teacher import NO_TEACHER, Teacher
from herl.judge import JudgeRunner
from herl.judge.base import check_gives_verdicts, check_may_add_up, needs_verdicts
from herl.models.chat_template import Today
from herl.replay import NoReplay, Replay
from herl.rollout.difficulty import Difficulty, check_difficulty
from herl.rollout.episodes import Player
from herl.rollout.refill import Refill
from herl.sampler import Sampler
from herl.types import (
    Judged,
    Member,
    Sampling,
    Task,
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
        mask_truncated: Whether answers that a limit cut off are left out of training (DAPO's
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
        for key, sampling in self._draws.items():
            _check_draws(key, sampling)
        if self.attempt.temperature == 0:
            raise ConfigError(
                "rollout.attempt.temperature: expected a number above 0 (attempts must differ to be "
                f"compared), got {self.attempt.temperature}"
            )

    @property
    def _draws(self) -> dict[str, Sampling]:
        """How each kind of answer is drawn, by the key that sets it."""
        return {
            "rollout.attempt": self.attempt,
            "rollout.revision": self.revision,
            "validation.sampling": self.heldout or self.attempt,
        }

    @property
    def skips(self) -> bool:
        """Whether prompts may be skipped."""
        return self.skip_above is not None or self.skip_below is not None

    def within(self, max_tokens: int | None, environment: Environment) -> RolloutPlan:
        """Returns the plan with prompts limited so that every answer has room in the model.

        Args:
            max_tokens: The model's limit on the tokens of a prompt with its answer; None for no limit.
            environment: Sets the limit on episodes.

        Raises:
            ConfigError: an answer alone may reach the limit, or a turn may be longer than an episode.
        """
        key, longest = self.longest_turn
        if environment.replies:
            if longest > environment.max_tokens:
                raise ConfigError(
                    f"environment.max_tokens: expected at least {longest} ({key}), since an episode has at "
                    f"least one turn, got {environment.max_tokens}"
                )
            key, longest = "environment.max_tokens", environment.max_tokens
        if max_tokens is None:
            return self
        if longest >= max_tokens:
            raise ConfigError(
                f"{key}: expected less than {max_tokens} (the model's limit for a prompt with its answer), "
                f"got {longest}"
            )
        return replace(self, max_prompt_tokens=min(self.max_prompt_tokens, max_tokens - longest))

    @property
    def longest_turn(self) -> tuple[str, int]:
        """The key of the most tokens that are sampled at once, and their number."""
        key, longest = max(self._draws.items(), key=lambda kind: kind[1].max_new_tokens)
        return f"{key}.max_new_tokens", longest.max_new_tokens

    def check_stops(self, special: Sequence[str]) -> None:
        """Checks that no stop string holds one of these special tokens, which no text of an answer shows.

        Raises:
            ConfigError: one does.
        """
        for key, sampling in self._draws.items():
            if wrong := [one for one in sampling.stop if any(token in one for token in special)]:
                raise ConfigError(
                    f"{key}.stop: expected texts without special tokens, which no answer's text "
                    f"shows, got {wrong[0]!r}; an answer ends by itself at the model's end token"
                )


def _check_draws(key: str, sampling: Sampling) -> None:
    """Checks the limits of settings, which are those of vLLM."""
    if sampling.temperature < 0 or not 0 < sampling.top_p <= 1 or sampling.max_new_tokens < 1:
        raise ConfigError(
            f"{key}: expected temperature >= 0, top_p in (0, 1] and max_new_tokens >= 1, "
            f"got {sampling.temperature}, {sampling.top_p} and {sampling.max_new_tokens}"
        )
    if sampling.top_k < 0 or not 0 <= sampling.min_p <= 1:
        raise ConfigError(
            f"{key}: expected top_k >= 0 (0 for all tokens) and min_p in [0, 1], "
            f"got {sampling.top_k} and {sampling.min_p}"
        )
    check_above(key, 0, repetition_penalty=sampling.repetition_penalty)
    for name, value in (
        ("presence_penalty", sampling.presence_penalty), ("frequency_penalty", sampling.frequency_penalty)
    ):  # fmt: skip
        if not -2 <= value <= 2:
            raise ConfigError(f"{key}.{name}: expected a number in [-2, 2], got {value}")
    if isinstance(sampling.stop, str) or not all(sampling.stop):
        raise ConfigError(f"{key}.stop: expected a list of texts, none of them empty, got {sampling.stop!r}")


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
    environment_runner: EnvironmentRunner = field(default_factory=EnvironmentRunner)

    def __post_init__(self) -> None:
        self.plan.check_stops(self.tokenizer.all_special_tokens)
        check_keywords_at_least("selection", 0, self.selection, "top_n", "worst")
        check_keywords_at_least("selection", 1, self.selection, "max_quote", "best")
        self._check_environment()
        self.environment.prepare(self.tokenizer)
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

    def _check_environment(self) -> None:
        if self.environment.replies and self.sampler.ranks_per_engine > 1:
            raise ConfigError(
                "environment: expected none with an engine on several ranks, which cannot agree on when a "
                f"reply arrives, got {type(self.environment).__name__}: use sampler=vllm_server, whose "
                "engines may be on several GPUs each"
            )

    @property
    def environment(self) -> Environment:
        """What replies to answers."""
        return self.environment_runner.environment

    @property
    def player(self) -> Player:
        """Plays episodes, if there is an environment."""
        return Player(self.environment_runner, self.tokenizer, self.today)

    @property
    def longest_answer(self) -> int:
        """Most tokens after a prompt, replies of the environment included."""
        return self.environment.max_tokens if self.environment.replies else self.plan.longest_turn[1]

    @property
    def longest_trained(self) -> tuple[str, int]:
        """The key of the most tokens of an answer that is trained on, and their number, replies of the
        environment included."""
        attempt, revision = self.plan.attempt.max_new_tokens, self.plan.revision.max_new_tokens
        if self.environment.replies:
            return "environment.max_tokens", self.environment.max_tokens
        if self.hindsight.revises and revision > attempt:
            return "rollout.revision.max_new_tokens", revision
        return "rollout.attempt.max_new_tokens", attempt

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

    def check_training(self) -> None:
        """Refuses what would be trained on wrongly, but may be measured.

        Raises:
            ConfigError: advantages add up verdicts that the judge's aggregation does not, or all revisions of
                an attempt would be identical.
        """
        check_may_add_up(self.judge_runner.judge, self.advantages)
        plan = self.plan
        if self.hindsight.revises and plan.revision.temperature == 0 and plan.revisions_per_candidate > 1:
            raise ConfigError(
                "rollout.revisions_per_candidate: expected 1 with rollout.revision.temperature=0, where all "
                f"revisions of an attempt are identical, got {plan.revisions_per_candidate}"
            )

    def open(self, prompts: object = None, *, trains: bool = True) -> None:
        """Opens judge and environment, and agrees with the other ranks on the run's date.

        Args:
            prompts: The data module that further prompts are drawn from (`herl.rollout.refill`).
            trains: Whether the run trains on its prompts.
        """
        if trains:
            self.check_training()
        self.refill.pin(prompts, self.plan.refill, trains=trains)
        together(self.judge_runner.open)
        together(self.environment_runner.open)
        self.today.pin(gather(self.today.started.isoformat())[0])

    def close(self) -> None:
        """Closes judge and environment. Safe to call twice."""
        try:
            self.environment_runner.close()
        finally:
            self.judge_runner.close()

    def way_back(self) -> Callable[[], None]:
        """Returns a function that takes the components back to their present state, should a batch fail:
        replay, hindsight, difficulty and the abstention window. What the judge was paid stays counted."""
        hindsight = deepcopy(self.hindsight.state_dict())
        others = [
            self.judge_runner.abstentions.way_back(),
            self.replay.way_back(),
            self.difficulty.way_back(),
        ]

        def go_back() -> None:
            self.hindsight.load_state_dict(hindsight)
            for one in others:
                one()

        return go_back

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
