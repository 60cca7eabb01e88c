import sys

import pytest

from herl import ConfigError
from herl.targets import configured


@pytest.fixture
def user(tmp_path, monkeypatch):
    """A user's module that was allowed, which has imported what no configuration may call."""
    (tmp_path / "users_plugin.py").write_text(
        "import subprocess\nfrom functools import partial\nfrom os import system\nfrom pickle import loads\n"
        "from subprocess import Popen, check_output\n"
        "class Judge:\n    def make(self): ...\n    @classmethod\n    def of(cls): ...\n"
        "def reward(x, y=0): return y\nhalf = partial(reward, y=1)\nshell = partial(system)\nscore = Judge().make\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HERL_ALLOW_TARGETS", "users_plugin")
    yield "users_plugin"
    sys.modules.pop("users_plugin", None)


@pytest.mark.parametrize(
    "path",
    [
        "herl.models.export.torch.load",
        "herl.models.export.torch.jit.load",
        "herl.targets.os.system",
        "herl.cli.run_folder.shutil.rmtree",
        "herl.models.weights.partial",
        "herl.vllm_process.subprocess.Popen",
        "herl.vllm_process.ServerProcess",
        "herl.targets.located",
        "herl.config.build.make",
        "herl.models.export.load_checkpoint",
        "herl.models.push.push",
        "herl.judge",
        "herl.models.pretrained.PretrainedModel.load",
        "lightning.fabric.utilities.cloud_io._load",
        "lightning.pytorch.cli.LightningCLI",
        "lightning.pytorch.cli.instantiate_class",
        "lightning.LightningModule.load_from_checkpoint",
        "lightning.LightningDataModule.load_from_checkpoint",
        "torch.optim.adamw.torch.load",
        "torch.optim.lr_scheduler.partial",
    ],
)
def test_only_what_a_component_is_may_be_named_however_it_is_reached(path):
    with pytest.raises(ConfigError, match=f"x._target_: .*'{path}'"):
        configured("x._target_", path)


@pytest.mark.parametrize(
    "name", ["system", "loads", "Popen", "check_output", "partial", "shell", "subprocess"]
)
def test_an_allowed_module_does_not_lend_what_it_imports(user, name):
    with pytest.raises(ConfigError, match=rf"x._target_: .*'{user}.{name}'"):
        configured("x._target_", f"{user}.{name}")


@pytest.mark.parametrize("name", ["Judge", "reward", "half", "score", "Judge.of"])
def test_an_allowed_module_lends_what_it_defines(user, name):
    assert callable(configured("x._target_", f"{user}.{name}"))


@pytest.mark.parametrize(
    "path",
    ["torch.optim.AdamW", "lightning.Trainer", "lightning.pytorch.callbacks.LearningRateMonitor",
     "lightning.pytorch.loggers.CSVLogger", "lightning.pytorch.profilers.SimpleProfiler",
     "lightning.pytorch.strategies.DDPStrategy", "herl.judge.JudgeRunner", "herl.data.sources.read_tasks",
     "herl.update.loss.policy.PolicyLoss", "herl.judge.aggregation.weighted"],
)  # fmt: skip
def test_components_may_be_named(path):
    configured("x._target_", path)
