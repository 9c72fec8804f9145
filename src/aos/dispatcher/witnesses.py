"""Sends every checkpoint to the configured witnesses and keeps their cosignatures (docs/spec/15-log.md, "Witnesses").

One task for each witness, so that a slow one holds up nobody; one that does not answer costs its own cosignature and nothing else.
"""

import asyncio

import httpx
import structlog

from aos.core.log.checkpoint import read_head
from aos.core.log.note import NoteKey, read_note, read_signature_line, verify_note_signature
from aos.core.log.witness import write_add_checkpoint
from aos.dispatcher.log import Log
from aos.errors import AOSError, Unavailable, VerificationError

log = structlog.get_logger("aos.dispatcher")

LOOK_S = 1.0
TIMEOUT_S = 10.0
PATIENCE_S = 60.0
"""The longest pause after failures."""
MAX_ANSWER_BYTES = 16_384


class WitnessFeed:
    """Feeds one witness."""

    def __init__(self, held: Log, key: NoteKey, url: str, *, look_s: float = LOOK_S) -> None:
        self._log, self._key, self._url, self._look_s = held, key, url.rstrip("/"), look_s
        self._known: int | None = None
        """The size that the witness cosigned last, as far as it has said."""

    async def run(self) -> None:
        """Feed until cancelled."""
        pause = self._look_s
        async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as http:
            while True:
                try:
                    await self.feed(http)
                    pause = self._look_s
                except (AOSError, httpx.HTTPError, httpx.InvalidURL) as error:
                    code = error.code if isinstance(error, AOSError) else type(error).__name__
                    log.warning("witness.failed", witness=self._key.name, code=code)
                    pause = min(2 * pause, PATIENCE_S)
                await asyncio.sleep(pause)

    async def feed(self, http: httpx.AsyncClient) -> None:
        """Have the latest tree cosigned, where it is not. Raises AOSError, httpx.HTTPError."""
        size = await self._log.public_size()
        if size in (0, self._known):
            return
        text = await self._log.checkpoint()
        note = read_note(text)
        head = read_head(note)
        for _ in range(2):  # the second time with the size that it told us
            old = self._known or 0
            if old > head.size:
                raise VerificationError("witness.ahead", f"the witness holds a tree of {old} leaves")
            path = (await self._log.consistency(old, head.size))["path"] if 0 < old < head.size else []
            answer = await http.post(
                f"{self._url}/add-checkpoint", content=write_add_checkpoint(old, path, text)
            )
            body = answer.text[:MAX_ANSWER_BYTES]
            if answer.status_code == 409 and body.strip().isdecimal() and len(body) < 20:
                self._known = int(body)
                continue
            if answer.status_code != 200:
                raise Unavailable("witness.refused", f"the witness answers {answer.status_code}")
            for line in map(read_signature_line, body.removesuffix("\n").split("\n")):
                if (line.name, line.key_id) == (self._key.name, self._key.key_id):
                    verify_note_signature(note.text, line, self._key)
                    await self._log.cosigned(head.size, str(self._key), line)
                    self._known = head.size
                    return
            raise VerificationError("witness.unsigned", "the answer has no line of the witness's key")
