"""The LLM judge over real HTTP, against a fake endpoint that can fail in every way."""

import json
import logging
import threading
import time
from collections import Counter
from email.utils import formatdate

import pytest

from herl import AbstentionLimit, BudgetSpent, ConfigError
from herl.judge import Budget, JudgeRunner
from herl.judge.llm.bounded_http import retry_after
from herl.judge.llm.client import Limits
from herl.judge.llm.endpoint import Endpoint
from herl.judge.llm.judge import LLMJudge
from herl.judge.llm.reply_cache import ReplyCache
from herl.testing import make_rollout, make_task
from herl.types import Turn
from tests.support.fake_endpoint import FakeEndpoint, verdicts_by_word
from tests.support.llm_judges import TASK, judge_all, made

TEXTS = [f"{a} {b} {n}" for n in range(10) for a in ("", "fish") for b in ("", "river")]
REWARDS = [0.0, 0.4, 0.6, 1.0] * 10


def rewards(judgements):
    return pytest.approx([judgement.reward for judgement in judgements])


@pytest.mark.parametrize("mode", ["one_shot", "batched", "per_criterion"])
def test_each_mode_gives_a_verdict_with_its_reason_on_every_criterion(mode):
    with FakeEndpoint() as endpoint:
        judgements, _ = judge_all(made(endpoint, mode=mode, criteria_per_call=1), TEXTS)
    assert rewards(judgements) == REWARDS
    assert judgements[1].verdicts[1].reason == "looked for it: Says river."
    assert sum(endpoint.served.values()) == len(TEXTS) * (1 if mode == "one_shot" else 2)


def test_a_holistic_judge_gives_a_reward_and_no_verdicts():
    with FakeEndpoint(judge=lambda parts: json.dumps({"reason": "so so", "score": 4})) as endpoint:
        judge = made(endpoint, mode="holistic")
        [judgement], _ = judge_all(judge, ["fish"])
    assert judge.holistic
    assert (judgement.verdicts, judgement.reward) == ((), pytest.approx(3 / 9))


def test_a_holistic_judge_that_fails_abstains():
    with FakeEndpoint(judge=lambda parts: "no idea") as endpoint:
        [judgement], runner = judge_all(made(endpoint, mode="holistic", limits=Limits(tries=1)), ["fish"])
    assert judgement.reward is None
    assert [verdict.met for verdict in judgement.verdicts] == [None, None]
    assert (
        "expected JSON with 'score', alone or with the code at the end; got 'no idea'"
        in judgement.verdicts[0].reason
    )
    assert runner.causes() == {"malformed": 2}


def test_graded_verdicts_count_as_met_from_a_share_on():
    reply = json.dumps({"verdicts": {"1": {"verdict": 1}, "2": {"verdict": 2}}})
    with FakeEndpoint(judge=lambda parts: reply) as endpoint:
        [strict], _ = judge_all(made(endpoint, scale=[0, 2]), ["a"])
        [lenient], _ = judge_all(made(endpoint, scale=[0, 2], met_at=0.5), ["a"])
    assert [(v.score, v.met) for v in strict.verdicts] == [(0.5, False), (1.0, True)]
    assert [v.met for v in lenient.verdicts] == [True, True]
    assert strict.reward == pytest.approx((3 * 0.5 + 2) / 5)


def test_what_the_judge_cannot_tell_leaves_the_reward():
    reply = json.dumps(
        {"verdicts": {"1": {"verdict": "cannot tell", "reason": "blurred"}, "2": {"verdict": "met"}}}
    )
    with FakeEndpoint(judge=lambda parts: reply) as endpoint:
        [judgement], runner = judge_all(made(endpoint), ["a"])
    assert judgement.reward == 1.0
    assert (judgement.verdicts[0].met, judgement.verdicts[0].reason) == (None, "blurred")
    assert runner.causes() == {"cannot_tell": 1}


def test_the_majority_of_votes_decides_and_agreement_is_counted():
    votes = iter(["met", "not met", "met"])
    with FakeEndpoint(judge=lambda p: json.dumps({"verdicts": {n: next(votes) for n in "1"}})) as endpoint:
        judgements, _ = judge_all(
            made(endpoint, votes=3, temperature=1.0), ["a"], task=make_task({"fish": 1.0})
        )
    assert judgements[0].verdicts[0].met is True
    assert (judgements[0].usage["votes"], judgements[0].usage["votes_agreeing"]) == (3, 2)
    assert sorted(json.loads(body)["seed"] for body in endpoint.bodies) == [0, 1, 2]


