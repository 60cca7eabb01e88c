"""A run's folder in words, as a page, and beside other runs."""

import json
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from omegaconf import OmegaConf
from rich.console import Console

from herl.callbacks import Alarms
from herl.cli.compare_sweep import CompareSweep
from herl.errors import ConfigError, DataError
from herl.report import compare
from herl.report.change import interval, moved, sign_flip
from herl.report.drafts import examples
from herl.report.page import bars, try_report, write_report
from herl.report.run_files import Result, Validation, read_run
from herl.report.secret import HIDDEN, without_secret
from herl.report.story import ALARMS, headline, story
from tests.support.injections import INJECTIONS

EVIL = (
    *INJECTIONS,
    "<script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "\u202eevil",
    "</style><b>x",
    "'\"><img src=x>",
)


def row(name, mean, spread=0.05):
    return {
        "name": name, "mean": mean, "low": mean - spread, "high": mean + spread, "count": 72, "revisions": 0,
        "judge": "",
    }  # fmt: skip


def answer(number, reward, parent=None, text="It eats fish.", reason="", wish="Names a fish."):
    verdict = {
        "criterion_id": "fish",
        "criterion": wish,
        "weight": 2.0,
        "met": True,
        "fulfilled": reward > 0.5,
    }
    return {
        "id": f"a{number}", "task_id": "t", "parent_id": parent and parent["id"], "origin": "hindsight",
        "request": "Describe the otter.", "text": text, "has_answer": True, "policy_version": number,
        "reward": reward, "parent_reward": parent and parent["reward"],
        "verdicts": [verdict | {"score": None, "reason": reason}],
    }  # fmt: skip


def a_run(folder, means=(0.35, 0.6, 0.8), overrides=(), answers=(), choices=(), **summary):
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(list(overrides)), folder / ".hydra" / "overrides.yaml")
    chosen = {"algorithm": "herl", "judge": "rule"} | dict(choices)
    OmegaConf.save({"hydra": {"runtime": {"choices": chosen}}}, folder / ".hydra" / "hydra.yaml")
    OmegaConf.save({"seed": 0, "optimizer": {"lr": 0.001}}, folder / "config.yaml")
    validations = [
        {"answers_sampled": 400 * i, "optimizer_steps": i,
         "rows": [row("reward", mean), row("criteria_met", mean), row("criterion/fish", mean**2)]}
        for i, mean in enumerate(means)
    ]  # fmt: skip
    counts = {"answers_sampled": 4948, "revisions_sampled": 340, "optimizer_steps": 9}
    made = {"experiment": "none", "algorithm": "herl", "seed": 0, **counts, "validations": validations}
    made |= {"judge": {}, "seconds": {"judge": 3.0, "total": 216.0}} | summary
    (folder / "summary.json").write_text(json.dumps(made))
    if answers:
        (folder / "records").mkdir()
        lines = "".join(json.dumps(one) + "\n" for one in answers)
        (folder / "records" / "answers-00000.jsonl").write_text(lines)
    return folder


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.text, self.tags, self.links = "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "onerror", "onclick")]

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize(
    ("first", "last", "comparisons", "sign"),
    [((0.3, 0.05), (0.5, 0.05), 1, 1), ((0.5, 0.05), (0.3, 0.05), 1, -1), ((0.3, 0.2), (0.4, 0.2), 1, 0),
     ((0.3, 0.05), (0.4, 0.2), 1, 0), ((0.3, 0.05), (0.365, 0.05), 1, 0), ((0.3, 0.05), (0.38, 0.05), 1, 1),
     ((0.3, 0.05), (0.38, 0.05), 10, 0)],
)  # fmt: skip
def test_a_change_between_means_is_told_where_it_exceeds_both_half_widths_together(
    first, last, comparisons, sign
):
    made = [validation(m, spread) for m, spread in (first, last)]
    assert moved(*made, comparisons=comparisons) == sign


def validation(mean, spread=0.0, rewards=(), prompts="same"):
    row = Result(mean=mean, low=mean - spread, high=mean + spread, count=9)
    return Validation(answers=0, rows={"reward": row}, prompts=prompts, rewards=tuple(rewards))


