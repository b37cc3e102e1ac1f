"""Files of torch.export.save: compiled, cut by the paths of modules, and compared with PyTorch."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zmq_offload.cli.main import main
from zmq_offload.compile import compile_model, compile_uncut, list_cuts
from zmq_offload.compile.models.read import read_model
from zmq_offload.compile.uncut import UncutModel
from zmq_offload.errors import FailedPrecondition, InvalidArgument

torch: Any = pytest.importorskip("torch", exc_type=ImportError)

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]


def save(module: Any, path: Path, arguments: tuple[Any, ...], dynamic: Any = None, **named: Any) -> Path:
    program = torch.export.export(module.eval(), arguments, named, dynamic_shapes=dynamic, strict=False)
    torch.export.save(program, path)
    return path


def network() -> Any:
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

        def forward(self, x: Any) -> Any:
            return torch.relu_(self.norm(self.conv(x)).add_(x))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2), Block(), Block())
            self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

        def forward(self, image: Any) -> dict[str, Any]:
            features = self.backbone(image)
            return {"scores": self.head(self.pool(features).flatten(1)).softmax(-1), "features": features}

    torch.manual_seed(0)
    return Network()


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(network(), tmp_path_factory.mktemp("pt2") / "m.pt2", (torch.randn(2, 3, 16, 16),))


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    batch = torch.export.Dim("batch", min=1, max=8)
    shapes = {"image": {0: batch}}
    return save(network(), tmp_path_factory.mktemp("pt2") / "m.pt2", (torch.randn(2, 3, 16, 16),), shapes)


def test_it_is_cut_at_a_module_and_computes_what_pytorch_computes(fixed: Path, tmp_path: Path) -> None:
    compiled = compile_model(fixed, cut="backbone.1", name="m", output=tmp_path, check=True)
    assert [str(t) for t in compiled.manifest.inputs] == ["image FP32[2,3,16,16]"]
    assert [str(t) for t in compiled.manifest.outputs] == ["scores FP32[2,5]", "features FP32[2,8,7,7]"]
    assert compiled.check is not None and compiled.check.skipped is None
    assert compiled.check.against.startswith("PyTorch ")
    assert compiled.models[0].inputs[0].shape == (2, 8, 7, 7)


def test_a_dynamic_batch_stays_symbolic_or_is_fixed(dynamic: Path, tmp_path: Path) -> None:
    compiled = compile_model(dynamic, cut="backbone.1", name="m", output=tmp_path / "a", check=True)
    assert compiled.models[0].inputs[0].shape == (-1, 8, 7, 7)
    assert compiled.check is not None and "2 random inputs" in str(compiled.check)
    shape = {"image": (4, 3, 16, 16)}
    compiled = compile_model(dynamic, cut="backbone.1", inputs=shape, name="m", output=tmp_path / "b", check=True)
    assert compiled.models[0].inputs[0].shape == (4, 8, 7, 7)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"imag": (1, 3, 16, 16)}, "no input 'imag'; it has 'image' .*; did you mean 'image'?"),
        ({"image": (1, 3, 16)}, "has 3 dimensions, the model's is 'image' .s[0-9]+,3,16,16.$"),
        ({"image": (1, 3, 16, 17)}, "dimension 3 is 16 in the program, not 17; export it with dynamic_shapes"),
        ({"image": (1, 3, "H", 16)}, "dimension 2 is 16 in the program, not symbolic; export it with dynamic_shapes"),
        ({"image": (9, 3, 16, 16)}, "dimension 0 is 9; the program takes 1 to 8"),
    ],
)
def test_shapes_that_do_not_fit_the_program(dynamic: Path, shapes: Any, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        list_cuts(dynamic, inputs=shapes)


def test_separate_batches_become_one_by_a_name(tmp_path: Path) -> None:
    class Sums(torch.nn.Module):  # type: ignore[misc]
        def forward(self, a: Any, b: Any) -> Any:
            return torch.tanh(a).sum(0) + b.sum(0)

    each = {0: torch.export.Dim.DYNAMIC}
    path = save(Sums(), tmp_path / "m.pt2", (torch.randn(3, 4), torch.randn(2, 4)), {"a": each, "b": each})
    with pytest.raises(
        InvalidArgument, match="fix one of them, give both the same name with --input, or cut elsewhere"
    ):
        list_cuts(path)
    named = {"a": ("N", 4), "b": ("N", 4)}
    assert [point.name for point in list_cuts(path, inputs=named)]
    compiled = compile_model(path, cut=["tanh", "b"], inputs=named, name="m", output=tmp_path, check=True)
    assert [str(t) for t in compiled.manifest.inputs] == ["a FP32[?,4]", "b FP32[?,4]"]


def test_bfloat16_is_float32_outside(tmp_path: Path) -> None:
    path = save(network().bfloat16(), tmp_path / "m.pt2", (torch.randn(2, 3, 16, 16).bfloat16(),))
    compiled = compile_model(path, cut="backbone.1", name="m", output=tmp_path)
    assert [str(t) for t in compiled.manifest.inputs] == ["image FP32[2,3,16,16]"]
    model = read_model(path)
    sample = model.random_inputs(model.inputs({}), {}, 0)
    compile_uncut(path, tmp_path / "m.so")
    for got, want in zip(
        UncutModel(tmp_path / "m.so")(*sample.values()), model.reference().run(sample).values(), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=0.03 * np.abs(want).max())


def test_tensors_that_leave_modules_have_their_names_in_the_import(dynamic: Path) -> None:
    model = read_model(dynamic)
    leaving = {name for names in model.modules().values() for name in names}
    assert leaving <= set(model.imported({}).graph.tensors)


def test_list_cuts_shows_the_modules(fixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    modules = {point.module for point in list_cuts(fixed)}
    assert {"backbone.0", "backbone.1"} <= modules
    assert main(["compile", str(fixed), "--list-cuts"]) == 0
    listed = capsys.readouterr().out
    assert "MODULE" in listed and "backbone.1" in listed


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        ("backbone.9", "no tensor or module 'backbone.9'; did you mean 'backbone"),
        ("backbon", "did you mean 'backbone'?"),
    ],
)
def test_an_unknown_module_has_the_nearest_ones(fixed: Path, tmp_path: Path, cut: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        compile_model(fixed, cut=cut, name="m", output=tmp_path)


def operators() -> Mapping[str, tuple[Callable[..., Any], list[Any]]]:
    f = torch.nn.functional
    x, y = torch.randn(2, 6, 8), torch.rand(2, 6, 8) + 0.5
    image = torch.randn(2, 4, 9, 9)
    index, table = torch.tensor([[0, 3], [5, -1]]), torch.randn(6, 8)
    heads = torch.randn(2, 4, 6, 8)
    mask = torch.rand(2, 1, 6, 6) > 0.4
    whole = torch.randint(0, 9, (2, 6))
    return {
        "alpha of a sum": (lambda a, b: torch.add(a, b, alpha=0.5) - torch.sub(a, b, alpha=3), [x, y]),
        "in place": (lambda a: (a * 1).add_(1).mul_(2).relu_(), [x]),
        "negative indices": (lambda t, i: t[i], [table, index]),
        "indices of two dimensions": (lambda a, i: a[:, i, i], [x, torch.tensor([0, 5, 2])]),
        "indices in front": (lambda a, i: a[i[0], i[1]], [table, torch.tensor([[0, 5], [7, 1]]) % 6]),
        "slices": (lambda a: a[:, -4:-1, ::2] + a[:, :3, :4], [x]),
        "a step back": (lambda a: a.flip(1), [x]),
        "select from the end": (lambda a: a[:, -1] * a.select(2, 0)[:, :1], [x]),
        "expand": (lambda a: a[:, :1].expand(-1, 6, -1) + a, [x]),
        "mask": (lambda a, m: torch.where(m & (a > 0)[:, None, :, :6], 1.0, -2.0), [x, mask]),
        "logic": (lambda a: ((a > 0) | (a < -1)) ^ ~(a > 0.5), [x]),
        "bits": (lambda a: (a & 3) | (a ^ 1), [whole]),
        "casts": (lambda a: a.to(torch.float32).mean(-1) + a.double().sum(-1).float(), [whole]),
        "clamps": (lambda a: a.clamp(min=-0.5).clamp(max=0.7).clamp_min(-0.2), [x]),
        "powers": (lambda a: a.pow(2) + a.rsqrt() + a.sqrt() + 2**a, [y]),
        "reductions": (lambda a: a.sum(1, keepdim=True) + a.amax(2, keepdim=True) + a.var(1, keepdim=True), [x]),
        "norm": (lambda a: f.normalize(a, dim=-1) + torch.linalg.vector_norm(a, dim=-1, keepdim=True), [x]),
        "arange": (lambda a: a + torch.arange(1, 9, 1) + torch.arange(8.0), [x]),
        "constants": (lambda a: a * torch.tensor([1.0, 2.0] * 4) + torch.full_like(a, 3), [x]),
        "new ones": (lambda a: a.new_ones(8, dtype=torch.bool) & (a > 0), [x]),
        "concatenation": (lambda a, b: torch.cat([a, b], -1) + torch.stack([a, b], -1).flatten(2), [x, y]),
        "pieces": (lambda a: [p * 2 for p in a.chunk(3, 1)] + list(a.split([2, 4], 1)), [x]),
        "attention": (lambda q: f.scaled_dot_product_attention(q, q * 2, q + 1), [heads]),
        "causal attention": (lambda q: f.scaled_dot_product_attention(q, q, q, is_causal=True, scale=0.3), [heads]),
        "masked attention": (lambda q, m: f.scaled_dot_product_attention(q, q, q, attn_mask=m), [heads, mask]),
        "masked rows": (
            lambda q, m: f.scaled_dot_product_attention(q, q, q, attn_mask=m),
            [heads, mask & (torch.arange(6) > 1)[:, None]],
        ),
        "added mask": (lambda q: f.scaled_dot_product_attention(q, q, q, attn_mask=torch.ones(6, 6).triu()), [heads]),
        "norms": (lambda a: f.layer_norm(a, (8,)) + f.group_norm(a, 3) + f.rms_norm(a, (8,)), [x]),
        "activations": (
            lambda a: f.gelu(a) + f.gelu(a, approximate="tanh") + f.silu(a) + f.hardswish(a) + f.elu(a),
            [x],
        ),
        "more activations": (lambda a: f.softplus(a) + f.leaky_relu(a, 0.2) + f.hardsigmoid(a) + f.hardswish(a), [x]),
        "pools": (lambda a: f.max_pool2d(a, 3, 2, 1) + f.avg_pool2d(a, 3, 2, 1), [image]),
        "pool with ceiling": (lambda a: f.max_pool2d(a, 2, ceil_mode=True), [image]),
        "resize": (
            lambda a: f.interpolate(a, scale_factor=2) + f.interpolate(a, size=(18, 18), mode="bilinear"),
            [image],
        ),
        "resize to corners": (lambda a: f.interpolate(a, size=(5, 7), mode="bilinear", align_corners=True), [image]),
        "padding": (lambda a: f.pad(a, (1, 2, 0, 3), value=0.5), [image]),
        "shuffle": (lambda a: f.pixel_shuffle(a, 2), [image]),
        "convolutions": (
            lambda a: f.conv2d(a, torch.ones(8, 2, 3, 3) / 9, stride=2, padding=1, groups=2, dilation=2).mean(1),
            [image],
        ),
        "transposed convolution": (
            lambda a: f.conv_transpose2d(a, torch.ones(4, 3, 3, 3) / 9, stride=2, padding=1, output_padding=1),
            [image],
        ),
        "cumulative sum": (lambda a: a.cumsum(1), [x]),
        "cumulative count": (lambda a: (a > 0).cumsum(1) + a.int().cumsum(1), [x]),
        "order": (lambda a: a.topk(3, dim=-1)[0] + a.argmax(-1, keepdim=True), [x]),
        "gather": (lambda a, i: a.gather(1, i[:, :, None].expand(-1, -1, 8) % 6), [x, whole]),
        "einsum": (lambda a, b: torch.einsum("bij,bkj->bik", a, b), [x, y]),
        "matrix products": (lambda a: a @ a.transpose(1, 2) + torch.baddbmm(a[:, :, :6], a, a.mT), [x]),
        "half": (lambda a: (a.half() @ a.half().mT).float(), [x]),
        "scatter": (lambda a, i: torch.zeros(2, 9).scatter(1, i, a[:, :, 0]), [x, torch.randperm(6).repeat(2, 1)]),
        "roll": (lambda a: a.roll(2, 1), [x]),
        "repeat": (lambda a: a.repeat(1, 2, 1) + a.repeat_interleave(2, 1), [x]),
        "triangle": (lambda a: a.tril() + a.triu(1), [x]),
        "lstm": (torch.nn.LSTM(8, 5, batch_first=True, bidirectional=True), [x]),
        "gru": (torch.nn.GRU(8, 5, batch_first=True), [x]),
    }


CASES = operators()


class Function(torch.nn.Module):  # type: ignore[misc]  # torch is not there for mypy
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Any) -> Any:
        result = self.function(*arguments)
        return result[0] if isinstance(self.function, torch.nn.RNNBase) else result


@pytest.mark.parametrize("case", CASES)
def test_an_operator_computes_what_pytorch_computes(case: str, tmp_path: Path) -> None:
    function, arguments = CASES[case]
    path = save(Function(function), tmp_path / "m.pt2", tuple(arguments))
    model = read_model(path)
    sample = {spec.name: a.numpy() for spec, a in zip(model.inputs({}), arguments, strict=True)}
    right = model.reference().run(sample)
    compile_uncut(path, tmp_path / "m.so")
    for ours, (name, theirs) in zip(UncutModel(tmp_path / "m.so")(*sample.values()), right.items(), strict=True):
        assert ours.dtype == theirs.dtype
        tolerance = 2e-2 if case == "half" else 1e-5
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance, err_msg=name)


def test_a_program_with_an_unknown_class_of_outputs_is_read_by_its_keys(tmp_path: Path) -> None:
    pytree = torch.utils._pytree

    class Result(dict[str, Any]):
        pass

    pytree.register_pytree_node(
        Result,
        lambda r: (list(r.values()), list(r)),
        lambda values, keys: Result(zip(keys, values, strict=True)),
        serialized_type_name="elsewhere.Result",
    )
    path = save(Function(lambda x: Result(first=x + 1, second=x * 2)), tmp_path / "m.pt2", (torch.randn(2),))
    pytree._deregister_pytree_node(Result)
    assert [spec.name for spec in read_model(path).imported({}).outputs] == ["first", "second"]


def test_a_file_with_a_pickled_object_is_not_opened(fixed: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(fixed.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("m/data/constants/opaque_obj_0", b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(InvalidArgument, match=r"holds a pickled object .*opaque_obj_0.*not opened"):
        list_cuts(path)


def test_damage_is_one_line(fixed: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(fixed) as whole, zipfile.ZipFile(path, "w") as part:
        for name in whole.namelist():
            if not name.endswith("weight_0"):
                part.writestr(name, whole.read(name))
    with pytest.raises(InvalidArgument, match=r"m\.pt2 cannot be read by PyTorch .*; save it again") as caught:
        list_cuts(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_plan_can_seal_its_weights(fixed: Path) -> None:
    origins = read_model(fixed).origins()
    assert "head.weight" in origins.weights
    assert origins.inputs == {"image"}
    assert any("head.weight" in sources for sources in origins.sources.values())


def test_without_pytorch_the_extra_is_named(fixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zmq_offload.compile.pytorch.model", None)
    with pytest.raises(FailedPrecondition, match=r"pip install 'zmq-offload\[torch\]'"):
        list_cuts(fixed)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {"num_layers": 2, "bidirectional": True}),
        ("GRU", {"num_layers": 2, "batch_first": True}),
        ("GRU", {"bias": False}),
        ("RNN", {"nonlinearity": "relu"}),
    ],
)
def test_recurrent_networks_are_loops_over_time(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    network = getattr(torch.nn, kind)(6, 5, **options)
    value = torch.randn(7, 3, 6)
    path = save(network, tmp_path / "m.pt2", (value,))
    compile_uncut(path, tmp_path / "m.so")
    y, h = network(value)
    expected = [y, *(h if kind == "LSTM" else [h])]
    for ours, theirs in zip(UncutModel(tmp_path / "m.so")(value.numpy()), expected, strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-5)


def test_projected_states_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = save(torch.nn.LSTM(6, 5, proj_size=2), tmp_path / "m.pt2", (torch.randn(7, 3, 6),))
    assert main(["compile", str(path), "--list-cuts"]) == 1
    (line,) = capfd.readouterr().err.splitlines()  # without TVM's own output
    assert "aten.lstm.input ('lstm'): its states are projected (proj_size)" in line


def test_convolutions_of_half_precision(tmp_path: Path) -> None:
    nn = torch.nn
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2, 2)).half()
    value = torch.randn(1, 3, 8, 8).half()
    compile_uncut(save(network, tmp_path / "m.pt2", (value,)), tmp_path / "m.so")
    (ours,) = UncutModel(tmp_path / "m.so")(value.numpy())
    assert ours.dtype == np.float16
    np.testing.assert_allclose(ours, network(value).detach().numpy(), atol=3e-3)


def test_a_pickle_in_the_place_of_tensors_is_not_opened(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "ran"), "w"))

    path = save(torch.nn.Linear(2, 2), tmp_path / "m.pt2", (torch.randn(1, 2),))
    torch.save(Evil(), tmp_path / "evil.pt")
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(tmp_path / "n.pt2", "w") as after:
        for name in before.namelist():
            evil = name.endswith(".pt")
            after.writestr(name, (tmp_path / "evil.pt").read_bytes() if evil else before.read(name))
    with pytest.raises(InvalidArgument, match="holds a pickled object, which is not opened"):
        list_cuts(tmp_path / "n.pt2")
    assert not (tmp_path / "ran").exists()
