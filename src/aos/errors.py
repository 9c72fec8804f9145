"""The whole error tree (docs/spec/01-encoding.md, "Errors").

An error says who is at fault. Its ``code`` is a stable string (``merkle.root_mismatch``), the same in the
specification, on the wire, in the vectors and in the tests. ``field`` names the offending member where there is one,
``hint`` the next step for the person who reads it.
"""


class AOSError(Exception):
    """Base of every error that AOS raises on purpose."""

    http_status = 500
    exit_code = 1

    def __init__(self, code: str, message: str, *, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"


class InvalidMessage(AOSError):
    """Their bytes break the format. Never retry the same bytes."""

    http_status = 400
    exit_code = 2


class VerificationError(AOSError):
    """Well-formed, not believable. Refuse it; the bytes may be evidence."""

    http_status = 403
    exit_code = 10


class RuleViolation(AOSError):
    """Not allowed in this state or at this time."""

    http_status = 409
    exit_code = 1


class Unavailable(AOSError):
    """The world failed (network, disk, server). Retrying later may succeed."""

    http_status = 503
    exit_code = 20


class ConfigError(AOSError):
    """The configuration is wrong. Stop at start."""

    exit_code = 30