@pytest.mark.parametrize(
    ("first", "last", "prompts", "sign"),
    [
        ([0.0] * 8, [1.0] * 8, "same", 1),
        ([1.0] * 8, [0.0] * 8, "same", -1),
        ([0.0] * 8, [1.0] * 5 + [0.0] * 3, "same", 0),  # 5 prompts of one sign: p = 1/16
        ([0.0] * 8, [1.0] * 6 + [0.0] * 2, "same", 1),  # 6: p = 1/32
        ([None] * 5 + [0.0] * 3, [1.0] * 8, "same", 0),
        ([0.5] * 8, [0.5] * 8, "same", 0),
        ([0.0] * 8, [1.0] * 8, "other", 0),  # the means, which are equal here
    ],
)
def test_the_same_prompts_are_compared_one_by_one(first, last, prompts, sign):
    assert moved(validation(0.5, 0.1, first), validation(0.5, 0.1, last, prompts)) == sign


def test_no_change_is_rarely_called_one():
    rng = np.random.default_rng(0)
    for draw in (lambda: rng.random(50) < rng.random(50), lambda: rng.random(50)):
        values = [sign_flip(draw() * 1.0 - draw()) for _ in range(200)]
        assert np.mean(np.array(values) <= 0.05) <= 0.08  # 5 % and the noise of 200 draws


def test_the_interval_of_a_mean_change_surrounds_it():
    low, high = interval(np.array([0.0, 0.1, 0.2, 0.3] * 20))
    assert 0.12 < low < 0.15 < high < 0.18


@pytest.mark.parametrize(
    ("means", "said"),
    [
        ((0.35, 0.8), "The held-out reward rose from 0.35 [0.30, 0.40] to 0.80 [0.75, 0.85] in 4\u00a0948 sampled answers (4 min)."),
        ((0.8, 0.35), "The held-out reward fell from 0.80"),
        ((0.35, 0.36), "The held-out reward did not change clearly"),
        ((0.35,), "The held-out reward was 0.35 [0.30, 0.40] after 0 sampled answers."),
        ((), "Nothing tells whether the model improved"),
    ],
)  # fmt: skip
def test_the_headline_says_what_became_of_the_reward(tmp_path, means, said):
    assert said in headline(read_run(a_run(tmp_path / "run", means)))


def test_an_evaluation_is_told_by_its_rounds(tmp_path):
    rows = [row("reward", 0.3) | {"revisions": 0}, row("reward", 0.6) | {"revisions": 1},
            row("reward", 0.9) | {"judge": "other"}]  # fmt: skip
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({"heldout_reward": 0.3, "results": rows}))
    said = write_report(folder)[0]
    assert said.startswith("The reward of the best answer rose from 0.30 [0.25, 0.35] to 0.60")
    assert said.endswith("with up to 1 revision of each answer.")


def test_the_story_tells_of_stops_alarms_costs_and_a_better_checkpoint(tmp_path):
    judge = {"calls": 1200, "tokens": 90000, "cost": 0.1234, "abstained": {"timeout": 3}}
    folder = a_run(
        tmp_path / "run", (0.3, 0.9, 0.5), judge=judge, alarms={"entropy": 2}, stopped="stopped by Ctrl-C"
    )
    said = "\n".join(story(read_run(folder), [0.5, -0.1, 0.2, 0.0]))
    for part in (
        "The run was stopped: stopped by Ctrl-C.", "It was best after 400 answers, at 0.90",
        "340 of the answers were revisions: 50% earned more than their draft, 25% less",
        "Judging took 1\u00a0200 calls, 90\u00a0000 tokens and cost 0.1234", "timeout (3)", "Alarm (2 times)",
    ):  # fmt: skip
        assert part in said


