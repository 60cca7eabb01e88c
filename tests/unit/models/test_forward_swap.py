"""A function replaces a forward pass, and the hooks still run."""

import pytest
import torch

from herl.models.forward_swap import forward_swapped


def test_hooks_run_around_the_function_that_takes_the_place_of_forward():
    layer, seen = torch.nn.Linear(2, 2), []
    layer.register_forward_pre_hook(lambda *_: seen.append("before"))
    layer.register_forward_hook(lambda *_: seen.append("after"))
    with forward_swapped(layer, lambda text: seen.append(text)):
        layer("other")
    assert seen == ["before", "other", "after"]
    assert "forward" not in vars(layer), "the class's own forward is back"
    assert layer(torch.zeros(1, 2)).shape == (1, 2)


def test_a_forward_of_the_instance_is_put_back_also_after_an_error():
    layer = torch.nn.Linear(2, 2)
    layer.forward = own = lambda: "own"

    def fails():
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), forward_swapped(layer, fails):
        layer()
    assert layer.forward is own
