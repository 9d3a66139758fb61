"""Turns the stand-ins of an inertly read pickle into tensors, arrays, dictionaries and modules,
made by our own functions from the arguments in the file. Everything else remains a name with
data."""

import argparse
import io
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from protobench.checkpoints import inert_pickle, pickled_files
from protobench.checkpoints.inert_pickle import DamagedError, Name, StandIn, Stored
from protobench.checkpoints.pickled_files import Pickled, Storage
from protobench.runtime.errors import UserError

DEEPEST = 12
"""Levels of dictionaries and lists that are searched."""
DEEPEST_MODULE = 60
FREELY_REPEATED = 1 << 24
"""Elements that a tensor may have beyond those of its storage, by strides of 0; more would be an
attack."""

_BUILTINS = (
    "bool",
    "bytearray",
    "bytes",
    "complex",
    "dict",
    "float",
    "frozenset",
    "int",
    "list",
    "object",
    "range",
    "set",
    "slice",
    "str",
    "tuple",
    "long",
    "unicode",
    "xrange",
)
_MAPPINGS = {
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("collections", "Counter"),
    ("builtins", "dict"),
    ("__builtin__", "dict"),
    *(
        (module, "AttributeDict")
        for module in (
            "lightning.fabric.utilities.data",
            "lightning_fabric.utilities.data",
            "pytorch_lightning.utilities.parsing",
        )
    ),
}
_SETS, _BYTES = (
    {(module, name) for module in ("builtins", "__builtin__")} for name in ("set", "bytes")
)
_NAMESPACE = ("argparse", "Namespace")
_OPAQUE = {
    _NAMESPACE,
    ("mmengine.logging.history_buffer", "HistoryBuffer"),
    *(
        (module, name)
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    ),
}
"""Classes found in nearly every checkpoint whose objects hold no tensors."""

_STRIDED = {
    ("torch._utils", name)
    for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
}
_WRAPPERS = {
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_parameter_with_state"),
    ("torch._utils", "_rebuild_xla_tensor"),
    ("torch._utils", "_rebuild_device_tensor_from_numpy"),
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"),
    ("torch.nn.parameter", "Parameter"),
    ("torch.autograd.variable", "Variable"),
}
"""Their first argument is the tensor, or the array."""
_SUBCLASSES = {
    (module, name)
    for module in ("torch._tensor", "torch.tensor")
    for name in ("_rebuild_from_type", "_rebuild_from_type_v2")
}
"""These call their first argument with their third."""
_SIZES = {
    ("torch._utils", "_rebuild_qtensor"): 2,
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): 1,
    ("torch._utils", "_rebuild_wrapper_subclass"): 2,
}
"""Functions that make tensors without plain numbers, and which argument is their size."""
_SPARSE = ("torch._utils", "_rebuild_sparse_tensor")
_NESTED = ("torch.storage", "_load_from_bytes")
_SIZE = ("torch", "Size")

_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_RECONSTRUCT, _SCALAR = (
    {(module, name) for module in _NUMPY} for name in ("_reconstruct", "scalar")
)
_FROM_BUFFER = {("numpy.core.numeric", "_frombuffer"), ("numpy._core.numeric", "_frombuffer")}
_NUMBER = re.compile(r"[?bhilqBHILQefdFD]|[biufc]\d{1,2}")

_QUIET = {
    *_MAPPINGS,
    *_OPAQUE,
    *_STRIDED,
    *_WRAPPERS,
    *_SUBCLASSES,
    *_SIZES,
    _SPARSE,
    _NESTED,
    *_RECONSTRUCT,
    *_SCALAR,
    *_FROM_BUFFER,
    *((module, name) for module in ("builtins", "__builtin__") for name in _BUILTINS),
    ("collections", "deque"),
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("copyreg", "_reconstructor"),
    ("copy_reg", "_reconstructor"),
    _SIZE,
    ("torch", "device"),
    ("torch", "Tensor"),
    ("torch._tensor", "Tensor"),
    ("torch.serialization", "_get_layout"),
    *((module, name) for module in pickled_files.STORAGE_MODULES for name in pickled_files.DTYPES),
    *(
        ("torch", name)
        for name, value in vars(torch).items()
        if isinstance(value, torch.dtype | torch.qscheme)
    ),
    *((tensor.__module__, tensor.__name__) for tensor in torch._tensor_classes),
}
"""Names that are not worth reporting: torch too reads them without running code, or they are
Python's own values."""
_QUIET_MODULES = ("torch.nn.modules.", "torch.nn.parallel.")


