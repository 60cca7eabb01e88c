import json
import logging
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from herl import ConfigError, DataError
from herl.config.early import check_early
from tests.support.configuration import composed

REVISION = {"_target_": "herl.hindsight.revision.RevisionBuilder"}
RULE = {"_target_": "herl.judge.rule.RuleJudge"}
READ = "herl.data.sources.read_tasks"


def config(tmp_path, row, judge=RULE, **data):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    rows = {"_target_": READ, "path": str(tmp_path / "rows.jsonl")}
    module = {"_target_": "herl.data.RubricDataModule", "train": rows, "heldout": rows} | data
    return OmegaConf.create({"data": module, "judge": judge, "hindsight": REVISION})


def test_rows_that_the_judge_cannot_judge_are_found(tmp_path):
    with pytest.raises(DataError, match="row '1': criterion 'c1' has no check"):
        check_early(config(tmp_path, {"prompt": "Hi", "rubric": ["Greets."]}))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"_target_": READ, "path": "???"}, "data.train.path: expected a value, got none"),
        ({"_target_": READ, "path": "none.jsonl"}, "none.jsonl: expected a file of prompts"),
        ({"_target_": READ, "path": "none.jsonl", "file": 1}, "data.train.file: unknown key"),
    ],
)
def test_mistakes_in_the_settings_of_rows_are_found(tmp_path, rows, message):
    with pytest.raises((ConfigError, DataError), match=message):
        check_early(config(tmp_path, {"prompt": "Hi", "rubric": ["Greets."]}, train=rows))


def test_hindsight_with_a_function_that_returns_a_number_is_refused(tmp_path, monkeypatch):
    (tmp_path / "early_reward.py").write_text(
        "def f(task, text, answer):\n    return float(answer in text)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HERL_ALLOW_TARGETS", "early_reward")
    judge = {"_target_": "herl.judge.function.FunctionJudge", "function": "early_reward.f"}
    made = config(tmp_path, {"prompt": "6 x 7?", "answer": "42"}, judge)
    with pytest.raises(ConfigError, match="hindsight needs verdicts on each criterion.*algorithm=grpo"):
        check_early(made)
    made.hindsight = {"_target_": "herl.hindsight.NoHindsight"}
    check_early(made)
    for part, needs in (
        ("advantages", {"advantages": {"_target_": "herl.advantages.by_criterion.ByCriterion"}}),
        ("advantages", {"emphasis": {"_target_": "herl.advantages.contrast.Contrast"}}),
        ("selection", {"selection": {"_target_": "herl.selection.form_group", "joins": "new"}}),
    ):
        with pytest.raises(ConfigError, match=f"judge: {part} needs verdicts on each criterion"):
            check_early(OmegaConf.merge(made, needs))
    made.hindsight = {"_target_": "herl.hindsight.told.ToldBuilder"}
    with pytest.raises(
        ConfigError, match="hindsight: expected rows with a rubric, which hindsight=told shows"
    ):
        check_early(made)
    judged_as_a_whole = config(
        tmp_path, {"prompt": "6 x 7?", "meta": {"answer": "42"}, "rubric": ["Says 42."]}, judge
    )
    judged_as_a_whole.hindsight = made.hindsight
    check_early(judged_as_a_whole)


def test_what_would_take_long_is_left_to_the_run(tmp_path):
    chat = {"_target_": "herl.judge.llm.judge.LLMJudge"}
    check_early(config(tmp_path, {"prompt": "Hi", "rubric": ["Greets."]}, chat))
    hub = {"_target_": READ, "path": "hf:owner/name"}
    check_early(config(tmp_path, {"prompt": "Hi"}, train=hub, heldout=hub))


