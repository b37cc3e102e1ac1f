"""A page of text to look at: heading, byline, two columns of paragraphs, a table, a stamp at an angle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

INK = (28, 30, 34)
GREY = (105, 108, 114)
STAMP = (176, 40, 46)
PAPER = (252, 251, 247)

SIZE = (768, 1024)

_TITLES = ("The Harbour Gazette", "Notes from the Edge", "The Signal Keeper")
_BYLINES = ("Thursday, 12 March   No. 4,108", "Field report   Page 17", "Quarterly   Spring issue")
_HEADINGS = ("Ferries run late again", "A model in two halves", "Light on the north pier", "What the tide left")
_STAMPS = ("RECEIVED", "COPY No. 2", "APPROVED")
_TEXT = (
    "Fog kept the morning boats at their moorings until well after nine, and the queue on the quay reached the "
    "fish market. The harbour master promised a fourth boat by June.",
    "The camera on the pier has a small processor and a long cable. It computes what it can by itself and asks the "
    "machine in the cellar for the rest, one message there and one message back.",
    "Nobody could say who had lit the lamp. The keeper retired in autumn, his key hangs on its nail, and yet on "
    "Sunday the beam went round as it had for eighty years.",
    "Two nets, one oar without a name, and a wooden box of type were found below the sea wall. The letters are "
    "complete but for the capital Q, which few will miss.",
    "Rain is expected from the west by evening, with wind to force seven. Small craft should stay in harbour, and "
    "those who must go out should tell somebody when they mean to be back.",
)
_TABLE = (
    ("Boat", "Leaves", "Fare"),
    ("Aurora", "07:40", "3.50"),
    ("Kestrel", "09:15", "3.50"),
    ("Meridian", "11:05", "8.00"),
)


@dataclass
class Page:
    """A rendered page. `lines` are the boxes (left, top, right, bottom) of what was written, stamps left out."""

    image: Image.Image
    lines: list[tuple[float, float, float, float]] = field(default_factory=list)


def render(number: int = 0, size: tuple[int, int] = SIZE) -> Page:
    """Page `number`: other text, and another order of it, for each. The type grows with the page's width."""
    width, height = size
    page = Page(Image.new("RGB", size, PAPER))
    writer = _Writer(page)
    margin, unit = round(width * 0.07), width / 768
    y = writer.line((margin, height * 0.045), _pick(_TITLES, number), 44 * unit, INK) + 8 * unit
    y = writer.line((margin, y), _pick(_BYLINES, number), 23 * unit, GREY) + 16 * unit
    writer.pen.line([(margin, y), (width - margin, y)], fill=INK, width=max(1, round(2 * unit)))
    y += 24 * unit

    gap = round(36 * unit)
    column = (width - 2 * margin - gap) / 2
    bottom = height * 0.95
    stamp_top = height * 0.83
    left = writer.column((margin, y), column, bottom, number, unit)
    writer.table((margin, left + 10 * unit), column, bottom, unit)
    writer.column((margin + column + gap, y), column, stamp_top, number + 2, unit)
    writer.stamp((margin + column + gap + column / 2, (stamp_top + bottom) / 2), _pick(_STAMPS, number), 38 * unit)
    return page


class _Writer:
    def __init__(self, page: Page) -> None:
        self._page = page
        self.pen = ImageDraw.Draw(page.image)

    def line(self, at: tuple[float, float], text: str, size: float, colour: tuple[int, int, int]) -> float:
        """Write one line with its top left corner `at`; where the next may begin."""
        font = ImageFont.load_default(size)
        self.pen.text(at, text, fill=colour, font=font)
        self._page.lines.append(self.pen.textbbox(at, text, font=font))
        return at[1] + 1.4 * size

    def column(self, at: tuple[float, float], width: float, bottom: float, first: int, unit: float) -> float:
        """Headed paragraphs, two of them, as far as they fit above `bottom`; where they end."""
        x, y = at
        for number in (first, first + 1):
            if y + 130 * unit > bottom:
                break
            for text in _wrapped(_pick(_HEADINGS, number), 29 * unit, width):
                y = self.line((x, y), text, 29 * unit, INK)
            y += 8 * unit
            for text in _wrapped(_pick(_TEXT, number), 23 * unit, width):
                if y + 26 * unit > bottom:
                    break
                y = self.line((x, y), text, 23 * unit, INK)
            y += 22 * unit
        return y

    def table(self, at: tuple[float, float], width: float, bottom: float, unit: float) -> None:
        x, y = at
        for row in _TABLE:
            if y + 30 * unit > bottom:
                return
            for place, cell in zip((0.0, 0.42, 0.78), row, strict=True):
                self.line((x + place * width, y), cell, 23 * unit, INK)
            y += 40 * unit
            self.pen.line([(x, y - 4 * unit), (x + width, y - 4 * unit)], fill=GREY, width=max(1, round(unit)))

    def stamp(self, centre: tuple[float, float], text: str, size: float) -> None:
        """Framed, and at an angle, as no line of print is."""
        font = ImageFont.load_default(size)
        left, top, right, bottom = font.getbbox(text)
        pad = size * 0.45
        patch = Image.new("RGBA", (round(right - left + 2 * pad), round(bottom - top + 2 * pad)), (0, 0, 0, 0))
        pen = ImageDraw.Draw(patch)
        pen.rectangle([1, 1, patch.width - 2, patch.height - 2], outline=STAMP, width=max(1, round(size / 12)))
        pen.text((pad - left, pad - top), text, fill=STAMP, font=font)
        patch = patch.rotate(9, expand=True, resample=Image.Resampling.BICUBIC)
        place = round(centre[0] - patch.width / 2), round(centre[1] - patch.height / 2)
        self._page.image.paste(patch, place, patch)


def _pick(choices: tuple[str, ...], number: int) -> str:
    return choices[number % len(choices)]


def _wrapped(text: str, size: float, width: float) -> Iterator[str]:
    font = ImageFont.load_default(size)
    line = ""
    for word in text.split():
        longer = f"{line} {word}".lstrip()
        if line and font.getlength(longer) > width:
            yield line
            longer = word
        line = longer
    yield line
