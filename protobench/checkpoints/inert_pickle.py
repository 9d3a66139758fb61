"""Pickles read as data: nothing that a file names is imported, and nothing is called.

A pickle is a program for a small stack machine, and two of its instructions matter: one names a
class or a function, one calls it. Here the first gives a ``Name`` and the second a ``StandIn`` that
remembers what would have been called, with which arguments, and what would have been put into the
result. The caller decides what a stand-in means (stand_ins.py). Python's own pickle module is not
used, so that no class can run code by being unpickled."""

import codecs
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NoReturn


@dataclass(frozen=True, slots=True)
class Name:
    """The name of a class or a function, which is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class StandIn:
    """The result that calling ``what`` with ``args`` would have had, and what would have been put
    into it: its state, items appended, items set."""

    what: Any
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)
    pairs: dict[Any, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"<{self.what if isinstance(self.what, Name) else 'object'}>"

    __repr__ = __str__


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Stored:
    """A reference to something outside the pickle: torch's storages."""

    id: Any


@dataclass(frozen=True, slots=True)
class Pickle:
    """One pickle: its value, all names in it, and its references to the outside."""

    value: Any
    names: set[Name]
    stored: list[Stored]


class DamagedError(Exception):
    """The data is not a pickle, or not a complete one."""


def load(file: BinaryIO) -> Pickle:
    """Reads the next pickle of a file, of any protocol and any Python. Raises DamagedError if there
    is none.

    ``file`` must return what there is when asked for more, as io.BytesIO and mmap do: the counts in
    a pickle may be false."""
    try:
        return _Machine(file).run()
    except (
        ValueError,
        LookupError,
        TypeError,
        struct.error,
        OverflowError,
        MemoryError,
    ) as failure:
        raise DamagedError(
            f"not a complete pickle ({str(failure) or type(failure).__name__})"
        ) from failure


# Instructions and what follows them in the file ---------------------------------------------------


def _line(file: BinaryIO) -> bytes:
    line = file.readline()
    if not line.endswith(b"\n"):
        raise ValueError("it ends early")
    return line[:-1]


def _names(file: BinaryIO) -> Name:
    return Name(_line(file).decode(), _line(file).decode())


def _quoted(file: BinaryIO) -> str:
    """A string of protocol 0, which may hold any bytes: Python 2 wrote arrays like this."""
    line = _line(file)
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in b"'\"":
        raise ValueError("a string without quotes")
    return codecs.escape_decode(line[1:-1])[0].decode("latin-1")


_READERS: dict[str, Callable[[BinaryIO], Any]] = {
    "GLOBAL": _names,
    "INST": _names,
    "STRING": _quoted,
}
"""Opcodes for which pickletools only reads ASCII."""

_OPCODES = {
    code.code.encode("latin-1"): (
        code.name,
        _READERS.get(code.name, code.arg.reader if code.arg else None),
    )
    for code in pickletools.opcodes
}

_EMPTY: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}

_REBUILDERS = {
    (module, name)
    for module in ("copyreg", "copy_reg")
    for name in ("_reconstructor", "__newobj__", "__newobj_ex__")
}
"""Functions that call the class that is their first argument, used by protocols 0 and 1."""


