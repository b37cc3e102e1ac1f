"""The networks of `bench_models`: their names, families, and how each ONNX file is made.

Networks of PyTorch, torchvision and transformers have random weights and are exported by `torch_networks`, in a process
of its own. Those of two families are made of others: quantized by ONNX Runtime, or converted to float16.
"""

from __future__ import annotations

import importlib.util
import subprocess
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

Change = Callable[[Path, Path], None]


@dataclass(frozen=True)
class Network:
    """A network. `source` names the exported network that it is made of by `change`, or is the name itself."""

    name: str
    family: str
    source: str
    change: Change | None = None

    def build(self, folder: Path, python: str) -> Path:
        """Write the ONNX file into `folder`, unless it is there, and return its path. `python` has PyTorch."""
        target = folder / f"{self.name}.onnx"
        if target.exists():
            return target
        if self.change is not None:
            self.change(Network(self.source, self.family, self.source).build(folder, python), target)
            return target
        packaged = PACKAGED.get(self.name)
        if packaged is not None:
            return _packaged(*packaged)
        command = [python, "-m", "tests.benchmarks.torch_networks", self.name, str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{self.name} cannot be exported: {done.stderr.strip().splitlines()[-1:]}")
        return target


def _packaged(package: str, file: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise RuntimeError(f"the package {package} is not installed")
    return Path(found.origin).parent / file


def sample(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs of a model; `shapes` are those of inputs that the file leaves open."""
    rng = np.random.default_rng(seed)
    weights = {w.name for w in model.graph.initializer}
    inputs = {}
    for info in model.graph.input:
        if info.name in weights:
            continue
        kind = info.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        shape = shapes.get(info.name) or tuple(d.dim_value for d in kind.shape.dim)
        if dtype.kind == "f":
            value = rng.standard_normal(shape)
        elif "mask" in info.name:
            value = np.ones(shape)
        else:
            value = rng.integers(0, 100, shape)
        inputs[info.name] = value.astype(dtype)
    return inputs


class _Calibration:
    """Three random samples, for static quantization."""

    def __init__(self, file: Path) -> None:
        model = onnx.load(file, load_external_data=False)
        self._samples = iter([sample(model, {}, seed) for seed in range(3)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._samples, None)


def static_int8(source: Path, target: Path) -> None:
    """Quantize to QDQ form: weights for each channel, activations by three random samples."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    reader = type("Reader", (_Calibration, CalibrationDataReader), {})(source)
    quantize_static(
        source, target, reader, quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )  # fmt: skip


def operator_int8(source: Path, target: Path) -> None:
    """Quantize to operators on integers, QLinearConv and others."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    reader = type("Reader", (_Calibration, CalibrationDataReader), {})(source)
    quantize_static(
        source, target, reader, quant_format=QuantFormat.QOperator, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )  # fmt: skip


def dynamic_int8(source: Path, target: Path) -> None:
    """Quantize the weights of matrix products; activations are quantized when the model runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, target, weight_type=QuantType.QInt8)


def half(source: Path, target: Path) -> None:
    """Convert to float16, inputs and outputs too."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnx.save(convert_float_to_float16(onnx.load(source)), target)


PACKAGED = {
    "ppocr-det": ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx"),
    "ppocr-rec": ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx"),
    "ppocr-cls": ("rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx"),
}
"""Networks that a package brings along, by package and file."""

SHAPES = {
    "ppocr-det": {"x": (1, 3, 320, 320)},
    "ppocr-rec": {"x": (1, 3, 48, 320)},
    "ppocr-cls": {"x": (1, 3, 48, 192)},
}
"""Input shapes of the packaged networks; the others have fixed shapes."""

_EXPORTED = {
    "classification": (
        *("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "shufflenet_v2_x1_0"),
        *("squeezenet1_1", "densenet121", "regnet_y_400mf", "mnasnet1_0", "googlenet", "convnext_tiny"),
    ),
    "vision transformer": ("swin_t", "deit_tiny", "mobilevit"),
    "segmentation": ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50", "unet"),
    "detection": ("ppocr-det", "ssdlite320_heads", "fpn_resnet18", "yolo_csp"),
    "super-resolution": ("espcn", "edsr"),
    "OCR": ("ppocr-rec", "ppocr-cls", "crnn"),
    "text encoder": ("bert_small", "distilbert", "albert", "roberta", "t5_encoder", "mpnet"),
    "text decoder": ("gpt2", "llama", "qwen2"),
    "speech": ("whisper_encoder", "wav2vec2", "conformer", "tcn"),
    "recurrent": ("lstm", "bilstm", "gru", "rnn"),
    "video": ("r3d_18", "mc3_18"),
    "generation": ("hifigan", "diffusion_unet", "vae_decoder"),
    "tabular": ("mlp", "dlrm"),
}

NETWORKS: tuple[Network, ...] = (
    *(Network(name, family, name) for family, names in _EXPORTED.items() for name in names),
    Network("resnet18-qdq", "int8", "resnet18", static_int8),
    Network("mobilenet_v2-qdq", "int8", "mobilenet_v2", static_int8),
    Network("resnet18-qoperator", "int8", "resnet18", operator_int8),
    Network("bert_small-dynamic", "int8", "bert_small", dynamic_int8),
    Network("lstm-dynamic", "int8", "lstm", dynamic_int8),
    Network("resnet18-half", "float16", "resnet18", half),
    Network("bert_small-half", "float16", "bert_small", half),
    Network("mobilenet_v2-half", "float16", "mobilenet_v2", half),
)
"""All networks, by family."""
