"""The checks of an answer file by area; their one numbered list is ``aos.core.receipt.CHECKS``."""
