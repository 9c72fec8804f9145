"""Every named hash and hash input of a job.

Implements docs/spec/06-network.md, "Identifiers and hashes", and the inputs of docs/spec/04-sortition.md.
Pure functions from values to bytes; hashes are 32 bytes. ``statements.hash_of`` gives a statement's own
hash, ``merkle`` a tree's. Nothing is checked here beyond lengths: a wrong one raises InvalidMessage
``hash.length`` and names the argument.
"""

import struct
from collections.abc import Sequence
from hashlib import sha256
from typing import Protocol

from aos.core.codec import encode
from aos.core.encoding import canonical_json, lp, tag, tagged_hash
from aos.core.statements import Params, Position, Tag
from aos.errors import InvalidMessage

MAX_REQUEST_BYTES = 1 << 20


def request_hash(nonce: bytes, request_bytes: bytes) -> bytes:
    """The salted hash of the exact request bytes (canonical JSON of ``aos.request``, at most 1 MiB)."""
    if len(request_bytes) > MAX_REQUEST_BYTES:
        raise InvalidMessage("hash.length", "the request is larger than 1 MiB", field="request_bytes")
    return tagged_hash("request", _exactly(nonce, 32, "nonce"), request_bytes)


def job_id(*, network: str, dispatcher: str, request_hash: bytes, issued_at: int, secret: bytes) -> str:
    """The job's bearer capability, 64 lower-case hex digits. ``secret`` is 32 random bytes that D keeps."""
    return tagged_hash(
        "job-id",
        _text(network),
        address_bytes(dispatcher),
        _exactly(request_hash, 32, "request_hash"),
        _u64(issued_at),
        _exactly(secret, 32, "secret"),
    ).hex()


def job_ref(job_id: str) -> bytes:
    """What stands for the job in public. ``job_id`` is 64 lower-case hex digits."""
    try:
        raw = bytes.fromhex(job_id)
    except ValueError:
        raw = b""
    if len(raw) != 32 or raw.hex() != job_id:
        raise InvalidMessage("hash.length", "a job id is 64 lower-case hex digits", field="job_id")
    return tagged_hash("job-ref", raw)


def params_hash(nonce: bytes, params: Params) -> bytes:
    """The salted hash of the request's ``job.params``."""
    return tagged_hash("params", _exactly(nonce, 32, "nonce"), canonical_json(encode(params)))


class RunParams(Protocol):
    """The sampling parameters that ``run_params_hash`` covers; decimals in millionths."""

    @property
    def max_tokens(self) -> int: ...
    @property
    def min_p(self) -> int: ...
    @property
    def repeat_penalty(self) -> int: ...
    @property
    def stop(self) -> Sequence[str]: ...
    @property
    def temperature(self) -> int: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> int: ...


def run_params_hash(nonce: bytes, params: RunParams) -> bytes:
    """The salted hash of every parameter of a run but the seed, which the state header holds in clear."""
    members = {
        "max_tokens": params.max_tokens,
        "min_p": params.min_p,
        "repeat_penalty": params.repeat_penalty,
        "stop": list(params.stop),
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
    }
    return tagged_hash("run-params", nonce, canonical_json(members))


def prompt_tokens_hash(nonce: bytes, tokens: Sequence[int]) -> bytes:
    """The salted hash of the prompt's token ids, as the operator's own tokenizer made them."""
    return tagged_hash("prompt-tokens", _exactly(nonce, 32, "nonce"), token_bytes(tokens))


def tokens_hash(nonce: bytes, tokens: Sequence[int]) -> bytes:
    """The salted hash of the answer's token ids."""
    return tagged_hash("tokens", _exactly(nonce, 32, "nonce"), token_bytes(tokens))


def response_hash(nonce: bytes, text: str) -> bytes:
    """The salted hash of the answer's text as UTF-8."""
    return tagged_hash("response", _exactly(nonce, 32, "nonce"), text.encode("utf-8"))


