# %% tags=["remove-cell"]
# This is the source of docs/walkthrough.md, its pictures, and docs/walkthrough.ipynb, in jupytext's percent format.
# `python docs/build_walkthrough.py` builds them. A cell with the tag remove-input shows its output only. A cell with
# the tag remove-cell appears in neither: these check what the sentences before them say, so that a build with another
# model fails instead of telling lies.

# %% [markdown]
# # GPT-2, step by step
#
# GPT-2 does one thing: it reads the beginning of a text, and gives every possible next piece of text a score. To write,
# a program chooses a piece by its score, appends it, and asks again. This page follows one sentence through the whole
# model, from bytes to text. You need to know NumPy, but nothing about language models.
#
# The functions on this page are the ones that run: their source is taken from [gpt2.py](../gpt2.py) and
# [encoder.py](../encoder.py) when the page is built, and every number and picture is computed then. The model is
# `models/tiny`, which learned from Shakespeare's plays. It has the same architecture as OpenAI's GPT-2, only smaller.
# Its English is poor, but its numbers are few enough to look at. The same text is a
# [notebook](walkthrough.ipynb) that runs from top to bottom in a clone of this repository.

# %%
import sys
from pathlib import Path

root = next(folder for folder in [Path.cwd(), *Path.cwd().parents] if (folder / "gpt2.py").exists())
sys.path.insert(0, str(root))

import numpy as np

import encoder as bpe
import gpt2
from picogpt import look_inside
from utils import SIZES, load_encoder_hparams_and_params

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
# These numbers are the model's *hyperparameters*, which describe its size. Each will turn up below: `n_vocab` pieces of
# text, `n_ctx` positions at most, vectors of `n_embd` numbers, `n_head` heads and `n_layer` layers.
#
# ## 1. From text to tokens
#
# A model computes with numbers, so the text must become numbers first. Single bytes would do, but then a sentence would
# be long and its parts meaningless. Whole words would be too many, and a new word would have no number. GPT-2 takes the
# middle: *tokens*, which are frequent strings of bytes, often a word or a part of one. The list of all tokens is the
# *vocabulary*, and the place of a token in it is its *id*.
#
# First, a regular expression cuts the text into pieces, so that no token reaches across two words. The space belongs to
# the word behind it.

# %%
text = "The king is dead. Long live the"
print(encoder.pieces.findall(text))

# %% [markdown]
# Then each piece is turned into UTF-8 bytes. Each byte is written as one visible character, so that the vocabulary can
# be a plain text file. A space becomes `Ġ`, and the two bytes of `é` become `Ã` and `©`. There are 256 bytes, and all
# of them are tokens. So every text can be encoded.

# %% tags=["remove-input"]
show(bpe.bytes_to_unicode)

# %% [markdown]
# Finally, neighbouring symbols are joined, again and again. A file with the model lists the *merges*: the pairs that
# may be joined, in order. They were found by counting: the pair that was most frequent in the training text became the
# first merge, then the text was counted again, and so on. To encode a piece, `merge` always joins the pair that stands
# first in the list. This method is called *byte pair encoding* (BPE).

# %% tags=["remove-input"]
show(bpe.merge)

# %% [markdown]
# To watch it work on ` king`, give it longer and longer beginnings of the list. Each line below shows the symbols after
# one more merge has found something to join.

# %%
ranks, before = encoder.cache.ranks, None  # ranks: each merge with its place in the list
for n in range(len(ranks) + 1):
    symbols = bpe.merge(list("Ġking"), {pair: rank for pair, rank in ranks.items() if rank < n})
    if symbols != before:
        print(f"the first {n:3} merges:", symbols)
    before = symbols

# %% [markdown]
# A single symbol is left, so ` king` is one token. Rarer words end up as several: the list has no merge that would join
# the two parts of ` Long`. These are the tokens of the sentence with their ids, on which everything else builds:

# %%
ids = encoder.encode(text)
for id in ids:
    print(f"{id:4} {encoder.decode([id])!r}")

