"""Answers and drafts as tables, in words: for W&B, MLflow and Trackio, which show text literally."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from herl.callbacks.markup import sign, transcript, visible
from herl.loggers import Table
from herl.metrics.rubric import fulfilled
from herl.rollout.improve import Trajectory
from herl.types import Judged, Task


def answer_table(heldout: Iterable[Trajectory], over: str, place: int) -> Table:
    """Returns a row for each trajectory, with its plain answer and the verdicts on it.

    Args:
        heldout: Trajectories of a validation.
        over: Name of the x axis, the first column.
        place: Point on it.
    """
    rows = []
    for one in heldout:
        task, judged = one.task, one.answers[0]
        good = fulfilled(task, judged)
        missed = _lines([c.wish for c in task.rubric.criteria if good.get(c.id) is False])
        texts = [visible(task.request), transcript(judged.rollout)]
        rows.append((place, *texts, judged.judgement.reward, missed, _verdicts(task, judged)))
    return Table(columns=(over, "prompt", "answer", "reward", "missed", "verdicts"), rows=tuple(rows))


def revision_table(revised: Iterable[tuple[Task, Judged, Judged]], over: str, place: int) -> Table:
    """Returns a row for each draft with its revision, with the criteria that the revision mended and broke.

    Args:
        revised: Tasks with draft and revision.
        over: Name of the x axis, the first column.
        place: Point on it.
    """
    rows = []
    for task, draft, revision in revised:
        before, after = fulfilled(task, draft), fulfilled(task, revision)
        both = [c for c in task.rubric.criteria if c.id in before.keys() & after.keys()]
        turned = [(c.wish, after[c.id]) for c in both if before[c.id] != after[c.id]]
        texts = [visible(task.request), *(transcript(one.rollout) for one in (draft, revision))]
        mended, broken = (_lines([wish for wish, good in turned if good is now]) for now in (True, False))
        earned = (draft.judgement.reward, revision.judgement.reward)
        rows.append((place, *texts, *earned, mended, broken))
    columns = (over, "prompt", "draft", "revision", "draft_reward", "revision_reward", "mended", "broken")
    return Table(columns=columns, rows=tuple(rows))


def _verdicts(task: Task, judged: Judged) -> str:
    """A line for each criterion: the mark, the criterion and the judge's reason."""
    verdicts = {verdict.criterion_id: verdict for verdict in judged.judgement.verdicts}
    lines = []
    for criterion in task.rubric.criteria:
        if verdict := verdicts.get(criterion.id):
            good = None if verdict.met is None else criterion.good(verdict.met)
            reason = f" ({verdict.reason})" if verdict.reason else ""
            lines.append(f"{sign(good)} {criterion.wish}{reason}")
    return _lines(lines)


def _lines(texts: Sequence[str]) -> str:
    return visible("\n".join(texts))
