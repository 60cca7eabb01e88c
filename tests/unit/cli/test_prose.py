"""Prose on the command line reaches herl as it was written."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from herl.cli.prose import quoted
from herl.errors import ConfigError


def value_of(override):
    [parsed] = OverridesParser.create().parse_overrides([quoted(override)])
    return OmegaConf.to_container(OmegaConf.create({"x": parsed.value()}), resolve=True)["x"]


@pytest.mark.parametrize(
    "prompt",
    [
        "Name two rivers, please.", 'Say "no, never".', "It's a=b, c: [d] {e}", "Price: ${HOME} or $5", "a\\b \\\"c\\\" d\\",
        "line one\nline two", '{"prompt": "Hi, you", "rubric": ["Is short."]}', "(a, b)", "1e5", "don't",
        r"\${x}", r"$\${a}$", r"\\${b}", '"Quoted" and "more"', '"a", "b"',
    ],
)  # fmt: skip
def test_a_prompt_is_read_as_it_was_written(prompt):
    assert value_of(f"prompt={prompt}") == prompt


@pytest.mark.parametrize(
    "override",
    [
        "prompt=-",
        "prompt=null",
        "prompt='Quoted, by hand.'",
        "rounds=2",
        "rubric=[\"a, b.\", 'c']",
        "rubric=[]",
    ],
)
def test_everything_else_is_hydras(override):
    assert quoted(override) == override


@pytest.mark.parametrize(
    ("rubric", "criteria"),
    [
        (
            "[Names two rivers, each in Europe., Is one line.]",
            ["Names two rivers, each in Europe.", "Is one line."],
        ),
        ("[Is short., Says 'no'!, Ends well]", ["Is short.", "Says 'no'!", "Ends well"]),
        ("[Is short]", ["Is short"]),
        ("[Costs ${x} dollars, or less., Is {short}.]", ["Costs ${x} dollars, or less.", "Is {short}."]),
        ("Names two rivers, each in Europe.", ["Names two rivers, each in Europe."]),  # without brackets
        ("[]", []),
    ],
)
def test_criteria_are_split_between_sentences(rubric, criteria):
    assert value_of(f"rubric={rubric}") == criteria


@pytest.mark.parametrize(
    "rubric",
    [
        "[Mentions the U.S., France and Spain.]",
        "[Asks Mr., Mrs. or Ms. Smith.]",
        "[Names Paris, Rome.]",
        "[is short, is kind]",
        "[Names rivers, e.g., lakes.]",
        "[Is short, and kind]",
    ],
)
def test_a_comma_that_may_or_may_not_separate_is_an_error_that_shows_quotes(rubric):
    with pytest.raises(ConfigError, match="may be one criterion or two. Quote each one"):
        quoted(f"rubric={rubric}")


@pytest.mark.parametrize(
    "rubric", ['["Quoted one.", Unquoted two, with comma.]', '[Unquoted one, with comma., "Two."]']
)
def test_quotes_around_some_criteria_are_an_error(rubric):
    with pytest.raises(ConfigError, match="all in quotes, or none"):
        quoted(f"rubric={rubric}")


@pytest.mark.parametrize("plus", ["+", "++"])
def test_a_plus_in_front_changes_nothing(plus):
    assert quoted(f"{plus}rubric=[Names two, each in Europe.]") == plus + quoted(
        "rubric=[Names two, each in Europe.]"
    )
