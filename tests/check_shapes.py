"""gpt2.py's annotations, checked against the real arrays on every call that the tests make (conftest.py turns it on).

Within a call, a dimension's name stands for one size, leading axes (a batch) are the same, and floats have one dtype,
the result included. The names come from picogpt/shapes.py; the kinds of arrays, which exist for type checkers only, are
here once more.
"""

from __future__ import annotations

import argparse
import collections.abc
import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np

from picogpt.typing import shapes
from picogpt.typing.shapes import QKV, DHead, Embd, Head, Hidden, Keys, Layer, Seq

N, R, C = TypeVar("N"), TypeVar("R"), TypeVar("C")


class ShapeError(AssertionError):
    """An array is not what the annotation says."""


class Vector(Generic[N]):
    axes = (N,)


class Ids(Generic[N]):
    axes = (N,)


class Matrix(Generic[R, C]):
    axes = (R, C)


class Heads(Generic[R, C]):
    axes = (Head, R, C)


class KV(Generic[R, C]):
    axes = (2, ..., Head, R, C)


class Cache(Generic[R, C]):
    axes = (Layer, 2, ..., Head, R, C)


KINDS = (Vector, Ids, Matrix, Heads, KV, Cache)
NAMES = {**vars(collections.abc), **vars(shapes), **{kind.__name__: kind for kind in KINDS}}
NAMES |= {"IdsLike": Ids, "np": np, "argparse": argparse, "Choose": Callable}
ANY_SHAPE = {"gelu"}  # its annotation says what the model gives it, its docstring that any array will do
RESULT_DTYPE = {"token_probs": np.dtype(np.float64)}  # says its docstring; all others return what they were given


class Call:
    """What the names stand for in one call."""

    def __init__(self, function: str, arguments: dict[str, Any]):
        self.function, self.sizes, self.lead, self.dtype = function, {}, (), None
        self.n_past = arguments.get("n_past")
        if "n_head" in arguments:
            self.sizes[Head] = arguments["n_head"]

    def error(self, name: str, text: str) -> ShapeError:
        return ShapeError(f"gpt2.{self.function}: {name} {text}")

    def bind(self, name: str, dimension: Any, size: int) -> None:
        if dimension is Any:
            return
        if isinstance(dimension, int):
            if size != dimension:
                raise self.error(name, f"has {size}, not {dimension}")
        elif (known := self.sizes.setdefault(dimension, size)) != size:
            raise self.error(name, f"has {size} where {dimension.__name__} is {known}")

    def array(self, name: str, value: Any, axes: tuple[Any, ...], at: int, whole_numbers: bool) -> None:
        """Leading axes are those at a place, 0 but in caches, that the annotation does not name."""
        if whole_numbers and isinstance(value, collections.abc.Sequence):
            value = np.asarray(value)
        if not hasattr(value, "shape"):
            raise self.error(name, f"is a {type(value).__name__}, not an array")
        shape = tuple(value.shape)
        end = at + len(shape) - len(axes)
        if end < at:
            raise self.error(name, f"has too few axes: {shape}")
        for dimension, size in zip(axes, shape[:at] + shape[end:]):
            self.bind(name, dimension, size)
        lead = shape[at:end]
        if lead and (name == "mask" or (len(axes) == 1 and not whole_numbers)):
            raise self.error(name, f"has the leading axes {lead}, which NumPy would align with other axes")
        if (lead and self.lead not in ((), lead)) or (name == "result" and lead != self.lead):
            raise self.error(name, f"has the leading axes {lead} where others have {self.lead}")
        self.lead = self.lead or lead
        self.number_type(name, value.dtype, whole_numbers)

    def number_type(self, name: str, dtype: Any, whole_numbers: bool) -> None:
        if dtype.kind not in ("iu" if whole_numbers else "f"):
            raise self.error(name, f"is {dtype}")
        if not whole_numbers:
            expected = RESULT_DTYPE.get(self.function, self.dtype) if name == "result" else self.dtype
            self.dtype = expected or dtype
            if dtype != self.dtype:
                raise self.error(name, f"is {dtype} where others are {self.dtype}")

    def relations(self) -> None:
        """What is true of GPT-2's widths, where they are known."""
        get = self.sizes.get
        for left, text, right in (
            (get(Hidden), "Hidden is 4 Embd", 4 * get(Embd, 0)),
            (get(QKV), "QKV is 3 Embd", 3 * get(Embd, 0)),
            (get(Embd), "Embd is Head times DHead", get(Head, 0) * get(DHead, 0)),
            (get(Keys), "Keys is n_past + Seq", self.n_past is not None and self.n_past + get(Seq, 0)),
        ):
            if left and right and left != right:
                raise ShapeError(f"gpt2.{self.function}: {text}, but {left} is not {right}")


Check = Callable[[Call, str, Any], None]


def check_of(hint: Any, given: dict[Any, Any]) -> Check | None:
    """What a type says of a value; None where it has no shape in it. given: what type variables stand for."""
    if hint is shapes.Array:
        return lambda call, name, value: (
            call.bind(name, hint, value.shape),
            call.number_type(name, value.dtype, False),
        )
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in KINDS:
        meant = {axis: given.get(arg, arg) for axis, arg in zip(origin.__parameters__, args)}
        axes = tuple(meant.get(axis, axis) for axis in origin.axes if axis is not ...)
        at = origin.axes.index(...) if ... in origin.axes else 0
        return lambda call, name, value: call.array(name, value, axes, at, origin is Ids)
    if isinstance(origin, type) and issubclass(origin, shapes.TypedDict):
        given = dict(zip(getattr(origin, "__parameters__", ()), args))
        parts = {key: check_of(eval(text, NAMES), given) for key, text in origin.__annotations__.items()}
        return lambda call, name, value: [check(call, f"{name}[{key!r}]", value[key]) for key, check in parts.items()]
    checks = [check_of(arg, given) for arg in args]
    if not any(checks):
        return None
    if origin is tuple:
        return lambda call, name, value: [check(call, name, part) for check, part in zip(checks, value)]
    if origin in (list, collections.abc.Sequence):  # the blocks
        return lambda call, name, value: (
            call.bind(name, Layer, len(value)),
            [checks[0](call, f"{name}[{i}]", part) for i, part in enumerate(value)],
        )
    assert origin in (typing.Union, types.UnionType), hint
    (check,), plain = filter(None, checks), tuple(arg for arg, check in zip(args, checks) if not check)
    plain += (int,) if float in plain else ()
    return lambda call, name, value: None if isinstance(value, plain) else check(call, name, value)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with arguments and result checked against its annotations. As it is where they have no shapes."""
    signature = inspect.signature(function)
    hints = {name: eval(text, NAMES) for name, text in function.__annotations__.items()}
    if function.__name__ in ANY_SHAPE:
        hints = dict.fromkeys(hints, shapes.Array)
    checks = {name: check for name, hint in hints.items() if (check := check_of(hint, {}))}
    check_result = checks.pop("return", None)
    if not checks and not check_result:
        return function

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        arguments = dict(zip(signature.parameters, args)) | kwargs
        call = Call(function.__name__, arguments)
        for name, check in checks.items():
            if name in arguments:
                check(call, name, arguments[name])
        call.relations()
        result = function(*args, **kwargs)
        if check_result:
            check_result(call, "result", result)
            call.relations()
        return result

    return wrapper


def watch(module: types.ModuleType) -> types.ModuleType:
    """Check every call of the functions of gpt2.py, or of a copy of it, from now on."""
    for name, function in list(vars(module).items()):
        if inspect.isfunction(function) and function.__module__ == module.__name__:
            setattr(module, name, checked(function))
    return module