# %% tags=["remove-cell"]
tokens = [encoder.decode([id]) for id in ids]
assert tokens == ["The", " king", " is", " dead", ".", " L", "ong", " live", " the"]
assert [encoder.decoder[id] for id in encoder.encode("é")] == ["Ã", "©"]

# %% [markdown]
# ## 2. Embeddings: from ids to vectors
#
# An id is only a name. The id of ` king` is not near the id of ` queen` in any useful way. So the model looks up a
# vector of `n_embd` numbers for each id, its *embedding*, in the matrix `wte` (word token embeddings). These numbers are
# *parameters*. Nobody chose them: they began at random, and *training* changed them a little at a time, so that the
# model would give more probability to the token that really came next. All matrices below were made like this.
#
# Vectors can be near each other. The cosine, the dot product of two vectors of length 1, measures it: 1 means the same
# direction, and unrelated vectors are near 0. Here are the tokens whose embeddings are nearest to that of ` king`:

# %%
wte, wpe = params["wte"], params["wpe"]
unit = wte / np.linalg.norm(wte, axis=1, keepdims=True)
(king,) = encoder.encode(" king")
cosines = unit @ unit[king]
for id in np.argsort(-cosines)[:5]:
    print(f"{encoder.decode([id])!r:10} {cosines[id]:.2f}")

# %% tags=["remove-cell"]
nearest = [encoder.decode([id]) for id in np.argsort(-cosines)[:5]]
assert nearest == [" king", " crown", " queen", " Warwick", " prince"], nearest
assert 0.5 < np.sort(cosines)[-2] < 0.6

# %% [markdown]
# Nobody told the model what a crown is. Words that occur in the same surroundings get similar embeddings, because they
# call for similar continuations. (Warwick is a character in Shakespeare's *Henry VI* who makes and unmakes kings.)
#
# The order of the words matters, too, and the steps below would not see it by themselves. So each position, the first,
# the second, and so on, has an embedding of its own, in the matrix `wpe` (word position embeddings). The model adds it
# to the token's embedding.

# %%
x = wte[ids] + wpe[: len(ids)]
print(x.shape)
print(x[1, :8])  # the first numbers of the vector for " king"

# %% [markdown]
# From here on, `x` has one row for each token of the text. The model never changes this shape. It only changes the
# numbers, until the last row no longer means "this token is ` the`" but "the next token is probably ` king`".
#
# ## 3. Layer norm
#
# Each step of the model first brings the rows that it reads into the same range, because very large or very small
# numbers would make training unstable. `layer_norm` shifts and scales each row to mean 0 and variance 1. Then it
# multiplies each of the `n_embd` columns by a number from `g`, the gain, and adds a number from `b`, the bias. Both are
# parameters: the model has learned how strongly each column should count.

# %% tags=["remove-input"]
show(gpt2.layer_norm)

# %%
block = params["blocks"][0]
normed = gpt2.layer_norm(x, g=1, b=0)
print(f"before:           variance {x[1].var():.2f}")
print(f"with g = 1, b = 0: variance {normed[1].var():.2f}")
x_norm = gpt2.layer_norm(x, **block["ln_1"])  # with the g and b of the first layer
print(x_norm[1, :8])

# %% [markdown]
# ## 4. One head of attention
#
# So far, each row knows only its own token. To guess what follows "Long live the", the last row must learn from earlier
# rows that a king has died. *Attention* is the step that brings this information in, and the only one in which rows
# exchange anything.
#
# Each row makes three vectors from its numbers. Its *query* says what it looks for. Its *key* says what it offers. Its
# *value* is what it passes on. The dot product of a query and a key is a score: the better the two match, the larger it
# is. The scores are turned into weights that sum to 1, and the row receives the average of the values with these
# weights.
#
# The three vectors come from a multiplication by a matrix of parameters `w`, plus a bias `b`. Such a step is called a
# *linear* layer:

# %% tags=["remove-input"]
show(gpt2.matmul, gpt2.linear)

