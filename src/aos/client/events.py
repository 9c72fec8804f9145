"""A job's server-sent events, read within limits (docs/spec/09-http.md)."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

from aos.client.transfer import MAX_NESTED
from aos.core.encoding import check_nesting
from aos.errors import InvalidMessage

MAX_EVENT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """One server-sent event of a job."""

    id: str
    kind: str
    data: dict[str, Any]


async def read_events(parts: AsyncIterator[bytes]) -> AsyncGenerator[JobEvent, None]:
    """The events in a stream's bytes. Raises InvalidMessage ``client.event``: over 1 MiB, or not readable."""
    kind, event_id = "message", ""
    data: list[str] = []
    size = 0
    async for line in _lines(parts):
        size += len(line)
        if size > MAX_EVENT_BYTES:
            raise _bad(f"of more than {MAX_EVENT_BYTES} bytes")
        if not line:
            if data:
                yield JobEvent(id=event_id, kind=kind, data=_object("\n".join(data)))
            kind, data, size = "message", [], 0
            continue
        try:
            name, _, value = line.decode().partition(":")
        except UnicodeDecodeError:
            raise _bad("that is not UTF-8") from None
        value = value.removeprefix(" ")
        if name == "event":
            kind = value.strip()
        elif name == "id":
            event_id = value.strip()
        elif name == "data":
            data.append(value)


async def _lines(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    held = bytearray()
    async for part in parts:
        searched = len(held)
        held += part
        begin = 0
        while (end := held.find(b"\n", max(begin, searched))) >= 0:
            yield bytes(held[begin:end]).removesuffix(b"\r")
            begin = end + 1
        del held[:begin]
        if len(held) > MAX_EVENT_BYTES:
            raise _bad(f"of more than {MAX_EVENT_BYTES} bytes")


def _object(text: str) -> dict[str, Any]:
    try:
        check_nesting(text.encode(), MAX_NESTED)
        value = json.loads(text)
    except (ValueError, InvalidMessage):
        value = None
    if not isinstance(value, dict):
        raise _bad("whose data are no JSON object")
    return value


def _bad(what: str) -> InvalidMessage:
    return InvalidMessage("client.event", f"the dispatcher sent an event {what}")
