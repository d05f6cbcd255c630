"""`explain --without` and `--patch`: the same tables, pictures and page, and what changes in them."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re

import numpy as np
import pytest

import gpt2
from explain import MODELS, PROMPT
from picogpt import look_inside, page
from picogpt.command_line import UsageError
from picogpt.explain import command
from picogpt.explain.change_plot import plot_change
from picogpt.explain.numbers import examine
from picogpt.explain.terminal import change_heading, change_table, signed
from picogpt.tracing.parts import changes, instead_of, overlap, parts
from utils import load_encoder_hparams_and_params


def look(*words):
    return command.look(command.parse_args([*map(str, words), "--model_size", "tiny", "--models_dir", str(MODELS)]))


@pytest.fixture(scope="module")
def without():
    """PROMPT without two parts. Do not write to it."""
    return look(PROMPT, "--without", "0.4,1.mlp")


def test_the_numbers_are_those_of_a_pass_without_the_parts(without, inside):
    encoder, hparams, params = load_encoder_hparams_and_params("tiny", MODELS)
    blocks = [{name: dict(value) for name, value in block.items()} for block in params["blocks"]]
    heads = np.split(blocks[0]["attn"]["c_proj"]["w"].copy(), 5)
    heads[4][:] = 0
    blocks[0]["attn"]["c_proj"] = blocks[0]["attn"]["c_proj"] | {"w": np.concatenate(heads)}
    blocks[1]["mlp"]["c_proj"] = {name: 0 * array for name, array in blocks[1]["mlp"]["c_proj"].items()}
    expected = examine(encoder.encode(PROMPT), encoder, params | {"blocks": blocks}, hparams["n_head"])
    for name in ("probs", "lens_probs", "attention", "residual"):
        np.testing.assert_allclose(getattr(without, name), getattr(expected, name), rtol=2e-4, atol=1e-6)
    np.testing.assert_array_equal(without.whole.probs, inside.probs)
    np.testing.assert_allclose(without.change[1:], expected.bits[1:] - inside.bits[1:], atol=1e-3)
    assert math.isnan(without.change[0])
    assert np.isnan(inside.change).all()
    assert abs(without.change[1:]).max() > 0.5


@pytest.mark.parametrize("option", ["--mean", "--bias"])
def test_mean_and_bias_come_instead_of_zero(option):
    seen = look(PROMPT, "--without", "1.2", option)
    encoder, hparams, params = load_encoder_hparams_and_params("tiny", MODELS)
    ids, chosen, n_head = encoder.encode(PROMPT), parts("1.2"), hparams["n_head"]
    replace = changes((chosen, instead_of(chosen, option[2:], params, n_head, [ids])))
    expected = examine(ids, encoder, params, n_head, replace=replace)
    np.testing.assert_array_equal(seen.probs, expected.probs)
    assert seen.model == f"tiny without 1.2 ({option[2:]})"


def test_a_patch_of_all_that_differs_makes_the_other_text_s_predictions():
    """The last token of both texts is the same, so all that differs there comes through attention."""
    text, other = "I am the king", "He is the king"
    assert len(look(text).ids) == len(look(other).ids)
    patched, expected = look(text, "--patch", "0@-1,1@-1,2@-1,3@-1", other), look(other)
    np.testing.assert_array_equal(patched.lens_ids[-1, -1], expected.lens_ids[-1, -1])
    np.testing.assert_allclose(patched.lens_probs[-1, -1], expected.lens_probs[-1, -1], rtol=1e-4)
    np.testing.assert_allclose(patched.lens_probs[-1, :-1], look(text).lens_probs[-1, :-1], rtol=1e-5)
    assert patched.model == 'tiny with 0@-1, 1@-1, 2@-1, 3@-1 from "He is the king"'


def test_a_patch_from_the_same_text_changes_nothing():
    seen = look(PROMPT, "--patch", "0,1.2,3.mlp@5", PROMPT)
    np.testing.assert_array_equal(seen.probs, seen.whole.probs)
    assert change_heading(seen) == "change from the whole model: +0.00 bits, +0.00 bits per token"


def test_both_options_work_together_and_without_may_come_several_times():
    seen = look("I am the king", "--without", "1.1", "--without", "2.mlp", "--patch", "0.mlp", "He is the king")
    assert seen.model == 'tiny without 1.1, 2.mlp (zero) and with 0.mlp from "He is the king"'
    for words in (["--without", "1.1,2.mlp"], ["--patch", "0.mlp", "He is the king"]):
        assert abs(seen.probs - look("I am the king", *words).probs)[1:].max() > 1e-4


def test_the_other_text_may_come_from_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"He is the king\n")))
    assert look("I am the king", "--patch", "0", "-").model == 'tiny with 0 from "He is the king"'


# ---------------------------------------------------------------------------------------------------- what is shown


@pytest.mark.parametrize("width", [60, 100])
def test_the_table_compares_each_prediction_with_the_whole_model_s(without, width):
    whole = without.whole
    lines = "\n".join(change_table(without, [*range(20)], width, False)).replace("\n     ", " ").splitlines()
    assert len(lines) == 20
    assert lines[0].split() == ["#", "token", "whole", "now", "change", "likeliest:", "whole", "→", "now"]
    for i, line in enumerate(lines[1:-1], 1):
        numbers = re.findall(r"(?:<?[\d.]+) %", line)
        assert numbers[:2] == [
            "<0.1 %" if p < 0.0005 else f"{100 * p:.1f} %" for p in (whole.probs[i], without.probs[i])
        ]
        assert f" {signed(without.change[i])} " in line
        names = [x.text(x.lens_ids[-1, i - 1, 0]) for x in (whole, without)]
        assert names[0] in line
        assert "→" in line
        assert names[1] in line
    assert lines[-1].startswith("next ")


def test_a_change_is_written_with_its_sign():
    assert [signed(x) for x in (0.126, -2, -0.001, math.inf, -math.inf, math.nan)] == [
        "+0.13", "-2.00", "+0.00", "+∞", "-∞", "-"
    ]  # fmt: skip


def test_the_terminal_names_the_changed_model_and_shows_the_change(explain, without, tmp_path):
    out, _ = explain(PROMPT, "--without", "0.4,1.mlp")
    total = without.change[1:]
    line = f"\nchange from the whole model: {total.sum():+.2f} bits, {total.mean():+.2f} bits per token\n"
    assert out.startswith("tiny without 0.4, 1.mlp (zero): 19 tokens, ")
    assert line in out
    summary, _ = explain(PROMPT, "--without", "0.4,1.mlp", "--html", tmp_path / "a.html")
    assert line[:-1] + "; most of it:\n" in summary
    shown = [int(number) for number in re.findall(r"^ +(\d+) .*→", summary, re.MULTILINE)]
    assert shown == sorted(range(1, 19), key=lambda i: -abs(without.change[i]))[:3]
    part, _ = explain(PROMPT, "--without", "0.4", "--tokens", "2:4")
    table = re.search(r"^change from[^;\n]*\n(.*?)\n\n", part, re.MULTILINE | re.DOTALL)[1].splitlines()
    assert [line.split()[0] for line in table[1:]] == ["2", "3"]
    assert not re.search(r"^ *next ", part, re.MULTILINE)


def test_without_the_options_no_change_is_shown(explain, inside):
    assert "change" not in explain(PROMPT)[0]
    assert inside.whole is None
    assert json.loads(re.search(r'id="data">(.*?)</script>', page(inside))[1])["whole"] is None
    with pytest.raises(ValueError, match="no part of this model was replaced"):
        plot_change(inside)


def test_the_page_has_the_whole_model_s_probabilities(without):
    data = json.loads(re.search(r'id="data">(.*?)</script>', page(without, tokens=slice(3, 6)))[1])
    expected = [[float(f"{without.whole.probs[i]:.4g}"), float(f"{without.change[i]:.4g}")] for i in (3, 4, 5)]
    assert data["whole"] == expected
    assert "tiny without 0.4, 1.mlp (zero)" in page(without)


def test_the_page_shows_the_change_of_the_chosen_token(opened, without):
    reader = opened(without)
    assert "change+0.00 bits" in reader("return document.getElementById('facts').textContent")  # of token 1
    reader("document.querySelectorAll('#tokens button')[4].click()")
    facts = reader("return document.getElementById('facts').textContent")
    change = f"{abs(without.change[4]):.2f} bits"
    assert (
        f"in the whole model{100 * without.whole.probs[4]:.1f} %change{'−' if without.change[4] < 0 else '+'}{change}"
        in facts
    )


def test_the_picture_shows_the_changes(without, tmp_path, explain):
    figure = pytest.importorskip("matplotlib.figure").Figure(layout="constrained")
    axes = plot_change(without, figure)
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], np.nan_to_num(without.change))
    texts = [text.get_text() for text in axes.texts]
    assert texts[0] == "first token"
    assert texts[4].startswith(f"{without.change[4]:+.2f}: ")
    assert axes.get_title("left") == "Change of each token's prediction"
    assert figure.texts[-1].get_text().startswith("picogpt · tiny without 0.4, 1.mlp (zero) reads")
    explain("I am", "--patch", "0", "He is", "--png", tmp_path / "a")
    names = ["attention", "change", "heads", "lens", "probabilities", "residual"]
    assert sorted(path.stem for path in (tmp_path / "a").iterdir()) == names


def test_a_token_that_became_impossible_can_be_drawn(without):
    figure = pytest.importorskip("matplotlib.figure").Figure(layout="constrained")
    probs = without.probs.copy()
    probs[3] = 0
    axes = plot_change(dataclasses.replace(without, probs=probs), figure)
    assert axes.texts[3].get_text().startswith("+∞: ")
    figure.canvas.draw()


# --------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--without", "x"], "argument --without: 'x' is no part of a model, such as 9.9 (a head)"),
        (["--patch", "He is", "0"], "argument --patch: 'He is' is no part of a model"),
        (["--patch", "0"], "argument --patch: expected 2 arguments"),
        (["--patch", "0", "a", "--patch", "1", "b"], "argument --patch: it is there twice"),
        (["--mean"], "--mean says what parts give that --without switches off"),
        (["--bias", "--patch", "0", "x"], "--bias says what parts give"),
        (["--bias", "--mean", "--without", "0"], "not allowed with"),
    ],
)
def test_options_that_do_not_fit_are_refused(capsys, words, message):
    with pytest.raises(SystemExit) as error:
        command.parse_args(["I am", *words])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_standard_input_is_read_only_once(capsys):
    with pytest.raises(SystemExit):
        command.parse_args(["-", "--patch", "0", "-"])
    assert "standard input can be read only once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--without", "4"], "--without 4: tiny has layers 0 to 3"),
        (["--patch", "0.5", "He is"], "--patch 0.5: tiny has heads 0 to 4"),
        (["--without", "0@2"], "--without 0@2: the text has tokens 0 to 1"),
        (["--patch", "0", "He is not"], "--patch: the text has 2 tokens, but the other text 3"),
        (["--patch", "0", ""], "the prompt is empty"),
        (["--without", "1,0", "--patch", "0.1", "He is"], "--without 0 and --patch 0.1 both replace the same"),
    ],
)
def test_what_is_not_there_is_refused_before_the_model_is_examined(monkeypatch, words, message):
    monkeypatch.setattr(command, "examine", None)
    with pytest.raises(UsageError, match=f"^{re.escape(message)}"):
        look("I am", *words)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("0.1", "0.1", True),
        ("0.1", "0.2", False),
        ("0.1", "1.1", False),
        ("0.1", "0.attn", True),
        ("0", "0.1", True),
        ("0.mlp", "0.1", False),
        ("0.mlp", "0.attn", False),
        ("0.mlp", "0", True),
        ("0.1@2", "0.1@3", False),
        ("0.1@-1", "0.1@3", True),
        ("0.1@2", "0.1", True),
    ],
)
def test_parts_that_overlap(a, b, expected):
    """Of these, --without and --patch can't both be true. The text has four tokens."""
    ((one,), (other,)) = parts(a), parts(b)
    assert overlap(one, other, 4) == overlap(other, one, 4) == expected


def test_look_inside_is_about_the_whole_model():
    assert look_inside("I am", "tiny", MODELS).whole is None
    assert gpt2.softmax.__module__ == "gpt2"  # nothing stays replaced
