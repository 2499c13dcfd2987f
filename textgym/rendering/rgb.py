"""Draw an episode as a picture of constant size: the prompt grey, the completion bold, a line on how it stands.

A text that does not fit shows its end. The font is the one inside pillow, so that a frame is the same on every machine;
it holds Latin letters without accents, and any other character is written as its code. Videos are left to wrappers.
"""

import math
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from textgym.escape import escape
from textgym.rendering.text import View, summary

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

WIDTH, HEIGHT = 640, 360  # pixels; even, as video codecs ask
_MARGIN = 24
_TEXT_SIZE, _FOOTER_SIZE = 18, 14
_LINE, _FOOTER = 23, 40  # pixels of a line, and of the footer
_LINES = (HEIGHT - _MARGIN - _FOOTER) // _LINE
_COLUMN = WIDTH - 2 * _MARGIN
_MOST = _LINES * _COLUMN // 3  # characters; the narrowest is wider than 3 pixels
_SLACK = 2  # pixels of a letter that may stand out of its width on either side
_PAPER, _GREY, _INK, _RULE = (255, 255, 255), (130, 130, 130), (15, 15, 15), (205, 205, 205)


def render_rgb(view: View) -> np.ndarray:
    """A picture of an episode, uint8 [360, 640, 3].

    Raises:
        ImportError: pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise ImportError("render_mode='rgb_array' draws with pillow: pip install 'textgym[render]'") from error
    picture = Image.new("RGB", (WIDTH, HEIGHT), _PAPER)
    text, generated, is_cut = _end_of_text(view)
    lines = _wrap(text)
    for place, (start, end) in enumerate(lines[-_LINES:]):
        border, y = min(max(generated, start), end), _MARGIN + place * _LINE
        x = _draw(picture, _MARGIN, y, text[start:border], bold=False)
        _draw(picture, x, y, text[border:end], bold=True)
    pen = ImageDraw.Draw(picture)
    if is_cut or len(lines) > _LINES:
        pen.text((_MARGIN, _MARGIN), "…", _GREY, _font(_TEXT_SIZE), anchor="ra")  # in the margin, at the top line
    pen.line((_MARGIN, HEIGHT - _FOOTER, WIDTH - _MARGIN, HEIGHT - _FOOTER), _RULE)
    pen.text((_MARGIN, HEIGHT - _FOOTER // 2), summary(view), _GREY, _font(_FOOTER_SIZE), anchor="lm")
    return np.array(picture)


def _end_of_text(view: View) -> tuple[str, int, bool]:
    """The last characters as they are drawn, where the generated ones begin, and whether some are left out."""
    completion = view.completion[-_MOST:]
    prompt = view.prompt[max(0, len(view.prompt) - (_MOST - len(completion))) :]
    drawn_prompt, drawn_completion = ("".join(map(_drawn, text)) for text in (prompt, completion))
    text = drawn_prompt + drawn_completion
    surplus = max(0, len(text) - _MOST)  # codes are longer than what they stand for
    is_cut = surplus > 0 or len(prompt) + len(completion) < len(view.prompt) + len(view.completion)
    return text[surplus:], max(0, len(drawn_prompt) - surplus), is_cut


def _wrap(text: str) -> list[tuple[int, int]]:
    """Start and end of each line: broken at line ends, else after the last space that fits, else at any character."""
    lines: list[tuple[int, int]] = []
    start, word, used = 0, 0, 0.0  # where the line and its last word begin; pixels used
    for place, char in enumerate(text):
        if char == "\n":
            lines.append((start, place))
            start, word, used = place + 1, place + 1, 0.0
            continue
        width = _width(char)
        if char == " ":  # hangs over the end of a line
            word, used = place + 1, used + width
            continue
        if used + width > _COLUMN:
            end = word if word > start else place
            lines.append((start, end))
            start = word = end
            used = sum(map(_width, text[end:place]))
        used += width
    return [*lines, (start, len(text))]


def _draw(picture: "Image", x: float, y: int, text: str, bold: bool) -> float:
    """Draw a piece of a line from x on; where the next piece begins."""
    for place, word in enumerate(text.split(" ")):
        if place:
            x += _width(" ")
        if word:
            shape, width = _shape(word, bold)
            picture.paste(_INK if bold else _GREY, (round(x) - _SLACK, y), shape)
            x += width
    return x


@lru_cache(maxsize=1024)  # drawing letters takes most of the time, and frames share most of their words
def _shape(word: str, bold: bool) -> tuple["Image", float]:
    """The ink of a word, from `_SLACK` pixels before it begins, and its width."""
    from PIL import Image, ImageDraw

    font = _font(_TEXT_SIZE)
    width = font.getlength(word)
    ink = Image.new("L", (math.ceil(width) + 2 * _SLACK + 1, _LINE))
    for shift in range(1 + bold):  # twice is bold: the font has one weight
        ImageDraw.Draw(ink).text((_SLACK + shift, 0), word, 255, font)
    return ink, width


@lru_cache(maxsize=4096)
def _drawn(char: str) -> str:
    """A character as it is drawn: itself where the font has it, else its code."""
    if char in "\n\t":
        return char.expandtabs(4)
    shown = escape(char)
    if shown == char and _glyph(char) == _glyph("\uffff"):  # which is no character: the font's sign for a lack
        return char.encode("ascii", "backslashreplace").decode("ascii")
    return shown


def _glyph(char: str) -> tuple[tuple[int, int], bytes]:
    mask = _font(_TEXT_SIZE).getmask(char)
    return mask.size, bytes(mask)


@lru_cache(maxsize=4096)
def _width(char: str) -> float:
    return _font(_TEXT_SIZE).getlength(char)


@cache
def _font(size: int) -> "FreeTypeFont":
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # what a size asks for
    return font
