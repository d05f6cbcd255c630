"""The pictures: they show the numbers, and any token can be drawn."""

from __future__ import annotations

import io
import itertools
import re
import sys
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from browser import contrast

import picogpt
from explain import MODELS, PROMPT
from picogpt.command_line import UsageError
from picogpt.explain import figures
from picogpt.explain.figures import label
from picogpt.explain.numbers import Settings, examine, look_inside
from picogpt.explain.page import FOLDER
from picogpt.explain.plots import FIGURES, SIZES, save
from picogpt.explain.terminal import COLOURS
from picogpt.terminal_text import n_columns


@pytest.fixture
def figure():
    return pytest.importorskip("matplotlib.figure").Figure(layout="constrained")


def texts(labels) -> list[str]:
    return [label.get_text() for label in labels]


def test_the_picture_of_a_head_shows_the_numbers(figure):
    seen = look_inside("The king is dead.", "tiny", MODELS)
    axes = picogpt.plot_head(seen, 2, 3, figure)
    np.testing.assert_array_equal(axes.images[0].get_array().filled(0), seen.attention[2, 3])
    assert texts(axes.get_yticklabels()) == texts(axes.get_xticklabels()) == seen.texts
    past = [f"{100 * seen.attention[2, 3, i, j]:.0f} %" for i in range(5) for j in range(i + 1)]
    assert texts(axes.texts) == past


