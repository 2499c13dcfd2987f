"""How an episode ends, as a number that every library can carry."""

from enum import IntEnum


class FinishReason(IntEnum):
    """How an episode ended."""

    RUNNING = 0
    STOP = 1  # a stop token, at the last allowed place too, or a stop string
    LIMIT = 2  # the horizon
    DEAD_END = 3  # no legal token was left
    ILLEGAL_ACTION = 4  # an action that the mask forbids
