"""Server-sent events of jobs, with a bound on how many are followed at once."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

from aos.dispatcher.refusals import TooMany
from aos.errors import Unavailable

KEEP_ALIVE_S = 15.0
MAX_STREAMS = 1_024
MAX_STREAMS_A_JOB = 16

Found = list[tuple[int, str, str]]
Read = Callable[[int], Awaitable[Found]]


class Streams:
    """The open event streams of one dispatcher."""

    def __init__(self, *, most: int = MAX_STREAMS, most_a_job: int = MAX_STREAMS_A_JOB) -> None:
        self._most, self._most_a_job = most, most_a_job
        self._open: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """Streams being followed."""
        return self._open.total()

    def check(self, job_id: str) -> None:
        """Whether one more may be opened. Raises TooMany ``events.too_many``."""
        if self.open >= self._most or self._open[job_id] >= self._most_a_job:
            raise TooMany("events.too_many", "too many followers at the moment", field="job_id")

    async def follow(self, job_id: str, after: int, found: Found, read: Read) -> AsyncIterator[str]:
        """The events ``found`` and what ``read`` (all after a number; waits where there is none) gives then, to `done`."""
        with self.counted(job_id):
            try:
                while True:
                    for number, kind, data in found:
                        after = number
                        yield f"id: {number}\nevent: {kind}\ndata: {data}\n\n"
                        if kind == "done":
                            return
                    found = await read(after)
                    if not found:
                        yield ": still here\n\n"
            except Unavailable:
                return  # the follower comes back with the last id that it has seen

    @contextmanager
    def counted(self, job_id: str) -> Iterator[None]:
        """One follower more, for as long as it lasts."""
        self._open[job_id] += 1
        try:
            yield
        finally:
            self._open[job_id] -= 1
            if not self._open[job_id]:
                del self._open[job_id]
