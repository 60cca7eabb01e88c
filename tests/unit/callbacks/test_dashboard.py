"""TensorBoard's pages, pictures and texts, read back from real event files."""

from html.parser import HTMLParser

import lightning as L
import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html

from herl.callbacks import BestCheckpoint, Dashboard, RecordAnswers
from herl.callbacks.dashboard import EPISODES_LAYOUT, GOLD_LAYOUT, LAYOUT, layout
from herl.callbacks.heat_map import heat_map
from herl.callbacks.markup import answer_markdown, plain, revision_markdown
from herl.callbacks.reward_picture import reward_picture, smooth
from herl.data import RubricDataModule
from herl.hindsight.revision import RevisionBuilder
from herl.prompt_text import visible
from herl.records.inspect import Query, find
from herl.testing import make_judged, make_rollout, make_task
from herl.update.loss.policy import PolicyLoss
from tests.support.injections import INJECTIONS
from tests.support.made_up_episodes import FakeQuiz, an_episode
from tests.support.training import TASKS, fit, module_of

MARKUP = (
    "<script>alert(1)</script>", "<b>bold</b>", "**bold** _it_ `code` # head", "| a | b |\n|---|---|\n| 1 | 2 |",
    "![x](http://x/y.png)", "[link](javascript:alert(1))", "- a\n- b\n\n    code", "a\n\n\nb", "&lt;b&gt; &amp;",
    "\\*not bold\\*", "```\nfence\n```", "> quote\n1. one", "~~~\nx\n~~~", "<!-- hidden -->", "x\n===\n---",
)  # fmt: skip


class TextOf(HTMLParser):
    def __init__(self):
        super().__init__()
        self.text, self.tags = "", set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "br":
            self.text += " "

    def handle_data(self, data):
        self.text += data


def rendered(markdown):
    reader = TextOf()
    reader.feed(markdown_to_safe_html(markdown))
    return reader


@pytest.mark.parametrize("text", [*MARKUP, *INJECTIONS])
def test_text_of_a_model_comes_out_of_tensorboard_as_it_went_in(text):
    shown = rendered(plain(text))
    expected = visible(text).split() or ["(nothing)"]
    assert shown.text.split()[:200] == expected[:200]
    assert shown.tags <= {"p", "br"}


@pytest.mark.parametrize("text", MARKUP)
def test_markup_in_a_table_stays_in_its_cell(text):
    task = make_task({"fish": 1.0, "advert": -1.0})
    draft = make_judged(0.0, met={"fish": False, "advert": True}, rollout=make_rollout(text))
    revision = make_judged(1.0, met={"fish": True, "advert": False}, rollout=make_rollout("fish " + text))
    shown = rendered(revision_markdown(task, draft, revision))
    assert shown.tags <= {"table", "thead", "tbody", "tr", "td", "th", "br", "strong", "p"}
    assert " ".join(text.split()) in " ".join(shown.text.split())
    assert "Avoid: Says advert." in shown.text
    rows = markdown_to_safe_html(answer_markdown(task, draft)).count("<tr>")
    assert rows == 1 + 2


@pytest.mark.parametrize("text", MARKUP)
def test_an_episode_is_shown_turn_by_turn_and_its_markup_stays_literal(text):
    task = make_task({"fish": 1.0})
    draft = make_judged(0.0, met={"fish": False}, rollout=make_rollout("river"))
    revision = make_judged(1.0, met={"fish": True}, rollout=an_episode(text, finish_reason="turns"))
    shown = rendered(revision_markdown(task, draft, revision))
    assert shown.tags <= {"table", "thead", "tbody", "tr", "td", "th", "br", "strong", "p"}
    rows = [line.split("|")[1].strip() for line in revision_markdown(task, draft, revision).splitlines()[2:]]
    assert rows[:5] == ["turn 1", "reply 1", "turn 2", "reply 2", "last turn"]
    alone = rendered(answer_markdown(task, revision))
    for found in (shown, alone):
        words = " ".join(found.text.split())
        assert " ".join(text.split()) in words
        assert "otter: <b>fish</b>" in words
        assert "a call failed: malformed" in words
        assert "\x1b" not in words
    assert "Episode 3 turns, 3 calls (1 failed), cut off at the limit on turns" in alone.text


