"""Parts that are switched off or patched: their notation, and transformers with hooks, which does the same."""

from __future__ import annotations

import argparse
import contextlib
import doctest

import numpy as np
import pytest
from helpers import SHARED, SMALL, random_params, shared, transformers_model

import gpt2
from encoder import END_OF_TEXT, get_encoder
from picogpt.command_line import UsageError
from picogpt.tracing import parts as module
from picogpt.tracing.parts import (
    KINDS,
    Part,
    all_parts,
    changes,
    check_parts,
    check_positions,
    instead_of,
    parts,
    recorded,
)
from picogpt.tracing.recorder import trace
from utils import SIZES

IDS, OTHER = [5, 17, 99, 0, 42, 42, 7], [1, 2, 3, 50, 60, 70, 80]
CHOSEN = ["1.2", "0.attn", "1.mlp", "2", "0.0,0.2,1.mlp", "1.1@-1", "1.attn@0", "0.mlp@-7,1.0@2", "0@3"]


def test_examples_in_docstrings():
    assert doctest.testmod(module).failed == 0


# ------------------------------------------------------------------------------------------------------- the notation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9.10", [Part(9, 10)]),
        ("11.attn", [Part(11, "attn")]),
        ("0.mlp, 0", [Part(0, "mlp"), Part(0, "layer")]),
        ("3@5,3.1@-2", [Part(3, "layer", 5), Part(3, 1, -2)]),
    ],
)
def test_parts_are_read_and_written_in_the_same_notation(text, expected):
    assert parts(text) == expected
    assert ",".join(map(str, expected)) == text.replace(" ", "")


@pytest.mark.parametrize("text", ["", "9.", ".9", "9.9.9", "-1", "9.-1", "9,,1", "9.head", "9@", "9.9@x", "a", "٣"])
def test_what_is_no_part_is_refused_with_examples(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is no part of a model, such as 9.9"):
        parts(text)


def test_all_parts_of_a_kind():
    assert [str(part) for part in all_parts("head", 2, 2)] == ["0.0", "0.1", "1.0", "1.1"]
    for kind, expected in {"layer": ["0", "1"], "mlp": ["0.mlp", "1.mlp"], "attn": ["0.attn", "1.attn"]}.items():
        assert [str(part) for part in all_parts(kind, 2, 3)] == expected
    assert set(KINDS) == {"head", "layer", "mlp", "attn"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3", "--without 3: small has layers 0 to 2"),
        ("2.mlp,3.0", "--without 3.0: small has layers 0 to 2"),
        ("2.3", "--without 2.3: small has heads 0 to 2"),
        ("1.1@7", "--without 1.1@7: the text has tokens 0 to 6"),
        ("1@-8", "--without 1@-8: the text has tokens 0 to 6"),
    ],
)
def test_what_the_model_or_the_text_does_not_have_is_refused(text, message):
    check = check_positions if "@" in text else check_parts
    with pytest.raises(UsageError, match=f"^{message}$"):
        check(parts(text), "--without", *([7] if "@" in text else ["small", SMALL]))


# -------------------------------------------------------------------------------- beside transformers with its hooks


class Hooked:
    """transformers' model in which hooks replace what parts give. It shares with ours only the weights."""

    def __init__(self, params, hparams, dtype):
        self.torch = pytest.importorskip("torch")
        self.model, self.hparams = transformers_model(params, hparams, dtype), hparams

    def places(self, part):
        """Yield for each place of a part: the module's name, "in" or "out", and the index in [1, n_seq, n_embd]."""
        rows = slice(None) if part.position is None else [part.position]
        size = self.hparams["n_embd"] // self.hparams["n_head"]
        if isinstance(part.which, int):
            yield f"{part.layer}.attn", "in", (slice(None), rows, slice(part.which * size, (part.which + 1) * size))
        for name in ("attn", "mlp"):
            if part.which in (name, "layer"):
                yield f"{part.layer}.{name}", "out", (slice(None), rows)

    @contextlib.contextmanager
    def hooks(self, pairs):
        """Call each function on the input or the output of a c_proj, [1, n_seq, n_embd], which it may change."""
        handles = []
        for (name, side), function in pairs:
            layer, block = name.split(".")
            c_proj = getattr(self.model.transformer.h[int(layer)], block).c_proj
            if side == "in":
                handles.append(c_proj.register_forward_pre_hook(lambda m, args, f=function: (f(args[0].clone()),)))
            else:
                handles.append(c_proj.register_forward_hook(lambda m, args, out, f=function: f(out.clone())))
        try:
            with self.torch.no_grad():
                yield
        finally:
            for handle in handles:
                handle.remove()

    def logits(self, ids):
        with self.torch.no_grad():
            return self.model(self.torch.tensor([ids])).logits[0].numpy()

    def values(self, chosen, ids):
        """Return what the parts give for these ids."""
        kept = {}

        def keep(key):
            return lambda x: kept.setdefault(key, x)

        keys = {(name, side) for part in chosen for name, side, _ in self.places(part)}
        with self.hooks([(key, keep(key)) for key in keys]):
            self.logits(ids)
        return kept

    def bias(self, key):
        """With the query's and key's weights as they are and those of the values 0, every head gives its bias."""
        layer, block = key[0].split(".")
        module = getattr(self.model.transformer.h[int(layer)], block)
        if block == "mlp":
            return module.c_proj.bias
        values = module.c_attn.bias[2 * self.hparams["n_embd"] :]
        return values if key[1] == "in" else values @ module.c_proj.weight + module.c_proj.bias

    def replaced(self, chosen, source, ids):
        """Return the logits while each part gives its place in source(key)."""

        def put(key, at):
            def change(x):
                x[at] = source(key).expand(x.shape)[at]
                return x

            return change

        with self.hooks([((name, side), put((name, side), at)) for p in chosen for name, side, at in self.places(p)]):
            return self.logits(ids)


