"""C2SP signed notes and their verifier keys (docs/spec/15-log.md, "Checkpoints"; c2sp.org/signed-note).

Ed25519 signatures (type 0x01) and timestamped cosignatures (type 0x04, c2sp.org/tlog-cosignature). A note of more than
16 KiB or 64 signatures is refused before anything else. What the text of a note says, ``checkpoint`` reads.
"""

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from nacl import bindings
from nacl.exceptions import CryptoError

from aos.errors import InvalidMessage, VerificationError

MAX_NOTE_BYTES = 16_384
MAX_SIGNATURES = 64
ED25519 = 0x01
COSIGNATURE = 0x04
SEED_BYTES = 32

_NAME = re.compile(r"[^\s+\x00-\x1f\x7f]{1,255}\Z")
_VKEY = re.compile(r"([^\s+]{1,255})\+([0-9a-f]{8})\+([A-Za-z0-9+/]{43}[A-Za-z0-9+/=])\Z")
_MAX_TIME = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteKey:
    """A verifier key: name, signature type (``ED25519`` or ``COSIGNATURE``) and an Ed25519 public key (32 bytes)."""

    name: str
    kind: int
    public: bytes

    @property
    def key_id(self) -> bytes:
        """The first four bytes of SHA-256(name ‖ 0x0A ‖ type ‖ key)."""
        return sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.public).digest()[:4]

    def __str__(self) -> str:
        encoded = b64encode(bytes([self.kind]) + self.public).decode("ascii")
        return f"{self.name}+{self.key_id.hex()}+{encoded}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteSignature:
    """One signature line: who signed by name and key id (4 bytes), and the signature behind the id."""

    name: str
    key_id: bytes
    signature: bytes

    def __str__(self) -> str:
        return f"\N{EM DASH} {self.name} {b64encode(self.key_id + self.signature).decode('ascii')}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A signed note: its text with the final newline, and its signature lines."""

    text: str
    signatures: tuple[NoteSignature, ...]

    def __str__(self) -> str:
        return self.text + "\n" + "".join(map(str, self.signatures))


def read_vkey(text: str) -> NoteKey:
    """``<name>+<hex key id>+<base64 of type and key>``. Raises InvalidMessage ``note.vkey``."""
    match = _VKEY.match(text)
    data = b"" if match is None else decode_base64(match[3], "note.vkey")
    if match is None or len(data) != 33 or data[0] not in (ED25519, COSIGNATURE):
        raise InvalidMessage(
            "note.vkey", "not a verifier key of type 1 or 4: NAME+ID+KEY", field="log_key", hint=text[:80]
        )
    key = NoteKey(name=match[1], kind=data[0], public=data[1:])
    if key.key_id.hex() != match[2]:
        raise InvalidMessage("note.vkey", "the verifier key's id is not that of its name and key")
    if not bindings.crypto_core_ed25519_is_valid_point(key.public):
        raise InvalidMessage("note.vkey", "the verifier key is no point of the prime-order group")
    return key


def note_key(name: str, seed: bytes, kind: int = ED25519) -> NoteKey:
    """The verifier key of a 32-byte Ed25519 seed under ``name``. Raises InvalidMessage ``note.name``."""
    if not _NAME.match(name):
        raise InvalidMessage("note.name", "a key's name has neither spaces nor `+`", field="name")
    return NoteKey(name=name, kind=kind, public=bindings.crypto_sign_seed_keypair(seed)[0])


def sign_note(text: str, name: str, seed: bytes) -> NoteSignature:
    """An Ed25519 signature of type 0x01 over the text. Raises InvalidMessage ``note.name``."""
    key = note_key(name, seed)
    return NoteSignature(name=name, key_id=key.key_id, signature=_sign(seed, text.encode()))


def cosign_note(text: str, name: str, seed: bytes, time_s: int) -> NoteSignature:
    """A ``cosignature/v1`` (type 0x04) over the text, saying ``time_s`` (seconds since the epoch)."""
    key = note_key(name, seed, COSIGNATURE)
    signature = _sign(seed, _cosigned(text, time_s))
    return NoteSignature(name=name, key_id=key.key_id, signature=time_s.to_bytes(8, "big") + signature)


