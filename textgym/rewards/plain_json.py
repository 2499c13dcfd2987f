"""JSON that comes back as the same values in the same types: lists, tuples and dicts of strings, numbers, bools, None.

Plain JSON makes a list of a tuple and a string of a dict's integer key. Here each container says what it is, so that
two values have the same text exactly where they are the same.
"""

import json
from typing import Any

from textgym.escape import shown, type_name

_SCALARS = frozenset({str, int, float, bool, type(None)})


def dumps(value: Any) -> str:
    """The text of a value.

    Raises:
        TypeError: it holds something else, or nests too deeply.

    >>> dumps({"a": (1, None)})
    '["dict", ["a", ["tuple", 1, null]]]'
    """
    try:
        return json.dumps(_tagged(value))
    except (RecursionError, ValueError) as error:
        raise TypeError(f"a value of type {type_name(value)} that JSON cannot hold: {error}") from None


def loads(text: str) -> Any:
    """The value of a text.

    >>> loads(dumps({"a": (1, None)}))
    {'a': (1, None)}
    """
    return _untagged(json.loads(text))


def _tagged(value: Any) -> Any:
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is list or kind is tuple:
        return [kind.__name__, *map(_tagged, value)]
    if kind is dict:
        return ["dict", *([_tagged(key), _tagged(item)] for key, item in value.items())]
    raise TypeError(f"{shown(value)} of type {type_name(value)}")


def _untagged(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    kind, *items = value
    if kind == "dict":
        return {_untagged(key): _untagged(item) for key, item in items}
    return [*map(_untagged, items)] if kind == "list" else tuple(map(_untagged, items))
