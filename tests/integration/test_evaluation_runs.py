"""From a run to its use: curves, inspect, validate, improve, test, export."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from herl.callbacks.dashboard import LAYOUT
from herl.models.chat_template import render
from herl.models.pretrained import PretrainedModel
from tests.support.runs import HERL, curves, environment, herl_here, summary

GUIDE = Path(__file__).parents[2] / "herl" / "callbacks" / "README.md"
RUN = (
    "experiment=embedded",
    "trainer.limit_train_batches=6", "trainer.max_epochs=1", "trainer.limit_val_batches=2",
    "trainer.val_check_interval=3", "rollout.attempts_per_prompt=4", "rollout.attempt.max_new_tokens=32",
    "logger=[tensorboard,csv]", "loss.kl_coef=0.01", "callbacks.dashboard.every_n_batches=2", "seed=7", "bonus=improvement",
)  # fmt: skip


def herl(*arguments, cwd, stdin="", allow=""):
    done = herl_here(*arguments, cwd=cwd, stdin=stdin, HERL_ALLOW_TARGETS=allow)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    herl("fit", *RUN, f"hydra.run.dir={folder}/run", cwd=folder)
    return folder / "run"


def curve_table():
    """(names in the first cell, words in the second) of each row of the guide's table of curves."""
    table = GUIDE.read_text().split("<!-- curves -->")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (`.+?`) \| (.+) \|$", table, flags=re.MULTILINE)
    return [tuple(re.findall(r"`([^`]+)`", cell) for cell in row) for row in rows]


RARE = {
    "judge/calls", "judge/tokens", "judge/cost", "judge/cache_hit_share", "judge/agreement",  # rules are free
    "sampler/probe_error", "sampler/probe_seconds", "sampler/probe_temperature", "sampler/refresh_seconds",
    "sampler/weights_proven",  # the sampler reads the live policy
    "throughput/mfu",  # of a GPU
    "train/thinking_tokens", "train/no_answer", "judge/no_answer", "judge/mostly_cannot_tell",  # of models that think
    "judge/check_errors",
    "train/dropped_prompts", "heldout/reward_revised_k", "judge/missing", "progress/skipped_steps",
    "train_category/<name>", "train_source/<name>",  # no categories in these rubrics, no sources in these rows
    "update/logprob", "update/preference_loss",  # of sft and dpo
    "gold/<name>", "gaming/<name>", "gold_criterion/<name>", "gold_source/<name>", "gaming_criterion/<name>",  # no gold judges
    "replay/recalled<name>", "replay/joined<name>",  # no replay
    "time/wait", "time/environment",
    "refill/prompts<name>", "refill/missing<name>", "update/kl_penalty", "update/top_entropy",  # options
    "episodes/<name>", "judge/abstained_environment",  # no environment
    *(f"heldout/{name}" for name in ("turns", "calls", "reply_tokens", "failed_calls", "failed")),
    *(f"heldout/cut_by_{name}" for name in ("turns", "length", "seconds")),
    "difficulty/solved<name>", "difficulty/hopeless<name>",
    "train/dropped_revision_prompts", "train/dropped_teacher_prompts",
    *(f"update/teacher_{name}" for name in ("mean", "size", "clipped", "agreement", "share")),
}  # fmt: skip
"""Curves of the guide that a default run does not have."""
UNLISTED = re.compile(r"(final|hp_\w+)/|(train|revision|heldout)_criterion/|.*/seconds_max|throughput/")


def test_a_run_has_every_curve_of_the_guide_and_the_guide_every_curve(run):
    found = set(curves(run))
    missing = []
    for names, words in curve_table():
        prefixes = [name.split("<")[0] for name in names]
        missing += [
            p for p in prefixes if not any(tag.startswith(p) for tag in found) and f"{p}<name>" not in RARE
        ]
        families = [p for p in prefixes if p.endswith("/")]
        for word in words if families else ():
            tags = {family + word for family in families}
            if re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]", word) and not tags & (found | RARE):
                missing.append(word)
    assert not missing, "in the guide, but not in the run"
    families = {name.split("/")[0] for names, _ in curve_table() for name in names}
    strange = [tag for tag in found if tag.split("/")[0] not in families and not UNLISTED.match(tag)]
    assert not strange, "in the run, but not in the guide"


