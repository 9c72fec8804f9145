"""What a chat template may call: string and dictionary methods, global functions, filters, tests.

A closed list. Nothing here reads a clock, a locale, an object's address or an interpreter's Unicode version.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from jinja2 import pass_context
from jinja2.runtime import Context, Undefined
from jinja2.tests import TESTS as JINJA_TESTS
from jinja2.utils import Namespace

from aos.engine.chat import marked
from aos.engine.chat.budget import Budget, budget_of, unusable
from aos.errors import InvalidMessage

MAX_MESSAGE = 200


@dataclass(frozen=True, slots=True)
class Function:
    """Something callable: ``run`` gets the budget, the owner where it is a method, and the arguments."""

    run: Callable[..., object]
    owner: tuple[object, ...] = ()

    def __call__(self, budget: Budget, *args: object, **kwargs: object) -> object:
        return self.run(budget, *self.owner, *args, **kwargs)


def text_of(budget: Budget, value: object) -> str:
    """``value`` as Jinja prints it; lists and dictionaries have no text but JSON: Python's depends on the
    Unicode version that it knows.
    """
    budget.value(value)
    if isinstance(value, list | tuple | dict):
        raise unusable(f"a {type(value).__name__} is printed; tojson would do")
    return value if isinstance(value, str) else "" if isinstance(value, Undefined) else str(value)


def items_of(budget: Budget, value: object) -> list[Any]:
    """What a loop over ``value`` would meet, paid for."""
    if isinstance(value, Undefined):
        return []
    if not isinstance(value, str | list | tuple | dict | range):
        raise unusable(f"a {type(value).__name__} is used as a list")
    budget.spend(1 + len(value))
    return list(value)


def _strings(*values: object) -> None:
    for value in values:
        if value is not None and not isinstance(value, str):
            raise unusable(f"a {type(value).__name__} is used as text")


def _method(function: Callable[..., Any]) -> Callable[..., object]:
    """Pays for the text, its string arguments and the result."""

    def run(budget: Budget, text: str, *args: object, **kwargs: object) -> object:
        for value in (text, *args, *kwargs.values()):
            if isinstance(value, str):
                budget.text(value)
        result = function(text, *args, **kwargs)
        if isinstance(result, list):
            budget.spend(len(result))
        return result

    return run


def _searching_method(function: Callable[..., Any]) -> Callable[..., object]:
    """For what Python does by comparing all of the argument at every character of the text, at worst."""
    method = _method(function)

    def run(budget: Budget, text: str, *args: object, **kwargs: object) -> object:
        widths = [len(value) for value in (*args, *kwargs.values()) if isinstance(value, str)]
        budget.spend(len(text) * max(widths, default=0) // 32)
        return method(budget, text, *args, **kwargs)

    return run


def _replace(budget: Budget, text: str, old: str, new: str, count: int = -1) -> str:
    _strings(text, old, new)
    budget.text(text)
    found = len(text) + 1 if not old else text.count(old)
    times = found if count is None or count < 0 else min(found, count)
    budget.spend(times + times * len(new) // 32)
    return marked.replace(text, old, new, -1 if count is None else count)


def _join(budget: Budget, separator: str, values: object) -> str:
    _strings(separator)
    parts = [text_of(budget, value) for value in items_of(budget, values)]
    budget.spend(len(parts) * (1 + len(separator) // 32))
    return marked.join(separator, parts)


STRING_METHODS: dict[str, Callable[..., object]] = {
    "strip": _searching_method(marked.strip),
    "lstrip": _searching_method(marked.lstrip),
    "rstrip": _searching_method(marked.rstrip),
    "split": _method(marked.split),
    "rsplit": _searching_method(marked.rsplit),
    "splitlines": _method(marked.splitlines),
    "removeprefix": _method(marked.removeprefix),
    "removesuffix": _method(marked.removesuffix),
    "upper": _method(marked.upper),
    "lower": _method(marked.lower),
    "capitalize": _method(marked.capitalize),
    "title": _method(marked.title),
    "startswith": _method(str.startswith),
    "endswith": _method(str.endswith),
    "find": _method(str.find),
    "rfind": _searching_method(str.rfind),
    "count": _method(str.count),
    "replace": _replace,
    "join": _join,
}


def _keys(budget: Budget, owner: dict[object, object]) -> list[object]:
    return items_of(budget, owner)


def _values(budget: Budget, owner: dict[object, object]) -> list[object]:
    budget.spend(len(owner))
    return list(owner.values())


def _items(budget: Budget, owner: dict[object, object]) -> list[tuple[object, object]]:
    budget.spend(len(owner))
    return list(owner.items())


def _get(budget: Budget, owner: dict[object, object], key: object, default: object = None) -> object:
    budget.spend(1)
    return owner.get(key_of(key), default)


DICT_METHODS: dict[str, Callable[..., object]] = {
    "keys": _keys,
    "values": _values,
    "items": _items,
    "get": _get,
}


def key_of(key: object) -> str | int:
    """A key that a dictionary may have. Raises InvalidMessage ``chat.value``."""
    if not isinstance(key, str | int):
        raise unusable(f"a {type(key).__name__} is used as a key")
    return key


def _range(budget: Budget, *bounds: int) -> range:
    numbers = range(*bounds)
    budget.spend(1 + len(numbers))
    return numbers


def _namespace(budget: Budget, **members: object) -> Namespace:
    budget.spend(1 + len(members))
    return Namespace(**members)


def _raise_exception(budget: Budget, message: object = "") -> object:
    raise InvalidMessage(
        "chat.refused",
        f"the model's chat template refuses the conversation: {text_of(budget, message)[:MAX_MESSAGE]}",
        field="messages",
        hint="use the roles, and their order, that the model was trained with",
    )


GLOBALS: dict[str, object] = {
    "range": Function(_range),
    "namespace": Function(_namespace),
    "raise_exception": Function(_raise_exception),
}


# --- filters: (budget, value, ...)


def _to_json(
    budget: Budget,
    value: object,
    *,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: list[str] | None = None,
    sort_keys: bool = False,
) -> str:
    budget.value(value)
    if indent is not None and (type(indent) is not int or not 0 <= indent <= 16):
        raise unusable("an indent is not in 0..16")
    pair = None if separators is None else (str(separators[0]), str(separators[1]))
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys)
    return budget.text(text)


def _default(budget: Budget, value: object, instead: object = "", boolean: bool = False) -> object:
    budget.spend(1)
    return instead if isinstance(value, Undefined) or (boolean and not value) else value


def _length(budget: Budget, value: object) -> int:
    budget.spend(1)
    if isinstance(value, Undefined):
        return 0
    if not isinstance(value, str | list | tuple | dict | range):
        raise unusable(f"a {type(value).__name__} has no length")
    return len(value)


def _first(budget: Budget, value: object) -> object:
    return next(iter(items_of(budget, value)), Undefined("the list is empty"))


def _last(budget: Budget, value: object) -> object:
    return next(iter(items_of(budget, value)[::-1]), Undefined("the list is empty"))


def _reverse(budget: Budget, value: object) -> object:
    if isinstance(value, str):
        return budget.text(value)[::-1]
    return items_of(budget, value)[::-1]


def _int(budget: Budget, value: object, default: int = 0) -> int:
    budget.spend(1)
    if isinstance(value, int | float) and abs(value) < 2**63:
        return int(value)
    digits = value.removeprefix("-") if isinstance(value, str) else ""
    if not (0 < len(digits) <= 18 and digits.isascii() and digits.isdigit()):
        return default
    return int(cast(str, value))


def _indent(budget: Budget, text: str, width: int = 4, first: bool = False, blank: bool = False) -> str:
    _strings(text)
    if type(width) is not int or not 0 <= width <= 64:
        raise unusable("an indent is not in 0..64")
    lines = marked.split(budget.text(text), "\n")
    budget.spend(len(lines) * 4)
    space = " " * width
    return marked.join(
        marked.own("\n"),
        (
            marked.concat((space, line)) if (index or first) and (line or blank) else line
            for index, line in enumerate(lines)
        ),
    )


def _member(value: object, path: str) -> object:
    for part in path.split("."):
        value = value.get(part, Undefined(name=part)) if isinstance(value, dict) else Undefined(name=part)
    return value


@pass_context
def _map(context: Context, value: object, *args: object, **kwargs: object) -> list[object]:
    budget = budget_of(context)
    items = items_of(budget, value)
    budget.spend(len(items))
    if "attribute" in kwargs:
        path = str(kwargs["attribute"])
        return [
            kwargs.get("default", member) if isinstance(member := _member(item, path), Undefined) else member
            for item in items
        ]
    name, *rest = args
    chosen = FILTERS.get(str(name))
    if chosen is None or str(name).startswith("@"):
        raise unusable(f"the filter {str(name)[:40]!r} is not known")
    return [chosen(context, item, *rest, **kwargs) for item in items]


def _selector(*, keep: bool, by_member: bool) -> Callable[..., list[object]]:
    @pass_context
    def select(context: Context, value: object, *args: object) -> list[object]:
        budget = budget_of(context)
        path, rest = (str(args[0]), args[1:]) if by_member else ("", args)
        name = str(rest[0]) if rest else ""
        test = TESTS.get(name) if rest else cast(Callable[..., bool], bool)
        if test is None:
            raise unusable(f"the test {name[:40]!r} is not known")
        for argument in rest[1:]:
            budget.value(argument)
        out = []
        for item in items_of(budget, value):
            subject = _member(item, path) if by_member else item
            budget.value(subject)
            budget.spend(sum(len(argument) // 32 for argument in rest[1:] if isinstance(argument, str)))
            if bool(test(subject, *rest[1:])) is keep:
                out.append(item)
        return out

    return select


def _iterate(budget: Budget, value: object, size: int) -> list[Any]:
    items = items_of(budget, value)
    budget.spend(len(items) * size)
    return items


def _sliceable(budget: Budget, value: object) -> object:
    if not isinstance(value, str | list | tuple):
        raise unusable(f"a {type(value).__name__} is sliced")
    budget.spend(1 + len(value) // (32 if isinstance(value, str) else 1))
    return value


def _paid(budget: Budget, value: object) -> object:
    budget.value(value)
    return value


def _string_filter(name: str) -> Callable[..., object]:
    method = STRING_METHODS[name]

    def run(budget: Budget, value: object, *args: object, **kwargs: object) -> object:
        return method(budget, text_of(budget, value), *args, **kwargs)

    return run


def _abs(budget: Budget, value: int | float) -> int | float:
    budget.spend(1)
    return abs(value)


def _safe(budget: Budget, value: object) -> object:
    budget.spend(1)
    return value


def _with_budget(function: Callable[..., object]) -> Callable[..., object]:
    @pass_context
    def run(context: Context, *args: object, **kwargs: object) -> object:
        return function(budget_of(context), *args, **kwargs)

    return run


_PLAIN_FILTERS: Mapping[str, Callable[..., object]] = {
    "abs": _abs,
    "capitalize": _string_filter("capitalize"),
    "count": _length,
    "d": _default,
    "default": _default,
    "first": _first,
    "indent": _indent,
    "int": _int,
    "items": lambda budget, value: _items(budget, value) if isinstance(value, dict) else [],
    "join": lambda budget, value, separator="": _join(budget, separator, value),
    "last": _last,
    "length": _length,
    "list": items_of,
    "lower": _string_filter("lower"),
    "replace": lambda budget, value, old, new, count=None: _replace(
        budget, text_of(budget, value), old, new, count
    ),
    "reverse": _reverse,
    "safe": _safe,
    "string": text_of,
    "title": _string_filter("title"),
    "tojson": _to_json,
    "trim": _string_filter("strip"),
    "upper": _string_filter("upper"),
    "@concat": lambda budget, parts: marked.concat([text_of(budget, part) for part in parts]),
    "@iterate": _iterate,
    "@key": lambda budget, key: key_of(key),
    "@own": lambda budget, text: marked.own(budget.text(text)),
    "@paid": _paid,
    "@sliceable": _sliceable,
}
FILTERS: dict[str, Callable[..., object]] = {
    **{name: _with_budget(function) for name, function in _PLAIN_FILTERS.items()},
    "map": _map,
    "select": _selector(keep=True, by_member=False),
    "reject": _selector(keep=False, by_member=False),
    "selectattr": _selector(keep=True, by_member=True),
    "rejectattr": _selector(keep=False, by_member=True),
}
_TEST_NAMES = (
    *(
        "boolean",
        "defined",
        "divisibleby",
        "even",
        "false",
        "float",
        "integer",
        "iterable",
        "mapping",
        "none",
    ),
    *("number", "odd", "sequence", "string", "true", "undefined", "in"),
    *(
        "eq",
        "equalto",
        "==",
        "ne",
        "!=",
        "lt",
        "lessthan",
        "<",
        "le",
        "<=",
        "gt",
        "greaterthan",
        ">",
        "ge",
        ">=",
    ),
)
TESTS = {name: cast(Callable[..., bool], JINJA_TESTS[name]) for name in _TEST_NAMES}
