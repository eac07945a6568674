"""What adapters share: keys, addresses, patience, and opening a provider from the environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from canwait.errors import KeyRefused, NotFound, SpecError, Unreachable
from canwait.providers.http import Wire, moment, patience, read_key
from canwait.providers.openai import OpenAI
from canwait.providers.registry import PROVIDERS, open_provider
from provider_host import Reply, serving, shard_of


def test_a_key_comes_from_the_variable_or_its_file(tmp_path: Path) -> None:
    """NAME wins over NAME_FILE, an empty NAME does not, and the file's newline is no part of the key."""
    file = tmp_path / "key"
    file.write_text("sk-file\n")
    assert read_key("K", {"K": "sk-env"}, provider="p") == "sk-env"
    assert read_key("K", {"K": "sk-env\n", "K_FILE": str(file)}, provider="p") == "sk-env"
    assert read_key("K", {"K": "", "K_FILE": str(file)}, provider="p") == "sk-file"


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({}, "K is not set"),
        ({"K": " \n"}, "K is not set"),
        ({"K_FILE": "/nowhere/key"}, "No such file"),
        ({"K_FILE": "/"}, "Is a directory"),
        ({"K": "sk a"}, "spaces"),
        ({"K": "sk-\x00"}, "characters that no key has"),
        ({"K": "sk-schlüssel"}, "characters that no key has"),
    ],
)
def test_a_key_that_cannot_be_one_is_refused(env: dict[str, str], words: str) -> None:
    """A missing, unreadable or impossible key is exit code 4, says which variable to set, and does not show the key."""
    with pytest.raises(KeyRefused, match=words) as caught:
        read_key("K", env, provider="p")
    assert caught.value.exit_code == 4
    assert "set K or K_FILE" in (caught.value.own_hint or "")
    assert "schlüssel" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "nonsense", "ftp://host", "http://", "//host/v1", "http://h:99999", f"http://{'a' * 64}", "http://a..b"]
)
def test_an_address_that_cannot_be_one_is_named(url: str) -> None:
    """A bad base URL is an error of the user's settings, named, and found before anything is sent."""
    with pytest.raises(SpecError, match="OPENAI_BASE_URL") as caught:
        OpenAI("k", url)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("settle_s", [None, 0.001, 0.5, 1, 3, 119.9, 120, 3_600])
def test_a_create_gives_up_before_its_batch_counts_as_absent(settle_s: float | None) -> None:
    """Whatever settle time is set, the last byte of a create leaves before it has passed, and the limits say so."""
    settle, create = patience(settle_s)
    assert settle == (settle_s or 120)
    assert 0 < 1.25 * create < settle
    limits = OpenAI("k", "http://h", settle_s=settle_s).limits("m")
    assert create <= settle <= limits.settle_s
    assert limits.create_timeout_s < limits.settle_s


@pytest.mark.parametrize("settle_s", [0, -1, float("nan"), float("inf")])
def test_a_settle_time_must_be_one(settle_s: float) -> None:
    """A settle time that is none is a mistake of the caller."""
    with pytest.raises(ValueError, match="settle_s"):
        patience(settle_s)


def test_times_are_read_in_every_form() -> None:
    """Unix seconds, as a number or as text, and ISO 8601 with or without a zone are one and the same time."""
    forms = [1736489775, "1736489775", "2025-01-10T06:16:15Z", "2025-01-10T06:16:15", "2025-01-10T07:16:15+01:00"]
    assert len({moment(form) for form in forms}) == 1


def test_nobody_listening_is_unreachable_for_every_verb(tmp_path: Path) -> None:
    """A refused connection is certain, whatever was asked."""
    it = OpenAI("k", "http://127.0.0.1:1")
    shard = shard_of(tmp_path)
    for ask in (
        lambda: it.submit(shard, pytest.fail),
        lambda: it.find(shard),
        lambda: it.poll("b"),
        lambda: it.cancel("b"),
    ):
        with pytest.raises(Unreachable):
            ask()


def test_a_wire_does_not_show_its_key() -> None:
    """A repr in a traceback holds the host, not the key."""
    wire = Wire("p", "http://user:secret@h:8/v1", {"authorization": "Bearer sk-1"}, variable="K", key="sk-1")
    assert repr(wire) == "Wire('p', 'h:8')"


# ----------------------------------------------------------------------------------------------------------- registry


def test_providers_open_from_the_environment(tmp_path: Path) -> None:
    """Keys and addresses come from the provider's own variables."""
    with serving(lambda seen: Reply({"data": [], "has_more": False})) as host:
        env = {
            "OPENAI_API_KEY": "sk-1",
            "OPENAI_BASE_URL": f"{host.url}/v1/",
            "OPENAI_ORG_ID": "o",
            "OPENAI_PROJECT_ID": "p",
        }
        assert open_provider("openai", env, spool=tmp_path).find(shard_of(tmp_path)) == []
        env = {"ANTHROPIC_AUTH_TOKEN": "t", "ANTHROPIC_BASE_URL": host.url}
        assert open_provider("anthropic", env, spool=tmp_path).find(shard_of(tmp_path)) == []
        env = {"ANTHROPIC_API_KEY": "k", "ANTHROPIC_AUTH_TOKEN": "t", "ANTHROPIC_BASE_URL": host.url}
        assert open_provider("anthropic", env, spool=tmp_path).find(shard_of(tmp_path)) == []

    first, second, third = host.seen
    assert first.path == "/v1/batches"
    assert (first.headers["openai-organization"], first.headers["openai-project"]) == ("o", "p")
    assert second.path == "/v1/messages/batches"
    assert second.headers["authorization"] == "Bearer t"
    assert third.headers["x-api-key"] == "k"
    assert "authorization" not in third.headers


def test_a_provider_without_a_key_does_not_open(tmp_path: Path) -> None:
    """What is missing is named before anything is sent."""
    for name, variable in [("openai", "OPENAI_API_KEY"), ("anthropic", "ANTHROPIC_API_KEY")]:
        with pytest.raises(KeyRefused, match=f"{variable} is not set"):
            open_provider(name, {}, spool=tmp_path)


def test_the_settle_time_reaches_the_provider(tmp_path: Path) -> None:
    """An override of the settle time is what the provider's limits state."""
    for name, variable in [("openai", "OPENAI_API_KEY"), ("anthropic", "ANTHROPIC_API_KEY")]:
        env = {variable: "k"}
        assert open_provider(name, env, spool=tmp_path, settle_s=7).limits("m").settle_s == 7
        assert open_provider(name, env, spool=tmp_path).limits("m").settle_s == 120


def test_an_unknown_provider_is_named(tmp_path: Path) -> None:
    """A provider nobody knows is an error that lists those there are."""
    with pytest.raises(NotFound, match="opnai") as caught:
        open_provider("opnai", {}, spool=tmp_path)
    assert all(name in (caught.value.own_hint or "") for name in PROVIDERS)


def test_the_registry_loads_no_adapter() -> None:
    """Knowing the providers' names loads no HTTP library; opening one does."""
    code = "import sys, canwait.providers.registry, canwait.providers.wrap; print('httpx2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
