"""Modules that import an agent library, which may not be there: no doctests are looked for in them."""

from pathlib import Path

collect_ignore = [path.name for path in Path(__file__).parent.glob("*.py")]
