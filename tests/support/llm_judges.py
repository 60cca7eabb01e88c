"""Language-model judges on a fake endpoint."""

from herl.judge import JudgeRunner
from herl.judge.llm.client import Limits
from herl.judge.llm.endpoint import Endpoint
from herl.judge.llm.judge import LLMJudge
from herl.testing import make_rollout, make_task

TASK = make_task()


QUICK = Limits(backoff_seconds=0.01)


def judge_all(judge, texts, task=TASK, **runner):
    """Judges these answers and returns judgements and the runner."""
    with JudgeRunner(judge, **runner) as open_desk:
        futures = [open_desk.submit(task, make_rollout(text, id=f"g/{i}")) for i, text in enumerate(texts)]
        judged = [future.result() for future in futures]
        open_desk.watch(judged)
    return [one.judgement for one in judged], open_desk


def made(endpoint, cache=None, limits=QUICK, timeout=10.0, chat=None, **settings):
    chat = Endpoint(endpoint.url, "m", try_timeout_seconds=timeout, **(chat or {}))
    return LLMJudge(chat, limits=limits, cache=cache, **settings)
