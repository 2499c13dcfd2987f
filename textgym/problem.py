"""From the keywords of `gym.make("TextGen-v0", ...)` to a checked problem that the transition can run.

Keywords override a task's own. What is documented for later versions is refused here, with a clear error.
"""

import operator
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from textgym.errors import NotBuiltError, did_you_mean, unknown
from textgym.prompts import Prompts, load_prompts
from textgym.rewards import Reward, load_reward
from textgym.schemes import Scheme, make_scheme
from textgym.tasks import DEFAULT_TASK, make_task
from textgym.tasks.base import Task
from textgym.vocabulary import Vocabulary, make_vocabulary

DEFAULT_MAX_NEW_TOKENS = 32
_MANY_ROWS = 100_000  # more than this are never read at once

# Keywords of later versions and the one value that today's behaviour equals.
# Words that a keyword will know are told from misspelt ones.
_LATER: dict[str, Any] = {
    "prompt_order": "random",
    "stop": None,
    "on_limit": "terminate",
    "on_reward_error": "raise",
    "reward_timeout": None,
    "isolate_reward": False,
    "on_illegal_action": "raise",
    "observation": "tokens",
    "text_info": False,
    "copy": True,
    "rng": "per_env",
}
_LATER_WORDS = {
    "prompt_order": "sequential",
    "on_limit": "truncate",
    "on_reward_error": "drop",
    "on_illegal_action": "terminate",
    "observation": "dict",
    "rng": "shared",
}


@dataclass(frozen=True)
class Problem:
    """A text-generation problem, checked and ready to run.

    Attributes:
        vocabulary: the tokens.
        prompts: what an episode may start from.
        reward: scores whole texts.
        scheme: when and how a score is paid.
        max_new_tokens: the horizon W.
        max_prompt_tokens: tokens of the longest prompt allowed.
        task: the built-in task, where one was asked for.
        optimum: J*, the best expected return, or None where it is not known.
        uniform: J of the uniform policy, or None where it is not known.
    """

    vocabulary: Vocabulary
    prompts: Prompts
    reward: Reward
    scheme: Scheme
    max_new_tokens: int
    max_prompt_tokens: int
    task: Task | None
    optimum: float | None
    uniform: float | None

    @property
    def max_length(self) -> int:
        """L, tokens of the longest history."""
        return self.max_prompt_tokens + self.max_new_tokens


def make_problem(
    task: str | None = None,
    level: int | None = None,
    prompts: Any = None,
    tokenizer: Any = None,
    stop_ids: Iterable[int] | None = None,
    reward: Any = None,
    scheme: Any = "terminal",
    max_new_tokens: int | None = None,
    max_prompt_tokens: int | None = None,
    **later: Any,
) -> Problem:
    """Build the problem that the keywords describe.

    Args:
        task: a built-in task; `sort` where none is given and the other keywords leave its parts open.
        level: the task's difficulty.
        prompts: a list of str or dict rows, or the path of a .jsonl file; instead of the task's.
        tokenizer: a list of symbols, or the path of a tokenizer.json or a Hugging Face folder; instead of the task's.
        stop_ids: the stop tokens, `[]` for none; instead of the tokenizer's.
        reward: a function, "module:function" or "file.py:function" that scores whole texts; instead of the task's.
        scheme: when and how a score is paid: "terminal", "prefix_delta", or a scheme object.
        max_new_tokens: the horizon in tokens, the stop token included; the task's, or else 32.
        max_prompt_tokens: the longest prompt allowed, in tokens; the longest of the prompts by default.
        **later: keywords that later versions read; any but the default value is refused.

    Raises:
        FileNotFoundError, TypeError, ValueError: a keyword that is unknown, missing or malformed; the message says
            which, what is allowed and how to mend it.
    """
    _refuse_later(later)
    own = _Keywords(prompts, tokenizer, reward, max_new_tokens, stop_ids)
    chosen = _chosen_task(task, level, own)
    vocabulary = _vocabulary(own, chosen)
    if chosen is not None and vocabulary.is_of_symbols(chosen.tokenizer):
        own = replace(own, tokenizer=None)  # the task's own tokens, read from a saved policy for instance
    horizon = _horizon(max_new_tokens, chosen)
    if max_prompt_tokens is not None:
        max_prompt_tokens = _count("max_prompt_tokens", max_prompt_tokens, least=0)
    loaded = _prompts(own, chosen, vocabulary, max_prompt_tokens)
    chosen_scheme = make_scheme(scheme)
    pays_score = getattr(chosen_scheme, "pays_score", False)
    known = chosen if pays_score and not own.any_given() else None
    return Problem(
        vocabulary=vocabulary,
        prompts=loaded,
        reward=_reward(own, chosen),
        scheme=chosen_scheme,
        max_new_tokens=horizon,
        max_prompt_tokens=loaded.max_tokens,
        task=chosen,
        optimum=known.optimum if known else None,
        uniform=known.uniform if known else None,
    )


