"""One process or several: the numbers are the same, and checkpoints work on any number of ranks."""

import json
import socket
import subprocess

import pytest
import torch
from lightning.fabric.utilities.load import _load_distributed_checkpoint
from transformers import AutoModelForCausalLM

from herl.data.animals import animals
from tests.support.runs import (
    CONTINUES_ELSEWHERE,
    HERL,
    SMALL,
    curves,
    environment,
    fit,
    fit_here,
    herl_here,
    summary,
)

pytestmark = CONTINUES_ELSEWHERE
# normalized over the whole batch, on all ranks
GLOBAL = ("loss.kl_coef=0.01", "advantages.scale=batch_std", "loss.aggregation=sequence_mean")
GLOBAL += ("loss.top_entropy_share=0.5",)
SHORT = [o for o in SMALL if "limit_train" not in o and "max_epochs" not in o]
TWO_EPOCHS = ("trainer.limit_train_batches=2", "trainer.val_check_interval=2", "module.warmup_steps=12")
KEPT = ("trainer.strategy.reshard_after_forward=false", "trainer.strategy.reduce_gradients_once=true")
TAGS = ("train/reward", "revision/reward", "update/loss", "update/grad_norm", "update/learning_rate")


def same(got, expected, tags=TAGS):
    for tag in tags:
        assert got[tag] == pytest.approx(expected[tag], rel=1e-4, abs=1e-7), tag


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    found = fit_here(tmp_path_factory.mktemp("alone"), *GLOBAL)
    assert len(found["update/loss"]) == 5
    return found


