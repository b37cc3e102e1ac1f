"""The demo's pictures: read from files, converted to the network's input, and drawn with their text regions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from zmq_offload.demo.regions import TextRegion
from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.protocol.payload import Array

STRIDE = 32
"""The network halves the size of its input five times."""

# (value / 255 - 0.5) / 0.5 for each value of a byte.
_NORMALIZED = ((np.arange(256) / 255 - 0.5) / 0.5).astype(np.float32)


def pages() -> list[Image.Image]:
    """The pages that the package contains: headings, two columns of text, a table, a stamp at an angle."""
    return [read(file) for file in sorted((Path(__file__).parent / "pages").glob("*.png"))]


def read(path: Path) -> Image.Image:
    """A picture file as RGB, upright, on white paper. Raises InvalidArgument if it cannot be read."""
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file).convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InvalidArgument(f"{path} cannot be read as a picture: {reason}") from None
    paper = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(paper, picture).convert("RGB")


def network_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Width and height of the network's input for a picture of `size`: at most `longest`, and multiples of 32."""
    ratio = min(1.0, longest / max(size))
    width, height = (max(STRIDE, round(side * ratio / STRIDE) * STRIDE) for side in size)
    return width, height


def to_tensor(picture: Image.Image, size: tuple[int, int]) -> Array:
    """A picture as PP-OCR's networks take it: float32 [1,3,height,width] from -1 to 1, blue first."""
    resized = picture.resize(size, Image.Resampling.BILINEAR)
    channels = np.asarray(resized)[:, :, ::-1].transpose(2, 0, 1)
    return np.ascontiguousarray(_NORMALIZED[channels][None])


def draw(picture: Image.Image, regions: Sequence[TextRegion]) -> Image.Image:
    """A copy of the picture with the regions outlined and tinted."""
    # Twice as large and scaled down, because Pillow does not smooth slanted lines.
    width = max(3, round(max(picture.size) / 250))
    tint = Image.new("RGBA", (2 * picture.width, 2 * picture.height), (0, 160, 90, 0))
    pen = ImageDraw.Draw(tint)
    for region in regions:
        outline = [(2 * x, 2 * y) for x, y in region.corners]
        pen.polygon(outline, fill=(0, 160, 90, 40))
        pen.line([*outline, outline[0], outline[1]], fill=(0, 160, 90, 255), width=width, joint="curve")
    tint = tint.resize(picture.size, Image.Resampling.BOX)
    return Image.alpha_composite(picture.convert("RGBA"), tint).convert("RGB")


def target_file(output: Path) -> Path:
    """The PNG file that `output` stands for: `output` itself, or a file in it if it is a folder, which is created.

    Raises InvalidArgument for a picture file of another kind, and FailedPrecondition if the file cannot be written.
    """
    suffix = output.suffix.lower()
    if suffix != ".png" and suffix in Image.registered_extensions() and not output.is_dir():
        raise InvalidArgument(f"{output} is not a PNG file; use {output.with_suffix('.png')}")
    file = output if suffix == ".png" and not output.is_dir() else output / "text-regions.png"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab"):
            pass
        if not file.stat().st_size:
            file.unlink()
    except OSError as error:
        raise FailedPrecondition(f"{file} cannot be written: {error.strerror or error}") from None
    return file
