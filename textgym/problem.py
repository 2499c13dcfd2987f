"""From the keywords of `gym.make("TextGen-v0", ...)` to a checked problem that the transition can run.

Keywords override a task's own.
"""

import operator
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from typing import Any

import numpy as np

from textgym.automata import Automaton
from textgym.constraints import Constraint
from textgym.errors import did_you_mean, unknown
from textgym.escape import shown, type_name
from textgym.prompts import MANY_ROWS, Prompts, load_prompts
from textgym.rewards import Reward, load_reward
from textgym.schemes import Scheme, make_scheme
from textgym.stops import StopStrings, checked_stop_strings
from textgym.tasks import DEFAULT_TASK, make_task
from textgym.tasks.base import Task, is_integer
from textgym.vocabulary import STOP_SYMBOL, Vocabulary, make_vocabulary

DEFAULT_MAX_NEW_TOKENS = 32

# Keywords that are one of two words; the first is the default.
_WORDS = {
    "prompt_order": ("random", "sequential"),
    "on_limit": ("terminate", "truncate"),
    "on_reward_error": ("raise", "drop"),
    "on_illegal_action": ("raise", "terminate"),
    "observation": ("tokens", "dict"),
    "rng": ("per_env", "shared"),
}


@dataclass(frozen=True)
class Problem:
    """A text-generation problem, checked and ready to run.

    Attributes:
        vocabulary: the tokens.
        prompts: what an episode may start from.
        prompt_order: "random" or "sequential".
        stop: the stop strings.
        reward: scores whole texts.
        true_reward: the task's hidden gold reward, where it has one.
        scheme: when and how a score is paid.
        potentials: the potential functions of the scheme.
        asked_columns: what the functions need and not every row may have: None where one lacks it.
        constraint: which tokens are allowed next, where the task constrains them.
        max_new_tokens: the horizon W.
        max_prompt_tokens: tokens of the longest prompt allowed.
        on_limit: "terminate" or "truncate", the flag that the horizon sets.
        on_illegal_action: "raise" or "terminate".
        observation: "tokens" or "dict".
        text_info: whether infos hold the texts.
        copy: whether observations are copies.
        rng: "per_env" or "shared".
        automaton: tells what texts score, where the task has one and its tokens, stop tokens and reward are in use.
        task: the built-in or registered task, where one was asked for.
        optimum: J*, the best expected return, or None where it is not known.
        uniform: J of the uniform policy, or None where it is not known.
    """

    vocabulary: Vocabulary
    prompts: Prompts
    prompt_order: str
    stop: StopStrings
    reward: Reward
    true_reward: Reward | None
    scheme: Scheme
    potentials: tuple[Reward, ...]
    asked_columns: tuple[str, ...]
    constraint: Constraint | None
    max_new_tokens: int
    max_prompt_tokens: int
    on_limit: str
    on_illegal_action: str
    observation: str
    text_info: bool
    copy: bool
    rng: str
    automaton: Automaton | None
    task: Task | None
    optimum: float | None
    uniform: float | None

    @property
    def max_length(self) -> int:
        """L, tokens of the longest history."""
        return self.max_prompt_tokens + self.max_new_tokens

    @property
    def scorers(self) -> list[Reward]:
        """The reward, the true reward and the potentials."""
        return [self.reward, *([self.true_reward] if self.true_reward is not None else []), *self.potentials]

    @property
    def draws(self) -> bool:
        """Whether a function asks for the rows' generators."""
        return any(scorer.draws for scorer in self.scorers)


