"""A profile as a picture: a bar for each function, and in it what of its time the arithmetic needs at the peak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw, ImageFont

from zmq_offload.profile.report import duration, facts, name_of, unit_for
from zmq_offload.profile.result import VM, Function, Profile

INK, GREY, RULE, PAPER = (28, 32, 40), (104, 112, 124), (222, 226, 232), (255, 255, 255)
TIME, WORK = (158, 190, 228), (29, 84, 155)
REMOTE, OTHER = (236, 168, 92), (200, 204, 210)

WIDTH, MARGIN = 1680, 56
NAMES, FIGURES = 560, 360
ROW, BAR = 58, 30
_WORD = 110
Colour = tuple[int, int, int]


def draw(profile: Profile, top: int) -> Image.Image:
    """The picture, wide enough for a slide and as high as the rows need."""
    functions = profile.shown(top)
    lines = list(_lines(profile))
    head = MARGIN + 66 + 34 * len(lines) + 30
    foot = 84
    image = Image.new("RGB", (WIDTH, head + 46 + ROW * len(functions) + foot), PAPER)
    pen = _Pen(image)
    pen.text((MARGIN, MARGIN), f"Where the time goes: {profile.title}", 42)
    for at, (word, line) in enumerate(lines):
        pen.text((MARGIN, MARGIN + 66 + 34 * at), word, 23)
        pen.text((MARGIN + _WORD, MARGIN + 66 + 34 * at), line, 23, GREY)
    pen.legend(head, functions, profile)
    y = head + 46
    longest = max(f.seconds for f in functions) or 1e-12
    for function in functions:
        pen.row(y, function, profile, longest)
        y += ROW
    pen.axis(head + 46, y, longest)
    return image


class _Pen:
    def __init__(self, image: Image.Image) -> None:
        self._draw = ImageDraw.Draw(image)
        self._left = MARGIN + NAMES + 24
        self._bars = WIDTH - MARGIN - FIGURES - 24 - self._left

    def text(self, at: tuple[float, float], text: str, size: float, colour: Colour = INK, anchor: str = "la") -> float:
        """Write one line; where it ends."""
        font = ImageFont.load_default(size)
        self._draw.text(at, text, fill=colour, font=font, anchor=anchor)
        return at[0] + font.getlength(text)

    def legend(self, y: float, functions: Sequence[Function], profile: Profile) -> None:
        keys: list[tuple[Colour, str]] = [(TIME, "time")]
        if any(profile.of_peak(f) is not None for f in functions):
            keys.append((WORK, "of it: what the arithmetic takes at the measured peak"))
        if any(f.model for f in functions):
            keys.append((REMOTE, "offloaded"))
        if any(f.name == VM for f in functions):
            keys.append((OTHER, "not a function of the model"))
        x: float = self._left
        for colour, text in keys:
            self._draw.rectangle([x, y + 2, x + 22, y + 22], fill=colour)
            x = self.text((x + 32, y), text, 20, GREY) + 34

    def row(self, y: float, function: Function, profile: Profile, longest: float) -> None:
        unit, factor = unit_for(longest)
        colour = REMOTE if function.model else OTHER if function.name == VM else TIME
        middle = y + ROW / 2
        self.text((MARGIN + NAMES, middle - 12), _fitting(function, NAMES), 21, anchor="rm")
        calls = f"{function.calls:,} calls" if function.calls != 1 else "1 call"
        detail = f"{function.output}   {calls}" if function.output else calls
        self.text((MARGIN + NAMES, middle + 13), detail, 17, GREY, "rm")
        top, width = middle - BAR / 2, max(2.0, function.seconds / longest * self._bars)
        self._draw.rectangle([self._left, top, self._left + width, top + BAR], fill=colour)
        of_peak = profile.of_peak(function)
        if of_peak is not None:
            self._draw.rectangle([self._left, top, self._left + width * min(1.0, of_peak), top + BAR], fill=WORK)
        x = WIDTH - MARGIN - FIGURES
        self.text((x + 120, middle - 12), _drawable(f"{function.seconds * factor:.2f} {unit}"), 21, anchor="rm")
        self.text((x + 120, middle + 13), f"{profile.share(function):.1%}", 17, GREY, "rm")
        rate = profile.rate(function)
        if rate is not None:
            self.text((WIDTH - MARGIN, middle - 12), f"{rate / 1e9:.1f} GFLOP/s", 21, anchor="rm")
            if of_peak is not None:
                self.text((WIDTH - MARGIN, middle + 13), f"{of_peak:.1%} of the peak", 17, GREY, "rm")

    def axis(self, top: float, bottom: float, longest: float) -> None:
        """Lines at round times, drawn last and thin: they must not hide short bars."""
        self._draw.line([(self._left, top), (self._left, bottom)], fill=GREY, width=2)
        self._draw.line([(MARGIN, bottom + 2), (WIDTH - MARGIN, bottom + 2)], fill=RULE, width=2)
        step = _round_step(longest / 4)
        for at in range(int(longest / step + 1e-9) + 1):
            x = self._left + at * step / longest * self._bars
            self._draw.line([(x, bottom), (x, bottom + 9)], fill=GREY, width=2)
            self.text((x, bottom + 14), _drawable(duration(at * step)) if at else "0", 18, GREY, "ma")


def _round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten, from `least`."""
    power = 1e-9
    while power * 10 <= least:
        power *= 10
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least)


def _fitting(function: Function, width: float) -> str:
    font = ImageFont.load_default(21)
    return next(
        (name for size in range(64, 8, -2) if font.getlength(name := name_of(function, size)) <= width),
        name_of(function, 8),
    )


def _lines(profile: Profile) -> Iterator[tuple[str, str]]:
    for word, text in facts(profile):
        for at, line in enumerate(_wrapped(_drawable(text), 23, WIDTH - 2 * MARGIN - _WORD)):
            yield (word if at == 0 else ""), line


def _drawable(text: str) -> str:
    """Pillow's own font has no micro sign."""
    return text.replace("µs", "us")


def _wrapped(text: str, size: float, width: float) -> list[str]:
    font = ImageFont.load_default(size)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
