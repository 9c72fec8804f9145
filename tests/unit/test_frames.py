"""Frames over a real Unix socket: what is whole comes through, everything else is refused before it costs anything."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aos.adapters import frames
from aos.adapters.frames import FrameStream
from aos.errors import AOSError, InvalidMessage, Unavailable

MAX = 1000


@asynccontextmanager
async def pair(
    **options: Any,
) -> AsyncIterator[tuple[FrameStream, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A FrameStream and the bare other end of its connection."""
    ours, theirs = socket.socketpair()
    stream = FrameStream(*await asyncio.open_unix_connection(sock=ours), max_frame=MAX, **options)
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    try:
        yield stream, reader, writer
    finally:
        await stream.close()
        writer.close()


async def refused(call: Coroutine[Any, Any, object], cls: type[AOSError], code: str) -> AOSError:
    with pytest.raises(cls) as caught:
        await call
    assert type(caught.value) is cls
    assert caught.value.code == code
    return caught.value


async def write_on(stream: FrameStream, payload: bytes) -> None:
    for _ in range(10_000):
        await stream.write(payload)


@pytest.mark.parametrize("payload", [b"x", b"\0" * 255, bytes(range(250)) * 4])
async def test_a_frame_is_a_big_endian_length_and_then_the_payload(payload: bytes) -> None:
    async with pair() as (stream, reader, writer):
        await stream.write(payload)
        assert await reader.readexactly(4 + len(payload)) == len(payload).to_bytes(4, "big") + payload
        writer.write(len(payload).to_bytes(4, "big") + payload)
        assert await stream.read() == payload


async def test_frames_that_arrive_byte_by_byte_or_together_come_apart_again() -> None:
    async with pair() as (stream, _, writer):
        for byte in b"\0\0\0\x02ab":
            writer.write(bytes([byte]))
            await writer.drain()
        assert await stream.read() == b"ab"
        writer.write(b"\0\0\0\x01c\0\0\0\x01d")
        assert [await stream.read(), await stream.read()] == [b"c", b"d"]


