"""`textgym check`: lists every bad row of a prompt file, sums up the good ones, and tries the reward on three of them.

Works in a base install: nothing here needs torch, or an extra but pyarrow for .parquet files.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np

import textgym  # noqa: F401  # registers the environment
from textgym.chat import contents
from textgym.errors import did_you_mean
from textgym.escape import escape, excerpt
from textgym.prompt_files import Row, read_file
from textgym.prompt_rows import Prompt, encode_rows, parse_row
from textgym.tasks import DEFAULT_TASK, make_task
from textgym.vocabulary import STOP_SYMBOL, Vocabulary, make_vocabulary

_TRIALS = 3
_MOST_COLUMNS = 20  # that the summary names


def check(arguments: Sequence[str]) -> None:
    """Check a prompt file and print what is in it; ends the process with 2 at a flag that is not one.

    Raises:
        ValueError: rows are bad; each has been printed.
        ImportError, AttributeError, OSError, TypeError, ValueError: the file, the tokenizer or the reward function
            cannot be read at all.
        textgym.RewardError: the reward function failed.
    """
    options = _parse(arguments)
    rows = list(read_file(options.prompts))
    rows, chats = _without_chats(rows) if _lacks_tokenizer(options) else (rows, 0)
    tokenizer = _tokenizer(options, rows)
    good, problems = _sorted_out(rows, make_vocabulary(tokenizer), options.max_prompt_tokens)
    for problem in problems:
        print(escape(str(problem)))
    print(f"{escape(str(options.prompts))}: {len(good)} good rows, {len(problems)} bad")
    if chats:
        print(f"rows of messages: {chats}; with a --tokenizer or --model, its chat template writes their text")
    if good:
        _print_summary([prompt for _, prompt in good], "characters" if _lacks_tokenizer(options) else "tokens")
        _try_reward(options, good, tokenizer)
    if problems:
        raise ValueError(f"{str(options.prompts)!r}: {len(problems)} of {len(rows)} rows are bad")


class _Parser(argparse.ArgumentParser):
    """Complains as the rest of the command does."""

    def error(self, message: str) -> NoReturn:
        super().error(escape(message))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="textgym check", description=__doc__.splitlines()[0], allow_abbrev=False, add_help=False)
    parser.add_argument("-h", "--help", "--help-all", action="help", help="show this and end")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a .txt, .jsonl, .csv or .parquet file")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--tokenizer", metavar="PATH", help="a tokenizer.json or a Hugging Face folder")
    source.add_argument("--model", metavar="FOLDER", help="a model, whose tokenizer is used")
    parser.add_argument("--reward", metavar="PLACE", help="file.py:function or module:function, tried on three prompts")
    parser.add_argument("--max-prompt-tokens", type=int, metavar="N", help="a longer prompt is a bad row")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="most tokens of a tried completion")
    parser.add_argument("--task", help="a task, for the tokenizer and the reward that are not given")
    parser.add_argument("--level", type=int, help="the task's difficulty")
    parser.add_argument("--seed", type=int, default=0, help="of the tried prompts and completions (0)")
    options, rest = parser.parse_known_args(arguments)
    flags = [flag for action in parser._actions for flag in action.option_strings]
    if rest:
        parser.error(f"{excerpt(rest[0])} is no flag; allowed: {', '.join(flags)}.{did_you_mean(rest[0], flags)}")
    if options.prompts is None:
        parser.error("which prompts? Give --prompts FILE")
    for name, least in (("max_prompt_tokens", 0), ("max_new_tokens", 1), ("seed", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f"--{name.replace('_', '-')} {value}; give at least {least}")
    if options.level is not None and options.task is None:
        parser.error(f"--level {options.level} needs a --task")
    try:
        make_task(options.task or DEFAULT_TASK, options.level)
    except ValueError as error:
        parser.error(str(error))
    return options


def _lacks_tokenizer(options: argparse.Namespace) -> bool:
    return options.tokenizer is None and options.model is None and options.task is None


def _without_chats(rows: list[Row]) -> tuple[list[Row], int]:
    """The rows, with the contents of messages in their place, as no template writes them; and how many have any."""
    texts, chats = [], 0
    for row in rows:
        try:
            prompt, columns = parse_row(row)
        except (TypeError, ValueError):
            prompt = ""  # a bad row; it is listed
        if not isinstance(prompt, str):
            row, chats = Row(row.place, {**columns, "prompt": contents(prompt)}), chats + 1
        texts.append(row)
    return texts, chats


def _tokenizer(options: argparse.Namespace, rows: list[Row]) -> str | list[str]:
    """What the flags name; failing that, the characters of the prompts."""
    if _lacks_tokenizer(options):
        found: set[str] = set()
        for row in rows:
            try:
                found.update(str(parse_row(row)[0]))
            except (TypeError, ValueError):
                continue  # a bad row; it is listed
        return [*sorted(char for char in found if not "\ud800" <= char <= "\udfff"), STOP_SYMBOL]
    source = options.tokenizer or options.model
    return source if source is not None else list(make_task(options.task, options.level).tokenizer)


def _sorted_out(
    rows: list[Row], vocabulary: Vocabulary, max_tokens: int | None
) -> tuple[list[tuple[Row, Prompt]], list[Exception]]:
    good, problems = [], []
    for row, item in zip(rows, encode_rows(rows, vocabulary, max_tokens), strict=True):
        if isinstance(item, Exception):
            problems.append(item)
        else:
            good.append((row, item))
    return good, problems


def _print_summary(prompts: list[Prompt], unit: str) -> None:
    names = _column_names(prompts)
    missing = {name: sum(prompt.columns.get(name) is None for prompt in prompts) for name in names}
    of = f"of {len(prompts)} rows"
    shown = [f"{excerpt(name)} (missing in {missing[name]} {of})" if missing[name] else excerpt(name) for name in names]
    more = f" and {len(names) - _MOST_COLUMNS} more" if len(names) > _MOST_COLUMNS else ""
    print(f"columns beside the prompt: {', '.join(shown[:_MOST_COLUMNS]) or 'none'}{more}")
    lengths = np.array([len(prompt.ids) for prompt in prompts])
    print(f"{unit} of a prompt: {lengths.min()} to {lengths.max()}, median {np.median(lengths):g}")
    print(f"prompts that stand there a second time: {len(prompts) - len({prompt.text for prompt in prompts})}")


def _column_names(prompts: list[Prompt]) -> list[str]:
    return list(dict.fromkeys(name for prompt in prompts for name in prompt.columns))


def _try_reward(options: argparse.Namespace, good: list[tuple[Row, Prompt]], tokenizer: str | list[str]) -> None:
    """Score completions of uniformly drawn tokens for a few prompts, as the environment does."""
    if options.reward is None and options.task is None:
        print("no reward function was tried: give --reward, or --task for the task's")
        return
    generator = np.random.default_rng(options.seed)
    # Again from the first where there are fewer.
    chosen = [good[index] for index in np.resize(generator.permutation(len(good)), _TRIALS)]
    nothing = dict.fromkeys(_column_names([prompt for _, prompt in good]))  # a row without a column has None there
    given: dict[str, Any] = {
        "task": options.task,
        "level": options.level,
        "reward": options.reward,
        "max_new_tokens": options.max_new_tokens,
    }
    env = gym.make(
        "TextGen-v0",
        prompts=[{**nothing, **prompt.columns, "prompt": _prompt_of(row)} for row, prompt in chosen],
        tokenizer=tokenizer,
        text_info=True,
        **{name: value for name, value in given.items() if value is not None},
    )
    print(f"the reward on completions of random {'characters' if _lacks_tokenizer(options) else 'tokens'}:")
    for position, (_, prompt) in enumerate(chosen):
        score, completion = _random_episode(env, position, generator)
        print(f"  {score:.4g} for {excerpt(prompt.text, limit=60)} and then {excerpt(completion, limit=100)}")


def _prompt_of(row: Row) -> Any:
    """The text or the messages of a good row, as they stand there."""
    return row.value if isinstance(row.value, str) else row.value["prompt"]


def _random_episode(env: gym.Env, position: int, generator: np.random.Generator) -> tuple[float, str]:
    """Score and text of a completion whose every token is drawn from the legal ones with the same probability."""
    inner: Any = env.unwrapped
    env.reset(seed=0, options={"prompt_index": position})
    ended = False
    while not ended:
        action = generator.choice(np.flatnonzero(inner.action_masks()))
        _, _, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
    return info["score"], info["completion"]
