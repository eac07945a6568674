"""A webhook is signed and goes only where it may, a mail is one mail and keeps its password, apprise gets the rest."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

import offline
from canwait.channels import Undelivered, fault_of, shown
from canwait.channels.opening import open_channel
from canwait.channels.smtp import Smtp
from canwait.channels.webhook import ALLOW_PRIVATE, Webhook, is_public, signature
from canwait.types import Notify
from listeners import AT, SECRET, certificate, mail_server, message, web

ENV = {"CANWAIT_WEBHOOK_SECRET": SECRET}
PRIVATE = {**ENV, ALLOW_PRIVATE: "1"}
__all__ = ["certificate"]


# ------------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    "to", ["https://a.example/x?y=1", "https://a.example:8443", "https://[2001:db8::1]/x", "http://a", "https://a/${T}",
           "mailto:me+x@example.com", "apprise:SLACK"],
)  # fmt: skip
def test_targets_that_can_be_told(to: str) -> None:
    """Webhooks, mail addresses and variables for apprise are targets."""
    assert fault_of(to) is None


@pytest.mark.parametrize(
    "to", ["", "me@example.com", "mailto:", "mailto:a@b,c@d", "mailto:a@b?bcc=c@d", "mailto:a@b\nBcc: c@d", "apprise:json://x",
           "slack://token", "https://", "https:///x", "https://u:p@host/x", "https://host/#x", "https://ho st/x",
           "https://host:99999/", "https://host:0/", "https://h\u00f6st/"],
)  # fmt: skip
def test_targets_that_cannot(to: str) -> None:
    """Anything else is refused, also addresses with a password, and with more than one recipient."""
    assert fault_of(to) is not None


@given(st.text())
def test_no_text_breaks_a_target(text: str) -> None:
    """Any text is a target or has a fault, and what is shown of it has no path."""
    for to in (text, f"https://{text}", f"mailto:{text}", f"apprise:{text}"):
        fault_of(to)
        shown(to)
    assert "/secret" not in shown("https://host/secret/" + text)


def test_a_webhooks_path_is_not_shown() -> None:
    """Of a webhook only its host is shown."""
    assert shown("https://hooks.example.com/T0/secret?x=1") == "https://hooks.example.com/..."
    assert shown("https://hooks.example.com") == "https://hooks.example.com"
    assert shown("mailto:a@b.c") == "mailto:a@b.c"


@pytest.mark.parametrize(
    "to", ["hooks.example.com/T0/B0/secret", "https:/hooks.example.com/secret", "secret", "https:secret"]
)
def test_a_fault_of_a_target_does_not_repeat_it(to: str) -> None:
    """An address that lost its scheme, or a slash, may be a webhook's whose path is its secret."""
    assert "secret" not in (fault_of(to) or "secret") + shown(to)


# ---------------------------------------------------------------------------------------------------------- signatures


def test_the_published_vector() -> None:
    """The signature of the vector that the libraries of Standard Webhooks share."""
    made = signature(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(st.binary(min_size=24, max_size=64), st.text(st.characters(exclude_categories=["Cs"])))
def test_the_reference_library_verifies(key: bytes, text: str) -> None:
    """What is signed with any key passes the reference library, also as one of two secrets, and not with another key."""
    whsec, now = "whsec_" + base64.b64encode(key).decode(), datetime.now(UTC)
    body = json.dumps({"text": text}).encode()
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(int(now.timestamp()))}
    headers["webhook-signature"] = signature(f"{SECRET} {whsec}", "msg_1", int(now.timestamp()), body)
    for known in (SECRET, whsec):
        assert standardwebhooks.Webhook(known).verify(body, headers) == {"text": text}
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook("whsec_" + base64.b64encode(b"another key of 24 bytes!").decode()).verify(
            body, headers
        )


@pytest.mark.parametrize(
    "secret", ["", "short", "whsec_" + base64.b64encode(b"x" * 23).decode(), "whsec_!!", f"{SECRET} no"]
)
def test_a_weak_or_missing_secret_sends_nothing(secret: str) -> None:
    """Without a real secret nothing is sent, and the message shows nothing of it."""
    with pytest.raises(Undelivered, match="CANWAIT_WEBHOOK_SECRET") as error:
        Webhook(Notify("https://a.example"), {"CANWAIT_WEBHOOK_SECRET": secret})
    assert not secret or secret not in str(error.value)


