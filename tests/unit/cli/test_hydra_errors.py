"""Hydra's words stay unless ours say the same; ours know the user's own choices."""

import pytest

from herl.cli.hydra_errors import explain

NO_KEY = "Could not override '{}'.\nTo append to your config use +{}=1\nKey '{}' is not in struct"
OTHER = "In algorithm/mine: Multiple values for bonus. To override a value use 'override bonus: none'"


@pytest.fixture
def own(tmp_path):
    for group in ("judge", "algorithm"):
        (tmp_path / group).mkdir()
        (tmp_path / group / "mine.yaml").write_text("own_key: 1\n")
    (tmp_path / "algorithm" / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - /bonus: none\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said", "expected"),
    [
        (
            ["--config-dir", "OWN", "judge=mine", "bogus=1"], NO_KEY.format(*["bogus"] * 3),
            "herl: error: unknown key 'bogus'. Did you mean 'bonus'?\n",
        ),
        (["--config-dir=OWN", "algorithm=mine"], OTHER, OTHER + "\n"),
        (["hydra.searchpath=[file://OWN]", "judge=mine", "judge.own_key=2"], OTHER, OTHER + "\n"),
        (["-cd", "OWN/none", "judge=mine"], OTHER, OTHER + "\n"),
        (
            ["-m", "judge=rule,llm", "bogus=1"], NO_KEY.format(*["bogus"] * 3),
            "herl: error: unknown key 'bogus'. Did you mean 'bonus'?\n",
        ),
        (["judge=rule,llm"], "Ambiguous value for argument", "Ambiguous value for argument\n"),
        (
            ["-m", "--config-dir=OWN", "algorithm=mine,gpro"], "In 'fit': Could not find 'algorithm/gpro'",
            "herl: error: algorithm: expected one of critique, dpo, grpo, herl, mine, paper_a, paper_b, "
            "reference, sft, told, got 'gpro'. Did you mean 'grpo'?\n",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_once_and_truly(own, arguments, said, expected, capsys):
    explain("fit", said, [word.replace("OWN", str(own)) for word in arguments])
    assert capsys.readouterr().err == expected


def test_a_mistake_of_ours_does_not_replace_another_of_hydra(own, capsys):
    explain("fit", OTHER, [f"--config-dir={own}", "judge=nope"])
    assert capsys.readouterr().err.startswith(OTHER + "\nherl: error: judge: expected one of function, ")
