"""Compare the shapes in signatures with the real arrays, on every call of a function of gpt2.py or picogpt/batch.py.

Within a call, a dimension's name stands for one size, leading axes (a batch) are the same everywhere, and all floats
have one dtype, the result included. The names come from picogpt/typing/shapes.py. The types of arrays are defined here
again, because in shapes.py they exist for type checkers only.
"""

from __future__ import annotations

import ast
import collections.abc
import functools
import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from picogpt.typing import shapes
from picogpt.typing.shapes import d_head, n_embd, n_head, n_hidden, n_layer, n_qkv, n_room

N, R, C = TypeVar("N"), TypeVar("R"), TypeVar("C")


class ShapeError(AssertionError):
    """An array does not have the shape in the signature."""


class Vector(Generic[N]):
    axes = (N,)


class Ids(Generic[N]):
    axes = (N,)


class Matrix(Generic[R, C]):
    axes = (R, C)


class Heads(Generic[R, C]):
    axes = (n_head, R, C)


class KV:
    axes = (2, ..., n_head, n_room, d_head)


class Cache:
    axes = (n_layer, 2, ..., n_head, n_room, d_head)


KINDS = (Vector, Ids, Matrix, Heads, KV, Cache)
NAMES = {**vars(collections.abc), **vars(shapes), **{kind.__name__: kind for kind in KINDS}}
NAMES |= {"IdsLike": Ids, "np": np, "Any": Any, "Choose": Callable, "Ended": Callable}
ANY_SHAPE = {"gelu"}  # its comment gives the shape of x in the model, but it takes arrays of any shape
OWN_BATCH = {"causal_mask", "empty_cache"}  # leading axes of the result: none, and those that an argument lists
FILTERS = {
    "penalize",
    "keep_largest",
    "keep_top_k",
    "keep_top_p",
    "token_probs",
    "softmax",
}  # leading axes for vectors, too
RESULT_DTYPE = {"token_probs": np.dtype(np.float64)}  # all other functions return the dtype they are given


class Call:
    """The sizes that the names stand for in one call."""

    def __init__(self, function: str, arguments: dict[str, Any]):
        self.function, self.sizes, self.lead, self.dtype = function, {}, (), None
        if "n_head" in arguments:
            self.sizes[n_head] = arguments["n_head"]

    def error(self, name: str, text: str) -> ShapeError:
        return ShapeError(f"{self.function}: {name} {text}")

    def bind(self, name: str, dimension: Any, size: int) -> None:
        if dimension is Any:
            return
        if isinstance(dimension, int):
            if size != dimension:
                raise self.error(name, f"has {size}, not {dimension}")
        elif (known := self.sizes.setdefault(dimension, size)) != size:
            raise self.error(name, f"has {size} where {dimension.__name__} is {known}")

    def array(self, name: str, value: Any, axes: tuple[Any, ...], at: int, whole_numbers: bool) -> None:
        """Bind the axes of one array. Leading axes, which have no name, begin at place `at`."""
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
        vector = len(axes) == 1 and not whole_numbers and self.function not in FILTERS
        if lead and (name == "mask" or vector):
            raise self.error(name, f"has the leading axes {lead}, which NumPy would align with other axes")
        if (lead and self.lead not in ((), lead)) or (
            name == "result" and lead != self.lead and self.function not in OWN_BATCH
        ):
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
        """Check how GPT-2's sizes depend on each other, as far as they are known."""
        get = self.sizes.get
        for left, text, right in (
            (get(n_hidden), "n_hidden is 4 n_embd", 4 * get(n_embd, 0)),
            (get(n_qkv), "n_qkv is 3 n_embd", 3 * get(n_embd, 0)),
            (get(n_embd), "n_embd is n_head times d_head", get(n_head, 0) * get(d_head, 0)),
        ):
            if left and right and left != right:
                raise ShapeError(f"{self.function}: {text}, but {left} is not {right}")