def commitment(
    *,
    job_ref: bytes,
    attempt: int,
    node_id: str,
    draw_record: bytes,
    result: bytes,
    tokens_hash: bytes,
    salt: bytes,
) -> bytes:
    """What an operator commits to before anybody reveals.

    ``draw_record`` is the record's hash; ``result`` the ``state_root``, or for ``tee`` the answer
    statement's hash.
    """
    return tagged_hash(
        "commitment",
        _exactly(job_ref, 32, "job_ref"),
        u32(attempt),
        address_bytes(node_id),
        _exactly(draw_record, 32, "draw_record"),
        lp(_exactly(result, 32, "result")),
        _exactly(tokens_hash, 32, "tokens_hash"),
        _exactly(salt, 32, "salt"),
    )


def tag_commitment(salt: bytes, tag: Tag, position: Position) -> bytes:
    """What hides a job's tag and position from the operators until their results are committed."""
    return tagged_hash("job-tag", _exactly(salt, 32, "salt"), _text(tag), _text(position))


def draw_seed_alpha(
    *, network: str, job_ref: bytes, attempt: int, beacon: bytes, snapshot_root: bytes
) -> bytes:
    """alpha_string of D's VRF; the draw seed is its beta_string (64 bytes)."""
    return (
        tag("draw-seed")
        + _text(network)
        + _exactly(job_ref, 32, "job_ref")
        + u32(attempt)
        + _exactly(beacon, 32, "beacon")
        + _exactly(snapshot_root, 32, "snapshot_root")
    )


def claim_alpha(
    *, network: str, snapshot_root: bytes, job_ref: bytes, attempt: int, draw_seed: bytes
) -> bytes:
    """alpha_string of every operator's VRF in one draw."""
    return (
        tag("draw")
        + _text(network)
        + _exactly(snapshot_root, 32, "snapshot_root")
        + _exactly(job_ref, 32, "job_ref")
        + u32(attempt)
        + _exactly(draw_seed, 64, "draw_seed")
    )


def alpha_hash(alpha_string: bytes) -> bytes:
    """SHA-256 of an alpha_string: ``vrf_prompt_hash`` in the seed's API, ``alpha_hash`` in a receipt."""
    return sha256(alpha_string).digest()


def sampling_seed_from_draw(draw_seed: bytes) -> str:
    """The sampling seed of a request without its own: an unsigned 64-bit integer as a decimal string.

    ``draw_seed`` is that of attempt 1, whichever attempt is running.
    """
    digest = tagged_hash("sampling", _exactly(draw_seed, 64, "draw_seed"))
    return str(int.from_bytes(digest[:8], "big"))


def session_id(dispatcher_nonce: bytes, operator_nonce: bytes) -> bytes:
    """The id of one operator link, from both sides' nonces (32 bytes each)."""
    return tagged_hash(
        "session",
        _exactly(dispatcher_nonce, 32, "dispatcher_nonce"),
        _exactly(operator_nonce, 32, "operator_nonce"),
    )


def address_bytes(address: str) -> bytes:
    """The 20 bytes of a lower-case ``0x`` address."""
    if len(address) == 42 and address.startswith("0x"):
        try:
            raw = bytes.fromhex(address[2:])
        except ValueError:
            raw = b""
        if len(raw) == 20 and raw.hex() == address[2:]:
            return raw
    raise InvalidMessage("hash.length", "an address is 0x and 40 lower-case hex digits", field="address")


def token_bytes(tokens: Sequence[int]) -> bytes:
    """Token ids as unsigned 32-bit integers, little-endian, one after the other."""
    try:
        return struct.pack(f"<{len(tokens)}I", *tokens)
    except struct.error:
        raise InvalidMessage(
            "hash.length", "a token id is an unsigned 32-bit integer", field="tokens"
        ) from None


def u32(value: int) -> bytes:
    """An unsigned 32-bit integer, big-endian."""
    if not 0 <= value < 2**32:
        raise InvalidMessage("hash.length", "the value is no unsigned 32-bit integer")
    return value.to_bytes(4, "big")


def _u64(value: int) -> bytes:
    if not 0 <= value < 2**64:
        raise InvalidMessage("hash.length", "the value is no unsigned 64-bit integer")
    return value.to_bytes(8, "big")


def _text(value: str) -> bytes:
    return lp(value.encode("utf-8"))


def _exactly(value: bytes, length: int, name: str) -> bytes:
    if len(value) != length:
        raise InvalidMessage("hash.length", f"{name} must be {length} bytes", field=name)
    return value
