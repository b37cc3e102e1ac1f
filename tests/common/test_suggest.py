"""Suggestions for unknown names."""

import pytest

from zmq_offload.common.suggest import did_you_mean, nearest


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("orc", ["echo", "ocr"], "ocr"),
        ("compil", ["compile", "plan", "profile"], "compile"),
        ("OCR", ["ocr", "OCRS"], "ocr"),
        ("--with-fallbak", ["--wire", "--with-fallback"], "--with-fallback"),
        ("Relu_12_output", ["Relu_1_output_0", "Relu_12_output_0"], "Relu_12_output_0"),
    ],
)
def test_the_closest_name_is_suggested(word, known, meant):
    assert did_you_mean(word, known) == f"; did you mean {meant!r}?"


@pytest.mark.parametrize(
    ("word", "known"), [("ocr", []), ("ocr", ["mask_rcnn", "echo"]), ("ocr", ["ocr"]), ("", ["a"])]
)
def test_nothing_is_suggested_if_no_name_is_close(word, known):
    assert did_you_mean(word, known) == ""


def test_any_iterable_is_accepted():
    assert did_you_mean("eco", (name for name in ("ocr", "echo"))) == "; did you mean 'echo'?"


@pytest.mark.parametrize(
    ("word", "known", "says"),
    [
        ("conv1", ["conv_1", "pool", "relu"], "; did you mean 'conv_1'?"),
        ("conv", ["xyz_1", "pool", "relu", "softmax"], "; the nearest are 'pool', 'softmax', 'xyz_1'"),
        ("conv", [], "; the nearest are none"),
    ],
)
def test_the_nearest_names_are_listed_if_none_is_close(word, known, says):
    assert nearest(word, known) == says