@pytest.mark.parametrize(
    ("means", "kept", "said"),
    [
        ((0.3, 0.9, 0.5), {"heldout_reward_best": 0.9}, "best after 400 answers, at 0.90 [0.85, 0.95]; that checkpoint is kept."),
        ((0.3, 0.9, 0.5), {}, "best after 400 answers, at 0.90 [0.85, 0.95]."),
        ((0.9, 0.3, 0.5), {"heldout_reward_best": 0.5}, "best before training, at 0.90 [0.85, 0.95]."),
    ],
)  # fmt: skip
def test_a_checkpoint_is_promised_only_if_it_is_there(tmp_path, means, kept, said):
    """Before training, none is written."""
    assert f"It was {said}" in story(read_run(a_run(tmp_path / "run", means, **kept)))


def test_every_alarm_has_a_sentence():
    assert set(ALARMS) == {*Alarms().limits, "gap"}


@pytest.mark.parametrize("text", EVIL)
def test_no_text_of_a_model_row_or_judge_becomes_markup(tmp_path, text):
    draft = answer(1, 0.2, text=text)
    revision = answer(2, 0.9, draft, text=f"new {text}", reason=text, wish=text)
    folder = a_run(
        tmp_path / "run", answers=[draft, revision], overrides=[f"data.note={text}"], stopped=text,
        judge={"calls": 1, "abstained": {text: 1}},
    )  # fmt: skip
    write_report(folder)
    page = Page((folder / "report.html").read_text())
    assert set(page.tags) <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "dl", "div", "dt", "dd", "svg",
        "line", "text", "polygon", "polyline", "circle", "span", "i", "b", "article", "del", "ins", "table",
        "thead", "tbody", "tr", "td", "th", "code", "br",
    }  # fmt: skip
    assert page.tags.count("b") == 3  # the three bars
    assert not page.links
    assert "\u202e" not in page.text


@pytest.mark.parametrize("text", EVIL)
def test_an_episode_is_shown_turn_by_turn_and_none_of_it_becomes_markup(tmp_path, text):
    call = {"name": text, "arguments": "{}", "error": "unknown"}
    turn = {"text": text, "calls": [call], "reply": [{"role": "tool", "name": text, "content": text}]}
    draft = answer(0, 0.2)
    revision = answer(1, 0.8, draft) | {"turns": [turn], "finish_reason": "turns"}
    write_report(a_run(tmp_path / "run", answers=[draft, revision], seconds={"environment": 12.0}))
    write_report(a_run(tmp_path / "plain", answers=[draft, answer(1, 0.8, draft)]))
    page, plain = (Page((tmp_path / name / "report.html").read_text()) for name in ("run", "plain"))
    assert set(page.tags) - set(plain.tags) <= {"ins", "del"}
    assert page.links == plain.links
    assert "\x1b" not in page.text
    for said in (
        "Episode: 2 turns, 1 call (1 failed), cut off at the limit on turns",
        "revision, turn 1",
        "draft, reply 1",
    ):
        assert said in page.text
    assert "The run waited 12 s for its environment." in page.text
    assert "Episode" not in plain.text
    assert "environment" not in plain.text


def test_the_page_holds_curve_criteria_drafts_settings_and_commands_and_no_network(tmp_path):
    first, second = answer(1, 0.2, text="It eats fish."), answer(3, 0.8, text="It is brown.")
    answers = [first, answer(2, 0.9, first, "It eats trout."), second, answer(4, 0.1, second, "It is.")]
    folder = a_run(tmp_path / "my run", answers=answers, overrides=["seed=1", "judge.api_key=sk-123456789"])
    (folder / "checkpoints").mkdir()
    write_report(folder)
    source = (folder / "report.html").read_text()
    page = Page(source)
    for part in (
        "Names a fish.", "The revision that gained most", "The revision that lost most", "0.12 → ",
        f"herl export run='{folder}' out=my_model", "seed", HIDDEN,
    ):  # fmt: skip
        assert part in page.text
    assert page.tags.count("article") == 2  # the newest revision is the one that lost most
    assert page.tags.count("circle") == 3
    assert "sk-123456789" not in source
    assert "http" not in source.replace("http-equiv", "")
    assert "<script" not in source


