"""A module with a scripted sampler, and short runs of it."""

from functools import partial

import lightning as L
import torch

from herl.callbacks import HerlCallback, RefreshSampler
from herl.data import RubricDataModule
from herl.judge.rule import RuleJudge
from herl.models.pretrained import PretrainedModel
from herl.module import HerlModule
from herl.rollout.stages import RolloutPlan
from herl.sampler.scripted import ScriptedSampler
from herl.testing import make_task

TASKS = [make_task(id=f"t{i}", request=f"Describe the {name}.") for i, name in enumerate(("otter", "fox"))]


ANSWERS = {task.id: ["It eats fish.", "It is brown.", "It lives in a river.", "fish river"] for task in TASKS}


class KeepSteps(HerlCallback):
    """Keeps the record of each step."""

    def __init__(self):
        self.steps = []

    def on_step(self, trainer, module, step):
        self.steps.append(step)


def module_of(answers=ANSWERS, **changes):
    defaults = {
        "model": PretrainedModel(path="tiny"),
        "sampler": ScriptedSampler(answers, {task.id: ["fish river"] for task in TASKS}),
        "judge": RuleJudge(),
        "rollout": RolloutPlan(attempts_per_prompt=4),
        "optimizer": partial(torch.optim.SGD, lr=0.1),
        "packing": "shared",  # the packing that probing would choose; probing takes longer than a short run
    }
    return HerlModule(**(defaults | changes))


def fit(module, tmp_path, tasks=TASKS, callbacks=(), resume=None, **trainer):
    settings = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "limit_val_batches": 0,
    }
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": tmp_path}
    made = L.Trainer(**(settings | quiet | trainer), callbacks=[RefreshSampler(), *callbacks])
    made.fit(module, RubricDataModule(tasks, prompts_per_batch=2), ckpt_path=resume, weights_only=True)
    return made


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.policy.parameters()])


def initial():
    return torch.cat([p.detach().flatten() for p in PretrainedModel(path="tiny").load().parameters()])
