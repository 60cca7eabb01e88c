"""Tables of held-out answers and of drafts with their revisions."""

from dataclasses import replace

import lightning as L
from lightning.pytorch.loggers.logger import Logger

from herl.callbacks import Dashboard
from herl.callbacks.answer_tables import answer_table, revision_table
from herl.data import RubricDataModule
from herl.hindsight.revision import RevisionBuilder
from herl.prompt_text import visible
from herl.rollout.improve import Trajectory
from herl.testing import make_judged, make_rollout, make_task
from tests.support.made_up_episodes import an_episode
from tests.support.training import TASKS, module_of


class KeepsTables(Logger):
    name, version = "tables", "0"

    def __init__(self):
        self.tables, self.pictures = [], []

    def log_metrics(self, metrics, step=None): ...

    def log_hyperparams(self, params): ...

    def log_table(self, key, columns, data, *, step=None):
        self.tables.append((key, columns, data, step))

    def log_image(self, key, images, step=None):
        self.pictures.append((key, step))


def test_an_answer_has_its_verdicts_in_words_and_its_text_as_written():
    task = make_task({"fish": 1.0, "advert": -1.0, "river": 2.0})
    judged = make_judged(
        0.25,
        met={"fish": True, "advert": True, "river": None},
        rollout=make_rollout("<b>fish</b>\n\x1b[1m advert"),
    )
    table = answer_table([Trajectory(task=task, answers=(judged,))], "answers_sampled", 8)
    [row] = table.rows
    shown = dict(zip(table.columns, row, strict=True))
    verdicts = shown.pop("verdicts").splitlines()
    assert shown == {
        "answers_sampled": 8, "prompt": "Describe the otter.", "answer": "<b>fish</b>\n␛[1m advert", "reward": 0.25,
        "missed": "Avoid: Says advert.",
    }  # fmt: skip
    assert [line[:2] + line[2:].split(" (")[0] for line in verdicts] == [
        "\N{CHECK MARK} Says fish.", "\N{MULTIPLICATION SIGN} Avoid: Says advert.", "? Says river.",
    ]  # fmt: skip


def test_a_revision_lists_what_it_mended_and_broke_and_no_abstention():
    task = make_task({"fish": 1.0, "advert": -1.0, "river": 2.0, "fur": 1.0})
    met = {"fish": False, "advert": False, "river": True, "fur": None}
    draft = make_judged(0.5, met=met, rollout=make_rollout("a"))
    met = {"fish": True, "advert": True, "river": True, "fur": True}
    revision = make_judged(0.75, met=met, rollout=make_rollout("b"))
    table = revision_table([(task, draft, revision)], "optimizer_steps", 3)
    columns = [
        "optimizer_steps",
        "prompt",
        "draft",
        "revision",
        "draft_reward",
        "revision_reward",
        "mended",
        "broken",
    ]
    assert list(table.columns) == columns
    assert table.rows == (
        (3, "Describe the otter.", "a", "b", 0.5, 0.75, "Says fish.", "Avoid: Says advert."),
    )


def test_an_episode_is_its_transcript_whose_parts_are_cut_off_each_on_its_own():
    task, episode = make_task(), an_episode("fish")
    long = replace(episode, turns=(replace(episode.turns[0], text="word " * 1000), episode.turns[1]))
    judged = make_judged(0.5, rollout=long)
    [row] = answer_table([Trajectory(task=task, answers=(judged,))], "answers_sampled", 8).rows
    [both] = revision_table([(task, judged, make_judged(1.0, rollout=make_rollout("b")))], "x", 3).rows
    assert row[2] == both[2]
    assert both[3] == "b"
    start, _, rest = row[2].partition(" ... (5000 characters)")
    assert start == f"[assistant]\n{('word ' * 1000)[:1000]}"
    assert rest == visible(episode.transcript.removeprefix("[assistant]\nLook up otter."))


def test_a_run_writes_answers_after_each_validation_and_drafts_every_n_batches(tmp_path):
    answers = {task.id: ["It eats fish.", "It is brown.", "A river.", "no"] for task in TASKS}
    logger = KeepsTables()
    trainer = L.Trainer(
        max_epochs=4, check_val_every_n_epoch=2, accelerator="cpu", enable_progress_bar=False, logger=logger,
        enable_model_summary=False, num_sanity_val_steps=0, enable_checkpointing=False,
        default_root_dir=tmp_path, callbacks=[Dashboard(every_n_batches=2, heldout_prompts=0, table_rows=1)],
    )  # fmt: skip
    trainer.fit(
        module_of(answers, hindsight=RevisionBuilder()), RubricDataModule(TASKS, TASKS, prompts_per_batch=2)
    )
    places = {key: [step for name, _, _, step in logger.tables if name == key] for key, *_ in logger.tables}
    assert {key: len(steps) for key, steps in places.items()} == {"heldout/answers": 2, "revision/drafts": 2}
    assert all(steps == sorted(set(steps)) for steps in places.values())
    for _, columns, data, step in logger.tables:
        [row] = data
        assert dict(zip(columns, row, strict=True))["answers_sampled"] == step
    drafts = next(data[0] for key, _, data, _ in logger.tables if key == "revision/drafts")
    assert drafts[3] == "fish river"
    assert logger.pictures
    assert {key for key, _ in logger.pictures} == {"0_story/1_rewards", "0_story/3_criteria_train"}