@dataclass(frozen=True)
class _Parts:
    """The parts of a module: what its state_dict would list, and the modules in it."""

    tensors: dict[Any, Any]
    modules: Mapping[Any, Any]


def left_as_data(names: set[Name]) -> list[str]:
    """Returns the classes and functions whose code an ordinary reader would have run."""
    return sorted(
        str(name)
        for name in names
        if (name.module, name.name) not in _QUIET and not name.module.startswith(_QUIET_MODULES)
    )


def tensors(pickled: Pickled) -> dict[str, Tensor]:
    """Returns all tensors by ``container/…/name`` or, if there are none, NumPy's arrays of floats.

    Those of a whole module have the names that its state_dict would give them. They must not be
    written to. Raises DamagedError, ValueError, TypeError or RuntimeError if one is malformed."""
    for arrays in (False, True):
        walk = _Walk(pickled, arrays)
        walk.visit(pickled.value, "", 0)
        if walk.found:
            break
    return walk.found


def entries(pickled: Pickled) -> dict[str, Any]:
    """Returns what is at the top level, with plain values for stand-ins of options, dictionaries
    and NumPy's numbers."""
    walk = _Walk(pickled, arrays=False)
    return {
        str(key): walk.plain(value) for key, value in (walk.mapping(pickled.value) or {}).items()
    }


