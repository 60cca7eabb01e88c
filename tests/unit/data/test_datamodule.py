from dataclasses import dataclass, replace

import lightning as L
import pytest
import torch

from herl import ConfigError, DataError
from herl.callbacks import Checkpoints
from herl.data import RubricDataModule
from herl.data.animals import animals
from herl.data.datamodule import fingerprint
from herl.data.instructions import KINDS, TOPICS, instruction_tasks, verifiable_instructions
from herl.data.mix import MixedTasks
from herl.data.sources import read_tasks
from herl.distributed import rank
from herl.judge.instruction_following import load_checkers
from herl.testing import make_task
from herl.types import Criterion, Rubric
from tests.support.ranks import run_on_ranks

TASKS = [make_task(id=str(i)) for i in range(10)]


def order(data, epoch):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [task.id for batch in loader for task in batch]


def test_batches_are_lists_of_tasks_and_every_prompt_comes_once_an_epoch():
    data = RubricDataModule(TASKS, prompts_per_batch=4)
    assert [len(batch) for batch in data.train_dataloader()] == [4, 4, 2]
    assert sorted(order(data, 0)) == sorted(task.id for task in TASKS)


def test_the_order_is_a_function_of_seed_and_epoch():
    first = order(RubricDataModule(TASKS, seed=1), 0)
    assert first == order(RubricDataModule(TASKS, seed=1), 0)
    assert first != order(RubricDataModule(TASKS, seed=1), 1)
    assert first != order(RubricDataModule(TASKS, seed=2), 0)


def test_bad_data_is_refused():
    with pytest.raises(DataError, match="data.train: expected at least one prompt"):
        RubricDataModule([])
    with pytest.raises(DataError, match=r"data.train: expected unique task ids, got \['0'\] more than once"):
        RubricDataModule([TASKS[0], TASKS[0]])
    with pytest.raises(ConfigError, match="prompts_per_batch"):
        RubricDataModule(TASKS, prompts_per_batch=0)


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("content", ["", '{"question_text": "Hi", "rubric": ["Greets."]}'])
def test_training_prompts_do_not_take_the_place_of_a_heldout_file_without_prompts(tmp_path, content, share):
    (tmp_path / "held.jsonl").write_text(content)
    heldout = read_tasks(
        tmp_path / "held.jsonl", on_bad_row="skip", quarantine=str(tmp_path / "bad_rows_heldout.jsonl")
    )
    with pytest.raises(DataError, match="data.heldout: expected at least one prompt, got none from .*held"):
        RubricDataModule(TASKS, heldout, heldout_share=share)
    assert not RubricDataModule(TASKS, read_tasks(None)).heldout


def test_animals_hold_two_animals_per_verb_and_class_out():
    data = animals()
    assert (len(data.train), len(data.heldout)) == (288, 72)
    assert not {t.request for t in data.train} & {t.request for t in data.heldout}
    criteria = data.train[0].rubric.criteria
    assert len(criteria) == 6
    assert sum(c.undesirable for c in criteria) == 1


def test_the_regime_is_the_weight_of_the_word_limit():
    for regime, weight in (("tight", 6.0), ("loose", 2.0)):
        found = {c.weight for t in animals(regime).train for c in t.rubric.criteria if c.id == "length"}
        assert found == {weight}


def test_the_rubric_is_hidden():
    """No request gives its rubric away: for one animal, the requests differ only in the six verbs."""
    assert len({task.request.split(" ", 1)[1] for task in animals().train}) == 60


def test_instructions_have_24_kinds_to_train_on_and_others_held_out():
    train, heldout = ({kind.instruction_id for kind in KINDS[split]} for split in ("train", "heldout"))
    assert len(train) >= 24
    assert len(heldout) >= 5
    assert not train & heldout
    assert not set(TOPICS["train"]) & set(TOPICS["heldout"])