# %% [markdown]
# The layer `c_attn` makes all three in one product, `3 * n_embd` numbers for each row. They are then cut into queries
# `q`, keys `k` and values `v`. Each of them is cut again, into `n_head` parts, because several *heads* of attention
# work side by side. The next section comes back to that. Here we follow one head, number 2, whose vectors have
# `n_embd / n_head` numbers.

# %%
qkv = gpt2.linear(x_norm, **block["attn"]["c_attn"])
q, k, v = (gpt2.split_heads(part, n_head) for part in np.split(qkv, 3, axis=-1))
print(qkv.shape, q.shape)  # q: 5 heads, 9 rows, 32 numbers

head = 2
scores = q[head] @ k[head].T / np.sqrt(32)
print(scores[-1])  # what the last " the" finds in the nine tokens

# %% [markdown]
# The division by the square root of the length keeps the scores moderate, as the source below explains. `softmax` turns
# the scores into positive weights that sum to 1. It takes the exponential of each score, so adding 1 to a score
# multiplies its weight by 2.72, relative to the others.

# %% tags=["remove-input"]
show(gpt2.softmax, gpt2.attention)

# %%
weights = gpt2.softmax(scores[-1])
for id, score, weight in zip(ids, scores[-1], weights):
    print(f"{encoder.decode([id])!r:8} score {score:5.2f}  weight {weight:.2f}")

# %% tags=["remove-cell"]
assert weights.argmax() == tokens.index(" king")
assert 0.3 < weights[1] < 0.4, weights

# %% [markdown]
# This head, at the last ` the`, looks at ` king` more than at anything else, six and more tokens back. It was never
# told to. Training found that it helps.
#
# ## 5. The causal mask
#
# In training, the model predicts the next token at every position of a text at once. Row 3 is asked for token 4, row 4
# for token 5, and so on. This would be no exercise if row 3 could look at row 4, where the answer is. So every row may
# look at itself and at the rows before it, but not at later ones. The `causal_mask` is added to the scores: 0 where a
# row may look, and minus infinity where it may not. The exponential of minus infinity is 0, so these weights vanish.

# %% tags=["remove-input"]
show(gpt2.causal_mask, gpt2.causal_attention)

# %%
print(gpt2.causal_mask(q[head, :4], k[head, :4]))  # for the first four tokens

# %% [markdown]
# With the mask, this is where each token looks in head 2 of the first layer:

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
axes.set_xlabel("is looked at")
axes.set_ylabel("looks")
axes.set_title("Attention of head 2 in the first layer: each row sums to 1", loc="left", fontsize=11)
picture(
    figure, 6.5, 5.8, "A triangle of 9 rows and 9 columns, one for each token. The last row has most weight on king."
)

# %% [markdown]
# A dot in front of a word stands for its space. The first row can look only at itself, so its weight is 1. The upper
# right half is empty: that is the future.
#
# Half of the scores are thrown away. For a long text this is a waste, so the model computes attention block by block.
# Each block of rows skips the keys that come after it. The result is the same up to rounding:

# %% tags=["remove-input"]
show(gpt2.blockwise_attention)

# %%
all_at_once = gpt2.causal_attention(q, k, v)
print(np.allclose(gpt2.blockwise_attention(q, k, v, n_block=2), all_at_once, atol=1e-5))

# %% [markdown]
# ## 6. Heads side by side
#
# One head yields one average. But a token may need several things at once: who is spoken of, which verb was used,
# whether a sentence just ended. So `n_head` heads work side by side, each with its own part of the queries, keys and
# values. Cutting the rows into heads and putting them together again takes no arithmetic, only a different view of the
# same numbers:

# %% tags=["remove-input"]
show(gpt2.split_heads, gpt2.merge_heads)

# %% [markdown]
# `mha`, multi-head attention, does everything that we did by hand. In the end, one more linear layer, `c_proj`, mixes
# the results of the heads. (The `cache` is explained in section 11.)

# %% tags=["remove-input"]
show(gpt2.mha)

