"""Files that are cut, wrong or hostile: refused with the reason, whatever they declare."""

import base64
import io
import json
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
import safetensors.torch
import torch

from emosteer import formats
from emosteer.bank import Bank
from emosteer.formats import gguf_container

from ..patience import PATIENCE
from .banks import SUFFIX, full

V = torch.tensor([3.0, 4.0])
NAN = torch.tensor([3.0, float("nan")])


def gguf(tensors=None, **values):
    values = {"general.architecture": "controlvector", "controlvector.model_hint": "x", **values}
    given = {"direction.1": V.numpy()} if tensors is None else tensors
    return gguf_container.write({k: v for k, v in values.items() if v is not None}, given)


def gguf_raw(
    *,
    tensors=1,
    values=1,
    value=None,
    shape=(2,),
    kind=0,
    offset=0,
    name=b"direction.1",
    copies=1,
    magic=b"GGUF",
    version=3,
):
    """A header written by hand, so that it may lie."""
    text = lambda raw: struct.pack("<Q", len(raw)) + raw  # noqa: E731
    head = magic + struct.pack("<IQQ", version, tensors, values)
    head += text(b"general.architecture") + struct.pack("<I", 8) + text(b"controlvector") + (value or b"")
    head += copies * (text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset))
    return head + b"\0" * (-len(head) % 32) + V.numpy().tobytes() + b"\0" * 24


def array_value(kind, n):
    return struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, kind, n)


GGUF = {
    "empty": (b"", "begins with b''"),
    "another magic": (gguf_raw(magic=b"GGML"), "begins with b'GGML'"),
    "another version": (gguf_raw(version=1), "version 1 GGUF"),
    "big-endian": (gguf_raw(version=3 << 24), "big-endian"),
    "no architecture": (gguf(**{"general.architecture": None}), "general.architecture is None"),
    "a model": (gguf(**{"general.architecture": "llama"}), "general.architecture is 'llama'"),
    "no tensor": (gguf({}), "it holds no vector"),
    "another tensor": (gguf({"output.weight": V.numpy()}), "has a tensor 'output.weight'"),
    "no number": (gguf({"direction.x": V.numpy()}), "must be the number of a layer, got 'x'"),
    "negative": (gguf({"direction.-1": V.numpy()}), "must be the number of a layer, got '-1'"),
    "two spellings": (gguf({"direction.01": V.numpy()}), "must be the number of a layer, got '01'"),
    "far layer": (gguf({"direction.99999999": V.numpy()}), "layers must lie in 0..9999"),
    "2-D": (gguf({"direction.1": np.ones((2, 2))}), "must have one dimension, got shape \\[2, 2\\]"),
    "widths": (gguf({"direction.1": np.ones(2), "direction.2": np.ones(3)}), r"at all layers, got \[1, 2\] at 1"),
    "nan": (gguf({"direction.1": NAN.numpy()}), "direction.1 has values that are not finite"),
    "zero": (gguf({"direction.1": np.zeros(4)}), "layer 1 is zero"),
    "empty row": (gguf({"direction.1": np.zeros(0)}), "must have shape \\[D\\]"),
    "huge shape": (gguf_raw(shape=(2**62,)), "declares shape \\[4611686018427387904\\].*are left"),
    "huge product": (gguf_raw(shape=(2**62, 2**62, 2**62)), "are left"),
    "many dimensions": (gguf_raw(shape=(1,) * 9), "9 dimensions"),
    "far offset": (gguf_raw(offset=1 << 40), "where 0 are left"),
    "odd offset": (gguf_raw(offset=4), "no multiple of 32"),
    "quantised": (gguf_raw(kind=8, shape=(32,)), "is Q8_0; F32, F16 and F64 are read"),
    "unknown type": (gguf_raw(kind=99), "of type 99"),
    "twice": (gguf_raw(tensors=2, copies=2), "'direction.1' is there twice"),
    "many tensors": (gguf_raw(tensors=2**60), "1152921504606846976 tensors declared"),
    "many values": (gguf_raw(values=2**60), "key-values declared"),
    "endless array": (gguf_raw(values=2, value=array_value(0, 2**62)), "declares 4611686018427387904 bytes"),
    "endless strings": (gguf_raw(values=2, value=array_value(8, 2**61)), "strings declared"),
    "array of arrays": (gguf_raw(values=2, value=array_value(9, 1)), "array of type 9"),
    "unknown value": (gguf_raw(values=2, value=struct.pack("<Q", 1) + b"a" + struct.pack("<I", 77)), "type 77"),
    "name not UTF-8": (gguf_raw(name=b"\xff\xfe"), "not UTF-8"),
    "alignment": (gguf(**{"general.alignment": 3}), "power of two, got 3"),
    "broken note": (gguf(**{"emosteer.note": "{"}), "its emosteer note is not valid JSON"),
    "note of another version": (gguf(**{"emosteer.note": '{"version": 9}'}), "must be version 1"),
    "note of other layers": (
        gguf(**{"emosteer.note": '{"version": 1, "names": ["a"], "scale": {"2": 1.0}}'}),
        r"'scale' for layers \[2\], the file has \[1\]",
    ),
}  # fmt: skip

