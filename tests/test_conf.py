"""Every configuration composes, and every `_target_` in it exists, fits its interface and takes its keys."""

from itertools import cycle
from pathlib import Path

import pytest
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from herl import BonusReward, ConfigError, HindsightBuilder, Judge, Replay, Sampler
from herl.advantages.emphasis import EmphasizedAdvantages
from herl.cli.commands import _benchmarked
from herl.config.check import check, conf_dir
from herl.judge import needs_verdicts
from herl.update.loss.base import Loss
from herl.update.loss.policy import PolicyLoss
from herl.update.loss.sft import LikelihoodLoss
from tests.support.configuration import composed

INTERFACES = {
    "sampler": Sampler,
    "judge": Judge,
    "hindsight": HindsightBuilder,
    "bonus": BonusReward,
    "replay": Replay,
    "loss": Loss,
}
GROUPS = sorted(path.name for path in conf_dir().iterdir() if path.is_dir() and path.name != "benchmark")


def choices(group):
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "improve", "export", "lint", "audit"])
def test_primary_configurations_check(verb):
    check(composed(verb))


NEEDED = {
    ("data", "heldout"): ["data.path=a.jsonl"],
    ("data", "file"): ["data.train.path=a.jsonl", "data.heldout.path=b.jsonl"],
    ("data", "mix"): ["data.train.sources={a: {path: a.jsonl, weight: 1}}"],
    ("judge", "llm"): ["judge.chat.base_url=http://x/v1", "judge.chat.model=m"],
    ("judge", "function"): ["judge.function=my_module.my_reward"],
    ("experiment", "own_function"): ["judge.function=my_module.my_reward"],
    ("environment", "tools"): ["environment.functions=[my_tools.lookup]"],
    ("data", "verifiers"): ["data.name=wordle"],
    ("environment", "verifiers"): ["data=verifiers", "data.name=wordle"],
    ("judge", "verifiers"): ["data=verifiers", "data.name=wordle"],
    ("benchmark", "healthbench"): [
        "benchmark.data.path=a.jsonl", "benchmark.judge.grader=healthbench_eval.py",
        "benchmark.judge.chat.base_url=http://x/v1", "benchmark.judge.chat.model=m",
    ],
    ("benchmark", "muldimif"): [
        "benchmark.data.path=test.json", "benchmark.judge.chat.base_url=http://x/v1", "benchmark.judge.chat.model=m",
    ],
}  # fmt: skip
"""Values that a choice cannot supply itself."""


@pytest.mark.integration  # a third of a second each
@pytest.mark.parametrize(
    ("group", "choice"), [(group, choice) for group in GROUPS for choice in choices(group)]
)
def test_every_choice_of_every_group_checks(group, choice):
    check(composed("fit", f"{group}={choice}", *NEEDED.get((group, choice), [])))


@pytest.mark.parametrize("benchmark", choices("benchmark"))
@pytest.mark.parametrize("verb", ["test", "improve"])
def test_every_benchmark_checks(verb, benchmark):
    check(composed(verb, f"benchmark={benchmark}", *NEEDED.get(("benchmark", benchmark), [])))


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_a_benchmark_goes_with_every_experiment(experiment, monkeypatch):
    """An experiment sets data and judge, but the benchmark's take precedence."""
    needed = NEEDED.get(("experiment", experiment), [])
    config = composed("test", "benchmark=ifbench", f"experiment={experiment}", *needed)
    check(config)
    monkeypatch.setattr("herl.cli.commands.make", lambda node: node._target_)
    benchmarked, data = _benchmarked(config, None)
    assert data == "herl.data.prompts.ifbench"
    assert benchmarked.module.judge._target_.endswith("InstructionFollowingJudge")
    assert (benchmarked.module.rollout.heldout.temperature, benchmarked.module.validation_attempts) == (
        0.0,
        1,
    )
    assert list(benchmarked.further_judges) == ["loose"]
    assert OmegaConf.is_interpolation(config.module, "judge"), "the given configuration is unchanged"


def test_an_emphasis_goes_with_all_advantages_that_compare_answers():
    for emphasis in choices("emphasis"):
        for advantages in ("group", "by_criterion"):
            config = composed(
                "fit", f"advantages={advantages}", f"emphasis={emphasis}", "selection.joins=new"
            )
            check(config)
            made = instantiate(config.module.advantages)
            assert isinstance(made, EmphasizedAdvantages) == (emphasis != "none")
            assert needs_verdicts(made) == (emphasis != "none" or advantages == "by_criterion")


def test_dr_grpo_leaves_advantages_unscaled_unless_a_scale_is_typed():
    config = composed("fit", "loss=dr_grpo", "algorithm=grpo")
    check(config)
    assert (config.advantages.scale, config.loss.aggregation) == ("none", "constant")
    assert instantiate(config.loss).constant_length == config.rollout.attempt.max_new_tokens
    assert composed("fit", "loss=dr_grpo", "advantages.scale=group_std").advantages.scale == "group_std"
    with pytest.raises(ConfigError, match=r"advantages.scale: unknown key"):
        check(composed("fit", "loss=dr_grpo", "advantages=ones"))


