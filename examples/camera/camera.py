"""A camera's pictures through a device bundle, several in flight: `python camera.py dist/device picamera`.

The second argument is `picamera` for the camera module of a Raspberry Pi, a number for a USB camera, or a file or URL
that OpenCV reads. The model takes one picture as [1, 3, height, width], with numbers from 0 to 1.
"""

import os
import sys
import time
from collections.abc import Iterator

import numpy as np

import zmq_offload

BROKER = os.environ.get("ZMQ_OFFLOAD_FRONTEND", "tcp://127.0.0.1:5555")


def pictures(source: str, height: int, width: int) -> Iterator[np.ndarray]:
    """Pictures as [height, width, red green blue] bytes, each taken when it is asked for."""
    if source == "picamera":
        from picamera2 import Picamera2

        camera = Picamera2()
        # "BGR888" is libcamera's name for bytes in the order red, green, blue.
        camera.configure(camera.create_video_configuration({"size": (width, height), "format": "BGR888"}))
        camera.start()
        while True:
            yield camera.capture_array()
    import cv2

    video = cv2.VideoCapture(int(source) if source.isdigit() else source)
    video.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # a live camera's newest picture, and not the oldest that waits
    while True:
        there, picture = video.read()
        if not there:
            return
        yield cv2.cvtColor(cv2.resize(picture, (width, height)), cv2.COLOR_BGR2RGB)


with zmq_offload.load(sys.argv[1], broker=BROKER, timeout=2) as model:
    _, _, height, width = model.inputs[0].shape
    # A new array for each picture: it must stay as it is until its result is there.
    items = (
        (picture.transpose(2, 0, 1)[np.newaxis] / 255).astype("float32")
        for picture in pictures(sys.argv[2], height, width)
    )
    began = time.monotonic()
    # An error, when no worker answers for instance, takes the place of one picture's result.
    for number, result in enumerate(model.map(items, depth=4, return_exceptions=True), 1):
        if isinstance(result, zmq_offload.OffloadError):
            print(f"picture {number}: {result}", flush=True)
        else:
            shape = (result if isinstance(result, np.ndarray) else result[0]).shape
            print(f"picture {number}: {shape}, {number / (time.monotonic() - began):.1f} a second", flush=True)
