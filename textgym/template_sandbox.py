"""Where a chat template runs: a Jinja sandbox with the names and settings that templates for transformers count on.

A template is code of whoever made the tokenizer. It sees the values that it is given and nothing else, changes none of
them, and is ended after a number of steps; what one call of a built-in filter or string method costs is not bounded.
Needs jinja2, so `textgym.chat` imports it when the first chat is rendered.
"""

import json
import threading
from collections.abc import Sized
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.environment import Template
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace

# Rounds of loops, calls of macros, items of ranges and of products, for one text; some seconds of computing.
MOST_STEPS = 1_000_000
_REPEATING = (nodes.For, nodes.Macro, nodes.Block)  # without one of these nothing is done more than once


def run(template: str, variables: dict[str, Any]) -> str:
    """The text that a template makes of its variables, which should be plain data.

    Raises:
        Exception: of any kind that the template provokes.

    >>> run("{% for word in words %}{{ word }}{{ ' ' if not loop.last }}{% endfor %}", {"words": ["a", "b"]})
    'a b'
    """
    compiled = _compiled(template)
    compiled.environment.begin()  # type: ignore[attr-defined]
    return compiled.render(variables)


@lru_cache(maxsize=32)
def _compiled(template: str) -> Template:
    environment = _Sandbox()
    tree = environment.parse(template)
    repeating: list[Any] = list(tree.find_all(_REPEATING))
    for node in repeating:
        tick = nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno).set_environment(environment))
    return environment.from_string(tree)


class _Generation(Extension):
    """Reads `{% generation %} ... {% endgeneration %}`, which marks what the assistant says, as a scope of its own."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one template; counts the steps of each thread that renders it."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self._thread = threading.local()
        # What is drawn from the global generator would differ between two runs of the same seed.
        del self.globals["lipsum"], self.filters["random"]
        self.filters["tojson"] = _to_json
        self.globals |= {
            "dict": _Dict(),
            "namespace": _PublicNamespace,
            "raise_exception": _raise,
            "range": self._counted_range,
            "strftime_now": _now,
        }

    def begin(self) -> None:
        """Count from the start, for a new text."""
        self._thread.left = MOST_STEPS

    def step(self, count: int = 1) -> None:
        """Count steps, and end what takes too many."""
        self._thread.left -= count
        if self._thread.left < 0:
            raise SecurityError(f"it takes more than {MOST_STEPS:,} steps")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """A product or a power, whose size counts as steps; these are not computed when a template is compiled."""
        self.step(_size(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def _counted_range(self, *bounds: int) -> range:
        numbers = safe_range(*bounds)
        self.step(len(numbers))
        return numbers


def _size(operator: str, left: Any, right: Any) -> int:
    """Bits of the integer, or items of the sequence, that a product or power is; 0 for what cannot be large.

    >>> _size("**", 8, 10), _size("*", 8, 10), _size("*", "ab", 10), _size("*", 0.5, 10)
    (40, 8, 20, 0)
    """
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() * max(right, 0) if operator == "**" else left.bit_length() + right.bit_length()
    if isinstance(left, int):
        left, right = right, left
    return len(left) * max(right, 0) if isinstance(left, Sized) and isinstance(right, int) else 0


class _Dict:
    """Makes dicts, and offers nothing else of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _PublicNamespace(Namespace):
    """Attributes that a template may set; none that Python itself looks up."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_public(name)
        super().__init__(attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _check_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r}: names must not start with an underscore")


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Plain JSON; Jinja's own filter writes `<` and its like as codes, for web pages."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
