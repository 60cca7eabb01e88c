import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from herl import ConfigError
from herl.models.lora import Lora
from herl.models.pretrained import PretrainedModel, fixed_positions
from tests.support.architectures import ARCHITECTURES, SIZES


def test_the_shipped_model_is_found_by_name_and_by_folder(tmp_path):
    model = PretrainedModel(path="tiny")
    loaded = model.load()
    assert str(loaded.dtype) == "torch.float32"
    loaded.save_pretrained(tmp_path)
    model.tokenizer().save_pretrained(tmp_path)
    assert PretrainedModel(path=str(tmp_path)).load().num_parameters() == loaded.num_parameters()


def test_a_converted_model_is_found_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HERL_CACHE", str(tmp_path))
    PretrainedModel(path="tiny").load().save_pretrained(tmp_path / "models" / "mine")
    assert PretrainedModel(path="mine").load().config.num_hidden_layers == 3


LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 16, "long_factor": [8.0] * 16,
    "factor": 4.0, "original_max_position_embeddings": 128,
}  # fmt: skip


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "default"}, 512),
        ({"rope_type": "linear", "factor": 2.0}, 1024),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128}, 512),
        ({"rope_type": "dynamic", "factor": 4.0}, 512),
        (LONGROPE, 128),
    ],
)
def test_the_tokens_that_a_model_takes_count_its_stretched_positions(tmp_path, rope, expected):
    config = AutoConfig.from_pretrained(PretrainedModel(path="tiny").source())
    config.rope_parameters = {"rope_theta": 10000.0} | rope
    config.save_pretrained(tmp_path)
    assert PretrainedModel(path=str(tmp_path)).max_tokens() == expected


def test_positions_may_be_of_several_types():
    plain = {"rope_type": "default", "rope_theta": 1e4}
    for rope, expected in (
        ({"full_attention": LONGROPE, "sliding_attention": plain}, 128),
        ({"full_attention": plain, "sliding_attention": plain}, None),
        (plain, None),
        (None, None),
    ):
        config = SimpleNamespace(rope_parameters=rope, max_position_embeddings=512)
        assert fixed_positions(config) == expected


def test_gradient_checkpointing_is_switched_on():
    assert PretrainedModel(path="tiny", gradient_checkpointing=True).load().is_gradient_checkpointing


def test_a_missing_model_says_what_there_is():
    with pytest.raises(ConfigError, match=r"one of \['tiny', 'tiny_tools'\], got 'smollm2'"):
        PretrainedModel(path="smollm2").load()


def test_a_model_without_a_chat_template_is_refused(tmp_path):
    model = PretrainedModel(path="tiny")
    model.load().save_pretrained(tmp_path)
    tokenizer = model.tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="expected a chat model"):
        PretrainedModel(path=str(tmp_path)).tokenizer()


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ConfigError, match=r"model.dtype: expected a torch dtype"):
        PretrainedModel(dtype="float33")


def test_the_tokenizer_gives_text_back_unchanged():
    tokenizer = PretrainedModel(path="tiny").tokenizer()
    for text in ("It eats fish. Hello, dear reader!", "Ünïcode {braces} and 漢字"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("kind", "settings"), [("gpt2", {}), ("opt", {"dropout": 0.3, "attention_dropout": 0.2})]
)
def test_what_is_trained_has_no_dropout_since_what_is_sampled_has_none(kind, settings, tmp_path):
    config = AutoConfig.for_model(kind, **(SIZES | ARCHITECTURES[kind] | settings))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = PretrainedModel(path=str(tmp_path)).load()
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        assert torch.equal(model.train()(ids).logits, model.eval()(ids).logits)


def test_the_dropout_of_adapters_is_the_users():
    adapted = PretrainedModel(lora=Lora(dropout=0.5)).load().train()
    assert any(module.p == 0.5 for module in adapted.modules() if isinstance(module, torch.nn.Dropout))


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"do_sample": False, "temperature": 0.9, "top_p": 0.6}, {"temperature": 0.9, "do_sample": True}),
        ({"top_k": 20}, {"top_k": 20, "do_sample": True}),
        ({"pad_token_id": -1}, {"pad_token_id": None, "eos_token_id": 2}),
        ({"early_stopping": True, "length_penalty": 0.5}, {"pad_token_id": 0, "length_penalty": None}),
        ({"do_sample": True, "temperature": 0.7}, {"temperature": 0.7, "do_sample": True}),
    ],
)
def test_a_model_whose_generation_config_contradicts_itself_can_be_saved_again(tmp_path, settings, kept):
    folder = shutil.copytree(PretrainedModel(path="tiny").source(), tmp_path / "model")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    PretrainedModel(path=str(folder)).load().save_pretrained(tmp_path / "again")
    again = PretrainedModel(path=str(tmp_path / "again")).load().generation_config
    assert {name: getattr(again, name) for name in kept} == kept