@pytest.fixture(scope="module")
def small():
    params = random_params(SMALL, np.float64)
    return params, Hooked(params, SMALL, "float64")


def ours(chosen, sources, params, ids, n_head=SMALL["n_head"]):
    with trace(changes((chosen, sources)), keep=False):
        return gpt2.gpt2(ids, **params, n_head=n_head)


@pytest.mark.parametrize("instead", ["zero", "bias", "mean"])
@pytest.mark.parametrize("text", CHOSEN)
def test_a_part_that_is_switched_off_is_off_in_transformers_too(small, text, instead):
    params, hooked = small
    chosen = parts(text)
    kept = hooked.values(chosen, IDS)
    source = {
        "zero": lambda key: hooked.torch.zeros(1, dtype=hooked.torch.float64),
        "bias": hooked.bias,
        "mean": lambda key: kept[key].mean(1, keepdim=True),
    }[instead]
    found = ours(chosen, instead_of(chosen, instead, params, SMALL["n_head"], [IDS]), params, IDS)
    np.testing.assert_allclose(found, hooked.replaced(chosen, source, IDS), rtol=1e-9, atol=1e-10)
    assert abs(found - gpt2.gpt2(IDS, **params, n_head=SMALL["n_head"])).max() > 1e-3  # it matters


@pytest.mark.parametrize("text", CHOSEN)
def test_a_patched_part_is_patched_in_transformers_too(small, text):
    params, hooked = small
    chosen = parts(text)
    found = ours(chosen, recorded(chosen, params, SMALL["n_head"], OTHER), params, IDS)
    kept = hooked.values(chosen, OTHER)
    np.testing.assert_allclose(found, hooked.replaced(chosen, kept.__getitem__, IDS), rtol=1e-9, atol=1e-10)
    assert abs(found - gpt2.gpt2(IDS, **params, n_head=SMALL["n_head"])).max() > 1e-3


def test_without_the_weights_of_the_values_only_their_bias_is_left(small):
    """What --bias means, and why TransformerLens calls it zero: there, this bias is part of another one."""
    params, _ = small
    chosen = parts("1.attn")
    found = ours(chosen, instead_of(chosen, "bias", params, SMALL["n_head"]), params, IDS)
    block = params["blocks"][1]
    w = block["attn"]["c_attn"]["w"].copy()
    w[:, 2 * SMALL["n_embd"] :] = 0
    attn = block["attn"] | {"c_attn": block["attn"]["c_attn"] | {"w": w}}
    blocks = [params["blocks"][0], block | {"attn": attn}, params["blocks"][2]]
    expected = gpt2.gpt2(IDS, **params | {"blocks": blocks}, n_head=SMALL["n_head"])
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    heads = all_parts("head", 3, 3)[3:6]
    with_heads = ours(heads, instead_of(heads, "bias", params, SMALL["n_head"]), params, IDS)
    np.testing.assert_allclose(with_heads, expected, rtol=1e-10)


def test_means_are_those_of_all_positions_of_all_texts(small):
    params, _ = small
    texts = [IDS, OTHER[:3], [8]]
    found = instead_of(parts("1.0,2"), "mean", params, SMALL["n_head"], texts)
    assert set(found) == {"h1/attn/heads", "h2/attn/c_proj", "h2/mlp/c_proj"}
    for name, mean in found.items():
        rows = []
        for ids in texts:
            with trace() as t:
                gpt2.gpt2(ids, **params, n_head=SMALL["n_head"])
            rows.append(t[name])
        np.testing.assert_allclose(mean, np.concatenate(rows, -2).mean(-2, keepdims=True), rtol=1e-12)


