"""Paddle's `.pdparams` files, read without running anything in them, and written without Paddle.

Such a file is a plain pickle of a dictionary: parameter name -> numpy array, and a table of Paddle's internal names
(RNAErnie specification 7.2). The reader lets a pickle name numpy's arrays and little else, and puts its own inert
classes in their place: no numpy code ever sees what the file says but `frombuffer`, with sizes checked before. The
writer spells the pickle out, because numpy 2 would write names that the numpy of the authors' environment lacks.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.errors import ModelError

SUFFIX = ".pdparams"
NAMES = "StructuredToParameterName@@"  # Paddle's table: structured name -> internal name; not a parameter
PROTOCOL = 4
FLOATS = ("f2", "f4", "f8")


def read_pdparams(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pdparams` file on the CPU, in the file's dtype and layout (linear weights are (in, out)).

    Entries that are not arrays, such as Paddle's table of names, are left out. Raises ModelError if the file is
    missing or damaged, is no such pickle, holds arrays of another kind than floating-point numbers, or names any class
    or function but numpy's arrays.
    """
    if not path.is_file():
        raise ModelError(f"{path} does not exist or is not a file")
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, path).load()
    except ModelError:
        raise
    except (pickle.UnpicklingError, EOFError, ArithmeticError, AttributeError, LookupError, MemoryError) as e:
        raise _damaged(path, e) from e
    except (RecursionError, TypeError, ValueError) as e:  # whatever a broken stream makes of itself
        raise _damaged(path, e) from e
    if not isinstance(content, dict):
        raise ModelError(
            f"{path} holds a {type(content).__name__.lstrip('_')} where a dictionary of arrays was expected"
        )
    return {str(name): x.tensor(f"{path}: {name}") for name, x in content.items() if isinstance(x, _Array)}


def write_pdparams(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write floating-point tensors as `paddle.save` writes a state dictionary: C order, little-endian, protocol 4.

    Same tensors, same bytes. bfloat16 has no numpy counterpart: convert before.
    """
    with path.open("wb") as file:
        file.write(pickle.PROTO + bytes([PROTOCOL]) + pickle.EMPTY_DICT + pickle.MARK)
        for name, x in tensors.items():
            file.write(_text(name))
            file.writelines(_array(x.detach().cpu().contiguous().numpy()))
        file.write(_text(NAMES) + pickle.EMPTY_DICT + pickle.MARK)
        for name in tensors:
            file.write(_text(name) + _text(name))
        file.write(pickle.SETITEMS + pickle.SETITEMS + pickle.STOP)


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{path} is no Paddle file of arrays or is damaged ({error or type(error).__name__}); fetch it again"
    )


class _Type:
    """In place of `numpy.dtype`: remembers the code ("f4") and, from the state, the byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Array:
    """In place of `numpy.ndarray` and of the function that makes an empty one, whose arguments say nothing."""

    __slots__ = ("data", "fortran", "shape", "type")

    def __init__(self, *empty: object) -> None:
        self.data: bytes = b""
        self.fortran = False
        self.shape: tuple[int, ...] = (0,)
        self.type = _Type("f4")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.type, self.fortran, self.data = state

    def tensor(self, where: str) -> Tensor:
        """The array as a tensor; ModelError that starts with ``where`` if it does not add up."""
        code, order = getattr(self.type, "code", None), getattr(self.type, "order", None)
        if code not in FLOATS or order not in ("<", ">"):
            raise ModelError(f"{where} is an array of {code!r} where floating-point numbers were expected")
        sizes = self.shape if isinstance(self.shape, tuple) else (None,)
        if not all(type(n) is int and n >= 0 for n in sizes) or not isinstance(self.data, bytes | bytearray):
            raise ModelError(f"{where} is not an array of numbers of a stated shape; the file is damaged")
        if math.prod(sizes) * int(code[1]) != len(self.data):
            raise ModelError(
                f"{where} has {len(self.data)} bytes, which do not fill shape {list(sizes)}; it is damaged"
            )
        values = np.frombuffer(self.data, dtype=order + code).astype(code)  # a copy in the machine's byte order
        return torch.from_numpy(values.reshape(sizes, order="F" if self.fortran else "C"))


class _FromBuffer(_Array):
    """In place of the function that numpy's pickles of protocol 5 name."""

    __slots__ = ()

    def __init__(self, data: bytes, dtype: _Type, shape: tuple[int, ...], order: str) -> None:
        self.data, self.type, self.shape, self.fortran = data, dtype, shape, order == "F"


class _Encode:
    """In place of `_codecs.encode`, by which protocol 2 spells bytes: only ever Latin-1."""

    def __new__(cls, text: str = "", encoding: str = "latin1") -> bytes:  # type: ignore[misc]
        return str(text).encode("latin1")


_STAND_INS: dict[tuple[str, str], type[Any]] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FromBuffer for core in ("core", "_core")},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _Encode,
    ("builtins", "bytes"): _Encode,
    ("__builtin__", "bytes"): _Encode,  # how protocol 2 spells no bytes at all
    ("collections", "OrderedDict"): dict,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise ModelError(
                f"{self._path} names {module}.{name}, which is no array of numbers and could run code when loaded; "
                "nothing was loaded, fetch the file from its authors again or convert it where you trust it"
            )
        return _STAND_INS[module, name]


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8")
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _number(n: int) -> bytes:
    return pickle.BININT + struct.pack("<i", n)


def _name(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _array(x: npt.NDArray[Any]) -> Iterator[bytes]:
    """The opcodes of one array: the same calls as `numpy.ndarray.__reduce__`, under numpy 1's names."""
    dtype = x.dtype.newbyteorder("<")
    # _reconstruct(ndarray, (0,), b"b")
    yield _name("numpy.core.multiarray", "_reconstruct") + _name("numpy", "ndarray")
    yield _number(0) + pickle.TUPLE1 + pickle.SHORT_BINBYTES + b"\x01b" + pickle.TUPLE3 + pickle.REDUCE
    # its state: (1, shape, dtype, is it in Fortran's order, bytes)
    yield pickle.MARK + _number(1) + pickle.MARK + b"".join(map(_number, x.shape)) + pickle.TUPLE
    yield _name("numpy", "dtype") + _text(dtype.str[1:]) + pickle.NEWFALSE + pickle.NEWTRUE + pickle.TUPLE3
    yield pickle.REDUCE + pickle.MARK + _number(3) + _text("<") + 3 * pickle.NONE + _number(-1) + _number(-1)
    yield _number(0) + pickle.TUPLE + pickle.BUILD + pickle.NEWFALSE
    yield pickle.BINBYTES8 + struct.pack("<Q", x.nbytes)
    yield x.astype(dtype, copy=False).tobytes()
    yield pickle.TUPLE + pickle.BUILD