def test_instruction_prompts_carry_one_to_three_checks_of_different_families():
    tasks = instruction_tasks("train", 300)
    family = {kind.instruction_id: kind.family for kinds in KINDS.values() for kind in kinds}
    seen = set()
    for task in tasks:
        families = [family[c.id] for c in task.rubric.criteria]
        assert 1 <= len(families) == len(set(families)) <= 3
        assert all(c.text in task.request for c in task.rubric.criteria)
        seen |= {c.id for c in task.rubric.criteria}
    assert seen == {kind.instruction_id for kind in KINDS["train"]}


def test_instruction_prompts_are_a_function_of_seed_split_and_index():
    assert instruction_tasks("train", 5) == instruction_tasks("train", 9)[:5]
    assert instruction_tasks("train", 5) != instruction_tasks("train", 5, seed=1)
    assert verifiable_instructions(seed=1).heldout == verifiable_instructions(seed=2).heldout


def test_every_kind_has_a_checker_that_takes_its_arguments():
    checkers = load_checkers()
    for split in ("train", "heldout"):
        for task in instruction_tasks(split, 200):
            for criterion in task.rubric.criteria:
                instruction = criterion.check["instruction_id"]
                checker = checkers[instruction](instruction)
                assert isinstance(checker.build_description(**criterion.check["kwargs"]), str)


def test_a_fingerprint_tells_other_prompts_apart_and_bears_fields_that_a_later_version_adds():
    @dataclass(frozen=True, slots=True, kw_only=True)
    class LaterCriterion(Criterion):
        later: bool = True

    def task(kind, **changes):
        criterion = {"id": "a", "text": "Says a.", "check": {"kind": "contains", "text": "a"}} | changes
        return replace(make_task(), rubric=Rubric(criteria=(kind(**criterion),)))

    known = fingerprint([task(Criterion)])
    assert fingerprint([task(LaterCriterion)]) == known
    for changes in ({"weight": 2.0}, {"later": False}, {"check": {"kind": "contains", "text": "b"}}):
        assert fingerprint([task(LaterCriterion, **changes)]) != known
    assert fingerprint([task(Criterion)] * 2) != known


