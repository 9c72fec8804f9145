"""The rows, one module a topic: importing this package fills ``aos.attack.table.ROWS``."""

from aos.attack.rows import decoding, draws, failopen, incentives, later, links, log, models, receipts, tee

__all__ = [
    "decoding",
    "draws",
    "failopen",
    "incentives",
    "later",
    "links",
    "log",
    "models",
    "receipts",
    "tee",
]
