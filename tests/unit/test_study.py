"""How tools/study evaluates finished runs."""

import _thread
import json
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from herl.checks import read_check
from herl.data.sources import read_tasks

STUDY = Path(__file__).parents[2] / "tools" / "study"
if not STUDY.is_dir():
    pytest.skip("the tools are not there", allow_module_level=True)
sys.path.insert(0, str(STUDY))

import guards  # noqa: E402
import study as study_module  # noqa: E402
import style  # noqa: E402
from report import Outcome, changed, compare, draw, interval, outcome, table  # noqa: E402
from runs import Job, run_all  # noqa: E402
from study import jobs_of, read, tune  # noqa: E402


def run(seed, *rewards, step=100):
    answers = np.arange(len(rewards)) * step
    return Outcome(seed=seed, answers=answers, rewards=np.array(rewards), extra={})


ARMS = {
    "grpo": [run(0, 0.0, 0.5, 0.6), run(1, 0.0, 0.3, 0.4)],
    "herl": [run(1, 0.0, 0.4, 0.6), run(0, 0.0, 0.6, 0.8)],  # another order: pairs go by seed
}


def test_differences_are_paired_by_seed():
    found = compare(ARMS, "grpo", 200)
    assert found["herl"]["final"]["mean"] == pytest.approx(0.7)
    difference = found["herl"]["difference"]
    assert (difference["mean"], difference["std"]) == (pytest.approx(0.2), pytest.approx(0.0, abs=1e-9))
    assert difference["low"] == pytest.approx(difference["high"])
    assert found["grpo"]["difference"]["mean"] == 0.0


def test_answers_to_the_baselines_final_and_area():
    found = compare(ARMS, "grpo", 200)  # level 0.5
    assert found["herl"]["answers_to_baseline"]["mean"] == pytest.approx((84 + 150) / 2, abs=1)
    assert found["grpo"]["never_reached"] == 1
    assert ARMS["grpo"][0].mean_until(200) == pytest.approx((0.25 + 0.55) / 2, abs=1e-3)


def test_the_interval_covers_the_mean_and_a_single_seed_has_none():
    found = interval([0.1, 0.2, 0.3, 0.4, 0.5])
    assert 0.1 < found["low"] < found["mean"] < found["high"] < 0.5
    assert found["t_low"] == pytest.approx(0.3 - 2.776 * 0.158114 / 5**0.5, abs=1e-4)
    assert found["t_low"] < found["low"] < found["high"] < found["t_high"]
    assert interval([0.3]) == {"mean": 0.3}
    assert "| herl | 0.600 |  | +0.000 |  |" in table(
        compare({"grpo": [run(0, 0.6)], "herl": [run(0, 0.6)]}, "grpo", 1), "grpo"
    )


def events(folder, curves, seed=3):
    with SummaryWriter(folder / "tensorboard") as writer:
        for tag, points in curves.items():
            for step, value in points:
                writer.add_scalar(tag, value, step)
    (folder / "summary.json").write_text(json.dumps({"seed": seed, "heldout_reward_after": 0.9}))


def test_a_run_is_read_up_to_its_budget(tmp_path):
    events(
        tmp_path,
        {
            "heldout/reward": [(0, 0.1), (50, 0.5), (150, 0.9)],
            "heldout_criterion/tip": [(0, 0.0), (150, 0.6)],
            "update/entropy": [(10, 9.0), (80, 1.0), (100, 3.0), (150, 9.0)],
        },
    )
    found = outcome(tmp_path, 100, ["tip"])
    assert found.seed == 3
    assert found.answers.tolist() == [0, 50, 100]
    assert found.rewards.tolist() == pytest.approx([0.1, 0.5, 0.7])
    assert found.extra == pytest.approx({"entropy": 2.0, "chosen": 0.4})
    with pytest.raises(SystemExit, match="expected a run that reaches its budget of 151, got one of 150"):
        outcome(tmp_path, 151)
    with pytest.raises(SystemExit, match=r"expected some of .'tip'., got .'top'."):
        outcome(tmp_path, 100, ["top"])