def test_the_first_page_has_a_section_of_episodes_only_with_an_environment():
    assert not EPISODES_LAYOUT.keys() & layout(module_of()).keys()
    found = layout(module_of(environment=FakeQuiz(max_tokens=300)))
    assert list(found)[-1:] == list(EPISODES_LAYOUT)


def test_a_long_text_is_cut_and_says_so():
    assert plain("word " * 5000).endswith("&#40;25000 characters&#41;") or "25000 characters" in plain(
        "word " * 5000
    )


def test_a_heat_map_has_a_row_for_each_criterion_and_bounds_its_columns():
    history = [(step, {"a": step / 500, "b": 0.5} if step % 2 else {"a": step / 500}) for step in range(500)]
    few, many = heat_map(history[:3], "t", "x"), heat_map(history, "t", "x")
    assert few.dtype == np.uint8
    assert few.shape == many.shape
    wide = heat_map([(0, {str(i): 0.1 for i in range(20)}), (1, {})], "t", "x")
    assert wide.shape[0] > few.shape[0]
    assert len(np.unique(many.reshape(-1, 3), axis=0)) > 50  # a picture, not an empty frame


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four batches with two validations and all callbacks."""
    folder = tmp_path_factory.mktemp("watched")
    answers = {task.id: ["It eats fish.", "It is brown.", "A river.", "no"] for task in TASKS}
    module = module_of(answers, hindsight=RevisionBuilder(), validation_revisions=1)
    trainer = L.Trainer(
        max_epochs=4, check_val_every_n_epoch=2, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1, default_root_dir=folder,
        logger=[TensorBoardLogger(folder, "", "tensorboard"), CSVLogger(folder, "", "csv", flush_logs_every_n_steps=1)],
        callbacks=[
            Dashboard(every_n_batches=2, heldout_prompts=2), RecordAnswers(str(folder / "records")),
            BestCheckpoint(str(folder / "checkpoints")),
        ],
    )  # fmt: skip
    trainer.fit(module, RubricDataModule(TASKS, TASKS, prompts_per_batch=2))
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    return folder, module, trainer, events


def test_pictures_histograms_texts_and_the_first_page_are_there(run):
    _, _, _, events = run
    tags = events.Tags()
    assert {"0_story/1_rewards", "0_story/3_criteria_train", "0_story/2_criteria_heldout"} >= set(
        tags["images"]
    )
    assert min(tags["images"] + tags["scalars"] + tags["histograms"] + tags["tensors"]) == "0_story/1_rewards"
    assert "0_story/3_criteria_train" in tags["images"]
    assert {"distribution/reward", "distribution/answer_tokens"} <= set(tags["histograms"])
    texts = {tag.removesuffix("/text_summary") for tag in tags["tensors"] if tag.endswith("text_summary")}
    assert {"heldout/prompt_1", "heldout/prompt_2", "revision/most_improved"} <= texts
    assert "custom_scalars__config__" in tags["tensors"]
    [shown, *_] = events.Tensors("heldout/prompt_1/text_summary")
    assert "Describe the otter" in shown.tensor_proto.string_val[0].decode()


def test_held_out_answers_are_shown_once_for_each_point_of_the_run(run):
    steps = [event.step for event in run[3].Tensors("heldout/prompt_1/text_summary")]
    assert steps == sorted(set(steps))
    assert len(steps) == 2


def test_both_loggers_hold_the_same_numbers_over_the_same_axis(run):
    import pandas

    folder, _, _, events = run
    table = pandas.read_csv(folder / "csv" / "metrics.csv")
    for tag in ("train/reward", "revision/reward", "heldout/reward", "heldout/reward_revised_1"):
        there = table[["step", tag]].dropna()
        logged = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in logged] == there["step"].astype(int).tolist()
        assert [value for _, value in logged] == pytest.approx(there[tag].tolist(), rel=1e-6)


def test_recorded_revisions_know_their_drafts(run):
    folder, module, _, _ = run
    found = find(folder, Query(order="improved", max_answers=100))
    assert len(found) == module.counts["revisions_sampled"] == 8
    assert all(one.draft["reward"] == one.answer["parent_reward"] == pytest.approx(0.6) for one in found)
    assert {one.answer["text"] for one in found} == {"fish river"}


def test_the_best_checkpoint_is_that_of_the_best_validation(run):
    folder, _, trainer, events = run
    best = max(event.value for event in events.Scalars("heldout/reward"))
    [callback] = [c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)]
    assert float(callback.best_model_score) == pytest.approx(best)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["best.ckpt"]


@pytest.mark.filterwarnings("ignore:Total length of `PromptLoader` across ranks is zero")
def test_no_best_checkpoint_without_held_out_answers(tmp_path):
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, logger=False,
        num_sanity_val_steps=0, default_root_dir=tmp_path, callbacks=[BestCheckpoint(str(tmp_path / "c"))],
    )  # fmt: skip
    trainer.fit(module_of(), RubricDataModule(TASKS, prompts_per_batch=2))
    assert not (tmp_path / "c").exists() or not list((tmp_path / "c").iterdir())


def test_the_x_axis_may_be_optimizer_steps(tmp_path):
    module = module_of(log_over="optimizer_steps", updates_per_batch=1)
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, limit_val_batches=0, logger=TensorBoardLogger(tmp_path, "", "t"),
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, RubricDataModule(TASKS, prompts_per_batch=2))
    events = EventAccumulator(str(tmp_path / "t"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/reward")] == [1, 2]
    assert [event.value for event in events.Scalars("progress/answers_sampled")] == [8, 16]


def test_the_first_page_has_no_chart_without_curves():
    few = layout(module_of())
    assert "2 Does hindsight help?" not in few
    titles = {title for charts in few.values() for title in charts}
    assert not titles & {"Reward: revisions", "KL to the reference", "Bonus paid"}
    assert layout(module_of(hindsight=RevisionBuilder(), loss=PolicyLoss(kl_coef=0.1))) == LAYOUT


def test_a_chart_has_one_curve_since_a_run_has_one_color():
    assert all(
        len(curves) == 1 for charts in (LAYOUT | GOLD_LAYOUT).values() for _, curves in charts.values()
    )


def test_the_limit_of_records_is_said_once(tmp_path, caplog):
    recorder = RecordAnswers(str(tmp_path / "records"), max_answers=8)
    fit(module_of(), tmp_path, callbacks=[recorder], max_epochs=3)  # 8 answers per batch
    lines = (tmp_path / "records" / "answers-00000.jsonl").read_text().splitlines()
    assert len(lines) == 8
    assert caplog.text.count("8 answers are recorded; later ones are not") == 1


def test_a_batch_with_few_answers_does_not_look_like_a_collapse():
    means, counts = np.array([0.8, 0.8, 0.1, 0.8, 0.8]), np.array([64, 64, 2, 64, 64])
    assert smooth(means, counts, 1).min() > 0.78
    assert np.allclose(smooth(means, counts, 0), means)


def test_the_picture_of_rewards_tells_its_curves_apart_and_needs_none_of_them():
    many = [(step, step / 50, 1 + step % 7) for step in range(50)]
    empty = reward_picture({"heldout": [], "train": [], "revision": []}, "x")
    drawn = reward_picture({"heldout": many[::10], "train": many, "revision": many[:1]}, "x")
    assert empty.shape == drawn.shape
    colors = {tuple(color) for color in drawn.reshape(-1, 3)}
    assert {(31, 119, 180), (127, 127, 127), (255, 127, 14)} <= colors
