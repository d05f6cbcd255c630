"""picogpt.load: each method of a model against the function that it calls, and a sentence for every wrong type."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, run_command

import gpt2
import picogpt
from picogpt import Model, look_inside, score, trace
from utils import load_encoder_hparams_and_params

MODELS, TEXT = ROOT / "models", "To be, or not to"


@pytest.fixture(scope="module")
def model() -> Model:
    return picogpt.load("tiny", models_dir=MODELS)


@pytest.fixture(scope="module")
def parts():
    return load_encoder_hparams_and_params("tiny", MODELS)


@pytest.mark.parametrize(
    "ways",
    [
        lambda parts: picogpt.load(MODELS / "tiny"),
        lambda parts: picogpt.load(str(MODELS / "tiny")),
        lambda parts: picogpt.load(*parts),
        lambda parts: picogpt.load(parts[0], hparams=parts[1], params=parts[2]),
        lambda parts: picogpt.load(parts),
        lambda parts: picogpt.load(picogpt.load(parts)),
        lambda parts: Model(*parts),
    ],
)
def test_every_way_to_name_a_model_gives_the_same_one(model, parts, ways):
    assert ways(parts).logits(TEXT).tolist() == model.logits(TEXT).tolist()


def test_a_model_that_is_one_already_stays_the_same_object(model):
    assert picogpt.load(model) is model


def test_each_method_gives_what_its_function_gives(model, parts):
    encoder, hparams, params = parts
    ids, n_head = encoder.encode(TEXT), hparams["n_head"]
    logits = gpt2.gpt2(ids, **params, n_head=n_head)
    for text in (TEXT, ids, iter(ids), tuple(ids), np.array(ids, np.uint16)):
        kept = list(text) if not isinstance(text, str) else text  # an iterator is read once
        assert model.ids(kept) == ids
        assert np.array_equal(model.logits(kept), logits)
        assert "".join(model.generate(kept, 9)) == encoder.decode(gpt2.generate(ids, params, n_head, 9))
        assert model.score(kept).tolist() == score(ids, params, n_head).tolist()
        assert np.array_equal(model.inside(kept).probs, look_inside(TEXT, "tiny", MODELS).probs, equal_nan=True)
        assert np.array_equal(model.trace(kept)["logits"], logits)
    assert model.ids(iter(ids)) == ids
    assert np.array_equal(model.logits(iter(ids)), logits)
    assert (model.n_head, model.n_ctx) == (n_head, hparams["n_ctx"])


def test_options_reach_the_functions(model, parts):
    encoder, hparams, params = parts
    ids = encoder.encode(TEXT)
    stride = {"stride": 2, "max_context": 3}
    assert model.score(TEXT, **stride).tolist() == score(ids, params, hparams["n_head"], **stride).tolist()
    settings = picogpt.Settings(0.7, 40)
    assert model.inside(TEXT, top=2, settings=settings).lens_ids.shape == (4, 6, 2)
    assert model.inside(TEXT, settings=settings).settings == settings
    silent = {"h*/attn/heads": np.zeros_like}
    with trace(silent):
        expected = model.logits(TEXT)
    assert np.array_equal(model.trace(TEXT, silent)["logits"], expected)
    assert not np.array_equal(expected, model.logits(TEXT))


@pytest.mark.parametrize("words", [{}, {"temperature": 0.8, "seed": 1}, {"temperature": 1, "top_k": 9, "seed": 2}])
def test_generate_gives_what_gpt2_py_prints(model, words):
    words |= {"stop": ",", "repetition_penalty": 1.1, "top_p": 0.95, "n_tokens_to_generate": 30}
    options = [word for name, value in words.items() for word in (f"--{name}", value)]
    shown = run_command("gpt2.py", TEXT, "--model", "tiny", *options).out
    assert "".join(model.generate(TEXT, **words)) + "\n" == shown


def test_generated_text_comes_piece_by_piece_and_says_so(model):
    pieces = model.generate(TEXT, 3)
    assert 'print(*pieces, sep="")' in repr(pieces)
    assert next(pieces) == " be"
    assert "".join(pieces) == "".join(list(model.generate(TEXT, 3))[1:])


def test_a_model_in_memory_may_be_changed(model):
    encoder, hparams, params = model.encoder, model.hparams, copy.deepcopy(model.params)
    params["blocks"][1]["attn"]["c_proj"]["w"][:] = 0
    changed = picogpt.load(encoder, hparams, params)
    for other in (changed, (encoder, hparams, params)):
        assert score(TEXT, other).tolist() == score(model.ids(TEXT), params, model.n_head).tolist()
        assert look_inside(TEXT, other).bits[1] == pytest.approx(-score(TEXT, changed)[0] / np.log(2), rel=1e-5)
    assert not np.allclose(changed.score(TEXT), model.score(TEXT))
    changed.name = "without attention in layer 1"
    assert repr(changed.inside(TEXT)).startswith('without attention in layer 1 reads "To be, or not to"\n')


def test_reprs_name_what_helps(model):
    first, methods = repr(model).splitlines()
    assert first == "<Model tiny: 4 layers, 5 heads, n_embd = 160, n_ctx = 256, 1,024 tokens, float32>"
    for name in ("ids", "logits", "generate", "score", "inside", "trace"):
        assert f"{name}(text)" in methods
        assert callable(getattr(model, name))
    assert repr(Model(model.encoder, model.hparams, model.params)).startswith("<Model in memory: 4 layers")


def test_a_text_of_many_windows_is_scored(model):
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert model.score(text).tolist() == score(text, "tiny", models_dir=MODELS).tolist()
    assert len(model.score(text)) == len(model.ids(text)) - 1 > model.n_ctx


WRONG = [3, None, 2.5, b"To be", bytearray(b"To be")]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_neither_text_nor_ids_is_refused_with_its_type(model, wrong):
    message = f"^a text or ids are needed, whole numbers in one dimension, not {type(wrong).__name__}$"
    for function in (model.ids, model.logits, model.generate, model.score, model.inside, model.trace):
        with pytest.raises(TypeError, match=message):
            function(wrong)
    for function in (look_inside, score):
        with pytest.raises(TypeError, match=message):
            function(wrong, model)
    with pytest.raises(TypeError, match=message):
        score(wrong, model.params, model.n_head)


@pytest.mark.parametrize("wrong", [["To", "be"], [1.5], [[1, 2]], np.array([True])])
def test_ids_that_are_not_whole_numbers_are_refused(model, wrong):
    for function in (model.ids, model.logits, model.generate, model.score, model.inside, model.trace):
        with pytest.raises(ValueError, match=r"^ids must be whole numbers in one dimension, not \S+ of shape"):
            function(wrong)


@pytest.mark.parametrize(("wrong", "low", "high"), [([-1, 3], -1, 3), ([5, 1024], 5, 1024)])
def test_ids_that_the_model_does_not_have_are_refused(model, wrong, low, high):
    """NumPy takes -1 as the last row."""
    for function in (model.ids, model.logits, model.generate, model.score, model.inside, model.trace):
        with pytest.raises(ValueError, match=f"^the ids are {low} to {high}, outside 0 to 1023$"):
            function(wrong)


@pytest.mark.parametrize(("text", "message"), [("", "the prompt is empty"), ([], "the prompt is empty")])
def test_an_empty_text_is_refused_where_the_model_would_read_nothing(model, text, message):
    for function in (model.logits, model.inside, model.trace, model.generate):
        with pytest.raises(ValueError, match=message):
            function(text)
    assert model.score(text).tolist() == []


@pytest.mark.parametrize("text", ["a" * 300, [1] * 300])
def test_a_text_that_does_not_fit_is_refused_with_the_limit(model, text):
    for function in (model.logits, model.inside, model.trace):
        with pytest.raises(ValueError, match=r"has \d+ tokens, but the model's context is n_ctx = 256$"):
            function([5] * 300 if isinstance(text, list) else "Qx" * 300)
    with pytest.raises(ValueError, match="300 prompt tokens .* do not fit into the context of 256"):
        model.generate([5] * 300)


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1), ("top_k", -1), ("top_p", 2), ("repetition_penalty", 0), ("n_tokens_to_generate", 999)],
)
def test_settings_out_of_range_are_refused_at_once(model, name, value):
    with pytest.raises(ValueError, match=f"{value}"):
        model.generate(TEXT, **{name: value})
    with pytest.raises(ValueError, match="non-negative"):
        model.generate(TEXT, seed=-1)


@pytest.mark.parametrize("wrong", [5, None, {"wte": 1}, ["tiny"], ("tiny", "models")])
def test_what_is_no_model_is_refused_with_its_type(wrong):
    message = rf"^a model is a name such as 'tiny', a path, .*, not {type(wrong).__name__}$"
    for function in (picogpt.load, lambda model: score(TEXT, model), lambda model: look_inside(TEXT, model)):
        with pytest.raises(TypeError, match=message):
            function(wrong)


def test_parts_in_another_order_are_refused(parts):
    encoder, hparams, params = parts
    for wrong, types in [
        ((hparams, encoder, params), "dict, Encoder, dict"),
        ((encoder, params, hparams), "Encoder, dict, dict"),
        ((encoder, hparams, None), "Encoder, dict, NoneType"),
        (("tiny", "models", None), "str, str, NoneType"),
    ]:
        with pytest.raises(TypeError, match=f"its encoder, hparams and params, in this order, not {types}$"):
            picogpt.load(*wrong)


def test_a_model_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match="there is no model 'nothing'"):
        picogpt.load("nothing")


def test_loading_waits_for_no_module_that_it_does_not_need():
    code = "import sys, picogpt; picogpt.load('tiny').logits('a'); print(*sys.modules)"
    names = subprocess.check_output([sys.executable, "-c", code], cwd=Path(ROOT), text=True).split()
    assert "picogpt.notebook" in names
    unneeded = {"matplotlib", "picogpt.explain.numbers", "picogpt.scoring.windows", "picogpt.tracing.recorder"}
    assert unneeded & set(names) == set()


@pytest.mark.parametrize("wrong", ["To be", "12", None, [1.5], ["a"]])
def test_the_forward_pass_itself_says_in_numpy_s_words_that_these_are_no_ids(model, wrong):
    with pytest.raises(IndexError, match="arrays used as indices must be of integer"):
        gpt2.gpt2(wrong, **model.params, n_head=model.n_head)
