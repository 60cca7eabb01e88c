"""Endpoints that mean harm: no reply holds up the run, fills the memory or leads prompts elsewhere."""

import resource
import time

import pytest

from herl import ConfigError
from herl.judge.llm.client import Limits
from herl.judge.llm.refusal import Refusal
from herl.judge.llm.wait_notice import WaitNotice
from tests.support.fake_endpoint import HOSTILE, FakeEndpoint
from tests.support.llm_judges import TASK, judge_all, made

ONE_TRY = Limits(tries=1, backoff_seconds=0.0)


@pytest.mark.parametrize("fault", HOSTILE)
def test_each_hostile_reply_abstains_with_its_cause_in_little_time_and_memory(fault):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    timeout = 0.3 if fault == "drip" else 10.0  # seconds
    with FakeEndpoint(fault_share=1.0, faults=(fault,)) as endpoint:
        started = time.perf_counter()
        [judgement], runner = judge_all(made(endpoint, limits=ONE_TRY, timeout=timeout), ["fish"])
        seconds = time.perf_counter() - started
    assert runner.causes() == {HOSTILE[fault]: len(TASK.rubric.criteria)}
    assert judgement.reward is None
    assert seconds < 20.0  # it would be endless
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KiB


@pytest.mark.parametrize(
    ("fault", "message"),
    [("endless", "at most 16 MiB, got more"), ("drip", "no reply within 0.3 s"), ("odd_packing", "packs its reply as 'br'"),
     ("nested_json", "did not reply in JSON"), ("long", "at most 500000 characters")],
)  # fmt: skip
def test_a_hostile_reply_is_named(fault, message):
    with FakeEndpoint(fault_share=1.0, faults=(fault,)) as endpoint:
        timeout = 0.3 if fault == "drip" else 10.0  # seconds
        [judgement], _ = judge_all(made(endpoint, limits=ONE_TRY, timeout=timeout), ["fish"])
    assert message in judgement.verdicts[0].reason


@pytest.mark.parametrize(
    "reply",
    [(200, "x", "transfer-encoding: nonsense\r\n"), (204, "hush", ""), (200, "x", f"a: {'y' * 9000}\r\n")],
)
def test_a_reply_that_is_no_http_is_malformed(reply):
    with FakeEndpoint(refuse=lambda body: reply) as endpoint:
        limits = Limits(tries=2, backoff_seconds=0.0)
        [judgement], runner = judge_all(made(endpoint, limits=limits), ["fish"])
    assert set(runner.causes()) == {"malformed"}
    assert "hush" not in judgement.verdicts[0].reason


@pytest.mark.parametrize("path", ["/v1/chat/completions?token=hush", ""])
def test_a_redirect_is_refused_and_no_prompt_reaches_the_other_host(path):
    with FakeEndpoint() as other:
        location = f"http://user:hush@127.0.0.1:{other.port}{path}"
        with (
            FakeEndpoint(fault_share=1.0, faults=("redirect",), location=location) as endpoint,
            pytest.raises(
                ConfigError, match=f"redirects to http://127.0.0.1:{other.port}, which is not"
            ) as stopped,
        ):
            judge_all(made(endpoint, limits=ONE_TRY), ["fish"])
        assert "judge.chat.base_url" in str(stopped.value)
        assert "hush" not in str(stopped.value)
        assert other.sent == []


def test_a_redirect_in_the_middle_of_a_run_is_a_lost_connection():
    with FakeEndpoint(faults=("redirect",), location="/login") as endpoint:
        judge = made(endpoint, limits=ONE_TRY)
        judge_all(judge, ["fish"])
        endpoint.fault_share = 1.0
        [judgement], runner = judge_all(judge, ["river"])
    assert runner.causes() == {"connection": 2}
    assert f"redirects to http://127.0.0.1:{endpoint.port}" in judgement.verdicts[0].reason


def test_errors_of_any_length_are_read_in_little_time():
    started = time.perf_counter()
    for words in ("the model " * 400_000, "<html>" + "<!--" * 100_000, "<p>" + "<" * 100_000):
        assert len(Refusal.of(400, words).words) <= 5000
    assert time.perf_counter() - started < 2.0


# Waiting


def waits(caplog):
    return [r.getMessage() for r in caplog.records if "waiting for the judge" in r.getMessage()]


def test_a_pause_that_the_endpoint_asks_for_is_shortened_and_told_once(caplog):
    limits = Limits(tries=2, backoff_seconds=0.0, max_wait_seconds=0.2, concurrency=1)
    with FakeEndpoint(fault_share=1.0, faults=("rate_limit",), retry_after=1e8) as endpoint:
        started = time.perf_counter()
        _, runner = judge_all(made(endpoint, limits=limits), ["fish", "river"])
    assert 0.2 <= time.perf_counter() - started < 5.0
    assert runner.causes() == {"rate_limit": 4}
    assert len(endpoint.sent) == 4
    told = [r.getMessage() for r in caplog.records if "max_wait_seconds" in r.getMessage()]
    assert told == [
        "the judge's endpoint asks for a pause of 100000000 s; herl tries again after 0.2 s "
        "(judge.limits.max_wait_seconds)"
    ]


def test_a_pause_counts_toward_the_time_of_every_request():
    limits = Limits(tries=9, backoff_seconds=0.0, total_timeout_seconds=0.3, concurrency=1)
    with FakeEndpoint(fault_share=1.0, faults=("rate_limit",), retry_after=60.0) as endpoint:
        started = time.perf_counter()
        judge = made(endpoint, limits=limits)
        _, runner = judge_all(judge, ["fish", "river", "sea"])
    assert time.perf_counter() - started < 5.0
    assert runner.causes() == {"rate_limit": 6}
    assert len(endpoint.sent) == 1  # the others never found the judge ready


def test_a_run_that_waits_for_its_judge_says_so(caplog):
    with FakeEndpoint(fault_share=1.0, faults=("hang",)) as endpoint:
        judge = made(endpoint, limits=ONE_TRY, timeout=0.5)
        judge.client._notice = WaitNotice(after_seconds=0.05, again_seconds=0.2)
        judge_all(judge, ["fish", "river"])
    assert 1 < len(waits(caplog)) <= 3
    assert waits(caplog)[0] == "waiting for the judge: 2 requests, no reply yet, 0 s so far"


def test_a_long_pause_is_told_at_once(caplog):
    limits = Limits(tries=2, backoff_seconds=0.0, max_wait_seconds=2.0, total_timeout_seconds=0.1)
    with FakeEndpoint(fault_share=1.0, faults=("rate_limit",), retry_after=60.0) as endpoint:
        judge = made(endpoint, limits=limits)
        judge.client._notice = WaitNotice(after_seconds=2.0)
        judge_all(judge, ["fish"])
    assert waits(caplog) == [
        "waiting for the judge: 1 request, HTTP 429: slow down, Retry-After 2 s, 0 s so far"
    ]


def test_a_judge_that_answers_is_not_waited_for(caplog):
    with FakeEndpoint(seconds=0.01) as endpoint:
        judge = made(endpoint, limits=Limits(concurrency=1))
        judge.client._notice = WaitNotice(after_seconds=0.2)
        judge_all(judge, [f"fish {n}" for n in range(25)])
    assert waits(caplog) == []
