"""The facts in facts.json: with OpenAI's weights where these are, and their recipes with random ones of that shape."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, SHARED, random_params, shared, transformers_model
from oracle import Oracle

from encoder import get_encoder
from picogpt.facts.data import read_facts
from picogpt.facts.recipes import compute
from picogpt.scoring.work import Model
from utils import DATA, SIZES, load_encoder_hparams_and_params

# Those that need no file, or one that is small and among the reference data.
HERE = {size: [f for f in read_facts(size)[0] if f.get("data") in (None, "tinyshakespeare.txt")] for size in SIZES}
NAMED = [pytest.param(size, fact, id=f"{size}-{fact['what']}") for size, facts in HERE.items() for fact in facts]


def path_of(fact):
    return shared(f"text/{fact['data']}") if "data" in fact else None


@cache
def openai_model(size):
    """Return OpenAI's model, which no test downloads, or skip the test if it is missing."""
    if not (ROOT / "models" / size / DATA).exists():
        pytest.skip(f"needs OpenAI's weights: python utils.py {size}")
    return Model(ROOT / "models" / size, *load_encoder_hparams_and_params(size, ROOT / "models"))


@pytest.mark.slow
@pytest.mark.parametrize(("size", "fact"), NAMED)
def test_openai_s_weights_agree_with_what_is_published(size, fact):
    result = compute(fact, openai_model(size), path_of(fact))
    assert result.agrees, (result.ours[result.worst], result.published[result.worst])


@pytest.fixture(scope="module")
def random_124m():
    """A model in the shape of 124M whose weights are all random, biases too, and its twin in transformers."""
    shared("openai-117M")
    hparams = SIZES["124M"]
    params = random_params(hparams, scale=0.15)
    model = Model(Path("random"), get_encoder("openai-117M", SHARED), hparams, params)
    return model, Oracle(transformers_model(params, hparams, "float32"), model)


@pytest.mark.slow
@pytest.mark.parametrize("fact", [pytest.param(fact, id=f"{fact['what']}-{i}") for i, fact in enumerate(HERE["124M"])])
def test_a_recipe_equals_transformers_in_the_shape_of_124m(fact, random_124m):
    model, oracle = random_124m
    if fact["kind"] == "greedy":  # transformers reads the whole text for each token, so a few are enough
        published = fact["published"]
        ids = model.encoder.encode(published) if isinstance(published, str) else published
        fact = fact | {"published": ids[:8]}
    ours = compute(fact | {"tolerance": math.inf}, model, path_of(fact)).ours
    theirs = oracle.values(fact, path_of(fact))
    assert [v for v in ours if not isinstance(v, float)] == [v for v in theirs if not isinstance(v, float)]
    pairs = [(a, b) for a, b in zip(ours, theirs) if isinstance(b, float)]
    assert np.allclose(*zip(*pairs), rtol=1e-5, atol=2e-4) if pairs else fact["kind"] == "greedy"
