"""The lines at the start of a run."""

import pytest
from rich.cells import cell_len

from herl.cli.banner import banner, rounded
from herl.models.pretrained import PretrainedModel


def test_lines_fit_the_screen_and_keep_the_end_of_a_long_value():
    lines = banner(
        {"model": "tiny", "judge": "", "folder": "/very/long" * 20 + "/mine", "data": "\u6f22" * 90}
    )
    assert [line.split()[0] for line in lines] == ["model", "folder", "data"]
    assert all(cell_len(line) <= 80 for line in lines)
    assert lines[1].startswith("folder  ...")
    assert lines[1].endswith("/mine")


@pytest.mark.parametrize(
    ("number", "said"), [(12, "12"), (430_752, "431k"), (134_515_008, "135M"), (7.6e9, "7.6B")]
)
def test_sizes_have_three_digits(number, said):
    assert rounded(number) == said


def test_parameters_are_counted_without_loading_them():
    assert PretrainedModel(path="tiny").parameters() == 430_752
