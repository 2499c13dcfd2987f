"""Modules that import an agent library, which may not be there: no doctests are looked for in them."""

collect_ignore = ["torchrl.py", "trl.py"]
