r"""Text set in pixels: fonts, measuring, wrapping, and paragraphs as images.

Pillow's built-in font holds the Latin letters without accents. Other characters come from the first font of the
system that has them, else from their closest plain spelling, else as an escape (`\u4e2d`): a picture never shows an
empty box.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from typing import TYPE_CHECKING, TypeAlias

from PIL import Image, ImageChops, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "BODY",
    "FAINT",
    "INK",
    "MUTED",
    "PAPER",
    "SMALL",
    "TITLE",
    "WARNING",
    "Color",
    "clean",
    "line_height",
    "measure",
    "number",
    "paragraph",
    "put",
    "set_lines",
    "shorten",
    "sideways",
    "stick",
    "token",
    "wrap",
]

Color: TypeAlias = tuple[int, int, int]

INK: Color = (31, 35, 40)
MUTED: Color = (93, 101, 110)
FAINT: Color = (222, 226, 231)
PAPER: Color = (255, 255, 255)
WARNING: Color = (176, 36, 24)

SMALL, BODY, TITLE = 12, 13, 17

_LONG = 64
"""Characters from which a line is not kept: it is rarely said twice."""

_SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "arial.ttf",
    "msyh.ttc",
    "PingFang.ttc",
)
_PLAIN = {
    "−": "-", "–": "-", "—": "-", "•": "·", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\ufeff": "", "\u200b": "",
    "→": "->", "←": "<-", "×": "x", "≤": "<=", "≥": ">=", "≈": "~", "∞": "inf", "‖": "|",
    "σ": "sigma", "μ": "mu", "µ": "u", "Σ": "sum",
}  # fmt: skip
_ALWAYS_PLAIN = str.maketrans({sign: _PLAIN[sign] for sign in "−–—\u00a0\u2009\u202f•\ufeff\u200b"})
_SPACE_MARKS = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n", "ĉ": "\t"})


def number(value: float) -> str:
    """Three significant digits, in the shortest common form: 0.00123, 12.5, 1.2e-7, 5e8, nan, -inf."""
    text = f"{value:.3g}"
    if "e" not in text:
        return text
    if 1 <= abs(value) < 1e6:
        return f"{value:.0f}"
    mantissa, exponent = text.split("e")
    return f"{mantissa}e{int(exponent)}"


def clean(text: str) -> str:
    """The text with control characters as escapes and with long dashes and odd spaces as the font has them."""
    return "".join(_visible(c) for c in str(text).translate(_ALWAYS_PLAIN))


def token(text: str) -> str:
    """A token as a label: spaces around it, and tokenizers' marks for them, become middle dots; none is invisible."""
    text = str(text).translate(_SPACE_MARKS)
    left, right = len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" "))
    if left == len(text):
        return "·" * left or "''"
    return clean("·" * left + text[left : len(text) - right] + "·" * right)


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


@functools.lru_cache(maxsize=64)
def _fonts(size: int) -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, ...]:
    """Pillow's own font first, then what the system has."""
    found: list[ImageFont.FreeTypeFont | ImageFont.ImageFont] = [ImageFont.load_default(size)]
    for name in _SYSTEM_FONTS:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return tuple(found)


@functools.lru_cache(maxsize=256)
def _missing_glyph(index: int) -> tuple[tuple[int, int], bytes]:
    return _shape(index, "\U0010fffd")


def _shape(index: int, character: str) -> tuple[tuple[int, int], bytes]:
    mask = _fonts(SMALL)[index].getmask(character)
    return mask.size, bytes(mask)


@functools.lru_cache(maxsize=8192)
def _spelled(character: str) -> tuple[int, str]:
    """Which font draws this character, and as what."""
    if " " <= character <= "~":
        return 0, character
    for index in range(len(_fonts(SMALL))):
        if _shape(index, character) != _missing_glyph(index):
            return index, character
    plain = _PLAIN.get(character) or "".join(c for c in unicodedata.normalize("NFKD", character) if c.isascii())
    return 0, plain or character.encode("unicode_escape").decode("ascii")


def _runs(text: str) -> Iterator[tuple[int, str]]:
    """The text cut into pieces of one font each."""
    if text.isascii():
        yield 0, text
        return
    current, piece = 0, ""
    for character in text:
        index, spelled = _spelled(character)
        if index != current and piece:
            yield current, piece
            piece = ""
        current, piece = index, piece + spelled
    if piece:
        yield current, piece


def measure(text: str, size: int = SMALL) -> int:
    """The width of a clean line in pixels."""
    return _measure(text, size) if len(text) < _LONG else _measure_now(text, size)