SVEC = {
    "empty": ("", "not valid JSON"),
    "cut": ('{"directions": {"1": [1, 2', "not valid JSON"),
    "no object": ("[1]", 'with an object "directions"'),
    "no directions": ('{"model_type": "x"}', 'with an object "directions"'),
    "no layer": ('{"directions": {}}', "holds no vector"),
    "no number": ('{"directions": {"one": [1, 2]}}', "got 'one'"),
    "twice": ('{"directions": {"1": [1, 2], "1": [3, 4]}}', "the key '1' is there twice"),
    "nan": ('{"directions": {"1": [1, NaN]}}', "NaN is not a finite number"),
    "infinite": ('{"directions": {"1": [1, 1e999]}}', "not finite"),
    "too large": ('{"directions": {"1": [1, 1e39]}}', "not finite in float32"),
    "ragged": ('{"directions": {"1": [[1, 2], [3]]}}', "a list of numbers"),
    "deep": ('{"directions": {"1": [[[1]]]}}', r"must have shape \[D\] or \[K, D\], got \[1, 1, 1\]"),
    "very deep": ('{"directions": ' + "[" * 200_000, "nested too deeply"),
    "strings": ('{"directions": {"1": ["a"]}}', "a list of numbers"),
    "long integer": ('{"directions": {"1": [' + "9" * 400 + "]}}", "a list of numbers"),
    "longer integer": ('{"directions": {"1": [' + "9" * 9000 + "]}}", "integer string conversion"),
    "scalar": ('{"directions": {"1": 5}}', r"must have shape"),
    "heads": ('{"directions": {"1": [1, 2]}, "num_heads": 4, "head_dim": 2}', "attention heads"),
    "shapes": ('{"directions": {"1": [1, 2], "2": [1]}}', "one shape at all layers"),
}  # fmt: skip


def payload(**change):
    data = V.numpy().tobytes()
    entry = {"shape": [2], "data": base64.b64encode(data).decode()}
    said = {"version": 1, "kind": "direction", "tensors": {"layer.1": entry}, "extra": {}, "sha256": "0" * 64}
    for key, value in change.items():
        (entry if key in ("shape", "data") else said)[key] = value
    return json.dumps(said)


EASYSTEER = {
    "router": (payload(kind="router"), "its kind is 'router'"),
    "version": (payload(version=2), "version 2"),
    "extra": (payload(extra={"layer": 1}), '"extra" must be empty'),
    "digest": (payload(), "sha256 does not match"),
    "shape": (payload(shape=[10**12]), r"declares shape \[1000000000000\], its data has 8 bytes"),
    "base64": (payload(data="!!"), "not base64"),
    "name": (payload(tensors={"h1.layer.1": {}}), "has a tensor 'h1.layer.1'"),
    "no payload": ('{"a": 1}', 'with "kind"'),
}


def torch_bytes(content, pickle=None, compress=False, twice=False):
    """A file of torch.save, its pickle perhaps another's."""
    made, out = io.BytesIO(), io.BytesIO()
    torch.save(content, made)
    with zipfile.ZipFile(made) as old, zipfile.ZipFile(out, "w") as new:
        for member in old.infolist():
            raw = old.read(member)
            if pickle is not None and member.filename.endswith("data.pkl"):
                raw = pickle(raw) if callable(pickle) else pickle
            kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
            new.writestr(member.filename, raw, kind)
            if twice and member.filename.endswith("data.pkl"):
                with pytest.warns(UserWarning, match="Duplicate name"):
                    new.writestr(member.filename, raw, kind)
    return out.getvalue()