@dataclass(frozen=True)
class _Keywords:
    """The user's own values, which take precedence over a task's and make its known returns unknown."""

    prompts: Any
    tokenizer: Any
    reward: Any
    max_new_tokens: Any
    stop_ids: Any

    def open_parts(self) -> list[str]:
        """What a task must fill in."""
        return [name for name in ("prompts", "tokenizer", "reward") if getattr(self, name) is None]

    def any_given(self) -> bool:
        values = (self.prompts, self.tokenizer, self.reward, self.max_new_tokens, self.stop_ids)
        return any(value is not None for value in values)


def _refuse_later(later: dict[str, Any]) -> None:
    from inspect import signature

    for name, value in later.items():
        if name not in _LATER:
            allowed = [*signature(make_problem).parameters, *_LATER]
            allowed.remove("later")
            raise TypeError(
                f"TextGen-v0 has no keyword {name!r}; it has {', '.join(sorted(allowed))}.{did_you_mean(name, allowed)}"
            )
        today = _LATER[name]
        nothing = name == "stop" and isinstance(value, list) and not value
        if nothing or (type(value) is type(today) and value == today):
            continue
        if name in _LATER_WORDS and value != _LATER_WORDS[name]:
            raise ValueError(unknown(name, value, (today, _LATER_WORDS[name])))
        raise NotBuiltError(f"{name}={value!r} is not built yet; leave it out or give {today!r}")


def _chosen_task(task: str | None, level: int | None, own: _Keywords) -> Task | None:
    """The task that was asked for, or the default one where parts are left open; None where nothing is."""
    if task is not None:
        return make_task(task, level)
    parts = own.open_parts()
    if not parts:
        if level is not None:
            raise ValueError(f"level={level} needs a task; give task=, or leave level out")
        return None
    if "prompts" not in parts and len(parts) == 1:  # one's own texts beside a part of the task, perhaps by oversight
        message = f"{parts[0]}= is not given: that of the default task {DEFAULT_TASK!r} is used"
        warnings.warn(message, UserWarning, stacklevel=5)
    return make_task(DEFAULT_TASK, level)


def _vocabulary(own: _Keywords, task: Task | None) -> Vocabulary:
    tokenizer = own.tokenizer
    if tokenizer is None:
        assert task is not None
        tokenizer = list(task.tokenizer)
    return make_vocabulary(tokenizer, own.stop_ids)


def _prompts(own: _Keywords, task: Task | None, vocabulary: Vocabulary, max_tokens: int | None) -> Prompts:
    if own.prompts is not None:
        return load_prompts(own.prompts, vocabulary, max_tokens)
    assert task is not None
    if max_tokens is None and own.tokenizer is None:
        max_tokens = task.max_prompt_tokens
    if max_tokens is None and len(task.prompts) > _MANY_ROWS:
        raise ValueError(
            f"task {task.name!r} has {len(task.prompts)} prompts; with your tokenizer, give max_prompt_tokens"
        )
    return Prompts(task.prompts, vocabulary, max_tokens, lazy=max_tokens is not None)


def _reward(own: _Keywords, task: Task | None) -> Reward:
    if own.reward is not None:
        return load_reward(own.reward)
    assert task is not None
    return Reward(task.reward)


def _horizon(max_new_tokens: int | None, task: Task | None) -> int:
    if max_new_tokens is None:
        return task.max_new_tokens if task is not None else DEFAULT_MAX_NEW_TOKENS
    return _count("max_new_tokens", max_new_tokens, least=1)


def _count(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} is {value!r} of type {type(value).__name__}; give an integer of at least {least}")
    if value < least:
        raise ValueError(f"{name}={value}; give an integer of at least {least}")
    return operator.index(value)
