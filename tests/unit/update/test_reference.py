"""A reference that follows the policy: against a naive version, over a resume, and what is refused."""

import pytest
import torch

from herl.callbacks import HerlCallback
from herl.errors import ConfigError
from herl.models.export import load_checkpoint
from herl.models.lora import Lora
from herl.models.pretrained import PretrainedModel
from herl.update.loss.policy import PolicyLoss
from tests.support.training import fit, initial, module_of, weights


def of_reference(module):
    return torch.cat([p.detach().flatten() for p in module.updater.reference.parameters()])


class KeepBoth(HerlCallback):
    """Keeps policy and reference after each step."""

    def __init__(self):
        self.policies, self.references = [], []

    def on_step(self, trainer, module, step):
        self.policies.append(weights(module))
        self.references.append(of_reference(module))


def run(tmp_path, loss, epochs=4, resume=None):
    module, both = module_of(loss=loss, updates_per_batch=1), KeepBoth()
    trainer = fit(module, tmp_path, callbacks=[both], max_epochs=epochs, resume=resume)
    return module, both, trainer


def test_a_moving_average_follows_every_step(tmp_path):
    _, both, _ = run(tmp_path, PolicyLoss(kl_coef=0.1, ref_sync_steps=1, ref_sync_rate=0.25))
    expected = initial().double()
    for policy, reference in zip(both.policies, both.references, strict=True):
        expected = 0.75 * expected + 0.25 * policy.double()
        torch.testing.assert_close(reference.double(), expected, rtol=0, atol=1e-6)
    assert float((expected - initial()).abs().max()) > 1e-4


def test_the_policy_replaces_the_reference_every_n_steps(tmp_path):
    _, both, _ = run(tmp_path, PolicyLoss(kl_coef=0.1, ref_sync_steps=3))
    assert all(torch.equal(reference, initial()) for reference in both.references[:2])
    assert all(torch.equal(reference, both.policies[2]) for reference in both.references[2:])
    assert not torch.equal(both.policies[2], initial())


def test_a_resumed_run_has_the_reference_of_one_that_never_stopped(tmp_path):
    loss = PolicyLoss(kl_coef=0.5, ref_sync_steps=1, ref_sync_rate=0.3)
    whole, _, _ = run(tmp_path, loss)
    _, _, trainer = run(tmp_path, loss, epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _, _ = run(tmp_path, loss, resume=tmp_path / "half.ckpt")
    assert torch.equal(weights(resumed), weights(whole))
    assert torch.equal(of_reference(resumed), of_reference(whole))


def test_a_checkpoint_has_a_reference_only_if_it_moves(tmp_path):
    fixed, moving = PolicyLoss(kl_coef=0.5), PolicyLoss(kl_coef=0.5, ref_sync_steps=1)
    for name, loss in (("fixed", fixed), ("moving", moving)):
        module, _, trainer = run(tmp_path, loss, epochs=1)
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
        assert any(key.startswith("reference.") for key in module.state_dict()) == (name == "moving")
    module, _, _ = run(tmp_path, fixed, epochs=2, resume=tmp_path / "moving.ckpt")
    assert torch.equal(of_reference(module), initial()), "what the run began with"
    with pytest.raises(ConfigError, match="loss.ref_sync_steps: expected null, since the checkpoint has no"):
        run(tmp_path, moving, epochs=2, resume=tmp_path / "fixed.ckpt")


def test_of_a_run_whose_reference_moves_the_policy_is_exported(tmp_path):
    module, _, trainer = run(tmp_path, PolicyLoss(kl_coef=0.5, ref_sync_steps=1, ref_sync_rate=0.3))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    policy = module.model.load()
    load_checkpoint(policy, tmp_path / "end.ckpt", module.model.lasting())
    assert torch.equal(torch.cat([p.detach().flatten() for p in policy.parameters()]), weights(module))
    assert not torch.equal(weights(module), of_reference(module))


def test_what_cannot_move_is_refused():
    with pytest.raises(ConfigError, match="loss.kl_coef: expected a number above 0 with ref_sync_steps"):
        PolicyLoss(ref_sync_steps=1)
    with pytest.raises(ConfigError, match="loss.ref_sync_steps: expected at least 1, got 0"):
        PolicyLoss(kl_coef=0.1, ref_sync_steps=0)
    with pytest.raises(ConfigError, match=r"loss.ref_sync_rate: expected a share in \(0, 1\], got 1.5"):
        PolicyLoss(kl_coef=0.1, ref_sync_steps=1, ref_sync_rate=1.5)
    with pytest.raises(ConfigError, match="loss.ref_sync_steps: expected null with lora, .*got 2"):
        module_of(
            model=PretrainedModel(path="tiny", lora=Lora()), loss=PolicyLoss(kl_coef=0.1, ref_sync_steps=2)
        )
