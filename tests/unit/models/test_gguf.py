"""Models from GGUF files; the reading of the file is replaced here."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from herl.models import gguf


@pytest.mark.parametrize("tie", [False, True])
def test_a_converted_model_is_plain_and_ties_its_embedding_to_the_head_if_asked(tmp_path, monkeypatch, tie):
    config = Qwen2Config(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=False,
    )  # fmt: skip
    read = Qwen2ForCausalLM(config)
    head, embedding = read.lm_head.weight.detach().clone(), read.model.embed_tokens.weight.detach().clone()
    tokenizer = type("Tokenizer", (), {"save_pretrained": lambda self, out: None})()
    monkeypatch.setattr(gguf.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: read)
    monkeypatch.setattr(gguf.AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer)
    gguf.convert(tmp_path / "a.gguf", tmp_path / "out", tie=tie)
    monkeypatch.undo()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.tie_word_embeddings is tie
    assert getattr(loaded.config, "quantization_config", None) is None
    assert torch.equal(loaded.lm_head.weight, head)
    assert torch.equal(loaded.model.embed_tokens.weight, head if tie else embedding)
