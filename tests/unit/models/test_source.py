"""A model that is not there is said to be missing at once."""

from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from huggingface_hub import constants

from herl import ConfigError
from herl.models import source
from herl.models.source import check_source


@contextmanager
def fake_hub(code):
    """A hub that answers every question with one status, and notes what it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(code)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("code", [200, 500])
def test_a_model_on_the_hub_and_a_hub_in_trouble_are_left_to_transformers(code, monkeypatch):
    with fake_hub(code) as (address, asked):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        check_source("owner/name")
    assert [path for path, _ in asked] == ["/owner/name/resolve/main/config.json"]


@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_model_that_is_not_there_or_not_for_all_is_one_line(code, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_token")
    with fake_hub(code) as (address, asked):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        with pytest.raises(ConfigError, match=f"HTTP {code}") as caught:
            check_source("owner/other")
    assert "owner/other" in str(caught.value)
    assert "hf_secret_token" not in str(caught.value)
    assert asked[0][1] == "Bearer hf_secret_token"


def test_a_hub_out_of_reach_is_one_line(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        ConfigError, match="'owner/name' is neither a folder nor in the cache, and .*9 cannot be"
    ):
        check_source("owner/name")


def test_offline_and_local_models_ask_nobody(monkeypatch):
    monkeypatch.setattr(source.urllib.request, "urlopen", None)
    check_source("tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_source("owner/name")
    with pytest.raises(ConfigError, match="expected a folder with a config.json"):
        check_source("./nowhere")