@pytest.mark.parametrize(
    ("key", "value", "hidden"),
    [
        ("judge.chat.api_key", "abc", True), ("logger.wandb.token", "abc", True), ("x.password", "p", True),
        ("judge.chat", "{api_key:abc}", True), ("judge.chat.base_url", "https://me:pw@host/v1", True),
        ("data.note", "hf_abcdefghijkl", True), ("judge.chat.api_key_env", "OPENAI_API_KEY", False),
        ("rollout.attempt.max_new_tokens", "64", False), ("judge.chat.base_url", "http://node7:8000/v1", False),
        ("judge.chat.arguments", "[--api-key,s3cret]", True), ("judge.chat.arguments", "[--api-key=s3]", True),
        ("judge.chat.base_url", "https://tok3n@host/v1", True), ("x.url", "https://h/v1?key=AIzaSyA1", True),
        ("logger.wandb.key", "abc", True), ("judge.chat.headers.X-Auth", "abc", True),
        ("judge.api-key", "abc", True), ("judge.auth", "[u,pw]", True), ("x.apiKey", "abc", True),
        ("x.note", "eyJhbGciOiJI.eyJzdWIiOiIx", True), ("x.note", "AIzaSyA1234567890", True),
        ("x.note", "AKIAIOSFODNN7EXAMPLE", True), ("x.note", "Bearer abcdefgh1", True),
        ("judge.chat.arguments", "[--dtype,float32,--max-model-len=2048]", False),
        ("model.path", "hf-internal-testing/tiny-random", False), ("callbacks.keep", "3", False),
        ("data.train.keys", "[a,b]", False), ("model.tokenizer", "x", False), ("model.pad_token", "x", False),
        ("module.micro_batch_tokens", "auto", False), ("judge.chat.token_limit_key", "max_tokens", False),
        ("loss.aggregation", "token_mean", False), ("x.author", "me", False),
    ],
)  # fmt: skip
def test_secrets_are_hidden_and_other_settings_are_not(key, value, hidden):
    assert (without_secret(key, value) == HIDDEN) == hidden


def test_references_to_the_environment_stay_references(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_NAME", "confidential")
    folder = a_run(tmp_path / "run", overrides=["data.note=${oc.env:MY_NAME}"])
    (folder / "config.yaml").write_text("model: {path: '${oc.env:MY_NAME}'}")
    write_report(folder)
    assert "confidential" not in (folder / "report.html").read_text()
    assert read_run(folder).setting("model.path") == "${oc.env:MY_NAME}"


def test_a_run_without_revisions_shows_answers_and_one_without_records_none(tmp_path):
    shown = examples(a_run(tmp_path / "a", answers=[answer(1, 0.2), answer(2, 0.9)]))
    assert [(one.title, one.reward, one.draft) for one in shown] == [
        ("The best answer", "0.90", ()), ("The worst answer", "0.20", ())
    ]  # fmt: skip
    assert examples(a_run(tmp_path / "b")) == []


def test_criteria_that_changed_most_come_first(tmp_path):
    run = read_run(a_run(tmp_path / "run"))
    overall, criteria = bars(run, {"fish": "Names a fish."})
    assert [bar.name for bar in overall] == ["Reward", "Criteria met"]
    assert [(bar.name, round(bar.change, 2)) for bar in criteria] == [("Names a fish.", 0.52)]


def test_a_report_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    assert try_report(tmp_path) == []
    assert "cannot write" in caplog.text


@pytest.mark.parametrize(
    ("folders", "error", "said"),
    [((), ConfigError, "at least two runs"), (("a",), ConfigError, "at least two runs"),
     (("a", "none"), DataError, "there is no such folder"), (("a", "."), DataError, "finished run with summary.json")],
)  # fmt: skip
def test_what_cannot_be_compared_is_named(tmp_path, monkeypatch, folders, error, said):
    monkeypatch.chdir(tmp_path)
    a_run(tmp_path / "deep" / "a")
    (tmp_path / "a").symlink_to(tmp_path / "deep" / "a")
    (tmp_path / "deep" / "a" / "b").mkdir()
    chosen = ["a/b" if one == "." else one for one in folders]
    with pytest.raises(error, match=said):
        compare.compare(OmegaConf.create({"runs": chosen, "out": None}))


def test_runs_stand_side_by_side_with_the_settings_that_differ(tmp_path, capsys):
    one = a_run(tmp_path / "one", overrides=["seed=0", "optimizer.lr=0.01", "hydra.run.dir=x"])
    two = a_run(
        tmp_path / "two", (0.3, 0.5), ["seed=0", "algorithm=grpo"], choices={"algorithm": "grpo"}.items()
    )
    picture = tmp_path / "both.png"
    compare.show([read_run(one), read_run(two)], picture, Console(width=80))
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines()[:12])) <= 80
    for part in ("0.800 [0.75, 0.85]", "0.500 [0.45, 0.55]", "grpo", "0.001", "4\u00a0948"):
        assert part in said
    assert "seed" not in said
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("module", ["herl.report.compare", "herl.records.inspect"])
def test_a_table_needs_no_picture_and_no_model(module):
    heavy = {"matplotlib", "torch", "transformers", "lightning", "hydra"}
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("given", "differ"),
    [("1e-3", False), ("0.001", False), ("'0.001'", True), ("1e-6", True), ("null", True)],
)
def test_settings_differ_by_value_and_not_by_how_they_are_written(tmp_path, given, differ):
    one = a_run(tmp_path / "one", overrides=[f"optimizer.lr={given}"])  # the default of a_run is 0.001
    runs = [read_run(one), read_run(a_run(tmp_path / "two"))]
    assert list(compare.different_settings(runs)) == (["optimizer.lr"] if differ else [])


