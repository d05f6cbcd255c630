"""GPT-2 in NumPy: one forward pass, read from the bottom up, and a command line that continues a prompt.

    python gpt2.py "Alan Turing theorized that computers would one day become" --n_tokens_to_generate 40

The dimensions, with their names in the signatures and their values for the smallest model (124M):

    n_vocab  Vocab   50257  tokens in the vocabulary
    n_ctx    Ctx      1024  positions the model can look back on
    n_embd   Embd      768  numbers that stand for one token on its way through the model
             Hidden   3072  4 n_embd, the width inside the feed-forward network
             QKV      2304  3 n_embd, the queries, keys and values of all heads side by side
    n_head   Head       12  attention heads
    d_head   DHead      64  n_embd / n_head, the width of one head
    n_layer  Layer      12  transformer blocks
    n_seq    Seq            positions in this call
    n_past                  positions before them, whose keys and values are in the cache already
             Keys           n_past + n_seq
             Room           positions that a cache has room for
             Picked         entries that were picked out of others

`Matrix[Seq, Embd]` is an array of n_seq rows of n_embd numbers, `Vector[Embd]` one such row, `Heads[Seq, DHead]` n_head
matrices; `KV` is two of those, the keys and the values of one layer, and `Cache` n_layer KVs; IdsLike are token ids in
any sequence. In, Out and Value stand for any width, the same one throughout a signature, Array for any array, Some for
any size. The parameters keep the checkpoint's own names and nesting, so that `**params` makes every signature the
schema of what it is given: `Linear[In, Out]` has w and b, Norm g and b, and Mlp, Attn, Block and Params have as keys
what `ffn`, `mha`, `transformer_block` and `gpt2` name. mypy and pyright check all this before anything runs
(picogpt/shapes.py), except how many rows a slice keeps and what sizes a new array gets: these are believed.

Every function of the model returns an array of its arguments' dtype; leading axes (a batch) pass through.

The model: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3, which refers back to
Radford et al. 2018 (GPT) and Vaswani et al. 2017 ("Attention Is All You Need").
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from picogpt.typing import shaped_numpy as np  # the same functions, with shapes
    from picogpt.typing.shaped_numpy import Cache, Heads, IdsLike, KV, Matrix, Vector
    from picogpt.typing.shapes import Ctx, DHead, Embd, Hidden, Keys, QKV, Room, Seq, Some, Vocab
    from picogpt.typing.shapes import Array, In, Out, Value
    from picogpt.typing.shapes import Attn, Block, Choose, Linear, Mlp, Norm, Params
else:
    import numpy as np

# Measured on a 960-token prompt: larger chunks amortize the packing of the weights that a matrix product begins with,
# smaller blocks of queries compute less of the triangle that the mask throws away, and keep the scores in the cache.
N_CHUNK = 480
N_BLOCK = 96


# ---------------------------------------------------------------------------------------------- the model, bottom up


def gelu(x: Matrix[Seq, Hidden]) -> Matrix[Seq, Hidden]:
    """Gaussian error linear unit, in the tanh form that GPT-2 was trained with (Hendrycks & Gimpel 2016, section 2).

    0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))), with x taken out of the bracket: one pass over memory fewer.
    Any shape does, this is the one it meets: gelu([-1, 0, 1]) = [-0.1588, 0, 0.8412]
    """
    c = math.sqrt(2 / math.pi)  # a Python float: a NumPy scalar would turn float32 into float64
    return 0.5 * x * (1 + np.tanh(x * (c + 0.044715 * c * (x * x))))


def softmax(x: Array) -> Array:
    """Positive numbers that sum to 1 along the last axis, in the ratios e^x.

    The largest x is subtracted first: the ratios stay, and nothing overflows. softmax([0, log 3]) = [0.25, 0.75]
    """
    exp_x = np.exp(x - x.max(axis=-1, keepdims=True))
    return exp_x / exp_x.sum(axis=-1, keepdims=True)


def layer_norm(x: Matrix[Seq, Embd], g: Vector[Embd], b: Vector[Embd], eps: float = 1e-5) -> Matrix[Seq, Embd]:
    """Each position to mean 0 and variance 1, then scaled by g and moved by b (Ba et al. 2016).

    The variance divides by n_embd, not n_embd - 1.
    """
    n_embd = x.shape[-1]
    centred = x - x.sum(axis=-1, keepdims=True) / n_embd
    variance = (centred * centred).sum(axis=-1, keepdims=True) / n_embd
    return centred / np.sqrt(variance + eps) * g + b


def linear(x: Matrix[Seq, In], w: Matrix[In, Out], b: Vector[Out]) -> Matrix[Seq, Out]:
    """Every row of x times w, plus b: the checkpoint stores w this way round."""
    return x @ w + b


def ffn(x: Matrix[Seq, Embd], c_fc: Linear[Embd, Hidden], c_proj: Linear[Hidden, Embd]) -> Matrix[Seq, Embd]:
    """The feed-forward network: each position on its own, to 4 n_embd and back."""
    return linear(gelu(linear(x, **c_fc)), **c_proj)


def attention(
    q: Heads[Seq, DHead], k: Heads[Keys, DHead], v: Heads[Keys, Value], mask: Matrix[Seq, Keys] | float
) -> Heads[Seq, Value]:
    """Each query takes the average of the values, weighted by how well the keys match (Vaswani et al. 2017, eq. 1).

    mask is 0 where a query may look, -inf where not. All heads at once: a stack of matrices is multiplied matrix by
    matrix.
    """
    return softmax(q / math.sqrt(q.shape[-1]) @ np.swapaxes(k, -1, -2) + mask) @ v


def causal_attention(q: Heads[Seq, DHead], k: Heads[Keys, DHead], v: Heads[Keys, Value]) -> Heads[Seq, Value]:
    """Attention in which a position sees itself and what came before.

    The queries are those of the last n_q positions that have keys, so query i may look at the keys up to n_past + i:
    one formula for a prompt (n_past 0), a later chunk of it, and a single decoded token. Blocks of queries skip keys
    they can't see.
    """
    n_q, n_past = q.shape[-2], k.shape[-2] - q.shape[-2]
    if n_q == 1:  # the last position sees them all
        return attention(q, k, v, 0.0)
    rows: list[Heads[Seq, Value]] = []
    for start in range(0, n_q, N_BLOCK):
        stop = min(start + N_BLOCK, n_q)
        seen = n_past + stop
        visible = np.tri(stop - start, seen, n_past + start, dtype=bool)
        mask: Matrix[Seq, Keys] = np.where(visible, 0, -math.inf).astype(q.dtype)
        rows.append(attention(q[..., start:stop, :], k[..., :seen, :], v[..., :seen, :], mask))
    return np.concatenate(rows, axis=-2)


def split_heads(x: Matrix[Seq, QKV], n_head: int) -> Heads[Seq, DHead]:
    """Every head gets its own d_head columns."""
    # Believed: the sizes that a reshape makes, for a checker does not divide.
    return np.swapaxes(np.reshape(x, (*x.shape[:-1], n_head, x.shape[-1] // n_head)), -2, -3)


def merge_heads(x: Heads[Seq, DHead]) -> Matrix[Seq, Embd]:
    """The heads side by side again: the inverse of `split_heads`."""
    # Believed, likewise.
    rows = np.swapaxes(x, -2, -3)
    return np.reshape(rows, (*rows.shape[:-2], rows.shape[-2] * rows.shape[-1]))


def remember(
    k: Heads[Seq, DHead], v: Heads[Seq, DHead], cache: KV[Room, DHead], n_past: int
) -> tuple[Heads[Keys, DHead], Heads[Keys, DHead]]:
    """Write the new keys and values behind the n_past old ones, in place; return old and new together, as views."""
    n = n_past + k.shape[-2]
    cache[0, ..., n_past:n, :] = k
    cache[1, ..., n_past:n, :] = v
    return cache[0, ..., :n, :], cache[1, ..., :n, :]


def mha(
    x: Matrix[Seq, Embd],
    c_attn: Linear[Embd, QKV],
    c_proj: Linear[Embd, Embd],
    n_head: int,
    cache: KV[Room, DHead] | None = None,
    n_past: int = 0,
) -> Matrix[Seq, Embd]:
    """Multi-head attention: the only place where positions exchange anything."""
    heads = split_heads(linear(x, **c_attn), 3 * n_head)  # first those of the queries, then keys, then values
    q, k, v = (heads[..., i * n_head : (i + 1) * n_head, :, :] for i in range(3))
    if cache is not None:
        k, v = remember(k, v, cache, n_past)
    return linear(merge_heads(causal_attention(q, k, v)), **c_proj)


def transformer_block(
    x: Matrix[Seq, Embd],
    mlp: Mlp,
    attn: Attn,
    ln_1: Norm,
    ln_2: Norm,
    n_head: int,
    cache: KV[Room, DHead] | None = None,
    n_past: int = 0,
) -> Matrix[Seq, Embd]:
    """Attention, then the feed-forward network, each added to what it was computed from."""
    x = x + mha(layer_norm(x, **ln_1), **attn, n_head=n_head, cache=cache, n_past=n_past)
    return x + ffn(layer_norm(x, **ln_2), **mlp)


def gpt2(
    inputs: IdsLike[Seq],
    wte: Matrix[Vocab, Embd],
    wpe: Matrix[Ctx, Embd],
    blocks: Sequence[Block],
    ln_f: Norm,
    n_head: int,
    cache: Cache[Room, DHead] | None = None,
    n_past: int = 0,
    n_logits: int | None = None,
) -> Matrix[Some, Vocab]:
    """The forward pass: from token ids to logits, row i scoring what may follow inputs[: i + 1].

    wte embeds the tokens and, transposed, makes scores of the result; wpe embeds the positions. With a cache (see
    `empty_cache`) the inputs stand at positions n_past, n_past + 1, …, the keys and values of the n_past before them
    are read from it and their own are written into it. n_logits asks for the last rows only: the vocabulary is the
    largest matrix. Raises ValueError past n_ctx. Example: gpt2([464, 3290], **params, n_head=12)
    """
    inputs = np.asarray(inputs)
    n_seq = inputs.shape[-1]
    if n_past + n_seq > len(wpe):
        raise ValueError(f"{n_past + n_seq} positions, but the model was trained on n_ctx = {len(wpe)}")
    x = wte[inputs] + wpe[n_past : n_past + n_seq]
    for layer, block in enumerate(blocks):
        x = transformer_block(x, **block, n_head=n_head, cache=None if cache is None else cache[layer], n_past=n_past)
    if n_logits is not None:
        x = x[..., max(0, n_seq - n_logits) :, :]
    return layer_norm(x, **ln_f) @ np.transpose(wte)


# ------------------------------------------------------------------------------------------------- choosing a token


def penalize(logits: Vector[Vocab], ids: Sequence[int], repetition_penalty: float) -> Vector[Vocab]:
    """Make tokens that are there already less likely, each once however often it occurs (Keskar et al. 2019, 4.1)."""
    seen = np.unique(np.asarray(ids, dtype=np.intp))
    penalized = logits.copy()
    penalized[seen] = np.where(logits[seen] > 0, logits[seen] / repetition_penalty, logits[seen] * repetition_penalty)
    return penalized


def keep_top_k(logits: Vector[Vocab], top_k: int) -> Vector[Vocab]:
    """All but the top_k largest logits to -inf (0 keeps all); of equals the lower id stays."""
    if not 0 < top_k < len(logits):
        return logits
    kept = np.argsort(-logits, kind="stable")[:top_k]
    filtered = np.full_like(logits, -math.inf)
    filtered[kept] = logits[kept]
    return filtered


def keep_top_p(logits: Vector[Vocab], top_p: float) -> Vector[Vocab]:
    """All to -inf but the smallest set of likeliest tokens whose probabilities reach top_p (Holtzman et al. 2020, 3.1).

    At least one token stays, also at top_p = 0; 1 keeps all.
    """
    if top_p >= 1:
        return logits
    order = np.argsort(-logits, kind="stable")
    cumulative = np.cumsum(softmax(logits[order]))
    return keep_top_k(logits, int(np.searchsorted(cumulative, top_p)) + 1)


def token_probs(
    logits: Vector[Vocab], ids: Sequence[int], temperature: float, top_k: int, top_p: float, repetition_penalty: float
) -> Vector[Vocab]:
    """The probabilities that the next token is drawn from, in float64.

    Temperature 0 puts everything on the largest logit; ties go to the lower id.
    """
    logits = penalize(logits.astype(np.float64), ids, repetition_penalty)
    logits = logits - np.max(logits)  # a tiny temperature then divides 0 or a negative number: no inf - inf
    if temperature == 0:
        return np.where(np.arange(len(logits)) == np.argmax(logits), 1.0, 0.0)
    with np.errstate(over="ignore"):
        logits = logits / temperature
    return softmax(keep_top_p(keep_top_k(logits, top_k), top_p))


def sample(
    logits: Vector[Vocab],
    ids: Sequence[int],
    rng: np.random.Generator,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
) -> int:
    """Draw the id that follows ids. The same generator state gives the same id."""
    probs = token_probs(logits, ids, temperature, top_k, top_p, repetition_penalty)
    return int(rng.choice(len(probs), p=probs))


def greedy(logits: Vector[Vocab], ids: Sequence[int]) -> int:
    """The likeliest id; the lower one of two that tie."""
    return int(np.argmax(logits))


# -------------------------------------------------------------------------------------------------------- generating


def empty_cache(params: Params, n_head: int, n_ctx: int) -> Cache[Room, DHead]:
    """Room for the keys and values of n_ctx positions, uninitialized: [n_layer, 2, n_head, n_ctx, d_head].

    What is valid in it is the caller's n_past: going back to an earlier position is passing a smaller one.
    """
    wpe = params["wpe"]
    return np.empty((len(params["blocks"]), 2, n_head, n_ctx, wpe.shape[1] // n_head), wpe.dtype)


def next_logits(
    inputs: Sequence[int], params: Params, n_head: int, cache: Cache[Room, DHead], n_past: int
) -> Vector[Vocab]:
    """Feed inputs through the model, N_CHUNK at a time, and score what follows the last of them."""
    for start in range(0, len(inputs), N_CHUNK):
        chunk = inputs[start : start + N_CHUNK]
        n_logits = int(start + N_CHUNK >= len(inputs))
        logits = gpt2(chunk, **params, n_head=n_head, cache=cache, n_past=n_past + start, n_logits=n_logits)
    return logits[-1]


def check_lengths(n_prompt: int, n_tokens_to_generate: int, n_ctx: int) -> None:
    """Raise ValueError unless that many new tokens fit behind the prompt. The last is never fed back: it fits too."""
    n_fit = n_ctx - n_prompt + 1
    if n_prompt == 0:
        raise ValueError("the prompt is empty, but the model needs at least 1 token to continue")
    if n_tokens_to_generate < 0:
        raise ValueError(f"{n_tokens_to_generate} tokens to generate are fewer than 0")
    if n_tokens_to_generate > n_fit:
        room = f"only {n_fit} fit" if n_fit > 0 else f"the prompt alone is {n_prompt - n_ctx} too long"
        raise ValueError(
            f"{n_prompt} prompt tokens + {n_tokens_to_generate} to generate exceed the context of {n_ctx}: {room}"
        )


def generate(
    inputs: Iterable[int], params: Params, n_head: int, n_tokens_to_generate: int, choose: Choose = greedy
) -> Iterator[int]:
    """Yield the ids that continue inputs, one after another; inputs itself is left as it is.

    choose(logits, ids so far) picks each one. Raises ValueError when prompt and new tokens exceed n_ctx, or
    an id is not in the vocabulary. Example: list(generate([464, 3290], params, n_head=12, n_tokens_to_generate=3))
    """
    ids, n_vocab = list(inputs), len(params["wte"])
    check_lengths(len(ids), n_tokens_to_generate, len(params["wpe"]))
    if not 0 <= min(ids) <= max(ids) < n_vocab:
        raise ValueError(f"the ids are {min(ids)} to {max(ids)}, but the vocabulary has 0 to {n_vocab - 1}")
    cache = empty_cache(params, n_head, len(ids) + n_tokens_to_generate - 1)
    n_past = 0
    for _ in range(n_tokens_to_generate):
        logits = next_logits(ids[n_past:], params, n_head, cache, n_past)
        n_past = len(ids)
        ids.append(choose(logits, ids))
        yield ids[-1]


# ------------------------------------------------------------------------------------------------- the command line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; --help shows it."""
    from utils import Parser, number

    parser = Parser(
        description="Continue a prompt with GPT-2. The text goes to stdout, everything else to stderr.",
        epilog="""examples:
  python gpt2.py "Alan Turing theorized that computers would one day become" --n_tokens_to_generate 40
  python gpt2.py "Once upon a time" --temperature 0.8 --top_p 0.95 --seed 1 --stop "The end"
  cat story.txt | python gpt2.py - --model_size 355M > continuation.txt""",
    )
    whole, add = number(0, kind=int), parser.add_argument
    add("prompt", help="the text to continue, or - for standard input (without its last line end)")
    add("--n_tokens_to_generate", type=whole, default=40, metavar="N", help="(default: 40)")
    add("--model_size", default="124M", help="124M, 355M, 774M, 1558M or a folder of --models_dir (default: 124M)")
    add("--models_dir", default="models", help="where the models are, or go (default: models)")
    add("--temperature", type=number(0), default=0.0, metavar="T", help="0: the likeliest token (default); 1: sample")
    add("--top_k", type=whole, default=0, metavar="K", help="sample from the K likeliest; 0: from all (default)")
    add("--top_p", type=number(0, 1), default=1.0, metavar="P", help="sample from the likeliest that reach P")
    add("--repetition_penalty", type=number(0.01, 100), default=1.0, metavar="R", help="above 1: repeat less")
    add("--seed", type=whole, default=None, metavar="S", help="the same seed gives the same text")
    add("--stop", default=None, metavar="TEXT", help="end before this text")
    args = parser.parse_args(argv)
    if args.stop == "":
        parser.error("argument --stop: the text is empty")
    return args