def test_several_loggers_write_at_once():
    config = composed("fit", "logger=[tensorboard,csv]")
    check(config)
    assert sorted(config.logger) == ["csv", "tensorboard"]


@pytest.mark.parametrize("chat", ["vllm", "local"])
def test_a_model_judges_wherever_it_runs(chat):
    check(composed("fit", "judge=llm", f"judge/chat={chat}"))


def test_a_mix_takes_a_model_for_what_rules_cannot_judge():
    config = composed(
        "fit", "judge=mix", "+judge@judge.judges.model=llm", "judge.default=model",
        "judge.judges.model.chat.base_url=http://x/v1", "judge.judges.model.chat.model=m",
    )  # fmt: skip
    check(config)
    judge = instantiate(config.judge)
    assert sorted(judge.judges) == ["instruction", "model", "rule"]


def test_several_judges_share_the_verdict():
    config = composed(
        "fit", "judge=weighted", "+judge@judge.judges.a=rule", "+judge@judge.judges.b=instruction_following"
    )
    check(config)
    assert sorted(instantiate(config.judge).judges) == ["a", "b"]


@pytest.mark.integration
def test_aggregations_are_chosen_for_any_judge():
    for name, judge in zip(choices("aggregation"), cycle(("rule", "mix")), strict=False):
        config = composed("fit", f"judge={judge}", f"aggregation={name}")
        assert callable(instantiate(config.judge).aggregation)


def test_a_file_of_ones_own_needs_its_path():
    with pytest.raises(ConfigError, match=r"data.train.path: expected a value"):
        check(composed("fit", "data=file"))
    check(composed("fit", "data=file", "data.train.path=a.jsonl", "data.heldout.path=b.jsonl"))


def test_a_mix_needs_its_sources():
    with pytest.raises(ConfigError, match=r"data.train.sources: expected a value"):
        check(composed("fit", "data=mix"))
    mix = "data.train.sources={a: {path: a.jsonl, weight: 7}, b: {path: b.jsonl, weight: 3}}"
    check(composed("fit", "data=mix", mix, "data.heldout.sources={a: {path: c.jsonl}}"))


@pytest.mark.integration
@pytest.mark.parametrize("group", sorted(INTERFACES))
def test_components_subclass_their_interface(group):
    for choice in choices(group):
        config = composed("fit", f"{group}={choice}")
        assert issubclass(get_object(config[group]._target_), INTERFACES[group]), choice


@pytest.mark.parametrize(
    ("chosen", "shown"),
    [
        ("algorithm=herl", False),
        ("hindsight=revision", True),
        ("hindsight.draft=true", True),
        ("algorithm=critique", True),
        ("algorithm=reference", True),
        ("algorithm=reference hindsight.draft=false", False),
        ("hindsight=tied_best", True),
        ("hindsight=tied_best hindsight.draft=false", False),
    ],
)
def test_who_shows_the_draft_in_the_revision_prompt(chosen, shown):
    hindsight = instantiate(composed("fit", *chosen.split()).hindsight)
    assert ("{draft}" in hindsight.template) is shown


def test_presets_are_what_they_say():
    herl, reference, grpo = (composed("fit", f"algorithm={a}") for a in ("herl", "reference", "grpo"))
    assert herl.rollout.training_context == "original"
    assert herl.hindsight.candidates._target_.endswith("top_k")
    assert herl.hindsight.draft is False
    assert (herl.selection.strict, herl.selection.placement) == (True, "replace_worst")
    assert herl.selection.fallback_copies is False
    assert (herl.bonus.alpha, herl.bonus.mode) == (0.05, "signed")
    assert (herl.loss.revision_ratio, herl.loss.revision_shaping) == (
        "same_context",
        "clip",
    )
    assert herl.loss.entropy_coef == 0.01
    assert herl.module.updates_per_batch == 4
    assert herl.replay._target_.endswith("NoReplay")
    assert grpo.replay._target_.endswith("NoReplay")
    assert reference.rollout.training_context == "hindsight"
    assert reference.hindsight.candidates._target_.endswith("tied_best")
    assert reference.selection.fallback_copies is True
    assert (reference.selection.strict, reference.selection.placement) == (False, "replace_random")
    assert (reference.loss.revision_shaping, reference.loss.entropy_coef) == ("shaped", 0.0)
    assert grpo.hindsight._target_.endswith("NoHindsight")
    assert grpo.bonus._target_.endswith("NoBonus")


def test_told_differs_from_herl_only_in_what_the_prompt_shows_and_in_the_bonus():
    herl, told = (OmegaConf.to_container(composed("fit", f"algorithm={a}")) for a in ("herl", "told"))
    assert {key for key in herl if herl[key] != told[key]} == {"hindsight", "bonus"}
    assert told["hindsight"]["_target_"].endswith("ToldBuilder")
    assert told["bonus"]["_target_"].endswith("NoBonus")