# %%
by_hand = gpt2.linear(gpt2.merge_heads(all_at_once), **block["attn"]["c_proj"])
print(np.allclose(gpt2.mha(x_norm, **block["attn"], n_head=n_head), by_hand, atol=1e-5))

# %% [markdown]
# Here are all five heads of the first layer. No two of them look at the same places:

# %% name="heads" tags=["remove-input"]
from picogpt import plot_attention, plot_lens, plot_residual

figure = Figure(layout="constrained")
plot_attention(inside, 0, figure)
picture(figure, 6.5, 5.5, "Five triangles of attention weights, one for each head. The patterns differ.")

# %% [markdown]
# ## 7. The feed-forward network
#
# After attention has collected information, each row works on it by itself. The *feed-forward network* has two linear
# layers. The first one widens the row to four times its size. In training, each of the new numbers comes to answer a
# small question about the row; the second layer turns the answers into a change of the row.
#
# Two linear layers alone would be equal to a single one. So a function without straight lines stands between them:
# GELU lets positive numbers pass nearly unchanged, and turns negative ones into almost 0.

# %% tags=["remove-input"]
show(gpt2.gelu)

# %%
print(gpt2.gelu(np.array([-3, -2, -1, 0, 1, 2, 3])))

# %% tags=["remove-input"]
show(gpt2.ffn)

# %%
sizes = {
    part: sum(w.size + b.size for w, b in (linear.values() for linear in block[part].values()))
    for part in ("attn", "mlp")
}
print(sizes)  # parameters of attention and of the feed-forward network, which the checkpoint calls mlp

# %% tags=["remove-cell"]
assert 1.99 < sizes["mlp"] / sizes["attn"] < 2.01

# %% [markdown]
# The feed-forward network has twice the parameters of attention.
#
# ## 8. The block, and the residual stream
#
# Attention and the feed-forward network together are a *layer*, or `transformer_block`:

# %% tags=["remove-input"]
show(gpt2.transformer_block)

# %% [markdown]
# Look at the plus signs. Neither step replaces `x`: each reads a normalized copy and *adds* its result. So what an
# earlier layer has found stays there, unless a later one takes it away, and training can reach every layer through the
# sums. The rows of `x`, on their way through all additions, are called the *residual stream*. You can think of them as
# notes that each layer reads and adds to.
#
# The picture shows how long the vectors are after each layer. They grow, because every layer adds to them:

# %% name="residual" tags=["remove-input"]
figure = Figure(layout="constrained")
plot_residual(inside, figure)
picture(
    figure, 6.5, 3.6, "Lines that rise from about 1 at the embedding to about 30 after the last of the four layers."
)

# %% tags=["remove-cell"]
assert (np.diff(np.median(inside.residual, axis=1)) > 0).all()
assert 25 < np.median(inside.residual[-1]) < 40, inside.residual[-1]

# %% [markdown]
# ## 9. The whole model, and its logits
#
# Now the model fits into a few lines: embeddings, all the blocks in turn, one last layer norm, and one last product.

# %% tags=["remove-input"]
show(gpt2.gpt2)

# %% [markdown]
# The last line turns each row into `n_vocab` scores, one for each token of the vocabulary. These are the *logits*. The
# matrix is `wte` again: the score of a token is the dot product of the row with the token's own embedding. So the
# model's work is to turn each row until it points towards the embedding of the token that comes next. Softmax makes
# probabilities of the logits. This is what the model expects after the sentence:

# %%
logits = gpt2.gpt2(ids, **params, n_head=n_head)
print(logits.shape)
probs = gpt2.softmax(logits[-1])
for id in np.argsort(-probs)[:5]:
    print(f"{encoder.decode([id])!r:9} logit {logits[-1, id]:.2f}  probability {probs[id]:.3f}")

# %% [markdown]
# It has understood something. To see that the king in the first sentence matters, change this one word. Both sentences
# have nine tokens, and the last seven are the same:

# %%
for word in ("king", "queen", "night"):
    other = encoder.encode(f"The {word} is dead. Long live the")
    p = gpt2.softmax(gpt2.gpt2(other, **params, n_head=n_head, n_logits=1)[-1])
    print(f"{word:5} {len(other)} tokens, probability of ' king': {p[king]:.3f}")

# %% tags=["remove-cell"]
assert probs.argmax() == king
assert probs[king] > 2.5 * p[king]  # p: with night
assert other[2:] == ids[2:]

# %% [markdown]
# With a night in its place, the next king is about a third as likely. Only attention can have carried the difference
# over seven positions. With a queen, the model still expects a king: it is a small model, and it read mostly about
# kings.
#
# ## 10. Choosing a token
#
# The model gives probabilities, and a program must choose. `greedy` takes the likeliest token. The text is then always
# the same, and often dull or repetitive. `sample` draws at random, by the probabilities:

# %% tags=["remove-input"]
show(gpt2.greedy, gpt2.sample)

# %% [markdown]
# Usually, the probabilities are changed before drawing. `token_probs` does this. The *temperature* divides the logits.
# Below 1, likely tokens become still likelier. Above 1, the unlikely ones get a better chance.

# %% tags=["remove-input"]
show(gpt2.token_probs)

# %%
plain = {"ids": ids, "temperature": 1, "top_k": 0, "top_p": 1, "repetition_penalty": 1}
likeliest = np.argsort(-probs)[:4]
print("               ", *(f"{encoder.decode([id]):>8}" for id in likeliest))
for name, value in [
    ("temperature", 1),
    ("temperature", 0.5),
    ("temperature", 2),
    ("top_k", 3),
    ("top_p", 0.2),
    ("repetition_penalty", 1.2),
]:
    p = gpt2.token_probs(logits[-1], **plain | {name: value})
    print(f"{name[:11]:11} {value:3}", *(f"{p[id]:8.3f}" for id in likeliest))

# %% [markdown]
# Many unlikely tokens together have a good chance to be drawn, and one nonsensical token can derail a text. `top_k`
# draws only from the k likeliest tokens. `top_p` draws from the fewest likeliest tokens that together reach the
# probability p, so it keeps few tokens when the model is sure, and many when it is not. Both set all other logits to
# minus infinity. The *repetition penalty* lowers the logits of tokens that occurred already, such as ` king`.

# %% tags=["remove-input"]
show(gpt2.keep_largest, gpt2.keep_top_k, gpt2.keep_top_p, gpt2.penalize)

# %% [markdown]
# `generate` puts everything together. It scores, chooses, appends, and repeats:

# %% tags=["remove-input"]
show(gpt2.generate)

# %%
print(text + encoder.decode(gpt2.generate(ids, params, n_head, 20)))
rng = np.random.default_rng(5)
choose = lambda logits, ids: gpt2.sample(logits, ids, rng, temperature=0.8, top_k=40)  # noqa: E731
print("---")
print(text + encoder.decode(gpt2.generate(ids, params, n_head, 40, choose)))

# %% [markdown]
# The first text is greedy, the second one is drawn at random. Another seed than 5 gives another text.
#
# ## 11. The cache
#
# For each new token, the model could read the whole text again. But most of this work would repeat what it has just
# done. The mask makes the difference: no row sees a later one. So when the text grows, the earlier rows stay as they
# are, in every layer, and with them their keys and values. The new row needs nothing else from them. It is therefore
# enough to keep the keys and values, and to compute the new row only. This is the *cache*.

# %% tags=["remove-input"]
show(gpt2.empty_cache)

# %% [markdown]
# To see that it is true, let the model read all nine tokens at once, and then eight and one:

# %%
whole = gpt2.empty_cache(params, n_head, 9)
at_once = gpt2.gpt2(ids, **params, n_head=n_head, cache=whole)[-1]