class _Walk:
    """A search through a value for its tensors. Its work is bounded by the pickle's size, because
    containers can contain each other."""

    def __init__(self, pickled: Pickled, arrays: bool):
        self.storage, self.arrays = pickled.storage, arrays
        self.left = 1_000_000 + 4 * pickled.size
        self.found: dict[str, Tensor] = {}

    def spend(self, count: int) -> None:
        self.left -= count + 1
        if self.left < 0:
            raise DamagedError("its parts contain each other over and over")

    def add(self, name: str, tensor: Tensor) -> None:
        if name in self.found:
            raise UserError(f"two tensors have the name {name}")
        self.found[name] = tensor.detach()

    def named(self, prefix: str, key: Any) -> str:
        name = prefix + str(key)
        self.spend(len(name) >> 6)  # names of names grow too
        return name

    def visit(self, value: Any, name: str, depth: int) -> None:
        if isinstance(value, nn.Module):  # only when trusted
            value = value.state_dict()
        if (tensor := self.tensor(value, name)) is not None:
            self.add(name, tensor)
        elif (parts := self.parts(value)) is not None:
            self.module(parts, f"{name}/" if name else "", 0)
        elif depth < DEEPEST:
            for key, item in self.children(value):
                if isinstance(
                    item, Tensor | np.ndarray | nn.Module | Mapping | list | tuple | StandIn
                ):
                    self.visit(item, self.named(f"{name}/" if name else "", key), depth + 1)

    def children(self, value: Any) -> Iterator[tuple[Any, Any]]:
        held: list[Any] = [value] if isinstance(value, Mapping | list | tuple) else []
        if isinstance(value, StandIn) and _which(value) not in _OPAQUE:
            attributes = None if _which(value) in _MAPPINGS else self.mapping(_state(value))
            held = [
                content for content in (self.mapping(value), attributes, value.items) if content
            ]
        for content in held:
            self.spend(len(content))
            yield from content.items() if isinstance(content, Mapping) else enumerate(content)

    def module(self, parts: _Parts, prefix: str, depth: int) -> None:
        """Adds parameters, persistent buffers, then inner modules, in state_dict's order."""
        self.spend(len(parts.tensors) + len(parts.modules))
        for key, item in parts.tensors.items():
            name = self.named(prefix, key)
            if (tensor := self.tensor(item, name)) is not None:
                self.add(name, tensor)
        for key, item in parts.modules.items():
            if depth < DEEPEST_MODULE and (inner := self.parts(item)) is not None:
                self.module(inner, self.named(prefix, key) + ".", depth + 1)

    def parts(self, value: Any) -> _Parts | None:
        """Returns the parts of a module; None for anything else."""
        attributes = self.mapping(_state(value)) if isinstance(value, StandIn) else None
        if not attributes:
            return None
        parameters, buffers, modules = (
            self.mapping(attributes.get(part)) for part in ("_parameters", "_buffers", "_modules")
        )
        if parameters is None or buffers is None or modules is None:
            return None
        passing = self.members(attributes.get("_non_persistent_buffers_set"))
        return _Parts(
            {**parameters, **{key: item for key, item in buffers.items() if key not in passing}},
            modules,
        )

    def mapping(self, value: Any) -> Mapping[Any, Any] | None:
        """Returns the items of a dictionary or of its stand-in; None for anything else."""
        if isinstance(value, dict):
            return value
        if not isinstance(value, StandIn):
            # a mapping of another class exists only if the file is trusted
            return value if isinstance(value, Mapping) else None
        given = value.args[-1] if value.args and _which(value) in _MAPPINGS else None
        if isinstance(given, list | tuple):  # Python 2's OrderedDict
            self.spend(len(given))
            pairs = (pair for pair in given if isinstance(pair, list | tuple) and len(pair) == 2)
            given = {inert_pickle.hashable(key): item for key, item in pairs}
        if isinstance(given, dict):
            self.spend(len(given) + len(value.pairs))
            return {**given, **value.pairs}
        return value.pairs if value.pairs or _which(value) in _MAPPINGS else None

    def members(self, value: Any) -> set[Any]:
        """Returns the members of a set, in newer and older pickles' form."""
        if _which(value) in _SETS and value.args:
            value = value.args[0]
        if not isinstance(value, set | frozenset | list):
            return set()
        self.spend(len(value))
        return set(map(inert_pickle.hashable, value))

    def plain(self, value: Any) -> Any:
        if not isinstance(value, StandIn):
            return value
        if _which(value) == _NAMESPACE:
            options = self.mapping(value.state) or {}
            self.spend(len(options))
            return argparse.Namespace(**{str(key): item for key, item in options.items()})
        if (array := self.array(value)) is not None:
            return array if array.ndim else array[()]
        found = self.mapping(value)
        return value if found is None else found

    # Tensors and arrays

    def tensor(self, value: Any, name: str) -> Tensor | None:
        if isinstance(value, Tensor):
            return value
        if isinstance(value, StandIn):
            if (tensor := self.rebuilt(value, 0)) is not None:
                return tensor
            value = self.array(value) if self.arrays else None
        if isinstance(value, np.ndarray) and self.arrays:
            counter = name.endswith("num_batches_tracked") and value.dtype.kind in "iu"
            if counter or (value.dtype.kind == "f" and value.dtype.itemsize in (2, 4, 8)):
                return torch.from_numpy(value)
        return None

    def rebuilt(self, value: StandIn, wrapped: int) -> Tensor | None:
        """Returns what one of torch's functions that make tensors would have returned."""
        which, args = _which(value), value.args
        if which in _STRIDED and len(args) >= 4:
            stored, offset, size, stride, *more = args
            typed = which[1] == "_rebuild_tensor_v3"
            marks = more[2 + typed] if len(more) > 2 + typed else None
            return _strided(
                self.storage_of(stored),
                _dtype(more[2]) if typed and len(more) > 2 else None,
                offset,
                _sizes(size),
                _sizes(stride),
                unlike=isinstance(marks, dict) and any(marks.values()),
            )
        if which in _WRAPPERS and args and isinstance(args[0], StandIn) and wrapped < 4:
            array = self.array(args[0])
            return self.rebuilt(args[0], wrapped + 1) if array is None else torch.from_numpy(array)
        if which in _SUBCLASSES and len(args) >= 3 and isinstance(args[2], tuple) and wrapped < 4:
            return self.rebuilt(StandIn(args[0], args[2]), wrapped + 1)
        if which in _SIZES and len(args) > _SIZES[which]:
            return _shape_alone(_sizes(args[_SIZES[which]]))
        if which == _SPARSE and len(args) > 1 and isinstance(args[1], tuple):
            size = next(
                (
                    part
                    for part in args[1]
                    if isinstance(part, list | tuple) or _which(part) == _SIZE
                ),
                None,
            )
            return _shape_alone(_sizes(size))
        return None

    def storage_of(self, stored: Any) -> Storage:
        if isinstance(stored, Stored):
            return self.storage(stored.id)
        # pickle.dump writes a storage as a nested file
        if _which(stored) == _NESTED and stored.args and (data := self.raw(stored.args[0])):
            self.spend(len(data))
            inner = pickled_files.read_single(bytes(data), io.BytesIO(data))
            if isinstance(inner.value, Stored):
                return inner.storage(inner.value.id)
        raise DamagedError("a tensor without a storage")

    def array(self, value: StandIn) -> np.ndarray[Any, Any] | None:
        """Returns an array of numbers; None for anything else."""
        which, state, args = _which(value), value.state, value.args
        order: Any = "C"
        if which in _RECONSTRUCT and isinstance(state, tuple) and len(state) in (4, 5):
            shape, dtype, fortran, raw = state[-4:]
            order = "F" if fortran else "C"
        elif which in _FROM_BUFFER and len(args) in (4, 5):
            raw, dtype, shape, order = args[:4]
        elif which in _SCALAR and len(args) == 2:
            (dtype, raw), shape = args, ()
        else:
            return None
        kind, data = _number(dtype), self.raw(raw)
        if kind is None or data is None or order not in ("C", "F"):
            return None
        shape = _sizes(shape)
        if min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize != len(data):
            raise DamagedError("an array and its data differ in size")
        return np.frombuffer(data, kind).reshape(shape, order=order)

    def raw(self, value: Any) -> bytes | bytearray | None:
        """Returns an array's bytes: plain, as Python 2 wrote them, or as newer ones do for it."""
        if _which(value) == ("_codecs", "encode") and value.args[1:] == ("latin1",):
            value = value.args[0]
        if _which(value) in _BYTES and not value.args:
            return b""
        if isinstance(value, str):
            self.spend(len(value))
            return value.encode("latin-1")
        return value if isinstance(value, bytes | bytearray) else None


