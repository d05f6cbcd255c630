"""What docs/page/glue.py says of each token, without a browser: it runs in any Python."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from helpers import ROOT

import gpt2
from page import load_script
from picogpt.terminal_text import visible

TINY = ROOT / "models" / "tiny"


@pytest.fixture(scope="module")
def glue():
    return load_script("page/glue.py")


@pytest.fixture(scope="module")
def writer(glue):
    return glue.load(str(TINY))


SETTINGS = {"prompt": "ROMEO:", "n_tokens": 30, "temperature": 0.8, "top_k": 0, "top_p": 1, "seed": 1, "kept": []}


def steps(writer, **settings):
    return [json.loads(step) for step in writer.steps(json.dumps(SETTINGS | settings))]


def ids_of(writer, **settings):
    return [step["id"] for step in steps(writer, **settings)[1:-1]]


# ----------------------------------------------------------------------------------------------------------- a new text


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0, 0, 1), (0.8, 0, 1), (1.5, 5, 1), (1, 0, 0.6)])
def test_each_step_has_the_probabilities_of_its_token(writer, temperature, top_k, top_p):
    first, *middle, last = steps(writer, temperature=temperature, top_k=top_k, top_p=top_p)
    ids = writer.encoder.encode("ROMEO:")
    assert first == {"prompt": "ROMEO:", "tokens": ["ROMEO", ":"], "notes": []}
    assert last == {"text": ""}
    assert len(middle) == 30
    for step in middle:
        logits = gpt2.gpt2(ids, **writer.params, n_head=writer.hparams["n_head"])[-1]
        p = gpt2.softmax(logits.astype(np.float64))
        drawn = gpt2.token_probs(logits, ids, temperature, top_k, top_p, 1.0)
        shown = [one["id"] for one in step["candidates"]]
        assert shown[:8] == np.argsort(-p)[:8].tolist()
        assert shown[8:] == ([] if step["id"] in shown[:8] else [step["id"]])
        np.testing.assert_allclose([one["p"] for one in step["candidates"]], p[shown], rtol=1e-4)
        np.testing.assert_allclose([one["drawn"] for one in step["candidates"]], drawn[shown], rtol=1e-4)
        assert [one["token"] for one in step["candidates"]] == [visible(writer.encoder.token_bytes(id)) for id in shown]
        assert drawn[step["id"]] > 0
        ids.append(step["id"])
    assert "".join(step["text"] for step in middle) == writer.encoder.decode(ids[2:])


def test_a_text_is_that_of_gpt2_py_s_own_loop(glue):
    writer = glue.load(str(TINY))
    for settings in ({}, {"seed": 7}, {"temperature": 0}, {"top_k": 3, "n_tokens": 60}, {"top_p": 0.5}):
        asked, rng = SETTINGS | settings, np.random.default_rng((SETTINGS | settings)["seed"])

        def choose(logits, ids, asked=asked, rng=rng):
            return gpt2.sample(logits, ids, rng, asked["temperature"], asked["top_k"], asked["top_p"])

        prompt, n_head = writer.encoder.encode("ROMEO:"), writer.hparams["n_head"]
        expected = list(gpt2.generate(prompt, writer.params, n_head, asked["n_tokens"], choose))
        assert ids_of(writer, **settings) == expected  # whatever the writer remembers of the texts before it


def test_half_a_character_is_never_text(writer):
    found = steps(writer, prompt="中", n_tokens=60, temperature=100, seed=5)[1:]
    ids = [step["id"] for step in found[:-1]]
    assert any(max(writer.encoder.token_bytes(id)) > 127 for id in ids)
    assert "".join(step["text"] for step in found) == writer.encoder.decode(ids)


def test_the_ids_before_a_taken_token_stay_and_the_rest_follows_it(writer):
    ids = ids_of(writer)
    other = next(one["id"] for one in steps(writer)[6]["candidates"] if one["id"] != ids[5])
    taken = ids_of(writer, kept=[*ids[:5], other], temperature=1.2)  # by now, the settings are others
    assert taken[:6] == [*ids[:5], other]
    assert taken[6:] != ids[6:]
    assert len(taken) == 30
    assert taken == ids_of(writer, kept=[*ids[:5], other], temperature=1.2)
    assert ids_of(writer, kept=ids[:5]) == ids  # a token that the model had drawn anyway changes nothing
    assert ids_of(writer, kept=[1, 2, 3], n_tokens=2) == [1, 2]


def test_nothing_is_computed_twice(writer, monkeypatch):
    ids = ids_of(writer)
    rows = []
    monkeypatch.setattr(gpt2.Context, "logits", lambda self, ids, n_logits=1: rows.append(len(ids)))
    assert ids_of(writer) == ids
    with pytest.raises(TypeError):  # the stand-in above returns no logits
        ids_of(writer, kept=[*ids[:5], ids[5] + 1])
    assert rows == [8]  # 2 tokens of the prompt, 5 that stay, and the one that was taken


def test_other_settings_change_only_the_probabilities(writer):
    before = steps(writer, n_tokens=5)[1:-1]
    drawn = json.loads(writer.redraw(json.dumps(SETTINGS | {"temperature": 1.5, "top_k": 4})))
    assert len(drawn) == 5
    ids = writer.encoder.encode("ROMEO:")
    for step, probs in zip(before, drawn):
        logits = gpt2.gpt2(ids, **writer.params, n_head=writer.hparams["n_head"])[-1]
        expected = gpt2.token_probs(logits, ids, 1.5, 4, 1.0, 1.0)[[one["id"] for one in step["candidates"]]]
        np.testing.assert_allclose(probs, expected, rtol=1e-4)
        ids.append(step["id"])
    assert json.loads(writer.redraw(json.dumps(SETTINGS))) == [
        [one["drawn"] for one in s["candidates"]] for s in before
    ]


# -------------------------------------------------------------------------------------------- prompts, and what is said


def test_a_prompt_that_leaves_no_room_is_one_line(writer):
    message = r"^2 prompt tokens \+ 256 to generate do not fit into the context of 256: 0 to 255 new ones fit$"
    with pytest.raises(ValueError, match=message):  # before its tokens are shown
        next(writer.steps(json.dumps(SETTINGS | {"n_tokens": 256})))
    assert len(steps(writer, n_tokens=255)) == 257


@pytest.mark.parametrize("prompt", ["", "a", "ROMEO:", "To be. " * 50, "a " * 400, "x" * 200_000])
def test_the_room_for_new_tokens_is_what_fits(writer, prompt):
    room = json.loads(writer.room(prompt))
    assert room["n_ctx"] == 256
    if room["room"]:
        next(writer.steps(json.dumps(SETTINGS | {"prompt": prompt, "n_tokens": room["room"]})))
        assert room["n_tokens"] == max(1, len(writer.encoder.encode(prompt)))
    with pytest.raises(ValueError, match="fit|n_ctx"):
        next(writer.steps(json.dumps(SETTINGS | {"prompt": prompt, "n_tokens": room["room"] + 1})))


def test_an_empty_prompt_begins_a_document(writer):
    first = steps(writer, prompt="", n_tokens=1)[0]
    assert first == {
        "prompt": "",
        "tokens": ["<|endoftext|>"],
        "notes": ["The prompt is empty, so the text begins a new document."],
    }


def test_notes_are_words_for_a_visitor(writer):
    (space, unused) = steps(writer, prompt="ROMEO: ", n_tokens=1, temperature=0, top_k=3)[0]["notes"]
    assert space.startswith("The prompt ends in a space")
    assert unused == "At temperature 0 the likeliest token is taken, so top_k and top_p change nothing."
    assert "--" not in space + unused
    assert steps(writer, n_tokens=1, temperature=0)[0]["notes"] == []


@pytest.mark.parametrize("kept", [[1024], [-1]])
def test_a_link_with_wrong_ids_is_one_line(writer, kept):
    with pytest.raises(
        ValueError, match=r"^the link has the token (1024|-1), but this model has the tokens 0 to 1023$"
    ):
        steps(writer, kept=kept)


# --------------------------------------------------------------------------------------------- a view, and other models


def test_the_view_is_the_page_of_explain(writer):
    from picogpt.explain.numbers import examine
    from picogpt.explain.page import page

    new_ids = ids_of(writer)
    ids = [*writer.encoder.encode("ROMEO:"), *new_ids]
    inside = examine(ids, writer.encoder, writer.params, writer.hparams["n_head"], model="tiny")
    assert writer.inside("ROMEO:", json.dumps(new_ids)) == page(inside)
    assert "256 tokens" in writer.inside("ROMEO:", json.dumps(new_ids * 9))  # as many as the context has


def test_the_stand_in_for_tqdm_reports_what_explain_does(writer, monkeypatch):
    stand_in, told = load_script("page/tqdm.py"), []
    monkeypatch.setitem(__import__("sys").modules, "tqdm", stand_in)
    monkeypatch.setattr(stand_in.tqdm, "report", told.append)
    writer.inside("ROMEO:", "[]")
    assert told == [f"{what}, {i} of 6" for i, what in enumerate(["logit lens, embedding"], 1)] + [
        f"logit lens, layer {i}, {i + 2} of 6" for i in range(4)
    ]


def test_what_is_open_is_named_with_its_sizes(writer):
    about = json.loads(writer.about())
    n_params = sum(np.prod(shape) for shape in __import__("utils").expected_shapes(writer.hparams).values())
    assert about == {"name": "tiny", "n_params": n_params, **writer.hparams}


def test_a_hugging_face_folder_is_opened(glue, writer, tmp_path):
    from picogpt.checkpoints.convert import main

    assert main([str(TINY), "--to_hf", "--out", str(tmp_path / "hf")]) == 0
    assert ids_of(glue.load(str(tmp_path / "hf"))) == ids_of(writer)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("hparams.json", "tiny holds no model: it needs hparams.json, encoder.json, .*, or config.json, "),
        ("vocab.bpe", "^tiny has no vocab.bpe$"),
        ("model.ckpt.index", r"model\.ckpt\.index"),
        ("model.ckpt.data-00000-of-00001", r"model\.ckpt\.data"),
    ],
)
def test_what_a_folder_lacks_is_named(glue, tmp_path, missing, message):
    shutil.copytree(TINY, tmp_path / "tiny")
    (tmp_path / "tiny" / missing).unlink()
    with pytest.raises((OSError, ValueError)) as caught:
        glue.load(str(tmp_path / "tiny"))
    assert re.search(message, str(caught.value))


def test_an_incomplete_124m_is_not_downloaded(glue, tmp_path):
    shutil.copytree(TINY, tmp_path / "124M")
    (tmp_path / "124M" / "encoder.json").unlink()
    with pytest.raises(ValueError, match=r"^124M has no encoder\.json$"):
        glue.load(str(tmp_path / "124M"))


def test_weights_that_do_not_fit_are_refused_with_the_number(glue, tmp_path):
    shutil.copytree(TINY, tmp_path / "774M")
    with open(tmp_path / "774M" / "model.ckpt.data-00000-of-00001", "r+b") as file:
        file.truncate(3_096_000_000)  # takes no room on the disk
    with pytest.raises(ValueError, match=r"its weights have 3\.1 GB, and Python in a browser has room for 2\.1 GB"):
        glue.load(str(tmp_path / "774M"))


def test_a_folder_without_a_tokenizer_is_refused(glue, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has no tokenizer: neither tokenizer\.json nor vocab\.json and merges\.txt$"):
        glue.load(str(tmp_path))