def test_the_first_page_shows_curves_that_are_there(run):
    found = curves(run)
    shown = [curve for section in LAYOUT.values() for _, tags in section.values() for curve in tags]
    absent = [curve for curve in shown if not any(re.match(curve, tag) for tag in found)]
    assert absent == ["^time/probe$"]


def test_pictures_texts_and_hyperparameters_are_there(run):
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    assert {"0_story/1_rewards", "0_story/2_criteria_heldout", "0_story/3_criteria_train"} <= set(
        tags["images"]
    )
    assert "0_story/0_what_happened/text_summary" in tags["tensors"]
    assert "The held-out reward" in (run / "report.html").read_text()
    assert "revision/most_improved/text_summary" in tags["tensors"]
    assert "final/heldout_reward_after" in tags["scalars"]
    plugin = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"optimizer.lr" in plugin
    assert b"loss.kl_coef" in plugin
    assert b"improvement" in plugin, "a group that was chosen"
    assert "final/heldout_reward_best" in tags["scalars"]
    assert b"max_prompt_tokens" not in plugin


def test_the_best_checkpoint_is_kept_and_named(run):
    facts = summary(run)
    assert Path(facts["best_checkpoint"]) == run / "checkpoints" / "best.ckpt"
    assert facts["heldout_reward_best"] == pytest.approx(max(curves(run)["heldout/reward"][1:]), abs=1e-6)


def test_inspect_browses_the_answers_of_a_run(run):
    shown = herl("inspect", str(run), "max_answers=2", cwd=run)
    assert shown.count("draft: ") == shown.count("revision: ") == 2
    [line] = herl("inspect", "--json", "order=best", str(run), "max_answers=1", cwd=run).splitlines()
    best = json.loads(line)["answer"]["reward"]
    recorded = (run / "records" / "answers-00000.jsonl").read_text().splitlines()
    assert best == max(json.loads(one)["reward"] for one in recorded)
    assert len(recorded) == summary(run)["answers_sampled"]


def test_validate_takes_over_settings_and_the_best_checkpoint_of_a_run(run, tmp_path):
    shown = herl(
        "validate", f"run={run}", "module.validation_revisions=1", f"hydra.run.dir={tmp_path}", cwd=tmp_path
    )
    assert "plain attempt" in shown
    assert "1 revision" in shown
    facts = summary(tmp_path)
    assert facts["seed"] == 7
    assert facts["heldout_reward"] == pytest.approx(summary(run)["heldout_reward_best"], abs=1e-6)
    by = {(row["name"], row["revisions"]): row for row in facts["results"]}
    assert by["reward", 0]["mean"] == pytest.approx(facts["heldout_reward"], abs=1e-6)
    assert by["reward", 0]["low"] < by["reward", 0]["mean"] < by["reward", 0]["high"]
    assert by["reward", 1]["mean"] > by["reward", 0]["mean"]
    lines = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert len(lines) == facts["heldout_answers"]
    assert "plain attempt" not in herl("inspect", str(tmp_path), "order=broken", cwd=tmp_path)


def test_a_model_improves_its_answers_without_training(tmp_path):
    shown = herl(
        "improve",
        "experiment=embedded",
        "trainer.limit_val_batches=3",
        f"hydra.run.dir={tmp_path}",
        cwd=tmp_path,
    )
    assert "mended" in shown
    reward = {r["revisions"]: r for r in summary(tmp_path)["results"] if r["name"] == "reward"}
    assert reward[0]["high"] < reward[1]["low"]
    assert reward[1]["mean"] < reward[2]["mean"]
    assert (tmp_path / "improve.png").read_bytes()[:4] == b"\x89PNG"


