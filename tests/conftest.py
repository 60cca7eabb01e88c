import pytest
import torch

from herl.model import PretrainedModel


@pytest.fixture(scope="session")
def tokenizer():
    return PretrainedModel(path="tiny").tokenizer()


@pytest.fixture
def policy():
    torch.manual_seed(0)
    return PretrainedModel(path="tiny").load().eval()
