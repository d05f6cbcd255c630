# %% tags=["remove-cell"]
# This is the source of docs/walkthrough.md, its pictures, and docs/walkthrough.ipynb, in jupytext's percent format.
# `python docs/build_walkthrough.py` builds them. A cell with the tag remove-input shows its output only. A cell with
# the tag remove-cell appears in neither: these check what the sentences before them say, so that a build with another
# model fails instead of telling lies.

# %% [markdown]
# # GPT-2, step by step
#
# GPT-2 does one thing: it reads the beginning of a text, and gives every possible next piece of text a score. To write,
# a program chooses a piece by its score, appends it, and asks again. This page follows one sentence through the model.
# You need to know NumPy, but nothing about language models.
#
# The functions on this page are the ones that run, taken from [gpt2.py](../gpt2.py) and [encoder.py](../encoder.py).
# The model is `models/tiny`, which learned from Shakespeare's plays. It is built like OpenAI's GPT-2, but small enough
# to look at. This page is also a [notebook](walkthrough.ipynb).

# %%
import sys
from pathlib import Path

# Find the repository, so that the imports work wherever in it the notebook is.
folders = [Path.cwd(), *Path.cwd().parents]
root = next(folder for folder in folders if (folder / "gpt2.py").exists())
sys.path.insert(0, str(root))

import numpy as np

import gpt2
from encoder import bytes_to_unicode, merge
from utils import load_encoder_hparams_and_params

np.set_printoptions(precision=2, suppress=True)
encoder, hparams, params = load_encoder_hparams_and_params("tiny", "models")
n_head = hparams["n_head"]
print(hparams)

# %% tags=["remove-input"]
# These helpers only display things: the source of a function, a table, a picture. Nothing else depends on them.
import inspect
import io
import json
import textwrap

from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure

from picogpt import look_inside, plot_attention, plot_lens, plot_residual
from utils import SIZES


def show(*functions):
    """Display the source of functions."""
    source = "\n\n".join(textwrap.dedent(inspect.getsource(function)).rstrip() + "\n" for function in functions)
    display(Markdown(f"```python\n{source}```"))


def table(header, rows):
    """Display a table. All columns but the first hold numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    display(Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)))


def drawn(axes):
    """Return the numbers and words that a diagram shows."""
    arrays = [image.get_array() for image in axes.images] + [np.asarray(line.get_ydata()) for line in axes.lines]
    numbers = [np.ma.filled(array, -1).round(5).tolist() for array in arrays]
    return {"numbers": numbers, "words": [axes.get_title("left"), *(text.get_text() for text in axes.texts)]}


def picture(figure, width, height, alt):
    """Display a figure. The file also holds what is drawn, because matplotlib's versions differ in their pixels."""
    figure.set_size_inches(width, height)
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
# - The last vector gives every token a score, and one token is chosen (9 and 10).
#
# All blocks are built alike, but each has its own numbers. Sections 3 to 8 follow the first one.
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
# stored as text. A space becomes `Ġ`, and the two bytes of `é` become `Ã` and `©`. All 256 possible bytes are tokens,
# so every text can be encoded.

# %% tags=["remove-input"]
show(bytes_to_unicode)

# %% [markdown]
# Finally, two neighbouring symbols are joined, if they are in a list of pairs, the *merges*. This list was made by
# counting in the text that the model later learned from. The most frequent pair became the first merge, and was joined
# everywhere. Then all pairs were counted again to find the second merge, and so on. In a piece, `merge` always joins
# the pair that stands earliest in the list. This is *byte pair encoding* (BPE).

# %% tags=["remove-input"]
show(merge)

# %% [markdown]
# To watch it work on ` king`, we allow more and more of the merges, and print the symbols whenever they change:

# %%
ranks, before = encoder.ranks, None  # ranks: each merge with its place in the list
for n in range(len(ranks) + 1):
    allowed = {pair: rank for pair, rank in ranks.items() if rank < n}
    symbols = merge(list("Ġking"), allowed)
    if symbols != before:
        print(f"the first {n:3} merges:", symbols)
    before = symbols