def _measure_now(text: str, size: int) -> int:
    return -int(-sum(_fonts(size)[index].getlength(piece) for index, piece in _runs(text)) // 1)


_measure = functools.lru_cache(maxsize=8192)(_measure_now)


def line_height(size: int = SMALL) -> int:
    """Pixels from one baseline to the next."""
    return round(size * 1.4)


def put(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    *,
    size: int = SMALL,
    fill: Color = INK,
    align: str = "left",
    heavy: bool = False,
) -> None:
    """Draws one clean line in the line box whose top is at[1]; at[0] is its left, centre or right side."""
    x, top = at
    if align != "left":
        x -= measure(text, size) / (2 if align == "centre" else 1)
    baseline = round(top + line_height(size) * 0.75)
    x = round(x)
    if text.isascii() and len(text) < _LONG:
        mask, left, above = _set(text, size, heavy)
        draw.bitmap((x + left, baseline + above), mask, fill=fill)
        return
    for index, piece in _runs(text):
        font = _fonts(size)[index]
        draw.text((x, baseline), piece, fill=fill, font=font, anchor="ls", stroke_width=_stroke(heavy))
        x += font.getlength(piece)


@functools.lru_cache(maxsize=1024)
def _set(text: str, size: int, heavy: bool) -> tuple[Image.Image, int, int]:  # noqa: FBT001 -- a cache's key
    """A line as `draw.text` sets it, how much ink each pixel takes; where that begins from the line's start.

    The pictures of a run say the same at every step, and to set a line takes ten times as long as to put it there.
    """
    font = _fonts(size)[0]
    box = font.getbbox(text, anchor="ls", stroke_width=_stroke(heavy))
    left, top, right, bottom = math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])
    mask = Image.new("L", (max(1, right - left), max(1, bottom - top)))
    ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=font, anchor="ls", stroke_width=_stroke(heavy))
    return mask, left, top


def _stroke(heavy: bool) -> float:  # noqa: FBT001
    return 0.35 if heavy else 0


def shorten(text: str, width: int, size: int = SMALL) -> str:
    """The line, its middle cut out where it is wider than `width` pixels; empty where not even the cut mark fits.

    Of a module's name the parts come down to their first letters before, from the left, but for numbers and the last.
    """
    if len(text) <= width and measure(text, size) <= width:  # no glyph is under a pixel wide
        return text
    if "." in text and " " not in text and len(text) < 500:
        parts = text.split(".")
        for i, part in enumerate(parts[:-1]):
            parts[i] = part if part.isdigit() else part[:1]
            text = ".".join(parts)
            if measure(text, size) <= width:
                return text
    low, high = 0, min(len(text), width)
    while low < high:
        middle = (low + high + 1) // 2
        if measure(_with_gap(text, middle), size) <= width:
            low = middle
        else:
            high = middle - 1
    return _with_gap(text, low) if low >= 2 else ""


def _with_gap(text: str, kept: int) -> str:
    head = (kept + 1) // 2
    return text[:head] + "…" + text[len(text) - (kept - head) :]


def wrap(text: str, width: int, size: int = SMALL, *, most: int = 12) -> list[str]:
    """Lines no wider than `width` pixels, at most `most`; the last one ends in a cut mark where the text goes on."""
    lines: list[str] = []
    for source in text.replace("\t", "    ").splitlines():
        lines.extend(_wrap_line(clean(source), width, size, most + 1 - len(lines)))
        if len(lines) > most:
            return [*lines[: most - 1], shorten_end(lines[most - 1] + " …", width, size)]
    return lines


def shorten_end(text: str, width: int, size: int = SMALL) -> str:
    """The line, its end cut off where it is wider than `width` pixels."""
    text = text[: 4 * max(width, 1)]
    if measure(text, size) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if measure(text[:middle] + "…", size) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low] + "…" if low else ""


def _wrap_line(text: str, width: int, size: int, most: int) -> list[str]:
    lines, line = [], ""
    for each in text.split(" "):
        word = each
        joined = f"{line} {word}" if line else word
        if measure(joined, size) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        while measure(word, size) > width and len(word) > 1 and len(lines) < most:
            kept = max(1, len(shorten_end(word, width, size)) - 1)
            lines.append(word[:kept])
            word = word[kept:]
        line = word
        if len(lines) >= most:
            return lines
    return [*lines, line]


def paragraph(
    text: str, width: int, *, size: int = SMALL, fill: Color = INK, most: int = 12, heavy: bool = False
) -> Image.Image | None:
    """Wrapped text as an image as wide as its longest line, or None where there is no text."""
    lines = wrap(text, width, size, most=most)
    return set_lines(lines, size=size, fill=fill, heavy=heavy) if any(lines) else None


def set_lines(lines: Sequence[str], *, size: int = SMALL, fill: Color = INK, heavy: bool = False) -> Image.Image:
    """Clean lines under each other as an image."""
    height = line_height(size)
    image = Image.new("RGB", (max(1, *(measure(line, size) for line in lines)) + 1, height * len(lines)), PAPER)
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        put(draw, (0, i * height), line, size=size, fill=fill, heavy=heavy)
    return image


@functools.lru_cache(maxsize=512)
def sideways(text: str, *, size: int = SMALL, fill: Color = INK) -> Image.Image:
    """One clean line, to be read from below."""
    return set_lines([text], size=size, fill=fill).transpose(Image.Transpose.ROTATE_90)


def stick(page: Image.Image, label: Image.Image, at: tuple[int, int]) -> None:
    """Puts a label on the page without hiding what its white covers."""
    box = (*at, at[0] + label.width, at[1] + label.height)
    page.paste(ImageChops.darker(page.crop(box), label), at)
