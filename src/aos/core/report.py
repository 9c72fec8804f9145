"""What a verification says: checks, levels, verdict, exit code (docs/spec/08-receipts.md, "Checks, in order").

Values only; ``aos.core.receipt`` fills them, ``aos.cli.verify`` shows them.
"""

from dataclasses import dataclass
from typing import Literal

Status = Literal["PASS", "FAIL", "SKIP"]
Verdict = Literal["VERIFIED", "NOT VERIFIED", "PARTIAL", "EVIDENCE MISSING"]
EXIT_CODES: dict[Verdict, int] = {"VERIFIED": 0, "NOT VERIFIED": 10, "PARTIAL": 11, "EVIDENCE MISSING": 12}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of a report. ``detail`` is a value worth seeing, ``code`` the error's stable code where it failed."""

    id: str
    status: Status
    text: str
    detail: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All checks, in order, and what follows from them."""

    checks: tuple[Check, ...]
    verdict: Verdict
    levels: tuple[str, ...]
    policy: str
    missing: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0, 10, 11 or 12, as the verdict says."""
        return EXIT_CODES[self.verdict]

    def count(self, status: Status) -> int:
        """How many checks ended so."""
        return sum(check.status == status for check in self.checks)

    @property
    def headline(self) -> str:
        """The verdict in one line."""
        passed, skipped = self.count("PASS"), self.count("SKIP")
        # Every stronger level implies "signed"; alone it is all there is.
        shown = [level for level in self.levels if level != "signed"] or list(self.levels) or ["none"]
        levels = ("level " if len(shown) == 1 else "levels ") + " and ".join(f'"{level}"' for level in shown)
        if self.verdict == "VERIFIED":
            optional = f' (optional under policy "{self.policy}")' if skipped else ""
            return f"VERIFIED at {levels}: {passed} checks passed, {skipped} skipped{optional}"
        if self.verdict == "PARTIAL":
            return (
                f"PARTIAL at {levels}: {passed} checks passed, but policy "
                f'"{self.policy}" requires {", ".join(self.missing)}, skipped here'
            )
        failed = next(check for check in self.checks if check.status == "FAIL")
        return f"{self.verdict}: {failed.id} failed: {failed.text} [{failed.code}]"