# %% [markdown]
# The 7th merge joins `i` and `n`, the 40th joins `in` and `g`, and so on, until ` king` is one token. A rarer word
# stays in several parts, such as ` Long` here. The vocabulary gives each token its id:

# %%
ids = encoder.encode(text)
for id in ids:
    print(f"{id:4} {encoder.decode([id])!r}")

# %% tags=["remove-cell"]
tokens = [encoder.decode([id]) for id in ids]
assert tokens == ["The", " king", " is", " dead", ".", " L", "ong", " live", " the"]
assert [encoder.decoder[id] for id in encoder.encode("é")] == ["Ã", "©"]
assert (ranks["i n"], ranks["in g"]) == (6, 39)

# %% [markdown]
# ## 2. Embeddings: from ids to vectors
#
# An id is only a name: that 504 is near 503 means nothing. So the model looks up a vector of `n_embd` numbers for each
# id, its *embedding*, in the matrix `wte` (word token embeddings). These numbers are *parameters*. They began at
# random, and *training* changed them a little at a time, so that the model would give more probability to the token
# that really came next. All parameters below were made like this.
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
# for each token, and `n_embd` columns. Here, `x` and the result are such arrays.

# %% tags=["remove-input"]
show(gpt2.layer_norm)

# %%
block = params["blocks"][0]  # the parameters of the first block
normed = gpt2.layer_norm(x, g=1, b=0)
before, after = x[1].var(), normed[1].var()
print(f"variance of the row of ' king': {before:.2f} before, {after:.2f} after")

x_norm = gpt2.layer_norm(x, **block["ln_1"])  # ** passes g and b

# %% [markdown]
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
# (For one text, `matmul` is just `x @ w`.)

# %% tags=["remove-input"]
show(gpt2.matmul, gpt2.linear)

# %% [markdown]
# One linear layer, `c_attn`, makes all three at once, side by side: queries `q`, keys `k` and values `v`, with `n_embd`
# columns each. Each is cut again, into `n_head` parts of `d_head = n_embd / n_head` columns, because several *heads* of
# attention work in parallel (section 6). We follow one of them, head 2, counted from 0.
#
# The scores are divided by the square root of `d_head`. Otherwise, long vectors would have large scores, and nearly all
# weight would go to a single key.

# %%
qkv = gpt2.linear(x_norm, **block["attn"]["c_attn"])
q, k, v = (gpt2.split_heads(part, n_head) for part in np.split(qkv, 3, axis=-1))
print(qkv.shape, q.shape)  # q has 5 heads, 9 rows, 32 numbers

head = 2
scores = q[head] @ k[head].T / np.sqrt(q.shape[-1])
print(scores.shape)  # a score for each query with each key

# %% [markdown]
# `softmax` turns scores into weights: it takes their exponentials, and divides these by their sum. `attention` does
# everything for all heads at once. Each of its arguments has a comment: `Heads[n_seq, d_head]` stands for one matrix of
# this shape per head, and `n_keys` is the number of keys, here `n_seq`. Section 5 explains the mask.

# %% tags=["remove-input"]
show(gpt2.softmax, gpt2.attention)

# %%
weights = gpt2.softmax(scores[-1])  # of the last token, " the"
for id, score, weight in zip(ids, scores[-1], weights):
    print(f"{encoder.decode([id])!r:8} score {score:5.2f}  weight {weight:.2f}")

average = weights @ v[head]
of_all_heads = gpt2.attention(q, k, v, mask=0.0)  # this mask hides nothing
print(average.shape, of_all_heads.shape)
print("the same average:", np.allclose(average, of_all_heads[head, -1], atol=1e-5))

# %% tags=["remove-cell"]
assert weights.argmax() == tokens.index(" king")
assert len(ids) - 1 - tokens.index(" king") == 7
assert 0.7 < weights[[tokens.index(word) for word in (" king", " dead", " live")]].sum() < 0.75

