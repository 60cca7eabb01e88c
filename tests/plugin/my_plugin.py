"""A user's components, outside the package."""

from herl import BonusReward, Hindsight, HindsightBuilder, Judge, Judgement, Verdict
from herl.judge.aggregation import weighted


class ShortAnswerJudge(Judge):
    """Ignores the rubric's checks: an answer meets a criterion if it is short."""

    def __init__(self, max_words: int = 12, aggregation=weighted):
        super().__init__(aggregation)
        self.max_words = max_words

    async def judge(self, task, rollout) -> Judgement:
        short = len(rollout.text.split()) <= self.max_words
        verdicts = [Verdict(criterion_id=c.id, met=short != c.undesirable) for c in task.rubric.criteria]
        return self.verdict_sum(task, rollout, verdicts)


class AskForLess(HindsightBuilder):
    """Requests a shorter version of the worst attempt."""

    def build(self, task, group) -> list[Hindsight]:
        judged = [one for one in group if one.has_reward]
        worst = min(judged, key=lambda one: one.reward, default=None)
        text = f"{task.request} Write less than this: {worst.rollout.text}" if worst else ""
        message = {"role": "user", "content": text}
        return [Hindsight(parent=worst.rollout, messages=(message,), met=(), missed=())] if worst else []


class FlatBonus(BonusReward):
    """Pays a fixed bonus if a revision is better."""

    def __init__(self, amount: float = 0.1):
        self.amount = amount

    def bonus(self, attempt, revisions) -> float:
        better = any(r.judgement.reward > attempt.judgement.reward for r in revisions)
        return self.amount if better else 0.0