cache = gpt2.empty_cache(params, n_head, 9)
gpt2.gpt2(ids[:8], **params, n_head=n_head, cache=cache)
kept = cache[..., :8, :].copy()
one_more = gpt2.gpt2(ids[8:], **params, n_head=n_head, cache=cache, n_past=8)[-1]

print(cache.shape)  # layers, keys and values, heads, positions, numbers
print("keys and values of the first eight tokens equal:", np.allclose(kept, whole[..., :8, :], atol=1e-4))
print(at_once[likeliest])
print(one_more[likeliest])
print("largest difference below 0.0001:", bool(np.abs(at_once - one_more).max() < 1e-4))

# %% [markdown]
# The numbers are the same up to rounding. A sum of many numbers depends, in its last digit, on the order of the
# additions, and the order differs between nine rows and one.
#
# In `generate`, a `Context` owns the cache. It compares the ids with those that it has read, and computes only the new
# ones:

# %% tags=["remove-input"]
show(gpt2.n_shared, gpt2.Context)

# %% [markdown]
# ## 12. What it costs
#
# How fast can this be? Two limits matter. A machine can do only so many additions and multiplications per second
# (*FLOP*, floating-point operations), and it can read only so many bytes per second from memory. For a single new
# token, the matrices are multiplied with a single row. So each number in them is read once, takes 4 bytes, and is used
# for one multiplication and one addition. Counting the numbers is therefore enough:


# %%
def numbers_read(hparams, n_keys):
    """Count the numbers that a new token reads when it looks at n_keys keys, itself included."""
    n_layer, n_embd = hparams["n_layer"], hparams["n_embd"]
    return {
        "`mha`: c_attn": n_layer * 3 * n_embd**2,
        "`attention`: keys and values": n_layer * 2 * n_embd * n_keys,
        "`mha`: c_proj": n_layer * n_embd**2,
        "`ffn`: c_fc and c_proj": n_layer * 8 * n_embd**2,
        "`gpt2`: logits": hparams["n_vocab"] * n_embd,
    }


# %% [markdown]
# The next table has OpenAI's four models, named by their number of parameters, and the 1,001st token of a text. Each
# cell gives megabytes read / millions of FLOP. The time is for a machine that reads 30 GB and does 345 billion FLOP per
# second. These are limits [that were measured](speed.md) on two cores of a server. `python -m picogpt bench` measures
# those of your machine.

# %% tags=["remove-input"]
READ, COMPUTE = 30e9, 345e9  # bytes and FLOP per second
by_size = {size: numbers_read(shape, 1001) for size, shape in SIZES.items()}
totals = [sum(counts.values()) for counts in by_size.values()]
rows = [
    [name, *(f"{4 * by_size[size][name] / 1e6:,.0f} / {2 * by_size[size][name] / 1e6:,.0f}" for size in SIZES)]
    for name in by_size["124M"]
]
rows += [
    ["all", *(f"{4 * n / 1e6:,.0f} / {2 * n / 1e6:,.0f}" for n in totals)],
    ["ms to read", *(f"{1e3 * 4 * n / READ:.1f}" for n in totals)],
    ["ms to compute", *(f"{1e3 * 2 * n / COMPUTE:.1f}" for n in totals)],
]
table(["one token: MB / MFLOP", *SIZES], rows)

# %% [markdown]
# Layer norms, biases, GELU and softmax are left out: they have few numbers. Reading takes more than twenty times as long
# as computing, so the speed of a single text is the speed of the memory. Most of the bytes are weights of the
# feed-forward network. The cache is a smaller part, but it grows with the text.
#
# A prompt is different. Its rows go through the model together, so that each weight is read once for all of them, and
# used once for each. With more than about 23 rows, computing is the slower part here: 23 rows make 46 FLOP of the 4
# bytes of a number, and 345 / 30 = 11.5 is the number of FLOP for each byte. The next table compares these limits with
# the speeds that [picogpt reached](speed.md) on the same machine with 124M:


# %% tags=["remove-input"]
def decode_limit(shape, n_past):
    return READ / (4 * sum(numbers_read(shape, n_past + 1).values()))