# ------------------------------------------------------------------------------------------------------------ webhooks


def test_a_webhook_arrives_signed(tmp_path: Path) -> None:
    """The body is JSON, its headers verify, its Host is the name, and the secret may stand in a file; the path's in a variable."""
    (tmp_path / "secret").write_text(SECRET + "\n")
    now = datetime.now(UTC)
    with web() as server:
        env = {"MINE_FILE": str(tmp_path / "secret"), "TOKEN": "a/b", ALLOW_PRIVATE: "1"}
        target = Notify(f"http://hook.test:{server.port}/in/${{TOKEN}}?x=1", "MINE")
        hook = Webhook(target, env, resolve=lambda host, port: ["127.0.0.1"])
        assert hook.send(message(at=now)) == "answered 204"
        (post,) = server.got
    assert (post.path, post.headers["host"]) == ("/in/a%2Fb?x=1", f"hook.test:{server.port}")
    assert post.headers["content-type"] == "application/json"
    assert post.headers["webhook-id"] == "msg_1"
    assert standardwebhooks.Webhook(SECRET).verify(post.body, post.headers) == message().body


@pytest.mark.parametrize("status", [199, 301, 307, 400, 401, 404, 429, 500, 503])
def test_what_is_not_2xx_has_not_arrived(status: int) -> None:
    """Every other status may be tried again, and a redirect leads nowhere."""
    with web() as elsewhere, web((status, {"Location": elsewhere.url, "Content-Length": "0"})) as server:
        with pytest.raises(Undelivered) as error:
            Webhook(Notify(server.url), PRIVATE, timeout_s=2).send(message())
        assert (error.value.again, error.value.gone, elsewhere.got) == (True, False, [])


def test_410_wants_nothing_more_and_retry_after_is_heard() -> None:
    """410 disables a target; Retry-After in seconds is handed on, and nonsense is not."""
    asked = [("7", 7.0), ("soon", 0.0), ("9" * 30, 0.0), ("-1", 0.0)]
    with web(410, *((503, {"Retry-After": text}) for text, _ in asked)) as server:
        with pytest.raises(Undelivered) as error:
            Webhook(Notify(server.url), PRIVATE).send(message())
        assert (error.value.gone, error.value.again) == (True, False)
        for _, seconds in asked:
            with pytest.raises(Undelivered) as error:
                Webhook(Notify(server.url), PRIVATE).send(message())
            assert error.value.after_s == seconds


def test_a_server_that_drips_holds_nobody() -> None:
    """A whole try ends after its time, though each byte comes in time."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ended = threading.Event()

        def drip() -> None:
            connection, _ = listening.accept()
            with connection:
                try:
                    while not ended.wait(0.05):
                        connection.sendall(b"H")
                except OSError:
                    pass

        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        with pytest.raises(Undelivered):
            Webhook(Notify(f"http://127.0.0.1:{listening.getsockname()[1]}"), PRIVATE, timeout_s=0.4).send(message())
        took = time.monotonic() - began
        ended.set()
        thread.join()
    assert took < 5


def test_nobody_there() -> None:
    """A refused connection and an unknown name are told in our words, and may be tried again."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        free = listening.getsockname()[1]
    with pytest.raises(Undelivered, match="refused") as error:
        Webhook(Notify(f"http://127.0.0.1:{free}"), PRIVATE).send(message())
    assert error.value.again

    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    with pytest.raises(Undelivered, match="not known"):
        Webhook(Notify("https://nowhere.test"), ENV, resolve=unknown).send(message())


# --------------------------------------------------------------------------------------------- where a webhook may lead

INSIDE = [
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "100.100.100.200", "192.0.0.192", "198.18.0.1", "224.0.0.1", "239.255.255.255", "240.0.0.1",
    "255.255.255.255", "168.63.129.16", "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
    "::127.0.0.1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1",
    "64:ff9b::a00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::", "hook.test", "", "0177.0.0.1", "2130706433",
]  # fmt: skip


@pytest.mark.parametrize("address", INSIDE)
def test_what_leads_inside_is_not_public(address: str) -> None:
    """Private, loopback, link-local, multicast, reserved and metadata addresses, however written, are not public."""
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "::ffff:8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"]
)
def test_what_leads_out_is_public(address: str) -> None:
    """Addresses of the internet are."""
    assert is_public(address)


