import pytest
import torch

from herl.models.pretrained import PretrainedModel

NO_GPU = "needs a CUDA GPU"


@pytest.fixture(scope="session")
def tokenizer():
    return PretrainedModel(path="tiny").tokenizer()


@pytest.fixture
def policy():
    torch.manual_seed(0)
    return PretrainedModel(path="tiny").load().eval()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Each device in turn; a test that uses it runs on both."""
    return torch.device(request.param)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip(NO_GPU)


def pytest_terminal_summary(terminalreporter):
    """Reports how many tests were skipped for lack of a GPU."""
    skipped = [one for one in terminalreporter.stats.get("skipped", ()) if NO_GPU in str(one.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests skipped: they need a CUDA GPU, and none is here")
