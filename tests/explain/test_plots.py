"""The pictures: they show the numbers, and any token can be drawn."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest

import picogpt
from explain import MODELS, PROMPT
from picogpt.command_line import UsageError
from picogpt.explain import plots
from picogpt.explain.numbers import Settings, examine, look_inside
from picogpt.explain.plots import height_of, label, save


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
    assert texts(axes[0].get_yticklabels()) == texts(axes[4].get_xticklabels()) == inside.texts[::2]
    assert axes[0].get_yticks().tolist() == [*range(0, 19, 2)]  # all of them would be too small to read


def test_the_lens_picture_shows_the_predicted_tokens(inside, figure):
    axes = picogpt.plot_lens(inside, figure)
    expected = [inside.text(id) for id in inside.stream_ids[:, :, 0].ravel()]
    assert texts(axes.texts) == expected
    np.testing.assert_array_equal(axes.images[0].get_array(), inside.stream_probs[:, :, 0].T)
    assert texts(axes.get_xticklabels()) == ["embedding", "layer 0", "layer 1", "layer 2", "layer 3"]


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
    np.testing.assert_array_equal(np.array([line.get_ydata() for line in axes.lines[:19]]), inside.stream_lengths.T)


def test_long_texts_and_many_layers_are_cut_to_a_readable_size(tiny, figure):
    encoder, hparams, params = tiny
    seen = examine([*range(100, 180)], encoder, params | {"blocks": params["blocks"] * 4}, hparams["n_head"])
    axes = picogpt.plot_lens(seen, figure)
    assert texts(axes.get_xticklabels()) == ["layer 0", "layer 3", "layer 6", "layer 9", "layer 12", "layer 15"]
    assert len(axes.get_yticklabels()) == 40
    assert "every 3rd" in axes.get_title("left")
    assert "tokens 40 to 79 of 80" in axes.get_title("left")
    figure.clear()
    residual = picogpt.plot_residual(seen, figure)
    assert texts(residual.get_xticklabels()) == ["layer 0", "layer 3", "layer 6", "layer 9", "layer 12", "layer 15"]


def test_only_the_chosen_tokens_are_drawn(inside, figure):
    part, chosen = slice(5, 9), [5, 6, 7, 8]
    grid = picogpt.plot_attention(inside, 2, figure, tokens=part)
    np.testing.assert_array_equal(grid[1].images[0].get_array().filled(0), inside.attention[2, 1, 5:9, 5:9])
    assert texts(grid[0].get_yticklabels()) == texts(grid[4].get_xticklabels()) == inside.texts[5:9]
    assert figure.get_suptitle().endswith("\ntokens 5 to 8 of 19")
    assert "sums to" not in figure.axes[-1].get_xlabel()
    for plot in (picogpt.plot_lens, picogpt.plot_probabilities):
        figure.clear()
        axes = plot(inside, figure, tokens=part)
        assert texts(axes.get_yticklabels()) == inside.texts[5:9]
        assert axes.get_title("left").endswith("\ntokens 5 to 8 of 19")
    np.testing.assert_array_equal([bar.get_width() for bar in axes.patches], inside.probs[chosen])
    figure.clear()
    axes = picogpt.plot_residual(inside, figure, tokens=part)
    np.testing.assert_array_equal([line.get_ydata() for line in axes.lines[:4]], inside.stream_lengths[:, 5:9].T)
    assert "first token" not in texts(axes.get_legend().texts)
    with pytest.raises(UsageError, match="tokens 30:40"):
        picogpt.plot_lens(inside, figure, tokens=slice(30, 40))


def test_a_choice_may_be_longer_than_what_is_drawn_by_default(tiny, figure):
    encoder, hparams, params = tiny
    seen = examine([*range(100, 180)], encoder, params, hparams["n_head"])
    assert len(picogpt.plot_probabilities(seen, figure, tokens=slice(None, None)).get_yticklabels()) == 80
    assert height_of("lens", seen, slice(None, None)) > 1.8 * height_of("lens", seen, None)


# ------------------------------------------------------------------------------------------- titles, sizes and places

PLOTS = {
    "attention": lambda inside, figure, **options: picogpt.plot_attention(inside, 1, figure, **options),
    "lens": picogpt.plot_lens,
    "probabilities": picogpt.plot_probabilities,
    "residual": picogpt.plot_residual,
}


@pytest.mark.parametrize("name", PLOTS)
def test_pictures_name_the_model_and_the_text_unless_they_have_no_title(inside, figure, name):
    def titles(**options):
        figure.clear()
        PLOTS[name](inside, figure, **options)
        return figure.get_suptitle() or figure.axes[0].get_title("left")

    assert titles().split("\n")[1] == 'tiny reads "ROMEO: What light through yonder window breaks?"'
    assert titles(title=False) in ("", "head 0")


@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.parametrize("prompt", [PROMPT, "word " * 60])
def test_letters_are_legible_when_the_picture_is_650_pixels_wide_and_none_is_cut(monkeypatch, name, prompt):
    """Eleven pixels are the size of letters from the bottom of a g to the top of an h."""
    figures = []
    text = pytest.importorskip("matplotlib.text")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *args, **options: figures.append(figure))
    save(name, look_inside(prompt, "tiny", MODELS), 3, None)
    (figure,) = figures
    figure.set_dpi(650 / figure.get_figwidth())
    figure.draw_without_rendering()
    found = [text for text in figure.findobj(text.Text) if text.get_text() and text.get_visible()]
    assert len(found) > 10
    assert min(text.get_fontsize() for text in found) / 72 * figure.dpi >= 11
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert 0 <= box.x0 <= box.x1 <= width
    assert 0 <= box.y0 <= box.y1 <= height


@pytest.mark.parametrize("name", PLOTS)
def test_a_figure_that_is_given_keeps_its_size(inside, name):
    figure = pytest.importorskip("matplotlib.figure").Figure((11, 3), layout="constrained")
    PLOTS[name](inside, figure)
    assert figure.get_size_inches().tolist() == [11, 3]
    left, right = figure.subfigures(1, 2)
    PLOTS[name](inside, right)
    assert right.axes
    assert not left.axes
    assert figure.get_size_inches().tolist() == [11, 3]


@pytest.mark.parametrize("name", ["lens", "probabilities", "residual"])
def test_axes_that_are_given_are_drawn_into(inside, name):
    figure = pytest.importorskip("matplotlib.figure").Figure((12, 4))
    left, right = figure.subplots(1, 2)
    assert PLOTS[name](inside, axes=right) is right
    assert right.has_data()
    assert not left.has_data()
    assert not figure.legends
    assert figure.get_size_inches().tolist() == [12, 4]
    assert figure.get_layout_engine() is None


# --------------------------------------------------------------------------------------------------------- any token


@pytest.mark.slow  # four pictures, with fonts for several scripts
def test_pictures_of_the_oddest_tokens_are_drawn_without_a_warning(tmp_path, explain):
    pytest.importorskip("matplotlib")
    (tmp_path / "lens.png").write_text("old")
    (tmp_path / "mine.txt").write_text("mine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, err = explain("$x^2$ 中😀ש\u202e\u0301\x1b\t\x00", "--png", tmp_path, "--force")
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
    assert label("a\U0010fffd") == "a\\U0010fffd"
    assert label("x" * 30) == "x" * 13 + "…"


def test_characters_of_the_font_that_is_drawn_are_not_escaped():
    """DejaVu Sans comes with matplotlib. Its oblique file lacks the Arabic that the upright one has."""
    pytest.importorskip("matplotlib")
    assert label("سلام שלום") == "سلام שלום"


@pytest.fixture
def installed(monkeypatch):
    """Make sure that matplotlib knows a font, even if it was installed after matplotlib's list of fonts was made."""
    manager = pytest.importorskip("matplotlib.font_manager")

    def know(name, file):
        found = [path for path in manager.findSystemFonts() if file in path]
        if not found:
            pytest.skip(f"needs the font {name} (Debian: apt-get install fonts-noto-core fonts-noto-cjk)")
        entries = list(manager.fontManager.ttflist)
        monkeypatch.setattr(manager.fontManager, "ttflist", entries)
        manager.fontManager.addfont(found[0])
        plots.fonts.cache_clear()

    yield know
    plots.fonts.cache_clear()