def _which(value: Any) -> tuple[str, str]:
    """The module and name of what a stand-in would have called; empty for anything else."""
    return (
        (value.what.module, value.what.name)
        if isinstance(value, StandIn) and isinstance(value.what, Name)
        else ("", "")
    )


def _state(value: StandIn) -> Any:
    """The attributes; if the class has slots, they come first in a tuple."""
    return value.state[0] if isinstance(value.state, tuple) and value.state else value.state


def _strided(
    stored: Storage,
    dtype: torch.dtype | None,
    offset: int,
    size: list[int],
    stride: list[int],
    *,
    unlike: bool,
) -> Tensor:
    """A view of a storage, within its bounds. ``unlike``: its numbers are not those stored, but
    conjugated or negated when they are read."""
    whole, own = stored
    if (dtype := dtype or own) is None:
        raise DamagedError("a tensor without a type")
    room = whole.nbytes() // dtype.itemsize
    last = (
        sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
        if 0 not in size
        else 0
    )
    if min(offset, *size, *stride, 0) < 0 or offset + last > room or len(size) > 64:
        raise DamagedError("a tensor reaches beyond its storage")
    if unlike or math.prod(size) > max(room, FREELY_REPEATED):
        return _shape_alone(size)
    return torch.empty(0, dtype=dtype).set_(whole, offset, size, stride)


def _shape_alone(size: list[int]) -> Tensor:
    """A meta tensor, for one that has no plain numbers."""
    return torch.empty(size, device="meta")


def _sizes(value: Any) -> list[int]:
    """Sizes or strides as a list."""
    if _which(value) == _SIZE and value.args:
        value = value.args[0]
    if not isinstance(value, list | tuple) or not all(
        type(n) is int and abs(n) < 2**62 for n in value
    ):
        raise DamagedError("a tensor's size is not a list of numbers")
    return list(value)


def _dtype(value: Any) -> torch.dtype | None:
    found = (
        vars(torch).get(value.name) if isinstance(value, Name) and value.module == "torch" else None
    )
    return found if isinstance(found, torch.dtype) else None


def _number(value: Any) -> np.dtype[Any] | None:
    """NumPy's type of number, if it is one, and in this machine's byte order."""
    name = value.args[0] if _which(value) == ("numpy", "dtype") and value.args else None
    if not isinstance(name, str) or not _NUMBER.fullmatch(name):
        return None
    order: Any = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "="
    try:
        kind = np.dtype(name).newbyteorder(order)
    except (TypeError, ValueError):
        return None
    return kind if kind.isnative else None
