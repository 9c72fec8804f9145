"""The checks of a job's answer as ``aos verify`` prints them, with this dispatcher's own keys as trust.

What it says is the dispatcher's word: a page repeats that, and how to check without it. Kept by (job, attempt), because an
answer file does not change once its leaves are in the log and cosigned as often as they are to be; two are judged at a time,
each in a thread.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from aos.adapters.postgres import Pool, unavailable
from aos.core.answer import read_answer
from aos.core.receipt import verify_answer
from aos.core.report import Report
from aos.core.trust import Trust, TrustedBeacon, TrustedDispatcher, load_policy
from aos.dispatcher.answers import build_answer_file
from aos.dispatcher.config import DispatcherConfig
from aos.dispatcher.log import Log
from aos.dispatcher.registry import Registry

MOST_KEPT = 512
MOST_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The report on an answer; ``leaf`` is the index that its log-1 names, None where that did not pass."""

    report: Report
    leaf: int | None


class Judge:
    """Judges answers of one dispatcher."""

    def __init__(self, pool: Pool, config: DispatcherConfig, registry: Registry, log: Log | None) -> None:
        self._pool, self._config, self._registry, self._log = pool, config, registry, log
        self._kept: OrderedDict[tuple[str, int], Judged | None] = OrderedDict()
        self._turn = asyncio.Semaphore(2)

    async def judged(self, job_id: str, attempt: int) -> Judged | None:
        """What comes of the run that ended with ``attempt``; None where its file is over 1 MiB, too much for a page.

        Raises RuleViolation ``job.no_answer``.
        """
        key = (job_id, attempt)
        async with self._turn:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            async with unavailable():
                job = await self._pool.fetchrow("SELECT * FROM job WHERE job_id = $1", job_id)
            data = await build_answer_file(self._pool, self._registry, job, attempt, self._log)
            found = None if len(data) > MOST_BYTES else await asyncio.to_thread(self._judge, data)
            if found is None or self._settled(found):
                self._kept[key] = found
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
            return found

    def _settled(self, found: Judged) -> bool:
        if self._log is None:
            return True
        passed = {check.id for check in found.report.checks if check.status == "PASS"}
        return "log-1" in passed and (self._config.log.quorum == 0 or "witness-1" in passed)

    def _judge(self, data: bytes) -> Judged:
        answer = read_answer(data)
        root = answer.draw.draw_call.statement.snapshot_root
        report = verify_answer(data, trust=self._trust(root), policy=load_policy("dev"))
        logged = any(check.id == "log-1" and check.status == "PASS" for check in report.checks)
        leaf = answer.log.receipt.index if logged and answer.log is not None else None
        return Judged(report=report, leaf=leaf)

    def _trust(self, root: bytes) -> Trust:
        config, facts = self._config, self._registry.network
        return Trust(
            network=config.network,
            dispatchers=(TrustedDispatcher(address=config.keys.address, vrf_key=config.keys.vrf_public),),
            genesis=facts.genesis_ms,
            epoch_ms=facts.epoch_ms,
            beacon=TrustedBeacon(anchor=facts.beacon_anchor, length=facts.beacon_length),
            registry_roots=(root,),
            tee_roots=config.tee_roots,
            tee_measurements=config.tee_measurements,
            policy="dev",
            log_key="" if self._log is None else str(self._log.key),
            witnesses=tuple(map(str, config.witnesses)),
            witness_quorum=config.log.quorum,
        )
