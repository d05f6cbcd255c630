"""The names in the shape comments of gpt2.py: Matrix[n_seq, n_embd] is n_seq rows of n_embd numbers each.

Type checkers read the comments as signatures (PEP 484 calls them type comments), and so do the tests, which compare
them with the real arrays. Nothing imports this module while the model runs. If checkers stop reading type comments one
day, the same text moves into annotations.

    Vector[n]     n numbers                     Heads[r, c]   a matrix for each of n_head attention heads
    Ids[n]        n whole numbers               KV            two Heads: the keys and the values of one layer
    Matrix[r, c]  r rows of c numbers           Cache         the keys and the values of all n_layer layers

Each dimension is a type of its own, so that a type checker does not confuse two of them. NumPy's own array type is not
used here, because its operators forget the shape. Therefore shaped_numpy.pyi describes the functions of NumPy that
gpt2.py uses, with shapes. To a checker, a plain np.ndarray has none of these types: `typing.cast` gives it one of them,
and `np.asarray(x)` returns a plain array again. Token ids may be plain.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, NewType, TypeVar

if TYPE_CHECKING:
    from typing import TypeAlias, TypedDict

    from typing_extensions import Never

    from picogpt.typing.shaped_numpy import KV, Cache, Heads, Ids, IdsLike, Matrix, Shaped, Vector
else:

    class TypedDict:
        """A replacement for typing.TypedDict, which can't be generic before Python 3.11."""


__all__ = [
    "KV", "Any", "Array", "Attn", "Block", "Cache", "Choose", "Heads", "Ids", "IdsLike", "Iterable", "Iterator",
    "Linear", "Matrix", "Mlp", "Namespace", "Norm", "Params", "Sequence", "Vector", "d_head", "n_ctx", "n_embd",
    "n_hidden", "n_in", "n_keys", "n_out", "n_qkv", "n_seq", "n_vocab",
]  # fmt: skip

# The dimensions, with their values in the smallest model (124M).
n_vocab = NewType("n_vocab", int)  # 50257: tokens in the vocabulary
n_ctx = NewType("n_ctx", int)  # 1024: positions that the model was trained on
n_embd = NewType("n_embd", int)  # 768: numbers that represent one token inside the model
n_hidden = NewType("n_hidden", int)  # 3072 = 4 n_embd: numbers for one position inside the feed-forward network
n_qkv = NewType("n_qkv", int)  # 2304 = 3 n_embd: the queries, keys and values of all heads, side by side
n_head = NewType("n_head", int)  # 12: attention heads
d_head = NewType("d_head", int)  # 64 = n_embd / n_head: numbers in one head's query, key or value
n_layer = NewType("n_layer", int)  # 12: transformer blocks
n_seq = NewType("n_seq", int)  # positions in this call
n_room = NewType("n_room", int)  # positions that a cache has room for

# These stand for any dimension or array, and for the same one throughout a signature.
n_in = TypeVar("n_in")
n_out = TypeVar("n_out")
n_keys = TypeVar("n_keys")  # n_past + n_seq: positions whose keys and values attention reads
Array = TypeVar("Array", bound="Shaped[Never]")

Choose: TypeAlias = "Callable[[Vector[n_vocab], Sequence[int]], int]"  # picks an id from its logits and the ids so far
Ended: TypeAlias = "Callable[[Sequence[int]], bool]"  # tells from the new ids of a sample whether they are all


# The parameters: the checkpoint's tree, with its names.
class Linear(TypedDict, Generic[n_in, n_out]):
    w: Matrix[n_in, n_out]
    b: Vector[n_out]


class Norm(TypedDict):
    g: Vector[n_embd]
    b: Vector[n_embd]


class Mlp(TypedDict):
    c_fc: Linear[n_embd, n_hidden]
    c_proj: Linear[n_hidden, n_embd]


class Attn(TypedDict):
    c_attn: Linear[n_embd, n_qkv]
    c_proj: Linear[n_embd, n_embd]


class Block(TypedDict):
    mlp: Mlp
    attn: Attn
    ln_1: Norm
    ln_2: Norm


class Params(TypedDict):
    wte: Matrix[n_vocab, n_embd]
    wpe: Matrix[n_ctx, n_embd]
    blocks: list[Block]
    ln_f: Norm
