"""The simulated platform: stands where a processor's attestation device would (docs/spec/10-tee.md,
"Simulated platform").

A file holds an Ed25519 seed; ``attest`` signs documents that say SIMULATED, NO HARDWARE. Whoever can read the
file can attest to anything: it proves nothing about hardware, and the level that it leads to is called
*simulated*. The real devices (/dev/nsm, TDX, SEV-SNP) are other adapters with the same two questions: what
runs here, and sign this.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Final

from nacl.signing import SigningKey

from aos.core.tee import SimulatedDocument, sign_enclave
from aos.errors import ConfigError

LABEL: Final = "SIMULATED, NO HARDWARE"
_MAX_FILE_BYTES = 1024


class SimulatedPlatform:
    """Signs what a platform would sign. ``measurement`` is what it says runs in the enclave (32 bytes)."""

    tee = "simulated"

    def __init__(self, key: SigningKey) -> None:
        self._key = key

    @property
    def public_key(self) -> bytes:
        """The root that a trust file must name to accept this platform's documents (32 bytes)."""
        return bytes(self._key.verify_key)

    def attest(
        self, *, measurement: bytes, public_key: bytes, user_data: bytes, nonce: bytes, time_ms: int
    ) -> tuple[SimulatedDocument, bytes]:
        """A document over four times 32 bytes, and its signature (64 bytes)."""
        document = SimulatedDocument(
            label=LABEL,
            measurement=measurement,
            public_key=public_key,
            user_data=user_data,
            nonce=nonce,
            time=time_ms,
        )
        return document, sign_enclave(self._key, document)


def create_simulated_platform(path: Path) -> bytes:
    """Make a simulated platform's key file (mode 0600, never overwritten) and return its public key (32
    bytes).

    Raises ConfigError ``platform.exists`` or ``platform.unwritable``.
    """
    key = SigningKey.generate()
    content = {
        "label": LABEL,
        "public_key": bytes(key.verify_key).hex(),
        "seed": bytes(key).hex(),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(content, indent=2) + "\n")
    except FileExistsError:
        raise ConfigError("platform.exists", f"{path} exists already") from None
    except OSError as error:
        raise ConfigError("platform.unwritable", f"cannot write {path}: {error.strerror}") from error
    return bytes(key.verify_key)


def load_simulated_platform(path: Path) -> SimulatedPlatform:
    """Read a key file. Raises ConfigError ``platform.unreadable``, ``platform.mode``, ``platform.format``."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            "platform.unreadable",
            f"cannot read the simulated platform's key {path}: {error.strerror}",
            hint="aos up makes one; so does tee-worker --create-platform FILE",
        ) from error
    if mode & 0o077:
        raise ConfigError(
            "platform.mode", f"{path} can be read by others (mode {mode:o})", hint=f"chmod 600 {path}"
        )
    try:
        content = json.loads(data)
        seed = bytes.fromhex(content["seed"])
        if content["label"] != LABEL or len(seed) != 32:
            raise ValueError("not a simulated platform")
        key = SigningKey(seed)
        if bytes(key.verify_key).hex() != content["public_key"]:
            raise ValueError("keys do not belong together")
    except (ValueError, KeyError, TypeError):
        # Without the cause: a JSON error quotes the text it failed on, and that text may be the seed.
        raise ConfigError("platform.format", f"{path} is no simulated platform's key file") from None
    return SimulatedPlatform(key)
