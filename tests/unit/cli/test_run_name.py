"""Folders of runs are named after data and changes, and never after a secret."""

import re

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from herl.cli.run_name import LONGEST, register, run_name
from herl.config.check import conf_dir


@pytest.mark.parametrize(
    ("verb", "typed", "expected"),
    [
        ("fit", ["experiment=embedded"], "embedded_herl"),
        ("fit", ["experiment=embedded", "algorithm=grpo", "seed=3"], "embedded_grpo_seed-3"),
        ("fit", ["data=file", "data.train.path=in/my rows.jsonl"], "my-rows_herl"),
        ("fit", ["model.path=Qwen/Qwen2.5-0.5B-Instruct"], "animals_herl_Qwen2.5-0.5B-Instruct"),
        ("fit", ["judge=llm", "+optimizer.eps=1e-6"], "animals_herl_judge-llm_eps-1e-6"),
        ("fit", ["hydra.job.chdir=true", "resume=auto", "data.heldout.path=x.jsonl"], "animals_herl"),
        ("lint", ["experiment=embedded"], "lint_embedded_herl"),
        ("validate", ["seed=1", "run=runs/2026_first/"], "validate_2026_first"),
        (
            "fit",
            ["judge.chat.api_key=sk-abcdefgh12345", "judge.chat.base_url=http://me:pw@host"],
            "animals_herl",
        ),
        ("fit", ["judge.chat.model='a b/$(c)'"], "animals_herl_model-c"),
        ("fit", ["judge.chat.arguments=[--some,value]", "+x.y={a:b}", "x.host=me@host"], "animals_herl"),
        ("fit", ["+judge.pass=hunter2", "+optimizer.amsgrad=true"], "animals_herl_amsgrad-true"),
        ("fit", ["data=file", "data.train.path=https://h/rows?token=abc"], "file_herl"),
        (
            "validate",
            [f"run=runs/2026-01-31_12-00-00_my_rows_grpo_{'lr=1e-5_' * 9}"],
            "validate_2026-01-31_12-00-00_my_rows_grpo_lr-1e-5_lr-1e-5_lr"[:LONGEST],
        ),
        (
            "validate",
            ["run=runs/2026-01-31_12-00-00_my_rows_grpo_lr=1e-5_seed=1"],
            "validate_2026-01-31_12-00-00_my_rows_grpo_lr-1e-5_seed-1",
        ),
    ],
)
def test_a_name_says_what_a_run_is_about(verb, typed, expected):
    choices = {"data": "animals", "algorithm": "herl", "experiment": "none"}
    given = dict(one.split("=", 1) for one in typed)
    choices |= {name: given[name] for name in choices if name in given}
    assert run_name(verb, choices, typed) == expected


def test_a_name_is_short_and_needs_no_quotes():
    typed = [f"group.key{n}=value {n}; 'quoted' {'x' * 50}" for n in range(20)]
    name = run_name("fit", {"data": "animals", "algorithm": "herl"}, typed)
    assert len(name) <= LONGEST
    assert re.fullmatch(r"[A-Za-z0-9.+_-]+", name)
    [parsed] = OverridesParser.create().parse_overrides([f"run=runs/{name}"])
    assert parsed.value() == f"runs/{name}"


@pytest.mark.parametrize(
    ("verb", "typed", "root"),
    [
        ("fit", ["experiment=embedded"], "runs"),
        ("fit", ["experiment=embedded", "dry_run=true"], "outputs"),
        ("lint", [], "outputs"),
        ("validate", [], "outputs"),
        ("export", [], "outputs"),
    ],
)
def test_only_training_runs_are_where_tensorboard_looks(verb, typed, root):
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose(verb, typed, return_hydra_config=True)
    folder = OmegaConf.select(config, "hydra.run.dir")
    assert re.fullmatch(rf"{root}/\d{{4}}-\d\d-\d\d_\d\d-\d\d-\d\d_[\w-]+", folder)