UNFIT = {"prompt": "Hi", "rubric": ["Greets."], "meta": {"split": "test"}}
FIT = {"prompt": "Hey", "rubric": [{"text": "Greets.", "check": {"kind": "contains", "text": "Hi"}}]}
HELD_OUT = {"_target_": "herl.data.prompts.held_out", "fields": {}, "max_prompts": None, "seed": 0}


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        (
            [UNFIT, FIT | {"meta": {"split": "train"}}],
            {"train": {"_target_": READ, "where": {"split": "train"}}},
        ),
        ([FIT, UNFIT], HELD_OUT | {"max_prompts": 1}),
    ],
)
def test_only_the_rows_that_the_run_uses_are_judged(tmp_path, rows, settings):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    node = settings.get("train", settings)
    node = node | {"path": str(path)}
    data = {"train": node} if "train" in settings else node
    made = {"data": data, "judge": RULE, "hindsight": REVISION}
    check_early(OmegaConf.create(made))
    for name in ("where", "max_prompts"):
        node.pop(name, None)
    with pytest.raises(DataError, match="criterion 'c1' has no check"):
        check_early(OmegaConf.create(made))


def test_warnings_about_rows_are_left_to_the_run(tmp_path, caplog):
    mixed = FIT | {"rubric": [*FIT["rubric"], "Is kind."]}
    check_early(config(tmp_path, mixed))
    assert not caplog.records
    logging.getLogger("herl.any").warning("later")
    assert "later" in caplog.text


def test_nothing_heavy_is_imported(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(FIT) + "\n")
    data = HELD_OUT | {"path": str(tmp_path / "rows.jsonl"), "prompts_per_batch": 16}
    made = {"data": data, "judge": RULE, "hindsight": REVISION}
    code = (
        "import sys, herl.config.early, herl.judge.mix, herl.judge.rule, herl.judge.function; "
        "from omegaconf import OmegaConf; "
        f"herl.config.early.check_early(OmegaConf.create({made})); "
        "print([name for name in ('torch', 'lightning', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["optimizer.lr=abc"], "optimizer.lr: expected a number or a Tensor, got 'abc'"),
        (["trainer.max_epochs=1.5"], "trainer.max_epochs: expected a whole number or null, got 1.5"),
        (["rollout.attempts_per_prompt=0"], "rollout: expected attempts_per_prompt"),
        (["rollout.attempt.temperature=-1"], "rollout.attempt: expected temperature >= 0"),
        (["rollout.attempt.temperature=warm", "seed=x"], "rollout.attempt.temperature: expected a number"),
        (["emphasis=dropout", "emphasis.rate=1.5"], "emphasis.rate: expected a share"),
        (
            ["advantages=by_criterion", "advantages.scale=group_std"],
            "advantages.scale: expected batch_std or none",
        ),
        (["selection.joins=all"], "selection.joins: expected better or new, got 'all'"),
        (["judge=llm"], "judge.chat.base_url: expected a value, got none"),
        (["judge=verifiers"], r"judge.name: expected a value, got none \(Interpolation key 'data.name' not"),
        (["environment=verifiers"], "environment.name: expected a value, got none .*'data.name' not found"),
        (
            ["data=verifiers", "judge=verifiers"],
            r"judge.name: expected a value, got none \(Missing mandatory value: data.name\)",
        ),
        (["judge=llm", "judge.chat.base_url=localhost:8000", "judge.chat.model=m"], "expected a URL such as"),
        (["judge=function", "judge.function=no_such.reward"], "judge.function: expected an object from herl"),
        (
            ["resume=runs/nothing"],
            "resume: expected a checkpoint or a folder of a run, but there is no 'runs/",
        ),
        (["model.path=./nowhere"], "model.path: expected a folder with a config.json"),
    ],
)
def test_what_was_typed_is_checked(typed, message):
    with pytest.raises(ConfigError, match=message):
        check_early(composed("fit", "experiment=embedded", *typed), typed)


@pytest.mark.parametrize(
    "typed",
    [
        ("data.hidden_criteria=0.2",),
        ("+judge@further_judges.rule=rule", "trainer.limit_val_batches=0"),
    ],
)
def test_settings_of_gold_judges_are_checked_where_they_judge(typed):
    made = composed("fit", "experiment=embedded", *typed)
    check_early(made, typed)
    with pytest.raises(
        ConfigError, match="hidden_criteria: expected a judge|further_judges: expected held-out"
    ):
        check_early(made, typed, gold=True)


