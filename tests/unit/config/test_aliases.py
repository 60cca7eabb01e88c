"""What people type for a setting is read as they meant it, and a line says so."""

import re

import pytest
from hydra import compose, initialize_config_dir

from herl.config.aliases import (
    ADAPTERS,
    ALIASES,
    CHOICES,
    IMPROVED,
    OF_HELDOUT,
    OTHER_UNITS,
    CommandLine,
    choices,
    meant,
    translated,
)
from herl.config.check import conf_dir, known_keys
from herl.errors import ConfigError


def composed(*overrides):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("fit", [*overrides, "output_dir=x"])


def read(typed, *others, verb="fit", **how):
    """What a command line is read as, without `others`."""
    line = CommandLine(verb=verb, choices=choices([typed, *others]), **how)
    return [one for one in translated([typed, *others], line)[0] if one not in others]


def test_every_alias_stands_for_a_key_and_hides_none():
    files = [f"data.{split}.path=x.jsonl" for split in ("train", "heldout")]
    keys = set(known_keys(composed("lora=lora", "judge=llm", "data=file", *files)))
    targets = {key for name in ALIASES for key in CommandLine().keys(name)} | set(ADAPTERS.values())
    assert targets | set(OF_HELDOUT.values()) | {IMPROVED} <= keys
    assert not (set(ALIASES) | set(ADAPTERS) | set(CHOICES) | set(OTHER_UNITS)) & keys
    for values in CHOICES.values():
        for one in values.values():
            composed(one)


@pytest.mark.parametrize("name", OTHER_UNITS)
def test_a_setting_in_another_unit_is_an_error_that_names_our_key(name):
    with pytest.raises(ConfigError, match=f"^{name}: not a setting of herl, since ") as error:
        translated([f"{name}=4"])
    keys = set(known_keys(composed())) | {"run", "push"}
    named = set(re.findall(r"[a-z_]+(?:\.[a-z_]+)+|push", str(error.value)))
    assert named
    assert named <= keys


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("lr=1e-5", ["optimizer.lr=1e-5"]),
        ("epsilon=0.1", ["loss.clip_low=0.1", "loss.clip_high=0.1"]),
        ("cliprange=0.1", ["loss.clip_low=0.1", "loss.clip_high=0.1"]),
        ("epsilon_high=0.3", ["loss.clip_high=0.3"]),
        (
            "clip=0.1,0.2",
            ["loss.clip_high=0.1,0.2", "loss.clip_low=${loss.clip_high}"],
        ),  # a sweep of two runs
        ("lora.r=8", ["lora=lora", "model.lora.rank=8"]),
        ("lora=true", ["lora=lora"]),
        ("load_in_4bit=true", ["model.quantization=4bit"]),
        ("load_in_8bit=False", ["model.quantization=null"]),
        ("bf16=True", ["trainer.precision=bf16-mixed"]),
        ("use_vllm=true", ["sampler=vllm"]),
        ("data=my.jsonl", ["data=file", "data.train.path=my.jsonl"]),
        ("data=hf:me/rows:train", ["data=file", "data.train.path=hf:me/rows:train"]),
        ("data.path=my.jsonl", ["data=file", "data.train.path=my.jsonl"]),
        ("data.heldout=0.2", ["data.heldout_share=0.2"]),
        ("data.heldout=1e-1", ["data.heldout_share=1e-1"]),
        ("data.heldout=0.1,0.2", ["data.heldout_share=0.1,0.2"]),
        ("data.heldout=null", ["data.heldout_share=0"]),
        ("data.heldout=held.csv", ["data.heldout.path=held.csv"]),
        ("model=Qwen/Qwen2.5-0.5B-Instruct", ["model.path=Qwen/Qwen2.5-0.5B-Instruct"]),
        ("model=./my_model", ["model.path=./my_model"]),
        ("reward=my.f", ["judge=function", "judge.function=my.f"]),
        ("output_dir=runs/mine", ["hydra.run.dir=runs/mine"]),
        ("judge.model=m", ["judge.chat.model=m"]),
    ],
)
def test_an_alias_is_read_as_what_it_stands_for(typed, expected):
    assert read(typed) == expected


@pytest.mark.parametrize(
    "override",
    [
        "seed=1", "data=file", "model=tiny", "lora=lora", "data.heldout.path=x", "~callbacks.dashboard", "+a=1", "++lr=1",
        "data.heldout=my_rows", "hydra.run.dir=runs/mine",
    ],
)  # fmt: skip
def test_settings_of_herl_stay_as_they_are(override):
    assert meant(override) == [override]


def test_a_share_is_below_one():
    with pytest.raises(
        ConfigError, match=r"data.heldout: expected a share of the training prompts below 1.*got 50"
    ):
        meant("data.heldout=50")


