"""A stand-in for the kernel's configfs-tsm: SIMULATED, no guest, no hardware.

It keeps the rules of Linux 6.7 (drivers/virt/coco/tsm.c, fs/configfs/file.c) that a reader can trip over: an entry is a
directory that the kernel fills; every write counts; what a binary attribute's write returns is ignored when it is
closed; a report is made when it is read, from what was written last, and again after every write; attributes that a
provider does not have do not exist. ``before`` is called with each operation's name and attribute before it happens, so
that a test can interfere in between or raise.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

INBLOB_MAX, OUTBLOB_MAX = 64, 32 << 10


def oserror(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@dataclass
class Entry:
    inblob: bytes = b""
    privilege_level: int = 0
    written: int = 0
    read: int = 0
    outblob: bytes | None = None
    auxblob: bytes = b""


@dataclass
class FakeTsm:
    """``make_report`` gives (outblob, auxblob) for an inblob and a privilege level; ``provider`` None: none loaded."""

    root: Path
    make_report: Callable[[bytes, int], tuple[bytes, bytes]]
    provider: str | None = "sev_guest"
    has_auxblob: bool = True
    privilege_floor: int = 0
    lost_writes: int = 0
    before: Callable[[str, str], None] = lambda operation, attribute: None
    entries: dict[str, Entry] = field(default_factory=dict)
    made: int = 0

    def make(self, directory: Path) -> None:
        self.before("make", "")
        if directory.parent != self.root:
            raise oserror(errno.ENOENT)
        if self.provider is None:
            raise oserror(errno.ENXIO)
        if directory.name in self.entries:
            raise oserror(errno.EEXIST)
        self.entries[directory.name] = Entry()
        self.made += 1

    def remove(self, directory: Path) -> None:
        self.before("remove", "")
        if self.entries.pop(directory.name, None) is None:
            raise oserror(errno.ENOENT)

    def _entry(self, attribute: Path) -> Entry:
        found = self.entries.get(attribute.parent.name)
        if found is None or attribute.parent.parent != self.root:
            raise oserror(errno.ENOENT)
        return found

    def write(self, attribute: Path, data: bytes) -> None:
        self.before("write", attribute.name)
        entry = self._entry(attribute)
        if attribute.name == "inblob":
            if len(data) > INBLOB_MAX:
                raise oserror(errno.EFBIG)
            if self.lost_writes:  # -EBUSY, which closing a binary attribute tells nobody
                self.lost_writes -= 1
                return
            entry.inblob = data
        elif attribute.name == "privlevel":
            if not self.privilege_floor <= int(data) <= 3:
                raise oserror(errno.EINVAL)
            entry.privilege_level = int(data)
        else:
            raise oserror(errno.EACCES if attribute.name != "nothing" else errno.ENOENT)
        entry.written += 1

    def read(self, attribute: Path, limit: int) -> bytes:
        self.before("read", attribute.name)
        entry = self._entry(attribute)
        if attribute.name == "generation":
            return f"{entry.written}\n".encode()
        if attribute.name == "provider":
            return f"{self.provider}\n".encode()
        if attribute.name == "outblob" or (attribute.name == "auxblob" and self.has_auxblob):
            if not entry.inblob:
                raise oserror(errno.EINVAL)
            if entry.outblob is None or entry.read != entry.written:
                entry.outblob, entry.auxblob = self.make_report(entry.inblob, entry.privilege_level)
                entry.read = entry.written
            data = entry.outblob if attribute.name == "outblob" else entry.auxblob
            if len(data) > OUTBLOB_MAX:
                raise oserror(errno.EFBIG)
            return data[: limit + 1]
        raise oserror(errno.ENOENT)
