import pytest

from herl import ConfigError
from herl.config.build import _gold_judges, _several, make
from herl.config.gold import check_gold
from tests.support.configuration import composed


@pytest.mark.parametrize(("chosen", "count"), [("[]", 0), ("[csv]", 1), ("[tensorboard,csv]", 2)])
def test_none_one_or_several_loggers_are_made(chosen, count, tmp_path):
    assert len(_several(composed("fit", f"logger={chosen}", output_dir=tmp_path), "logger")) == count


@pytest.mark.parametrize("chosen", ["[]", "[refresh_sampler,progress]"])
def test_settings_of_a_callback_that_was_not_chosen_are_named(chosen):
    """The embedded experiment sets the budget of answers."""
    with pytest.raises(
        ConfigError, match=r"callbacks.answer_budget: expected an object with _target_, got .*answers"
    ):
        _several(composed("fit", f"callbacks={chosen}"), "callbacks")


def test_a_component_that_lacks_a_method_is_named_by_its_key(tmp_path):
    """Not by Hydra's text, which hides what is missing in a traceback."""
    with pytest.raises(
        ConfigError, match=r"environment: Can't instantiate abstract class Environment .*step"
    ):
        make(
            composed(
                "fit",
                "environment=none",
                "environment._target_=herl.environment.Environment",
                output_dir=tmp_path,
            ).environment
        )


class Exits:
    def __init__(self):
        raise SystemExit("no key")


def test_a_component_that_exits_while_it_is_built_is_named_by_its_key_and_line(tmp_path):
    """The program would end without a word."""
    node = composed("fit", "environment=none", f"environment._target_={__name__}.Exits", output_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"environment: .*test_build.py:\d+ called sys.exit\('no key'\)"):
        make(node.environment)


def test_an_object_that_was_set_to_null_is_left_out(tmp_path):
    nodes = composed("fit", "logger=[tensorboard,csv]", "logger.csv=null", output_dir=tmp_path)
    assert [type(one).__name__ for one in _several(nodes, "logger")] == ["TensorBoardLogger"]


def test_a_further_judge_that_was_set_to_null_is_left_out(tmp_path):
    config = composed(
        "fit", "+judge@further_judges.gold=rule", "further_judges.gold=null", output_dir=tmp_path
    )
    check_gold(config)
    assert _gold_judges(config, {"train": (), "heldout": ()}) is None
