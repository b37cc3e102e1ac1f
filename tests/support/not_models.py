"""Files that are no models that can be compiled, as people have them, and words that the error has to have."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.support import onnx_models

Case = tuple[str, Callable[[Path], object], str]
"""The file's name, a function that writes it, and a regular expression for the message."""

FLOAT = TensorProto.FLOAT


def content(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def archive(*names: str) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as opened:
            for name in names:
                opened.writestr(name, b"content")

    return make


def folder(*names: str) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        path.mkdir()
        for name in names:
            (path / name).write_bytes(b"content")

    return make


def network() -> onnx.ModelProto:
    nodes = [helper.make_node("Gemm", ["x", "w"], ["h"], "gemm"), helper.make_node("Relu", ["h"], ["y"], "relu")]
    value = helper.make_tensor_value_info
    weight = onnx.numpy_helper.from_array(onnx_models.random(4, 4), "w")
    graph = helper.make_graph(nodes, "g", [value("x", FLOAT, [2, 4])], [value("y", FLOAT, [2, 4])], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def changed(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], object]:
    """An ONNX file that differs from a right one."""

    def make(path: Path) -> None:
        model = network()
        change(model)
        path.write_bytes(model.SerializeToString())

    return make


def node(operator: str, domain: str, version: int = 1) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[1].op_type, model.graph.node[1].domain = operator, domain
        model.opset_import.append(helper.make_opsetid(domain, version))

    return change


def becomes(operator: str, domain: str = "") -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[1].op_type, model.graph.node[1].domain = operator, domain

    return change


def bytes_for_a_name(path: Path) -> None:
    path.write_bytes(network().SerializeToString().replace(b"gemm", b"\xff\xfe\xfd\xfc"))


def of_kind(kind: onnx.TypeProto, place: str = "input") -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        getattr(model.graph, place)[0].type.CopyFrom(kind)

    return change


def sparse(model: onnx.ModelProto) -> None:
    values = helper.make_tensor("s", FLOAT, [1], [2.0])
    where = helper.make_tensor("i", TensorProto.INT64, [1], [3])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, where, [4, 4]))


def functions_only(path: Path) -> None:
    body = [helper.make_node("Relu", ["a"], ["b"])]
    function = helper.make_function("own", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    path.write_bytes(helper.make_model(onnx.GraphProto(name="g"), functions=[function]).SerializeToString())


def claims(dims: list[int]) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].dims[:] = dims

    return change


def text_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [2], [b"cat", b"dog"]))


def tarred(path: Path) -> None:
    with tarfile.open(path, "w") as opened:
        info = tarfile.TarInfo("model.onnx")
        info.size = 3
        opened.addfile(info, io.BytesIO(b"abc"))


def part(share: float) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        data = network().SerializeToString()
        path.write_bytes(data[: int(len(data) * share)])

    return make


SAFETENSORS = (40).to_bytes(8, "little") + json.dumps({"w": {"dtype": "F32", "shape": [1]}}).encode().ljust(40)
HUGE_HEADER = (2**31).to_bytes(8, "little") + b"{"
SAVED_MODEL_PB = b"\x08\x01\x12\x0a\x0a\x08\x0a\x00\x12\x04abcd"
GRAPH_DEF = b"\x0a\x1a\x0a\x01x\x12\x0bPlaceholder" + bytes(10)
STRINGS = helper.make_tensor_type_proto(TensorProto.STRING, [3])
NUMBERS = helper.make_tensor_type_proto(FLOAT, [2, 4])
TORCH_EXPORT, TORCH_ONNX = r"torch\.export\.save", r"torch\.onnx\.export"

