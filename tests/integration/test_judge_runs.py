"""Whole runs with an LLM judge over HTTP: faults, kills, budgets, keys. Only the endpoint is a fake."""

import signal
import sqlite3
import subprocess
import time

import pytest

from tests.support.fake_endpoint import FakeEndpoint, verdicts_by_hash
from tests.support.runs import CONTINUES_ELSEWHERE, HERL, SMALL, curves, environment, herl_here, summary

pytestmark = CONTINUES_ELSEWHERE
KEY = "sk-secret-of-the-tests"
TWO_EPOCHS = (
    "trainer.max_epochs=2", "trainer.limit_train_batches=2", "trainer.val_check_interval=2",
    "data.prompts_per_batch=4", "rollout.attempts_per_prompt=4",
)  # fmt: skip


def command(folder, endpoint, *overrides, cache=None):
    return [
        *HERL, "fit", *SMALL, *TWO_EPOCHS, "judge=llm", f"judge.chat.base_url={endpoint.url}", "judge.chat.model=m",
        "judge.chat.api_key_env=JUDGE_KEY", "judge.chat.identity=fake", "judge.chat.try_timeout_seconds=4.0",
        "judge.limits.backoff_seconds=0.01", "judge.limits.tries=12", f"judge.cache.path={cache or folder / 'replies.sqlite'}",
        *overrides, f"hydra.run.dir={folder}",
    ]  # fmt: skip


def run(folder, endpoint, *overrides, cache=None, code=0):
    """Runs it in this process."""
    _, _, _, *arguments = command(folder, endpoint, *overrides, cache=cache)
    done = herl_here(*arguments, cwd=folder.parent, JUDGE_KEY=KEY)
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-6000:]
    return done


