"""What docs/page/glue.py says of each token, without a browser: it runs in any Python."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from helpers import ROOT

import gpt2
from picogpt.terminal_text import visible


@pytest.fixture(scope="module")
def glue():
    spec = importlib.util.spec_from_file_location("glue", ROOT / "docs" / "page" / "glue.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(glue):
    return glue.load()


SETTINGS = {"prompt": "ROMEO:", "n_tokens": 30, "temperature": 0.8, "top_k": 0, "seed": 1}


def steps(glue, model, **settings):
    return [json.loads(step) for step in glue.steps(model, json.dumps(SETTINGS | settings))]


@pytest.mark.parametrize(("temperature", "top_k"), [(0, 0), (0.8, 0), (1.5, 5)])
def test_each_step_has_the_probabilities_of_its_token(glue, model, temperature, top_k):
    encoder, hparams, params = model
    first, *middle, last = steps(glue, model, temperature=temperature, top_k=top_k)
    ids = encoder.encode("ROMEO:")
    assert first == {"prompt": "ROMEO:", "tokens": ["ROMEO", ":"]}
    assert last == {"text": ""}
    assert len(middle) == 30
    for step in middle:
        logits = gpt2.gpt2(ids, **params, n_head=hparams["n_head"])[-1]
        p = gpt2.softmax(logits.astype(np.float64))
        drawn = gpt2.token_probs(logits, ids, temperature, top_k, 1.0, 1.0)
        shown = [one["id"] for one in step["candidates"]]
        assert shown[:8] == np.argsort(-p)[:8].tolist()
        assert shown[8:] == ([] if step["id"] in shown[:8] else [step["id"]])
        np.testing.assert_allclose([one["p"] for one in step["candidates"]], p[shown], rtol=1e-4)
        np.testing.assert_allclose([one["drawn"] for one in step["candidates"]], drawn[shown], rtol=1e-4)
        assert [one["token"] for one in step["candidates"]] == [visible(encoder.token_bytes(id)) for id in shown]
        assert drawn[step["id"]] > 0
        ids.append(step["id"])
    assert "".join(step["text"] for step in middle) == encoder.decode(ids[2:])


def test_a_seed_gives_the_same_text_and_no_seed_another(glue, model):
    def texts(seed):
        return ["".join(step["text"] for step in steps(glue, model, seed=seed)[1:]) for _ in range(2)]

    first, second = texts(7)
    assert first == second
    first, second = texts(None)
    assert first != second


def test_half_a_character_is_never_text(glue, model):
    encoder = model[0]
    found = steps(glue, model, prompt="中", n_tokens=60, temperature=100, seed=5)[1:]
    ids = [step["id"] for step in found[:-1]]
    assert any(max(encoder.token_bytes(id)) > 127 for id in ids)
    assert "".join(step["text"] for step in found) == encoder.decode(ids)


def test_a_prompt_that_leaves_no_room_is_one_line(glue, model):
    message = r"^2 prompt tokens \+ 256 to generate do not fit into the context of 256: 0 to 255 new ones fit$"
    with pytest.raises(ValueError, match=message):  # before its tokens are shown
        next(glue.steps(model, json.dumps(SETTINGS | {"n_tokens": 256})))
    assert len(steps(glue, model, n_tokens=255)) == 257


def test_an_empty_prompt_begins_a_document(glue, model, capsys):
    assert steps(glue, model, prompt="", n_tokens=1)[0] == {"prompt": "", "tokens": ["<|endoftext|>"]}
    assert capsys.readouterr().err == "the prompt is empty: the text begins a new document, after <|endoftext|>\n"


def test_warnings_are_those_of_the_command(glue, model, capsys):
    steps(glue, model, prompt="ROMEO: ", n_tokens=1, temperature=0, top_k=3, seed=None)
    ends_in_space, no_effect = capsys.readouterr().err.splitlines()
    assert ends_in_space.startswith("warning: the prompt ends in a space")
    assert no_effect == "warning: --top_k has no effect without a --temperature above 0"
