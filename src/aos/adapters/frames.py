"""Length-capped frames over a byte stream (docs/spec/10-tee.md, "Frames").

A frame is a u32, big-endian, that counts the bytes which follow, then those bytes. The length is checked
before a byte of the payload is read or memory is taken for it. What a frame holds is none of this module's
business, and it does not encrypt or authenticate: it connects an enclave to the host that it must not trust
anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from aos.errors import InvalidMessage, Unavailable

HEADER_BYTES = 4
MAX_FRAME_BYTES = 4 * 1024 * 1024
_READ_AHEAD = 1024 * 1024


class FrameStream:
    """Both directions of one connection. Any number of tasks may write; one reads.

    ``timeout_s`` bounds how long a frame that has begun may take, in either direction, so that a peer that
    stops in the middle holds nothing for ever. Waiting for a frame to begin is bounded only where ``read`` is
    told so.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        max_frame: int = MAX_FRAME_BYTES,
        timeout_s: float = 30.0,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._max_frame = max_frame
        self._timeout_s = timeout_s
        self._writing = asyncio.Lock()

    @classmethod
    async def connect_unix(
        cls, path: str, *, max_frame: int = MAX_FRAME_BYTES, timeout_s: float = 30.0
    ) -> FrameStream:
        """Connect to a Unix socket. Raises Unavailable ``frame.no_peer``."""
        try:
            reader, writer = await asyncio.open_unix_connection(path, limit=_READ_AHEAD)
        except OSError as error:
            raise Unavailable("frame.no_peer", f"nobody listens on the socket: {error.strerror}") from error
        return cls(reader, writer, max_frame=max_frame, timeout_s=timeout_s)

    @classmethod
    async def connect_vsock(
        cls, cid: int, port: int, *, max_frame: int = MAX_FRAME_BYTES, timeout_s: float = 30.0
    ) -> FrameStream:
        """Connect to an enclave's vsock port. Raises Unavailable ``frame.no_peer``."""
        try:
            dialled = _vsock()
        except OSError as error:
            raise Unavailable("frame.no_peer", f"no vsock here: {error.strerror}") from error
        try:
            dialled.settimeout(timeout_s)
            await asyncio.to_thread(dialled.connect, (cid, port))
            reader, writer = await asyncio.open_connection(sock=dialled, limit=_READ_AHEAD)
        except OSError as error:
            dialled.close()
            raise Unavailable(
                "frame.no_peer", f"nobody listens at vsock {cid}:{port}: {error.strerror or 'no answer'}"
            ) from error
        except BaseException:
            dialled.close()
            raise
        return cls(reader, writer, max_frame=max_frame, timeout_s=timeout_s)

    async def read(self, *, begin_within_s: float | None = None) -> bytes | None:
        """The next frame's payload; None where the peer ended the stream between two frames.

        Raises InvalidMessage (``frame.too_large``, ``frame.empty``), after which the stream must be closed,
        or Unavailable (``frame.truncated``, ``frame.timeout``).
        """
        try:
            async with asyncio.timeout(begin_within_s):
                first = await self._reader.read(1)
        except TimeoutError:
            raise Unavailable("frame.timeout", f"no frame within {begin_within_s:g} s") from None
        except OSError as error:
            raise Unavailable("frame.truncated", "the connection broke") from error
        if not first:
            return None
        try:
            async with asyncio.timeout(self._timeout_s):
                length = int.from_bytes(first + await self._reader.readexactly(HEADER_BYTES - 1), "big")
                if length == 0:
                    raise InvalidMessage("frame.empty", "a frame of no bytes")
                if length > self._max_frame:
                    raise InvalidMessage(
                        "frame.too_large", f"a frame of {length} bytes, more than {self._max_frame}"
                    )
                return await self._reader.readexactly(length)
        except TimeoutError:
            raise Unavailable("frame.timeout", f"a frame took longer than {self._timeout_s:g} s") from None
        except (asyncio.IncompleteReadError, OSError) as error:
            raise Unavailable("frame.truncated", "the stream ended inside a frame") from error

    async def write(self, payload: bytes | memoryview) -> None:
        """Send one frame.

        Raises InvalidMessage (``frame.too_large``, ``frame.empty``; nothing was sent) or Unavailable
        (``frame.timeout``, ``frame.closed``).
        """
        if not payload:
            raise InvalidMessage("frame.empty", "a frame of no bytes")
        if len(payload) > self._max_frame:
            raise InvalidMessage(
                "frame.too_large", f"a frame of {len(payload)} bytes, more than {self._max_frame}"
            )
        async with self._writing:
            try:
                self._writer.write(len(payload).to_bytes(HEADER_BYTES, "big"))
                self._writer.write(payload)
                async with asyncio.timeout(self._timeout_s):
                    await self._writer.drain()
            except TimeoutError:
                self._writer.transport.abort()
                raise Unavailable(
                    "frame.timeout", f"the peer took no bytes for {self._timeout_s:g} s"
                ) from None
            except OSError as error:
                raise Unavailable("frame.closed", "the connection is closed") from error

    async def close(self) -> None:
        """Close the connection. Never raises."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def vsock_listener(port: int) -> socket.socket:
    """A socket that listens on ``port`` of vsock, for whoever reaches this machine's CID. Raises Unavailable
    ``frame.no_vsock``."""
    try:
        listener = _vsock()
    except OSError as error:
        raise Unavailable("frame.no_vsock", f"no vsock here: {error.strerror}") from error
    try:
        listener.bind((socket.VMADDR_CID_ANY, port))
        listener.listen(4)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise Unavailable(
            "frame.no_vsock", f"cannot listen on vsock port {port}: {error.strerror}"
        ) from error
    return listener


def _vsock() -> socket.socket:
    if not hasattr(socket, "AF_VSOCK"):
        raise OSError(None, "this system has no vsock")
    return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
