"""The numbers, compared with transformers, with gpt2.py and with their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import random_params, transformers_model
from hypothesis import given
from hypothesis import strategies as st

import gpt2
from explain import MODELS, PROMPT
from picogpt.command_line import UsageError
from picogpt.explain.numbers import (
    Settings,
    examine,
    forward,
    layer_name,
    lens,
    likeliest,
    look_inside,
    positions,
    probs_and_ranks,
)
from utils import load_hparams_and_params


@pytest.mark.slow  # imports PyTorch and transformers
def test_attention_and_every_layer_s_lens_equal_transformers(tiny):
    torch = pytest.importorskip("torch")
    encoder, hparams, params = tiny
    ids = encoder.encode(PROMPT)
    seen = examine(ids, encoder, params, hparams["n_head"], top=20)
    model = transformers_model(params, hparams, "float64")
    with torch.no_grad():
        theirs = model(torch.tensor([ids]), output_hidden_states=True, output_attentions=True)
        hidden = theirs.hidden_states  # transformers has applied ln_f to the last one already
        normed = [*(model.transformer.ln_f(state[0]) for state in hidden[:-1]), hidden[-1][0]]
        probs = [torch.softmax(model.lm_head(state), -1).numpy() for state in normed]
    np.testing.assert_allclose(seen.attention, [a[0].numpy() for a in theirs.attentions], rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(
        seen.stream_lengths[:-1], [np.linalg.norm(h[0], axis=-1) for h in hidden[:-1]], rtol=1e-9
    )
    assert len(probs) == len(seen.stream_ids) == hparams["n_layer"] + 1
    for layer, row in enumerate(probs):
        best = np.argsort(-row, axis=-1)[:, :20]
        np.testing.assert_array_equal(seen.stream_ids[layer], best)
        np.testing.assert_allclose(seen.stream_probs[layer], np.take_along_axis(row, best, -1), rtol=1e-9)
    np.testing.assert_allclose(seen.probs[1:], [row[id] for row, id in zip(probs[-1], ids[1:])], rtol=1e-9)


def check_last_lens(ids, params, n_head):
    stream, _ = forward(ids, params, n_head)
    assert len(stream) == len(params["blocks"]) + 1
    np.testing.assert_array_equal(lens(stream[-1], params), gpt2.gpt2(ids, **params, n_head=n_head))
    assert not np.array_equal(lens(stream[-2], params), lens(stream[-1], params))


@pytest.mark.parametrize("n", [1, 2, 5, 97, 256])
def test_the_last_layer_s_lens_equals_the_logits_bit_for_bit(n):
    hparams, params = load_hparams_and_params(MODELS / "tiny")
    check_last_lens(np.random.default_rng(n).integers(0, 1024, n), params, hparams["n_head"])


@pytest.mark.slow
def test_it_does_so_with_the_widths_of_124m():
    shape = {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 1}
    check_last_lens(np.random.default_rng(0).integers(0, 50257, 40), random_params(shape, scale=0.02), 12)


def test_attention_rows_sum_to_1_and_no_token_looks_ahead(inside):
    np.testing.assert_allclose(inside.attention.sum(-1), 1, rtol=1e-5)
    assert not inside.attention[..., np.triu(np.ones((19, 19), dtype=bool), 1)].any()


@pytest.mark.parametrize("settings", [Settings(), Settings(0.7, 40, 0.9, 1.3), Settings(0.0), Settings(1.5, 3)])
def test_the_probabilities_are_those_that_generation_draws_from(tiny, settings, monkeypatch):
    encoder, hparams, params = tiny
    ids = encoder.encode(PROMPT)
    seen = examine(ids, encoder, params, hparams["n_head"], 5, settings)
    drawn, token_probs = [], gpt2.token_probs

    def recorded(*args):
        drawn.append(token_probs(*args))
        return drawn[-1]

    def choose(logits, so_far):
        """Record the probabilities, and continue with the prompt whatever they are."""
        gpt2.token_probs(logits, so_far, *settings)
        return [*ids, 0][len(drawn)]

    monkeypatch.setattr(gpt2, "token_probs", recorded)
    assert [*gpt2.generate(ids[:1], params, hparams["n_head"], len(ids), choose)] == [*ids[1:], 0]
    expected = [p[id] for p, id in zip(drawn, ids[1:])]
    np.testing.assert_allclose(seen.probs[1:], expected, rtol=1e-9)
    for i, p in enumerate(drawn):
        best = np.argsort(-p, kind="stable")[:5]
        np.testing.assert_array_equal(seen.lens_ids[-1, i], best)
        np.testing.assert_allclose(seen.lens_probs[-1, i], p[best], rtol=1e-9)
    ranks = [int(np.sum(p > p[id])) + 1 for p, id in zip(drawn, ids[1:])]
    assert seen.ranks.tolist() == [0, *ranks]


def test_the_first_token_has_no_probability_and_bits_are_surprisal(inside):
    assert np.isnan(inside.probs[0])
    np.testing.assert_allclose(2.0 ** -inside.bits[1:], inside.probs[1:])
    greedy = look_inside(PROMPT, "tiny", MODELS, settings=Settings(temperature=0))
    assert {*greedy.bits[1:]} == {0, np.inf}
    assert not np.signbit(greedy.bits[1:]).any()


def test_the_model_runs_once(monkeypatch, tiny):
    encoder, hparams, params = tiny
    calls = []
    block = gpt2.transformer_block
    monkeypatch.setattr(gpt2, "transformer_block", lambda *args, **kwargs: calls.append(1) or block(*args, **kwargs))
    examine([1, 2, 3], encoder, params, hparams["n_head"])
    assert len(calls) == hparams["n_layer"]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 30))
def test_likeliest_is_a_stable_sort(numbers, top):
    probs, top = np.array(numbers, dtype=float), min(top, len(numbers))
    assert likeliest(probs, top).tolist() == np.argsort(-probs, kind="stable")[:top].tolist()


def test_layers_have_the_numbers_of_the_option_layer():
    assert [layer_name(i) for i in range(3)] == ["embedding", "layer 0", "layer 1"]


def test_a_notebook_shows_a_short_summary(inside):
    lines = repr(inside).splitlines()
    assert lines[0] == 'tiny reads "ROMEO: What light through yonder window breaks?"'
    assert lines[1] == f"19 tokens, {inside.bits[1:].sum():.2f} bits, {inside.bits[1:].mean():.2f} bits per token"
    assert "attention [4, 5, 19, 19]" in lines[2]
    assert "lens_ids [4, 19, 5]" in lines[2]
    long = look_inside("word " * 120, "tiny", MODELS)
    assert len(repr(long)) < 400
    assert repr(long) == repr(long)  # the values that are computed when they are first used change nothing


def test_the_text_is_named_without_a_model_too(tiny):
    encoder, hparams, params = tiny
    assert examine([0], encoder, params, hparams["n_head"]).caption(9) == '"!"'


@given(st.integers(1, 9), st.none() | st.integers(-12, 12), st.none() | st.integers(-12, 12))
def test_positions_are_those_of_a_slice(n, start, stop):
    expected = [*range(n)][start:stop]
    if expected:
        assert [*positions(slice(start, stop), n)] == expected
    else:
        with pytest.raises(
            UsageError, match=f"^tokens .*:.* are none of the text's {n} tokens, which are 0 to {n - 1}$"
        ):
            positions(slice(start, stop), n)
    assert positions(None, n) == range(n)


@pytest.mark.parametrize("step", [2, -1])
def test_a_slice_with_a_step_is_refused(step):
    with pytest.raises(UsageError, match=f"a step of {step}"):
        positions(slice(None, None, step), 5)


def test_settings_name_only_those_that_were_changed():
    assert Settings().changed() == []
    assert Settings(0.8, top_k=40).changed() == ["temperature 0.8", "top_k 40"]


@pytest.mark.parametrize(
    ("name", "values"),
    [("temperature", [-1, np.nan]), ("top_k", [-3]), ("top_p", [-0.1, 2]), ("repetition_penalty", [0])],
)
def test_settings_outside_their_limits_are_refused(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"{name}={value}"):
            look_inside("x", "tiny", MODELS, settings=Settings(**{name: value}))


def test_logits_that_are_not_finite_are_refused(tiny):
    encoder, hparams, params = tiny
    wte = params["wte"].copy()
    wte[7, 3] = np.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        examine([1, 2], encoder, params | {"wte": wte}, hparams["n_head"])


def test_nan_is_never_the_likeliest():
    assert probs_and_ranks([np.array([np.nan, 0.5])], [0, 0])[1].tolist() == [0, 3]


@pytest.mark.parametrize("top", [0, -1])
def test_top_below_1_is_refused(top):
    with pytest.raises(UsageError, match=f"top.*{top}"):
        look_inside("x", "tiny", MODELS, top)
