"""Webhooks: which addresses may be called, what is signed, and what a receiver believes (docs/spec/09-http.md, "Webhooks")."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import ssl
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from peers.engine_case import write_config
from standardwebhooks import Webhook, WebhookVerificationError

from aos.client import verify_webhook
from aos.dispatcher import webhooks
from aos.dispatcher.config import load_config
from aos.dispatcher.setup import webhook_secret
from aos.dispatcher.webhook_url import allow_url, check_url, is_public
from aos.dispatcher.webhooks import public_address, sign_message
from aos.errors import InvalidMessage, VerificationError

SECRET = webhook_secret(b"\x07" * 32, "p-1")
BODY = json.dumps({"type": "job.done", "data": {"job_id": "0" * 64}}).encode()


# --- addresses


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1"),
        *("::1", "::", "fe80::1", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1", "fec0::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "2002:a00:1::", "64:ff9b::7f00:1"),
        *("64:ff9b::a00:1", "64:ff9b:1::1"),
    ],
)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(InvalidMessage) as error:
        allow_url(f"https://{host}/x", loopback=False, field="webhook")
    assert error.value.code == "webhook.address"


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_a_public_address_is_allowed(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@given(st.integers(0, 2**32 - 1))
def test_an_embedded_address_is_judged_as_the_address(number: int) -> None:
    inner = ipaddress.IPv4Address(number)
    mapped = ipaddress.IPv6Address((0xFFFF << 32) | number)
    nat64 = ipaddress.IPv6Address((0x64FF9B << 96) | number)
    assert is_public(mapped) == is_public(nat64) == is_public(inner)


@pytest.mark.parametrize(
    "url",
    [
        *("http://example.org/", "http://127.0.0.1/", "http://[::1]/"),
        *("https://localhost/", "https://localhost./", "https://x.localhost/"),
        *("https://127.1/", "https://0x7f.1/", "https://2130706433/", "https://0177.0.0.1/"),
    ],
)
def test_what_is_not_https_or_names_this_machine_is_refused(url: str) -> None:
    with pytest.raises(InvalidMessage) as error:
        allow_url(check_url(url, "webhook"), loopback=False, field="webhook")
    assert error.value.code in ("webhook.scheme", "webhook.address")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "http://localhost/", "http://[::1]:1/"])
def test_a_development_network_may_name_loopback(url: str) -> None:
    allow_url(check_url(url, "webhook"), loopback=True, field="webhook")
    with pytest.raises(InvalidMessage):
        allow_url("https://10.0.0.1/", loopback=True, field="webhook")
    with pytest.raises(InvalidMessage):
        allow_url("http://example.org/", loopback=True, field="webhook")


@pytest.mark.parametrize(
    "value",
    [
        *("", "x", "ftp://example.org", "file:///etc/passwd", "https://", "https:///x", "//example.org"),
        *("https://user:pw@example.org/", "https://user@example.org/", "https://example.org/#f"),
        *("https://example.org:0/", "https://example.org:99999/", "https://exa mple.org/", "https://[::1/"),
        *(
            "https://example.org/\n",
            "https://example.org/\\x",
            "https://exämple.org/",
            "https://x/" + "a" * 2048,
        ),
    ],
)
def test_a_url_that_can_be_read_in_two_ways_is_refused(value: str) -> None:
    with pytest.raises(InvalidMessage) as error:
        check_url(value, "webhook")
    assert (error.value.code, error.value.field) == ("webhook.url", "webhook")


@pytest.mark.parametrize("value", [None, 7, ["https://example.org"]])
def test_a_url_is_text(value: object) -> None:
    with pytest.raises(InvalidMessage) as error:
        check_url(value, "webhook")
    assert error.value.code == "field.type"


async def test_a_name_that_leads_home_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolved(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(2, 1, 6, "", ("93.184.216.34", 443)), (2, 1, 6, "", ("10.0.0.1", 443))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolved)
    with pytest.raises(InvalidMessage) as error:
        await public_address("rebind.example.org", 443)
    assert error.value.code == "webhook.address"


async def test_a_name_gives_the_address_that_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolved(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(2, 1, 6, "", ("93.184.216.34", 443))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolved)
    assert await public_address("example.org", 443) == "93.184.216.34"


# --- signatures


def headers(secret: str = SECRET, when: int | None = None, body: bytes = BODY) -> dict[str, str]:
    timestamp = int(time.time()) if when is None else when
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign_message(secret, "msg_1", timestamp, body),
    }


def test_the_signature_is_that_of_the_standard_s_example() -> None:
    signature = sign_message(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_stock_library_and_the_sdk_believe_what_is_signed() -> None:
    assert Webhook(SECRET).verify(BODY, headers()) == json.loads(BODY)
    assert verify_webhook(SECRET, headers(), BODY) == json.loads(BODY)
    upper = {name.title(): value for name, value in headers().items()}
    several = upper | {"Webhook-Signature": "v1a,zzz v1,AAAA " + upper["Webhook-Signature"]}
    assert verify_webhook(SECRET, several, BODY) == json.loads(BODY)


@pytest.mark.parametrize(
    ("changes", "body", "code"),
    [
        ({"webhook-id": "msg_2"}, BODY, "webhook.signature"),
        ({"webhook-timestamp": "a second before"}, BODY, "webhook.signature"),
        ({"webhook-signature": "v1,AAAA"}, BODY, "webhook.signature"),
        ({"webhook-signature": ""}, BODY, "webhook.signature"),
        ({}, BODY + b" ", "webhook.signature"),
        ({"webhook-timestamp": "soon"}, BODY, "webhook.headers"),
        ({"webhook-timestamp": "5"}, BODY, "webhook.time"),
        ({"webhook-timestamp": str(2**40)}, BODY, "webhook.time"),
    ],
)
def test_what_was_changed_is_not_believed(changes: dict[str, str], body: bytes, code: str) -> None:
    now = int(time.time())
    if changes.get("webhook-timestamp") == "a second before":
        changes = {"webhook-timestamp": str(now - 1)}
    changed = headers(when=now) | changes
    with pytest.raises(VerificationError) as error:
        verify_webhook(SECRET, changed, body)
    assert error.value.code == code
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body, changed)


def test_another_project_s_or_dispatcher_s_secret_does_not_fit() -> None:
    for other in (webhook_secret(b"\x07" * 32, "p-2"), webhook_secret(b"\x08" * 32, "p-1")):
        assert len(base64.b64decode(other.removeprefix("whsec_"))) == 32
        with pytest.raises(VerificationError):
            verify_webhook(other, headers(), BODY)
    with pytest.raises(InvalidMessage):
        verify_webhook("whsec_!", headers(), BODY)


def test_a_header_that_is_missing_is_refused() -> None:
    for name in headers():
        with pytest.raises(VerificationError) as error:
            verify_webhook(SECRET, {k: v for k, v in headers().items() if k != name}, BODY)
        assert error.value.code == "webhook.headers"


# --- over TLS


def certificate(name: str, directory: Path) -> Path:
    """A file with a key and a certificate for ``name``, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = directory / f"{name}.pem"
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + made.public_bytes(Encoding.PEM)
    )
    return path


