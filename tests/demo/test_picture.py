"""The demo's pictures: read, turned into the network's input, drawn on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zmq_offload.demo import picture
from zmq_offload.demo.regions import TextRegion
from zmq_offload.errors import FailedPrecondition, InvalidArgument


def test_pages_are_in_the_package_and_small() -> None:
    pages = picture.pages()
    assert len({page.tobytes() for page in pages}) == 3
    assert {page.size for page in pages} == {(768, 1024)}
    files = list((Path(picture.__file__).parent / "pages").iterdir())
    assert len(files) == 3 and sum(file.stat().st_size for file in files) < 200_000


@pytest.mark.parametrize(
    ("size", "longest", "wanted"),
    [
        ((768, 1024), 448, (320, 448)),
        ((640, 480), 640, (640, 480)),
        ((640, 480), 4096, (640, 480)),  # nothing is enlarged
        ((1920, 1080), 512, (512, 288)),
        ((3000, 10), 512, (512, 32)),
        ((5, 5), 512, (32, 32)),
    ],
)
def test_the_networks_size_is_a_multiple_of_32(size: tuple[int, int], longest: int, wanted: tuple[int, int]) -> None:
    assert picture.network_size(size, longest) == wanted


def test_the_tensor_is_what_ppocr_makes_of_the_picture() -> None:
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    tensor = picture.to_tensor(image, (96, 64))
    assert tensor.dtype == np.float32
    assert tensor.shape == (1, 3, 64, 96)
    assert tensor.flags.c_contiguous
    # As rapidocr's DetPreProcess computes it, from a picture in OpenCV's order of channels.
    blue_green_red = np.asarray(image)[:, :, ::-1]
    mean, std = np.array([0.5, 0.5, 0.5]), np.array([0.5, 0.5, 0.5])
    wanted = ((blue_green_red.astype("float32") * (1 / 255.0) - mean) / std).transpose((2, 0, 1))
    np.testing.assert_allclose(tensor[0], wanted.astype(np.float32), atol=2e-7, rtol=0)


def test_a_picture_is_resized_for_the_tensor() -> None:
    half_black = Image.new("RGB", (200, 100), "white")
    half_black.paste("black", (0, 0, 100, 100))
    tensor = picture.to_tensor(half_black, (64, 32))
    assert tensor.shape == (1, 3, 32, 64)
    np.testing.assert_array_equal(tensor[0, :, :, :30], -1)
    np.testing.assert_array_equal(tensor[0, :, :, 34:], 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_any_picture_file_is_read_as_rgb(mode: str, tmp_path: Path) -> None:
    file = tmp_path / ("picture.tiff" if mode in ("CMYK", "I;16") else "picture.png")
    Image.new(mode, (40, 30)).save(file)
    found = picture.read(file)
    assert (found.mode, found.size) == ("RGB", (40, 30))


def test_what_is_transparent_is_paper(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert picture.read(tmp_path / "clear.png").getpixel((4, 4)) == (255, 255, 255)


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"none\.png cannot be read as a picture: No such file"):
        picture.read(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InvalidArgument, match=r"text\.png cannot be read as a picture"):
        picture.read(tmp_path / "text.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    with pytest.raises(InvalidArgument, match=r"cut\.png cannot be read as a picture"):
        picture.read(tmp_path / "cut.png")


def test_regions_are_drawn_on_a_copy() -> None:
    paper = Image.new("RGB", (200, 100), "white")
    drawn = picture.draw(paper, [TextRegion(((20, 20), (120, 20), (120, 60), (20, 60)), 0.9)])
    assert paper.getcolors() == [(20000, (255, 255, 255))]
    outline, inside, outside = (drawn.getpixel(at) for at in ((70, 20), (70, 40), (160, 80)))
    assert outside == (255, 255, 255)
    assert len({outline, inside, outside}) == 3


def test_output_is_a_png_file_or_a_folder_for_one(tmp_path: Path) -> None:
    assert picture.target_file(tmp_path / "a/page.png") == tmp_path / "a/page.png"
    assert picture.target_file(tmp_path / "b") == tmp_path / "b/text-regions.png"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b"]
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match=r"page\.png cannot be written"):
        picture.target_file(tmp_path / "file" / "page.png")
    with pytest.raises(InvalidArgument, match=r"page\.jpg is not a PNG file; use .*page\.png"):
        picture.target_file(tmp_path / "page.jpg")
    assert not (tmp_path / "page.jpg").exists()