CASES: dict[str, Case] = {
    # Files and folders that are not even files of data.
    "empty": ("m.onnx", content(b""), "it is empty; copy or export it again"),
    "folder": ("m.onnx", folder(), "is a folder, .* give the model file in it"),
    "pipe": ("m.onnx", os.mkfifo, "is a pipe or a device; give a regular file"),
    "missing": ("m.onnx", lambda _: None, "cannot be read: No such file or directory"),
    "loop of links": ("m.onnx", lambda path: path.symlink_to(path), "cannot be read: "),
    # Formats by their content, whatever the suffix says.
    "git lfs": ("m.onnx", content(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git lfs pull"),
    "web page": ("m.onnx", content(b"\n<!DOCTYPE html><html>login</html>"), "a web page.*download the model itself"),
    "pickle": ("m.onnx", content(pickle.dumps({"a": 1})), "a Python pickle.*not opened"),
    "keras h5 as onnx": ("m.onnx", content(b"\x89HDF\r\n\x1a\n" + bytes(80)), "a Keras model.*tf2onnx"),
    "safetensors as onnx": ("m.onnx", content(SAFETENSORS), f"a safetensors file.*{TORCH_EXPORT}"),
    "picture": ("m.onnx", content(b"\x89PNG\r\n\x1a\n" + bytes(20)), "a picture"),
    "gzip": ("m.onnx", content(gzip.compress(b"abc")), "unpack it"),
    "tar": ("m.onnx", tarred, "unpack it"),
    "library": ("m.onnx", content(b"\x7fELF" + bytes(60)), "give the model that it was compiled from"),
    "ort": ("m.ort", content(b"\x20\0\0\0ORTM" + bytes(60)), "give the ONNX file that it was converted from"),
    "executorch": ("m.pte", content(b"\x20\0\0\0ET12" + bytes(60)), f"before to_edge with {TORCH_EXPORT}"),
    "tensorrt": ("m.engine", content(b"ptrt" + bytes(60)), "a TensorRT engine.*the ONNX file that it was built from"),
    "gguf": ("m.gguf", content(b"GGUF\3\0\0\0" + bytes(60)), "llama.cpp"),
    "npy": ("m.npy", lambda path: np.save(path, np.zeros(3)), "NumPy arrays.*--check-input"),
    "npz": ("m.npz", lambda path: np.savez(path, x=np.zeros(3)), "NumPy arrays"),
    "catboost": ("m.cbm", content(b"CBM1" + bytes(60)), "decision trees.*hummingbird"),
    "lightgbm": ("m.txt", content(b"tree\nversion=v4\nnum_class=1\n"), "decision trees"),
    "xml": ("m.xml", content(b'<?xml version="1.0"?>\n<net name="m" version="11">'), "OpenVINO"),
    "other xml": ("m.pmml", content(b'<?xml version="1.0"?>\n<PMML/>'), "an XML document"),
    # Formats by their archive.
    "torch zip": ("m.pt", archive("m/data.pkl", "m/version"), f"a PyTorch checkpoint.*{TORCH_EXPORT}.*{TORCH_ONNX}"),
    "torch zip as pt2": ("m.pt2", archive("m/data.pkl", "m/version"), "a PyTorch checkpoint"),
    "torchscript": ("m.jit", archive("m/data.pkl", "m/code/m.py"), f"a TorchScript program.*{TORCH_EXPORT}"),
    "keras zip": ("m.keras", archive("config.json", "model.weights.h5"), "a Keras model.*model.export"),
    "torchserve": ("m.mar", archive("MAR-INF/MANIFEST.json", "m.pt"), "a TorchServe archive"),
    "zip of a model": ("m.zip", archive("a/model.onnx"), "a zip archive, .*unpack it and give 'a/model.onnx'"),
    "zip": ("m.zip", archive("a.txt"), "a zip archive"),
    "part of a zip": ("m.pt2", content(b"PK\x03\x04" + bytes(40)), "a damaged zip archive, or only a part of one"),
    # Formats by their suffix.
    "torch bin": ("pytorch_model.bin", content(bytes(range(1, 99))), f"a PyTorch checkpoint.*{TORCH_EXPORT}"),
    "old torch": ("m.pth", content(pickle.dumps(1, 1)), "a PyTorch checkpoint"),
    "joblib": ("m.joblib", content(b"x" + zlib.compress(pickle.dumps([1]))), "a Python pickle.*skl2onnx"),
    "pickle of sklearn": ("m.pkl", content(pickle.dumps([1], 1)), "a Python pickle.*skl2onnx"),
    "frozen graph": ("frozen.pb", content(GRAPH_DEF), "a TensorFlow graph.*tf2onnx.convert --graphdef"),
    "saved_model.pb": ("saved_model.pb", content(SAVED_MODEL_PB), "a TensorFlow graph.*--saved-model FOLDER"),
    "saved model": ("m", folder("saved_model.pb", "keras_metadata.pb"), "a TensorFlow SavedModel.*--saved-model"),
    "coreml": ("m.mlmodel", content(b"\x08\x01\x12\x04abcd"), "a Core ML model"),
    "coreml package": ("m.mlpackage", folder("Manifest.json"), "a Core ML model"),
    "caffe": ("m.caffemodel", content(b"\x0a\x04abcd"), "a Caffe model.*caffe2onnx"),
    "paddle": ("m.pdmodel", content(b"\x0a\x04abcd"), "a Paddle model.*paddle2onnx"),
    "hugging face": ("m", folder("config.json", "model.safetensors"), "a folder of weights.*optimum-cli"),
    "folder of a model": ("m", folder("model.onnx", "model.onnx.data"), r"give .*/m/model\.onnx"),
    "external data": ("model.onnx.data", content(bytes(range(1, 99))), "give the .onnx file"),
    "python": ("m.py", content(b"import torch\n"), "a text or a program"),
    "not pt2": ("m.pt2", content(b"hello"), f"is not a .pt2 file.*{TORCH_EXPORT}"),
    "not tflite": ("m.tflite", content(b"hello world"), "is not a .tflite file.*TFLite converter"),
    # Files that ONNX reads, or nearly.
    "text": ("m.onnx", content(b"no model at all"), "is not an ONNX model"),
    "json": ("m.json", content(b'{"a": 1}'), "is not an ONNX model"),
    "half of it": ("m.onnx", part(0.5), "is not an ONNX model, or only a part of one"),
    "all but a byte": ("m.onnx", part(0.995), "is not an ONNX model, or only a part of one"),
    "huge header": ("m.onnx", content(HUGE_HEADER), "a safetensors file"),
    "no graph": ("m.onnx", changed(lambda m: m.graph.Clear()), "it has no graph"),
    "functions": ("m.onnx", functions_only, "has functions .'Twice'. and no graph; give the model that calls them"),
    "training": ("m.onnx", changed(lambda m: m.training_info.add()), "is for training; export .* for inference"),
    "gradient": ("m.onnx", changed(node("Gradient", "ai.onnx.preview.training")), "for training .*Gradient.*'relu'"),
    "sklearn": ("m.onnx", changed(node("TreeEnsembleClassifier", "ai.onnx.ml", 3)), "TreeEnsembleClassifier.*'relu'"),
    "sklearn scaler": ("m.onnx", changed(node("Scaler", "ai.onnx.ml", 3)), "Scaler of ai.onnx.ml"),
    "custom domain": ("m.onnx", changed(node("Frobnicate", "com.example")), "Frobnicate.*com.example"),
    "custom operator": ("m.onnx", changed(lambda m: setattr(m.graph.node[1], "op_type", "Frob")), "Frob"),
    "strings": ("m.onnx", changed(of_kind(STRINGS)), "input 'x' is of STRING; only numbers"),
    "text weight": ("m.onnx", changed(text_weight), "the weight 'words' holds text"),
    "sequence": ("m.onnx", changed(of_kind(helper.make_sequence_type_proto(NUMBERS))), "input 'x' is a sequence"),
    "optional": ("m.onnx", changed(of_kind(helper.make_optional_type_proto(NUMBERS))), "input 'x' is optional"),
    "zipmap": (
        "m.onnx",
        changed(of_kind(helper.make_sequence_type_proto(helper.make_map_type_proto(7, NUMBERS)), "output")),
        "output 'y' is a sequence.*'zipmap': False",
    ),
    "sparse": ("m.onnx", changed(sparse), "the weight 's' as a sparse tensor; export it as a dense one"),
    "huge claim": (
        "m.onnx",
        changed(claims([2**40, 2**20])),
        "damaged: the weight 'w' claims 4,611,686,018,427",
    ),
    "negative claim": ("m.onnx", changed(claims([-4, -4])), r"the weight 'w' claims the shape \[-4, -4\]"),
    "short weight": ("m.onnx", changed(claims([5, 4])), r"claims 80 bytes \(\[5, 4\] of float32\) and has 64"),
    "unknown datatype": (
        "m.onnx",
        changed(lambda m: setattr(m.graph.initializer[0], "data_type", 99)),
        "the weight 'w' has the unknown datatype 99",
    ),
    "name of bytes": ("m.onnx", bytes_for_a_name, r"the name b'.*' is not text \(UTF-8\); export it again"),
    "no branches": ("m.onnx", changed(becomes("If")), "node 'relu' .If. has no 'then_branch'; export it again"),
    "no body": ("m.onnx", changed(becomes("Scan")), "node 'relu' .Scan. has no 'body'; export it again"),
    "domain without an opset": (
        "m.onnx",
        changed(becomes("Relu", "a.b")),
        "Relu .a.b, node 'relu'.: its definition is not known",
    ),
    "nothing computes it": (
        "m.onnx",
        changed(lambda m: m.graph.node[1].input.__setitem__(0, "lost")),
        r"node 'relu' \(Relu\) reads the tensor 'lost', which no node before it computes",
    ),
    "nothing computes the output": (
        "m.onnx",
        changed(lambda m: setattr(m.graph.output[0], "name", "lost")),
        "nothing computes the output 'lost'",
    ),
    "external data is missing": (
        "m.onnx",
        lambda path: (
            onnx.save(network(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
            or (path.parent / "w.bin").unlink()
        ),
        "external data file 'w.bin'",
    ),
    "huge input": (
        "m.onnx",
        changed(of_kind(helper.make_tensor_type_proto(FLOAT, [2**62, 4]))),
        r"shape \[4611686018427387904, 4\] has .* one from 2\*\*40",
    ),
}


def made(case: str, where: Path) -> tuple[Path, str]:
    """Write the file of a case into a folder; its path, and the expression that the message matches."""
    name, make, words = CASES[case]
    path = where / name
    make(path)
    return path, words
