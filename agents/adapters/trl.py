"""A text-generation problem as what TRL's GRPOTrainer takes: prompts, reward functions, a tokenizer and the horizon.

The other direction needs nothing: a reward function written for TRL is one of TextGen-v0 as it is, and `conversational`
makes one of a function that expects messages. Needs TRL 1.16 and datasets (`pip install 'textgym[parity]'`). Does not
train, and does not run TextGen-v0: TRL samples the texts by itself.
"""

import inspect
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from textgym.errors import RewardError
from textgym.escape import shown, type_name
from textgym.problem import Problem, make_problem
from textgym.prompt_rows import Prompt
from textgym.prompts import MANY_ROWS
from textgym.rewards.texts import Scores, Texts
from textgym.vocabulary import Vocabulary

Messages = list[dict[str, Any]]

_ROW = "prompt_row"  # the column that says which row it is, where a Dataset cannot hold all of it
_END = "<end>"  # a token beyond the problem's own, where none of them ends a text
_TRAINER = ("trainer_state", "log_extra", "log_metric")
_OF_MESSAGES = ("prompts", "completions", "messages")  # what `conversational` takes, whatever the function does
_OF_TRL = frozenset({_ROW, "image", "images", "completion", "environment", "environments", "tools", *_TRAINER})


class GRPOInputs(NamedTuple):
    """What a GRPOTrainer and its GRPOConfig are given; each field has the name of their own argument.

    Attributes:
        train_dataset: a row a prompt: `prompt`, a str or a list of messages, and the other columns. One that a Dataset
            would change, of dicts with different keys for instance, is not in it; the functions get it all the same.
        reward_funcs: one a reward function of the problem, under its name.
        processing_class: the problem's tokenizer. Where no token ends a text it has one more, of id V, which the model
            needs an embedding for, as `TransformerPolicy.small` has it.
        reward_weights: of each function, for the config.
        max_completion_length: the horizon, for the config.
    """

    train_dataset: Dataset
    reward_funcs: list[Callable[..., list[float | None]]]
    processing_class: PreTrainedTokenizerBase
    reward_weights: list[float]
    max_completion_length: int


def grpo_inputs(num_prompts: int | None = None, seed: int = 0, **keywords: Any) -> GRPOInputs:
    """The problem that keywords of `gym.make("TextGen-v0", ...)` describe, for TRL's GRPOTrainer.

    Reward functions are called as TextGen-v0 calls them, whatever TRL makes of the texts: completions are decoded from
    their ids without the stop token, other special tokens stay visible, and the call contract is checked. Those that
    name `trainer_state`, `log_extra` or `log_metric`, or take any keyword, get TRL's own.

    What TRL does otherwise than TextGen-v0: it pads prompts on the left, so that prompts of several lengths need a
    model whose positions are relative; it samples from all of the model's outputs, more than V where there are more.

    Args:
        num_prompts: draw so many prompts; None takes each row once, in order.
        seed: of these draws, and of reward functions that draw.
        keywords: see `textgym.problem.make_problem`.

    Raises:
        TypeError, ValueError: as `make_problem`; or a problem that TRL cannot be given: one with action masks, stop
            strings, a scheme other than `terminal` or `on_reward_error="drop"`, prompts that are empty or that TRL's
            tokenizer encodes otherwise, columns whose names TRL keeps for itself, too many rows without `num_prompts`.

    >>> inputs = grpo_inputs(task="sort")
    >>> len(inputs.train_dataset), inputs.train_dataset[1], inputs.max_completion_length
    (4096, {'prompt': '0001'}, 4)
    >>> [function] = inputs.reward_funcs
    >>> function.__name__, function(prompts=["3120"], completions=["0133"], completion_ids=[[0, 1, 3, 3]])
    ('sorted_share', [0.75])
    """
    problem = make_problem(**keywords)
    _refuse_what_trl_lacks(problem, drops=keywords.get("on_reward_error") == "drop")
    generator = np.random.default_rng(seed)
    prompts = _prompts(problem, num_prompts, generator)
    tokenizer = _tokenizer(problem.vocabulary)
    rows = [_row(prompt, problem.vocabulary) for prompt in prompts]
    _check_encoding(tokenizer, rows, prompts)
    dataset, apart = _dataset(rows)
    scorer = _Scorer(problem, apart, generator, hands_on=not keywords.get("isolate_reward"))
    return GRPOInputs(
        train_dataset=dataset,
        reward_funcs=[_RewardFunction(scorer, column, name) for column, name in enumerate(problem.reward.names)],
        processing_class=tokenizer,
        reward_weights=[float(weight) for weight in problem.reward.weights],
        max_completion_length=problem.max_new_tokens,
    )


