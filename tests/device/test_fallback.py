"""Device bundles with fallbacks: what is written, what is refused, what they compute."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import onnx_models
from tests.support.bundle_secrets import contents, four_byte_values
from tests.support.local_client import LocalClient, run_uncut
from zmq_offload.artifacts.manifest import MANIFEST, Manifest
from zmq_offload.artifacts.repository import checksum
from zmq_offload.cli.main import main
from zmq_offload.compile import Compiled, compile_model
from zmq_offload.device.model import load
from zmq_offload.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable

X = onnx_models.random(2, 8, seed=11)
LIBRARY_FILE = "fallback_mlp.so"


@pytest.fixture(scope="session")
def compiled(mlp: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """As `compiled_mlp`, with a fallback. Not to be changed."""
    output = tmp_path_factory.mktemp("fallback")
    shape = {"x": (2, 8)}
    return compile_model(mlp, inputs=shape, cut=["h2"], until=["h4"], name="mlp", output=output, with_fallback=True)


@pytest.fixture
def bundle(compiled: Compiled, tmp_path: Path) -> Path:
    """A bundle to modify."""
    return Path(shutil.copytree(compiled.device, tmp_path / "device"))


@pytest.fixture
def client(compiled: Compiled) -> LocalClient:
    return LocalClient(compiled.subgraphs[0].parent.parent)


def test_the_manifest_says_that_it_is_not_sealed_and_what_the_fallback_is(
    compiled: Compiled, compiled_mlp: Compiled
) -> None:
    said = json.loads((compiled.device / MANIFEST).read_text())
    assert said["sealed"] is False
    (fallback,) = said["fallback"]
    assert fallback == {
        "model": "mlp",
        "version": 1,
        "library": LIBRARY_FILE,
        "checksum": checksum(compiled.device / LIBRARY_FILE),
        "inputs": said["offloaded"][0]["inputs"],
        "outputs": said["offloaded"][0]["outputs"],
    }
    sealed = json.loads((compiled_mlp.device / MANIFEST).read_text())
    assert sealed["sealed"] is True and sealed["fallback"] == []
    # The weights are in the fallback, and without a fallback nowhere.
    weights = onnx_models.random(16, 8, seed=2).view("u4")
    assert np.isin(weights, four_byte_values((compiled.device / LIBRARY_FILE).read_bytes())).all()
    assert not np.isin(weights, four_byte_values(contents(compiled_mlp.device))).any()


def test_all_ways_compute_the_same(compiled: Compiled, client: LocalClient, mlp: Path) -> None:
    expected = run_uncut(mlp, {"x": (2, 8)}, [X])[0]
    with load(compiled.device, client=client, offload="never") as model:
        np.testing.assert_allclose(model(X), expected, atol=1e-5)
        assert client.calls == [] and model.offload == "never"
        for mode in ("always", "auto"):
            model.offload = mode  # type: ignore[assignment]
            for _ in range(8):
                np.testing.assert_allclose(model(X), expected, atol=1e-5)
        counts = model.statistics
        assert counts.offloaded + counts.local == 17 and counts.offloaded >= 8 and counts.local >= 4
        client.error = Unavailable("the link is gone")
        for found in model.map([X] * 40, depth=4):
            np.testing.assert_allclose(found, expected, atol=1e-5)
        assert model.statistics.failed == 0 and model.statistics.fell_back >= 1
        model.offload = "always"
        with pytest.raises(Unavailable, match="the link is gone"):
            model(X)


def test_a_sealed_bundle_can_only_offload(compiled_mlp: Compiled, client: LocalClient) -> None:
    for mode in ("never", "auto"):
        with pytest.raises(FailedPrecondition, match=r"needs a fallback of 'mlp' .* compile it with --with-fallback"):
            load(compiled_mlp.device, client=client, offload=mode)  # type: ignore[arg-type]
        with pytest.raises(FailedPrecondition, match="--with-fallback"):
            load(compiled_mlp.device, broker="tcp://127.0.0.1:1", offload=mode)  # type: ignore[arg-type]
    with load(compiled_mlp.device, client=client) as model:
        with pytest.raises(InvalidArgument, match="offload 'sometimes' is not one of"):
            model.offload = "sometimes"  # type: ignore[assignment]
        assert model.offload == "always"


def edit(bundle: Path, **changes: Any) -> None:
    """Change the manifest. Names that begin with `offloaded_` and `fallback_` change the entry of the region and of its
    fallback."""
    said = json.loads((bundle / MANIFEST).read_text())
    for key, value in changes.items():
        if key.startswith("fallback_"):
            said["fallback"][0][key.removeprefix("fallback_")] = value
        elif key.startswith("offloaded_"):
            said["offloaded"][0][key.removeprefix("offloaded_")] = value
        else:
            said[key] = value
    (bundle / MANIFEST).write_text(json.dumps(said))


OTHER = [{"name": "h2", "datatype": "FP32", "shape": [3, 16]}]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"fallback_inputs": OTHER},
            r"the two halves of 'mlp' differ: the fallback's inputs are h2 FP32\[3,16\], the region's "
            r"h2 FP32\[2,16\]; compile the bundle again",
        ),
        ({"fallback_outputs": OTHER}, r"the two halves of 'mlp' differ: the fallback's outputs are h2 FP32\[3,16\]"),
        (
            {"fallback_checksum": "sha256:00"},
            rf"{LIBRARY_FILE} is damaged: its checksum is sha256:\w+, manifest\.json says sha256:00",
        ),
        (
            {"fallback_model": "mlp2", "fallback_library": "fallback_mlp2.so"},
            "is of 'mlp2', which the device does not call",
        ),
        (
            {"fallback_library": "../device.so"},
            r"damaged: fallback\[0\]: library of model 'mlp' is '\.\./device\.so'; expected 'fallback_mlp\.so'",
        ),
        ({"fallback_version": 0}, r"damaged: fallback\[0\]\.version is 0; expected int >= 1"),
        (
            {"fallback_version": 2, "offloaded_version": 1},
            "the two halves of 'mlp' differ: the fallback is of version 2, the device asks for 1; compile",
        ),
        ({"sealed": True}, "damaged: sealed is True, with 1 fallback entries"),
        ({"fallback": []}, "damaged: sealed is False, with 0 fallback entries"),
        ({"fallback": [{}]}, r"damaged: fallback\[0\]: key 'model' is missing"),
        ({"fallback": 3}, "is damaged: fallback is 3; expected array"),
    ],
)
def test_a_bundle_whose_halves_differ_is_refused(
    bundle: Path, client: LocalClient, changes: dict[str, Any], says: str
) -> None:
    edit(bundle, **changes)
    with pytest.raises(FailedPrecondition, match=says):
        load(bundle, client=client)


def test_a_fallback_that_is_missing_or_of_another_build_is_refused(bundle: Path, client: LocalClient) -> None:
    shutil.copy(bundle / "device.so", bundle / LIBRARY_FILE)
    with pytest.raises(FailedPrecondition, match=f"{LIBRARY_FILE} is damaged"):
        load(bundle, client=client)
    (bundle / LIBRARY_FILE).unlink()
    with pytest.raises(FailedPrecondition, match=f"{LIBRARY_FILE}: No such file"):
        load(bundle, client=client)


def test_a_region_has_one_fallback(bundle: Path, client: LocalClient) -> None:
    said = json.loads((bundle / MANIFEST).read_text())
    edit(bundle, fallback=said["fallback"] * 2)
    with pytest.raises(FailedPrecondition, match="an offloaded region has two fallbacks"):
        load(bundle, client=client)


def test_a_fallback_of_another_version_than_the_device_asks_for_is_not_built(mlp: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"inputs": {"x": (2, 8)}, "cut": "h2", "name": "m", "output": tmp_path}
    with pytest.raises(InvalidArgument, match="fallback of 'm' would be version 1, but the device asks for versi"):
        compile_model(mlp, **options, with_fallback=True, policy=3)
    compiled = compile_model(mlp, **options, with_fallback=True, policy=3, version=3)
    assert [fallback.version for fallback in compiled.manifest.fallback] == [3]


def test_a_bundle_from_before_fallbacks_is_sealed(compiled_mlp: Compiled, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(compiled_mlp.device, tmp_path / "device"))
    said = json.loads((bundle / MANIFEST).read_text())
    del said["sealed"], said["fallback"]
    (bundle / MANIFEST).write_text(json.dumps(said))
    assert Manifest.read(bundle).fallback == ()


def test_the_command_writes_it_and_says_so(mlp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compile", str(mlp), "--input", "x=2,8", "--cut", "h2", "--name", "m", "-o", str(tmp_path), "--quiet"]
    assert main([*command, "--with-fallback"]) == 0
    assert "not sealed" in capsys.readouterr().out
    assert (tmp_path / "device" / "fallback_m.so").is_file()
    assert main([*command, "--with-fallback", "--only-subgraph"]) == 1
    assert "--with-fallback changes the device bundle" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert not (tmp_path / "device" / "fallback_m.so").exists()


def test_an_item_that_does_not_fit_is_named_in_its_place(compiled: Compiled, client: LocalClient) -> None:
    items: list[Any] = [X, X, X[:1], X, X.astype("f8"), X]
    with load(compiled.device, client=client, offload="never") as model:
        results = model.map(items, depth=3)
        for _ in range(2):
            np.testing.assert_array_equal(next(results), model(X))
        with pytest.raises(InvalidArgument, match=r"item 2: the model: input 'x' has shape \[1, 8\], it takes x FP32"):
            next(results)
        assert list(results) == []
        found = list(model.map(items, depth=3, return_exceptions=True))
        assert [isinstance(f, InvalidArgument) for f in found] == [False, False, True, False, True, False]
        assert "item 4: the model: input 'x' has datatype FP64" in str(found[4])


def test_submit_and_asyncio(compiled: Compiled, client: LocalClient, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(compiled.device, client=client, offload="never") as model:
        expected = model(X)
        np.testing.assert_array_equal(model.submit(X).result(20), expected)
        np.testing.assert_array_equal(model.submit(x=X).result(20), expected)
        with pytest.raises(InvalidArgument, match="input 'x' has shape"):
            model.submit(X[:1])

        async def several() -> list[Any]:
            every = await asyncio.gather(*(model.acall(X + i) for i in range(6)))
            return [*every, *[y async for y in model.amap([X] * 5, depth=2)]]

        found = asyncio.run(several())
        np.testing.assert_array_equal(found[0], expected)
        np.testing.assert_array_equal(found[6:], [expected] * 5)
        with monkeypatch.context() as patch:
            patch.setattr("zmq_offload.device.offloaded_model.OUTSTANDING", 0)
            with pytest.raises(ResourceExhausted, match="outstanding; wait for one of them"):
                model.submit(X)
    late = model.submit(X)
    with pytest.raises(FailedPrecondition, match="the model is closed"):
        late.result(20)


def test_a_bundle_that_was_compiled_again_is_loaded_again(tmp_path: Path, mlp: Path) -> None:
    ways: dict[str, Any] = {"inputs": {"x": (2, 8)}, "output": tmp_path, "force": True, "with_fallback": True}
    first = compile_model(mlp, cut="h2", until="h4", name="m", **ways)
    client = LocalClient(first.subgraphs[0].parent.parent)
    expected = run_uncut(mlp, {"x": (2, 8)}, [X])[0]
    with load(first.device, client=client, offload="never") as before:
        np.testing.assert_allclose(before(X), expected, atol=1e-5)
        # Another cut at the same place on disk: neither half of the first bundle fits it.
        second = compile_model(mlp, cut="x", until="h2", name="m", **ways)
        with load(second.device, client=client, offload="never") as after:
            np.testing.assert_allclose(after(X), expected, atol=1e-5)
            np.testing.assert_allclose(before(X), expected, atol=1e-5)
