"""Chats: prompts given as messages, which the tokenizer's own chat template writes as one text.

Checks messages and has the template write them; the text then holds the special tokens already. An assistant's message
at the end is left open, for the policy to go on with; after any other the template opens the assistant's turn. Where a
template runs is left to `textgym.template_sandbox`, where it is found to `textgym.tokenizer_folders`.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from typing import Any, NoReturn

import numpy as np

from textgym.errors import did_you_mean
from textgym.escape import escape, excerpt, shown, told, type_name
from textgym.lost_characters import lone_surrogate
from textgym.tokenizer_folders import chat_template, special_tokens

Messages = list[dict[str, Any]]  # each with a `role` and a `content`, and what else a template may read; plain data

_FIELDS = ("role", "content")
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names for what an assistant thought before it answered
_OLDEST_JINJA = (3, 1, 6)  # what was out before it has known ways out of the sandbox
_END = "TEXTGYM_END_OF_LAST_MESSAGE "  # its space tells whether the template strips contents


def checked_prompt(value: Any, where: str) -> str | Messages:
    """A prompt: a text as it is, or messages as plain data of their own, without the fields that are None.

    Args:
        value: a str, or a list, tuple or array of dicts with a `role` and a `content`.
        where: the row and the field, for errors.

    Raises:
        TypeError, ValueError: anything else; the text names the message and its field.

    >>> checked_prompt(({"role": "user", "content": "hi", "name": None},), "prompt")
    [{'role': 'user', 'content': 'hi'}]
    """
    if isinstance(value, str):
        return value
    items = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(items, list | tuple):
        raise TypeError(f"{where} is {shown(value)} of type {type_name(value)}; give a str, or a list of messages")
    if not items:
        raise ValueError(f"{where} is an empty list; give a str, or at least one message")
    return [_message(item, f"{where}: messages[{place}]") for place, item in enumerate(items)]


def _message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(
            f"{where} is {shown(value)} of type {type_name(value)}; give a dict with a 'role' and a 'content'"
        )
    for name in _FIELDS:
        if name not in value:
            hint = did_you_mean(name, [str(key) for key in value])
            raise ValueError(f"{where} has no {name!r}, only {shown(list(value), limit=200)}.{hint}")
        if not isinstance(value[name], str):
            kind = type_name(value[name])
            raise TypeError(f"{where}[{name!r}] is {shown(value[name])} of type {kind}; give a str")
    try:
        return {name: item for name, item in _plain(value, where).items() if item is not None}
    except RecursionError:
        raise ValueError(f"{where} nests too deeply") from None


def _plain(value: Any, where: str) -> Any:
    """A copy of plain data, exactly of JSON's types: all that a template is shown, and what a state can be saved of."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, str):
        if problem := lone_surrogate(value):
            raise ValueError(f"{where}: {problem}")
        return str.__str__(value)  # a plain one, where it is an enum's
    if value is None or type(value) in (bool, int) or (type(value) is float and math.isfinite(value)):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{place}]") for place, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {_plain(name, where): _plain(item, f"{where}[{excerpt(name)}]") for name, item in value.items()}
    raise TypeError(
        f"{where} is {shown(value)} of type {type_name(value)}; give what JSON holds: str, int, float, bool, None, and "
        "lists and dicts of them"
    )


def contents(messages: Messages) -> str:
    """What the messages say, a line each: their text where there is no template."""
    return "\n".join(message["content"] for message in messages)


def refuse_chat(source: str, messages: Messages) -> NoReturn:
    """Say that a tokenizer has no chat template, and how to mend it."""
    raise ValueError(
        f"it is a list of messages, and {escape(source)} has no chat template that could write them as a text; give a "
        "Hugging Face tokenizer that has one (a folder with a chat_template.jinja beside its tokenizer.json), or write "
        "the prompt as a str"
    )