def conversational(function: Callable[..., Any]) -> Callable[..., Any]:
    """A reward function that TRL calls with messages, as one of TextGen-v0, whose prompts are chats.

    It gets as `prompts` the messages, and as each of `completions` a list of one message of the assistant's.

    Args:
        function: as TRL takes them, async or not.

    Returns:
        A function for the keyword `reward`, under the same name.

    >>> def brief(completions, **kwargs):
    ...     return [1 / len(completion[0]["content"]) for completion in completions]
    >>> conversational(brief)(prompts=["Hi"], completions=["ab"], completion_ids=[[0, 1]], messages=[[]])
    [0.5]
    """
    if not callable(function):
        raise TypeError(f"function is {shown(function)} of type {type_name(function)}; give a reward function of TRL")
    signature = inspect.signature(function)
    named = frozenset(signature.parameters)
    others = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())

    def of_messages(
        *, prompts: list[str], completions: list[str], messages: list[Messages | None], **columns: Any
    ) -> Any:
        if None in messages:
            raise ValueError(
                f"the prompt {shown(prompts[messages.index(None)])} is no chat; a reward function of messages needs "
                "prompts that are lists of messages"
            )
        said = [[{"role": "assistant", "content": text}] for text in completions]
        given = {"messages": messages, **columns, "prompts": messages, "completions": said}
        return function(**{name: value for name, value in given.items() if others or name in named})

    of_messages.__name__ = getattr(function, "__name__", type_name(function))
    # What it asks for is what the function asks for, and the messages.
    asked = [
        parameter.replace(kind=parameter.KEYWORD_ONLY)
        for parameter in signature.parameters.values()
        if parameter.name not in _OF_MESSAGES and parameter.kind is not parameter.VAR_KEYWORD
    ]
    asked += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in _OF_MESSAGES]
    if others:
        asked.append(inspect.Parameter("columns", inspect.Parameter.VAR_KEYWORD))
    of_messages.__signature__ = inspect.Signature(asked)  # type: ignore[attr-defined]
    return of_messages


class _Scorer:
    """The problem's reward, asked once for a batch whatever the number of its functions.

    Args:
        problem: whose reward it is.
        apart: columns that the data set does not hold, by row.
        generator: for functions that draw; all rows share it.
        hands_on: whether what TRL hands to a reward function is handed on.
    """

    def __init__(
        self, problem: Problem, apart: dict[str, list[Any]], generator: np.random.Generator, hands_on: bool
    ) -> None:
        self._problem, self._apart, self._generator, self._hands_on = problem, apart, generator, hands_on
        self._last: tuple[Any, Scores] | None = None  # the ids of a batch, which TRL hands to each function, and scores

    def scores(self, prompts: Sequence[Any], completion_ids: Sequence[Any], others: dict[str, Any]) -> Scores:
        if self._last is None or self._last[0] is not completion_ids:
            self._last = (completion_ids, self._problem.reward(self._texts(prompts, completion_ids, others)))
        return self._last[1]

    def _texts(self, prompts: Sequence[Any], completion_ids: Sequence[Any], others: dict[str, Any]) -> Texts:
        vocabulary, count = self._problem.vocabulary, len(completion_ids)
        columns = {name: values for name, values in others.items() if name not in _OF_TRL}
        columns |= {name: [values[row] for row in others[_ROW]] for name, values in self._apart.items()}
        if any(not isinstance(prompt, str) for prompt in prompts):
            columns.setdefault("messages", [None if isinstance(one, str) else one for one in prompts])
        columns |= {name: [None] * count for name in self._problem.asked_columns if name not in columns}
        ids = [self._own_ids(one) for one in completion_ids]
        stops = set(vocabulary.stop_ids)
        texts = _HandedOn(
            prompts=[prompt if isinstance(prompt, str) else vocabulary.render(prompt) for prompt in prompts],
            completions=vocabulary.decode_batch([one[:-1] if one and one[-1] in stops else one for one in ids]),
            completion_ids=ids,
            columns=columns,
            generators=[self._generator] * count,
        )
        texts.of_trainer = {name: others[name] for name in _TRAINER if name in others} if self._hands_on else {}
        return texts

    def _own_ids(self, completion: Sequence[int]) -> list[int]:
        """The tokens of the problem's, up to the stop token; the padding behind it, and what ends a text, go."""
        size, stops = self._problem.vocabulary.size, self._problem.vocabulary.stop_ids
        ids = [int(token) for token in completion]
        beyond = next((place for place, token in enumerate(ids) if token >= size), len(ids))
        ended = next((place for place, token in enumerate(ids) if token in stops), len(ids))
        if ended + 1 < beyond and any(token != ids[ended] for token in ids[ended + 1 : beyond]):
            raise RewardError(
                f"TRL went on after the stop token {ids[ended]}: {shown(ids)}. Set the model's "
                f"generation_config.eos_token_id to {list(stops)}, as a saved TransformerPolicy has it"
            )
        return ids[: min(beyond, ended + 1)]


class _HandedOn(Texts):
    """Texts that come with what TRL's trainer hands to a function; of a subset of them, that is left out."""

    of_trainer: dict[str, Any]

    def keywords(self, accepted: Any = None) -> dict[str, Any]:
        own = {name: value for name, value in self.of_trainer.items() if accepted is None or name in accepted}
        return super().keywords(accepted) | own


