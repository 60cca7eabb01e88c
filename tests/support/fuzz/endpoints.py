"""What a judge's endpoint sends: any status, headers and bytes, and replies that are slow, endless, cut or packed."""

import gzip
import json
import platform

from hypothesis import strategies as st

from herl.judge.llm.client import Limits
from tests.support.fake_endpoint import FAULTS, HOSTILE, FakeEndpoint
from tests.support.fuzz.replies import REPLY
from tests.support.fuzz.texts import JSON
from tests.support.llm_judges import TASK, judge_all, made

LIMITS = Limits(tries=2, backoff_seconds=0.0, max_wait_seconds=0.05, total_timeout_seconds=2.0)
SECONDS = 0.25
"""Limit of a try."""
platform.processor()  # asks a program once; the client's headers name the platform

HEADERS = st.sampled_from([
    *4 * [""], "retry-after: 1e8\r\n", "retry-after: -1\r\n", "retry-after: Wed, 21 Oct 2099 07:28:00 GMT\r\n",
    "retry-after: nan\r\n", "content-encoding: gzip\r\n", "content-encoding: br\r\n", "location: http://127.0.0.1:1/x\r\n",
    "location: //\r\n", "x: \xe9\r\n", "transfer-encoding: nonsense\r\n", f"x: {'y' * 9000}\r\n",
])  # fmt: skip
STATUS = st.sampled_from([*6 * [200], 100, 204, 301, 307, 400, 401, 403, 404, 413, 429, 500, 503, 999])


def _completion(text):
    message = {"role": "assistant", "content": text}
    return json.dumps({"id": "x", "object": "chat.completion", "created": 1, "model": "m",
                       "choices": [{"index": 0, "finish_reason": "stop", "message": message}]})  # fmt: skip


BODY = (
    st.binary(max_size=60)
    | JSON.map(json.dumps)
    | REPLY.map(_completion)
    | st.builds(lambda piece, times: piece * times, st.sampled_from(["[", '{"a":', " ", "0"]), st.sampled_from([10, 90_000]))
    | st.builds(lambda text: gzip.compress(_completion(text).encode(errors="replace")), REPLY)
)  # fmt: skip
FAULT = st.sampled_from(["ok", *FAULTS, *HOSTILE, "close"])
CASE = st.tuples(STATUS, BODY, HEADERS) | FAULT


def asked(case):
    """Each answer is judged, or abstains with one cause; nothing waits longer than the limits allow."""
    if isinstance(case, str):
        endpoint = FakeEndpoint(fault_share=1.0, faults=(case,))
    else:
        endpoint = FakeEndpoint(refuse=lambda body: case)
    with endpoint:
        [judgement], runner = judge_all(made(endpoint, limits=LIMITS, timeout=SECONDS), ["fish"])
    abstained = sum(verdict.met is None and verdict.score is None for verdict in judgement.verdicts)
    assert len(judgement.verdicts) == len(TASK.rubric.criteria)
    assert sum(runner.causes().values()) == abstained, (judgement, runner.causes())
    return f"abstained: {', '.join(runner.causes())}" if abstained else "judged"