class FolderChat:
    """The chat template of a Hugging Face folder; read when the first chat is written, as others need none.

    Args:
        settings: name -> content of the files that `tokenizer_folders.setting_files` lists.
        source: what errors call the tokenizer.
    """

    def __init__(self, settings: Mapping[str, bytes], source: str) -> None:
        self._settings, self._source = settings, source
        self._found: tuple[Callable[[dict[str, Any]], str], dict[str, str]] | None = None  # what renders, with what

    def __call__(self, messages: Messages) -> str:
        """The messages as a text.

        Raises:
            ImportError: jinja2 is not installed, or too old.
            ValueError: there is no template, or it does not take these messages.
        """
        if self._found is None:
            template = chat_template(self._settings, self._source)
            if template is None:
                refuse_chat(self._source, messages)
            self._found = partial(_sandbox(), template), special_tokens(self._settings, self._source)
        render, tokens = self._found
        last = messages[-1]
        goes_on = last["role"] == "assistant"
        marked = [*messages[:-1], {**last, "content": last["content"] + _END}] if goes_on else messages
        names = {"tools": None, "documents": None, "add_generation_prompt": not goes_on, **tokens}
        text = _attempt(lambda: render({**names, "messages": _with_reasoning(marked)}), self._source)
        return _left_open(text, last["content"], self._source) if goes_on else text


class ObjectChat:
    """The chat template of a Hugging Face tokenizer object, which renders it itself.

    Args:
        tokenizer: the object.
        source: what errors call it.
    """

    def __init__(self, tokenizer: Any, source: str) -> None:
        self._tokenizer, self._source = tokenizer, source

    def __call__(self, messages: Messages) -> str:
        """The messages as a text.

        Raises:
            ImportError: the object needs a library that is not installed.
            ValueError: it has no template, or the template does not take these messages.
        """
        apply = getattr(self._tokenizer, "apply_chat_template", None)
        if apply is None or getattr(self._tokenizer, "chat_template", "") is None:
            refuse_chat(self._source, messages)
        goes_on = messages[-1]["role"] == "assistant"
        options = dict(tokenize=False, add_generation_prompt=not goes_on, continue_final_message=goes_on)
        text = _attempt(lambda: apply([dict(message) for message in messages], **options), self._source)
        if not isinstance(text, str):
            raise ValueError(f"apply_chat_template of {self._source} returned {shown(text)}; it must return a str")
        return text


def _attempt(render: Callable[[], Any], source: str) -> Any:
    try:
        return render()
    except ImportError:
        raise
    except Exception as error:  # a template may provoke any, and its own refusals are jinja2's
        raise ValueError(f"the chat template of {escape(source)} does not take the messages: {told(error)}") from error


def _sandbox() -> Callable[[str, dict[str, Any]], str]:
    install = "pip install -U 'textgym[chat]'"
    try:
        from textgym.template_sandbox import run
    except ImportError as error:
        raise ImportError(f"prompts of messages need jinja2 for the tokenizer's chat template: {install}") from error
    version = metadata.version("jinja2")
    if tuple(map(int, re.findall(r"\d+", version)[:3])) < _OLDEST_JINJA:
        oldest = ".".join(map(str, _OLDEST_JINJA))
        raise ImportError(
            f"jinja2 {version} does not hold chat templates, which are foreign code, in its sandbox; {oldest} does: "
            f"{install}"
        )
    return run


def _with_reasoning(messages: Messages) -> Messages:
    """The messages with an assistant's reasoning under each name that templates know it by."""
    named = []
    for message in messages:
        reasoning = next((message[name] for name in _REASONING if name in message), None)
        own = {} if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}
        named.append(own or message)
    return named


def _left_open(text: str, content: str, source: str) -> str:
    """The text up to the end of the last message, which a mark shows."""
    mark = _END.rstrip()
    end = text.rfind(mark)
    if text.count(mark) != 1 or content.strip() not in text:
        raise ValueError(
            f"the chat template of {escape(source)} does not write the last message as it is, {excerpt(content)}, so "
            "that the assistant cannot go on with it; end the messages with another role"
        )
    # Where the template strips contents, what it left of spaces before the mark is no part of them either.
    return text[:end] if text.startswith(_END, end) else text[:end].rstrip()