@pytest.mark.parametrize(
    ("name", "file", "text"),
    [
        ("Noto Sans CJK JP", "NotoSansCJK-Regular", "你好世界 こんにちは 한국어"),
        ("Noto Sans Arabic", "NotoSansArabic-Regular", "سلام"),
        ("Noto Sans Devanagari", "NotoSansDevanagari-Regular", "नमस"),
    ],
)
def test_scripts_from_right_to_left_and_of_the_east_are_drawn(installed, figure, name, file, text):
    installed(name, file)
    assert name in plots.fonts()[0]
    assert label(text, 99) == text
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a character that it can't draw
        drawn = figure.text(0.1, 0.5, text, **plots.style())
        figure.draw_without_rendering()
    assert drawn.get_window_extent().width > 20


# ------------------------------------------------------------------------------------------------------- the figures


def test_a_figure_without_a_layout_engine_gets_one_and_rings_are_not_clipped():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    from matplotlib.transforms import Bbox

    axes = picogpt.plot_probabilities(look_inside("ROMEO: what", "tiny", MODELS), figure)
    figure.draw_without_rendering()
    legend = axes.get_legend().get_window_extent()
    assert not legend.overlaps(Bbox.union([axes.bbox, axes.xaxis.get_tightbbox()]))
    assert legend.y0 >= 0
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