def test_several_groups_have_their_own_sources(small):
    params, hooked = small
    off, patched = parts("1.0,0.mlp"), parts("1.1@-1")
    groups = [
        (off, instead_of(off, "zero", params, SMALL["n_head"])),
        (patched, recorded(patched, params, SMALL["n_head"], OTHER)),
    ]
    with trace(changes(*groups), keep=False):
        found = gpt2.gpt2(IDS, **params, n_head=SMALL["n_head"])
    kept = hooked.values(patched, OTHER)
    (key,) = kept
    size = SMALL["n_embd"] // SMALL["n_head"]

    def both(x):
        x[:, :, :size] = 0
        x[:, -1, size : 2 * size] = kept[key][:, -1, size : 2 * size]
        return x

    with hooked.hooks([(key, both), (("0.mlp", "out"), hooked.torch.zeros_like)]):
        np.testing.assert_allclose(found, hooked.logits(IDS), rtol=1e-9, atol=1e-10)


def test_a_batch_and_a_cache_get_the_same(small):
    params, _ = small
    chosen = parts("1.0,2.mlp")
    sources = instead_of(chosen, "mean", params, SMALL["n_head"], [IDS])
    expected = np.stack([ours(chosen, sources, params, ids) for ids in (IDS, OTHER)])
    np.testing.assert_allclose(ours(chosen, sources, params, np.array([IDS, OTHER])), expected, rtol=1e-9, atol=1e-10)
    context = gpt2.Context(params, SMALL["n_head"])
    with trace(changes((chosen, sources)), keep=False):
        steps = [context.logits(IDS[: n + 1])[0] for n in range(len(IDS))]
    np.testing.assert_allclose(steps, expected[0], rtol=1e-9, atol=1e-10)


# ------------------------------------------------------------------ the published recipes, in the shape of 124M


@pytest.fixture(scope="module")
def random_124m():
    shared("openai-117M")
    params = random_params(SIZES["124M"], np.float64, scale=0.15)  # a head matters little in random weights
    return params, Hooked(params, SIZES["124M"], "float64"), get_encoder("openai-117M", SHARED)


@pytest.mark.slow
def test_head_ablation_is_the_published_recipe_in_the_shape_of_124m(random_124m):
    """The loss of a text without head 0.8 (5.453 with OpenAI's weights), as TransformerLens switches a head off."""
    params, hooked, encoder = random_124m
    text = "Natural language processing tasks, such as question answering, are typically approached with learning."
    ids = encoder.encode(END_OF_TEXT + text, {END_OF_TEXT})
    chosen = parts("0.8")
    found = ours(chosen, instead_of(chosen, "bias", params, 12), params, ids, n_head=12)
    expected = hooked.replaced(chosen, hooked.bias, ids)
    losses = [
        -np.log(gpt2.softmax(x.astype(np.float64)))[range(len(ids) - 1), ids[1:]].mean() for x in (found, expected)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)
    whole = hooked.logits(ids).astype(np.float64)
    assert abs(-np.log(gpt2.softmax(whole))[range(len(ids) - 1), ids[1:]].mean() - losses[1]) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("patch", [False, True])
def test_ablation_at_a_position_and_patching_in_the_shape_of_124m(random_124m, patch):
    """The difference of two names' logits with head 9.9 changed at the last position (2.92 with OpenAI's weights)."""
    params, hooked, encoder = random_124m
    prompts = (
        "When John and Mary went to the shops, John gave the bag to",
        "When Dan and Sid went to the shops, Dan gave an apple to",
    )
    ids, other = (encoder.encode(END_OF_TEXT + prompt, {END_OF_TEXT}) for prompt in prompts)
    assert len(ids) == len(other) == 15
    mary, john = (encoder.encode(name)[0] for name in (" Mary", " John"))
    chosen = parts("9.9@-1")
    if patch:
        sources, source = recorded(chosen, params, 12, other), hooked.values(chosen, other).__getitem__
    else:
        sources, source = instead_of(chosen, "bias", params, 12), hooked.bias
    found, expected, whole = (
        logits[-1, mary] - logits[-1, john]
        for logits in (
            ours(chosen, sources, params, ids, n_head=12),
            hooked.replaced(chosen, source, ids),
            hooked.logits(ids),
        )
    )
    assert found == pytest.approx(expected, abs=1e-9)
    assert abs(expected - whole) > 1e-6
