"""The ranges of sampling parameters (docs/spec/07-inference.md, "Limits and parameters")."""

from aos.errors import InvalidMessage
from aos.ports import MILLION, SamplingParams

MAX_STOP_STRINGS = 16
MAX_STOP_BYTES = 256

_RANGES = {
    "temperature": (0, 10 * MILLION),
    "top_p": (0, MILLION),
    "top_k": (0, 2**31 - 1),
    "min_p": (0, MILLION),
    "repeat_penalty": (MILLION // 10, 10 * MILLION),
    "max_tokens": (1, 2**31 - 1),
    "seed": (0, 2**64 - 1),
}


def check_params(params: SamplingParams) -> SamplingParams:
    """Return ``params`` if every member is in range. Raises InvalidMessage ``engine.params`` naming the
    member.
    """
    for name, (low, high) in _RANGES.items():
        value = getattr(params, name)
        if type(value) is not int or not low <= value <= high:
            raise InvalidMessage("engine.params", f"{name} is not an integer in {low}..{high}", field=name)
    if 0 < params.temperature < MILLION // 100:
        raise InvalidMessage(
            "engine.params", "temperature is neither 0 nor at least 0.01", field="temperature"
        )
    if len(params.stop) > MAX_STOP_STRINGS:
        raise InvalidMessage(
            "engine.params", f"there are more than {MAX_STOP_STRINGS} stop strings", field="stop"
        )
    for text in params.stop:
        try:
            size = len(text.encode("utf-8"))
        except UnicodeEncodeError:
            size = 0
        if not 1 <= size <= MAX_STOP_BYTES:
            raise InvalidMessage(
                "engine.params", f"a stop string is not 1 to {MAX_STOP_BYTES} bytes of UTF-8", field="stop"
            )
    return params