# %% [markdown]
# In the last row, this head looks most at ` king`, seven tokens back. Almost three quarters of its weight are on
# ` king`, ` dead` and ` live`. Nobody programmed this: it came from training.
#
# ## 5. The causal mask
#
# In training, the model predicts the next token at every position of a text at once. Row 3 has to predict token 4. If
# row 3 could look at row 4, it would see the answer, and there would be nothing to learn. So each row may look only at
# itself and at the rows before it. The `causal_mask` is added to the scores: 0 where a row may look, and minus infinity
# where it may not. The exponential of minus infinity is 0, and so are these weights.

# %% tags=["remove-input"]
show(gpt2.causal_mask)

# %%
print(gpt2.causal_mask(q[head, :4], k[head, :4]))  # for the first four tokens

# %% [markdown]
# With the mask, this is where each token looks in head 2 of the first block:

# %% name="attention" tags=["remove-input"]
inside = look_inside(text, "tiny")
figure = Figure(layout="constrained")
axes = figure.subplots()
axes.imshow(np.ma.array(inside.attention[0, head], mask=~np.tri(len(ids), dtype=bool)), cmap="Blues", vmin=0, vmax=1)
for row in range(len(ids)):
    for column in range(row + 1):
        weight = inside.attention[0, head, row, column]
        axes.text(column, row, f"{weight:.2f}", ha="center", va="center", color="white" if weight > 0.6 else "black")
axes.set_xticks(range(len(ids)), inside.texts, rotation=90)
axes.set_yticks(range(len(ids)), inside.texts)
axes.set_xlabel("the token that is looked at (key)")
axes.set_ylabel("the token that looks (query)")
axes.set_title("Attention of head 2 in the first block: each row sums to 1", loc="left", fontsize=11)
picture(
    figure, 6.5, 6.0, "A triangle of 9 rows and 9 columns, one for each token. The last row has most weight on king."
)

# %% [markdown]
# The dot in `·king` stands for its space, and the row called `.` is the full stop. The first token can look only at
# itself, so its weight is 1. The last row has the weights from above, because the mask hides nothing from it.
#
# Nothing in the empty half has to be computed. So `causal_attention` takes a block of queries at a time, and leaves out
# all keys behind the block. The mask then only hides keys inside the block from the queries before them. The result is
# the same for blocks of any size. (`n_past` and the case of a single query belong to section 11.)

# %% tags=["remove-input"]
show(gpt2.causal_attention)

# %%
with_mask = gpt2.attention(q, k, v, gpt2.causal_mask(q, k))
for n_block in (1, 2, 4, 96):
    in_blocks = gpt2.causal_attention(q, k, v, n_block)
    same = np.allclose(in_blocks, with_mask, atol=1e-5)
    print(f"blocks of {n_block:2}, the same: {same}")

# %% [markdown]
# ## 6. Heads side by side
#
# One head gives each row one average. But a row may need several things from different places. So `n_head` heads work
# side by side. Cutting rows into heads and putting them together again only rearranges numbers:

# %% tags=["remove-input"]
show(gpt2.split_heads, gpt2.merge_heads)

# %% [markdown]
# `mha`, multi-head attention, does everything that we have done by hand. At its end, another linear layer, `c_proj`,
# mixes the results of the heads. (The lines under `if` belong to section 11.)

# %% tags=["remove-input"]
show(gpt2.mha)

# %%
by_hand = gpt2.linear(gpt2.merge_heads(with_mask), **block["attn"]["c_proj"])
by_mha = gpt2.mha(x_norm, **block["attn"], n_head=n_head)
print("the same:", np.allclose(by_mha, by_hand, atol=1e-5))

# %% [markdown]
# Here are all heads of the first block. In head 0, `ong` puts half its weight on the ` L` before it. In head 3, the
# last ` the` looks most at ` dead`. Head 4 spreads its weight most evenly:

# %% name="heads" tags=["remove-input"]
figure = Figure(layout="constrained")
plot_attention(inside, 0, figure)
picture(figure, 6.5, 5.5, "Five triangles of attention weights, one for each head. The patterns differ.")