class Code:
    def __reduce__(self):
        import os

        return os.system, ("touch /tmp/emosteer-was-here",)


def hook(**change):
    return torch_bytes(
        {"layers.1": {"steering_vector": V, "steering_coefficient": 2.0, "action": "add", **change}}
    )


huge = lambda raw: raw.replace(b"K\x02", b"J" + struct.pack("<i", 2**31 - 1))  # noqa: E731
TORCH = {
    "empty": (b"", "no archive of torch.save"),
    "no zip": (pickle.dumps({1: 2}), "no archive of torch.save"),
    "broken zip": (b"PK\x03\x04" + b"\0" * 100, "its archive is broken"),
    "code": (torch_bytes(V, pickle.dumps(Code(), 2)), "names 'posix.system'.*may run code"),
    "code, newer pickle": (torch_bytes(V, pickle.dumps(Code(), 4)), "uses STACK_GLOBAL"),
    "whole module": (torch_bytes(torch.nn.Linear(2, 2)), "names 'torch.nn.modules.linear.Linear'"),
    "numpy": (torch_bytes({1: np.ones(2)}), "which is neither a tensor nor a plain container"),
    "compressed": (torch_bytes(V, compress=True), "is compressed, which torch.save never does"),
    "member twice": (torch_bytes(V, twice=True), "is there twice"),
    "broken pickle": (torch_bytes(V, b"\x80\x02}q\x00("), "its pickle is broken"),
    "no stop": (torch_bytes(V, lambda raw: raw[:-1]), "its pickle is broken"),
    "huge shape": (torch_bytes(V, huge), "declares 2147483647, more than the"),
    "repeated by strides": (torch_bytes(torch.ones(1).expand(3, 1 << 19)), "only 1 are stored"),
    "list": (torch_bytes([V]), "holds list, which is none of"),
    "string": (torch_bytes("a"), "holds str"),
    "no layer": (torch_bytes({"a": V}), "holds dict"),
    "3-D": (torch_bytes(torch.ones(2, 2, 2)), r"must have shape \[D\] or \[K, D\]"),
    "1-D": (torch_bytes(V), "does not say of which layer"),
    "all zero": (torch_bytes(torch.zeros(3, 2)), "holds no vector"),
    "nan": (torch_bytes(torch.stack([V, NAN])), "not finite"),
    "sparse": (torch_bytes(torch.eye(2).to_sparse()), "names 'torch._utils._rebuild_sparse_tensor'"),
    "complex": (torch_bytes(torch.ones(2, 2, dtype=torch.complex64)), "plain real numbers"),
    "bool": (torch_bytes(torch.ones(2, 2, dtype=torch.bool)), "plain real numbers"),
    "many layers": (torch_bytes(torch.ones(20_000, 1)), "no model has so many"),
    "layer type": (torch_bytes({"layer_activations": {1: V}, "layer_type": "mlp"}), "only decoder_block"),
    "layers": (torch_bytes({"layer_activations": [V]}), "must be a dict, got list"),
    "matrix": (torch_bytes({1: torch.eye(2)}), "must hold one vector"),
    "no tensor": (torch_bytes({1: 5}), "layer 1 must hold a tensor, got int"),
    "negative layer": (torch_bytes({-1: V}), "layers must lie in 0..9999, got -1"),
    "hookpoint": (
        torch_bytes({"layers.3.mlp": {"steering_vector": V, "action": "add"}}),
        "not the output of a block",
    ),
    "action": (hook(action="replace"), "has the action 'replace'"),
    "head": (hook(head_index=3), "one attention head"),
    "coefficient": (hook(steering_coefficient="2"), "finite number as steering_coefficient"),
    "bias": (hook(bias=V), 'the action "add" does not take'),
    "bias of another shape": (hook(action="clamp", bias=torch.ones(3)), "the vector's shape"),
    "vector": (hook(steering_vector=torch.eye(2)), r"steering_vector of shape \[D\]"),
}


def npz_bytes(compress=True, **arrays):
    out = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(out, **arrays)
    return out.getvalue()


