"""Anchors: from time to time the root of the log's signed tree is written into the contract (docs/spec/15-log.md, "Anchors").

Whether one is due, the journal and the contract say: a process that is killed leaves nothing to be remembered.
"""

import asyncio
from datetime import UTC, datetime, timedelta

import structlog

from aos.dispatcher.chain import DispatcherChain
from aos.dispatcher.log import Log
from aos.dispatcher.refusals import place
from aos.errors import AOSError, VerificationError

log = structlog.get_logger("aos.dispatcher")

LOOK_S = 30.0


class Anchors:
    """Has the log's newest checkpoint anchored every ``chain.anchor_s`` seconds, where it has grown since."""

    def __init__(self, held: Log, chain: DispatcherChain) -> None:
        self._log, self._chain = held, chain

    async def step(self) -> bool:
        """Want the next anchor, where one is due; whether it was. It is sent with the chain's other transactions.

        Raises VerificationError ``log.anchor_fork`` (this log does not begin with what was anchored: its database is not the one
        that it was), what reading the chain raises, Unavailable.
        """
        newest = await self._chain.newest_anchor()
        if newest is not None:
            every = timedelta(seconds=self._chain.anchor_s)
            if newest.state in ("wanted", "sent") or datetime.now(UTC) - newest.wanted_at < every:
                return False
        head = await self._log.head()
        if head is None:
            return False
        size, root = head
        anchored = await self._chain.last_anchor()
        if anchored is not None:
            if anchored.size > size or await self._log.root_of(anchored.size) != anchored.root:
                raise VerificationError(
                    "log.anchor_fork",
                    f"the contract holds another root for {anchored.size} leaves than this log of {size}",
                    hint="was the database restored from a copy? The log must not go on from there: whoever compares it"
                    " with the chain convicts it (docs/chain.md, 'Anchors of the log')",
                )
            if anchored.size == size:
                return False
        await self._chain.anchor(root, size)
        return True

    async def run(self) -> None:
        """Look until cancelled. Trouble is logged, and looked at again."""
        while True:
            try:
                await self.step()
            except VerificationError as error:
                log.error("anchor.refused", code=error.code, message=error.message)
            except AOSError as error:
                log.warning("anchor.waits", code=error.code, message=error.message)
            except Exception as error:
                log.error("anchor.defect", **place(error))
            await asyncio.sleep(min(LOOK_S, self._chain.anchor_s))