def verify_note_signature(text: str, line: NoteSignature, key: NoteKey) -> int:
    """Check one line against the key that it names; the time of a cosignature in seconds, else 0.

    Raises VerificationError ``note.signature``.
    """
    signature, message, time_s = line.signature, text.encode(), 0
    if key.kind == COSIGNATURE and len(signature) == 72:
        time_s, signature = int.from_bytes(signature[:8], "big"), signature[8:]
        message = _cosigned(text, time_s)
    if (line.name, line.key_id) != (key.name, key.key_id) or len(signature) != 64 or time_s > _MAX_TIME:
        raise _refused(key)
    try:
        # libsodium refuses a non-canonical s and keys and points of small order.
        bindings.crypto_sign_open(signature + message, key.public)
    except CryptoError:
        raise _refused(key) from None
    return time_s


def verified_signatures(note: Note, keys: Sequence[NoteKey]) -> dict[str, int]:
    """Of each given key that signed the note: its vkey and the (latest) time that it states.

    Lines of unknown keys are passed over, as the format demands; one bad line of a known key refuses the whole note.
    Raises VerificationError ``note.signature``.
    """
    found: dict[str, int] = {}
    for line in note.signatures:
        for key in keys:
            if (line.name, line.key_id) == (key.name, key.key_id):
                time_s = verify_note_signature(note.text, line, key)
                found[str(key)] = max(time_s, found.get(str(key), 0))
    return found


def read_note(data: str) -> Note:
    """Strictly read a note. Raises InvalidMessage ``note.size``, ``note.form``, ``note.base64``."""
    if len(data) > MAX_NOTE_BYTES or len(data.encode("utf-8", "surrogatepass")) > MAX_NOTE_BYTES:
        raise InvalidMessage("note.size", f"a note has at most {MAX_NOTE_BYTES} bytes")
    if any(
        (character < " " and character != "\n") or "\ud800" <= character <= "\udfff" for character in data
    ):
        raise InvalidMessage("note.form", "a note holds no control characters but newlines")
    text, separator, rest = data.rpartition("\n\n")
    if not separator or not text or not rest.endswith("\n"):
        raise InvalidMessage("note.form", "a note is a text, an empty line, and signature lines")
    lines = rest[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise InvalidMessage("note.size", f"a note has at most {MAX_SIGNATURES} signatures")
    return Note(text=text + "\n", signatures=tuple(read_signature_line(line) for line in lines))


def read_signature_line(line: str) -> NoteSignature:
    """``— <name> <base64>`` without its newline. Raises InvalidMessage ``note.form``, ``note.base64``."""
    dash, space, rest = line.partition(" ")
    name, second, encoded = rest.partition(" ")
    if dash != "\N{EM DASH}" or not space or not second or not _NAME.match(name):
        raise InvalidMessage("note.form", "a signature line is: em dash, name, base64")
    data = decode_base64(encoded, "note.base64")
    if len(data) < 5:
        raise InvalidMessage("note.form", "a signature is behind a key id of four bytes")
    return NoteSignature(name=name, key_id=data[:4], signature=data[4:])


def decode_base64(text: str, code: str) -> bytes:
    try:
        data = b64decode(text, validate=True)
    except (Base64Error, ValueError):
        data = b""
    if b64encode(data).decode("ascii") != text:
        raise InvalidMessage(code, "not canonical base64")
    return data


def _cosigned(text: str, time_s: int) -> bytes:
    return f"cosignature/v1\ntime {time_s}\n{text}".encode()


def _sign(seed: bytes, message: bytes) -> bytes:
    return bindings.crypto_sign(message, bindings.crypto_sign_seed_keypair(seed)[1])[:64]


def _refused(key: NoteKey) -> VerificationError:
    return VerificationError("note.signature", f"the signature of {key.name} does not verify")
