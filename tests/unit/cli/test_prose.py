"""Prose on the command line reaches herl as it was written."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from herl.cli.overrides import for_hydra
from herl.cli.prose import path_in, quoted, quoted_path
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


FOLDERS = [
    "it's",
    "perch\u00e9",
    "#1",
    "2024_01",
    "1e5",
    "run, one",
    "a (1)",
    "a=b",
    "a [b] {c}",
    'say "hi"',
    "C: d",
    "back\\slash",
    "two\\",
    "plain/one",
    "auto",
]


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize(
    "key", ["run", "checkpoint", "resume", "out", "records", "data.train.path", "model.path"]
)
def test_a_path_is_read_as_it_was_written(key, folder):
    override = quoted_path(f"{key}={folder}")
    [parsed] = OverridesParser.create().parse_overrides([override])
    assert (parsed.key_or_group, parsed.value()) == (key, folder)
    assert path_in(override.partition("=")[2]) == folder


@pytest.mark.parametrize(
    "override", ["run='a, b'", 'out="a b"', "run=${oc.env:HOME}", "runs=[a,b]", "seed=1,2"]
)
def test_what_is_no_plain_path_is_hydras(override):
    assert quoted_path(override) == override


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_without_a_key_are_read_as_they_were_written(folder):
    folders = [folder for folder in (folder, "other") if "=" not in folder]
    [override] = for_hydra("compare", folders)
    [parsed] = OverridesParser.create().parse_overrides([override])
    assert [str(one) for one in OmegaConf.create(parsed.value())] == folders


def test_values_of_a_sweep_are_hydras():
    assert "run=a,b" in for_hydra("inspect", ["-m", "run=a,b"])
    assert 'run="a,b"' in for_hydra("inspect", ["run=a,b"])


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


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("data=my rows (1).jsonl", 'data="my rows (1).jsonl"'),
        ("model=models/it's", 'model="models/it\'s"'),
        ("model=3b", "model=3b"),
        ("data=mix", "data=mix"),
        ("model=Qwen/Qwen2.5-0.5B-Instruct", "model=Qwen/Qwen2.5-0.5B-Instruct"),
    ],
)
def test_a_choice_of_a_group_stays_and_a_path_in_its_place_is_quoted(given, expected):
    assert quoted_path(given) == expected
