"""Targets of a configuration, found by walking from any module that herl has loaded through what it imported."""

import importlib
import inspect
import sys
from pathlib import Path

from hypothesis import strategies as st
from omegaconf import OmegaConf

from herl.config.check import check
from herl.targets import configured
from tests.support.configuration import composed

ALWAYS = [
    "herl.judge.rule.RuleJudge", "herl.callbacks.RecordAnswers", "herl.data.RubricDataModule",
    "os.system", "builtins.eval", "subprocess.Popen", "runpy.run_path", "pickle.loads", "torch.load", "functools.partial",
    "herl.targets.located", "herl.models.export.torch.load", "herl.targets.os.system", "hydra.utils.instantiate",
    "herl.cli.main.sys.exit", "lightning.pytorch.trainer.call.os.system", "torch.optim.Adam.__init__.__globals__",
    "herl..x", "", ".", "herl", "herl.judge.rule.RuleJudge.judge", "torch.optim.torch.hub.load", "_pickle.loads",
]  # fmt: skip
ROOTS = ("herl", "lightning.pytorch", "torch.optim")
KEYS = (
    "judge",
    "loss",
    "optimizer",
    "data",
    "model",
    "sampler",
    "callbacks.checkpoints",
    "trainer.strategy",
    "x",
)
ALLOWED_FILES = tuple(
    str(Path(importlib.import_module(name).__file__).parent) for name in ("herl", "lightning", "torch.optim")
)
CASE = st.tuples(
    st.sampled_from(KEYS),
    st.sampled_from(ALWAYS) | st.lists(st.integers(0, 10**6), min_size=1, max_size=5).map(lambda steps: _walked(steps)),
)  # fmt: skip


def _walked(steps):
    """A dotted path: a loaded module, then one attribute for each step."""
    names = sorted(name for name in sys.modules if name.startswith(ROOTS) and ".testing" not in name)
    path = names[steps[0] % len(names)]
    found = sys.modules[path]
    for step in steps[1:]:
        attributes = sorted(name for name in vars(found)) if hasattr(found, "__dict__") else []
        if not attributes:
            break
        name = attributes[step % len(attributes)]
        path, found = f"{path}.{name}", vars(found)[name]
    return path


def target(case):
    """It is refused, or it is a public class or function that herl, lightning or torch.optim defines."""
    key, path = case
    config = composed()
    OmegaConf.update(config, key, {"_target_": path}, force_add=True, merge=False)
    found = configured(key, path)
    assert inspect.isclass(found) or inspect.isfunction(found), path
    assert inspect.getfile(found).startswith(ALLOWED_FILES), path
    check(config)
