"""Ask a running enclave to prove, with a nonce, that it is what its image says (docs/spec/10-tee.md, "Enclave").

Before it is given a model or a boot: what answers is judged by whoever asked, and nothing is believed of the way there.
"""

from __future__ import annotations

import secrets

from aos.adapters.frames import FrameStream
from aos.errors import RuleViolation, Unavailable, VerificationError
from aos.workers.enclave.messages import (
    MAX_FRAME_BYTES,
    Challenge,
    Challenged,
    Failed,
    pack,
    read_from_enclave,
)

ANSWERS_WITHIN_S = 60.0
NONCE_BYTES = 32


async def challenge(address: str | tuple[int, int]) -> tuple[bytes, bytes]:
    """A fresh nonce (32 bytes), and the document that the enclave at ``address`` answers it with: a Unix socket's path,
    or CID and port of vsock.

    Raises Unavailable ``frame.*``, ``enclave.silent``; InvalidMessage ``frame.*``, ``encoding.*``, ``field.*``;
    RuleViolation with the enclave's own code where it refuses; VerificationError ``enclave.protocol``.
    """
    stream = (
        await FrameStream.connect_unix(address, max_frame=MAX_FRAME_BYTES)
        if isinstance(address, str)
        else await FrameStream.connect_vsock(*address, max_frame=MAX_FRAME_BYTES)
    )
    try:
        nonce = secrets.token_bytes(NONCE_BYTES)
        await stream.write(pack(Challenge(id=1, nonce=nonce)))
        payload = await stream.read(begin_within_s=ANSWERS_WITHIN_S)
    finally:
        await stream.close()
    if payload is None:
        raise Unavailable(
            "enclave.silent", "the enclave closed the connection", hint="is another host connected to it?"
        )
    reply = read_from_enclave(payload)
    if isinstance(reply, Failed):
        raise RuleViolation(reply.code, f"the enclave refused: {reply.message}", field=reply.field)
    if not isinstance(reply, Challenged) or reply.id != 1:
        raise VerificationError("enclave.protocol", "the enclave answered something else")
    return nonce, reply.document