def make_problem(
    task: str | None = None,
    level: int | None = None,
    prompts: Any = None,
    prompt_order: str = "random",
    tokenizer: Any = None,
    stop_ids: Iterable[int] | None = None,
    stop: Sequence[str] | None = None,
    reward: Any = None,
    scheme: Any = "terminal",
    max_new_tokens: int | None = None,
    max_prompt_tokens: int | None = None,
    on_limit: str = "terminate",
    on_reward_error: str = "raise",
    reward_timeout: float | None = None,
    isolate_reward: bool = False,
    on_illegal_action: str = "raise",
    observation: str = "tokens",
    text_info: bool = False,
    copy: bool = True,
    rng: str = "per_env",
    **unknown_keywords: Any,
) -> Problem:
    """Build the problem that the keywords describe.

    Args:
        task: a built-in or registered task; `sort` where none is given and the other keywords leave its parts open.
        level: the task's difficulty.
        prompts: a list of str or dict rows, the path of a .txt, .jsonl, .csv or .parquet file, a sized and indexable
            object, or a function of a generator that returns a row; instead of the task's. A row's `prompt` is a str,
            or a list of messages for the tokenizer's chat template.
        prompt_order: "random": drawn with the row's generator; "sequential": each row walks the list from its start,
            and begins again there when it is seeded.
        tokenizer: a list of symbols, the path of a tokenizer.json or a Hugging Face folder, or a tokenizer object;
            instead of the task's.
        stop_ids: the stop tokens, `[]` for none; instead of the tokenizer's.
        stop: stop strings; the text is cut at the first.
        reward: a function, "module:function" or "file.py:function" that scores whole texts, several of them in a list,
            or a dict of name -> function or (function, weight); instead of the task's.
        scheme: when and how a score is paid: a name, an object of `textgym.schemes`, or a list of them.
        max_new_tokens: the horizon in tokens, the stop token included; the task's, or else 32.
        max_prompt_tokens: the longest prompt allowed, in tokens; the longest of the prompts by default.
        on_limit: "terminate" or "truncate", the flag that the horizon sets.
        on_reward_error: "raise", or "drop": the episode pays 0 and has `valid` False.
        reward_timeout: seconds that a call of a reward function may take; None for no limit.
        isolate_reward: run the reward functions in a subprocess of their own.
        on_illegal_action: "raise", or "terminate": an action that the mask forbids ends the episode with score 0.
        observation: "tokens", or "dict" with `tokens`, `length`, `attention_mask` and `action_mask`.
        text_info: put `prompt` and `completion` in the infos.
        copy: whether observations are copies, or views that the next step changes.
        rng: "per_env", or "shared": the rows of a vector environment share one generator, which is faster.
        **unknown_keywords: refused.

    Raises:
        FileNotFoundError, ImportError, TypeError, ValueError: a keyword that is unknown, missing or malformed; the
            message says which, what is allowed and how to mend it.
    """
    _refuse_unknown(unknown_keywords)
    words = {
        "prompt_order": prompt_order,
        "on_limit": on_limit,
        "on_reward_error": on_reward_error,
        "on_illegal_action": on_illegal_action,
        "observation": observation,
        "rng": rng,
    }
    flags = {"isolate_reward": isolate_reward, "text_info": text_info, "copy": copy}
    _check_words(words)
    _check_flags(flags)
    own = _Keywords(prompts, tokenizer, reward, max_new_tokens, stop_ids, stop)
    chosen = _chosen_task(task, level, own)
    vocabulary = _vocabulary(own, chosen)
    if chosen is not None and vocabulary.is_of_symbols(chosen.tokenizer):
        own = replace(own, tokenizer=None)  # the task's own tokens, read from a saved policy for instance
    horizon = _horizon(max_new_tokens, chosen)
    if max_prompt_tokens is not None:
        max_prompt_tokens = _count("max_prompt_tokens", max_prompt_tokens, least=0)
    loaded = _prompts(own, chosen, vocabulary, max_prompt_tokens)
    _check_order(prompt_order, loaded)
    chosen_scheme = make_scheme(scheme)
    given = _reward(own, chosen, loaded)
    # The package's own scorers are trusted, and some are objects that cannot be sent to another process.
    isolated = isolate_reward and not _is_built_in(given)
    load = partial(load_reward, timeout=reward_timeout, on_error=on_reward_error)
    scores = load(given, isolate=isolated)
    truth = chosen.true_reward if chosen is not None and own.reward is None else None
    true_reward = load(truth, isolate=isolated, what="true reward function") if truth is not None else None
    potentials = tuple(load(one, isolate=isolate_reward, what="potential function") for one in chosen_scheme.potentials)
    own_stops = _has_own_stops(vocabulary, chosen)
    known = chosen if chosen_scheme.pays_score and not own.any_given() and own_stops else None
    scored = chosen if chosen is not None and given is chosen.reward and own.tokenizer is None and own_stops else None
    return Problem(
        vocabulary=vocabulary,
        prompts=loaded,
        prompt_order=prompt_order,
        stop=StopStrings(checked_stop_strings(stop), vocabulary),
        reward=scores,
        true_reward=true_reward,
        scheme=chosen_scheme,
        potentials=potentials,
        asked_columns=_asked_columns(loaded, [scores, *potentials, *([true_reward] if true_reward else [])]),
        constraint=chosen.constraint if chosen is not None and own.tokenizer is None else None,
        max_new_tokens=horizon,
        max_prompt_tokens=loaded.max_tokens,
        on_limit=on_limit,
        on_illegal_action=on_illegal_action,
        observation=observation,
        text_info=text_info,
        copy=copy,
        rng=rng,
        automaton=scored.automaton if scored else None,
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
    stop: Any

    def open_parts(self) -> list[str]:
        """What a task must fill in; a dataset that scores its answers brings its reward."""
        scored = callable(getattr(self.prompts, "score_answer", None))
        parts = ("prompts", "tokenizer") if scored else ("prompts", "tokenizer", "reward")
        return [name for name in parts if getattr(self, name) is None]

    def any_given(self) -> bool:
        values = (self.prompts, self.tokenizer, self.reward, self.max_new_tokens, self.stop_ids, self.stop or None)
        return any(value is not None for value in values)


def _refuse_unknown(keywords: dict[str, Any]) -> None:
    for name in keywords:
        allowed = [name for name in signature(make_problem).parameters if name != "unknown_keywords"]
        raise TypeError(
            # As Python words it: TorchRL's GymEnv tries a keyword of its own, and looks for these words.
            f"TextGen-v0 got an unexpected keyword argument {shown(name)}; it has {', '.join(sorted(allowed))}."
            f"{did_you_mean(name, allowed)}"
        )


def _check_words(words: dict[str, Any]) -> None:
    for name, value in words.items():
        if not isinstance(value, str):
            allowed = " or ".join(map(repr, _WORDS[name]))
            raise TypeError(f"{name} is {shown(value)} of type {type_name(value)}; give {allowed}")
        if value not in _WORDS[name]:
            raise ValueError(unknown(name, value, _WORDS[name]))


def _check_flags(flags: dict[str, Any]) -> None:
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name} is {shown(value)} of type {type_name(value)}; give True or False")


