"""Verifiers of attestation documents (docs/spec/12-attestation.md): bytes in, ``AttestationResult`` out.

Nothing here reads a clock, a file or the network: the time, the trust anchors and the collateral are arguments.
"""