# %% tags=["remove-cell"]
heads = inside.attention[0]  # [n_head, n_seq, n_seq]
assert 0.45 < heads[0, tokens.index("ong"), tokens.index(" L")] < 0.55
assert heads[3, -1].argmax() == tokens.index(" dead")
assert (heads**2).sum(axis=(1, 2)).argmin() == 4  # even weights have the smallest squares

# %% [markdown]
# ## 7. The feed-forward network
#
# The feed-forward network works on each row by itself. It has two linear layers. The first one widens each row to
# `4 * n_embd` numbers. You can think of each number as the answer to a small question about the row. The second one
# computes from the answers how the row should change.
#
# Two linear layers in a row could be replaced by a single one, since a product of two matrices is a matrix. So a
# function that is not linear stands between them. GELU lets large positive numbers pass nearly unchanged, and turns
# negative ones into numbers near 0.

# %% tags=["remove-input"]
show(gpt2.gelu)

# %%
print(gpt2.gelu(np.array([-2, -1, 0, 1, 2, 3])))

# %% tags=["remove-input"]
show(gpt2.ffn)

# %%
for layer in ("c_fc", "c_proj"):
    print(layer, block["mlp"][layer]["w"].shape)  # the files call this network mlp

# %% [markdown]
# ## 8. The block, and the residual stream
#
# Attention and the feed-forward network together are a block:

# %% tags=["remove-input"]
show(gpt2.transformer_block)

# %% [markdown]
# Look at the two plus signs. Neither step replaces `x`. Each *adds* its result to it. So what an earlier block has
# found stays there for later blocks. The rows of `x`, on their way through all these additions, are called the
# *residual stream*. You can think of them as notes that each block reads and adds to. These are the lengths of the last
# row and of what the first block adds to it:

# %%
x_norm = gpt2.layer_norm(x, **block["ln_1"])
from_attention = gpt2.mha(x_norm, **block["attn"], n_head=n_head)
between = x + from_attention
from_ffn = gpt2.ffn(gpt2.layer_norm(between, **block["ln_2"]), **block["mlp"])
after = between + from_ffn
parts = {"before": x, "attention": from_attention, "ffn": from_ffn, "after": after}
for name, rows in parts.items():
    print(f"{name:9} {np.linalg.norm(rows[-1]):5.1f}")

# %% [markdown]
# Here, nearly everything comes from the feed-forward network. The picture shows the lengths of all nine rows after each
# block. (It calls the blocks layer 0 to layer 3, and its scale is logarithmic.) The rows may grow, because each step
# reads a normalized copy.

# %% name="residual" tags=["remove-input"]
figure = Figure(layout="constrained")
plot_residual(inside, figure)
picture(
    figure, 6.5, 3.5, "Lines that rise from about 1 at the embedding to about 30 after the last of the four layers."
)

# %% tags=["remove-cell"]
growth = np.diff(np.median(inside.stream_lengths, axis=1))
assert growth.argmax() == 0
assert (growth > 0).all()
assert 25 < np.median(inside.residual[-1]) < 40, inside.residual[-1]

# %% [markdown]
# ## 9. The whole model, and its logits
#
# Now the whole model fits into one function: embeddings, blocks, a last layer norm, and a last product. (`cache`,
# `n_past` and `n_logits` only save work.)

# %% tags=["remove-input"]
show(gpt2.gpt2)

# %% [markdown]
# The last line turns each row into a score for each token. They are the *logits*. The matrix is `wte` again: the logit
# of a token is the dot product of the normalized row with the token's embedding. So all blocks together move each row
# towards the embeddings of tokens that may come next. `softmax` turns logits into probabilities. This is what the model
# expects after our text (` f` and ` g` are beginnings of words):

# %%
logits = gpt2.gpt2(ids, **params, n_head=n_head)
print(logits.shape)
probs = gpt2.softmax(logits[-1])
for id in np.argsort(-probs)[:5]:
    token, logit = encoder.decode([id]), logits[-1, id]
    print(f"{token!r:9} logit {logit:.2f}  probability {probs[id]:.3f}")

