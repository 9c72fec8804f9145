"""The rows, one module a topic: importing this package fills ``aos.attack.table.ROWS``."""

from aos.attack.rows import (
    beacons,
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
    receipts,
    tee,
)

__all__ = [
    "beacons",
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
    "receipts",
    "tee",
]
