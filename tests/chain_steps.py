"""The contracts' one-step rules beside the Python referee: one proof, two verdicts."""

from functools import cache
from typing import Any

from court_evm import GAS, SENDER, artifact, in_process, reverted, selector

from aos.core.dispute.fine.bounds import Unit
from aos.core.dispute.fine.element import check_element
from aos.core.dispute.fine.onchain import FAULTS, context_words
from aos.errors import VerificationError

STEPS = ("StepNorm", "StepProduct", "StepAttention", "StepElement", "StepLogits", "StepSampler")
CONTEXT_BYTES = 33 * 32
CHECK = (
    "check((" + ",".join(["bytes32"] * 8 + ["uint256"] * 25) + "),uint256,uint256,uint256,bytes)"
)
FAULT = selector("Fault(uint256)")
OTHER = selector("OtherStep()")


def verdict_of(unit: Unit, root: bytes, index: int, element: int, shown: int, proof: bytes) -> str:
    """The Python referee's code, empty where the proof holds."""
    try:
        check_element(unit, root, index, element, shown, proof)
    except VerificationError as error:
        return error.code
    return ""


class Steps:
    """The deployed rules."""

    def __init__(self) -> None:
        self.evm: Any = in_process()
        self.addresses = [
            self.evm.deploy(SENDER, bytes.fromhex(artifact(name)["bytecode"]), gas=GAS) for name in STEPS
        ]
        self.check = selector(CHECK)
        self.gas = 0

    def verdict(self, unit: Unit, root: bytes, index: int, element: int, shown: int, proof: bytes) -> str:
        """The contracts' code, empty where the proof holds."""
        words = context_words(unit, root)
        assert len(words) == CONTEXT_BYTES
        numbers = (index, element, shown, len(words) + 128, len(proof))
        data = self.check + words + b"".join(n.to_bytes(32, "big") for n in numbers) + proof + bytes(-len(proof) % 32)
        for address in self.addresses:
            found = self._call(address, data)
            if found is not None:
                return found
        raise AssertionError(f"no contract has the rule of tile {index}")

    def _call(self, address: str, data: bytes) -> str | None:
        mark = self.evm.snapshot()
        try:
            result = self.evm.message_call(SENDER, address, calldata=data, gas=GAS)
        except RuntimeError as error:
            output = reverted(error)
            self.gas = self.evm.result.gas_used
            if output[:4] == OTHER:
                return None
            assert output[:4] == FAULT, str(error)
            return FAULTS[int.from_bytes(output[4:], "big")]
        finally:
            self.evm.revert(mark)
        self.gas = self.evm.result.gas_used
        assert int.from_bytes(result, "big") == 1
        return ""


@cache
def steps() -> Steps:
    """The rules, deployed once."""
    return Steps()
