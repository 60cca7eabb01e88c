"""Composes herl's configurations in tests, as the command line does."""

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from herl.config.check import conf_dir


def composed(verb="fit", *overrides, output_dir="out"):
    """Returns the configuration of a verb, with Hydra's own part resolved and taken out."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose(verb, [f"output_dir={output_dir}", *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
    OmegaConf.set_struct(config, False)
    config.pop("hydra")
    OmegaConf.set_struct(config, True)
    return config