@given(st.integers(0, 2**32 - 1))
def test_an_ipv4_address_is_as_public_however_it_is_written(number: int) -> None:
    """Mapped into IPv6, translated by NAT64 or tunnelled by 6to4 it leads where it leads."""
    packed = number.to_bytes(4, "big")
    plain, high, low = ".".join(map(str, packed)), packed[:2].hex(), packed[2:].hex()
    for written in (f"::ffff:{plain}", f"64:ff9b::{high}:{low}", f"2002:{high}:{low}::1"):
        assert is_public(written) == is_public(plain)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::ffff:127.0.0.1"]])
def test_a_name_that_leads_inside_is_not_asked(addresses: list[str]) -> None:
    """One private address among those of a name refuses it, before any connection."""
    with pytest.raises(Undelivered, match="not public") as error:
        Webhook(Notify("https://hook.test"), ENV, resolve=lambda host, port: addresses).send(message())
    assert not error.value.again


def test_the_address_that_was_checked_is_connected_to() -> None:
    """The name is looked up once: a second answer, which may lead inside, is never asked for."""
    asked: list[str] = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["8.8.8.8"] if len(asked) == 1 else ["127.0.0.1"]

    with pytest.raises(offline.BeyondLoopback, match=r"8\.8\.8\.8"):
        Webhook(Notify("https://hook.test"), ENV, resolve=rebinding).send(message())
    assert asked == ["hook.test"]


def test_only_https_unless_allowed() -> None:
    """http:// is sent nothing unless the environment allows it."""
    with web() as server:
        with pytest.raises(Undelivered, match="https"):
            Webhook(Notify(server.url), ENV).send(message())
        assert server.got == []


