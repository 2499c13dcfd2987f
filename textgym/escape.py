"""Make text from a model or a file safe to show.

Text that a policy generated may hold terminal escapes, bidirectional overrides or forged line ends. `escape` writes
such characters as visible codes. It does not quote for HTML; a page escapes with its own template engine.
"""

import unicodedata
from collections.abc import Callable
from typing import Any

# Cc: control characters (ESC among them). Cf: bidi overrides, zero-width and tag characters. Cs: lone surrogates.
# Zl, Zp: line and paragraph separators, which some terminals and most log viewers break lines at.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_NAMED = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def escape(text: str, keep: str = "") -> str:
    r"""Write control, format and separator characters of a text as visible codes.

    Args:
        text: any text.
        keep: characters that stay as they are, for instance the line end where a text is shown as a block.

    Returns:
        The text, safe for a terminal or a log line.

    >>> escape("a\x1b[31mred\n")
    'a\\x1b[31mred\\n'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char in keep or unicodedata.category(char) not in _UNSAFE else _code(char) for char in text)


def excerpt(text: str, limit: int = 200) -> str:
    """The escaped text in quotes, cut in the middle past `limit` characters; for error messages.

    >>> excerpt("a" * 9, limit=4)
    "'aa...aa' (9 characters)"
    """
    if len(text) <= limit:
        return f"'{escape(text)}'"
    half = limit // 2
    return f"'{escape(text[:half])}...{escape(text[-half:])}' ({len(text)} characters)"


def shown(value: Any, limit: int = 80) -> str:
    """The escaped `repr` of any value, cut past `limit` characters; an object whose `repr` raises is still named.

    >>> shown([1.0] * 9, limit=10)
    '[1.0, 1.0,'
    """
    return _text_of(value, repr)[:limit]


def told(error: BaseException, limit: int = 1000) -> str:
    """Type and escaped text of an exception, cut past `limit` characters; one whose `str` raises is still named.

    >>> told(KeyError("x"))
    "KeyError: 'x'"
    """
    return f"{type_name(error)}: {_text_of(error, str)[:limit]}"


def type_name(value: Any) -> str:
    """The escaped name of a value's type.

    >>> type_name(3)
    'int'
    """
    return escape(type(value).__name__)


def _text_of(value: Any, convert: Callable[[Any], str]) -> str:
    try:
        return escape(convert(value))
    except (Exception, SystemExit) as error:
        return f"<{type_name(value)} whose {convert.__name__}() raises {type_name(error)}>"


def _code(char: str) -> str:
    point = ord(char)
    if char in _NAMED:
        return _NAMED[char]
    if point < 0x100:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"