# %% [markdown]
# Does it matter that a king has died? To find out, we change this one word, and look at the probability of ` king`. The
# last seven tokens stay the same:

# %%
for word in ("king", "queen", "night"):
    other = encoder.encode(f"The {word} is dead. Long live the")
    last_row = gpt2.gpt2(other, **params, n_head=n_head, n_logits=1)[-1]
    p = gpt2.softmax(last_row)
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
# ## 10. Choosing a token
#
# A program must now choose a token. `greedy` takes the likeliest one. The text is then always the same, and often
# repetitive. `sample` draws at random. It lays the probabilities side by side on a line from 0 to 1, and takes the
# token on which a random number falls:

# %% tags=["remove-input"]
show(gpt2.greedy, gpt2.sample)

# %% [markdown]
# Four settings change the probabilities before drawing. The *temperature* divides the logits. Below 1, likely tokens
# gain. Above 1, unlikely ones do. The *repetition penalty* lowers the logits of tokens that are already in the text.

# %% tags=["remove-input"]
show(gpt2.token_probs, gpt2.penalize)

# %% [markdown]
# The other two, `top_k` and `top_p`, leave out unlikely tokens. Each of these is rarely drawn, but there are many, and
# a single one can spoil a text:

# %%
rare = probs < 0.01
print(f"{rare.sum()} tokens have less than 1 % each, {probs[rare].sum():.0%} together")

# %% [markdown]
# `top_k` keeps the k likeliest tokens. `top_p` keeps the likeliest tokens until they reach probability p together.
# These are few when the model is sure, and many when it is not.

# %% tags=["remove-input"]
show(gpt2.keep_largest, gpt2.keep_top_k, gpt2.keep_top_p)

# %% [markdown]
# This is what each setting does to the four likeliest tokens. When tokens are left out, the others gain, so that the
# sum is 1 again.

# %%
unchanged = {"temperature": 1, "top_k": 0, "top_p": 1, "repetition_penalty": 1}
changes = [{}, {"temperature": 0.5}, {"temperature": 2}, {"repetition_penalty": 1.2}]
changes += [{"top_k": 3}, {"top_p": 0.2}]
likeliest = np.argsort(-probs)[:4]
print(" " * 27, *(f"{encoder.decode([id]):>7}" for id in likeliest))
for change in changes:
    p = gpt2.token_probs(logits[-1], ids, **unchanged | change)
    print(f"{change!s:27}", *(f"{p[id]:7.3f}" for id in likeliest))

# %% [markdown]
# `generate` puts everything together: it scores, chooses, appends, and repeats. (`checked_ids` refuses a prompt that is
# too long, and section 11 explains `Context`.)

# %% tags=["remove-input"]
show(gpt2.generate)

# %%
print(text + encoder.decode(gpt2.generate(ids, params, n_head, 20)))
print("---")

rng = np.random.default_rng(5)


def choose(logits, ids):
    return gpt2.sample(logits, ids, rng, temperature=0.8, top_k=40)


print(text + encoder.decode(gpt2.generate(ids, params, n_head, 40, choose)))

# %% [markdown]
# The first text is greedy, and the second one is random.
#
# ## 11. The cache
#
# For each new token, the model could read the whole text again, but nearly all of this work would be repeated. Because
# of the mask, no row depends on a later one. So when the text grows, the rows of earlier tokens stay the same in every
# block. A new row needs only two things from them, their keys and their values. The model keeps these in a *cache*, and
# computes the new row alone.

# %% tags=["remove-input"]
show(gpt2.empty_cache)

# %% [markdown]
# To check this, we let the model read all nine tokens at once, and then eight and the ninth alone:

# %%
whole = gpt2.empty_cache(params, n_head, 9)
at_once = gpt2.gpt2(ids, **params, n_head=n_head, cache=whole)[-1]

