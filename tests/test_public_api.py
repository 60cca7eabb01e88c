import subprocess
import sys

import herl
from herl import bonus, environment, errors, hindsight, replay, sampler, types


def test_import_herl_loads_neither_torch_nor_vllm_nor_lightning():
    code = (
        "import sys, herl; print(sorted({'torch', 'vllm', 'lightning', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_all_lists_exactly_what_is_there_in_order():
    assert herl.__all__ == sorted(herl.__all__)
    assert all(hasattr(herl, name) for name in herl.__all__)


def test_all_records_interfaces_and_errors_are_public():
    records = {
        n for n, v in vars(types).items() if isinstance(v, type) and v.__module__.startswith(types.__name__)
    }
    raised = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, Exception)}
    interfaces = {bonus.BonusReward, hindsight.HindsightBuilder, replay.Replay}
    interfaces |= {environment.Environment, environment.Opening, environment.Reply, environment.Conversation}
    interfaces |= {sampler.Sampler, sampler.StreamingSampler}
    assert (records | raised | {i.__name__ for i in interfaces}) <= set(herl.__all__)


def test_the_error_tree_is_drawn_as_it_is():
    drawn = errors.__doc__
    for name in (n for n in herl.__all__ if isinstance(getattr(herl, n), type)):
        cls = getattr(herl, name)
        if issubclass(cls, Exception):
            assert name in drawn


def test_every_public_name_has_a_docstring():
    for name in herl.__all__:
        if name != "Message":
            assert (getattr(herl, name).__doc__ or "").strip(), name


def test_records_are_frozen_slotted_and_keyword_only():
    for name in ("Criterion", "Rollout", "Judgement", "Experience", "Task", "Sampling"):
        record = getattr(types, name)
        assert record.__dataclass_params__.frozen
        assert "__slots__" in vars(record)
        assert all(field.kw_only for field in record.__dataclass_fields__.values())
