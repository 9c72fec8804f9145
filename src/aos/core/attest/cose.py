"""COSE_Sign1 (RFC 9052), as far as attestation documents and image files use it."""


def sig_structure(protected: bytes, payload: bytes) -> bytes:
    """What a COSE_Sign1 signs: ``["Signature1", protected, h'', payload]`` (RFC 9052, 4.4), of the original bytes.

    ``protected`` has at most 23 bytes, ``payload`` at most 65,535.
    """
    if len(payload) < 24:
        head = bytes([0x40 + len(payload)])
    elif len(payload) < 256:
        head = b"\x58" + bytes([len(payload)])
    else:
        head = b"\x59" + len(payload).to_bytes(2, "big")
    return b"\x84\x6aSignature1" + bytes([0x40 + len(protected)]) + protected + b"\x40" + head + payload