def test_unanimous_votes_of_the_bound_reach_it():
    with FakeEndpoint(judge=lambda p: json.dumps({"verdicts": {"1": "good"}})) as endpoint:
        judge = made(
            endpoint, votes=3, temperature=1.0, met_at=0.7, scale={"perfect": 1.0, "good": 0.7, "bad": 0.0}
        )
        [judgement], _ = judge_all(judge, ["a"], task=make_task({"fish": 1.0}))
    assert judgement.verdicts[0].met
    assert judgement.usage["votes_agreeing"] == 3


def test_tied_votes_abstain():
    votes = iter(["met", "not met"])
    with FakeEndpoint(judge=lambda p: json.dumps({"verdicts": {n: next(votes) for n in "1"}})) as endpoint:
        [judgement], runner = judge_all(
            made(endpoint, votes=2, temperature=1.0), ["a"], task=make_task({"fish": 1.0})
        )
    assert judgement.reward is None
    assert runner.causes() == {"tie": 1}


# Failures


@pytest.fixture(scope="module")
def faulty():
    """The outcomes of 200 answers when three in ten requests fail."""
    texts = [f"{text} {n}" for n in range(5) for text in TEXTS]
    with FakeEndpoint(fault_share=0.3) as endpoint:
        judgements, runner = judge_all(
            made(endpoint, limits=Limits(backoff_seconds=0.01, tries=12), timeout=5.0), texts
        )
    return judgements, runner, endpoint


def test_verdicts_that_came_are_those_of_a_run_without_faults(faulty):
    judgements, runner, _ = faulty
    assert rewards(judgements) == REWARDS * 5
    assert runner.causes() == {}


def test_faults_are_counted_by_cause_as_the_server_made_them(faulty):
    _, runner, endpoint = faulty
    made_by = {"hang": "timeout", "cut": "connection"}
    expected = {f"fault_{made_by.get(f, f)}": n for f, n in endpoint.served.items() if f != "ok"}
    assert len(expected) == 6
    assert {name: n for name, n in runner.usage.items() if name.startswith("fault_")} == expected
    assert runner.usage["calls"] == sum(endpoint.served.values())


@pytest.mark.parametrize(
    ("fault", "cause"),
    [("server", "server"), ("hang", "timeout"), ("cut", "connection"), ("close", "connection"),
     ("malformed", "malformed"),
     ("wrong_count", "wrong_count"), ("rate_limit", "rate_limit")],
)  # fmt: skip
def test_what_keeps_failing_abstains_with_its_cause_and_never_scores_0(fault, cause):
    with FakeEndpoint(fault_share=1.0, faults=(fault,), retry_after=0.01) as endpoint:
        limits = Limits(backoff_seconds=0.0, tries=2)
        timeout = 0.2 if fault == "hang" else 30.0  # seconds
        judgements, runner = judge_all(made(endpoint, limits=limits, timeout=timeout), ["fish", "river"])
    assert [judgement.reward for judgement in judgements] == [None, None]
    assert all(verdict.met is None and verdict.reason for j in judgements for verdict in j.verdicts)
    assert runner.causes() == {cause: 4}
    assert endpoint.served == {fault: 4}


def test_an_endpoint_that_is_not_there_is_no_timeout():
    with FakeEndpoint() as endpoint:
        judge = made(endpoint, limits=Limits(backoff_seconds=0.0, tries=2))
    [judgement], runner = judge_all(judge, ["fish"])  # the port is closed by now
    assert runner.causes() == {"connection": 2}
    assert f"connection to {endpoint.url} failed" in judgement.verdicts[0].reason
    assert "Connect call failed" in judgement.verdicts[0].reason


def test_a_judge_that_always_fails_stops_the_run_within_the_window():
    with (
        FakeEndpoint(fault_share=1.0, faults=("server",)) as endpoint,
        pytest.raises(AbstentionLimit, match=r"abstained on 16 of the last 16.*server 16.*HTTP 500"),
    ):
        judge_all(made(endpoint, limits=Limits(tries=1)), ["fish"] * 8, window=8)


def test_one_criterion_that_cannot_be_had_leaves_the_others():
    def fails_on_river(parts):
        return "?" if "river" in parts["RUBRIC"] else verdicts_by_word(parts)

    with FakeEndpoint(judge=fails_on_river) as endpoint:
        [judgement], _ = judge_all(made(endpoint, mode="per_criterion", limits=Limits(tries=1)), ["fish"])
    assert [verdict.met for verdict in judgement.verdicts] == [True, None]
    assert judgement.reward == 1.0


