"""Paddle's files: what numpy's own pickles hold is read, what we write numpy reads, and nothing else is let in."""

import collections
import pickle
import pickletools

import numpy as np
import pytest
import torch

from models.errors import ModelError
from models.layouts.paddle import NAMES, read_pdparams, write_pdparams
from models.layouts.reading import read_tensors


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    made = {f"x{n}": generator.standard_normal((3, 4)[:n]).astype(np.float32) for n in range(3)}
    made["fortran"] = np.asfortranarray(made["x2"])
    made["big-endian"] = made["x2"].astype(">f4")
    made["half"], made["double"] = made["x2"].astype(np.float16), made["x2"].astype(np.float64)
    made["empty"] = np.zeros((0, 4), dtype=np.float32)
    return made


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", [dict, collections.OrderedDict])
def test_numpy_pickles_of_every_protocol_are_read(arrays, tmp_path, protocol, kind):
    path = tmp_path / "model_state.pdparams"
    content = kind(arrays | {NAMES: {"x2": "embedding_0.w_0"}})
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    found = read_tensors(path)
    assert found.keys() == arrays.keys()
    for name, x in arrays.items():
        assert found[name].dtype == torch.from_numpy(x.astype(x.dtype.newbyteorder("="))).dtype, name
        np.testing.assert_array_equal(found[name].numpy(), x, err_msg=name)


@pytest.mark.filterwarnings("ignore:numpy.core is deprecated")
def test_what_is_written_is_an_ordinary_pickle_of_numpy_arrays(arrays, tmp_path):
    tensors = {
        name: torch.from_numpy(x.astype(x.dtype.newbyteorder("="))) for name, x in arrays.items() if x.dtype != ">f4"
    }
    tensors["transposed"] = tensors["x2"].T
    path = tmp_path / "a.pdparams"
    write_pdparams(path, tensors)
    content = pickle.loads(path.read_bytes())
    table = content.pop(NAMES)
    assert list(table) == list(content) == list(tensors)
    for name, x in tensors.items():
        assert content[name].dtype == x.numpy().dtype, name
        np.testing.assert_array_equal(content[name], x.numpy(), err_msg=name)
    named = {argument for opcode, argument, _ in pickletools.genops(path.read_bytes()) if opcode.name == "GLOBAL"}
    assert named == {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}  # as numpy 1 spells them
    back = read_pdparams(path)
    assert all(torch.equal(back[name], x) and back[name].dtype == x.dtype for name, x in tensors.items())
    write_pdparams(tmp_path / "b.pdparams", tensors)
    assert path.read_bytes() == (tmp_path / "b.pdparams").read_bytes()


class Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (exec, ("raise SystemExit('code was run')",), r"builtins\.exec"),
        (getattr, ("text", "upper"), r"builtins\.getattr"),
        (np.load, ("x.npy",), r"numpy\.load"),
        (np.fromfile, ("x",), "fromfile"),
    ],
)
def test_a_forbidden_name_is_refused_with_file_and_class(arrays, tmp_path, function, arguments, named):
    path = tmp_path / "evil.pdparams"
    path.write_bytes(pickle.dumps(arrays | {"z": Malicious(function, *arguments)}))
    with pytest.raises(ModelError, match=rf"evil\.pdparams names .*{named}.*could run code"):
        read_tensors(path)


def test_allowed_names_called_with_anything_do_nothing(tmp_path):
    """The stand-ins are no way to numpy's own functions, nor can a file change them for the next one."""
    path = tmp_path / "odd.pdparams"
    change = b"\x80\x02cnumpy\nndarray\n}(U\x06tensorU\x01xubcnumpy\nndarray\n)R."
    for content in (
        pickle.dumps(np.zeros(3)),
        pickle.dumps([1, 2]),
        b"\x80\x02cnumpy\nndarray\n.",
        change,
        b"\x80\x02}(U\x01xcnumpy\ndtype\nK\x01K\x02K\x03K\x04(K\x01tRu.",
    ):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"odd\.pdparams"):
            read_pdparams(path)
    path.write_bytes(pickle.dumps({"x": np.zeros(3)}))
    assert torch.equal(read_pdparams(path)["x"], torch.zeros(3, dtype=torch.float64))


def test_damaged_files_and_other_arrays_are_refused(arrays, tmp_path):
    path = tmp_path / "a.pdparams"
    write_pdparams(path, {"x": torch.zeros(100)})
    whole = path.read_bytes()
    for content in (b"", whole[:-50], whole[:20], b"PK\x03\x04 a zip file", whole.replace(b"numpy\n", b"nympy\n")):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"a\.pdparams"):
            read_tensors(path)
    path.write_bytes(whole.replace(b"J\x64\x00\x00\x00", b"J\x65\x00\x00\x00"))  # 101 numbers in the bytes of 100
    with pytest.raises(ModelError, match=r"a\.pdparams: x has 400 bytes, which do not fill shape \[101\]"):
        read_tensors(path)
    for x in (np.zeros(3, dtype=np.uint16), np.array([object()]), np.array(["a"]), np.zeros(2, dtype="f4,f4")):
        path.write_bytes(pickle.dumps({"x": x}) if x.dtype != object else pickle.dumps({"x": np.array([{}])}))
        with pytest.raises(ModelError, match=r"a\.pdparams: x is an array of .* where floating-point"):
            read_tensors(path)
    with pytest.raises(ModelError, match="does not exist"):
        read_tensors(tmp_path / "absent.pdparams")