cache = gpt2.empty_cache(params, n_head, 9)
gpt2.gpt2(ids[:8], **params, n_head=n_head, cache=cache)
kept = cache[..., :8, :].copy()
one_more = gpt2.gpt2(ids[8:], **params, n_head=n_head, cache=cache, n_past=8)[-1]

print(cache.shape)  # layers, keys and values, heads, positions, numbers
same = np.allclose(kept, whole[..., :8, :], atol=1e-4)
difference = np.abs(at_once - one_more).max()
print("same keys and values of the first eight tokens:", same)
print("logits of the four likeliest tokens, at once:  ", at_once[likeliest])
print("logits of the four likeliest tokens, one more: ", one_more[likeliest])
print("all 1024 logits differ by less than 0.0001:    ", bool(difference < 1e-4))

# %% [markdown]
# The numbers are the same up to rounding, because the order of the additions differs.
#
# `generate` uses a `Context`, which compares the ids with those in its cache, and computes only the new ones. (Its
# `check_finite` raises an error if a logit is infinite or not a number, as damaged weights make them.)

# %% tags=["remove-input"]
show(gpt2.n_shared, gpt2.Context)

# %% [markdown]
# ## 12. What it costs
#
# Two limits of the machine decide how fast this can be: how many bytes it reads from memory in a second, and how many
# additions and multiplications (*FLOP*, floating-point operations) it does.
#
# For a new token, the model multiplies a single row by each matrix. So each number of a matrix is read once, which is 4
# bytes, and used for 2 FLOP, a multiplication and an addition. The same is true for the keys and values in the cache.
# So we count the numbers:


# %%
def numbers_read(hparams, n_keys):
    """Count the numbers that a new token reads when it looks at n_keys keys."""
    n_layer, n_embd = hparams["n_layer"], hparams["n_embd"]
    return {
        "`mha`: c_attn": n_layer * 3 * n_embd**2,
        "`attention`: keys and values": n_layer * 2 * n_embd * n_keys,
        "`mha`: c_proj": n_layer * n_embd**2,
        "`ffn`: c_fc and c_proj": n_layer * 8 * n_embd**2,
        "`gpt2`: logits": hparams["n_vocab"] * n_embd,
    }


# %% [markdown]
# Here are OpenAI's four models, named by their number of parameters, at a text's 1,001st token. The parts are in
# megabytes. The millions of FLOP are always half of that, so only their sum is shown. The times are for 18 GB and 135
# billion FLOP per second, as [measured](speed.md) on two cores of a server.

# %% tags=["remove-input"]
READ, COMPUTE = 18e9, 135e9  # bytes and FLOP per second
by_size = {size: numbers_read(shape, 1001) for size, shape in SIZES.items()}
totals = [sum(counts.values()) for counts in by_size.values()]
rows = [
    [f"{name} (MB)", *(f"{4 * counts[name] / 1e6:,.0f}" for counts in by_size.values())] for name in by_size["124M"]
]
rows += [
    ["**all (MB)**", *(f"{4 * n / 1e6:,.0f}" for n in totals)],
    ["**all (million FLOP)**", *(f"{2 * n / 1e6:,.0f}" for n in totals)],
    ["ms to read", *(f"{1e3 * 4 * n / READ:.1f}" for n in totals)],
    ["ms to compute", *(f"{1e3 * 2 * n / COMPUTE:.1f}" for n in totals)],
]
table(["for one token", *SIZES], rows)

# %% [markdown]
# (Layer norms, biases, GELU and softmax take little, and are left out.) Reading takes more than ten times as long as
# computing. So the memory decides how fast a text is written.
#
# The rows of a *prompt*, the text that is given, go through the model together. So a number is read once and used for
# every row. While this machine reads 4 bytes, it can do 4 × 135 / 18 = 30 FLOP, 2 for each of 15 rows. With more rows,
# computing takes longer than reading. Here are both limits, and what [picogpt reached](speed.md):


# %% tags=["remove-input"]
def decode_limit(shape, n_past):
    return READ / (4 * sum(numbers_read(shape, n_past + 1).values()))