@pytest.mark.parametrize(
    ("named", "outcome"), [("hooks.example.org", 200), ("127.0.0.1.example.org", httpx.ConnectError)]
)
async def test_the_name_is_what_the_certificate_must_be_for_though_an_address_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, outcome: Any
) -> None:
    """The receiver listens on this machine: only here, where the test says which address the name has."""
    pem = certificate(named, tmp_path)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(pem)
    names, heads = [], []
    serving.sni_callback = lambda _, name, __: names.append(name)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=serving)
    port = server.sockets[0].getsockname()[1]

    async def here(host: str, asked: int) -> str:
        assert (host, asked) == ("hooks.example.org", port)
        return "127.0.0.1"

    monkeypatch.setattr(webhooks, "public_address", here)
    config = load_config(write_config(tmp_path, "postgres://nowhere"), environment={})
    sender = webhooks.Webhooks(
        cast(Any, None), config, told=lambda _: None, tls=ssl.create_default_context(cafile=str(pem))
    )
    row = {
        "url": f"https://hooks.example.org:{port}/x?y=1",
        "event": "{}",
        "message_id": "m",
        "project_id": "p",
    }
    try:
        if outcome == 200:
            assert await sender.post(row) == 200
            assert heads[0].startswith("POST /x?y=1 HTTP/1.1\r\n")
            assert f"host: hooks.example.org:{port}\r\n" in heads[0].lower()
        else:
            with pytest.raises(outcome):
                await sender.post(row)
            assert heads == []
        assert names == ["hooks.example.org"]
    finally:
        server.close()
        await sender.stop()
