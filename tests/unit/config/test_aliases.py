"""What people type for a setting is read as they meant it, and a line says so."""

import pytest
from hydra import compose, initialize_config_dir

from herl.cli import main as cli
from herl.config.aliases import ADAPTERS, ALIASES, CHOICES, meant, translated
from herl.config.check import conf_dir, known_keys


def composed(*overrides):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("fit", [*overrides, "output_dir=x"])


def test_every_alias_stands_for_a_key_and_hides_none():
    files = [f"data.{split}.path=x.jsonl" for split in ("train", "heldout")]
    keys = set(known_keys(composed("lora=lora", "judge=llm", "data=file", *files)))
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        keys |= set(known_keys(compose("export", ["output_dir=x"])))
    aliases = ALIASES | ADAPTERS
    assert {name for name in aliases.values() if not name.startswith("hydra.")} <= keys
    assert not (set(aliases) | set(CHOICES)) & keys - {"output_dir"}, "output_dir is set by hydra.run.dir"
    for values in CHOICES.values():
        for one in values.values():
            composed(one)


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("lr=1e-5", ["optimizer.lr=1e-5"]),
        ("lora.r=8", ["lora=lora", "model.lora.rank=8"]),
        ("lora=true", ["lora=lora"]),
        ("bf16=True", ["trainer.precision=bf16-mixed"]),
        ("use_vllm=true", ["sampler=vllm"]),
        ("data=my.jsonl", ["data=file", "data.train.path=my.jsonl"]),
        ("data=hf:me/rows:train", ["data=file", "data.train.path=hf:me/rows:train"]),
        ("data.heldout=0.2", ["data.heldout_share=0.2"]),
        ("data.heldout=held.csv", ["data.heldout.path=held.csv"]),
        ("model=Qwen/Qwen2.5-0.5B-Instruct", ["model.path=Qwen/Qwen2.5-0.5B-Instruct"]),
        ("model=./my_model", ["model.path=./my_model"]),
        ("reward=my.f", ["judge=function", "judge.function=my.f"]),
        ("output_dir=runs/mine", ["hydra.run.dir=runs/mine"]),
    ],
)
def test_an_alias_is_read_as_what_it_stands_for(typed, read):
    assert meant(typed) == read


@pytest.mark.parametrize(
    "override",
    ["seed=1", "data=file", "model=tiny", "lora=lora", "data.heldout.path=x", "~callbacks.dashboard", "+a=1"],
)
def test_settings_of_herl_stay_as_they_are(override):
    assert meant(override) == [override]


def test_a_choice_given_by_hand_is_not_repeated():
    overrides, lines = translated(["lora=lora", "lora.r=8", "lr=1"])
    assert overrides == ["lora=lora", "model.lora.rank=8", "optimizer.lr=1"]
    assert lines == [
        "herl: 'lora.r=8' is read as 'lora=lora model.lora.rank=8'",
        "herl: 'lr=1' is read as 'optimizer.lr=1'",
    ]


def test_a_key_of_the_chosen_data_is_no_alias():
    assert translated(["data=heldout", "data.path=p.jsonl"]) == (["data=heldout", "data.path=p.jsonl"], [])
    assert translated(["data=file", "data.path=p.jsonl"])[0] == ["data=file", "data.train.path=p.jsonl"]


def test_own_data_and_model_get_no_value_of_an_experiment():
    """A file in conf/experiment must not be chosen unless the user names it."""
    own = composed("data=file", "data.train.path=my.jsonl", "model.path=Qwen/Qwen2.5-0.5B-Instruct")
    assert (own.optimizer.lr, own.trainer.max_epochs, own.rollout.attempt.max_new_tokens) == (1e-6, 1, 256)
    none = composed(
        "data=file", "data.train.path=my.jsonl", "model.path=Qwen/Qwen2.5-0.5B-Instruct", "experiment=none"
    )
    assert own == none


def test_a_bare_fit_says_what_can_be_run(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["herl", "fit"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert "herl fit experiment=embedded" in said
    assert len(said.splitlines()) <= 12
    assert max(map(len, said.splitlines())) <= 90
