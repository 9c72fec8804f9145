"""Evidence of the guest that this runs in, from the kernel's configfs-tsm (docs/spec/12-attestation.md, "Guests").

A directory of our own is made below ``/sys/kernel/config/tsm/report``; the kernel fills it with attributes. We write
``inblob``, read ``outblob`` and ``auxblob``, and remove the directory. The kernel counts every write in ``generation``
and ignores what it thinks of ``inblob`` until ``outblob`` is read: only the count shows that a write arrived, and that
nobody else wrote in between. Needs Linux 6.7 and the right to write to configfs, which is root's.
"""

import errno
import os
import secrets
from pathlib import Path
from typing import Protocol

from aos.core.attest.guest import PROVIDERS, REPORT_DATA_BYTES, GuestReport, Provider, check_report_data
from aos.errors import AOSError, ConfigError, Unavailable

REPORTS = Path("/sys/kernel/config/tsm/report")
MAX_BLOB_BYTES = 32 << 10
"""The kernel's own cap of an ``outblob`` or ``auxblob`` (TSM_OUTBLOB_MAX)."""
MAX_ATTRIBUTE_BYTES = 4096
MAX_PRIVILEGE_LEVEL = 3

_BUSY = {errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT}
_TRIES = 3


class Attributes(Protocol):
    """The four things that are done to configfs. Each raises OSError with the kernel's number."""

    def make(self, directory: Path) -> None: ...

    def remove(self, directory: Path) -> None: ...

    def read(self, attribute: Path, limit: int) -> bytes:
        """All of ``attribute``; at most ``limit`` + 1 bytes, so that a caller sees that there is more."""

    def write(self, attribute: Path, data: bytes) -> None: ...