@pytest.mark.parametrize(
    ("choice", "typed", "expected"),
    [
        ("judge=llm", "judge.model=m", ["judge.chat.model=m"]),
        ("judge=local", "judge.model=m", ["judge.chat.model.path=m"]),
        ("judge/chat=vllm", "judge.model=m", ["judge.chat.model.path=m"]),
        ("judge=mine", "judge.model=m", ["judge.model=m"]),
        ("judge=mix", "judge.model=m", ["judge.model=m"]),
        ("++judge=mine", "judge.base_url=u", ["judge.base_url=u"]),
        ("optimizer=mine", "optimizer.learning_rate=1", ["optimizer.learning_rate=1"]),
        ("optimizer=adamw", "optimizer.learning_rate=1", ["optimizer.lr=1"]),
        ("data=heldout", "data.path=p.jsonl", ["data.path=p.jsonl"]),
        ("data=my-rows", "data.path=x", ["data.path=x"]),
        ("data=my-rows", "data.heldout=0.2", ["data.heldout=0.2"]),
        ("data=file", "data.path=p.jsonl", ["data.train.path=p.jsonl"]),
        ("lora=none", "lora.rank=8", ["model.lora.rank=8"]),
        ("lora=mine", "lora.rank=4", ["model.lora.rank=4"]),
        ("algorithm=dpo", "beta=0.1", ["loss.beta=0.1"]),
        ("algorithm=grpo", "beta=0.1", ["loss.kl_coef=0.1"]),
    ],
)
def test_keys_and_choices_of_a_component_of_ones_own_are_left_alone(choice, typed, expected):
    assert read(typed, choice) == expected


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("judge.model=m", ["judge.model=m"]),
        ("data.path=p", ["data.path=p"]),
        ("lora.rank=4", ["model.lora.rank=4"]),
        ("lr=1", ["optimizer.lr=1"]),
    ],
)
def test_an_experiment_of_ones_own_may_choose_what_we_do_not_know(typed, expected):
    assert read(typed, "experiment=mine", own_experiment=True) == expected


@pytest.mark.parametrize(
    ("verb", "typed", "expected"),
    [
        ("validate", "n=4", "validation.attempts=4"),
        ("test", "temperature=0", "validation.sampling.temperature=0"),
        ("improve", "max_new_tokens=9", "validation.sampling.max_new_tokens=9"),
        ("improve", "n=4", "module.validation_attempts=4"),
        ("improve", "validation.attempts=4", "module.validation_attempts=4"),
        ("validate", "rollout.top_p=0.9", "validation.sampling.top_p=0.9"),
        ("validate", "lr=1", "optimizer.lr=1"),
        ("fit", "validation.attempts=4", "validation.attempts=4"),
    ],
)
def test_verbs_that_measure_read_short_names_as_settings_of_held_out_answers(verb, typed, expected):
    assert read(typed, verb=verb) == [expected]


@pytest.mark.parametrize("key", ["output_dir", "hydra.run.dir"])
def test_the_folder_of_a_sweep_is_that_of_all_its_runs(key):
    assert read(f"{key}=runs/mine", sweeps=True) == ["hydra.sweep.dir=runs/mine"]
    assert read("hydra.run.dir=a", "hydra.sweep.dir=b", sweeps=True) == ["hydra.run.dir=a"]


def test_a_choice_given_by_hand_is_not_repeated():
    overrides, lines = translated(["lora=lora", "lora.r=8", "lr=1"])
    assert overrides == ["lora=lora", "model.lora.rank=8", "optimizer.lr=1"]
    assert lines == [
        "herl: 'lora.r=8' is read as 'model.lora.rank=8'",
        "herl: 'lr=1' is read as 'optimizer.lr=1'",
    ]


def test_the_table_of_other_programs_words_agrees_with_what_typing_them_sets():
    text = (conf_dir() / "README.md").read_text().split("## TRL's and verl's settings")[1].split("\n## ")[0]
    text = re.sub(r"`[\w.]+` / `[\w.]+`", "", text)  # formulas
    rows = [re.findall(r"`([^`]+)`", line) for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) > 10
    for words in rows:
        for word in words:
            for key in CommandLine().keys(word):
                assert key in words, (word, key)
    named = {word for words in rows for word in words}
    assert {"epsilon", "epsilon_high", "num_generations"} <= named & set(ALIASES)
    assert "actor_rollout_ref.actor.optim.lr" in named


@pytest.mark.parametrize(
    ("overrides", "rate"),
    [
        (["lora=lora"], 1e-5),
        (["lora=lora", "optimizer.lr=3e-5"], 3e-5),
        (["lora=lora", "optimizer=adamw"], 1e-6),
        (["experiment=embedded", "lora=lora"], 1e-3),
        (["experiment=lora"], 1e-4),
        (["lora=none"], 1e-6),
    ],
)
def test_adapters_bring_a_rate_that_gives_way_to_any_other(overrides, rate):
    assert composed(*overrides).optimizer.lr == rate


def test_own_data_and_model_get_no_value_of_an_experiment():
    """A file in conf/experiment must not be chosen unless the user names it."""
    own = composed("data=file", "data.train.path=my.jsonl", "model.path=Qwen/Qwen2.5-0.5B-Instruct")
    assert (own.optimizer.lr, own.trainer.max_epochs, own.rollout.attempt.max_new_tokens) == (1e-6, 1, 256)
    none = composed(
        "data=file", "data.train.path=my.jsonl", "model.path=Qwen/Qwen2.5-0.5B-Instruct", "experiment=none"
    )
    assert own == none
