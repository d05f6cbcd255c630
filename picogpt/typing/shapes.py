"""The words of gpt2.py's signatures: `Matrix[Seq, Embd]` is an array of n_seq rows of n_embd numbers.

For type checkers and the tests; nothing imports this module while the model runs. To a checker the dimensions are
distinct names, and arrays are invariant in them: [Seq, Embd] and [Seq, Vocab] have no type in common that an operator
would take. NumPy's own array type is covariant in its shape, and its operators forget it. So `shaped_numpy.pyi` says
once more, with shapes, what gpt2.py uses of NumPy; to a checker that file is what gpt2.py calls np. It has the kinds:

    Vector[N]     one row of N numbers            Heads[R, C]   n_head matrices
    Ids[N]        N whole numbers                 KV[R, C]      2 times that: the keys and values of one layer
    Matrix[R, C]  R rows of C numbers             Cache[R, C]   n_layer times that

The price: to a checker a plain np.ndarray is none of these. `np.asarray(x)` leads out, `typing.cast` in; token ids may
be plain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NewType, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias, TypedDict

    from typing_extensions import Never

    from picogpt.typing.shaped_numpy import Matrix, Shaped, Vector
else:

    class TypedDict:
        """typing's own can't be generic before Python 3.11."""


# The dimensions: what the text of gpt2.py calls them, their values in the smallest model (124M), what they count.
Vocab = NewType("Vocab", int)  # n_vocab, 50257: tokens in the vocabulary
Ctx = NewType("Ctx", int)  # n_ctx, 1024: positions the model can look back on
Embd = NewType("Embd", int)  # n_embd, 768: numbers that stand for one token on its way through the model
Head = NewType("Head", int)  # n_head, 12: attention heads
DHead = NewType("DHead", int)  # d_head, 64: numbers in one head's query, key or value, n_embd / n_head
Layer = NewType("Layer", int)  # n_layer, 12: transformer blocks
QKV = NewType("QKV", int)  # 3 n_embd, 2304: the queries, keys and values of all heads, side by side
Hidden = NewType("Hidden", int)  # 4 n_embd, 3072: numbers for one position inside the feed-forward network
Seq = NewType("Seq", int)  # n_seq: positions in this call
Keys = NewType("Keys", int)  # n_past + n_seq: positions whose keys and values there are
Picked = NewType("Picked", int)  # entries that were picked out of others
Room = NewType("Room", int)  # positions that a cache has room for

# Any dimension or array, the same one wherever the name stands in a signature. mypy (2.4; not pyright) forgets that the
# arguments of `linear` contradict each other where its result goes straight into another parameter of such a type: what
# gpt2.py calls with it says its dimensions.
In = TypeVar("In")
Out = TypeVar("Out")
Value = TypeVar("Value")  # the width of what attention averages
Array = TypeVar("Array", bound="Shaped[Never]")

Some: TypeAlias = Any  # a size that no checker follows: of a slice, or a reshape

Choose: TypeAlias = "Callable[[Vector[Vocab], Sequence[int]], int]"  # the next id, from its logits and the ids so far


# The parameters: the checkpoint's tree, with its names.
class Linear(TypedDict, Generic[In, Out]):
    w: Matrix[In, Out]
    b: Vector[Out]


class Norm(TypedDict):
    g: Vector[Embd]
    b: Vector[Embd]


class Mlp(TypedDict):
    c_fc: Linear[Embd, Hidden]
    c_proj: Linear[Hidden, Embd]


class Attn(TypedDict):
    c_attn: Linear[Embd, QKV]
    c_proj: Linear[Embd, Embd]


class Block(TypedDict):
    mlp: Mlp
    attn: Attn
    ln_1: Norm
    ln_2: Norm


class Params(TypedDict):
    wte: Matrix[Vocab, Embd]
    wpe: Matrix[Ctx, Embd]
    blocks: list[Block]
    ln_f: Norm