def test_one_prompt_is_improved_from_standard_input(tmp_path):
    row = {"prompt": "Describe the otter, a mammal.", "rubric": [
        {"id": "food", "text": "Says that it eats fish.", "check": {"kind": "contains", "text": "fish"}},
        {"id": "short", "text": "Uses at most 9 words.", "check": {"kind": "max_words", "count": 9}}]}  # fmt: skip
    shown = herl("improve", "prompt=-", f"hydra.run.dir={tmp_path}", cwd=tmp_path, stdin=json.dumps(row))
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    [best] = [line for line in lines if line["best"]]
    assert best["text"] in " ".join(shown.split())
    assert [line["round"] for line in lines] == list(range(len(lines)))


def test_answers_that_nobody_could_judge_are_kept_and_the_command_fails(tmp_path):
    """The rule judge cannot judge plain criteria; a comma in one does not make it two."""
    done = herl_here(
        "improve", "prompt=Name two rivers, please.", "rubric=[Names two rivers, in Europe., Is one line.]",
        "rounds=1", f"hydra.run.dir={tmp_path}", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "could judge none of the run's 1 answers" in done.stderr
    [line] = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [verdict["criterion"] for verdict in line["verdicts"]] == [
        "Names two rivers, in Europe.",
        "Is one line.",
    ]


def test_standard_input_that_is_not_text_is_an_error(tmp_path):
    command = [*HERL, "improve", "prompt=-", f"hydra.run.dir={tmp_path}"]
    done = subprocess.run(command, cwd=tmp_path, input=b"\xff\xfe", capture_output=True, env=environment())
    assert done.returncode == 2
    assert b"prompt: expected UTF-8 on standard input" in done.stderr


def test_ifbench_is_judged_strictly_and_loosely(tmp_path):
    herl(
        "test", "benchmark=ifbench", "benchmark.data.max_prompts=4", "benchmark.heldout.max_new_tokens=32", f"hydra.run.dir={tmp_path}",
        cwd=tmp_path,
    )  # fmt: skip
    rows = summary(tmp_path)["results"]
    means = {row["judge"]: row["mean"] for row in rows if row["name"] == "criteria_met"}
    assert means[""] <= means["loose"]
    assert {row["name"] for row in rows} >= {"perfect", "criteria_met", "abstained", "source/ifbench"}


def test_a_benchmark_is_the_same_whatever_the_run_was_trained_on(run, tmp_path):
    """The run sets its data, its judge and how held-out prompts are answered."""
    other = tmp_path / "other"
    shutil.copytree(run, other, symlinks=True)
    with (other / ".hydra" / "overrides.yaml").open("a") as overrides:
        overrides.write("- data.regime=loose\n- rollout.heldout.temperature=1.0\n")
    herl(
        "test", f"run={other}", "benchmark=ifbench", "benchmark.data.max_prompts=2", "benchmark.heldout.max_new_tokens=16",
        f"hydra.run.dir={tmp_path}/tested", cwd=tmp_path,
    )  # fmt: skip
    facts = summary(tmp_path / "tested")
    assert facts["heldout_answers"] == 2
    assert {row["name"] for row in facts["results"]} >= {"source/ifbench"}
    assert {row["judge"] for row in facts["results"]} == {"", "loose"}


def test_a_run_improves_answers_to_other_prompts(run, tmp_path):
    rows = [{"prompt": f"Describe the {one}.", "rubric": ["Is kind."]} for one in ("otter", "owl")]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "kind.py").write_text("def f(task, text):\n    return {'c1': 'thank' in text.lower()}\n")
    run_folder = tmp_path / "loose"
    herl("fit", *RUN, "data.regime=loose", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1",
         "trainer.val_check_interval=1", "module.validation_revisions=0", f"hydra.run.dir={run_folder}",
         cwd=tmp_path)  # fmt: skip
    herl("improve", f"run={run_folder}", "data=heldout", "data.path=p.jsonl", "judge=function",
         "judge.function=kind.f", "rounds=2", f"hydra.run.dir={tmp_path}/improved", cwd=tmp_path,
         allow="kind")  # fmt: skip
    facts = summary(tmp_path / "improved")
    assert max(row["revisions"] for row in facts["results"]) == 2, "whatever the run's validations were"
    assert not any(row["name"].startswith("criterion/") for row in facts["results"]), "c1 is but a place"