def prompt_flop(shape, n):
    counts = numbers_read(shape, 1)
    logits, attention = counts.pop("`gpt2`: logits"), counts.pop("`attention`: keys and values")
    return 2 * (n * sum(counts.values()) + attention * n * (n + 1) // 2 + logits)  # token i looks at i keys


rows = [
    ["the 11th token", *(f"{decode_limit(shape, 10):,.1f}" for shape in SIZES.values()), 49],
    ["the 1,001st token", *(f"{decode_limit(shape, 1000):,.1f}" for shape in SIZES.values()), 40],
    ["a prompt of 960", *(f"{960 / (prompt_flop(shape, 960) / COMPUTE):,.0f}" for shape in SIZES.values()), 861],
]
table(["at most, in tokens/s", *SIZES, "124M reached"], rows)

# %% tags=["remove-cell"]
from picogpt.bench import timing

assert prompt_flop(hparams, 9) == timing.prompt_flop(params, 9)
n_bytes, flop = timing.samples_cost(params, 1, 10, 1)
assert (n_bytes, flop) == tuple(m * sum(numbers_read(hparams, 11).values()) for m in (4, 2))
assert all((4 * n / READ) / (2 * n / COMPUTE) > 20 for n in totals)
for counts in by_size.values():
    assert max(counts, key=counts.get) == "`ffn`: c_fc and c_proj"
    assert 2 * counts["`ffn`: c_fc and c_proj"] > 0.4 * sum(counts.values())

# %% [markdown]
# [How fast](speed.md) says where the rest of the time goes.
#
# ## 13. What a logit lens shows
#
# The last layer norm and the product with `wte` turn the last layer's rows into logits. Nothing prevents us from doing
# the same after any other layer. This is the *logit lens*: it shows which token the model would predict if it stopped
# there.

# %%
x = wte[ids] + wpe[: len(ids)]
print("embedding:", encoder.decode([np.argmax(gpt2.layer_norm(x, **params["ln_f"])[-1] @ wte.T)]))
for layer, block in enumerate(params["blocks"]):
    x = gpt2.transformer_block(x, **block, n_head=n_head)
    lens = gpt2.softmax(gpt2.layer_norm(x, **params["ln_f"])[-1] @ wte.T)
    print(f"layer {layer}:   {encoder.decode([np.argmax(lens)])} ({lens.max():.2f})")

# %% name="lens" tags=["remove-input"]
figure = Figure(layout="constrained")
plot_lens(inside, figure)
picture(figure, 6.5, 4.1, "A table of the token that each layer predicts after each token of the sentence.")

# %% tags=["remove-cell"]
first_guesses = [inside.texts[row] == inside.text(inside.lens_ids[0, row, 0]) for row in range(len(ids))]
assert all(first_guesses)
last_row = [inside.text(id) for id in inside.lens_ids[:, -1, 0]]
assert last_row == ["·the", *["·king"] * 4], last_row
assert (np.diff(inside.lens_probs[1:, -1, 0]) < 0).all()

# %% [markdown]
# Read a row from left to right. At first, every row means its own token, because the lens multiplies by the matrix from
# which the embedding was taken. After the first layer, the rows have turned to the token that follows. The last row
# says ` king` from then on. Later layers make this guess less sure, in favour of other tokens. More layers do not always
# mean more certainty, even in a model that is right.
#
# ## Where to go from here
#
# - Read [gpt2.py](../gpt2.py) from top to bottom. You have now seen all functions of the model in it.
#   [How to read its comments on shapes](shapes.md) helps.
# - Look into the model with your own sentences: `python -m picogpt explain "your text" --model_size tiny`, described in
#   [See inside](explain.md). Without `--model_size tiny`, it takes OpenAI's smallest model.
# - Train a small model of your own from a text file: [train](train.md).
# - The papers: Vaswani et al. 2017, "Attention Is All You Need", for the transformer; Radford et al. 2019, "Language
#   Models are Unsupervised Multitask Learners", for GPT-2.