class _Machine:
    def __init__(self, file: BinaryIO):
        self.file, self.names, self.stored = file, set[Name](), list[Stored]()
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Pickle:
        read, steps = (
            self.file.read,
            {name: getattr(self, f"do_{name.lower()}", None) for name, _ in _OPCODES.values()},
        )
        while True:
            if (code := _OPCODES.get(read(1))) is None:
                raise ValueError("an unknown instruction, or none")
            name, reader = code
            given = reader(self.file) if reader else None
            if (step := steps[name]) is not None:
                step(given)
            elif name in _EMPTY:
                self.stack.append(_EMPTY[name]())
            elif name == "STOP":
                return Pickle(self.stack.pop(), self.names, self.stored)
            else:  # a value given in the file itself
                self.stack.append(given)

    def marked(self) -> list[Any]:
        """Pops what is above the last mark."""
        above, self.stack = self.stack, self.below.pop()
        return above

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def call(self, what: Any, args: Any) -> None:
        args = args if isinstance(args, tuple) else (args,)
        if isinstance(what, Name) and (what.module, what.name) in _REBUILDERS and args:
            what, args = args[0], args[1:]
        self.stack.append(StandIn(what, args))

    # Names and calls

    def do_global(self, name: Name) -> None:
        self.names.add(name)
        self.stack.append(name)

    def do_stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise TypeError("a name that is not text")
        self.do_global(Name(module, name))

    def _extension(self, number: int) -> None:
        self.do_global(Name("copyreg", f"extension {number}"))

    do_ext1 = do_ext2 = do_ext4 = _extension

    def do_reduce(self, _: None) -> None:
        args = self.stack.pop()
        self.call(self.stack.pop(), args)

    do_newobj = do_reduce

    def do_newobj_ex(self, _: None) -> None:
        named, args = self.stack.pop(), self.stack.pop()
        self.call(self.stack.pop(), (args, named))

    def do_inst(self, name: Name) -> None:
        self.names.add(name)
        self.call(name, tuple(self.marked()))

    def do_obj(self, _: None) -> None:
        what, *args = self.marked()
        self.call(what, tuple(args))

    def do_persid(self, given: Any) -> None:
        self.stored.append(Stored(given))
        self.stack.append(self.stored[-1])

    def do_binpersid(self, _: None) -> None:
        self.do_persid(self.stack.pop())

    # What goes into containers and stand-ins

    def do_build(self, _: None) -> None:
        state = self.stack.pop()
        if isinstance(built := self.stack[-1], StandIn):
            built.state = state

    def _append(self, items: list[Any]) -> None:
        match self.stack[-1]:
            case list() as grown:
                grown.extend(items)
            case StandIn() as grown:
                grown.items.extend(items)
            case _:
                raise TypeError("items for something that is not a list")

    def do_append(self, _: None) -> None:
        self._append([self.stack.pop()])

    def do_appends(self, _: None) -> None:
        self._append(self.marked())

    def _set(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict | StandIn):
            raise TypeError("items for something that is not a dictionary")
        (target if isinstance(target, dict) else target.pairs).update(_paired(flat))

    def do_setitem(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def do_setitems(self, _: None) -> None:
        self._set(self.marked())

    def do_additems(self, _: None) -> None:
        items = self.marked()
        match self.stack[-1]:
            case set() as grown:
                grown.update(map(hashable, items))
            case StandIn() as grown:
                grown.items.extend(items)
            case _:
                raise TypeError("items for something that is not a set")

    def do_list(self, _: None) -> None:
        self.push(self.marked())

    def do_dict(self, _: None) -> None:
        self.push(_paired(self.marked()))

    def do_frozenset(self, _: None) -> None:
        self.push(frozenset(map(hashable, self.marked())))

    def do_tuple(self, _: None) -> None:
        self.push(tuple(self.marked()))

    def _tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError("too few items for a tuple")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def do_tuple1(self, _: None) -> None:
        self._tuple_of(1)

    def do_tuple2(self, _: None) -> None:
        self._tuple_of(2)

    def do_tuple3(self, _: None) -> None:
        self._tuple_of(3)

    # The stack itself, and what was put aside

    def do_mark(self, _: None) -> None:
        self.below.append(self.stack)
        self.stack = []

    def do_pop(self, _: None) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.stack = self.below.pop()

    def do_pop_mark(self, _: None) -> None:
        self.marked()

    def do_dup(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    def _put(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    do_put = do_binput = do_long_binput = _put

    def do_memoize(self, _: None) -> None:
        self._put(len(self.memo))

    def _get(self, place: int) -> None:
        self.stack.append(self.memo[place])

    do_get = do_binget = do_long_binget = _get

    def _nothing(self, _: Any) -> None:
        """The protocol and the sizes of frames, which do not matter."""

    do_proto = do_frame = _nothing

    def _outside(self, _: None) -> NoReturn:
        raise ValueError("it needs buffers outside the file")

    do_next_buffer = do_readonly_buffer = _outside


def _paired(flat: list[Any]) -> dict[Any, Any]:
    return {hashable(key): value for key, value in zip(flat[::2], flat[1::2], strict=True)}


def hashable(key: Any) -> Any:
    """Returns the key if hashing it is quick and safe, otherwise a stand-in. Deep or wide tuples
    can crash Python's hash or take forever, and long integers can be made to collide."""
    if _plain(key) or (type(key) is tuple and len(key) < 9 and all(map(_plain, key))):
        return key
    return key if isinstance(key, Name | StandIn | Stored) else StandIn("key", (key,))


def _plain(key: Any) -> bool:
    return isinstance(key, str | bytes | float | bool | None) or (
        isinstance(key, int) and -(2**63) <= key < 2**63
    )