def test_table_and_picture(tmp_path):
    text = table(compare(ARMS, "grpo", 200), "grpo")
    assert "| herl | 0.700 ± 0.141 |" in text
    assert "| +0.200 | +0.200 to +0.200 |" in text
    draw(ARMS, 200, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_study_file_and_the_command_line_go_together(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "arms:\n  wide: {overrides: [algorithm=herl, rollout.attempts_per_prompt=12]}\nseeds: 3\n"
    )
    study = read([f"study={path}", "algorithms=grpo", "seeds=2"])
    assert (list(study.arms), study.seeds, study.out) == (["wide", "grpo"], 2, "runs/study_mine")
    [first, _] = jobs_of(study, tmp_path, study.arms["wide"].overrides, range(5, 7))
    assert "rollout.attempts_per_prompt=12" in first.overrides
    assert f"hydra.run.dir='{tmp_path}/5'" in first.overrides


def test_a_budget_of_tokens_takes_the_place_of_one_of_answers(tmp_path):
    study = read(["algorithms=grpo", "tokens=5000"])
    [job] = jobs_of(study, tmp_path, [], range(1))
    assert {"callbacks.answer_budget.answers=null", "callbacks.answer_budget.tokens=5000"} < set(
        job.overrides
    )
    assert "module.log_over=tokens_sampled" in job.overrides, "curves are read over the budget's unit"
    assert (study.unit, study.budget) == ("tokens", 5000)
    assert "| tokens to its final |" in table(compare(ARMS, "grpo", 200), "grpo", study.unit)
    [plain] = jobs_of(read(["algorithms=grpo"]), tmp_path, [], range(1))
    assert not any("tokens=" in override or "log_over" in override for override in plain.overrides)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["presets=grpo"], "presets"),
        (["algorithms=grpo", "seeds=many"], "many"),
        (["algorithms=grpo", "baseline=herl"], "got arms .'grpo'., baseline 'herl'"),
        ([], "expected algorithms="),
        (["study=nowhere.yaml"], "nowhere.yaml"),
        (["algorithms=grpo", "tuning.tries=[[seed=1]]", "tuning.first_seed=4"], "other seeds than"),
        (["algorithms=grpo", "tuning.tries=[[seed=1]]", "tuning.seeds=0"], "tuning.seeds of at least 1"),
        (["algorithms=grpo", "only=herl"], "expected arms among .*got .'herl'"),
        (["algorithms=grpo,herl", "arms.herl.tuned_as=sft"], "expected arms among .*got .'sft'"),
        (
            ["algorithms=grpo,herl", "arms.herl.tuned_as=grpo", "arms.grpo.tries=[[seed=1]]", "only=herl"],
            "only: expected also .'grpo'",
        ),
        (
            ["algorithms=grpo,herl", "arms.herl.tuned_as=grpo", "arms.herl.tries=[[seed=1]]"],
            "arms.herl.tuned_as: expected an arm without tries",
        ),
        (
            [
                "algorithms=grpo",
                "tuning.tries=[[seed=1]]",
                "tuning.first_seed=1000",
                "tokens=9",
                "tuning.answers=9",
            ],
            "tuning.answers: expected none with a budget of tokens",
        ),
        (["algorithms=grpo", "checkpoints=some"], "expected all or first, got 'some'"),
        (["algorithms=grpo", "rows=nothing"], "expected a module beside study.py, got 'nothing'"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(SystemExit, match=message):
        read(arguments)


def test_a_finished_run_is_kept_and_one_with_other_settings_refused(tmp_path):
    job = Job(tmp_path, ["algorithm=grpo"])
    (tmp_path / "overrides.json").write_text(json.dumps(["algorithm=grpo"]))
    (tmp_path / "summary.json").write_text('{"stopped": "stopped by SIGTERM"}')
    assert not job.done
    Job(tmp_path, ["algorithm=herl"]).check()  # nothing to resume from
    (tmp_path / "summary.json").write_text('{"heldout_reward_after": 0.5}')
    run_all([job], 1)
    with pytest.raises(SystemExit, match="expected a run with .*herl"):
        run_all([Job(tmp_path, ["algorithm=herl"])], 1)


def test_ctrl_c_begins_no_further_run(tmp_path, monkeypatch):
    begun = []

    def interrupted(job, threads):
        begun.append(job.folder.name)
        _thread.interrupt_main()
        time.sleep(0.2)
        return 0.2

    monkeypatch.setattr(Job, "run", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            run_all([Job(tmp_path / str(i), []) for i in range(40)], 1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(begun) < 3


def test_a_study_in_which_nothing_works_stops_early(tmp_path, capfd):
    jobs = [Job(tmp_path / str(i), ["algorithm=nothing"]) for i in range(40)]
    with pytest.raises(SystemExit, match="runs failed"):
        run_all(jobs, 1)
    assert "ended with code" in capfd.readouterr().out
    assert not (tmp_path / "39").exists()


def test_an_arm_takes_over_the_settings_that_another_was_tuned_to(monkeypatch, tmp_path):
    tuned = read(
        [
            "algorithms=grpo,herl",
            f"out={tmp_path}",
            "answers=400",
            "tuning.answers=100",
            "arms.grpo.tries=[[optimizer.lr=1],[optimizer.lr=2]]",
            "arms.herl.tuned_as=grpo",
        ]
    )
    asked = []
    monkeypatch.setattr(study_module, "run_all", lambda jobs, side_by_side: asked.extend(jobs))
    rate = {"optimizer.lr_1": 0.3, "optimizer.lr_2": 0.5}
    monkeypatch.setattr(
        study_module,
        "outcome",
        lambda folder, answers: run(0, rate[folder.parent.name], step=answers),
    )
    found = tune(tuned)
    assert {"callbacks.answer_budget.answers=100" in job.overrides for job in asked} == {True}
    assert len(asked) == 4, "two rates on two seeds; nothing for herl"
    assert found["grpo"]["chosen"] == found["herl"]["chosen"] == ["optimizer.lr=2"]


def test_settings_of_the_machine_come_last_and_only_the_first_seed_keeps_checkpoints(tmp_path):
    study = read(
        ["algorithms=grpo,herl", "only=herl", "baseline=herl", "machine=[trainer.precision=bf16-mixed]", "first_seed=5",
         "checkpoints=first"]
    )  # fmt: skip
    assert list(study.arms) == ["herl"]
    jobs = jobs_of(study, tmp_path, ["trainer.precision=32"], range(5, 8))
    assert jobs[0].overrides.index("trainer.precision=bf16-mixed") > jobs[0].overrides.index(
        "trainer.precision=32"
    )
    assert [job.keeps for job in jobs] == [True, False, False]


def test_only_takes_names_with_commas_as_a_list_and_leaves_out_what_nothing_is_tuned_as():
    arms = ['arms={grpo: {}, "grpo, memory": {tuned_as: grpo}, herl: {}}']
    assert list(read([*arms, 'only=["grpo, memory",herl]']).arms) == ["grpo, memory", "herl"]
    assert list(read([*arms, "only=grpo, herl"]).arms) == ["grpo", "herl"]


def test_a_guard_has_a_column_and_one_for_its_change(tmp_path):
    events(
        tmp_path,
        {"heldout/reward": [(0, 0.1), (100, 0.9)], "heldout_criterion/topic": [(0, 0.9), (100, 0.8)]},
    )
    found = outcome(tmp_path, 100, guards=["topic"])
    assert found.extra == pytest.approx({"topic": 0.8, "topic, change": -0.1})
    text = table(compare({"grpo": [found]}, "grpo", 100), "grpo")
    assert "| topic | topic, change |" in text
    assert "| 0.800 | -0.100 |" in text
    with pytest.raises(SystemExit, match="criteria, guards: expected some of .*'topic'.*got .'long'."):
        outcome(tmp_path, 100, guards=["long"])


def test_the_untrained_models_log_prob_is_the_mean_over_tokens():
    model, tokenizer = guards._loaded("tiny")
    records = [
        {"task_id": "a", "request": "Describe the otter.", "text": "It eats fish."},
        {"task_id": "a", "request": "Describe the otter.", "text": "a second attempt does not count"},
        {"task_id": "b", "request": "Describe the owl.", "text": "It sees at night, and hunts mice."},
        {"task_id": "c", "request": "Describe the owl.", "text": ""},
    ]
    logprobs = []
    for record in (records[0], records[2]):
        asked = [{"role": "user", "content": record["request"]}]
        ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        for token in tokenizer.encode(record["text"], add_special_tokens=False):
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1]
            logprobs.append(float(torch.log(torch.softmax(logits, -1)[token])))
            ids = [*ids, token]
    assert guards.mean_logprob(model, tokenizer, records) == pytest.approx(np.mean(logprobs), abs=1e-4)


def test_the_log_probs_of_a_run_are_kept(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="expected held-out answers"):
        guards.base_logprob(tmp_path)
    (tmp_path / "base_logprob.json").write_text(json.dumps(changed(guards.NAME, -1.0, -1.5)))
    assert guards.base_logprob(tmp_path) == {"base log-prob": -1.5, "base log-prob, change": -0.5}


def test_house_style_has_disjoint_topics_and_is_decided_by_its_seed(tmp_path):
    splits = style.splits()
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 144, "heldout": 48, "tuning": 48}
    topics = [{row["id"].partition("-")[2] for row in rows} for rows in splits.values()]
    assert len(set.union(*topics)) == sum(map(len, topics)) == 40
    assert style.splits() == splits
    assert style.splits(seed=1) != splits
    style.write(tmp_path)
    tasks = read_tasks(tmp_path / "train.jsonl")
    assert len({task.request for task in tasks}) == 144
    for task in tasks:
        ids = {criterion.id for criterion in task.rubric.criteria}
        assert {"short", "topic", "long"} < ids
        assert len(ids) == 6


@pytest.mark.parametrize(
    ("item", "met", "missed"),
    [
        ("hello", "Hello, you.", "Oh, hello."),
        ("title", "<<Fresh bread>> It smells.", "<<joy>> It smells."),
        ("best", "Bake it. All the best!", "All the best to you."),
        ("careful", "And be careful.", "Take care."),
        ("postscript", "Bye. P.S. Bring bread.", "Bye."),
        ("thanks", "Thank you for reading.", "It rose thanks to the yeast."),
        ("because", "Because it rains.", "It rains."),
    ],
)
def test_an_item_of_house_style_is_judged_by_its_rule(item, met, missed):
    check = read_check(style.ITEMS[item][2])
    assert check.met(met)
    assert not check.met(missed)
