"""Which tokens are allowed next, where a task says so.

A constraint is a function of the prompt's text, of the completion's ids so far, and of the number of tokens that the
horizon leaves. Checks what it returns; what an episode does where no token is legal, or an illegal one is chosen, is
the transition's business.
"""

from collections.abc import Callable, Sequence

import numpy as np

from textgym.escape import escape, excerpt, shown, type_name

Constraint = Callable[[str, Sequence[int], int], np.ndarray]


def legal_tokens(
    constraint: Constraint, prompt: str, completion_ids: Sequence[int], tokens_left: int, size: int
) -> np.ndarray:
    """The tokens that are legal next, bool [V]; all False is a dead end.

    Args:
        constraint: called as constraint(prompt, completion_ids, tokens_left).
        prompt: the text of the prompt.
        completion_ids: the tokens generated so far.
        tokens_left: how many more the horizon allows.
        size: V.

    Raises:
        TypeError, ValueError: the constraint returned no array of V booleans.
    """
    legal = constraint(prompt, completion_ids, tokens_left)
    name = escape(getattr(constraint, "__name__", type(constraint).__name__))
    if not isinstance(legal, np.ndarray):
        raise TypeError(
            f"the constraint '{name}' returned {shown(legal)} of type {type_name(legal)} for the prompt "
            f"{excerpt(prompt)}; return a numpy array, bool ({size},)"
        )
    if legal.dtype != np.bool_ or legal.shape != (size,):
        raise ValueError(
            f"the constraint '{name}' returned {legal.dtype} {legal.shape} for the prompt {excerpt(prompt)}; return "
            f"bool ({size},), True where a token is legal"
        )
    return legal