def test_retry_after_is_honoured_by_all():
    with FakeEndpoint(fault_share=1.0, faults=("rate_limit",), retry_after=0.4) as endpoint:

        def mend_after_the_first() -> None:
            while not endpoint.served["rate_limit"]:
                time.sleep(0.01)
            endpoint.fault_share = 0.0

        threading.Thread(target=mend_after_the_first, daemon=True).start()
        started = time.perf_counter()
        judgements, _ = judge_all(
            made(endpoint, limits=Limits(concurrency=2, backoff_seconds=0.0)), TEXTS[:8]
        )
        assert time.perf_counter() - started >= 0.4
    assert endpoint.served["rate_limit"] <= 2
    assert REWARDS[:8] == rewards(judgements)


def test_retry_after_may_be_seconds_or_a_date():
    assert retry_after({"retry-after": "1.5"}) == 1.5
    assert 50 < retry_after({"retry-after": formatdate(time.time() + 60, usegmt=True)}) < 61
    assert retry_after({"retry-after": formatdate(0, usegmt=True)}) == 0
    assert [retry_after({"retry-after": odd}) for odd in ("soon", "inf", "-3", "")] == [0, 0, 0, 0]


def test_the_total_time_of_a_request_is_limited_and_the_cause_is_the_last_fault():
    limits = Limits(total_timeout_seconds=0.5, tries=100, backoff_seconds=0.0)
    with FakeEndpoint(fault_share=1.0, faults=("rate_limit",), retry_after=60.0) as endpoint:
        [judgement], runner = judge_all(made(endpoint, limits=limits), ["fish"])
    assert runner.causes() == {"rate_limit": 2}
    assert "no usable reply within 0.5 s; last error: HTTP 429" in judgement.verdicts[0].reason


def test_never_more_requests_at_once_than_allowed():
    with FakeEndpoint(seconds=0.02) as endpoint:
        judge_all(made(endpoint, limits=Limits(concurrency=5)), TEXTS)
    assert endpoint.open_most == 5


def test_requests_per_minute_are_limited():
    with FakeEndpoint() as endpoint:
        started = time.perf_counter()
        judge_all(
            made(endpoint, limits=Limits(requests_per_minute=600)),
            [f"fish {n}" for n in range(605)],
            concurrency=999,
        )
        assert time.perf_counter() - started >= 0.4  # 600 at once, then ten a second


def test_cancelled_cleanly_while_requests_hang():
    with FakeEndpoint(fault_share=1.0, faults=("hang",)) as endpoint:
        runner = JudgeRunner(made(endpoint, timeout=600.0))
        runner.open()
        futures = [runner.submit(TASK, make_rollout("fish", id=f"g/{n}")) for n in range(8)]
        while endpoint.open_now < 1:
            time.sleep(0.01)
        runner.close()  # would take an hour if it waited for them
    assert all(future.cancelled() for future in futures)
    assert not [thread for thread in threading.enumerate() if thread.name == "judge"]


# Keys


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret-123")
    return "sk-very-secret-123"


def test_the_key_is_sent_to_the_endpoint_and_shown_to_nobody(key):
    with FakeEndpoint(key=key, fault_share=1.0, faults=("server",)) as endpoint:
        [judgement], _ = judge_all(
            made(endpoint, limits=Limits(tries=1), chat={"api_key_env": "MY_KEY"}), ["a"]
        )
    assert endpoint.served == {"server": 1}
    assert "had got authorization: Bearer [key]" in judgement.verdicts[0].reason
    assert key not in str(judgement)


