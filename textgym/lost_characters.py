"""Refuse a text that a tokenizer has no tokens for, and say which character of it.

A byte-pair model without an unknown token drops a character that it has no token for without a word; `refuse_losses`
makes it an error. Other models raise or have an unknown token of their own. What a normalizer or pre-tokenizer takes
away is the tokenizer's own rule, and no loss.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tokenizers import Tokenizer, models

from textgym.escape import escape, excerpt
from textgym.tokenizer_objects import PythonTokenizer

# The library looks this token up where a character has none, and raises where that one has none either.
_NO_TOKEN = "<textgym: no token for a character>"
_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character: what UTF-8 cannot hold


def refuse_losses(tokenizer: Tokenizer) -> None:
    """Make a tokenizer raise where it would drop a character; called before the first text, as it remembers words."""
    if isinstance(tokenizer.model, models.BPE) and tokenizer.model.unk_token is None:
        tokenizer.model.unk_token = _NO_TOKEN


@contextmanager
def losses_allowed(tokenizer: Tokenizer) -> Iterator[None]:
    """The tokenizer as it was given, for as long as it is written to a file."""
    refused = isinstance(tokenizer.model, models.BPE) and tokenizer.model.unk_token == _NO_TOKEN
    if refused:
        tokenizer.model.unk_token = None
    try:
        yield
    finally:
        if refused:
            tokenizer.model.unk_token = _NO_TOKEN


def lone_surrogate(text: str) -> str | None:
    r"""What is wrong with a text that holds half a character, None where nothing is.

    >>> lone_surrogate("a\ud800")
    "'\\ud800' at character 1 of 'a\\ud800' is a lone surrogate, which is not a character; mend the text"
    """
    if (half := _SURROGATE.search(text)) is None:
        return None
    return (
        f"{excerpt(half[0])} at character {half.start()} of {excerpt(text)} is a lone surrogate, which is not a "
        "character; mend the text"
    )


def explain(tokenizer: Tokenizer | PythonTokenizer, texts: Sequence[str], error: Exception) -> str:
    """Why the tokenizer raised the error at one of the texts."""
    for text in texts:
        if problem := lone_surrogate(text):
            return problem
    text = next(text for text in texts if not _encodes(tokenizer, text))
    position = _first_without_token(tokenizer, text) if isinstance(tokenizer, Tokenizer) else None
    if position is None:
        lost = "a character of it, or one that the tokenizer puts between words, has no token"
        reason = lost if _NO_TOKEN in str(error) else escape(str(error))
        return f"the tokenizer cannot encode {excerpt(text)}: {reason}"
    symbols = sorted(tokenizer.get_vocab())
    some = ", ".join(excerpt(symbol) for symbol in symbols[:20])
    more = f" and {len(symbols) - 20} more" if len(symbols) > 20 else ""
    return (
        f"no token for {excerpt(text[position])} at character {position} of {excerpt(text)}; the vocabulary has "
        f"{some}{more}. Add the symbol to the tokenizer or change the text"
    )


def longest_match(symbols: Sequence[str]) -> str:
    """A pattern of all symbols; an alternation tries its branches in order, so the longest come first."""
    return "|".join(re.escape(symbol) for symbol in sorted(symbols, key=len, reverse=True))


def _first_without_token(tokenizer: Tokenizer, text: str) -> int | None:
    """The first character that nothing encodes; None where no single character is to blame."""
    vocabulary = tokenizer.get_vocab()
    if isinstance(tokenizer.model, models.BPE):
        # One that has a token, and yet fails alone, lacks the mark of a word's beginning or end: not its own fault.
        lost = (char for char in dict.fromkeys(text) if char not in vocabulary and not _encodes(tokenizer, char))
        return next((text.index(char) for char in lost), None)
    known, position = re.compile(longest_match(list(vocabulary))), 0
    while match := known.match(text, position):
        position = match.end()
    at_fault = position < len(text) and not _encodes(tokenizer, text[position])
    return position if at_fault else None


def _encodes(tokenizer: Tokenizer | PythonTokenizer, text: str) -> bool:
    try:
        tokenizer.encode(text, add_special_tokens=False)
    except Exception:  # the library raises bare Exception
        return False
    return True
