"""Texts made safe to show."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textgym.escape import escape, excerpt, shown, told, type_name

UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, with 'quotes' & <tags>", "plain text, with 'quotes' & <tags>"),
        ("é 漢字 😀", "é 漢字 😀"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x00\x7f\x85\x9b", r"\x00\x7f\x85\x9b"),
        ("\u202eevil\u2066", r"\u202eevil\u2066"),
        ("a\u200bb\ufeff", r"a\u200bb\ufeff"),
        ("line\u2028paragraph\u2029", r"line\u2028paragraph\u2029"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("", ""),
    ],
)
def test_unsafe_characters_are_written_as_codes(text, shown):
    assert escape(text) == shown


def test_kept_characters_stay():
    assert escape("a\n\tb\r", keep="\n\t") == "a\n\tb\\r"


@given(st.text(st.characters(exclude_categories=()), max_size=30))
def test_what_is_shown_is_safe_and_printable_text_is_untouched(text):
    shown = escape(text)
    assert not [char for char in shown if unicodedata.category(char) in UNSAFE]
    shown.encode("utf-8")
    if not [char for char in text if unicodedata.category(char) in UNSAFE]:
        assert shown == text


@pytest.mark.parametrize(
    ("text", "limit", "shown"),
    [
        ("abcd", 4, "'abcd'"),
        ("abcde", 4, "'ab...de' (5 characters)"),
        ("\x1b" * 4, 4, r"'\x1b\x1b\x1b\x1b'"),
        ("", 4, "''"),
    ],
)
def test_excerpts_are_quoted_and_cut_in_the_middle(text, limit, shown):
    assert excerpt(text, limit) == shown


class Refuses(Exception):
    def __str__(self):
        raise SystemExit

    def __repr__(self):
        return 3


def test_any_object_can_be_shown():
    assert shown("\x1b[31m") == r"'\x1b[31m'"
    assert shown(Refuses()) == "<Refuses whose repr() raises TypeError>"
    assert shown(10**5000) == "<int whose repr() raises ValueError>"
    assert shown(range(100), limit=7) == "range(0"


def test_any_exception_can_be_told():
    assert told(ValueError("\x1b[31m\n")) == r"ValueError: \x1b[31m\n"
    assert told(Refuses()) == "Refuses: <Refuses whose str() raises SystemExit>"
    assert type_name(type("\x9b", (), {})()) == r"\x9b"