def test_a_wrong_key_ends_the_run_at_once(key):
    with (
        FakeEndpoint(key="another") as endpoint,
        pytest.raises(ConfigError, match=r"rejects requests for model 'm': HTTP 401: .*\[key\]") as error,
    ):
        judge_all(made(endpoint, chat={"api_key_env": "MY_KEY"}), ["a"])
    assert key not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"base_url": "node7:8000"},
            "expected a URL such as http://localhost:8000/v1, got one without http://",
        ),
        ({"base_url": "ftp://node7/v1"}, "expected an http or https URL"),
        ({"base_url": "http://user:secret@node7/v1"}, "without user, password"),
        ({"base_url": "http://:secret@node7/v1"}, "without user, password"),
        ({"api_key_env": "NO_SUCH_KEY"}, "environment variable NO_SUCH_KEY is not set"),
        ({"try_timeout_seconds": 0}, "judge.chat.try_timeout_seconds: expected a number above 0, got 0"),
    ],
)
def test_bad_endpoints_are_refused_without_repeating_secrets(settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        Endpoint(**({"base_url": "http://x/v1", "model": "m"} | settings))
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"votes": 3}, "judge.temperature: expected a number above 0 for 3 votes"),
        ({"met_at": 0.0}, "judge.met_at"),
        ({"max_tokens": 0}, "judge.max_tokens: expected at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        LLMJudge(Endpoint("http://x/v1", "m"), **settings)


# Cache and budget


def test_a_second_run_from_the_cache_makes_no_call(tmp_path):
    path = str(tmp_path / "replies.sqlite")
    with FakeEndpoint() as endpoint:
        first, _ = judge_all(made(endpoint, ReplyCache(path)), TEXTS)
        second, runner = judge_all(made(endpoint, ReplyCache(path)), TEXTS)
    assert sum(endpoint.served.values()) == len(TEXTS)
    assert [j.verdicts for j in second] == [j.verdicts for j in first]
    assert (runner.usage["calls"], runner.usage["cache_hits"]) == (0, len(TEXTS))


def test_offline_a_run_is_replayed_without_an_endpoint_and_missing_calls_are_named(tmp_path, caplog):
    path = str(tmp_path / "replies.sqlite")
    with FakeEndpoint() as endpoint:
        judge = made(endpoint, ReplyCache(path))
        judge_all(judge, ["fish"])
    judge = LLMJudge(judge.client.chat, cache=ReplyCache(path, mode="offline"))
    judgements, runner = judge_all(judge, ["fish", "river"])
    assert [judgement.reward for judgement in judgements] == [pytest.approx(0.6), None]
    assert runner.causes() == {"not_cached": 2}
    assert "the judge's cache is offline and has no reply for task task: fish, river" in caplog.text


def test_the_same_question_at_the_same_time_is_asked_once():
    with FakeEndpoint(seconds=0.1) as endpoint:
        judgements, runner = judge_all(made(endpoint), ["fish"] * 16)
    assert sum(endpoint.served.values()) == 1
    assert {judgement.reward for judgement in judgements} == {0.6}
    assert (runner.usage["calls"], runner.usage["shared"]) == (1, 15)


def test_everything_that_decides_the_verdict_is_in_the_key(tmp_path):
    def keys(chat=None, **settings):
        judge = LLMJudge(Endpoint(**({"base_url": "http://x/v1", "model": "m"} | (chat or {}))), **settings)
        return [_key(judge, question) for question in judge._prompts.questions(TASK, "fish")]

    def _key(judge, question):
        from herl.judge.llm.chat import ChatRequest

        return judge.client.key(
            ChatRequest(
                messages=question.messages, schema=question.schema, temperature=judge._temperature,
                max_tokens=judge._max_tokens, seed=0,
            )
        )  # fmt: skip

    variants = [
        keys(), keys({"model": "n"}), keys({"base_url": "http://y/v1"}), keys({"extra_body": {"a": 1}}),
        keys({"structured": "none"}), keys(temperature=0.5), keys(max_tokens=7), keys(scale=[0, 2]), keys(reasons=False),
        keys(mode="batched"), keys(template="{verdict_rule}\n---\n{material}{code}{count}{form}"),
    ]  # fmt: skip
    assert len({tuple(variant) for variant in variants}) == len(variants)
    assert keys({"identity": "one"}) == keys({"identity": "one", "base_url": "http://y/v1"})
    assert keys() == keys()


def test_an_endpoint_that_refuses_schemas_keeps_its_keys(tmp_path):
    path = str(tmp_path / "replies.sqlite")
    with FakeEndpoint(refuses_schema=True) as endpoint:
        first, _ = judge_all(made(endpoint, ReplyCache(path)), TEXTS)
        again, runner = judge_all(made(endpoint, ReplyCache(path)), TEXTS)
        offline, _ = judge_all(made(endpoint, ReplyCache(path, mode="offline")), TEXTS)
    assert runner.usage["cache_hits"] == len(TEXTS)
    assert [j.reward for j in first] == [j.reward for j in again] == [j.reward for j in offline]


def test_a_reply_without_text_is_malformed_and_paid_for():
    with FakeEndpoint(judge=lambda parts: None) as endpoint:
        [judgement], runner = judge_all(made(endpoint, limits=Limits(tries=2, backoff_seconds=0.0)), ["a"])
    assert judgement.reward is None
    assert (runner.usage["fault_malformed"], runner.usage["tokens"]) == (2, 240)


def test_waiting_for_room_does_not_count_as_the_requests_own_time():
    limits = Limits(concurrency=1, total_timeout_seconds=0.3)
    with FakeEndpoint(seconds=0.1) as endpoint:
        judgements, runner = judge_all(made(endpoint, limits=limits), TEXTS[:8])
    assert REWARDS[:8] == rewards(judgements)
    assert runner.causes() == {}


def test_replies_that_could_not_be_read_are_not_kept(tmp_path):
    cache = ReplyCache(str(tmp_path / "replies.sqlite"))
    with FakeEndpoint(fault_share=1.0, faults=("wrong_count",)) as endpoint:
        judge_all(made(endpoint, cache, limits=Limits(tries=2)), ["fish"])
    cache.open()
    assert len(cache) == 0
    cache.close()


@pytest.mark.parametrize(
    ("limits", "name"), [({"calls": 10}, "calls"), ({"tokens": 1200}, "tokens"), ({"cost": 0.0012}, "cost")]
)
def test_a_budget_warns_and_then_stops_the_run(limits, name, caplog):
    chat = {"prompt_price": 0.8, "completion_price": 2.0}  # 0.00012 for 100 tokens read and 20 written
    with (
        FakeEndpoint() as endpoint,
        pytest.raises(BudgetSpent, match=f"budget is used up: .* {name}. Raise module"),
    ):
        judge_all(made(endpoint, limits=Limits(concurrency=1), chat=chat), TEXTS, budget=Budget(**limits))
    assert endpoint.served["ok"] == 10
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 1
    assert warned[0].startswith("the judge has used")


def test_what_was_spent_survives_a_resume():
    with FakeEndpoint() as endpoint:
        _, runner = judge_all(made(endpoint), TEXTS[:8], budget=Budget(calls=10))
        resumed = JudgeRunner(made(endpoint), budget=Budget(calls=10))
        resumed.load_state_dict(runner.state_dict())
        assert resumed.budget.spent("calls") == 8
        with pytest.raises(BudgetSpent), resumed:
            [resumed.submit(TASK, make_rollout(f"{n}", id=f"g/{n}")).result() for n in range(3)]
    assert endpoint.served["ok"] == 10


def test_cached_replies_cost_nothing(tmp_path):
    with FakeEndpoint() as endpoint:
        cache = ReplyCache(str(tmp_path / "replies.sqlite"))
        judge_all(made(endpoint, cache), TEXTS)
        judgements, runner = judge_all(made(endpoint, cache), TEXTS, budget=Budget(calls=1))
    assert rewards(judgements) == REWARDS
    assert runner.budget.spent("calls") == 0


def test_usage_adds_up_to_what_the_endpoint_saw():
    with FakeEndpoint() as endpoint:
        judgements, runner = judge_all(
            made(endpoint, chat={"prompt_price": 1.0, "completion_price": 5.0}), TEXTS
        )
    total = sum((Counter(judgement.usage) for judgement in judgements), Counter())
    assert total["calls"] == runner.usage["calls"] == endpoint.served["ok"] == 40
    assert total["tokens"] == 40 * 120
    assert total["cost"] == pytest.approx(40 * (100 * 1.0 + 20 * 5.0) / 1e6)


@pytest.mark.parametrize("mode", ["one_shot", "group"])
@pytest.mark.parametrize("sees", ["transcript", "answer"])
def test_the_judge_reads_the_transcript_of_an_episode_or_its_last_answer(sees, mode):
    asked = []

    def judge(parts):
        asked.append({name: text for name, text in parts.items() if "ANSWER" in name})
        return verdicts_by_word({"RUBRIC": parts["RUBRIC"], "ANSWER": "fish"})

    turn = Turn(
        text="Let me see.", end=1, reply=({"role": "tool", "name": "f", "content": "7"},), reply_ids=()
    )
    rollout = make_rollout("It is 7.", turns=[turn])
    with FakeEndpoint(judge=judge) as endpoint, JudgeRunner(made(endpoint, mode=mode, sees=sees)) as runner:
        runner.submit(TASK, rollout).result()
    texts = list(asked[0].values())
    note = [texts.pop(0)] if sees == "transcript" else []
    assert all("PART" not in name for name in asked[0]) is (sees == "answer")
    assert texts == (["Let me see.", "7", "It is 7."] if sees == "transcript" else ["It is 7."])
    assert all("true as records" in one for one in note)
