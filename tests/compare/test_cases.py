"""The inputs of the comparison are of the kinds that they claim to be."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from helpers import ROOT

import gpt2
from picogpt.compare import cases
from picogpt.compare.table import DTYPES, OURS
from utils import load_encoder_hparams_and_params


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_of_every_kind(dtype):
    random, large, tiny, denormal, constant, zero, row = cases.inputs((4, 50), dtype)
    info = np.finfo(dtype)
    assert all(x.dtype == dtype for x in (random, large, tiny, denormal, constant, zero, row))
    assert np.abs(large).max() > 1e15
    assert info.smallest_normal < np.abs(tiny).max() < 1e-30
    assert (np.abs(denormal) < info.smallest_normal).all()
    assert denormal.any()
    assert len(np.unique(constant)) == 1
    assert not zero.any()
    assert np.array_equal(row, random[:1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("part", OURS)
def test_every_part_has_cases_in_the_dtype(part, dtype):
    made = list(cases.MADE_UP[part](dtype))
    assert len(made) > 4
    arrays = [x for case in made for x in case if isinstance(x, np.ndarray) and x.dtype.kind == "f"]
    assert all(x.dtype == dtype for x in arrays)
    assert all(np.isfinite(x).all() for x in arrays)


def test_attention_has_more_queries_than_a_block():
    n_block = inspect.signature(gpt2.causal_attention).parameters["n_block"].default
    assert max(q.shape[-2] for q, *_ in cases.MADE_UP["causal_attention"]("float32")) > n_block
    assert max(len(ids) for ids, *_ in cases.MADE_UP["gpt2"]("float32")) > n_block
    assert max(max(way) for *_, ways in cases.MADE_UP["cached steps"]("float32") for way in ways) > n_block


def test_the_ways_to_feed_ids_have_them_all():
    for ids, _, _, ways in cases.cached_cases("float32"):
        assert len(ways) == 3
        assert {sum(way) for way in ways} == {len(ids)}
        assert all(piece > 0 for way in ways for piece in way)


def test_filters_are_compared_also_where_some_logits_are_equal():
    x = np.repeat(np.random.default_rng(0).standard_normal(500), 2).astype(np.float32)
    kept = [case[3] for case in cases.filter_cases(x)]
    assert kept.count(0) > 10  # about half of the cuts separate no pair
    assert 7 not in kept  # would separate the fourth pair
    assert 20 in kept


def test_a_model_has_cases_of_every_part_and_layer():
    encoder, hparams, params = load_encoder_hparams_and_params("tiny", str(ROOT / "models"))
    model = cases.ModelCases("tiny", encoder, params, hparams["n_head"])
    by_part = model.by_part()
    assert list(by_part) == list(OURS) == list(cases.MADE_UP)
    assert len(list(by_part["linear"]("float32"))) == 4 * hparams["n_layer"]
    assert len(list(by_part["layer_norm"]("float32"))) == 2 * hparams["n_layer"]
    (first, *_), (second, *_), *_ = by_part["transformer_block"]("float32")
    assert np.array_equal(model.at("float32")[1]["h0/out"], second)
    assert np.array_equal(model.at("float32")[1]["embedding"], first)
    assert model.at("float32")[0]["wte"] is params["wte"]  # a model may be too large for a copy
    assert model.at("float64")[0]["wte"].dtype == np.float64


def test_the_made_up_tokenizer_merges_in_its_own_order():
    encoder = cases.made_up_encoder()
    assert [encoder.decode([id]) for id in encoder.encode("thethe inthand xxxxx")][:2] == ["the", "the"]
    assert encoder.decode(encoder.encode("a thethe")) == "a thethe"
