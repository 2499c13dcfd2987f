"""Names of parametrized tests that are the same in every process, so that several can share the tests out."""

import re


def stable(value: object) -> str:
    """A value as text without addresses.

    >>> stable(print), stable(object())
    ('<built-in function print>', '<object object>')
    """
    return re.sub(" at 0x[0-9a-f]+", "", str(value))
