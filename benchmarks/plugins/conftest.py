"""Scripts that train as they are imported: collecting doctests would run them here."""

from pathlib import Path

collect_ignore = [path.name for path in Path(__file__).parent.glob("*.py")]