def npz_raw(header, body=b"", name="directions.1.npy"):
    out = io.BytesIO()
    text = repr(header).encode() if not isinstance(header, bytes) else header
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n" + body)
    return out.getvalue()


def npy(**change):
    return {"descr": "<f4", "fortran_order": False, "shape": (2,), **change}


ONE = np.ones((1, 2), np.float32)
NPZ = {
    "empty": (b"", "its archive is broken"),
    "no zip": (b"\x93NUMPY", "its archive is broken"),
    "bomb": (npz_bytes(**{"directions.1": np.zeros((1, 30_000_000), np.float32)}), "unpack to 120000"),
    "huge shape": (npz_raw(npy(shape=(1 << 50,))), r"declares shape \[1125899906842624\]"),
    "negative shape": (npz_raw(npy(shape=(-1, -4)), b"\0" * 64), r"declares shape \[-1, -4\]"),
    "cut": (npz_raw(npy(shape=(2,)), b"\0\0"), "where|cut short"),
    "code": (npz_bytes(names=np.array([Code()], dtype=object)), "Python objects, which may run code"),
    "header": (npz_raw(b"__import__('os').system('touch /tmp/emosteer-was-here')"), "header"),
    "no npy": (npz_raw(npy(), name="a.txt")[:-30], "its archive is broken"),
    "name": (npz_bytes(weights=ONE), "has an array 'weights', whose name is no layer's"),
    "field": (npz_bytes(names=np.array(["a"]), **{"other.1": ONE}), "has an array 'other.1'"),
    "no directions": (npz_bytes(names=np.array(["a"])), "names but no directions"),
    "names": (npz_bytes(names=np.array([1]), **{"directions.1": ONE}), "must be a list of strings"),
    "too many names": (
        npz_bytes(names=np.array(["a", "b"]), **{"directions.1": ONE}),
        "2 names for 1 vectors",
    ),
    "integers": (npz_bytes(layer_1=np.ones(2, int)), "must hold floating-point numbers, got int64"),
    "nan": (npz_bytes(layer_1=NAN.numpy()), "not finite"),
    "layer twice": (npz_bytes(layer_1=V.numpy(), **{"1": V.numpy()}), "layer 1 is there twice"),
    "provenance": (
        npz_bytes(names=np.array(["a"]), provenance=np.array("["), **{"directions.1": ONE}),
        "its provenance is not valid JSON",
    ),
    "mean": (
        npz_bytes(names=np.array(["a"]), **{"directions.1": ONE, "mean.1": np.ones(3)}),
        r"mean\[1\] must have shape \[2\]",
    ),
}


def tensors(content, **metadata):
    return safetensors.torch.save(content, metadata or None)


def lite(content, **cfg):
    return tensors(content, cfg=json.dumps({"method": "mean_diff", "target": "residual", **cfg}))


SAFETENSORS = {
    "no saklas sidecar": (tensors({"layer_1": V}), "x.json is not beside it"),
    "cfg": (tensors({"layer1.v": V}, cfg="{"), "header is not valid JSON"),
    "submodule": (lite({"layer1.v": V}, target_submodule="mlp"), "inside a block"),
    "state": (
        lite({"layer1.V": V, "layer1.S": V.clone()}, method="chars"),
        "the method 'chars' keeps 'layer1",
    ),
    "2-D": (lite({"layer1.v": torch.eye(2)}), r"must have shape \[D\]"),
    "nan": (lite({"layer1.v": NAN}), "not finite"),
    "unknown": (tensors({"a": V}), "its format is None"),
    "huge header": (struct.pack("<Q", 2**62) + b"{}", "not a valid emosteer bank"),
    "lying header": (
        (lambda head: struct.pack("<Q", len(head)) + head)(
            b'{"layer_1":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
        ),
        "not a valid emosteer bank",
    ),
}

BY_SUFFIX = {
    ".gguf": GGUF, ".svec": SVEC, ".json": EASYSTEER, ".pt": TORCH, ".npz": NPZ, ".safetensors": SAFETENSORS,
}  # fmt: skip
CASES = [
    pytest.param(suffix, content, message, id=f"{suffix[1:]}: {name}")
    for suffix, cases in BY_SUFFIX.items()
    for name, (content, message) in cases.items()
]