class ConfigFs:
    """configfs itself: plain system calls, since a binary attribute takes its bytes at ``close`` and cannot seek."""

    def make(self, directory: Path) -> None:
        os.mkdir(directory, 0o700)

    def remove(self, directory: Path) -> None:
        os.rmdir(directory)  # the kernel takes the attributes along

    def read(self, attribute: Path, limit: int) -> bytes:
        descriptor = os.open(attribute, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            data = b""
            while len(data) <= limit and (piece := os.read(descriptor, limit + 1 - len(data))):
                data += piece
            return data
        finally:
            os.close(descriptor)

    def write(self, attribute: Path, data: bytes) -> None:
        descriptor = os.open(attribute, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.EIO, "a short write")
        finally:
            os.close(descriptor)


def collect(
    report_data: bytes,
    *,
    privilege_level: int | None = None,
    reports: Path = REPORTS,
    files: Attributes | None = None,
) -> GuestReport:
    """A fresh document over ``report_data`` (64 bytes). ``privilege_level`` is AMD's VMPL, 0 to 3, where it can be
    chosen.

    Asks again, three times at most, where the kernel is busy or somebody wrote in between. Raises ConfigError
    ``tsm.absent``, ``tsm.permission``, ``tsm.no_provider``, ``tsm.provider``, ``tsm.privilege_level``; Unavailable
    ``tsm.busy``, ``tsm.conflict``, ``tsm.failed``; InvalidMessage ``tsm.document``; VerificationError
    ``tsm.report_data``.
    """
    if len(report_data) != REPORT_DATA_BYTES:
        raise ValueError("report data have 64 bytes")
    if privilege_level is not None and not 0 <= privilege_level <= MAX_PRIVILEGE_LEVEL:
        raise ConfigError(
            "tsm.privilege_level",
            f"{privilege_level} is not in 0..3",
            field="privilege_level",
            hint="leave it out for the guest's own level",
        )
    tree = files if files is not None else ConfigFs()
    for attempt in range(_TRIES):
        try:
            report = _once(tree, reports, report_data, privilege_level)
        except Unavailable as error:
            if attempt + 1 == _TRIES or error.code not in ("tsm.busy", "tsm.conflict"):
                raise
            continue
        check_report_data(report, report_data)
        return report
    raise AssertionError("not reached")


def _once(tree: Attributes, reports: Path, report_data: bytes, privilege_level: int | None) -> GuestReport:
    entry = reports / f"aos-{secrets.token_hex(8)}"
    try:
        tree.make(entry)
    except OSError as error:
        raise _refusal(error, "make an entry") from error
    try:
        report = _Entry(tree, entry).report(report_data, privilege_level)
    except OSError as error:
        raise _refusal(error, "read a report") from error
    finally:
        left = _remove(tree, entry)
    if left is not None:
        raise Unavailable(
            "tsm.failed", f"the entry {entry} cannot be removed: {left.strerror}", hint=f"rmdir {entry}"
        ) from left
    return report


def _remove(tree: Attributes, entry: Path) -> OSError | None:
    """What went wrong, if anything: an error on the way here is the one to tell."""
    try:
        tree.remove(entry)
    except OSError as error:
        return error
    return None


class _Entry:
    """One directory below ``report``, and the writes that we made to it."""

    def __init__(self, tree: Attributes, entry: Path) -> None:
        self._tree = tree
        self._entry = entry
        self._generation = self._read_generation()

    def report(self, report_data: bytes, privilege_level: int | None) -> GuestReport:
        provider = self._provider()
        self._write("inblob", report_data)
        if privilege_level is not None:
            self._write("privlevel", str(privilege_level).encode())
        document = self._blob("outblob")
        try:
            auxiliary = self._blob("auxblob")
        except FileNotFoundError:  # a provider without one has no such attribute
            auxiliary = b""
        # Both blobs are of one generation: a write between them would have made new ones.
        if self._read_generation() != self._generation or self._provider() != provider:
            raise _conflict("another process wrote to it while its report was read")
        if not document:
            raise _failed("the kernel handed out an empty report", "outblob")
        return GuestReport(provider=provider, document=document, auxiliary=auxiliary)

    def _write(self, name: str, data: bytes) -> None:
        self._tree.write(self._entry / name, data)
        self._generation += 1
        # The kernel says nothing when a binary attribute is closed; the count does.
        if self._read_generation() != self._generation:
            raise _conflict(f"{name} did not arrive, or another process wrote to it")

    def _read_generation(self) -> int:
        text = self._text("generation")
        if not text.isascii() or not text.isdecimal():
            raise _failed("the entry's generation is no number", "generation")
        return int(text)

    def _provider(self) -> Provider:
        name = self._text("provider")
        for known in PROVIDERS:
            if name == known:
                return known
        raise ConfigError(
            "tsm.provider",
            f"the kernel's provider is {name[:64]!r}, not one of {', '.join(PROVIDERS)}",
            field="provider",
            hint="this guest is of a kind that has no verifier here",
        )

    def _text(self, name: str) -> str:
        return (
            self._tree.read(self._entry / name, MAX_ATTRIBUTE_BYTES).decode("ascii", "replace").rstrip("\n")
        )

    def _blob(self, name: str) -> bytes:
        data = self._tree.read(self._entry / name, MAX_BLOB_BYTES)
        if len(data) > MAX_BLOB_BYTES:
            raise _failed(f"{name} has more than {MAX_BLOB_BYTES} bytes", name)
        return data


def _failed(message: str, attribute: str) -> Unavailable:
    return Unavailable(
        "tsm.failed",
        message,
        field=attribute,
        hint="dmesg says more; for TDX the host's quoting service must run",
    )


def _conflict(message: str) -> Unavailable:
    return Unavailable(
        "tsm.conflict",
        f"the report's entry: {message}",
        field="generation",
        hint="nobody else should write below the entry; try again",
    )


def _refusal(error: OSError, what: str) -> AOSError:
    """What an error number of the kernel means here."""
    number = error.errno or 0
    if number in _BUSY:
        return Unavailable("tsm.busy", f"the kernel is busy and could not {what}", hint="try again")
    if number in (errno.EACCES, errno.EPERM):
        return ConfigError(
            "tsm.permission",
            f"this user may not {what}",
            hint="only root may write to configfs: run it as root",
        )
    if number == errno.ENOENT:
        return ConfigError(
            "tsm.absent",
            f"the kernel offers no reports ({REPORTS})",
            hint="a TDX or SEV-SNP guest with Linux 6.7 or later has them; mount -t configfs none /sys/kernel/config",
        )
    if number == errno.ENXIO:
        return ConfigError(
            "tsm.no_provider",
            "no driver hands out reports",
            hint="modprobe tdx_guest or modprobe sev-guest, in a guest of that kind",
        )
    return Unavailable(
        "tsm.failed",
        f"the kernel could not {what}: {error.strerror or errno.errorcode.get(number, number)}",
        hint="dmesg says more; for TDX the host's quoting service must run",
    )
