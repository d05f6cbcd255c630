# %% tags=["remove-cell"]
# This is the source of docs/walkthrough.md, its pictures, and docs/walkthrough.ipynb, in jupytext's percent format.
# `python docs/build_walkthrough.py` builds them. In place of the imports in a cell with the tag quote stand the
# functions themselves, so that a reader of the notebook can change them. A cell with the tag remove-input shows its
# output only, and the notebook folds its code. A cell with the tag remove-cell appears in neither: these check what the
# sentences before them say, so that a build with another model fails instead of telling lies.

# %% [markdown]
# # GPT-2, step by step
#
# GPT-2 does one thing: it reads the beginning of a text, and gives every possible next piece of text a score. To write,
# a program chooses a piece by its score, appends it, and asks again. This page follows one sentence through the model.
# You need to know NumPy, but nothing about language models.
#
# The functions on this page are those of [gpt2.py](../gpt2.py) and [encoder.py](../encoder.py). The model is
# `models/tiny`, which learned from Shakespeare's plays. It is built like OpenAI's GPT-2, but small enough to look at.
#
# To change something and see what happens, open the page as a [notebook](walkthrough.ipynb). Besides the packages that
# the [README](../README.md) installs, it needs only Jupyter: after `pip install notebook`, the command
# `jupyter notebook docs/walkthrough.ipynb` opens it. (If matplotlib is installed, the pictures are drawn with your
# changes. Otherwise, you see the stored ones.) You can also type the blocks one after another into IPython or a file.
# Start it in your clone of picogpt, or in a folder of it:

# %%
import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

# Find the clone. It may also be in sys.path.
folders = [Path.cwd(), *Path.cwd().parents, *map(Path, sys.path)]
found = [folder for folder in folders if (folder / "docs" / "walkthrough.py").exists()]
if not found:
    go = 'import os; os.chdir("/path/to/picogpt")'
    raise FileNotFoundError(f"{Path.cwd()} is not in a clone of picogpt. First: {go}")
clone = found[0].resolve()
sys.path.insert(0, str(clone))

import numpy as np

import gpt2 as original  # its functions; this page defines them once more, one by one
from utils import load_encoder_hparams_and_params

np.set_printoptions(precision=2, suppress=True)
model = "tiny"
encoder, hparams, params = load_encoder_hparams_and_params(model, clone / "models")
n_head = hparams["n_head"]
print(hparams)

# %% tags=["remove-input"]
# These helpers only display tables and pictures. Nothing else depends on them.
import io
import json
from types import FunctionType
from unittest.mock import patch

from IPython.display import Image, Markdown, display

from picogpt import look_inside, plot_attention, plot_head, plot_lens, plot_residual

try:
    from matplotlib.figure import Figure
except ImportError:
    Figure = None