@pytest.mark.parametrize(("n", "values"), [(19, "numbers in %"), (40, ""), (60, "")])
def test_a_head_names_each_of_up_to_40_tokens_and_has_values_where_they_fit(figure, n, values):
    seen = look_inside("word " * 60, "tiny", MODELS)
    figure.set_size_inches(SIZES["attention"](seen, slice(n)))
    axes = picogpt.plot_head(seen, 3, 0, figure, tokens=slice(n))
    assert texts(axes.get_yticklabels()) == texts(axes.get_xticklabels()) == seen.texts[: n : 1 + n // 41]
    assert len(axes.texts) == (n * (n + 1) // 2 if values else 0)
    assert {text.get_text() for text in axes.texts} <= {f"{x}" for x in range(101)}
    assert figure.axes[-1].get_xlabel() == ", ".join(filter(None, ["attention", "each row sums to 100 %", values]))


def test_the_picture_of_all_heads_shows_the_numbers(inside, figure):
    axes = picogpt.plot_attention(inside, 2, figure)
    assert len(axes) == 5
    for head, panel in enumerate(axes):
        shown = panel.images[0].get_array()
        np.testing.assert_array_equal(shown.filled(0), inside.attention[2, head])
        assert shown.mask[3].tolist() == [False] * 4 + [True] * 15
    assert texts(axes[0].get_yticklabels()) == inside.texts
    assert texts(axes[4].get_xticklabels()) == inside.texts[::2]  # all of them have no room beside each other
    assert axes[4].get_xticks().tolist() == [*range(0, 19, 2)]


def test_the_lens_picture_shows_the_predicted_tokens(inside, figure):
    axes = picogpt.plot_lens(inside, figure)
    expected = [inside.text(id) for id in inside.stream_ids[:, :, 0].ravel()]
    assert [text for text in texts(axes.texts) if not text.endswith(" %")] == expected
    values = [f"{100 * p:.0f} %" for p in inside.stream_probs[1:, :, 0].ravel()]  # the embedding has none
    assert [text for text in texts(axes.texts) if text.endswith(" %")] == values
    strengths = axes.images[0].get_alpha()
    assert ((strengths[:, 0] < 0.5).all(), (strengths[:, 1:] == 1).all()) == (True, True)
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
    shown = ["embed-\nding", *(f"layer\n{layer}" for layer in range(1, 17, 2))]
    assert texts(axes.get_xticklabels()) == shown
    assert len(axes.get_yticklabels()) == 40
    assert "every 2nd" in axes.get_title("left")
    assert "tokens 40 to 79 of 80" in axes.get_title("left")
    figure.clear()
    residual = picogpt.plot_residual(seen, figure)
    assert texts(residual.get_xticklabels()) == shown


@pytest.mark.parametrize("n_blocks", [12, 24])
def test_the_pictures_of_124m_and_355m_show_all_layers(tiny, n_blocks):
    encoder, hparams, params = tiny
    blocks = (params["blocks"] * 6)[:n_blocks]
    seen = examine([*range(100, 110)], encoder, params | {"blocks": blocks}, hparams["n_head"])
    figure = pytest.importorskip("matplotlib.figure").Figure(SIZES["lens"](seen, None), layout="constrained")
    names = ["embedding", *(f"layer {layer}" for layer in range(n_blocks))]
    axes = picogpt.plot_lens(seen, figure)
    assert [name.replace("-\n", "").replace("\n", " ") for name in texts(axes.get_xticklabels())] == names
    figure.draw_without_rendering()
    boxes = [name.get_window_extent() for name in axes.get_xticklabels()]
    assert all(a.x1 <= b.x0 for a, b in itertools.pairwise(boxes))
    cells = [text.get_window_extent().width for text in axes.texts]
    assert max(cells) <= axes.bbox.width / (n_blocks + 1)


def test_only_the_chosen_tokens_are_drawn(inside, figure):
    part, chosen = slice(5, 9), [5, 6, 7, 8]
    grid = picogpt.plot_attention(inside, 2, figure, tokens=part)
    np.testing.assert_array_equal(grid[1].images[0].get_array().filled(0), inside.attention[2, 1, 5:9, 5:9])
    assert texts(grid[0].get_yticklabels()) == texts(grid[4].get_xticklabels()) == inside.texts[5:9]
    assert figure.get_suptitle().endswith("\ntokens 5 to 8 of 19")
    (key,) = figure.axes[-1].child_axes
    assert key.get_xlabel() == "attention, numbers in %"  # a row does not sum to 100 %
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
    assert SIZES["lens"](seen, slice(None, None))[1] > 1.8 * SIZES["lens"](seen, None)[1]


# ------------------------------------------------------------------------------------------- titles, sizes and places

PLOTS = {
    "attention": lambda inside, figure=None, **options: picogpt.plot_head(inside, 1, 0, figure, **options),
    "heads": lambda inside, figure, **options: picogpt.plot_attention(inside, 1, figure, **options),
    "lens": picogpt.plot_lens,
    "probabilities": picogpt.plot_probabilities,
    "residual": picogpt.plot_residual,
}


@pytest.mark.parametrize("name", PLOTS)
def test_pictures_name_their_source_in_small_type_unless_they_have_no_title(inside, figure, name):
    def titles(**options):
        figure.clear()
        PLOTS[name](inside, figure, **options)
        return figure.get_suptitle() or figure.axes[0].get_title("left"), figure.get_supxlabel()

    title, source = titles()
    assert "\n" not in title
    assert source == 'picogpt · tiny reads "ROMEO: What light through yonder window breaks?"'
    assert titles(title=False) in (("", ""), ("head 0", ""))


def test_a_source_of_two_lines_shows_what_has_room(figure):
    seen = look_inside("My kingdom for a horse. " * 12, "tiny", MODELS)
    figure.set_size_inches(6.5, 4)
    picogpt.plot_residual(seen, figure)
    lines = figure.get_supxlabel().split("\n")
    assert len(lines) == 2
    assert len(lines[0]) > 70
    assert lines[0].startswith('picogpt · tiny reads "My kingdom')
    assert lines[1].endswith('…"')
    wide = look_inside("你好世界" * 20, "tiny", MODELS)
    assert max(map(n_columns, figures.source(wide, 6.5).split("\n"))) <= 91


@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.parametrize("prompt", [PROMPT, "word " * 60])
def test_letters_are_legible_when_the_picture_is_650_pixels_wide_and_none_is_cut(monkeypatch, name, prompt):
    """Eleven pixels are the size of letters from the bottom of a g to the top of an h."""
    figures = []
    text = pytest.importorskip("matplotlib.text")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *args, **options: figures.append(figure))
    save(name, look_inside(prompt, "tiny", MODELS), 3, 0, None)
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


@pytest.mark.parametrize("name", ["attention", "lens", "probabilities", "residual"])
def test_axes_that_are_given_are_drawn_into(inside, name):
    figure = pytest.importorskip("matplotlib.figure").Figure((12, 4))
    left, right = figure.subplots(1, 2)
    assert PLOTS[name](inside, axes=right) is right
    assert right.has_data()
    assert not left.has_data()
    assert not figure.legends
    assert not figure.get_supxlabel()  # the figure may hold other things; so the title names the source
    assert "\npicogpt · tiny reads " in right.get_title("left")
    assert figure.get_size_inches().tolist() == [12, 4]
    assert figure.get_layout_engine() is None


# ------------------------------------------------------------------------------------------------ colours and formats


def rgb(p: float) -> np.ndarray:
    """Return the colour of a probability in the pictures, 0 to 255."""
    scale = figures.colour_scale()
    return 255 * np.array(scale["cmap"](scale["norm"](p))[:3])


def test_pictures_page_and_terminal_have_the_same_colours():
    pytest.importorskip("matplotlib")
    css = (FOLDER / "page.css").read_text(encoding="utf-8")
    hot = np.array([float(x) for x in re.search(r"--hot: (\d+ \d+ \d+);", css)[1].split()])
    share = float(re.search(r"--strongest: ([\d.]+);", css)[1])
    for p in (0, 0.01, 0.3, 1):
        np.testing.assert_allclose(rgb(p), 255 - share * p**0.5 * (255 - hot), atol=2)
    lows = [0, *COLOURS]
    for limit, low, number in zip(COLOURS, lows, COLOURS.values()):
        assert np.abs(xterm(number) - rgb((limit + low) / 2)).max() <= 40
    brightness = [xterm(number).sum() for number in COLOURS.values()]
    assert brightness == sorted(brightness, reverse=True)
    ink = [int(figures.INK[i : i + 2], 16) for i in (1, 3, 5)]
    assert min(contrast(ink, rgb(p)) for p in (0, 0.5, 1)) >= 4.85
    assert min(contrast([0, 0, 0], xterm(number)) for number in COLOURS.values()) >= 4.85


def xterm(number: int) -> np.ndarray:
    """Return a colour of the 256-colour palette of terminals: a cube of 6 x 6 x 6 colours, then 24 shades of grey."""
    if number >= 232:
        return np.full(3, 8 + 10 * (number - 232))
    return np.array([[0, 95, 135, 175, 215, 255][(number - 16) // place % 6] for place in (36, 6, 1)])


@pytest.mark.parametrize("kind", ["svg", "pdf"])
@pytest.mark.parametrize("name", [name for name in FIGURES if name != "change"])
def test_vector_graphics_hold_no_pixels_and_are_the_same_each_time(name, kind):
    pytest.importorskip("matplotlib")
    seen, files = look_inside("My lord, 你", "tiny", MODELS), [io.BytesIO(), io.BytesIO()]
    for file in files:
        save(name, seen, 2, 1, file, None, kind)
    first, second = (file.getvalue() for file in files)
    assert first == second
    assert first.startswith(b"%PDF" if kind == "pdf" else b"<?xml")
    if kind == "svg":
        assert b"<image" not in first
        assert ElementTree.fromstring(first).tag.endswith("svg")
    else:
        assert b"/Subtype /Image" not in first


def test_cells_of_vector_graphics_have_the_colours_and_the_places_of_those_in_pixels(inside, figure):
    axes = picogpt.plot_lens(inside, figure)
    (image,), limits = axes.images, (axes.get_xlim(), axes.get_ylim())
    colours = image.to_rgba(image.get_array(), alpha=image.get_alpha())
    figures.as_vectors(axes)
    (cells,) = axes.collections
    assert not axes.images
    assert (axes.get_xlim(), axes.get_ylim()) == limits
    on_white = 1 - colours[..., 3:] * (1 - colours[..., :3])
    np.testing.assert_allclose(cells.get_facecolor()[:, :3], on_white.reshape(-1, 3))
    assert (cells.get_facecolor()[:, 3] == 1).all()
    corners = [path.vertices[0].tolist() for path in cells.get_paths()]
    assert corners == [[column - 0.5, row - 0.5] for row in range(19) for column in range(5)]


def test_large_matrices_stay_pixels_in_vector_graphics(tiny, figure):
    encoder, hparams, params = tiny
    seen = examine([*range(100, 201)], encoder, params, hparams["n_head"])
    axes = picogpt.plot_head(seen, 0, 0, figure)
    figures.as_vectors(axes)
    assert axes.images
    figure.clear()
    axes = picogpt.plot_head(seen, 0, 0, figure, tokens=slice(100))
    figures.as_vectors(axes)
    assert not axes.images
    assert len(axes.collections[0].get_paths()) == 5050  # nothing is drawn for later tokens


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
    names = ["attention.png", "heads.png", "lens.png", "mine.txt", "probabilities.png", "residual.png"]
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
        figures.fonts.cache_clear()

    yield know
    figures.fonts.cache_clear()


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
    assert name in figures.fonts()[0]
    assert label(text, 99) == text
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a character that it can't draw
        drawn = figure.text(0.1, 0.5, text, **figures.style())
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