@pytest.mark.parametrize(
    "options",
    [
        ("experiment=two_ranks",),  # DDP
        pytest.param(
            (
                "experiment=embedded",
                "strategy=fsdp",
                "trainer.devices=2",
                "trainer.strategy.cpu_offload=true",
                "model.gradient_checkpointing=true",
            ),
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            ("experiment=embedded", "strategy=hsdp", "trainer.strategy.shards=2", "trainer.devices=4", *KEPT),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("experiment=embedded", "strategy=hsdp", "trainer.strategy.shards=4", "trainer.devices=8"),
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_ranks_change_no_loss_gradient_or_reward(tmp_path, alone, options):
    """FSDP without options is below, on two machines; four ranks are in the tests of checkpoints."""
    small = [one for one in SMALL if not one.startswith("experiment=")]
    found = fit(tmp_path, *GLOBAL, *options, small=small)
    noise = ("time/", "throughput/", "judge/", "update/mismatch")  # the last is mere rounding here
    everything = [tag for tag in alone if not tag.startswith(noise)]
    assert len(everything) > 60
    same(found, alone, everything)
    assert summary(tmp_path)["processes"] == int(
        dict(o.split("=") for o in options).get("trainer.devices", 2)
    )


@pytest.mark.nightly
def test_copies_of_quantized_weights_give_the_numbers_of_one(tmp_path):
    pytest.importorskip("bitsandbytes")
    quantized = ("lora=lora", "model.quantization=4bit", "loss.kl_coef=0.1", "optimizer.lr=1e-3")
    (tmp_path / "one").mkdir()
    one = fit_here(tmp_path / "one", *quantized)
    two = fit(tmp_path / "two", *quantized, "strategy=ddp", "trainer.devices=2")
    same(two, one, (*TAGS, "update/kl_to_reference"))


AHEAD = ("rollout.batches_ahead=1", "sampler.own_weights=true", "loss.mismatch.level=token")


@pytest.mark.parametrize("strategy", ["fsdp", pytest.param("ddp", marks=pytest.mark.nightly)])
def test_ranks_that_draw_a_batch_ahead_give_the_numbers_of_one(tmp_path, strategy):
    """Threads gather answers while the update gathers shards and reduces gradients."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    expected = fit_here(tmp_path / "one", *GLOBAL, *AHEAD)
    found = fit(tmp_path / "two", *GLOBAL, *AHEAD, f"strategy={strategy}", "trainer.devices=2", timeout=600)
    noise = ("time/", "throughput/", "judge/", "sampler/probe", "sampler/refresh", "update/mismatch_max")
    everything = [tag for tag in expected if not tag.startswith(noise)]
    assert {"update/mismatch_kl", "update/mismatch_weight", "sampler/staleness"} <= set(everything)
    same(found, expected, everything)
    assert expected["sampler/staleness"] == [0, 2, 2, 2, 2]
    assert "time/wait" in found


def test_ranks_that_train_on_a_mix_give_the_numbers_of_one(tmp_path):
    """Rewards by source, too. The refill draws further prompts by weight."""
    for place, name in enumerate(("wild", "tame")):
        rows = [
            {"prompt": task.request, "rubric": [
                {"text": c.text, "weight": c.weight, "undesirable": c.undesirable, "check": c.check}
                for c in task.rubric.criteria
            ]}
            for task in animals().train[place::6]
        ]  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    listed = ", ".join(
        f"{name}: {{path: {tmp_path}/{name}.jsonl, weight: {weight}}}"
        for name, weight in (("wild", 2), ("tame", 1))
    )
    mix = ("data=mix", f"data.train.sources={{{listed}}}", "judge=rule", "rollout.refill=1")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    expected = fit_here(tmp_path / "one", *GLOBAL, *mix)
    found = fit(tmp_path / "two", *GLOBAL, *mix, "strategy=ddp", "trainer.devices=2")
    sources = ("train_source/wild", "train_source/tame", "heldout_source/wild", "heldout_source/tame")
    same(found, expected, (*TAGS, *sources, "refill/prompts"))
    assert len(expected["train_source/wild"]) == 5


@pytest.fixture(scope="module")
def half_way(tmp_path_factory):
    """The folder of a run on two ranks that ended after the first of two epochs."""
    folder = tmp_path_factory.mktemp("half_way")
    fit(folder, *TWO_EPOCHS, "trainer.max_epochs=1", "strategy=fsdp", "trainer.devices=2", small=SHORT)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    found = fit_here(folder, *TWO_EPOCHS, "trainer.max_epochs=2", small=SHORT)
    return {tag: values[-2:] for tag, values in found.items()}


@pytest.mark.parametrize(
    "ranks",
    [
        ("strategy=fsdp", "trainer.devices=1"),
        pytest.param(
            ("strategy=hsdp", "trainer.strategy.shards=2", "trainer.devices=4"), marks=pytest.mark.nightly
        ),
    ],
)
def test_a_run_saved_on_two_ranks_goes_on_on_any_number(tmp_path, half_way, uninterrupted, ranks):
    checkpoint = half_way / "checkpoints" / "last.ckpt"
    assert len(list(checkpoint.glob("*.distcp"))) == 2
    overrides = ("trainer.max_epochs=2", *ranks, f"resume={checkpoint}")
    same(fit(tmp_path, *TWO_EPOCHS, *overrides, small=SHORT), uninterrupted)
    assert summary(tmp_path)["optimizer_steps"] == 8


@pytest.mark.nightly
def test_a_reference_that_moves_is_sharded_and_resumed_with_the_policy(tmp_path):
    moving = (*TWO_EPOCHS, "loss.kl_coef=0.5", "loss.ref_sync_steps=1", "loss.ref_sync_rate=0.3")
    (tmp_path / "whole").mkdir()
    whole = fit_here(tmp_path / "whole", *moving, "trainer.max_epochs=2", small=SHORT)
    sharded = ("strategy=fsdp", "trainer.devices=2", *KEPT)
    fit(tmp_path / "half", *moving, "trainer.max_epochs=1", *sharded, small=SHORT)
    checkpoint = tmp_path / "half" / "checkpoints" / "last.ckpt"
    saved = _load_distributed_checkpoint(checkpoint)["state_dict"]
    behind = [
        float((saved[f"policy.{n[10:]}"] - saved[n]).norm()) for n in saved if n.startswith("reference.")
    ]
    assert sum(behind) > 0
    rest = fit(
        tmp_path / "rest",
        *moving,
        "trainer.max_epochs=2",
        "strategy=fsdp",
        f"resume={checkpoint}",
        small=SHORT,
    )
    expected = {tag: values[-2:] for tag, values in whole.items()}
    same(rest, expected, (*TAGS, "update/kl_to_reference"))
    done = herl_here("export", f"run={tmp_path}/half", f"out={tmp_path}/model", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_sharded_checkpoint_is_exported_whole(tmp_path, half_way):
    done = herl_here("export", f"run={half_way}", f"out={tmp_path}/model", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(list((half_way / "checkpoints" / "best.ckpt").glob("*.distcp"))) == 2
    expected = _load_distributed_checkpoint(half_way / "checkpoints" / "best.ckpt")["state_dict"]
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert {f"policy.{name}" for name in exported} == set(expected)
    assert all(torch.equal(tensor, expected[f"policy.{name}"]) for name, tensor in exported.items())


@pytest.mark.nightly
def test_a_run_saved_by_copies_of_shards_goes_on_without_sharding(tmp_path, uninterrupted):
    copies = ("strategy=hsdp", "trainer.strategy.shards=2", "trainer.devices=4")
    fit(tmp_path / "half", *TWO_EPOCHS, "trainer.max_epochs=1", *copies, small=SHORT)
    checkpoint = tmp_path / "half" / "checkpoints" / "last.ckpt"
    alone = ("strategy=fsdp", "trainer.devices=1", f"resume={checkpoint}")
    same(fit(tmp_path / "rest", *TWO_EPOCHS, "trainer.max_epochs=2", *alone, small=SHORT), uninterrupted)


@pytest.mark.nightly
def test_a_consolidated_checkpoint_goes_on_without_sharding(tmp_path, uninterrupted):
    sharded = ("strategy=fsdp", "trainer.devices=2", "trainer.strategy.save_distributed_checkpoint=false")
    fit(tmp_path / "half", *TWO_EPOCHS, "trainer.max_epochs=1", *sharded, small=SHORT)
    checkpoint = tmp_path / "half" / "checkpoints" / "last.ckpt"
    assert checkpoint.is_file()
    rest = tmp_path / "rest"
    rest.mkdir()
    found = fit_here(rest, *TWO_EPOCHS, "trainer.max_epochs=2", f"resume={checkpoint}", small=SHORT)
    same(found, uninterrupted)


def test_a_sharded_checkpoint_without_sharding_is_a_clear_error(tmp_path, half_way):
    checkpoint = half_way / "checkpoints" / "last.ckpt"
    done = herl_here("fit", "experiment=embedded", f"resume={checkpoint}", cwd=tmp_path)
    assert done.returncode == 2
    assert "got the sharded checkpoint" in done.stderr
    assert "add strategy=fsdp" in done.stderr


def test_two_machines_under_torchrun(tmp_path, alone):
    """Two launchers with a process each on the loopback interface, as on two machines."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nodes = [
        subprocess.Popen(
            [
                HERL[0], "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}",
                "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}", "-m", "herl", "fit",
                *SMALL, *GLOBAL, "strategy=fsdp", "trainer.num_nodes=2", "trainer.devices=1",
            ],
            env=environment(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    for node in nodes:
        output, _ = node.communicate(timeout=300)
        assert node.returncode == 0, output[-6000:]
    [run] = (tmp_path / "runs").iterdir()  # rank 0's; the others, with different clocks, make none
    same(curves(run), alone)
    assert summary(run)["processes"] == 2