class _RewardFunction:
    """One of a problem's functions as TRL calls it: a number for each completion, None where it does not apply."""

    def __init__(self, scorer: _Scorer, column: int, name: str) -> None:
        self._scorer, self._column, self.__name__ = scorer, column, name

    def __call__(
        self, *, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **others: Any
    ) -> list[float | None]:
        found = self._scorer.scores(prompts, completion_ids, others)
        pairs = zip(found.scores[:, self._column].tolist(), found.valid[:, self._column].tolist(), strict=True)
        return [score if valid else None for score, valid in pairs]


def _refuse_what_trl_lacks(problem: Problem, drops: bool) -> None:
    reason = None
    if problem.constraint is not None:
        reason = "the task has action masks, and TRL samples from all tokens; give another task"
    elif problem.stop:
        reason = "TRL knows no stop strings; give stop_ids instead of stop"
    elif not problem.scheme.pays_at_end_alone:
        reason = f"the scheme is {problem.scheme!r}, and TRL scores whole texts; leave scheme out"
    elif drops:
        reason = "TRL cannot leave an episode out of learning; leave on_reward_error='drop' out"
    if reason is not None:
        raise ValueError(f"this problem cannot be given to TRL: {reason}")


def _prompts(problem: Problem, num_prompts: int | None, generator: np.random.Generator) -> list[Prompt]:
    source = problem.prompts
    if num_prompts is not None:
        if isinstance(num_prompts, bool) or not hasattr(num_prompts, "__index__") or num_prompts < 1:
            raise ValueError(f"num_prompts={shown(num_prompts)}; give an integer of at least 1")
        return [source.draw(generator) for _ in range(num_prompts)]
    if not source.sized or len(source) > MANY_ROWS:
        raise ValueError(
            f"the prompts are {'more than ' + format(MANY_ROWS, ',') if source.sized else 'made by a function'}; give "
            "num_prompts"
        )
    return [source[index] for index in range(len(source))]


def _row(prompt: Prompt, vocabulary: Vocabulary) -> dict[str, Any]:
    """The row of a prompt; that of a chat holds its messages, which TRL writes by the same template."""
    columns = dict(prompt.columns)
    for name in columns:
        if name in _OF_TRL:
            raise ValueError(f"a column may not be called {name!r}, which TRL gets or gives otherwise; rename it")
    messages = columns.get("messages")
    if messages is not None and _is_rendered(prompt.text, messages, vocabulary):
        return {"prompt": columns.pop("messages"), **columns}
    return {"prompt": prompt.text, **columns}


def _is_rendered(text: str, messages: Any, vocabulary: Vocabulary) -> bool:
    try:
        return vocabulary.render(messages) == text
    except Exception:  # a column of that name that holds something else
        return False


def _dataset(rows: list[dict[str, Any]]) -> tuple[Dataset, dict[str, list[Any]]]:
    """The rows as a Dataset, and the columns that one would change: they are left out, and looked up by `_ROW`."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    apart = {name: values for name, values in columns.items() if not _is_kept(values)}
    if "prompt" in apart:
        raise ValueError("the prompts are texts and chats in turn, which a Dataset does not hold; give one kind")
    if apart:
        columns[_ROW] = list(range(len(rows)))
    return Dataset.from_dict({name: values for name, values in columns.items() if name not in apart}), apart


def _is_kept(values: list[Any]) -> bool:
    try:
        return Dataset.from_dict({"column": values}).to_dict()["column"] == values
    except Exception:  # of pyarrow's, several
        return False


def _tokenizer(vocabulary: Vocabulary) -> PreTrainedTokenizerBase:
    with tempfile.TemporaryDirectory() as folder:
        vocabulary.save(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if tokenizer.eos_token_id not in vocabulary.stop_ids:
        if vocabulary.stop_ids:
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(vocabulary.stop_ids[0])
        else:
            tokenizer.add_special_tokens({"eos_token": _END})
            if tokenizer.eos_token_id < vocabulary.size:
                raise ValueError(f"the tokenizer has a token {_END!r} that ends no text; give stop_ids")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_encoding(tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], prompts: list[Prompt]) -> None:
    """Whether TRL, which encodes prompts anew, will feed the tokens that TextGen-v0 shows."""
    texts = [row["prompt"] for row in rows if isinstance(row["prompt"], str)]
    encoded = iter(tokenizer(text=texts)["input_ids"] if texts else [])
    for row, prompt in zip(rows, prompts, strict=True):
        if isinstance(row["prompt"], str):
            ids = next(encoded)
        else:
            ids = tokenizer.apply_chat_template(
                row["prompt"], add_generation_prompt=True, tokenize=True, return_dict=True
            )["input_ids"]
        if not len(prompt.ids):
            raise ValueError("a prompt is empty, and TRL goes on from one token at least; give a prompt to begin with")
        if list(ids) != prompt.ids.tolist():
            raise ValueError(
                f"TRL would encode the prompt {shown(row['prompt'])} as {shown(list(ids))}, and TextGen-v0 shows "
                f"{shown(prompt.ids.tolist())}; give a tokenizer that puts no special tokens behind a text, and chats "
                "that end with the user's message"
            )
