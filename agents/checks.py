"""What can be said against a learner's parts and settings before it starts."""

from typing import Any

import numpy as np

from agents.axes import Algorithm
from agents.policy import TransformerPolicy
from textgym.escape import excerpt
from textgym.vocabulary import Vocabulary


def check_same_tokens(own: Vocabulary | None, theirs: Vocabulary | None, name: str, their_name: str) -> None:
    """Refuse two vocabularies that differ in a token; where one is not known, nothing can be said.

    Raises:
        ValueError: with the first token that differs.
    """
    if own is None or theirs is None or own is theirs:
        return
    ids, their_ids = own.tokenizer.get_vocab(), theirs.tokenizer.get_vocab()
    if ids != their_ids:
        token = next(token for token in sorted(ids.keys() | their_ids.keys()) if ids.get(token) != their_ids.get(token))
        raise ValueError(
            f"{name} and {their_name} have other tokens: {excerpt(token)} is id {ids.get(token)} to {name} and "
            f"{their_ids.get(token)} to {their_name}; give both the same tokenizer"
        )


def check_length(policy: TransformerPolicy, length: int, name: str = "the model") -> None:
    """Refuse histories that the model does not take.

    Raises:
        ValueError: they are too long.
    """
    # The last token of a history is only ever an action, so the model sees one token less.
    if policy.max_length is not None and length - 1 > policy.max_length:
        raise ValueError(
            f"histories have up to {length} tokens and {name} takes {policy.max_length}; lower max_new_tokens or "
            "max_prompt_tokens"
        )


def check_settings(settings: dict[str, Any], algorithm: Algorithm) -> None:
    """Refuse settings outside their range, or that the algorithm cannot work with.

    Raises:
        ValueError: with the setting, its value and what is allowed.
    """
    group_size, episodes = settings["group_size"], settings["episodes_per_update"]
    if group_size < 1 or episodes < 1 or episodes % group_size:
        raise ValueError(f"episodes_per_update={episodes} is no positive multiple of group_size={group_size}")
    if group_size < algorithm.min_group_size or episodes < algorithm.min_episodes:
        raise ValueError(
            f"algorithm {algorithm.name!r} needs group_size of at least {algorithm.min_group_size} and "
            f"episodes_per_update of at least {algorithm.min_episodes}, not {group_size} and {episodes}"
        )
    for name in ("learning_rate", "max_grad_norm", "tokens_per_microbatch"):
        if not 0 < settings[name] < np.inf:
            raise ValueError(f"{name}={settings[name]}; give a finite number above 0")
    decay = settings["decay_timesteps"]
    if decay is not None and not (len(decay) == 2 and 0 <= decay[0] < decay[1]):
        raise ValueError(f"decay_timesteps={decay}; give two numbers of tokens, the lower one first, or None")
    if not 0 <= settings["entropy_coef"] < np.inf:
        raise ValueError(f"entropy_coef={settings['entropy_coef']}; give a finite number of at least 0")
