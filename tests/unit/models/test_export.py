import json
import pickle
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from herl.errors import ConfigError
from herl.models.export import load_checkpoint, model_card, save_pretrained
from herl.models.lora import Lora
from herl.models.pretrained import PretrainedModel

TINY = PretrainedModel(path="tiny")


def checkpoint(policy, path, change=lambda weights: weights, model=TINY):
    weights = {f"policy.{name}": tensor for name, tensor in policy.state_dict().items()}
    torch.save({"state_dict": change(weights), "herl": {"settings": model.lasting()}}, path)
    return path


@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_a_checkpoint_comes_back_as_a_folder_that_answers_the_same(tmp_path, tokenizer, lora):
    model = PretrainedModel(path="tiny", lora=lora)
    trained = model.load()
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    fresh = model.load()
    load_checkpoint(fresh, checkpoint(trained, tmp_path / "a.ckpt", model=model), model.lasting())
    save_pretrained(fresh, tokenizer, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    messages = [{"role": "user", "content": "Describe the otter."}]
    ids = again.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    expected = trained.eval().generate(**ids, max_new_tokens=24, do_sample=False)
    assert loaded.generate(**ids, max_new_tokens=24, do_sample=False).tolist() == expected.tolist()
    assert not torch.equal(loaded.lm_head.weight, TINY.load().lm_head.weight) or lora


def test_what_is_no_checkpoint_is_a_clear_error(tmp_path):
    policy = TINY.load()
    places = {
        name: tmp_path / name for name in ("absent", "folder", "text", "empty", "pickle", "other", "code")
    }
    places["folder"].mkdir()
    places["text"].write_text("weights")
    places["empty"].touch()
    places["pickle"].write_bytes(pickle.dumps({"state_dict": Counter, "code": print}))
    torch.save({"weights": {}}, places["other"])
    torch.save({"state_dict": {}, "code": print}, places["code"])
    for place in places.values():
        with pytest.raises(ConfigError, match="checkpoint: expected a checkpoint written by herl fit, got '"):
            load_checkpoint(policy, place, TINY.lasting())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {}, r"expected the weights of this model, got .*a.ckpt', where \['model.embed"),
        (
            lambda w: w | {"policy.more": torch.zeros(1)},
            r"\['more'\] are unknown. Repeat the overrides of its run",
        ),
        (
            lambda w: w | {"policy.model.norm.weight": torch.zeros(3)},
            "expected the weights of this model, got",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_an_error(tmp_path, change, message):
    policy = TINY.load()
    with pytest.raises(ConfigError, match=message):
        load_checkpoint(policy, checkpoint(policy, tmp_path / "a.ckpt", change), TINY.lasting())


def test_a_checkpoint_of_another_program_is_an_error(tmp_path):
    policy = TINY.load()
    weights = {f"policy.{name}": tensor for name, tensor in policy.state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "a.ckpt")
    with pytest.raises(
        ConfigError, match="expected a checkpoint written by herl fit, got .*KeyError: 'herl'"
    ):
        load_checkpoint(policy, tmp_path / "a.ckpt", TINY.lasting())


def test_of_a_run_whose_reference_moves_the_policy_is_loaded(tmp_path):
    trained = TINY.load()
    with torch.no_grad():
        trained.lm_head.weight.add_(1)
    reference = {f"reference.{name}": tensor for name, tensor in TINY.load().state_dict().items()}
    path = checkpoint(trained, tmp_path / "a.ckpt", lambda weights: weights | reference)
    fresh = TINY.load()
    load_checkpoint(fresh, path, TINY.lasting())
    assert torch.equal(fresh.lm_head.weight, trained.lm_head.weight)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            Lora(rank=4, alpha=64),
            "model.lora.alpha: expected the checkpoint's 32.0, got 64.0, with which its",
        ),
        (Lora(rank=8, alpha=32), "model.lora.rank: expected the checkpoint's 4, got 8"),
    ],
)
def test_adapters_of_another_scale_are_another_policy(tmp_path, other, message):
    model = PretrainedModel(lora=Lora(rank=4, alpha=32))
    path = checkpoint(model.load(), tmp_path / "a.ckpt", model=model)
    mistaken = PretrainedModel(lora=other)
    with pytest.raises(ConfigError, match=message):
        load_checkpoint(mistaken.load(), path, mistaken.lasting())


def test_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="expected a checkpoint written by herl fit, got"):
        load_checkpoint(TINY.load(), tmp_path / "no.ckpt", TINY.lasting())


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("evil",))

    torch.save({"state_dict": {}, "x": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"):
        load_checkpoint(TINY.load(), tmp_path / "evil.ckpt", TINY.lasting())


def test_tied_weights_may_come_under_one_name(tmp_path):
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    policy, other = LlamaForCausalLM(config), LlamaForCausalLM(config)
    path = checkpoint(
        policy, tmp_path / "a.ckpt", lambda w: {k: v for k, v in w.items() if "lm_head" not in k}
    )
    load_checkpoint(other, path, TINY.lasting())
    assert torch.equal(other.lm_head.weight, policy.model.embed_tokens.weight)


def test_the_card_tells_the_facts_of_the_run_and_no_path_of_the_machine(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    facts = {
        "algorithm": "herl",
        "seed": 3,
        "heldout_reward_after": 0.8,
        "best_checkpoint": "/home/x/best.ckpt",
    }
    (tmp_path / "summary.json").write_text(json.dumps(facts | {"example": {"after": "costs ${ 5"}}))
    monkeypatch.setenv("WHERE", "a-secret")
    (tmp_path / "config.yaml").write_text(
        "model: {path: '${oc.env:WHERE}'}\ndata: {train: {path: /home/x/rows.jsonl}}\n"
    )
    card = model_card(str(tmp_path), str(tmp_path / "checkpoints" / "best.ckpt"))
    assert "| algorithm | herl |" in card
    assert "| heldout reward after | 0.8 |" in card
    assert "| checkpoint | best.ckpt |" in card
    assert "| data.train.path | rows.jsonl |" in card
    assert "| model.path | ${oc.env:WHERE} |" in card
    assert "a-secret" not in card
    assert str(tmp_path.parent) not in card
    assert "base_model: tiny" in model_card("tiny", None)
    assert "library_name: peft" in model_card("tiny", None, adapter=True)