def test_a_part_that_a_run_left_out_is_a_difference(tmp_path):
    one = a_run(tmp_path / "one", overrides=["~callbacks.alarms", "~optimizer.lr=0.001"])
    two = a_run(tmp_path / "two")
    config = {"callbacks": {"alarms": {"_target_": "herl.callbacks.Alarms", "patience": 5}}}
    OmegaConf.save(config | {"optimizer": {"lr": 0.001}}, two / "config.yaml")
    assert compare.different_settings([read_run(one), read_run(two)]) == {
        "callbacks.alarms": ["left out", "herl.callbacks.Alarms"],
        "optimizer.lr": ["left out", "0.001"],
    }


def test_a_stopped_run_says_where_it_was_measured_last(tmp_path, capsys):
    runs = [
        a_run(tmp_path / "stopped", (0.3, 0.5), stopped="stopped by SIGTERM", answers_sampled=5000),
        a_run(tmp_path / "ended", (0.3, 0.8), answers_sampled=5000),
        a_run(tmp_path / "at_once", (0.3, 0.5), stopped="the budget is spent", answers_sampled=400),
    ]
    for folder in runs:
        summary = json.loads((folder / "summary.json").read_text())
        summary["validations"][-1]["heldout"] = prompts([0.5, 0.5, 0.5])
        (folder / "summary.json").write_text(json.dumps(summary))
    read = [read_run(one) for one in runs]
    compare.show(read, None, Console(width=200))
    said = capsys.readouterr().out
    for part in (
        "0.500 [0.45, 0.55] (after 400 answers)",
        "The reward of 2 minus that of 1 (after 400 answers), prompt by prompt",
        "The reward of 3 minus that of 1 (after 400 answers), prompt by prompt",
    ):
        assert part in said
    assert said.count("(after") == 3
    assert "in 400 of 5\u00a0000 sampled answers" in headline(read[0])
    assert " of 5" not in headline(read[1])


@pytest.mark.parametrize(
    ("second", "differ"),
    [
        ({"choices": {"judge": "llm"}.items()}, True),
        ({"choices": {"aggregation": "gated"}.items()}, True),
        ({"overrides": ["judge.chat.model=other"]}, True),
        ({"overrides": ["module.judge_runner.strip_thinking=false"]}, True),
        ({"overrides": ["judge.limits.tries=2", "judge.chat.base_url=http://other/v1"]}, False),
        ({"overrides": ["seed=1"]}, False),
    ],
)
def test_a_comparison_warns_of_rewards_by_another_judge(tmp_path, capsys, second, differ):
    runs = [a_run(tmp_path / "one"), a_run(tmp_path / "two", **second)]
    compare.show([read_run(one) for one in runs], None, Console(width=200))
    said = "The judge or its settings differ: 2 may have rewards on another scale than 1."
    assert (said in capsys.readouterr().out) is differ


