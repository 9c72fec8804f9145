"""Where a webhook may go: rules about a URL and about an address. Pure; who resolves and connects is ``webhooks``.

A dispatcher stands inside somebody's network. A URL that a stranger names must not make it talk to what only that network reaches.
"""

import ipaddress
from typing import Any
from urllib.parse import SplitResult, urlsplit

from aos.errors import InvalidMessage

MAX_URL = 2048
LOOPBACK_NAMES = ("127.0.0.1", "::1", "localhost")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def check_url(value: Any, field: str) -> str:
    """A URL of http or https with a host, and nothing that could be read in two ways.

    Raises InvalidMessage ``field.type``, ``webhook.url``.
    """
    if not isinstance(value, str):
        raise InvalidMessage("field.type", f"{field}: must be a string", field=field)
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    plain = value.isascii() and value.isprintable() and not set(value) & set(' \\"<>^`{|}')
    if not usable or not plain or len(value) > MAX_URL or parts.username is not None or "#" in value:
        raise InvalidMessage(
            "webhook.url",
            f"{field}: must be an https URL of at most {MAX_URL} characters, without user name and fragment",
            field=field,
        )
    return value


def allow_url(url: str, *, loopback: bool, field: str) -> None:
    """Whether a checked URL may be called at all; what its name resolves to is looked at when it is called.

    ``loopback``: this is a development network whose dispatcher may call this machine, by http too, where the URL names it
    literally. Raises InvalidMessage ``webhook.scheme``, ``webhook.address``.
    """
    parts = urlsplit(url)
    if loopback and parts.hostname in LOOPBACK_NAMES:
        return
    if parts.scheme != "https":
        raise InvalidMessage("webhook.scheme", f"{field}: must be https", field=field)
    try:
        address = ipaddress.ip_address(parts.hostname or "")
    except ValueError:
        if looks_like_an_address(parts):
            raise _refused(field) from None
        return
    if not is_public(address):
        raise _refused(field)


def looks_like_an_address(parts: SplitResult) -> bool:
    """A host such as ``0x7f.1`` or ``2130706433``, which some resolvers take for an address, or a name of this machine."""
    host = (parts.hostname or "").rstrip(".")
    last = host.rpartition(".")[2]
    return last[:1].isdigit() or host == "localhost" or last == "localhost"


def is_public(address: Address) -> bool:
    """Whether an address is a host's on the public Internet, whatever it embeds being one too."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _refused(field: str) -> InvalidMessage:
    return InvalidMessage(
        "webhook.address",
        f"{field}: names an address that is not public",
        field=field,
        hint="a development network may name 127.0.0.1, where its dispatcher's webhook_loopback is on",
    )