def test_two_readings_of_the_paper_differ_only_in_context_and_ratio():
    a, b = (composed("fit", f"algorithm=paper_{name}") for name in "ab")
    for config in (a, b):
        assert config.hindsight.draft is True
        assert config.hindsight.candidates._target_.endswith("top_k")
        assert (config.hindsight.candidates.k, config.selection.top_n) == (2, 2)
        assert (config.selection.strict, config.selection.placement) == (True, "append")
        assert config.selection.fallback_copies is False
        assert (config.loss.revision_shaping, config.loss.gamma) == ("shaped", 1.0)
    assert (a.rollout.training_context, a.loss.revision_ratio) == ("hindsight", "same_context")
    assert (b.rollout.training_context, b.loss.revision_ratio) == ("original", "cross_context")
    parts = [OmegaConf.to_container(config) for config in (a, b)]
    assert {key for key in parts[0] if parts[0][key] != parts[1][key]} == {"loss", "rollout"}


def test_presets_of_baselines_are_what_they_say():
    critique, sft, dpo = (composed("fit", f"algorithm={a}") for a in ("critique", "sft", "dpo"))
    assert (critique.loss.revision_ratio, critique.loss.revision_shaping) == ("policy_prob", "shaped")
    assert critique.rollout.training_context == "original"
    assert critique.bonus._target_.endswith("NoBonus")
    for config in (sft, dpo):
        assert config.hindsight._target_.endswith("NoHindsight")
        assert config.replay._target_.endswith("NoReplay")
    assert isinstance(instantiate(sft.loss), LikelihoodLoss)
    assert instantiate(dpo.loss).beta == 0.1
    assert (sft.selection.best, sft.selection.worst, sft.selection.at_least) == (1, 0, None)
    assert (dpo.selection.best, dpo.selection.worst) == (1, 1)


def test_an_experiment_overrides_components():
    config = composed("fit", "experiment=smollm2_if")
    assert config.model.path == "smollm2-135m-instruct"
    assert config.module.micro_batch_tokens == 2048


def test_the_config_of_a_loss_makes_that_loss():
    loss = instantiate(composed("fit", "loss.mismatch.level=token", "loss.kl_coef=0.1").loss)
    assert isinstance(loss, PolicyLoss)
    assert (loss.mismatch.level, loss.kl_coef) == ("token", 0.1)


def test_all_mistakes_are_reported_at_once_and_each_once():
    config = composed(
        "fit", "loss.clip_low=wide", "+optimizer.lrr=1", "module.warmup_steps=many", "advantages.scale=no"
    )
    with pytest.raises(ConfigError) as error:
        check(config)
    said = str(error.value).splitlines()
    assert said[0] == "4 mistakes:"
    assert sorted(line.split(":")[0].strip() for line in said[1:]) == [
        "advantages.scale", "loss.clip_low", "module.warmup_steps", "optimizer.lrr",
    ]  # fmt: skip


def test_only_trusted_packages_are_named(monkeypatch):
    node = OmegaConf.create({"x": {"y": {"_target_": "subprocess.check_output", "args": "ls"}}})
    with pytest.raises(
        ConfigError, match=r"x.y._target_: expected an object from .*HERL_ALLOW_TARGETS=subprocess"
    ):
        check(node)
    for name in ("herlx.Judge", "torch.load", "torch.optimx.A", "lightningx.Trainer"):
        with pytest.raises(ConfigError, match="expected an object from herl"):
            check(OmegaConf.create({"x": {"_target_": name}}))
    monkeypatch.setenv("HERL_ALLOW_TARGETS", "fractions")
    check(OmegaConf.create({"x": {"_target_": "fractions.Fraction"}}))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            {"_target_": "herl.update.loss.policy.PolicyLoss", "gama": 1},
            r"x.gama: unknown key; .*Did you mean 'gamma'",
        ),
        (
            {"_target_": "herl.update.loss.policy.PolicyLoss", "gamma": "1"},
            r"x.gamma: expected a number, got the text '1'",
        ),
        (
            {"_target_": "herl.update.loss.policy.PolicyLos"},
            r"x._target_: herl.update.loss.policy has no 'PolicyLos'. Did you mean 'PolicyLoss'",
        ),
        ({"_target_": "herl.models.pretrained.PretrainedModel", "path": 3}, r"x.path: expected text, got 3"),
        ({"a": {"_target_": "herl.judge.JudgeRunner"}}, r"x.a.judge: expected a value, got none"),
        ({"_target_": "herl.judge.JudgeRunner", "judge": "???"}, r"judge: expected a value, got none"),
    ],
)
def test_a_wrong_node_names_key_expected_and_got(node, message):
    with pytest.raises(ConfigError, match=message):
        check(OmegaConf.create({"x": node}))


def test_conf_is_found_beside_the_package():
    assert (Path(conf_dir()) / "fit.yaml").is_file()