def stop_before(pieces: Iterable[str], stop: str | None) -> Iterator[str]:
    """Pass text on until `stop` comes. The end of what came so far waits while it could be the beginning of `stop`."""
    held = ""
    for piece in pieces:
        held += piece
        if stop is not None and stop in held:
            yield held[: held.index(stop)]
            return
        n = 0 if stop is None else max(n for n in range(len(stop)) if held.endswith(stop[:n]))
        yield held[: len(held) - n]
        held = held[len(held) - n :]
    yield held


def warn(args: argparse.Namespace, prompt: str) -> None:
    """Say on stderr what is allowed but hardly meant."""
    if prompt.endswith(" "):
        print("warning: the prompt ends in a space; GPT-2's words begin with one, so it gets worse", file=sys.stderr)
    defaults = {"top_k": 0, "top_p": 1.0, "seed": None}
    unused = [name for name, default in defaults.items() if getattr(args, name) != default]
    if args.temperature == 0 and unused:
        print(f"warning: --{unused[0]} has no effect without a --temperature above 0", file=sys.stderr)


def stamp(ids: Iterable[int], times: list[float]) -> Iterator[int]:
    """Pass ids on, and note when each one came."""
    for id in ids:
        times.append(time.perf_counter())
        yield id


def say_speed(n_prompt: int, times: list[float]) -> None:
    """Say on stderr how fast it was; times are the start and when each id came."""
    if len(times) > 1:
        rate = f", then {(len(times) - 2) / (times[-1] - times[1]):.1f} tokens/s" if len(times) > 2 else ""
        print(f"[{n_prompt} prompt tokens in {times[1] - times[0]:.2f} s{rate}]", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """prompt -> ids -> logits -> id -> text, and again until there is enough of it."""
    from utils import UsageError, load_encoder_hparams_and_params, read_prompt

    args = parse_args(argv)
    prompt = read_prompt(args.prompt)
    if not prompt:
        raise UsageError("the prompt is empty, but the model needs at least 1 token to continue")
    encoder, hparams, params = load_encoder_hparams_and_params(args.model_size, args.models_dir)
    ids = encoder.encode(prompt)
    try:
        check_lengths(len(ids), args.n_tokens_to_generate, hparams["n_ctx"])
    except ValueError as error:
        raise UsageError(str(error)) from None
    warn(args, prompt)
    settings = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "repetition_penalty")}
    choose: Choose = functools.partial(sample, rng=np.random.default_rng(args.seed), **settings)
    if args.temperature == 0 and args.repetition_penalty == 1:
        choose = greedy
    times = [time.perf_counter()]
    new_ids = stamp(generate(ids, params, hparams["n_head"], args.n_tokens_to_generate, choose), times)
    for text in stop_before(encoder.decode_stream(new_ids), args.stop):
        print(text, end="", flush=True)
    print(flush=True)
    say_speed(len(ids), times)
    return 0


if __name__ == "__main__":
    from utils import run

    sys.exit(run(main))