def _check_order(prompt_order: str, prompts: Prompts) -> None:
    if prompt_order == "sequential" and not prompts.sized:
        raise ValueError(
            "prompt_order='sequential' needs a list of prompts, and these come from a function, which "
            "draws them; leave prompt_order out"
        )


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
    if max_tokens is None and len(task.prompts) > MANY_ROWS:
        raise ValueError(
            f"task {task.name!r} has {len(task.prompts)} prompts; with your tokenizer, give max_prompt_tokens"
        )
    if own.tokenizer is None and max_tokens is not None and max_tokens < task.max_prompt_tokens:
        raise ValueError(
            f"max_prompt_tokens={max_tokens}, and task {task.name!r} has prompts of up to {task.max_prompt_tokens} "
            "tokens; raise it, or give prompts of your own"
        )
    lazy = max_tokens is not None and not isinstance(task.prompts, list | tuple)
    return Prompts(task.prompts, vocabulary, max_tokens, lazy=lazy)


def _is_built_in(reward: Any) -> bool:
    return getattr(reward, "__module__", "").startswith("textgym.tasks.")


def _has_own_stops(vocabulary: Vocabulary, task: Task | None) -> bool:
    """Whether the stop tokens are those of the task, which another tokenizer of its symbols may lack."""
    stops = [place for place, symbol in enumerate(task.tokenizer if task else ()) if symbol == STOP_SYMBOL]
    return list(vocabulary.stop_ids) == stops


def _asked_columns(prompts: Prompts, scorers: Sequence[Reward]) -> tuple[str, ...]:
    """The columns that are None where a row lacks them, for prompts whose columns are not all known beforehand."""
    if prompts.checked:
        return ()
    return tuple(sorted({name for scorer in scorers for name in scorer.needs}))


def _reward(own: _Keywords, task: Task | None, prompts: Prompts) -> Any:
    """The user's reward, that of a dataset which scores its answers itself, or the task's."""
    if own.reward is not None:
        return own.reward
    if prompts.score_answer is not None:
        return prompts.score_answer
    assert task is not None
    return task.reward


def _horizon(max_new_tokens: int | None, task: Task | None) -> int:
    if max_new_tokens is None:
        return task.max_new_tokens if task is not None else DEFAULT_MAX_NEW_TOKENS
    return _count("max_new_tokens", max_new_tokens, least=1)


def _count(name: str, value: Any, least: int) -> int:
    if not is_integer(value):
        raise TypeError(f"{name} is {shown(value)} of type {type(value).__name__}; give an integer of at least {least}")
    if value < least:
        raise ValueError(f"{name}={value}; give an integer of at least {least}")
    return operator.index(value)