def table(header, rows):
    """Display a table. All columns but the first hold numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    display(Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)))


def look():
    """Return `look_inside` of the text, computed with the functions of this page, as far as they are defined."""
    names = vars(original)
    ours = {name: thing for name, thing in globals().items() if not name.startswith("_")}
    for name, thing in ours.items():
        if getattr(thing, "__globals__", None) is globals():  # call what is in gpt2.py, where the recorder listens
            ours[name] = FunctionType(thing.__code__, names, name, thing.__defaults__, thing.__closure__)
    with patch.dict(names, ours):
        return look_inside(text, model, clone / "models")


def drawn(axes):
    """Return the numbers and words that a diagram shows."""
    arrays = [image.get_array() for image in axes.images] + [np.asarray(line.get_ydata()) for line in axes.lines]
    numbers = [np.ma.filled(array, -1).round(5).tolist() for array in arrays]
    return {"numbers": numbers, "words": [axes.get_title("left"), *(text.get_text() for text in axes.texts)]}


def picture(name, draw, width, height, alt):
    """Display what draw(figure) draws, or the stored picture of this name if matplotlib is missing.

    The file also holds what is drawn, because matplotlib's versions differ in their pixels.
    """
    if Figure is None:
        stored = (clone / "docs" / "walkthrough" / f"{name}.png").read_bytes()
        display(Image(stored, format="png", alt=alt))
        return
    figure = Figure((width, height), layout="constrained")
    draw(figure)
    file = io.BytesIO()
    notes = {"Software": None, "Comment": json.dumps([drawn(axes) for axes in figure.axes])}
    figure.savefig(file, format="png", dpi=100, metadata=notes)
    display(Image(file.getvalue(), format="png", alt=alt))


# %% [markdown]
# These numbers are the model's *hyperparameters*, which describe its size. The model itself is in `params`: more than a
# million numbers in nested dictionaries, with the names of OpenAI's files.
#
# A text goes through the model in three stages:
#
# - The text is cut into *tokens* (section 1), and each token becomes a vector (2).
# - The vectors pass through `n_layer` *blocks*, also called *layers*. In each block, *attention* lets the vectors
#   exchange information (3 to 6), and a *feed-forward network* works on each vector alone (7 and 8).
# - The last vector gives every token a score (9), and one token is chosen (11).
#
# All blocks are built alike, but each has its own numbers. Sections 3 to 8 follow the first one. At the ends of three
# sections you write a function yourself.
#
# ## 1. From text to tokens
#
# A model computes with numbers, so the text must become numbers first. Single bytes mean little. Whole words would be
# too many, and a new word would have no number. GPT-2 takes something in between, *tokens*: strings of bytes that occur
# often, such as a word or a part of one. The list of all `n_vocab` tokens is the *vocabulary*, and the place of a token
# in it is its *id*.
#
# Our text is the start of a proclamation, and its next word should be *king*. First, a regular expression cuts it into
# pieces, so that no token reaches across two words. The space before a word belongs to the word.

# %%
text = "The king is dead. Long live the"
print(encoder.pieces.findall(text))

# %% [markdown]
# Then each piece is turned into UTF-8 bytes, and each byte is written as one visible character, so that tokens can be
# stored as text. Most letters stand for themselves, a space becomes `Ġ`, and the two bytes of `é` become `Ã` and `©`.
# All 256 possible bytes are tokens, so every text can be encoded.

# %% tags=["quote"]
from encoder import bytes_to_unicode

# %%
visible = bytes_to_unicode()
for word in (" king", "é"):
    print(repr(word), [visible[byte] for byte in word.encode("utf-8")])

# %% [markdown]
# Finally, two neighbouring symbols are joined, if they are in a list of pairs, the *merges*. This list was made by
# counting in the text that the model later learned from. The most frequent pair became the first merge, and was joined
# everywhere. Then all pairs were counted again to find the second merge, and so on. This is *byte pair encoding* (BPE).
#
# In a piece, the pair that stands earliest in the list is joined first. Watch it on ` king`. Each line shows the
# symbols, and the place in the list of each pair of neighbours (`-`: not in the list):

# %%
ranks = encoder.ranks  # each merge, such as "i n", with its place in the list, its rank
symbols = list("Ġking")
while len(symbols) > 1:
    pairs = [f"{a} {b}" for a, b in pairwise(symbols)]
    print(symbols, *(ranks.get(pair, "-") for pair in pairs))
    best = min(pairs, key=lambda pair: ranks.get(pair, math.inf))
    i = pairs.index(best)
    symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
print(symbols)

# %% [markdown]
# First `i` and `n` are joined, whose merge has rank 6. Then `in` and `g` are neighbours, with rank 39, and so on, until
# ` king` is one token. `merge` does this for any piece. It also stops when no pair is in the list, and it looks up only
# the ranks of new pairs:

# %% tags=["quote"]
from encoder import merge

# %% [markdown]
# `pair_ranks[i]` is the rank of the pair `symbols[i]`, `symbols[i + 1]`. The densest line is the one with two `=`.
# Python computes its right side first: `symbols.pop(i + 1)` takes the right symbol out of the list and returns it, and
# `+` appends it to the left one. The result is stored twice, in `symbols[i]` and as `joined`. Then the list has one
# pair less, and the two pairs beside the new symbol get new ranks.
#
# A rarer word stays in several parts, such as ` Long` here. The vocabulary gives each token its id:

# %%
print(merge(list("ĠLong"), ranks))
ids = encoder.encode(text)
for id in ids:
    print(f"{id:4} {encoder.decode([id])!r}")

# %% tags=["remove-cell"]
tokens = [encoder.decode([id]) for id in ids]
assert tokens == ["The", " king", " is", " dead", ".", " L", "ong", " live", " the"]
assert (ranks["i n"], ranks["in g"]) == (6, 39)

# %% [markdown]
# ## 2. Embeddings: from ids to vectors
#
# An id is only a name: that 504 is near 503 means nothing. So the model looks up a vector of `n_embd` numbers for each
# id, its *embedding*, in the matrix `wte` (word token embeddings). These numbers are *parameters*. They began at
# random, and *training* changed them a little at a time, so that the model would give more probability to the token
# that really came next (section 10). All parameters below were made like this.
#
# The cosine of the angle between two vectors measures how similar they are: 1 means the same direction, and 0 a right
# angle. Here are the tokens whose embeddings are most similar to that of ` king`:

# %%
wte, wpe = params["wte"], params["wpe"]
unit = wte / np.linalg.norm(wte, axis=1, keepdims=True)
(king,) = encoder.encode(" king")
cosines = unit @ unit[king]
for id in np.argsort(-cosines)[:5]:
    print(f"{encoder.decode([id])!r:10} {cosines[id]:.2f}")
print(f"the median of all tokens: {np.median(cosines):.2f}")

# %% tags=["remove-cell"]
nearest = [encoder.decode([id]) for id in np.argsort(-cosines)[:5]]
assert nearest == [" king", " crown", " queen", " Warwick", " prince"], nearest
assert 0.5 < np.sort(cosines)[-2] < 0.6
assert abs(np.median(cosines)) < 0.1

# %% [markdown]
# The median shows that a typical token is almost at a right angle to ` king`. Words that are used alike get similar
# embeddings, because they call for similar continuations.
#
# The order of the words matters, too. But ` king` has the same embedding wherever it stands. So each position in a text
# has an embedding of its own, in the matrix `wpe` (word position embeddings), which is added to the token's. There are
# `n_ctx` positions, so no text can be longer.

# %%
x = wte[ids] + wpe[: len(ids)]
print(x.shape)
print(x[1, :8])  # the first numbers of the vector for " king"

# %% [markdown]
# From here on, `x` has one row for each token of the text. Its shape stays the same through all blocks. At first, the
# last row stands for ` the`. After the last block, it will stand for what may come next.
#
# ## 3. Layer norm
#
# Each step of a block first brings its rows into the same range, because very large or very small numbers would make
# training unstable. `layer_norm` shifts and scales each row to mean 0 and variance 1. Then it multiplies each column by
# a number from `g`, the gain, and adds a number from `b`, the bias. Both are parameters.
#
# Comments that begin with `type:` give [shapes](shapes.md): `Matrix[n_seq, n_embd]` is an array of `n_seq` rows, one
# for each token, and `n_embd` columns. Here, `x` and the result are such arrays. Python ignores these comments.

# %% tags=["quote"]
from gpt2 import layer_norm

# %%
block = params["blocks"][0]  # the parameters of the first block
normed = layer_norm(x, g=1, b=0)
before, after = x[1].var(), normed[1].var()
print(f"variance of the row of ' king': {before:.2f} before, {after:.2f} after")

x_norm = layer_norm(x, **block["ln_1"])  # g and b of the block's 1st layer norm

# %% [markdown]
# **Exercise 1.** Write it once more, with NumPy's `mean` and `var`. Below is a first attempt, with a mistake. `check`
# runs the whole model with your function in the place of `layer_norm`, and compares every array that passes between its
# functions with the original one. Change the attempt and run it again, until all arrays are the same. (`h0/ln_1` is the
# first layer norm of block 0. [All names](trace.md) are of this kind.)

# %%
from picogpt.tracing.check import check


def my_layer_norm(x, g, b):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * g + b


print(check("layer_norm", my_layer_norm, ids, params, n_head))

# %% [markdown]
# <details>
# <summary>Answer</summary>
#
# The mean and the variance must be those of each row, not of the whole matrix. With `keepdims=True` they are columns,
# which NumPy subtracts from every column of `x`:
#
# ```python
# def my_layer_norm(x, g, b):
#     mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
#     return (x - mean) / np.sqrt(variance + 1e-5) * g + b
#
#
# print(check("layer_norm", my_layer_norm, ids, params, n_head))
# ```
#
# ```text
# All 68 arrays of the model are the same with your layer_norm.
# ```
#
# </details>
#
# ## 4. One head of attention
#
# So far, each row knows only its own token and position. To guess what follows "Long live the", the last row must find
# out from earlier rows that a king has died. Only attention can bring this information in.
#
# It works like a search, with three vectors from each row. The *query* says what the row looks for. The *key* says what
# it has to offer. The *value* is what it passes on. The dot product of a query and a key is a *score*: the better the
# two match, the larger it is. The scores of one query with all keys are turned into weights that sum to 1. The result
# is the average of the values with these weights.
#
# Queries, keys and values come from a *linear layer*, which multiplies the rows by a matrix `w` and adds a vector `b`.
# Our `x` is one text, a matrix, and for it `matmul(x, w)` is just `x @ w`. (The other case is a *batch*: several texts
# of the same length, stacked along a new first axis, which go through the model together. This page has none.)

# %% tags=["quote"]
from gpt2 import linear, matmul

# %% [markdown]
# One linear layer makes all three at once, side by side: queries `q`, keys `k` and values `v`, with `n_embd` columns
# each. Its name in OpenAI's files is `c_attn`, for attention. All linear layers of a block begin with c, for
# *convolution*, because OpenAI's program computes them as convolutions of width 1.
#
# `q`, `k` and `v` are each cut again, into `n_head` parts of `d_head = n_embd / n_head` columns, because several
# *heads* of attention work in parallel (section 6). `split_heads` only rearranges numbers. In the result, `q[2]` is the
# matrix of head 2, with a row for each token. (The `*` in front of `x.shape[:-1]` passes all sizes but the last.)

# %% tags=["quote"]
from gpt2 import split_heads

# %%
qkv = linear(x_norm, **block["attn"]["c_attn"])
q, k, v = (split_heads(part, n_head) for part in np.split(qkv, 3, axis=-1))
print(qkv.shape, q.shape)  # q has 5 heads, 9 rows, 32 numbers

# %% [markdown]
# We follow head 2, counted from 0. The scores are divided by the square root of `d_head`. Otherwise, long vectors would
# have large scores, and nearly all weight would go to a single key.

# %%
head = 2
scores = q[head] @ k[head].T / math.sqrt(q.shape[-1])
print(scores.shape)  # a score for each query with each key

# %% [markdown]
# `softmax` turns scores into weights: it takes their exponentials, and divides these by their sum.

# %% tags=["quote"]
from gpt2 import softmax

# %%
weights = softmax(scores[-1])  # of the last token, " the"
for id, score, weight in zip(ids, scores[-1], weights):
    print(f"{encoder.decode([id])!r:8} score {score:5.2f}  weight {weight:.2f}")
average = weights @ v[head]

# %% tags=["remove-cell"]
assert weights.argmax() == tokens.index(" king")
assert len(ids) - 1 - tokens.index(" king") == 7
assert 0.7 < weights[[tokens.index(word) for word in (" king", " dead", " live")]].sum() < 0.75

# %% [markdown]
# In the last row, this head looks most at ` king`, seven tokens back. Almost three quarters of its weight are on
# ` king`, ` dead` and ` live`. Nobody programmed this: it came from training.
#
# `attention` does the same for all rows of all heads at once. Each of its arguments has a comment. A `Heads` array
# holds one matrix for each head: `q` is a `Heads[n_seq, d_head]`. `n_keys` is the number of keys, here also `n_seq`.
# For arrays with three axes, `@` multiplies the two matrices of head 0, those of head 1, and so on, and
# `k.swapaxes(-1, -2)` transposes each matrix. Section 5 explains the mask.

# %% tags=["quote"]
from gpt2 import attention

# %%
of_all_heads = attention(q, k, v, mask=0.0)  # this mask hides nothing
print(average.shape, of_all_heads.shape)
print("the same average:", np.allclose(average, of_all_heads[head, -1], atol=1e-5))

# %% [markdown]
# ## 5. The causal mask
#
# In training, the model predicts the next token at every position of a text at once. Row 3 has to predict token 4. If
# row 3 could look at row 4, it would see the answer, and there would be nothing to learn. So each row may look only at
# itself and at the rows before it. The `causal_mask` is added to the scores: 0 where a row may look, and minus infinity
# where it may not. The exponential of minus infinity is 0, and so are these weights.

# %% tags=["quote"]
from gpt2 import causal_mask

# %% [markdown]
# `np.full` makes a matrix of minus infinities, and `np.triu` sets everything below one of its diagonals to 0. Here,
# there are as many keys as queries, so this is the first diagonal above the main one. (Section 12 has more keys.)

# %%
print(causal_mask(q[head, :4], k[head, :4]))  # for the first four tokens

# %% [markdown]
# We put the mask and attention together:


# %%
def causal_attention(q, k, v):
    return attention(q, k, v, causal_mask(q, k))


heads = causal_attention(q, k, v)

# %% [markdown]
# (In gpt2.py, it also saves time. Section 12 shows how.) This is where each token looks in head 2 of the first block:

# %% name="attention" tags=["remove-input"]
inside = look()
alt = "A triangle of 9 rows and 9 columns, one for each token. The last row has most weight on king."
picture("attention", lambda figure: plot_head(inside, 0, head, figure), 6.5, 6.0, alt)

# %% [markdown]
# The dot in `·king` stands for its space, and the row called `.` is the full stop. The first token can look only at
# itself, so its weight is 1. The last row has the weights from above, because the mask hides nothing from it.
#
# **Exercise 2.** Write the mask yourself. The first attempt hides nothing. (In `check`'s answer, `scores` are those
# with the mask.)


# %%
def my_causal_mask(q, k):
    n_seq, n_keys = q.shape[-2], k.shape[-2]
    return np.zeros((n_seq, n_keys), q.dtype)


print(check("causal_mask", my_causal_mask, ids, params, n_head))

# %% [markdown]
# <details>
# <summary>Answer</summary>
#
# One way is to compare the position of each query, as a column, with that of each key, as a row. The queries belong to
# the last `n_seq` positions. (If you counted them from 0, `check` is content, too, because here they are as many as the
# keys.) The result must have the dtype of `q`. Otherwise `np.where` makes it float64, and then everything after it.
#
# ```python
# def my_causal_mask(q, k):
#     n_seq, n_keys = q.shape[-2], k.shape[-2]
#     query, key = np.arange(n_keys - n_seq, n_keys)[:, None], np.arange(n_keys)
#     return np.where(key > query, -np.inf, 0).astype(q.dtype)
#
#
# print(check("causal_mask", my_causal_mask, ids, params, n_head))
# ```
#
# ```text
# All 68 arrays of the model are the same with your causal_mask.
# ```
#
# </details>
#
# ## 6. Heads side by side
#
# One head gives each row one average. But a row may need several things from different places. So `n_head` heads work
# side by side. `merge_heads` puts their results side by side again, the opposite of `split_heads`:

# %% tags=["quote"]
from gpt2 import merge_heads

# %%
print(heads.shape, merge_heads(heads).shape)
print("undone:", np.array_equal(merge_heads(split_heads(x, n_head)), x))

# %% [markdown]
# Now *multi-head attention*, `mha`, does everything that we have done by hand. At its end, another linear layer mixes
# the results of the heads. It is called `c_proj`, for *projection*. (Leave `cache` and `n_past` aside until section
# 12.)


# %%
def mha(x, c_attn, c_proj, n_head, cache=None, n_past=0):
    qkv = np.split(linear(x, **c_attn), 3, axis=-1)  # 3 x [n_seq, n_embd]
    q, k, v = (split_heads(part, n_head) for part in qkv)  # [n_head, n_seq, d_head]
    # in gpt2.py, a few lines for the cache follow here
    return linear(merge_heads(causal_attention(q, k, v)), **c_proj)


by_hand = linear(merge_heads(heads), **block["attn"]["c_proj"])
by_mha = mha(x_norm, **block["attn"], n_head=n_head)
print("the same:", np.allclose(by_mha, by_hand, atol=1e-5))

# %% [markdown]
# Here are all heads of the first block. In head 0, `ong` puts half its weight on the ` L` before it. In head 3, the
# last ` the` looks most at ` dead`. Head 4 spreads its weight most evenly:

# %% name="heads" tags=["remove-input"]
inside = look()
alt = "Five triangles of attention weights, one for each head. The patterns differ."
picture("heads", lambda figure: plot_attention(inside, 0, figure), 6.5, 5.5, alt)

# %% tags=["remove-cell"]
shown = inside.attention[0]  # [n_head, n_seq, n_seq]
assert np.allclose(shown[head], softmax(scores + causal_mask(q, k)), atol=1e-5)
assert 0.45 < shown[0, tokens.index("ong"), tokens.index(" L")] < 0.55
assert shown[3, -1].argmax() == tokens.index(" dead")
assert (shown**2).sum(axis=(1, 2)).argmin() == 4  # even weights have the smallest squares

# %% [markdown]
# **Exercise 3.** Write `merge_heads` yourself. The first attempt returns the right shape, but the wrong numbers. Why?


# %%
def my_merge_heads(x):
    n_head, n_seq, d_head = x.shape
    return x.reshape(n_seq, n_head * d_head)


print(check("merge_heads", my_merge_heads, ids, params, n_head))

# %% [markdown]
# <details>
# <summary>Answer</summary>
#
# `reshape` reads the numbers in their order in memory: all rows of head 0 come first, then all of head 1. So the
# attempt fills its first row with the first rows of head 0. Each row must take the numbers of its own token from all
# heads. Either swap the first two axes before `reshape`, as gpt2.py does, or join the heads' matrices:
#
# ```python
# def my_merge_heads(x):
#     return np.concatenate(list(x), axis=-1)
#
#
# print(check("merge_heads", my_merge_heads, ids, params, n_head))
# ```
#
# ```text
# All 68 arrays of the model are the same with your merge_heads.
# ```
#
# </details>
#
# ## 7. The feed-forward network
#
# The feed-forward network works on each row by itself. It has two linear layers. The first one, `c_fc`, widens each row
# to `4 * n_embd` numbers. (*Fully connected* is another word for linear.) You can think of each number as the answer to
# a small question about the row. The second one, again called `c_proj`, computes from the answers how the row should
# change.
#
# Two linear layers in a row could be replaced by a single one, since a product of two matrices is a matrix. So a
# function that is not linear stands between them. GELU lets large positive numbers pass nearly unchanged, and turns
# negative ones into numbers near 0.

# %% tags=["quote"]
from gpt2 import gelu

# %%
print(gelu(np.array([-2, -1, 0, 1, 2, 3])))

# %% tags=["quote"]
from gpt2 import ffn

# %%
for layer in ("c_fc", "c_proj"):
    print(layer, block["mlp"][layer]["w"].shape)  # the files call this network mlp

# %% [markdown]
# (*mlp* is short for multi-layer perceptron, an old name of such networks.)
#
# ## 8. The block, and the residual stream
#
# Attention and the feed-forward network together are a block:

# %% tags=["quote"]
from gpt2 import transformer_block

# %% [markdown]
# Look at the two plus signs. Neither step replaces `x`. Each *adds* its result to it. So what an earlier block has
# found stays there for later blocks. The rows of `x`, on their way through all these additions, are called the
# *residual stream*. You can think of them as notes that each block reads and adds to. These are the lengths of the last
# row and of what the first block adds to it:

# %%
from_attention = mha(layer_norm(x, **block["ln_1"]), **block["attn"], n_head=n_head)
between = x + from_attention
from_ffn = ffn(layer_norm(between, **block["ln_2"]), **block["mlp"])
after = between + from_ffn
parts = {"before": x, "attention": from_attention, "ffn": from_ffn, "after": after}
for name, rows in parts.items():
    print(f"{name:9} {np.linalg.norm(rows[-1]):5.1f}")

# %% [markdown]
# Here, nearly everything comes from the feed-forward network. The picture shows the lengths of all nine rows after each
# block. (It calls the blocks layer 0 to layer 3, and its scale is logarithmic.) The rows may grow, because each step
# reads a normalized copy.

# %% name="residual" tags=["remove-input"]
inside = look()
alt = "Lines that rise from about 1 at the embedding to about 30 after the last of the four layers."
picture("residual", lambda figure: plot_residual(inside, figure), 6.5, 3.5, alt)

# %% tags=["remove-cell"]
growth = np.diff(np.median(inside.stream_lengths, axis=1))
assert growth.argmax() == 0
assert (growth > 0).all()
assert 25 < np.median(inside.residual[-1]) < 40, inside.residual[-1]

# %% [markdown]
# ## 9. The whole model, and its logits
#
# Now the whole model fits into one function: embeddings, blocks, a last layer norm, and a last product.

# %% tags=["quote"]
from gpt2 import gpt2

# %% [markdown]
# Without a cache, `zip` only goes through the blocks, `n_past` is 0 and `first` is 0, unless `n_logits` asks for the
# last rows alone.
#
# The last line turns each row into a score for each token. They are the *logits*. The matrix is `wte` again: the logit
# of a token is the dot product of the normalized row with the token's embedding. So all blocks together move each row
# towards the embeddings of tokens that may come next. `softmax` turns logits into probabilities. This is what the model
# expects after our text (` f` and ` g` are beginnings of words):

# %%
logits = gpt2(ids, **params, n_head=n_head)
print(logits.shape)
probs = softmax(logits[-1])
for id in np.argsort(-probs)[:5]:
    token, logit = encoder.decode([id]), logits[-1, id]
    print(f"{token!r:9} logit {logit:.2f}  probability {probs[id]:.3f}")

# %% [markdown]
# Does it matter that a king has died? To find out, we change this one word, and look at the probability of ` king`. The
# last seven tokens stay the same:

# %%
for word in ("king", "queen", "night"):
    other = encoder.encode(f"The {word} is dead. Long live the")
    last_row = gpt2(other, **params, n_head=n_head, n_logits=1)[-1]
    p = softmax(last_row)
    print(f"The {word:5} is dead: {len(other)} tokens, probability {p[king]:.3f}")

# %% tags=["remove-cell"]
assert probs.argmax() == king
assert 0.3 < p[king] / probs[king] < 0.37  # p: with night
assert other[2:] == ids[2:]

# %% [markdown]
# It does: with a dead night, ` king` is about a third as likely. Only attention can have brought this difference to the
# last row. After a dead queen, though, it is nearly as likely as after a dead king. The last row seems to know that
# somebody royal has died, but not who.
#
# All functions of the model are now defined on this page, and each looks up the others by name when it runs. So you can
# define one of them again, and the next call of `gpt2` uses yours. Here GELU does nothing for a moment:

# %%
kept = gelu


def gelu(x):
    return x


changed = softmax(gpt2(ids, **params, n_head=n_head)[-1])
for id in np.argsort(-changed)[:2]:
    print(f"{encoder.decode([id])!r:7} {changed[id]:.3f}")
gelu = kept

# %% tags=["remove-cell"]
assert encoder.decode([changed.argmax()]) == " new"

# %% [markdown]
# ` king` is no longer the likeliest token. Try the same with an `ffn` that returns `0 * x`, or with a `causal_mask`
# that returns 0. In the notebook, you can also change a function where it stands, and run all cells below.
#
# ## 10. The loss, and one step of training
#
# How good are these predictions? All rows but the last can be marked, because the next token of the text is known. The
# *loss* of a token is minus the logarithm of the probability that the model gave it: 0 if the model was certain, and
# the larger, the less it expected the token. A model that gives each of the 1,024 tokens the same probability has a
# loss of 6.93 everywhere. (These are natural logarithms. Divided by log 2, a loss is a number of bits.)


# %%
def losses(params):
    """Return the loss of each token but the first, which nothing predicts."""
    probs = softmax(gpt2(ids, **params, n_head=n_head))
    return -np.log([probs[row, id] for row, id in enumerate(ids[1:])])


for id, loss in zip(ids[1:], losses(params)):
    token, p = encoder.decode([id]), math.exp(-loss)
    print(f"{token!r:8} probability {p:.4f}  loss {loss:.2f}")
print(f"mean loss: {losses(params).mean():.2f}")

# %% tags=["remove-cell"]
assert f"{math.log(1024):.2f}" == "6.93"
assert np.allclose(losses(params).sum() / math.log(2), inside.bits[1:].sum(), atol=1e-3)
assert np.argsort(losses(params))[[0, -1]].tolist() == [2, 5]  # " dead" and "ong"

# %% [markdown]
# The model expected ` dead` most, and `ong` least: ` L` begins so many other words. *Training* makes the loss smaller.
# For each parameter, it computes how the loss changes if this number grows a little. All these derivatives together are
# the *gradient*. Then every parameter takes a small step in the other direction. Most derivatives have to be followed
# backwards through the blocks, which [train](train.md) leaves to JAX. But for the bias `b` of the last layer norm,
# which is added just before the product with `wte`, two lines of NumPy are enough. They use that the derivative of a
# loss by a logit is the token's probability, minus 1 for the token that really came. The derivative of a logit by `b`
# is the token's embedding.

# %%
error = softmax(logits[:-1])  # the rows that predict ids[1:]
error[range(len(ids) - 1), ids[1:]] -= 1
gradient = (error @ wte).mean(axis=0)  # of the mean loss, by each number of b

g, b = params["ln_f"]["g"], params["ln_f"]["b"]
trained = params | {"ln_f": {"g": g, "b": b - gradient}}
before, after = losses(params), losses(trained)
print(f"mean loss: {before.mean():.3f} before, {after.mean():.3f} after")
print(f"smaller for {np.count_nonzero(after < before)} of {len(ids) - 1} tokens")

# %% tags=["remove-cell"]
assert (losses(trained) < losses(params)).all()
nudged = params | {"ln_f": {"g": g, "b": b + np.float32(0.01) * (np.arange(len(b)) == 0)}}
slope = (losses(nudged).mean() - losses(params).mean()) / 0.01
assert np.isclose(slope, gradient[0], rtol=0.05), (slope, gradient[0])

# %% [markdown]
# One step, with 160 of more than a million numbers, has made every token of the text a little likelier. This model took
# [1,800 steps](train.md), each with all its parameters and other pieces of Shakespeare. Nobody told it what a king is.
# Training only made the next token likelier.
#
# ## 11. Choosing a token
#
# A program must now choose a token. The simplest way is to take the likeliest one:

# %% tags=["quote"]
from gpt2 import greedy

# %% [markdown]
# The text is then always the same, and often repetitive. So tokens are mostly drawn at random. `draw` lays the
# probabilities side by side on a line from 0 to 1, and takes the token on which a random number falls:


# %%
def draw(probs, rng):
    return int(np.searchsorted(np.cumsum(probs), rng.random(), side="right"))


rng = np.random.default_rng(0)
drawn_ids = [draw(probs, rng) for _ in range(1000)]
print(f"' king' has probability {probs[king]:.3f}.")
print(f"It was drawn {drawn_ids.count(king)} times of 1000.")

rare = probs < 0.01
print(f"{rare.sum()} tokens have less than 1 % each, {probs[rare].sum():.0%} together.")

# %% [markdown]
# The last line shows a problem: each unlikely token is rarely drawn, but there are many, and a single one can spoil a
# text. Four settings change the probabilities before drawing:
#
# - The *temperature* divides the logits. Below 1, likely tokens gain. Above 1, unlikely ones do.
# - `top_k` keeps the k likeliest tokens. The logits of the others become minus infinity, and their probabilities 0.
# - `top_p` keeps the likeliest tokens until they reach probability p together. These are few when the model is sure,
#   and many when it is not.
# - The *repetition penalty* lowers the logits of tokens that are already in the text.


# %%
def top_k(logits, k):
    smallest = np.sort(logits)[-k]  # the k-th largest logit
    return np.where(logits >= smallest, logits, -math.inf)


def top_p(logits, p):
    cumulative = np.cumsum(np.sort(softmax(logits))[::-1])  # the likeliest token first
    return top_k(logits, np.count_nonzero(cumulative < p) + 1)


def penalize(logits, ids, penalty):
    old, new = logits[ids], logits.copy()
    new[ids] = np.where(old > 0, old / penalty, old * penalty)
    return new


# %% [markdown]
# This is what each setting does to the four likeliest tokens. When tokens are left out, the others gain, so that the
# sum is 1 again. gpt2.py has all of this in `token_probs`, which also takes rows of many texts, and keeps exactly k
# tokens when some are equally likely. The last column says whether it gives the same probabilities.

# %%
last = logits[-1]
ways = {  # our logits, and the settings of token_probs
    "unchanged": (last, (1, 0, 1, 1)),
    "temperature 0.5": (last / 0.5, (0.5, 0, 1, 1)),
    "temperature 2": (last / 2, (2, 0, 1, 1)),
    "top_k 3": (top_k(last, 3), (1, 3, 1, 1)),
    "top_p 0.2": (top_p(last, 0.2), (1, 0, 0.2, 1)),
    "repetition_penalty 1.2": (penalize(last, ids, 1.2), (1, 0, 1, 1.2)),
}
likeliest = np.argsort(-probs)[:4]
print(" " * 22, *(f"{encoder.decode([id]):>7}" for id in likeliest))
for name, (changed, settings) in ways.items():
    p = softmax(changed)
    same = np.allclose(p, original.token_probs(last, ids, *settings), atol=1e-5)
    print(f"{name:22}", *(f"{p[id]:7.3f}" for id in likeliest), "", same)

# %% [markdown]
# To write a text, the program scores, chooses, appends, and repeats:


# %%
def write(ids, n, choose):
    ids = list(ids)
    for _ in range(n):
        last = gpt2(ids, **params, n_head=n_head)[-1]
        ids.append(choose(last, ids))
    return ids


def choose(logits, ids):
    return draw(softmax(top_k(logits / 0.8, 40)), rng)


print(encoder.decode(write(ids, 20, greedy)))
print("---")
rng = np.random.default_rng(5)
print(encoder.decode(write(ids, 40, choose)))

# %% tags=["remove-cell"]
rng = np.random.default_rng(5)
ours = write(ids, 40, choose)
rng = np.random.default_rng(5)
settings = {"temperature": 0.8, "top_k": 40}
theirs = original.generate(ids, params, n_head, 40, lambda logits, ids: original.sample(logits, ids, rng, **settings))
assert ours == [*ids, *theirs]

# %% [markdown]
# The first text is greedy, and the second one is random. This command writes what comes after our text in the second:
#
# ```sh
# python gpt2.py "The king is dead. Long live the" --model tiny --temperature 0.8 --top_k 40 --seed 5
# ```
#
# ## 12. The cache
#
# For each new token, `write` reads the whole text again. For 20 tokens after our 9, it computes 9 + 10 + … + 28 = 370
# rows in each block. Nearly all of this work is repeated. Because of the mask, no row depends on a later one. So when
# the text grows, the rows of earlier tokens stay the same in every block. A new row needs only two things from them,
# their keys and their values. The model can keep these in a *cache*, and compute the new row alone: 9 + 19 = 28 rows.
# (The last new token is never read.)
#
# `empty_cache` makes room for them. Its axes are layers, keys and values, heads, positions, numbers:

# %% tags=["quote"]
from gpt2 import empty_cache

# %% tags=["remove-cell"]
assert sum(range(9, 9 + 20)) == 370

# %%
cache = empty_cache(params, n_head, len(ids))
print(cache.shape)

# %% [markdown]
# This is the whole `mha` of gpt2.py. Run it, and `transformer_block` uses it from now on in the place of ours. The
# lines under `if` are new. The `n_past` positions before `x` are in the cache. The keys and values of the new rows are
# written behind them: keys into `cache[0]`, values into `cache[1]` (`...` stands for all axes between). Then all
# `n_keys` keys and values so far are read back. The queries are those of the new rows only.

# %% tags=["quote"]
from gpt2 import mha

# %% [markdown]
# So there may be fewer queries than keys. The queries belong to the last positions, and `causal_mask` begins its
# triangle as many columns to the right. For the last 3 of our 9 tokens:

# %%
print(causal_mask(q[head, -3:], k[head]))

# %% [markdown]
# `causal_attention` also exists in a longer form, which saves time. Our one-liner computes scores that the mask then
# hides, nearly half of them in a long prompt. gpt2.py takes a block of queries at a time (`rows`) and only the keys up
# to the end of the block (`seen`): those of the `n_past` earlier positions, and of the new ones up to there. (NumPy
# cuts a slice that ends behind the last row.) The mask then only hides keys inside the block. A single query, as for a
# new token, may see every key and needs no mask.

# %% tags=["quote"]
from gpt2 import causal_attention

# %%
for n_block in (1, 2, 4, 96):
    in_blocks = causal_attention(q, k, v, n_block)
    same = np.allclose(in_blocks, heads, atol=1e-5)
    print(f"blocks of {n_block:2}, the same: {same}")

# %% [markdown]
# In `gpt2`, `zip` gives each block its own part of the cache, and the new positions begin at `wpe[n_past]`. To check
# all of this, we let the model read all tokens at once, and then all but one, and the last alone:

# %%
at_once = gpt2(ids, **params, n_head=n_head)[-1]

n = len(ids) - 1
gpt2(ids[:n], **params, n_head=n_head, cache=cache)
one_more = gpt2(ids[n:], **params, n_head=n_head, cache=cache, n_past=n)[-1]

print("logits of the four likeliest tokens, at once:  ", at_once[likeliest])
print("logits of the four likeliest tokens, one more: ", one_more[likeliest])
difference = np.abs(at_once - one_more).max()
print("all logits differ by less than 0.0001:         ", bool(difference < 1e-4))

# %% [markdown]
# The numbers are the same up to rounding, because the order of the additions differs.
#
# A `Context` keeps a cache and the ids that it holds. It compares them with those of a new text (`n_shared` counts how
# many are the same at the beginning), and computes only the rows of the others. `generate` is `write` with a `Context`,
# and yields the ids one by one. (From gpt2.py we only import two checks: `checked_ids` refuses a prompt that is empty
# or too long, and `check_finite` raises an error if a logit is infinite or not a number, as damaged weights make them.)

# %%
from gpt2 import check_finite, checked_ids

# %% tags=["quote"]
from gpt2 import Context, generate, n_shared

# %%
with_cache = generate(ids, params, n_head, 20)
print("the same ids:", [*ids, *with_cache] == write(ids, 20, greedy))

# %% [markdown]
# This is all of GPT-2, and all that gpt2.py needs to write.
#
# ## 13. What a logit lens shows
#
# The last layer norm and the product with `wte` turn the rows of the last block into logits. We can do the same after
# any other block. This is the *logit lens*. It shows what the model would predict if it stopped there:


# %%
def lens(x):
    """Return the likeliest next token and its probability if x left the last block."""
    probs = softmax(layer_norm(x[-1], **params["ln_f"]) @ wte.T)
    return f"{encoder.decode([probs.argmax()])!r} {probs.max():.2f}"


stream = wte[ids] + wpe[: len(ids)]
print("embedding", lens(stream))
for layer, its_params in enumerate(params["blocks"]):
    stream = transformer_block(stream, **its_params, n_head=n_head)
    print(f"layer {layer}  ", lens(stream))

# %% [markdown]
# The picture shows the same for every token of the text (`\n` is a new line):

# %% name="lens" tags=["remove-input"]
inside = look()
alt = "A table of the token that each block predicts after each token of the sentence."
picture("lens", lambda figure: plot_lens(inside, figure), 6.5, 4.0, alt)

# %% tags=["remove-cell"]
rows = [wte[ids] + wpe[: len(ids)]]
for its_params in params["blocks"]:
    rows.append(transformer_block(rows[-1], **its_params, n_head=n_head))
guesses = np.array([softmax(layer_norm(x, **params["ln_f"]) @ wte.T) for x in rows])  # [5, n_seq, n_vocab]
words = [[encoder.decode([id]) for id in layer] for layer in guesses.argmax(axis=-1)]
assert words[0] == tokens
assert words[1][tokens.index(" L")] == "ady"
assert all(word != token for word, token in zip(words[1], tokens))
assert [layer[-1] for layer in words] == [" the", *[" king"] * 4]
assert (np.diff(guesses[1:, -1].max(axis=-1)) < 0).all()

# %% [markdown]
# In the first column, every row still stands for its own token, because `wte` made the embedding and now decodes it.
# One block later, every row predicts a token that may come next, such as `ady` after ` L`. In the last row, ` king`
# comes first from then on. Yet each later block gives it less probability, and other tokens more.
#
# ## 14. What it costs
#
# For a new token, the model multiplies a single row by each matrix. So it reads each number of a matrix once (4 bytes),
# and uses it for 2 FLOP (floating-point operations): a multiplication and an addition. The same is true for the keys
# and values in the cache. In each layer, there are `n_embd²` numbers 3 times in `c_attn`, once in `c_proj` of `mha`, 4
# times in `c_fc` and 4 times in `c_proj` of `ffn`. At the end comes `wte`. (Biases and layer norms are small, and left
# out.) So much is read for the 1,001st token of a text by OpenAI's smallest model, which has 124 million parameters:


# %%
from utils import SIZES


def numbers_read(n_keys, n_vocab, n_ctx, n_embd, n_head, n_layer):
    """Count the numbers that a new token reads when it looks at n_keys keys."""
    in_a_layer = (3 + 1 + 4 + 4) * n_embd**2 + 2 * n_keys * n_embd
    return n_layer * in_a_layer + n_vocab * n_embd


print(f"{4 * numbers_read(1001, **SIZES['124M']) / 1e6:.0f} MB")

# %% [markdown]
# On two cores of a server, [21 GB and 188 billion FLOP](speed.md) per second were measured. For 4 bytes and 2 FLOP,
# reading takes eighteen times as long as computing. So the memory decides how fast a text is written. The rows of a
# *prompt*, the text that is given, go through the model together, so a number is read once for all of them. With more
# than 18 rows, computing takes longer. These are the limits in tokens per second for OpenAI's four models, and what
# picogpt reached with the first:

# %% tags=["remove-input"]
READ, COMPUTE = 21e9, 188e9  # bytes and FLOP per second


def decode_limit(shape, n_past):
    return READ / (4 * numbers_read(n_past + 1, **shape))


def prompt_flop(shape, n):
    """Count the FLOP of a prompt of n tokens. Token i looks at i keys, and only the last one is scored."""
    logits = numbers_read(0, **shape | {"n_layer": 0})
    in_layers = [numbers_read(n_keys, **shape) - logits for n_keys in range(1, n + 1)]
    return 2 * (sum(in_layers) + logits)


limits = {
    "the 11th token (reading)": [f"{decode_limit(shape, 10):,.1f}" for shape in SIZES.values()],
    "the 1,001st token (reading)": [f"{decode_limit(shape, 1000):,.1f}" for shape in SIZES.values()],
    "a prompt of 960 (computing)": [f"{960 / (prompt_flop(shape, 960) / COMPUTE):,.0f}" for shape in SIZES.values()],
}
reached = [36.4, 30.1, 480]
table(["limit", *SIZES, "124M reached"], [[name, *row, n] for (name, row), n in zip(limits.items(), reached)])

# %% tags=["remove-cell"]
from picogpt.bench import timing

assert prompt_flop(hparams, 9) == timing.prompt_flop(params, 9)
n_bytes, flop = timing.samples_cost(params, 1, 10, 1)
assert (n_bytes, flop) == tuple(m * numbers_read(11, **hparams) for m in (4, 2))
assert round((4 / READ) / (2 / COMPUTE)) == 18

# %% [markdown]
# Without the cache, the 1,001st token came at 0.43 tokens/s instead of 30.1. [How fast](speed.md) says where the rest
# of the time goes.
#
# ## 15. The same sentence in OpenAI's model
#
# OpenAI's smallest model runs through the same functions. It has 12 layers, 12 heads, 768 columns, and 86 times as many
# parameters. Type:
#
# ```sh
# python gpt2.py "The king is dead. Long live the" --model 124M
# ```
#
# The first time, this downloads 500 MB. Then it prints 40 tokens, each of them the likeliest one. The vocabulary has
# 50,257 tokens, and ` Long` is one of them, so the text has eight tokens instead of nine: `The` (464), ` king` (5822),
# ` is` (318), ` dead` (2636), `.` (13), ` Long` (5882), ` live` (2107), ` the` (262). To see the rest, set
# `model = "124M"` in the first block of this page, and run it again.
#
# This page was built without these weights, so it can't print what they write after our text. For another text it is
# known: several projects have published how the model continues "Alan Turing theorized that computers would one day
# become". If this command prints the same, everything works:
#
# ```sh
# python gpt2.py "Alan Turing theorized that computers would one day become" --model 124M
# ```
#
# Expected are these 40 tokens:
#
# > the most powerful machines on the planet.
# >
# > The computer is a machine that can perform complex calculations, and it can perform these calculations in a way that
# > is very similar to the human brain.
#
# ## Where to go from here
#
# - Read [gpt2.py](../gpt2.py) from top to bottom. You have now seen every function of the model.
# - Look into the model with your own sentences: [See inside](explain.md).
# - Train a small model of your own from a text file: [train](train.md).
# - Papers: Vaswani et al. 2017, "Attention Is All You Need" (the transformer), and Radford et al. 2019, "Language
#   Models are Unsupervised Multitask Learners" (GPT-2).