Check = Callable[[Call, str, Any], None]


def check_of(hint: Any, given: dict[Any, Any]) -> Check | None:
    """Return the check for a type, or None if it has no shape. `given` maps type variables to what they stand for."""
    if hint is shapes.Array:
        return lambda call, name, value: (
            call.bind(name, hint, value.shape),
            call.number_type(name, value.dtype, False),
        )
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in KINDS:
        meant = {axis: given.get(arg, arg) for axis, arg in zip(getattr(origin, "__parameters__", ()), args)}
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
            call.bind(name, n_layer, len(value)),
            [checks[0](call, f"{name}[{i}]", part) for i, part in enumerate(value)],
        )
    assert origin in (typing.Union, types.UnionType), hint
    (check,), plain = filter(None, checks), tuple(arg for arg, check in zip(args, checks) if not check)
    plain += (int,) if float in plain else ()
    return lambda call, name, value: None if isinstance(value, plain) else check(call, name, value)


def types_of(node: ast.FunctionDef) -> dict[str, str]:
    """Return the type of each argument, except self, and of the result: {"x": "Matrix[n_seq, n_hidden]", "return": …}.

    A signature is a comment under def, or annotations. A comment that begins with (...) leaves the types of the
    arguments to comments behind them.
    """
    arguments = [argument for argument in node.args.args if argument.arg != "self"]
    found, result = [argument.type_comment or argument.annotation for argument in arguments], node.returns
    if node.type_comment:
        comment = ast.parse(node.type_comment, mode="func_type")
        result = comment.returns
        if [ast.unparse(part) for part in comment.argtypes] != ["..."]:
            found = comment.argtypes
    texts = [part if isinstance(part, str) else ast.unparse(part) for part in (*found, result) if part]
    names = [*(argument.arg for argument in arguments), "return"]
    assert len(texts) == len(names), f"{node.name} needs a type for each of {names}, and has {texts}"
    return dict(zip(names, texts))


@functools.cache
def signatures(file: str) -> dict[str, dict[str, str]]:
    """Return the types in the signature of every function and method: {"gelu": {"x": …}, "Context.logits": {…}}."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"), type_comments=True)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    functions |= {f"{owner.name}.{node.name}": node for owner in classes for node in owner.body[1:]}
    return {name: types_of(node) for name, node in functions.items()}


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Evaluate a function's signature: {parameter: type}, and "return"."""
    function = inspect.unwrap(function)
    texts = signatures(function.__code__.co_filename)[function.__qualname__]
    return {name: eval(text, NAMES) for name, text in texts.items()}


def checked(function: Callable[..., Any], hints: dict[str, Any] | None = None) -> Callable[..., Any]:
    """Wrap a function so that every call is compared with its signature. Without shapes, it stays as it is."""
    signature = inspect.signature(function)
    hints = hints_of(function) if hints is None else hints
    if function.__name__ in ANY_SHAPE:
        hints = dict.fromkeys(hints, shapes.Array)
    checks = {name: check for name, hint in hints.items() if (check := check_of(hint, {}))}
    check_result = checks.pop("return", None)
    if not checks and not check_result:
        return function

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        arguments = dict(zip(signature.parameters, args)) | kwargs
        call = Call(function.__qualname__, arguments)
        if hasattr(arguments.get("self"), "params"):  # a method: its shapes are those of its object
            check_of(eval("Params", NAMES), {})(call, "params", arguments["self"].params)
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
    """Replace the functions of a module, and the methods of its classes, by checked ones."""
    for name, thing in list(vars(module).items()):
        if inspect.isfunction(thing) and thing.__module__ == module.__name__:
            setattr(module, name, checked(thing))
        if inspect.isclass(thing) and thing.__module__ == module.__name__:
            methods = {key: checked(method) for key, method in vars(thing).items() if inspect.isfunction(method)}
            setattr(module, name, type(name, (thing,), methods))
    return module
