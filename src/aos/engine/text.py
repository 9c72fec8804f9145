"""From chosen tokens to text: UTF-8 across tokens, stop strings, and what may be streamed (spec 07, "Text
and stopping").
"""

import codecs
from collections.abc import Sequence


class OutputText:
    """The text of one run. Bytes go in token by token; text comes out as soon as no later token can change
    it.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.text = ""
        self.stopped = False
        self._stop = tuple(stop)
        self._longest = max(map(len, stop), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._released = 0

    def push(self, piece: bytes) -> None:
        """Add a token's bytes. Sets ``stopped``, and cuts the text, where a stop string is now complete."""
        searched = max(0, len(self.text) - self._longest + 1)
        self.text += self._decoder.decode(piece)
        found = [at for at in (self.text.find(stop, searched) for stop in self._stop) if at >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.stopped = True

    def finish(self) -> None:
        """No more tokens: an unfinished UTF-8 sequence becomes U+FFFD, unless a stop string cut the text
        before it.
        """
        if not self.stopped:
            self.text += self._decoder.decode(b"", True)
            self.stopped = True

    def release(self) -> str:
        """The text that became final since the last call; a possible beginning of a stop string is held
        back.
        """
        end = len(self.text) if self.stopped else len(self.text) - self._held()
        out = self.text[self._released : end]
        self._released = max(self._released, end)
        return out

    def _held(self) -> int:
        for length in range(min(self._longest - 1, len(self.text)), 0, -1):
            tail = self.text[-length:]
            if any(stop.startswith(tail) for stop in self._stop if len(stop) > length):
                return length
        return 0
