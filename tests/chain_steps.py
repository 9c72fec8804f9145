"""The contracts' one-step rules beside the Python referee: one proof, two verdicts."""

from collections.abc import Sequence

from evm import Deployed, Reverted

from aos.core.dispute.fine.bounds import Unit
from aos.core.dispute.fine.element import check_element
from aos.core.dispute.fine.onchain import FAULTS, context_words
from aos.core.merkle import HASH_BYTES
from aos.errors import VerificationError

STEPS = ("StepNorm", "StepProduct", "StepAttention", "StepElement", "StepLogits", "StepSampler")
ROOTS = 8
"""Members of a context that are hashes; the others are numbers."""


def referee(unit: Unit, root: bytes, index: int, element: int, shown: int, proof: bytes) -> str:
    """The Python referee's code, empty where the proof holds."""
    try:
        check_element(unit, root, index, element, shown, proof)
    except VerificationError as error:
        return error.code
    return ""


def context_of(unit: Unit, root: bytes) -> tuple[bytes | int, ...]:
    """The contracts' context of a unit, as an argument."""
    data = context_words(unit, root)
    words = [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]
    return (*words[:ROOTS], *(int.from_bytes(word, "big") for word in words[ROOTS:]))


def judged(
    steps: Sequence[Deployed],
    context: tuple[bytes | int, ...],
    index: int,
    element: int,
    shown: int,
    proof: bytes,
) -> tuple[int, str]:
    """(The contract that has the rule, its code); the code is empty where the proof holds."""
    for number, step in enumerate(steps):
        try:
            step.read("check", context, index, element, shown, proof)
        except Reverted as error:
            name = step.contract.error(error.data) or error.data.hex()
            if name == "OtherStep":
                continue
            assert name.startswith("Fault("), name
            return number, FAULTS[int(name[6:-1])]
        return number, ""
    raise AssertionError(f"no contract has the rule of tile {index}")
