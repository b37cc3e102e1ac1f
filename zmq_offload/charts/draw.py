"""A drawing of lines, boxes, dots and text, as SVG and, with Pillow, as PNG: the same picture for page and file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Literal, TypeAlias

Point: TypeAlias = tuple[float, float]
Anchor: TypeAlias = Literal["start", "middle", "end"]

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_SCALE = 2
"""Pixels of the PNG a unit: sharp on screens of high density."""
_SMOOTH = 2
"""Drawn so much larger and scaled down: Pillow draws lines without antialiasing."""


@dataclass(frozen=True)
class Line:
    points: Sequence[Point]
    color: str
    width: float = 1.0


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    width: float
    height: float
    color: str
    title: str = ""


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    radius: float
    color: str
    title: str = ""


@dataclass(frozen=True)
class Text:
    """`y` is the baseline. `up` turns it by 90 degrees, to be read from below."""

    x: float
    y: float
    text: str
    size: float = 12.0
    color: str = "#1f2937"
    anchor: Anchor = "start"
    bold: bool = False
    up: bool = False


Shape: TypeAlias = Line | Box | Dot | Text


@dataclass
class Drawing:
    """Shapes, in the order in which they cover each other; `title` of a shape is shown when it is pointed at (SVG)."""

    width: int
    height: int
    shapes: list[Shape] = field(default_factory=list)

    def add(self, *shapes: Shape) -> None:
        self.shapes.extend(shapes)

    def svg(self) -> str:
        body = "\n".join(map(_svg, self.shapes))
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" font-family="{escape(_FONT)}">\n'
            f'<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>'
        )

    def png(self, path: Path) -> None:
        """Needs Pillow."""
        from PIL import Image, ImageDraw, ImageFont

        scale = _SCALE * _SMOOTH
        image = Image.new("RGB", (self.width * scale, self.height * scale), "#ffffff")
        draw = ImageDraw.Draw(image)
        for shape in self.shapes:
            if isinstance(shape, Line):
                points = [(x * scale, y * scale) for x, y in shape.points]
                draw.line(points, shape.color, max(1, round(shape.width * scale)), joint="curve")
            elif isinstance(shape, Box):
                corner = (shape.x + shape.width) * scale - 1, (shape.y + shape.height) * scale - 1
                if corner[0] >= shape.x * scale and corner[1] >= shape.y * scale:
                    draw.rectangle((shape.x * scale, shape.y * scale, *corner), shape.color)
            elif isinstance(shape, Dot):
                draw.circle((shape.x * scale, shape.y * scale), shape.radius * scale, shape.color)
            else:
                font = ImageFont.load_default(shape.size * scale)
                anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
                stroke = 0.02 * shape.size * scale if shape.bold else 0
                if not shape.up:
                    at = shape.x * scale, shape.y * scale
                    draw.text(at, shape.text, shape.color, font, anchor, stroke_width=stroke)
                    continue
                length = round(font.getlength(shape.text)) + 1
                height = round(1.4 * shape.size * scale)
                piece = Image.new("L", (length, height), 0)
                ImageDraw.Draw(piece).text((0, shape.size * scale), shape.text, 255, font, "ls", stroke_width=stroke)
                piece = piece.rotate(90, expand=True)
                shift = {"start": length, "middle": length // 2, "end": 0}[shape.anchor]
                at = round(shape.x * scale - shape.size * scale), round(shape.y * scale) - shift
                image.paste(Image.new("RGB", piece.size, shape.color), at, piece)
        image.resize((self.width * _SCALE, self.height * _SCALE), Image.Resampling.LANCZOS).save(path, "PNG")


def _svg(shape: Shape) -> str:
    if isinstance(shape, Line):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
        return f'<polyline points="{points}" fill="none" stroke="{shape.color}" stroke-width="{shape.width}"/>'
    if isinstance(shape, Text):
        more = ' font-weight="600"' if shape.bold else ""
        if shape.up:
            more += f' transform="rotate(-90 {shape.x:.1f} {shape.y:.1f})"'
        return (
            f'<text x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size}" fill="{shape.color}" '
            f'text-anchor="{shape.anchor}"{more}>{escape(shape.text)}</text>'
        )
    title = f"<title>{escape(shape.title)}</title>" if shape.title else ""
    if isinstance(shape, Dot):
        return f'<circle cx="{shape.x:.1f}" cy="{shape.y:.1f}" r="{shape.radius}" fill="{shape.color}">{title}</circle>'
    return (
        f'<rect x="{shape.x:.1f}" y="{shape.y:.1f}" width="{shape.width:.1f}" height="{shape.height:.1f}" '
        f'fill="{shape.color}">{title}</rect>'
    )
