"""The pictures: they show the numbers, and any token can be drawn."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest

import picogpt
from explain import MODELS, PROMPT
from picogpt.explain.numbers import Settings, examine, look_inside


@pytest.fixture
def figure():
    return pytest.importorskip("matplotlib.figure").Figure(layout="constrained")


def texts(labels) -> list[str]:
    return [label.get_text() for label in labels]


def test_the_attention_picture_shows_the_numbers(inside, figure):
    axes = picogpt.plot_attention(inside, 2, figure)
    assert len(axes) == 5
    for head, panel in enumerate(axes):
        shown = panel.images[0].get_array()
        np.testing.assert_array_equal(shown.filled(0), inside.attention[2, head])
        assert shown.mask[3].tolist() == [False] * 4 + [True] * 15
    assert texts(axes[0].get_yticklabels()) == inside.texts


def test_the_lens_picture_shows_the_predicted_tokens(inside, figure):
    axes = picogpt.plot_lens(inside, figure)
    expected = [inside.text(id) for id in inside.lens_ids[:, :, 0].ravel()]
    assert texts(axes.texts) == expected
    np.testing.assert_array_equal(axes.images[0].get_array(), inside.lens_probs[:, :, 0].T)
    assert texts(axes.get_xticklabels()) == ["embedding", "h0", "h1", "h2", "h3"]


def test_the_probability_picture(inside, figure):
    axes = picogpt.plot_probabilities(inside, figure)
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], np.nan_to_num(inside.probs))
    beaten = [i for i in range(1, 19) if inside.ranks[i] > 1]
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), inside.lens_probs[-1, np.array(beaten) - 1, 0])
    assert texts(axes.texts)[: len(beaten)] == [inside.text(inside.lens_ids[-1, i - 1, 0]) for i in beaten]


def test_titles_name_the_settings_that_were_changed(inside, figure):
    seen = look_inside(PROMPT, "tiny", MODELS, settings=Settings(top_k=1, repetition_penalty=1.3))
    for plot in (picogpt.plot_lens, picogpt.plot_probabilities):
        assert "top_k 1, repetition_penalty 1.3" in plot(seen, figure).get_title("left")
        figure.clear()
        assert "top_k" not in plot(inside, figure).get_title("left")
        figure.clear()
    assert "∞ bits" in texts(picogpt.plot_probabilities(seen, figure).texts)


def test_the_residual_picture(inside, figure):
    axes = picogpt.plot_residual(inside, figure)
    np.testing.assert_array_equal(np.array([line.get_ydata() for line in axes.lines[:19]]), inside.residual.T)


def test_long_texts_and_many_layers_are_cut_to_a_readable_size(tiny, figure):
    encoder, hparams, params = tiny
    seen = examine([*range(100, 180)], encoder, params | {"blocks": params["blocks"] * 4}, hparams["n_head"])
    axes = picogpt.plot_lens(seen, figure)
    assert texts(axes.get_xticklabels()) == ["h0", "h3", "h6", "h9", "h12", "h15"]
    assert len(axes.get_yticklabels()) == 40
    assert "every 3rd" in axes.get_title("left")
    assert "40 of 80" in axes.get_title("left")


# --------------------------------------------------------------------------------------------------------- any token


@pytest.mark.slow  # four pictures, with fonts for several scripts
def test_pictures_of_the_oddest_tokens_are_drawn_without_a_warning(tmp_path, explain):
    pytest.importorskip("matplotlib")
    (tmp_path / "lens.png").write_text("old")
    (tmp_path / "mine.txt").write_text("mine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, err = explain("$x^2$ 中😀ש\u202e\u0301\x1b\t\x00", "--png", tmp_path)
    assert err == ""
    names = ["attention.png", "lens.png", "mine.txt", "probabilities.png", "residual.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for path in tmp_path.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size < 500_000
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_mathematics_in_a_token_is_text_and_characters_without_a_font_are_escaped(figure, monkeypatch):
    monkeypatch.setitem(pytest.importorskip("matplotlib").rcParams, "text.usetex", True)
    seen = look_inside("a $x^2$ \U0001faf8 \ue000", "tiny", MODELS)
    labels = picogpt.plot_probabilities(seen, figure).get_yticklabels()
    assert texts(labels)[0] == "a"
    assert not any(label.get_parse_math() or label.get_usetex() for label in labels)
    from picogpt.explain.plots import label

    assert label("a\U0010fffd") == "a\\U0010fffd"
    assert label("x" * 30) == "x" * 13 + "…"


# ------------------------------------------------------------------------------------------------------- the figures


def test_a_figure_without_a_layout_engine_gets_one_and_rings_are_not_clipped():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = picogpt.plot_probabilities(look_inside("ROMEO: what", "tiny", MODELS), figure)
    figure.draw_without_rendering()
    assert not figure.legends[0].get_window_extent().overlaps(axes.get_tightbbox())
    assert not axes.lines[0].get_clip_on()


def test_without_a_figure_pyplot_makes_one(inside):
    pytest.importorskip("matplotlib").use("Agg")
    import matplotlib.pyplot as plt

    axes = picogpt.plot_residual(inside)
    assert plt.get_fignums()
    assert axes.figure is plt.gcf()
    plt.close("all")


def test_missing_matplotlib_is_reported_with_the_command_that_installs_it(monkeypatch, inside):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for plot in (picogpt.plot_lens, picogpt.plot_residual):
        with pytest.raises(OSError, match="pip install matplotlib"):
            plot(inside)
