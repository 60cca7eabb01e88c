"""Servers that answer too slowly, or send requests elsewhere."""

import time

import pytest

from herl import SamplerError
from herl.sampler.vllm_pool import Server, ServerPool
from tests.support.fake_endpoint import FakeEndpoint

BODY = {"model": "m", "prompt": [1, 2]}


def asked(endpoint, **settings):
    """What a pool of this one server says to a request."""
    pool = ServerPool(
        [Server(f"http://127.0.0.1:{endpoint.port}")], requests_per_server=4, timeout_seconds=0.3, key=None
    )
    try:
        with pytest.raises(SamplerError) as error:
            pool.run(pool.complete(BODY))
    finally:
        pool.close()
    return str(error.value)


def test_a_server_that_sends_a_byte_at_a_time_runs_out_of_time():
    with FakeEndpoint(fault_share=1.0, faults=("drip",)) as endpoint:
        started = time.perf_counter()
        assert "no whole reply within 0.3 s" in asked(endpoint)
    assert time.perf_counter() - started < 3.0


def test_a_redirect_is_refused_and_no_prompt_reaches_the_other_host():
    with FakeEndpoint() as other:
        location = f"http://127.0.0.2:{other.port}/v1/completions?token=hush"
        with FakeEndpoint(fault_share=1.0, faults=("redirect",), location=location) as endpoint:
            said = asked(endpoint)
        assert "redirects to 127.0.0.2, which is not followed" in said
        assert "hush" not in said
        assert other.sent == []