def test_sound_values_pass():
    typed = [
        "optimizer.lr=1e-5",
        "trainer.devices=auto",
        "module.micro_batch_tokens=auto",
        "lora=lora",
        "model.lora.rank=4",
    ]
    check_early(composed("fit", "experiment=embedded", *typed), typed)


def test_a_heldout_file_without_prompts_is_found(tmp_path):
    (tmp_path / "held.jsonl").write_text("")
    heldout = {"_target_": READ, "path": str(tmp_path / "held.jsonl")}
    made = config(tmp_path, {"prompt": "Hi", "rubric": ["Greets."]}, heldout=heldout, heldout_share=0.1)
    with pytest.raises(DataError, match="data.heldout: expected at least one prompt, got none from .*held"):
        check_early(made)


@pytest.mark.parametrize(
    ("rows", "share", "message"),
    [
        ("", 0.1, "data.train: expected at least one prompt, got none"),
        (None, 2, "data.heldout_share: expected a share"),
    ],
)
def test_rows_that_cannot_be_split_are_found(tmp_path, rows, share, message):
    made = config(tmp_path, {"prompt": "Hi", "rubric": ["Greets."]}, heldout=None, heldout_share=share)
    if rows is not None:
        (tmp_path / "rows.jsonl").write_text(rows)
    with pytest.raises((ConfigError, DataError), match=message):
        check_early(made)


def test_objects_given_by_their_target_pass():
    typed = ["model.lora={_target_: herl.models.lora.Lora, rank: 8}"]
    check_early(composed("fit", "experiment=embedded", *typed), typed)


def test_a_part_that_may_not_be_named_is_not_built_to_check_a_setting(tmp_path):
    made = config(tmp_path, {"prompt": "Hi", "rubric": ["Greets."]})
    made.hindsight.candidates = {"_target_": "builtins.open", "file": str(tmp_path / "marker"), "mode": "w"}
    with pytest.raises(ConfigError, match="hindsight.candidates._target_: expected an object from"):
        check_early(made, ["hindsight.candidates.mode=w"], judges=False)
    assert not (tmp_path / "marker").exists()


def test_several_files_are_checked_early(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, count in (("a", 30), ("b", 3)):
        row = {"prompt": name, "rubric": [{"text": "Greets.", "check": {"kind": "contains", "text": "hi"}}]}
        rows = [row | {"prompt": f"{name} {n}"} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))

    def checked(train, heldout="null"):
        check_early(
            composed(
                "fit", "data=mix", f"data.train.sources={{{train}}}", f"data.heldout.sources={heldout}",
                "model=tiny", "judge=rule", "data.heldout_share=0", f"+output_dir={tmp_path}",
            )
        )  # fmt: skip

    checked("a: {path: a.jsonl}, b: {path: b.jsonl}", "{b: {path: b.jsonl}}")
    checked("a: {path: a.jsonl, weight: 30}, b: {path: b.jsonl, weight: 3}")
    for train, heldout, message in (
        ("a: {path: a.jsonl, weight: 0}", "null", "data.train.sources.a.weight: expected a number above 0"),
        (
            "a: {path: hf:x/y, weight: 1}, b: {path: b.jsonl}",
            "null",
            "sources.b.weight: expected a number above",
        ),
        ("a: {path: none.jsonl}", "null", "none.jsonl: expected a file of prompts"),
        (
            "a: {path: a.jsonl, weight: 1}, b: {path: b.jsonl, weight: 1}",
            "null",
            "sources.b: expected at least 21",
        ),
        (
            "a: {path: a.jsonl}",
            "{b: {path: b.jsonl, weight: 2}}",
            "data.heldout.sources.b.weight: unknown key",
        ),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            checked(train, heldout)
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": "x", "rubric": ["Has no check."]}) + "\n")
    with pytest.raises(DataError, match="row 'b:1': criterion 'c1' has no check"):
        checked("a: {path: a.jsonl}, b: {path: b.jsonl}")