async def test_many_writers_do_not_mix_their_frames() -> None:
    payloads = [bytes([65 + n]) * (n * 37 + 1) for n in range(20)]
    async with pair() as (stream, reader, _):
        await asyncio.gather(*(stream.write(payload) for payload in payloads))
        seen = []
        for _ in payloads:
            seen.append(await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big")))
        assert sorted(seen) == sorted(payloads)


async def test_an_end_between_two_frames_is_an_end() -> None:
    async with pair() as (stream, _, writer):
        writer.write(b"\0\0\0\x01a")
        writer.write_eof()
        assert await stream.read() == b"a"
        assert await stream.read() is None


@pytest.mark.parametrize("sent", [b"\0", b"\0\0\0", b"\0\0\0\x05", b"\0\0\0\x05abcd"])
async def test_an_end_inside_a_frame_is_no_frame(sent: bytes) -> None:
    async with pair() as (stream, _, writer):
        writer.write(sent)
        writer.write_eof()
        await refused(stream.read(), Unavailable, "frame.truncated")


@pytest.mark.parametrize("length", [MAX + 1, 2**31, 2**32 - 1])
async def test_a_length_beyond_the_cap_is_refused_before_a_byte_of_payload_is_there(length: int) -> None:
    async with pair() as (stream, _, writer):
        writer.write(length.to_bytes(4, "big"))
        error = await refused(stream.read(), InvalidMessage, "frame.too_large")
        assert str(length) in error.message
        assert str(MAX) in error.message


async def test_the_largest_frame_is_taken() -> None:
    async with pair() as (stream, _, writer):
        writer.write(MAX.to_bytes(4, "big") + b"x" * MAX)
        assert await stream.read() == b"x" * MAX


async def test_an_empty_frame_is_refused() -> None:
    async with pair() as (stream, _, writer):
        writer.write(bytes(4))
        await refused(stream.read(), InvalidMessage, "frame.empty")


@pytest.mark.parametrize(("payload", "code"), [(b"", "frame.empty"), (b"x" * (MAX + 1), "frame.too_large")])
async def test_nothing_is_sent_of_a_frame_that_the_peer_would_refuse(payload: bytes, code: str) -> None:
    async with pair() as (stream, reader, _):
        await refused(stream.write(payload), InvalidMessage, code)
        await stream.write(b"next")
        assert await reader.readexactly(8) == b"\0\0\0\x04next"


@pytest.mark.parametrize("sent", [b"\0\0", b"\0\0\0\x05abc"])
async def test_a_peer_that_stops_inside_a_frame_holds_nothing_for_ever(sent: bytes) -> None:
    async with pair(timeout_s=0.05) as (stream, _, writer):
        writer.write(sent)
        await refused(stream.read(), Unavailable, "frame.timeout")


async def test_waiting_for_a_frame_to_begin_is_bounded_only_where_asked() -> None:
    async with pair(timeout_s=0.01) as (stream, _, writer):
        await refused(stream.read(begin_within_s=0.01), Unavailable, "frame.timeout")
        waiting = asyncio.create_task(stream.read())
        assert not (await asyncio.wait({waiting}, timeout=0.1))[0], "a pause between frames is no fault"
        writer.write(b"\0\0\0\x01a")
        assert await waiting == b"a"


async def test_a_peer_that_takes_no_bytes_is_given_up() -> None:
    async with pair(timeout_s=0.05) as (stream, reader, _):
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await refused(write_on(stream, b"x" * MAX), Unavailable, "frame.timeout")


async def test_writing_to_a_peer_that_is_gone_says_so() -> None:
    async with pair() as (stream, _, writer):
        writer.transport.abort()
        assert await stream.read() is None
        await refused(write_on(stream, b"x"), Unavailable, "frame.closed")


async def test_a_socket_that_nobody_serves_is_named_as_that(tmp_path: Path) -> None:
    await refused(FrameStream.connect_unix(str(tmp_path / "none.sock")), Unavailable, "frame.no_peer")


async def test_two_ends_over_a_socket_file(tmp_path: Path) -> None:
    path = str(tmp_path / "s.sock")

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = FrameStream(reader, writer, max_frame=MAX)
        while (payload := await stream.read()) is not None:
            await stream.write(payload[::-1])
        await stream.close()

    serve: Callable[..., Any] = echo
    async with await asyncio.start_unix_server(serve, path):
        stream = await FrameStream.connect_unix(path, max_frame=MAX)
        await stream.write(b"abc")
        assert await stream.read() == b"cba"
        await stream.close()


# --- vsock


async def test_frames_go_over_vsock_as_over_any_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's part is played by a socket of another family: this machine has no enclave to reach."""
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(frames, "_vsock", lambda: _Dialled(ours))
    stream = await FrameStream.connect_vsock(16, 5000)
    reader, writer = await asyncio.open_connection(sock=theirs)
    peer = FrameStream(reader, writer)
    await stream.write(b"to the enclave")
    assert await peer.read() == b"to the enclave"
    await peer.write(b"to the host")
    assert await stream.read() == b"to the host"
    await stream.close()
    await peer.close()


class _Dialled(socket.socket):
    """A connected socket that remembers whom it was told to dial."""

    def __init__(self, other: socket.socket) -> None:
        super().__init__(fileno=other.detach())

    def connect(self, address: object) -> None:
        assert address == (16, 5000)


@pytest.mark.skipif(not hasattr(socket, "AF_VSOCK"), reason="this system has no vsock")
async def test_nobody_at_a_vsock_port_is_named_as_that() -> None:
    with pytest.raises(Unavailable) as caught:
        await FrameStream.connect_vsock(2**31, 5000, timeout_s=0.2)
    assert caught.value.code == "frame.no_peer"


@pytest.mark.skipif(not hasattr(socket, "AF_VSOCK"), reason="this system has no vsock")
def test_a_vsock_port_can_be_listened_on_or_the_refusal_is_named() -> None:
    try:
        listener = frames.vsock_listener(50_311)
    except Unavailable as error:
        assert error.code == "frame.no_vsock"  # noqa: PT017  a container without the device
        return
    assert listener.family == socket.AF_VSOCK
    assert listener.getsockname()[1] == 50_311
    with pytest.raises(Unavailable) as caught:
        frames.vsock_listener(50_311)
    assert caught.value.code == "frame.no_vsock"
    listener.close()


def test_a_system_without_vsock_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_VSOCK", raising=False)
    with pytest.raises(Unavailable) as caught:
        frames.vsock_listener(5000)
    assert caught.value.code == "frame.no_vsock"
