"""Stories are scripts: `test_stories.py` runs each in a folder of its own; collecting doctests would run them here."""

from pathlib import Path

collect_ignore = [path.name for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("test_")]
