"""What files of other formats are, and the exporter that makes a model of each that can be compiled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Hint(NamedTuple):
    """What a file is, and what to do instead of compiling it."""

    what: str
    todo: str


_FROM_TORCH = (
    "in the program that defines the network, save torch.export.export(model, inputs) with torch.export.save, "
    "or use torch.onnx.export"
)
_SOURCE = "give the model that it was made from, as ONNX, .pt2 or .tflite"

PICKLE = Hint(
    "a Python pickle",
    "it is not opened, because a pickle can run any program; open it where it was made and export the network with "
    "torch.export.save or torch.onnx.export, or with skl2onnx for scikit-learn",
)
TORCH = Hint("a PyTorch checkpoint of weights or a pickled module", _FROM_TORCH)
TORCHSCRIPT = Hint("a TorchScript program", _FROM_TORCH)
KERAS = Hint(
    "a Keras model",
    "export it with model.export('model.onnx', format='onnx'), or convert it with tf2onnx or tf.lite.TFLiteConverter",
)
SAVED_MODEL = Hint(
    "a TensorFlow SavedModel",
    "convert it with python -m tf2onnx.convert --saved-model FOLDER --output model.onnx, or with "
    "tf.lite.TFLiteConverter.from_saved_model",
)
GRAPH_DEF = Hint(
    "a TensorFlow graph",
    "convert it with python -m tf2onnx.convert --graphdef FILE --inputs x:0 --outputs y:0 --output model.onnx, or with "
    "--saved-model FOLDER for saved_model.pb",
)
TF_CHECKPOINT = Hint("a checkpoint of weights without a network", _FROM_TORCH + " (tf2onnx for TensorFlow)")
SAFETENSORS = Hint(
    "a safetensors file, weights without a network",
    _FROM_TORCH + " (optimum-cli export onnx for models of the Hugging Face Hub)",
)
GGUF = Hint(
    "a GGUF file for llama.cpp, weights without a network",
    "export the original model with torch.export.save, torch.onnx.export or optimum-cli export onnx",
)
COREML = Hint("a Core ML model", _SOURCE)
TENSORRT = Hint("a TensorRT engine, code for one GPU", "give the ONNX file that it was built from")
OPENVINO = Hint("an OpenVINO model (IR)", _SOURCE)
CAFFE = Hint("a Caffe model", "convert it to ONNX first, with caffe2onnx for example")
PADDLE = Hint("a Paddle model", "convert it with paddle2onnx --model_dir FOLDER --save_file model.onnx")
TORCHSERVE = Hint("a TorchServe archive", "unpack it and export its network: " + _FROM_TORCH)
EXECUTORCH = Hint("an ExecuTorch program", "save the program before to_edge with torch.export.save, as .pt2")
ORT = Hint("a file of ONNX Runtime's own format (ORT)", "give the ONNX file that it was converted from")
TREES = Hint(
    "a model of decision trees",
    "TVM compiles networks of tensor operators; turn the trees into one with hummingbird.ml.convert(model, 'torch') "
    "and save it with torch.export.save",
)
ARRAYS = Hint("a file of NumPy arrays", "give the model; samples of inputs belong to --check-input")
OURS = Hint("compiled already", "give the model that it was compiled from")
DATA = Hint("external data of an ONNX model", "give the .onnx file, with this file next to it")
PICTURE = Hint("a picture", "give the model")
XML = Hint("an XML document", _SOURCE)
PACKED = Hint("a compressed file or an archive", "unpack it and give the model in it")
SCRIPT = Hint("a text or a program", "give the model that it describes, as ONNX, .pt2 or .tflite")
PAGE = Hint("a web page", "the download failed or needs a login; download the model itself")
LFS = Hint("a Git LFS pointer, not the file itself", "get the file with git lfs pull")
OTHER_RUNTIME = Hint("a file for another runtime", _SOURCE)
JAX = Hint("a StableHLO or MLIR program", "export the model to ONNX (jax2onnx) or with tf.lite.TFLiteConverter")

MAGIC: Sequence[tuple[int, bytes, Hint]] = (
    (0, b"\x89HDF\r\n\x1a\n", KERAS),
    (0, b"GGUF", GGUF),
    (0, b"ptrt", TENSORRT),
    (0, b"ftrt", TENSORRT),
    (4, b"ORTM", ORT),
    (4, b"ET12", EXECUTORCH),
    (0, b"CBM1", TREES),
    (0, b"{L", TREES),  # XGBoost's UBJSON
    (0, b"binf", TREES),
    (0, b"\x93NUMPY", ARRAYS),
    (0, b"\x7fELF", Hint("a library or a program", OURS.todo)),
    (0, b"ML\xefR", JAX),
    (0, b"\x89PNG", PICTURE),
    (0, b"\xff\xd8\xff", PICTURE),
    (0, b"GIF8", PICTURE),
    (0, b"%PDF", Hint("a PDF document", "give the model")),
    (0, b"\x1f\x8b", PACKED),
    (0, b"BZh", PACKED),
    (0, b"\xfd7zXZ", PACKED),
    (0, b"\x28\xb5\x2f\xfd", PACKED),
    (0, b"7z\xbc\xaf\x27\x1c", PACKED),
    (0, b"Rar!", PACKED),
    (257, b"ustar", PACKED),
    (0, b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19", TORCH),  # PyTorch before 1.6
    *((0, bytes([0x80, version]), PICKLE) for version in (2, 3, 4, 5)),
)
"""Bytes at a place in a file that tell its format."""

TEXT: Sequence[tuple[bytes, Hint]] = (
    (b"version https://git-lfs", LFS),
    (b"<!doctype html", PAGE),
    (b"<html", PAGE),
    (b"<net", OPENVINO),
    (b"tree\nversion=", TREES),
    (b"7767517", OTHER_RUNTIME),  # ncnn
    (b"module {", JAX),
    (b"module @", JAX),
    (b"#!", SCRIPT),
    (b"import ", SCRIPT),
    (b"from ", SCRIPT),
)
"""How files of text begin, in lower case."""

_SUFFIXES = {
    TORCH: "pt pth ckpt bin",
    TORCHSCRIPT: "jit torchscript ptl",
    KERAS: "h5 hdf5 keras",
    GRAPH_DEF: "pb pbtxt",
    TF_CHECKPOINT: "index meta msgpack",
    SAFETENSORS: "safetensors",
    GGUF: "gguf ggml",
    COREML: "mlmodel mlpackage mlmodelc",
    TENSORRT: "engine plan trt",
    OPENVINO: "xml",
    CAFFE: "caffemodel prototxt",
    PADDLE: "pdmodel pdiparams pdparams nb",
    TORCHSERVE: "mar",
    EXECUTORCH: "pte",
    ORT: "ort",
    TREES: "cbm ubj bst lgb",
    PICKLE: "pkl pickle joblib dill",
    ARRAYS: "npy npz",
    DATA: "data onnx_data",
    PACKED: "zip gz tgz tar bz2 xz zst 7z rar",
    SCRIPT: "py ipynb yaml yml toml md txt csv",
    OTHER_RUNTIME: "mnn param ncnn rknn dlc hef blob tnnmodel om kmodel cvimodel weights cfg params t7 nnef circle",
    JAX: "mlir stablehlo hlo",
    OURS: "so dylib",
    PICTURE: "png jpg jpeg gif webp svg",
}

SUFFIXES = {suffix: hint for hint, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}


def by_suffix(name: str) -> Hint | None:
    """The hint for a file that only its name tells; None for a name that may be of a model that can be compiled."""
    return SUFFIXES.get(name.lower().rpartition(".")[2]) if "." in name else None


def of_archive(names: Sequence[str]) -> Hint:
    """The hint for a zip archive with the members `names`."""
    ends = {name.rpartition("/")[2] for name in names}
    if "MANIFEST.json" in ends and any(name.startswith("MAR-INF/") for name in names):
        return TORCHSERVE
    if "data.pkl" in ends:
        return TORCHSCRIPT if any("/code/" in name for name in names) else TORCH
    if "model.weights.h5" in ends:
        return KERAS
    if ends and all(name.endswith(".npy") for name in ends):
        return ARRAYS
    models = [name for name in names if name.lower().endswith((".onnx", ".pt2", ".tflite"))]
    if models:
        return Hint("a zip archive", f"unpack it and give {', '.join(map(repr, models[:3]))}")
    return Hint("a zip archive", "unpack it and give the model in it")


def of_folder(folder: Path) -> Hint:
    """The hint for a folder, by the files in it."""
    names = sorted(entry.name for entry in folder.iterdir())
    if "saved_model.pb" in names or "saved_model.pbtxt" in names:
        return SAVED_MODEL
    if folder.suffix.lower() in (".mlpackage", ".mlmodelc"):
        return COREML
    if "inference.pdmodel" in names or "__model__" in names:
        return PADDLE
    if ("manifest.json" in names and "device.so" in names) or "subgraph.so" in names:
        return Hint("a folder with a compiled library", OURS.todo)
    models = [name for name in names if name.lower().endswith((".onnx", ".pt2", ".tflite"))]
    if models:
        return Hint("a folder", f"give {', '.join(str(folder / name) for name in models[:3])}")
    if any(name.endswith((".safetensors", ".bin")) for name in names):
        return Hint("a folder of weights", SAFETENSORS.todo)
    return Hint("a folder", "give the model file in it")
