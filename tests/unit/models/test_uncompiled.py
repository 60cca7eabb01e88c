import threading

import torch

from herl.models.uncompiled import uncompiled


def test_two_threads_that_take_turns_leave_nothing_behind():
    """A in, B in, A out, B out."""
    calls = []

    def backend(graph, inputs):
        return lambda *arguments: calls.append(1) or graph(*arguments)

    double = torch.compile(lambda x: 2 * x, backend=backend)
    first_in, second_in, first_out = (threading.Event() for _ in range(3))

    def first():
        with uncompiled():
            first_in.set()
            second_in.wait(10)
        first_out.set()

    thread = threading.Thread(target=first)
    thread.start()
    first_in.wait(10)
    with uncompiled():
        second_in.set()
        first_out.wait(10)
        double(torch.ones(2))
        assert not calls, "still uncompiled: this thread is inside"
    thread.join()
    double(torch.ones(2))
    assert calls, "compiled again"