def prompt_flop(shape, n):
    counts = numbers_read(shape, 1)
    logits, attention = counts.pop("`gpt2`: logits"), counts.pop("`attention`: keys and values")
    return 2 * (n * sum(counts.values()) + attention * n * (n + 1) // 2 + logits)  # token i looks at i keys


rows = [
    ["the 11th token (reading)", *(f"{decode_limit(shape, 10):,.1f}" for shape in SIZES.values()), 30.0],
    ["the 1,001st token (reading)", *(f"{decode_limit(shape, 1000):,.1f}" for shape in SIZES.values()), 22.5],
    [
        "a prompt of 960 (computing)",
        *(f"{960 / (prompt_flop(shape, 960) / COMPUTE):,.0f}" for shape in SIZES.values()),
        335,
    ],
]
table(["limit in tokens/s", *SIZES, "124M reached"], rows)

# %% tags=["remove-cell"]
from picogpt.bench import timing

assert prompt_flop(hparams, 9) == timing.prompt_flop(params, 9)
n_bytes, flop = timing.samples_cost(params, 1, 10, 1)
assert (n_bytes, flop) == tuple(m * sum(numbers_read(hparams, 11).values()) for m in (4, 2))
assert round(4 * COMPUTE / READ) == 30
assert all((4 * n / READ) / (2 * n / COMPUTE) > 10 for n in totals)

# %% [markdown]
# Without the cache, the 1,001st token came at 0.31 tokens/s instead of 22.5. [How fast](speed.md) says where the rest
# of the time goes.
#
# ## 13. What a logit lens shows
#
# The last layer norm and the product with `wte` turn the rows of the last block into logits. We can do the same after
# any other block. This is the *logit lens*. It shows what the model would predict if it stopped there:


# %%
def lens(x):
    """Return the likeliest next token and its probability if x left the last block."""
    probs = gpt2.softmax(gpt2.layer_norm(x[-1], **params["ln_f"]) @ wte.T)
    return f"{encoder.decode([probs.argmax()])!r} {probs.max():.2f}"


x = wte[ids] + wpe[: len(ids)]
print("embedding", lens(x))
for layer, block in enumerate(params["blocks"]):
    x = gpt2.transformer_block(x, **block, n_head=n_head)
    print(f"layer {layer}  ", lens(x))

# %% [markdown]
# The picture shows the same for every token of the text (`\n` is a new line):

# %% name="lens" tags=["remove-input"]
figure = Figure(layout="constrained")
plot_lens(inside, figure)
picture(figure, 6.5, 4.0, "A table of the token that each block predicts after each token of the sentence.")

# %% tags=["remove-cell"]
first_guesses = [inside.texts[row] == inside.text(inside.stream_ids[0, row, 0]) for row in range(len(ids))]
assert all(first_guesses)
assert inside.text(inside.lens_ids[0, tokens.index(" L"), 0]) == "ady"
assert all(inside.texts[row] != inside.text(inside.lens_ids[0, row, 0]) for row in range(len(ids)))
assert np.allclose(inside.lens_probs[-1, -1, 0], probs.max(), atol=1e-5)
last_row = [inside.text(id) for id in inside.stream_ids[:, -1, 0]]
assert last_row == ["·the", *["·king"] * 4], last_row
assert (np.diff(inside.lens_probs[:, -1, 0]) < 0).all()

# %% [markdown]
# In the first column, every row still stands for its own token, because `wte` made the embedding and now decodes it.
# One block later, every row predicts a token that may come next, such as `ady` after ` L`. In the last row, ` king`
# comes first from then on. Yet each later block gives it less probability, and other tokens more.
#
# ## Where to go from here
#
# - Read [gpt2.py](../gpt2.py) from top to bottom. You have now seen every function of the model.
# - Look into the model with your own sentences: [See inside](explain.md).
# - Train a small model of your own from a text file: [train](train.md).
# - Papers: Vaswani et al. 2017, "Attention Is All You Need" (the transformer), and Radford et al. 2019, "Language
#   Models are Unsupervised Multitask Learners" (GPT-2).