def start(folder, endpoint, *overrides, cache=None):
    return subprocess.Popen(
        command(folder, endpoint, *overrides, cache=cache),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(JUDGE_KEY=KEY),
        # shells ignore it for background jobs, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def learned(folder):
    """The curves that tell what was learned, without times and the judge's costs."""
    return {
        tag: values
        for tag, values in curves(folder).items()
        if not tag.startswith(("judge/", "time/", "sampler/", "throughput/"))
    }


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A run without faults."""
    folder = tmp_path_factory.mktemp("clean")
    with FakeEndpoint(judge=verdicts_by_hash, key=KEY) as endpoint:
        run(folder, endpoint)
    assert len(set(endpoint.bodies)) == len(endpoint.bodies)
    return folder


def test_the_curves_tell_what_judging_took_and_cost(clean):
    found = curves(clean)
    assert {
        "judge/seconds",
        "judge/seconds_max",
        "judge/calls",
        "judge/tokens",
        "judge/cache_hit_share",
    } <= set(found)
    assert summary(clean)["judge"]["calls"] >= sum(found["judge/calls"])  # and the validations


def test_a_run_with_30_percent_faults_learns_the_same_and_shows_its_key_nowhere(clean, tmp_path):
    with FakeEndpoint(fault_share=0.3, judge=verdicts_by_hash, key=KEY) as endpoint:
        process = start(tmp_path, endpoint, "judge.chat.extra_body={user: '${oc.env:JUDGE_KEY}'}")
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said[-6000:]
    assert f'"user": "{KEY}"' in endpoint.bodies[0]  # only the endpoint may read it
    assert "${oc.env:JUDGE_KEY}" in (tmp_path / "config.yaml").read_text()
    assert learned(tmp_path) == learned(clean)
    judge = summary(tmp_path)["judge"]
    made_by = {"hang": "timeout", "cut": "connection"}
    expected = {f"fault_{made_by.get(f, f)}": n for f, n in endpoint.served.items() if f != "ok"}
    assert {name: n for name, n in judge.items() if name.startswith("fault_")} == expected
    assert "abstained" not in judge
    assert curves(tmp_path)["train/abstained"] == [0.0] * 4
    assert KEY not in said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_dead_judge_stops_the_run_with_an_error_and_a_checkpoint_that_goes_on(clean, tmp_path):
    with FakeEndpoint(judge=verdicts_by_hash, key=KEY) as endpoint:
        endpoint.fails_from = 60  # after the first validation and some batches
        done = run(tmp_path, endpoint, "module.judge_runner.window=16", "judge.limits.tries=2", code=2)
        assert "abstained on" in done.stderr
        assert "HTTP 500" in done.stderr
        assert f"resume={tmp_path}/checkpoints/last.ckpt" in done.stderr
        assert "Traceback" not in done.stderr
        assert summary(tmp_path)["stopped"].startswith("the judge LLMJudge abstained on")
        assert 60 < sum(endpoint.served.values()) < 60 + 2 * 64
        endpoint.fails_from = None
        resumed = tmp_path / "resumed"
        run(resumed, endpoint, f"resume={tmp_path}/checkpoints/last.ckpt", cache=tmp_path / "replies.sqlite")
    joined = {tag: learned(tmp_path).get(tag, []) + values for tag, values in learned(resumed).items()}
    assert joined["update/loss"] == learned(clean)["update/loss"]
    assert joined["train/reward"] == learned(clean)["train/reward"]


def test_a_spent_budget_ends_the_run_cleanly_and_a_larger_one_goes_on(clean, tmp_path):
    with FakeEndpoint(judge=verdicts_by_hash, key=KEY) as endpoint:
        done = run(tmp_path, endpoint, "module.judge_runner.budget.calls=50")
        assert "the judge has used 40 of 50 calls" in done.stdout + done.stderr
        first = summary(tmp_path)
        assert first["stopped"].startswith("the judge's budget is used up: 50 of 50 calls")
        assert sum(endpoint.served.values()) == 50
        resumed = tmp_path / "resumed"
        run(
            resumed, endpoint, f"resume={tmp_path}/checkpoints/last.ckpt", "module.judge_runner.budget.calls=500",
            cache=tmp_path / "replies.sqlite",
        )  # fmt: skip
    assert len(set(endpoint.bodies)) == len(endpoint.bodies)  # nothing is paid for twice
    assert (learned(tmp_path).get("update/loss", []) + learned(resumed)["update/loss"]) == learned(clean)[
        "update/loss"
    ]
    assert summary(resumed)["heldout_reward_after"] == summary(clean)["heldout_reward_after"]
    assert first["judge"]["calls"] == 50
    assert summary(resumed)["judge"]["calls"] == len(endpoint.bodies)


@pytest.mark.parametrize("after", [30, pytest.param(75, marks=pytest.mark.nightly)])
def test_a_run_killed_while_judging_pays_no_call_again(clean, tmp_path, after):
    cache = tmp_path / "replies.sqlite"
    with FakeEndpoint(judge=verdicts_by_hash, key=KEY, seconds=0.02) as endpoint:
        process = start(tmp_path / "first", endpoint, cache=cache)
        while len(endpoint.bodies) < after:
            assert process.poll() is None, process.communicate()[0][-3000:]
            time.sleep(0.002)
        process.kill()
        process.communicate()
        time.sleep(0.2)
        answered = list(endpoint.bodies)
        kept = sqlite3.connect(cache).execute("SELECT count(*) FROM replies").fetchone()[0]
        assert after - 32 <= kept <= len(answered)
        checkpoint = tmp_path / "first" / "checkpoints" / "last.ckpt"
        resume = [f"resume={checkpoint}"] if checkpoint.exists() else []
        run(tmp_path / "second", endpoint, *resume, cache=cache)
    again = len(endpoint.bodies) - len(set(endpoint.bodies))
    assert again <= len(answered) - kept  # only replies in flight when the run died
    assert learned(tmp_path / "second")["update/loss"][-1] == learned(clean)["update/loss"][-1]
    assert summary(tmp_path / "second")["heldout_reward_after"] == summary(clean)["heldout_reward_after"]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.nightly)])
def test_a_signal_cancels_what_is_under_way(tmp_path, number):
    with FakeEndpoint(judge=verdicts_by_hash, key=KEY, seconds=900.0) as endpoint:
        process = start(tmp_path, endpoint, "judge.chat.try_timeout_seconds=1000")
        while endpoint.open_now < 4:
            assert process.poll() is None, process.communicate()[0][-3000:]
            time.sleep(0.01)
        process.send_signal(number)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == (130 if number == signal.SIGINT else 0)
    assert "Traceback" not in said
    assert "never retrieved" not in said
    assert "was destroyed" not in said


def test_a_holistic_judge_with_hindsight_is_refused_before_a_model_loads(tmp_path):
    with FakeEndpoint() as endpoint:
        done = run(tmp_path, endpoint, "judge.mode=holistic", code=2)
    assert "hindsight needs verdicts on each criterion, but a holistic judge" in done.stderr
    assert "algorithm=grpo" in done.stderr
