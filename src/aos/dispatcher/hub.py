"""The border between the run engine and the operators' links: who is connected, and how to ask one of them."""

from typing import Any, Protocol


class Hub(Protocol):
    """Live operator links."""

    def connected(self) -> frozenset[str]:
        """node_ids with a live session."""
        ...

    async def request(self, node_id: str, method: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask an operator. Raises Unavailable where it is not connected, RuleViolation where it refuses."""
        ...