def test_a_single_folder_may_be_given_without_a_list(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("0", "1"):
        a_run(tmp_path / "sweep" / name)
    compare.compare(OmegaConf.create({"runs": "sweep", "out": None}))
    assert "held-out reward" in capsys.readouterr().out


def prompts(rewards, fingerprint="a"):
    return {"fingerprint": fingerprint, "rewards": rewards}


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (prompts([1.0, 1.0, 0.5]), "The reward of 2 minus that of 1, prompt by prompt: +0.333 ["),
        (prompts([1.0, 1.0, 0.5], "b"), "2 had others than 1"),
        (None, "Some of these runs do not say which prompts"),
    ],
)
def test_a_comparison_says_whether_prompts_were_the_same(tmp_path, capsys, second, said):
    runs = [a_run(tmp_path / str(n), (0.3, 0.4)) for n in (1, 2)]
    for folder, heldout in zip(runs, (prompts([0.5, 0.5, 0.5]), second), strict=True):
        summary = json.loads((folder / "summary.json").read_text())
        summary["validations"][-1]["heldout"] = heldout
        (folder / "summary.json").write_text(json.dumps(summary))
    compare.show([read_run(one) for one in runs], None, Console(width=200))
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ({"answers_sampled": "x"}, "answers_sampled"),
        ({"seconds": [1]}, "seconds"),
        ({"seconds": {"total": None}}, "seconds.total"),
        ({"judge": {"cost": "x"}}, "judge.cost"),
        ({"alarms": {"kl": "often"}}, "alarms.kl"),
        ({"stopped": 3}, "stopped"),
        ({"heldout_reward_before": [1]}, "heldout_reward_before"),
        ({"validations": 3}, "validations"),
        ({"validations": [{"answers_sampled": 0, "rows": [row("reward", 0.5) | {"mean": None}]}]},
         "validations.0.rows.0.mean"),
        ({"validations": [{"answers_sampled": 0, "rows": [row("reward", float("nan"))]}]},
         "validations.0.rows.0.mean"),
    ],
)  # fmt: skip
def test_a_damaged_summary_is_one_error_with_file_and_field(tmp_path, part, named):
    folder = a_run(tmp_path / "run", **part) if "validations" not in part else a_run(tmp_path / "run")
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | part))
    with pytest.raises(DataError) as caught:
        read_run(folder)
    assert str(path) in str(caught.value)
    assert f"; {named}: " in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{", "\xff"])
def test_a_summary_that_is_none_is_an_error(tmp_path, content):
    (tmp_path / "summary.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match="expected the summary that a run writes"):
        read_run(tmp_path)


def test_nothing_in_a_foreign_folder_reaches_the_terminal_as_an_escape_sequence(tmp_path, capsys):
    evil = "\x1b]0;owned\x07\x1b[31m\x9b31m\u202e"
    one = a_run(tmp_path / "one", overrides=[f"data.note=a{evil}", f"x{evil}=1"], judge={"calls": 1})
    compare.show([read_run(one), read_run(a_run(tmp_path / "two"))], None, Console(width=200))
    said = capsys.readouterr().out
    assert "owned" in said
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(said)


def test_half_a_surrogate_pair_in_a_summary_is_a_warning(tmp_path, caplog):
    (tmp_path / "summary.json").write_bytes(b'{"stopped": "cut \\ud83d"}')
    assert try_report(tmp_path) == []
    assert "cannot write" in caplog.text


def test_a_sweep_ends_with_the_table_of_its_runs(tmp_path, capsys, monkeypatch):
    for number in (10, 2):
        a_run(tmp_path / str(number), overrides=[f"seed={number}"])
    (tmp_path / "failed").mkdir()
    monkeypatch.setattr("herl.cli.compare_sweep.HydraConfig.set_config", lambda self, config: None)
    CompareSweep().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    said = capsys.readouterr().out
    assert said.index("│ 2") < said.index("│ 10")
    assert (tmp_path / "compare.png").is_file()
