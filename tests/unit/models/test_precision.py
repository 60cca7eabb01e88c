"""Arithmetic by device: the default precision, what counts as exact, and what is refused."""

import lightning as L
import pytest
import torch
from lightning.pytorch.accelerators import CUDAAccelerator

from herl.config.build import build
from herl.errors import ConfigError
from herl.models.fsdp import check_trainer
from herl.models.precision import computes_exact_float32, default_precision, use_tf32
from herl.models.pretrained import PretrainedModel
from tests.support.configuration import composed
from tests.support.training import fit, module_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("accelerator", "cuda", "bfloat16", "expected"),
    [
        ("auto", True, True, "bf16-mixed"),
        ("gpu", True, True, "bf16-mixed"),
        ("cuda", True, True, "bf16-mixed"),
        ("auto", True, False, "32-true"),
        ("auto", False, False, "32-true"),
        ("cpu", True, True, "32-true"),
    ],
)
def test_the_default_is_bfloat16_where_a_cuda_device_computes_in_it(
    accelerator, cuda, bfloat16, expected, monkeypatch
):
    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: cuda))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    assert default_precision(accelerator) == expected


@pytest.mark.parametrize(
    ("override", "expected"), [((), "32-true"), (("trainer.precision=bf16-mixed",), "bf16-mixed")]
)
def test_a_run_on_a_cpu_is_float32_unless_set(tmp_path, override, expected):
    run = build(composed("fit", "trainer.accelerator=cpu", *override, output_dir=str(tmp_path)))
    assert run.trainer.precision == expected


@pytest.fixture
def tf32():
    before = torch.get_float32_matmul_precision()
    yield use_tf32
    torch.set_float32_matmul_precision(before)


def test_what_counts_as_exact_float32(tf32):
    tf32(False)
    assert computes_exact_float32(CPU, torch.float32, torch.float32)
    assert computes_exact_float32(CUDA, torch.float32)
    assert not computes_exact_float32(CPU, torch.float32, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert not computes_exact_float32(CPU, torch.float32)
        assert computes_exact_float32(CUDA, torch.float32), "autocast of another device"
    tf32(True)
    assert not computes_exact_float32(CUDA, torch.float32)
    tf32(False)
    assert computes_exact_float32(CUDA, torch.float32)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_weights_in_which_small_steps_round_away_are_refused(precision):
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, precision=precision)
    with pytest.raises(
        ConfigError, match=f"expected '32-true' or 'bf16-mixed', got '{precision}': updates as small"
    ):
        check_trainer(trainer)


def test_all_weights_of_a_bfloat16_model_are_not_trained(tmp_path):
    module = module_of(model=PretrainedModel(path="tiny", dtype="bfloat16"))
    with pytest.raises(
        ConfigError, match=r"model.dtype: expected 'float32' to train all weights, got 'bfloat16'"
    ):
        fit(module, tmp_path)
    assert module.policy is None, "refused before the model is loaded"
