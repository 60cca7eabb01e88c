"""No report, table, picture or logger ends a run; what is no report does."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from lightning.pytorch.loggers.logger import DummyLogger

from herl.callbacks import Dashboard
from herl.callbacks.heat_map import heat_map
from herl.callbacks.reward_picture import reward_picture
from herl.cli import summary
from herl.display.may_fail import may_fail
from herl.display.picture import label
from herl.loggers import Table, write_picture, write_table
from herl.loggers.go_on import CALLS, going_on
from herl.report.page import try_report
from tests.unit.display.hostile import EVIL, controls


class Broken(DummyLogger):
    """A tracker whose every call fails."""

    def log_table(self, *_, **__):
        raise ConnectionError("no network\nand more")

    log_image = log_table


for name in CALLS:
    setattr(Broken, name, Broken.log_table)


class Kept(DummyLogger):
    def __init__(self):
        super().__init__()
        self.got = []

    def log_table(self, key, columns, data, *, step=None):
        self.got.append(key)

    def log_image(self, key, images, step=None):
        self.got.append(key)


def test_an_error_is_one_line_with_its_cause(caplog):
    told = set()
    for _ in range(3):
        with may_fail("the picture", told):
            raise ValueError(f"{EVIL}\nmore")
    [line] = caplog.messages
    assert line.startswith("cannot write the picture: ValueError: ")
    assert "\n" not in line
    with pytest.raises(BrokenPipeError), may_fail("the summary", passes=(BrokenPipeError,)):
        raise BrokenPipeError
    with pytest.raises(KeyboardInterrupt), may_fail("the summary"):
        raise KeyboardInterrupt


def test_a_tracker_that_fails_costs_one_warning_and_the_others_get_all(caplog):
    broken, kept = going_on(Broken()), Kept()
    trainer = SimpleNamespace(is_global_zero=True, loggers=[broken, kept])
    for place in range(3):
        broken.log_metrics({"a": 1.0}, step=place)
        broken.save()
        write_table(trainer, "answers", Table(columns=("a",), rows=((1,),)), place)
        write_picture(trainer, "curve", np.zeros((2, 2, 3), np.uint8), place)
    broken.finalize("success")
    assert kept.got == ["answers", "curve"] * 3
    assert len(caplog.messages) == 3
    assert all("ConnectionError: no network. The run goes on" in line for line in caplog.messages)


def test_a_dashboard_that_cannot_draw_costs_a_warning(monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("no font")

    monkeypatch.setattr("herl.callbacks.dashboard.reward_picture", broken)
    monkeypatch.setattr("herl.callbacks.dashboard._writers", broken)
    dashboard = Dashboard(every_n_batches=1)
    dashboard.rewards["train"] = [(1, 0.5, 4), (2, 0.5, 4)]
    trainer = SimpleNamespace(is_global_zero=True, loggers=[Kept()], state=SimpleNamespace(fn="validate"))
    module = SimpleNamespace(log_over="answers_sampled", counts={"answers_sampled": 3})
    group = SimpleNamespace(attempts=(), revisions=())
    step = SimpleNamespace(metrics={}, collection=SimpleNamespace(groups=[group]))
    dashboard.on_start(trainer, module)
    for _ in range(2):
        dashboard.on_step(trainer, module, step)
        dashboard.on_heldout(trainer, module, ())
    assert dashboard.batches == 2
    assert [line.split(":")[0] for line in caplog.messages] == [
        "cannot write the dashboard's layout", "cannot write the pictures of the dashboard",
        "cannot write the texts of the dashboard", "cannot write the held-out answers of the dashboard",
    ]  # fmt: skip


def test_the_summary_is_written_before_any_report_and_a_full_disk_for_these_is_a_warning(
    tmp_path, monkeypatch, caplog
):
    def full(*_, **__):
        assert (tmp_path / "summary.json").is_file()
        assert (tmp_path / "config.yaml").is_file()
        raise OSError(28, "No space left on device")

    for name in ("_first_card", "_show"):
        monkeypatch.setattr(summary, name, full)
    monkeypatch.setattr("herl.report.page.write_report", full)
    monkeypatch.setattr(summary, "_summary", lambda *_: {"seed": 1})
    run = SimpleNamespace(trainer=SimpleNamespace(is_global_zero=True))
    config = summary.OmegaConf.create({"output_dir": str(tmp_path)})
    assert summary.finish(config, run, {}) == {"seed": 1}
    assert len(caplog.messages) == 3
    assert all("No space left" in line for line in caplog.messages)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyError("x"), RuntimeError("font")]
)
def test_whatever_ends_the_page_is_a_warning(tmp_path, monkeypatch, caplog, error):
    def fails(*_):
        raise error

    monkeypatch.setattr("herl.report.page.read_run", fails)
    assert try_report(tmp_path) == []
    assert type(error).__name__ in caplog.text


NAMES = ["$x_$", "formula in $$", "a_{b", r"\frac{", "$\\nope$", "日本 😀", EVIL, "two\nlines", ""]


def test_pictures_show_names_literally(monkeypatch):
    drawn = []
    from matplotlib.text import Text

    real = Text.set_text
    monkeypatch.setattr(Text, "set_text", lambda self, s: (drawn.append(str(s)), real(self, s))[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = heat_map([(n, dict.fromkeys(NAMES, 0.5)) for n in range(3)], "$t_$", "$x_$")
        reward_picture({"train": [(1, 0.5, 4), (2, 0.6, 4)]}, "$x_$")
    assert picture.shape[2] == 3
    assert {"$x_$", "formula in $$", "two lines"} <= set(drawn)
    assert not controls("".join(drawn))
    assert len(label(EVIL * 3, 40)) <= 40
