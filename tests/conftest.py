import pytest
import torch

from herl.models.pretrained import PretrainedModel
from tests.support import tiers

NO_GPU = "needs a CUDA GPU"


@pytest.fixture(scope="session")
def tokenizer():
    return PretrainedModel(path="tiny").tokenizer()


@pytest.fixture
def policy():
    torch.manual_seed(0)
    return PretrainedModel(path="tiny").load().eval()


@pytest.fixture(scope="module", autouse=True)
def no_process_group():
    """Ends the process group that vLLM's engines leave behind, or Lightning would count ranks in it."""
    yield
    if torch.distributed.is_initialized():
        from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel

        destroy_model_parallel()
        destroy_distributed_environment()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Each device in turn; a test that uses it runs on both."""
    return torch.device(request.param)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    tiers.assign(items)
    tiers.slowest_files_first(items)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip(NO_GPU)


def pytest_runtest_logstart():
    tiers.clock.restart()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    report.tier, report.cpu_seconds = tiers.tier_of(item), tiers.clock.lap()
    # a worker can only send Unicode, and tests of hostile text log halves of surrogate pairs
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


def pytest_terminal_summary(terminalreporter):
    """Reports the time of each tier, and how many tests were skipped for lack of a GPU."""
    reports = [one for many in terminalreporter.stats.values() for one in many if hasattr(one, "tier")]
    for line in tiers.summary(reports):
        terminalreporter.write_line(line)
    skipped = [one for one in terminalreporter.stats.get("skipped", ()) if NO_GPU in str(one.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests skipped: they need a CUDA GPU, and none is here")
