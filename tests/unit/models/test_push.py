"""`herl export push=owner/name`, against a fake of the Hub over real HTTP."""

import pytest
from huggingface_hub import constants

from herl.cli.commands import export
from herl.errors import ConfigError
from herl.models.push import check_push, push
from tests.support.configuration import composed
from tests.support.fake_hub import FakeHub

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=<...>' to upload:DeprecationWarning"
)  # the hub's own
FILES = {
    "README.md": b"---\nlibrary_name: x\n---\n",
    "config.json": b"{}",
    "model.safetensors": b"\0\1\2" * 99,
}


@pytest.fixture
def login(monkeypatch):
    """Points huggingface_hub to a fake, with a token, and without its uploads over xet."""

    def to(hub, token="secret-token"):
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", token)

    return to


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "notes.txt").write_text("not a part of the model")
    return tmp_path


def test_export_pushes_what_it_wrote_and_nothing_else(tmp_path, login, capsys):
    out = tmp_path / "model"
    out.mkdir()
    (out / "secrets.json").write_text("{}")
    with FakeHub() as hub:
        login(hub)
        export(composed("export", "push=me/otter", f"out={out}", "model=tiny"))
    written = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "secrets.json"}
    assert hub.files == written
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(written)
    assert 'pipeline("text-generation", "me/otter")' in written["README.md"].decode()
    assert hub.private is True
    said = capsys.readouterr()
    assert f"{out} -> {hub.url}/me/otter" in said.out
    assert "secret-token" not in said.out + said.err


@pytest.mark.parametrize("before", [None, True, False])
def test_a_public_repository_is_made_or_kept_if_asked_for(folder, login, before):
    with FakeHub(private=before) as hub:
        login(hub)
        assert push(folder, list(FILES), "me/otter", private=False) == f"{hub.url}/me/otter"
    assert hub.files == FILES
    assert hub.private is bool(before)


def test_weights_meant_to_be_private_do_not_go_to_a_public_repository(folder, login):
    with FakeHub(private=False) as hub:
        login(hub)
        with pytest.raises(ConfigError, match="push: me/otter is public; pass private=false to upload"):
            push(folder, list(FILES), "me/otter", private=True)
    assert not hub.files
    assert not any("preupload" in path for path in hub.asked)


@pytest.mark.parametrize(
    ("refuse", "token", "reason"),
    [
        ({}, "wrong", "HTTP 401 .*the token is not valid. Log in with `hf auth login`, or set HF_TOKEN"),
        ({"/create": 403, "me/otter": 404}, "secret-token", "HTTP 403 .*the token may not write there"),
        ({"/lfs/": 403}, "secret-token", "HTTP 403 .*the token may not write there"),
        ({"/commit/main": 403}, "secret-token", "HTTP 403 .*the token may not write there"),
        ({"/create": 418}, "secret-token", "HTTP 418 refused with 418"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_to_do_and_where_the_model_is(
    folder, login, refuse, token, reason
):
    with FakeHub(refuse=refuse) as hub:
        login(hub, token)
        with pytest.raises(
            ConfigError, match=rf"^push: {hub.url}/me/otter: {reason}.*\. The model is in "
        ) as said:
            push(folder, list(FILES), "me/otter", private=True)
    assert "\n" not in str(said.value)
    assert token not in str(said.value)
    assert (folder / "model.safetensors").exists()


def test_no_network_is_one_line(folder, login):
    with FakeHub() as hub:
        login(hub)
    with pytest.raises(ConfigError, match=rf"^push: {hub.url}/me/otter: ConnectError: .* The model is"):
        push(folder, list(FILES), "me/otter", private=True)


@pytest.mark.parametrize(
    "name", ["otter", "me/otter/model", "me/otter two", "me/", "/otter", "me/..", "https://x/y", ""]
)
def test_a_malformed_name_is_an_error(name, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    with pytest.raises(ConfigError, match="^push: expected owner/name, got "):
        check_push(name)


def test_names_are_checked_before_the_model_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr("herl.cli.commands.make", None)
    with pytest.raises(ConfigError, match="^push: expected owner/name, got 'otter', which has no owner"):
        export(composed("export", "push=otter", f"out={tmp_path}/model"))


def test_without_a_token_or_a_network_nothing_is_tried(monkeypatch):
    monkeypatch.setattr("herl.models.push.get_token", lambda: None)
    with pytest.raises(
        ConfigError, match="that may write to me/otter, got none. Log in with `hf auth login`"
    ):
        check_push("me/otter")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE=1"):
        check_push("me/otter")