@pytest.mark.parametrize(("suffix", "content", "message"), CASES)
def test_refused_with_the_reason(tmp_path, suffix, content, message):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        Bank.load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("change", ["sha", "version", "fields", "nan", "2-D"])
def test_saklas(tmp_path, change):
    path = tmp_path / "x.safetensors"
    full().save(path, format="saklas")
    said = json.loads(path.with_suffix(".json").read_text())
    if change == "sha":
        path.write_bytes(tensors({"layer_1": V}))
    elif change in ("nan", "2-D"):
        import hashlib

        content = tensors({"layer_1": NAN if change == "nan" else torch.eye(2)})
        path.write_bytes(content)
        said["tensor_sha256"] = hashlib.sha256(content).hexdigest()
    elif change == "version":
        said["format_version"] = 5
    else:
        said["more"] = 1
    path.with_suffix(".json").write_text(json.dumps(said))
    with pytest.raises(
        ValueError, match="another SHA-256|format_version 5|just format_version|not finite|of shape"
    ):
        Bank.load(path)


@pytest.mark.parametrize("name", SUFFIX)
def test_no_cut_gets_through(tmp_path, name):
    path = tmp_path / f"x{SUFFIX[name]}"
    full().save(path, format=name)
    content = path.read_bytes()
    for length in sorted({0, 1, 3, 4, 8, 30, len(content) // 4, len(content) // 2, len(content) - 1}):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is not a valid|holds no valid"):
            Bank.load(path, format=name)


def test_a_note_that_does_not_belong(tmp_path):
    """A stranger's note may not make of a file what other libraries do not see in it."""
    path = tmp_path / "x.gguf"
    full(layers=(1,)).save(path)
    values, stored = gguf_container.read(memoryview(path.read_bytes()))
    for change in (
        dict(factor={"1": [1e-3]}),
        dict(factor={"1": [0.0]}),
        dict(factor={"1": ["a"]}),
        dict(magnitude={}),
        dict(names=["a", "b"]),
        dict(provenance=3),
        dict(ulps="!"),
        dict(ulps=base64.b64encode(zlib.compress(b"\x7f" * 24)).decode()),
        dict(ulps=base64.b64encode(zlib.compress(b"\0" * 50_000_000, 9)).decode()),
    ):
        said = {**json.loads(values["emosteer.note"]), **change}
        plain = {k: v for k, v in values.items() if k != "emosteer.note"}
        path.write_bytes(gguf_container.write({**plain, "emosteer.note": json.dumps(said)}, stored))
        with pytest.raises(ValueError, match="its emosteer note"):
            Bank.load(path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no bank at .*x\.gguf"):
        Bank.load(tmp_path / "x.gguf")
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere; make it first"):
        full().save(tmp_path / "nowhere" / "x.gguf")


CHILD = """
import pathlib, resource, sys
import torch, numpy, safetensors.torch
from emosteer import formats
for name in formats.MODULES: formats.module(name)
import torch._weights_only_unpickler, torch._utils
torch.serialization.safe_globals([])
folder = pathlib.Path(sys.argv[1])
now = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (160 << 20),) * 2)
from emosteer.bank import Bank
for path in sorted(folder.iterdir()):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        Bank.load(path)
    except ValueError as error:
        assert 'memory' not in str(error).lower(), (path, error)
    else:
        raise SystemExit(f'{path} was taken')
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100 << 10, (path, grown)
print('refused')
"""


def test_hostile_files_take_no_memory(tmp_path):
    """All of them in a process that may grow by 160 MiB, none by more than 100."""
    hostile = {
        ".gguf": (
            "huge shape",
            "huge product",
            "many tensors",
            "many values",
            "endless array",
            "endless strings",
        ),
        ".npz": ("bomb", "huge shape"),
        ".pt": ("huge shape", "repeated by strides", "code", "compressed"),
        ".safetensors": ("huge header", "lying header"),
        ".json": ("shape",),
        ".svec": ("very deep", "longer integer"),
    }
    for suffix, names in hostile.items():
        for i, name in enumerate(names):
            content = BY_SUFFIX[suffix][name][0]
            (tmp_path / f"{i}{suffix}").write_bytes(
                content if isinstance(content, bytes) else content.encode()
            )
    assert resource.getrlimit(resource.RLIMIT_AS)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stdout == "refused\n", done.stderr[-2000:]
    assert formats.MODULES