def test_the_checkpoint_of_a_run_may_be_named_without_its_folder(run, tmp_path):
    herl("export", "checkpoint=best.ckpt", f"out={tmp_path}/model", cwd=run / "checkpoints")
    assert "| checkpoint | best.ckpt |" in (tmp_path / "model" / "README.md").read_text()


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    herl("export", f"run={run}", f"out={folder}", cwd=folder.parent)
    return folder


PROMPTS = ("Describe the otter, a mammal.", "Present the owl, a bird.", "Explain the fox, a mammal.")


def test_an_exported_model_answers_in_transformers_and_vllm_as_the_policy_does(run, exported):
    weights = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    policy = PretrainedModel(path="tiny").load()
    policy.load_state_dict({name.removeprefix("policy."): tensor for name, tensor in weights.items()})
    loaded = AutoModelForCausalLM.from_pretrained(exported).eval()
    tokenizer = AutoTokenizer.from_pretrained(exported)
    prompts = [render(tokenizer, [{"role": "user", "content": text}]) for text in PROMPTS]
    greedy = {"max_new_tokens": 32, "do_sample": False}
    expected = [
        policy.eval().generate(torch.tensor([ids]), **greedy)[0, len(ids) :].tolist() for ids in prompts
    ]
    assert [
        loaded.generate(torch.tensor([ids]), **greedy)[0, len(ids) :].tolist() for ids in prompts
    ] == expected

    code = """
import json, sys
from vllm import LLM, SamplingParams
engine = LLM(model=sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=256, block_size=32,
             kv_cache_memory_bytes=2**28)
found = engine.generate([{"prompt_token_ids": ids} for ids in json.loads(sys.argv[2])],
                        SamplingParams(temperature=0, max_tokens=32))
print(json.dumps([list(answer.outputs[0].token_ids) for answer in found]))
"""
    done = subprocess.run(
        [HERL[0], "-c", code, str(exported), json.dumps(prompts)], capture_output=True, text=True, timeout=300,
        env=environment(VLLM_ENABLE_V1_MULTIPROCESSING="0"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_an_exported_model_says_where_it_comes_from(exported):
    card = (exported / "README.md").read_text()
    assert "| algorithm | herl |" in card
    assert "| judge | herl.judge.rule.RuleJudge |" in card
    assert "| optimizer.lr | 0.001 |" in card
    assert "| checkpoint | best.ckpt |" in card
    assert {"config.json", "generation_config.json", "chat_template.jinja", "model.safetensors"} <= {
        path.name for path in exported.iterdir()
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["validate", "run=nowhere"], "run: expected the folder of a run"),
        (["export", "checkpoint=no.ckpt"], "checkpoint: expected a checkpoint written by herl fit, got 'no.ckpt'"),
        (["inspect"], "run: expected the folder of a run"),
        (["inspect", "."], "expected the folder of a run with recorded answers"),
        (["improve", "experiment=embedded", "algorithm=grpo"], "validation.revisions: expected 0 with a hindsight builder that writes no"),
        (["improve", "prompt=Hello"], "rubric: expected criteria to judge the answer by, got none"),
    ],
)  # fmt: skip
def test_a_mistake_gets_a_clear_error(tmp_path, arguments, message):
    done = herl_here(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