def test_the_certificate_is_of_the_name(certificate: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """TLS names the host and checks its certificate for it, though an address is connected to."""
    theirs, ours = certificate

    def here(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    with web(tls=theirs) as server:
        good = Webhook(Notify(f"https://hook.test:{server.port}/x"), PRIVATE, resolve=here, context=ours)
        assert good.send(message()) == "answered 204"
        for target, context in (
            (f"https://other.test:{server.port}/x", ours),
            (f"https://hook.test:{server.port}/x", None),
        ):
            with pytest.raises(Undelivered, match="certificate"):
                Webhook(Notify(target), PRIVATE, resolve=here, context=context).send(message())
        assert len(server.got) == 1


# ---------------------------------------------------------------------------------------------------------------- mail


def test_a_mail_arrives() -> None:
    """One mail to one address, with date, stable id, the title as its subject and the text as its body."""
    with mail_server() as server:
        env = {"CANWAIT_SMTP_URL": f"smtp://127.0.0.1:{server.port}", "CANWAIT_SMTP_FROM": "canwait@example.com"}
        sent = open_channel(Notify("mailto:me@example.com"), env).send(message(text="Über 3 ok.\n"))
        assert sent == "the mail server took it"
        ((sender, to, mail),) = server.mails
    assert (sender, to) == ("canwait@example.com", ["me@example.com"])
    assert (mail["subject"], mail["to"]) == ("labels is done", "me@example.com")
    assert (mail["message-id"], mail["date"]) == ("<msg_1@canwait.invalid>", "Sun, 22 Nov 2026 07:00:00 +0000")
    payload = mail.get_payload(decode=True)
    assert isinstance(payload, bytes)
    assert payload.decode("utf-8").strip() == "Über 3 ok."
    assert AT == message().at


def test_a_mail_that_was_taken_is_not_sent_again() -> None:
    """However the server says goodbye, it has the mail: another try would bring a second one."""
    with mail_server(goodbye="421 too busy to say goodbye") as server:
        env = {"CANWAIT_SMTP_URL": f"smtp://127.0.0.1:{server.port}", "CANWAIT_SMTP_FROM": "c@example.com"}
        assert Smtp("me@example.com", env).send(message()) == "the mail server took it"
        assert len(server.mails) == 1


def test_a_password_travels_by_tls_only(certificate: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """Over smtps:// it logs in; a server without TLS is told neither the password nor the mail."""
    theirs, ours = certificate
    env = {"PASS": "p@ ss:/", "CANWAIT_SMTP_FROM": "c@example.com"}
    with mail_server(extensions=["AUTH PLAIN"]) as open_one:
        env["CANWAIT_SMTP_URL"] = f"smtp://me:${{PASS}}@127.0.0.1:{open_one.port}"
        with pytest.raises(Undelivered, match="TLS"):
            Smtp("me@example.com", env).send(message())
        assert (open_one.mails, [c for c in open_one.said if c.startswith("AUTH")]) == ([], [])
    with mail_server(tls=theirs, extensions=["AUTH PLAIN"]) as safe:
        ours.check_hostname = False  # it is reached by its address here
        env["CANWAIT_SMTP_URL"] = f"smtps://me:${{PASS}}@127.0.0.1:{safe.port}"
        Smtp("me@example.com", env, context=ours).send(message())
        ours.check_hostname = True
        (auth,) = [c for c in safe.said if c.startswith("AUTH")]
        assert base64.b64decode(auth.split()[-1]).decode() == "\0me\0p@ ss:/"
        with pytest.raises(Undelivered, match="TLS") as error:
            Smtp("me@example.com", env).send(message())
        assert "ss" not in str(error.value)


@pytest.mark.parametrize(("reply", "again"), [("550 no such user, secret words", False), ("451 later", True)])
def test_what_the_mail_server_refuses(reply: str, again: bool) -> None:
    """An unknown recipient is not tried again, a busy server is, and its words are not kept."""
    with mail_server(to_recipient=reply) as server:
        env = {"CANWAIT_SMTP_URL": f"smtp://127.0.0.1:{server.port}", "CANWAIT_SMTP_FROM": "c@example.com"}
        with pytest.raises(Undelivered, match=reply[:3]) as error:
            Smtp("me@example.com", env).send(message())
    assert error.value.again is again
    assert "words" not in str(error.value)


def test_a_title_cannot_add_a_header() -> None:
    """A line break in a title makes no mail, rather than another recipient."""
    with mail_server() as server:
        env = {"CANWAIT_SMTP_URL": f"smtp://127.0.0.1:{server.port}", "CANWAIT_SMTP_FROM": "c@example.com"}
        with pytest.raises(Undelivered):
            Smtp("me@example.com", env).send(message(title="x\nBcc: you@example.com"))
        assert server.mails == []


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"CANWAIT_SMTP_URL": "smtp://h"},
        {"CANWAIT_SMTP_URL": "http://h", "CANWAIT_SMTP_FROM": "a@b"},
        {"CANWAIT_SMTP_URL": "smtps://me@x:${NOT_SET}@h"},
        {"CANWAIT_SMTP_URL": "smtp://h:port", "CANWAIT_SMTP_FROM": "a@b"},
        {"CANWAIT_SMTP_URL": "smtp://", "CANWAIT_SMTP_FROM": "a@b"},
    ],
)
def test_mail_without_a_server_says_what_is_missing(env: dict[str, str]) -> None:
    """A missing or wrong setting is named, and may be there the next time."""
    with pytest.raises(Undelivered, match=r"CANWAIT_SMTP|NOT_SET") as error:
        open_channel(Notify("mailto:me@example.com"), env)
    assert error.value.again


# ------------------------------------------------------------------------------------------------------------- apprise


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # apprise's own
def test_apprise_delivers() -> None:
    """What a variable holds is handed to apprise, which posts title and text; a fault is told without its address."""
    pytest.importorskip("apprise")
    with web(200, 500) as server:
        env = {"HOOK": server.url.replace("http", "json") + "/secret"}
        channel = open_channel(Notify("apprise:HOOK"), env)
        assert channel.send(message()) == "apprise delivered it"
        said = json.loads(server.got[0].body)
        assert (said["title"], said["message"].strip()) == ("labels is done", "3 ok.")
        with pytest.raises(Undelivered) as error:
            channel.send(message())
    assert "secret" not in str(error.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "NAME is not set"),
        ("nosuch://x/secret", "does not know"),
        ("json://x/secret json://y/secret", "2 addresses; give each"),
    ],
)
def test_apprise_without_a_usable_address(value: str, words: str, caplog: pytest.LogCaptureFixture) -> None:
    """The variable is named, what it holds is neither shown nor logged; several would be told again when one fails."""
    pytest.importorskip("apprise")
    with caplog.at_level("DEBUG"), pytest.raises(Undelivered, match=words) as error:
        open_channel(Notify("apprise:NAME"), {"NAME": value})
    assert "secret" not in str(error.value) + caplog.text
