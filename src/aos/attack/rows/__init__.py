"""The rows, one module a topic: importing this package fills ``aos.attack.table.ROWS``."""

from aos.attack.rows import (
    decoding,
    disputes,
    draws,
    failopen,
    games,
    incentives,
    later,
    links,
    log,
    models,
    onchain,
    receipts,
    tee,
)

__all__ = [
    "decoding",
    "disputes",
    "draws",
    "failopen",
    "games",
    "incentives",
    "later",
    "links",
    "log",
    "models",
    "onchain",
    "receipts",
    "tee",
]