class Notes(L.LightningModule):
    """Notes the prompts that it is given; as much of a module as checkpoints need."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.batches = [], []
        self.got, self.expected = [], []  # whole batches, and what was said to follow each

    def training_step(self, batch, batch_idx):
        self.seen += [(self.current_epoch, task.id) for task in batch]
        self.batches.append((self.current_epoch, batch_idx))
        self.got.append((self.current_epoch, batch_idx, batch))
        self.expected.append(self.trainer.datamodule.following(self.current_epoch, batch_idx))

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(L.Callback):
    """Saves before one batch, as `Checkpoints` does, or at the end of the epoch, and ends the run."""

    def __init__(self, folder, batch):
        self.checkpoints, self.batch, self.path = Checkpoints(str(folder)), batch, str(folder / "last.ckpt")

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == self.batch:
            self.checkpoints._save_between_batches(trainer, batch_idx)
            raise KeyboardInterrupt

    def on_train_epoch_end(self, trainer, module):
        self.checkpoints._save(trainer, "batch-epoch.ckpt")
        raise KeyboardInterrupt


def trained(folder, size, batch=None, resume=None, epochs=2, **changes):
    module, data = (
        Notes(),
        RubricDataModule(**{"train": TASKS, "prompts_per_batch": size, "seed": 3} | changes),
    )
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[SaveAt(folder, batch)] if resume is None else [],
    )  # fmt: skip
    if resume is None:
        with pytest.raises(SystemExit):
            trainer.fit(module, data)
    else:
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return module


@pytest.mark.parametrize("size", [1, 2, 3, 4, 20])
@pytest.mark.parametrize(("old", "batch"), [(2, 1), (2, 3), (4, 2), (3, 1), (1, 7), (4, None), (1, None)])
def test_a_resumed_run_may_change_the_size_of_batches_and_sees_each_prompt_once(tmp_path, old, batch, size):
    before = trained(tmp_path, old, batch)
    after = trained(tmp_path, size, resume=tmp_path / "last.ckpt")
    expected = [(epoch, id) for epoch in (0, 1) for id in order(RubricDataModule(TASKS, seed=3), epoch)]
    assert before.seen + after.seen == expected
    for run in (before, after):
        assert run.got[1:] == run.expected[: len(run.got) - 1]
    per_epoch = -(-len(TASKS) // size)
    assert after.batches[-per_epoch:] == [(1, number) for number in range(per_epoch)]
    assert [number for epoch, number in after.batches if epoch == 0][-1:] in ([], [per_epoch - 1])


def mix(**weights):
    parts = {name: [replace(make_task(id=f"{name}{n}"), source=name) for n in range(9)] for name in "ab"}
    return {"train": MixedTasks(parts, weights)}


@pytest.mark.parametrize(("old", "batch", "size"), [(2, 3, 2), (4, 2, 3), (3, None, 4), (1, 13, 1)])
def test_a_mix_is_resumed_where_it_stopped(tmp_path, old, batch, size):
    before = trained(tmp_path, old, batch, **mix(a=2, b=1))
    after = trained(tmp_path, size, resume=tmp_path / "last.ckpt", **mix(a=2, b=1))
    whole = RubricDataModule(**mix(a=2, b=1), prompts_per_batch=2, seed=3)
    expected = [(epoch, id) for epoch in (0, 1) for id in order(whole, epoch)]
    assert before.seen + after.seen == expected
    for run in (before, after):
        assert run.got[1:] == run.expected[: len(run.got) - 1]


def test_other_weights_are_refused_on_a_resume(tmp_path):
    trained(tmp_path, 2, 2, **mix(a=2, b=1))
    message = "data.train.sources: expected the checkpoint's weights {'a': 2, 'b': 1}, got "
    for weights, got in (({"a": 2, "b": 2}, "{'a': 2, 'b': 2}"), ({}, "none")):
        with pytest.raises(ConfigError, match=message + got):
            trained(tmp_path, 2, resume=tmp_path / "last.ckpt", **mix(**weights))
    trained(tmp_path, 2, 2, **mix())
    with pytest.raises(ConfigError, match="the checkpoint's weights none, got {'a': 1, 'b': 1}"):
        trained(tmp_path, 2, resume=tmp_path / "last.ckpt", **mix(a=1, b=1))


def test_another_order_of_prompts_is_refused(tmp_path):
    trained(tmp_path, 2, 2)
    message = r"data.seed: expected the checkpoint's 3, got 4: the order of prompts is a hash of it"
    with pytest.raises(ConfigError, match=message):
        trained(tmp_path, 2, resume=tmp_path / "last.ckpt", seed=4)
    with pytest.raises(DataError, match="prompts that the run began with.*data.heldout_share .0 if the run"):
        trained(tmp_path, 2, resume=tmp_path / "last.ckpt", train=[*TASKS[1:], TASKS[0]])


def test_every_prompt_of_a_large_file_counts():
    tasks = [make_task(id=str(i)) for i in range(1000)]
    swapped = [*tasks[:500], tasks[501], tasks[500], *tasks[502:]]
    assert fingerprint(tasks) != fingerprint(swapped)


def test_own_held_out_prompts_go_before_a_share():
    data = RubricDataModule([make_task(id="a")], [make_task(id="b")], heldout_share=0.5)
    assert [task.id for task in data.heldout] == ["b"]


def test_overfitting_takes_the_first_prompts_in_every_epoch_for_training_and_for_validation(tmp_path):
    module, data = Notes(), RubricDataModule(TASKS, TASKS[5:], prompts_per_batch=2, seed=3)
    validated = []
    module.validation_step = lambda batch, batch_idx: validated.extend(task.id for task in batch)
    trainer = L.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, overfit_batches=1,
        num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, data)
    trainer.validate(module, data, verbose=False)
    assert module.seen == [(epoch, id) for epoch in range(3) for id in ("0", "1")]
    assert validated == ["0", "1"] * 4
    assert module.got[1:] == module.expected[:-1]


ROWS = [make_task(id=str(n), request=f"Prompt {n}.") for n in range(20)]
ALL = RubricDataModule(ROWS)
SPLIT = RubricDataModule(ROWS, heldout_share=0.3)
OTHERS = [make_task(id=str(n), request=f"Other {n}.") for n in range(20)]


@pytest.mark.parametrize(
    ("trained", "now", "count"),
    [
        (SPLIT.state_dict(), RubricDataModule(ROWS, heldout_share=0.3), 0),
        (SPLIT.state_dict(), RubricDataModule(OTHERS, heldout_share=0.3), 0),
        (SPLIT.state_dict(), RubricDataModule(OTHERS, OTHERS), 0),
        (ALL.state_dict(), SPLIT, len(SPLIT.heldout)),
        (SPLIT.state_dict(), RubricDataModule(ROWS, ROWS), len(SPLIT.train)),
        (SPLIT.state_dict(), RubricDataModule(OTHERS, [*OTHERS, SPLIT.train[0]][1:]), 1),
        (ALL.state_dict(), RubricDataModule(ROWS, ROWS), len(ROWS)),
        (ALL.state_dict(), RubricDataModule(OTHERS, heldout_share=0.3), 0),
    ],
)
def test_held_out_prompts_that_a_checkpoint_was_trained_on_are_a_warning(trained, now, count, caplog):
    now.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    now.load_state_dict(trained)
    said = f"prompts that the checkpoint was trained on ({count} of {len(now.heldout)})"
    assert (said in caplog.text) == bool(count)
    assert sum(record.name.startswith("herl") for record in caplog.records) == bool(count)


@pytest.mark.parametrize("settings", [{"heldout_share": 0.5}, {"heldout_share": 0.3, "heldout_seed": 1}])
def test_another_split_of_the_same_rows_is_a_warning(settings, caplog):
    now = RubricDataModule(ROWS, **settings)
    now.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    now.load_state_dict(SPLIT.state_dict())
    assert "these held-out prompts include prompts that the checkpoint was trained on" in caplog.text


@pytest.mark.parametrize(("count", "share"), [(1, 0.1), (5, 1.0), (5, -0.1)])
def test_a_share_that_leaves_nothing_is_an_error(count, share):
    with pytest.raises(ConfigError, match="data.heldout_share: expected"):
        RubricDataModule([make_task(id=str(n), request=f"{n}?") for n in range(count)], heldout_share=share)


class Torn(list):
    """Tasks of a file that one rank cannot read to its end."""

    def __iter__(self):
        for place, task in enumerate(super().__iter__()):
            if rank() == 1 and place == 3:
                raise DataError("rows.jsonl:4: expected a JSON object, got the end of the file")
            yield task


def _other_prompts_on_rank_one():
    changed = [
        replace(task, rubric=Rubric(criteria=task.rubric.criteria[:1])) if task.id == "7" else task
        for task in TASKS
    ]
    cases = {
        "same": (TASKS, ""),
        "contents": (changed, "prompt 8 is '7' on rank 0 and '7' on rank 1, with other contents"),
        "order": (TASKS[:4] + TASKS[:3:-1], "prompt 5 is '4' on rank 0 and '9' on rank 1. Do all"),
        "fewer": (
            TASKS[:6],
            "got 10 on rank 0 and 6 on rank 1: prompt 7 is '6' on rank 0 and missing on rank 1",
        ),
    }
    for others, message in cases.values():
        for name in ("train", "heldout"):
            own = {"train": TASKS, "heldout": TASKS[:2], name: others if rank() else TASKS}
            data = RubricDataModule(own["train"], own["heldout"])
            if not message:
                data.setup("fit")
                continue
            with pytest.raises(DataError) as error:
                data.setup("fit" if name == "train" else "validate")
            assert f"data.{name}: expected the same prompts on all ranks" in str(error.value)
            assert message in str(error.value)
    for name in ("seed", "prompts_per_batch"):
        with pytest.raises(ConfigError, match=r"the same seed and prompts_per_batch on all ranks, got \[\("):
            RubricDataModule(TASKS, **{name: 5 + rank()}).setup("fit")
    data = RubricDataModule(TASKS)
    data.train = Torn(TASKS)
    with pytest.raises(DataError, match="the end of the file"):
        data.setup("fit")


def test_prompts_that_differ_between_ranks_are_refused_on_all_of_them(tmp_path):
    run_on_ranks(_other_prompts_on_rank_one, 2, tmp_path)
