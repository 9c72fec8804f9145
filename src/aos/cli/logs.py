"""What a command's own process logs: warnings, on stderr, so that stdout holds data alone."""

import logging
import sys


def quiet() -> None:
    """Before a command runs a service's code in its own process."""
    import structlog

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
