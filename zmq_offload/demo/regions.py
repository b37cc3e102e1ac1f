"""Text regions in the output of the demo's network, by the post-processing of rapidocr-onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass

from zmq_offload.protocol.payload import Array


@dataclass(frozen=True)
class TextRegion:
    """A quadrilateral of text: corners (x, y) clockwise from the top left, and the mean probability inside (0 to 1)."""

    corners: tuple[tuple[int, int], ...]
    score: float


def find_regions(output: Array, size: tuple[int, int]) -> list[TextRegion]:
    """The text regions of a page of `size` (width, height), from top to bottom.

    `output` is the network's: a map of probabilities [1,1,height,width]. The settings are rapidocr's own.
    """
    # The package imports OpenCV and ONNX Runtime.
    from rapidocr_onnxruntime.ch_ppocr_det.utils import DBPostProcess

    width, height = size
    process = DBPostProcess(thresh=0.3, box_thresh=0.5, unclip_ratio=1.6, use_dilation=True)
    found = zip(*process(output, (height, width)), strict=True)
    regions = [TextRegion(tuple((int(x), int(y)) for x, y in corners), float(score)) for corners, score in found]
    return sorted(regions, key=lambda region: (region.corners[0][1], region.corners[0][0]))
