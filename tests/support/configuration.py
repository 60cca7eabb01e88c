"""Composes herl's configurations in tests, as the command line does."""

from copy import deepcopy
from functools import cache

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from herl.config.check import conf_dir


def composed(verb="fit", *overrides, output_dir="out"):
    """Returns the configuration of a verb, with Hydra's own part resolved and taken out. The experiment is the
    embedded one unless another is given."""
    if not any(override.startswith("experiment=") for override in overrides):
        overrides = ("experiment=embedded", *overrides)
    config = deepcopy(_composed(verb, *overrides, f"output_dir={output_dir}"))
    HydraConfig.instance().set_config(config)
    OmegaConf.set_struct(config, False)
    config.pop("hydra")
    OmegaConf.set_struct(config, True)
    return config


@cache  # a third of a second each, and many tests compose the same
def _composed(verb, *overrides):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(verb, list(overrides), return_hydra_config=True)
