"""Seeing inside: the numbers against transformers and gpt2.py, the terminal, the pictures, and what can go wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from itertools import pairwise

import numpy as np
import pytest
from helpers import ROOT, as_dtype, shared, transformers_model
from hypothesis import example, given
from hypothesis import strategies as st

import gpt2
import picogpt
from encoder import get_encoder
from picogpt.explain import command as explain
from picogpt.explain.numbers import Settings, examine, forward, lens, likeliest, look_inside
from picogpt.explain.text import fit, merges_of, n_columns, visible, visible_merges
from utils import UsageError, load_encoder_hparams_and_params, load_hparams_and_params

MODELS = ROOT / "models"
PROMPT = "ROMEO:\nWhat light through yonder window breaks?"
ODD = '</script><script>alert(1)</script> $x^2$ \\n 中文 😀 שלום \u202e\u0301 \x1b[31m\t\x00 "&amp;"'


@pytest.fixture(scope="module")
def tiny():
    """The model in the repository, in float64: encoder, hparams, params."""
    encoder, hparams, params = load_encoder_hparams_and_params("tiny", MODELS)
    return encoder, hparams, as_dtype(params, np.float64)


@pytest.fixture(scope="module")
def inside():
    return look_inside(PROMPT, "tiny", MODELS)


def run(*arguments: str) -> int:
    return explain.main([*map(str, arguments), "--model_size", "tiny", "--models_dir", str(MODELS)])


# ----------------------------------------------------------------------------------------------------- the numbers


def test_attention_and_every_layer_s_lens_equal_transformers(tiny):
    torch = pytest.importorskip("torch")
    encoder, hparams, params = tiny
    ids = encoder.encode(PROMPT)
    seen = examine(ids, encoder, params, hparams["n_head"], top=20)
    model = transformers_model(params, hparams, "float64")
    with torch.no_grad():
        theirs = model(torch.tensor([ids]), output_hidden_states=True, output_attentions=True)
        hidden = theirs.hidden_states  # the last one has been through ln_f already
        normed = [*(model.transformer.ln_f(state[0]) for state in hidden[:-1]), hidden[-1][0]]
        probs = [torch.softmax(model.lm_head(state), -1).numpy() for state in normed]
    np.testing.assert_allclose(seen.attention, [a[0].numpy() for a in theirs.attentions], rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(seen.residual[:-1], [np.linalg.norm(h[0], axis=-1) for h in hidden[:-1]], rtol=1e-9)
    assert len(probs) == len(seen.lens_ids) == hparams["n_layer"] + 1
    for layer, row in enumerate(probs):
        best = np.argsort(-row, axis=-1)[:, :20]
        np.testing.assert_array_equal(seen.lens_ids[layer], best)
        np.testing.assert_allclose(seen.lens_probs[layer], np.take_along_axis(row, best, -1), rtol=1e-9)
    np.testing.assert_allclose(seen.probs[1:], [row[id] for row, id in zip(probs[-1], ids[1:])], rtol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 5, 97, 256])
def test_the_last_layer_s_lens_is_the_logits_bit_for_bit(n):
    hparams, params = load_hparams_and_params(MODELS / "tiny")
    ids = np.random.default_rng(n).integers(0, 1024, n)
    stream, _ = forward(ids, params, hparams["n_head"])
    assert len(stream) == hparams["n_layer"] + 1
    np.testing.assert_array_equal(lens(stream[-1], params), gpt2.gpt2(ids, **params, n_head=hparams["n_head"]))
    assert not np.array_equal(lens(stream[-2], params), lens(stream[-1], params))


def test_the_same_in_the_full_124m_shape_and_40_tokens_make_a_page_of_less_than_3_mb(full_size):
    hparams, params = load_hparams_and_params(full_size)
    ids = np.random.default_rng(0).integers(0, 50257, 40).tolist()
    stream, _ = forward(ids, params, 12)
    np.testing.assert_array_equal(lens(stream[-1], params), gpt2.gpt2(ids, **params, n_head=12))
    if not (full_size / "vocab.bpe").exists():
        pytest.skip("the page needs OpenAI's tokenizer")
    seen = examine(ids, get_encoder(full_size.name, full_size.parent), params, hparams["n_head"])
    assert seen.attention.shape == (12, 12, 40, 40)
    assert 100_000 < len(picogpt.page(seen, "124M").encode()) < 3_000_000


def test_attention_rows_sum_to_1_and_nothing_looks_ahead(inside):
    np.testing.assert_allclose(inside.attention.sum(-1), 1, rtol=1e-5)
    assert not inside.attention[..., np.triu(np.ones((19, 19), dtype=bool), 1)].any()


@pytest.mark.parametrize("settings", [Settings(), Settings(0.7, 40, 0.9, 1.3), Settings(0.0), Settings(1.5, 3)])
def test_the_probabilities_are_those_that_generation_draws_from(tiny, settings):
    encoder, hparams, params = tiny
    ids = encoder.encode(PROMPT)
    seen = examine(ids, encoder, params, hparams["n_head"], 5, settings)
    drawn = []

    class Generator:
        def choice(self, n, p):
            drawn.append(p)
            return [*ids, 0][len(drawn)]  # whatever it draws from, it says what the prompt says

    choose = lambda logits, so_far: gpt2.sample(logits, so_far, Generator(), **settings._asdict())  # noqa: E731
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
    nothing = look_inside(PROMPT, "tiny", MODELS, settings=Settings(temperature=0))
    assert {*nothing.bits[1:]} == {0, np.inf}
    assert not np.signbit(nothing.bits[1:]).any()


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


# ------------------------------------------------------------------------------------------------- tokens as text


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (b" the", "·the"),
        (b"\xc3", "\\xc3"),
        (b" caf\xc3\xa9\n", "·café\\n"),
        ("·\\".encode(), "\\u00b7\\\\"),
        ("\u0301e\u0301".encode(), "\\u0301e\u0301"),
        ("\u202e\u200b\xad\x1b".encode(), "\\u202e\\u200b\\u00ad\\x1b"),
        ("\U000e0001\u0600".encode(), "\\U000e0001\\u0600"),
        ("中😀".encode(), "中😀"),
    ],
)
def test_visible(token, shown):
    assert visible(token) == shown


@given(st.binary(max_size=8), st.binary(max_size=8))
@example(b"\xc2\x85", b"\x85")
@example(b"\\n", b"\n")
@example("·".encode(), b" ")
def test_different_tokens_look_different_and_all_can_be_seen(a, b):
    assert (visible(a) == visible(b)) == (a == b)
    assert visible(a).isprintable()
    assert " " not in visible(a)


@given(st.text(max_size=20), st.integers(1, 12))
def test_fit_takes_exactly_its_columns(text, width):
    assert n_columns(fit(text, width)) == width
    if n_columns(text) <= width:
        assert fit(text, width).startswith(text)


def merged_by_definition(symbol, ranks):
    """Byte pair encoding as the paper describes it, noting every merge."""
    symbols, made = [*symbol], []
    while pairs := [pair for pair in pairwise(symbols) if " ".join(pair) in ranks]:
        a, b = min(pairs, key=lambda pair: ranks[" ".join(pair)])
        made += [(a, b)] if (a, b) not in made else []
        i = 0
        while i < len(symbols) - 1:
            if (symbols[i], symbols[i + 1]) == (a, b):
                symbols[i : i + 2] = [a + b]
            i += 1
    return symbols, made


def vocabularies():
    yield "tiny", get_encoder("tiny", MODELS), 1
    if (ROOT.parent / "shared" / "openai-117M").exists():
        yield "openai", get_encoder("openai-117M", shared("openai-117M").parent), 400


def test_merges_are_those_that_made_the_token():
    for name, encoder, step in vocabularies():
        ranks, found = encoder.cache.ranks, 0
        for symbol in [*encoder.encoder][::step]:
            symbols, made = merged_by_definition(symbol, ranks)
            if symbols == [symbol]:
                assert merges_of(symbol, ranks) == made, (name, symbol)
                found += len(made) > 1
        assert found > 50


def test_merges_are_shown_as_text():
    encoder = get_encoder("tiny", MODELS)
    assert visible_merges(encoder, encoder.encoder["Ġthe"]) == ["·+t", "h+e", "·t+he"]
    assert visible_merges(encoder, encoder.encoder["a"]) == []


# ---------------------------------------------------------------------------------------------------- the terminal


def printed(capsys, *arguments):
    assert run(*arguments) == 0
    return capsys.readouterr()


def test_the_terminal_shows_every_number(capsys, inside, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out, err = printed(capsys, PROMPT, "--layer", 2, "--head", 3, "--merges")
    assert err == ""
    assert "\x1b" not in out
    for i in range(1, 19):
        text, p, bits, rank = inside.texts[i], inside.probs[i], inside.bits[i], inside.ranks[i]
        shown = "<0.1 %" if p < 0.0005 else f"{100 * p:.1f} %"
        line = re.search(rf"^ *{i} {re.escape(text)} +{shown} +{bits:.2f} +{rank}\b.*", out, re.M)[0]
        assert line.count(" %") == 1 + min(rank - 1, 5)  # itself, and those that it was not preferred to
    best = inside.lens_ids[-1, 8, 0]
    assert re.search(rf"^   9 ·y .*133   {inside.text(best)} 19.6 %  ", out, re.M)
    assert re.search(r"^next \\n 88.8 %  ", out, re.M)
    assert re.search(r"^ROMEO +O\+M  E\+O  R\+OM  ROM\+EO$", out, re.M)
    lens_lines = out.split("logit lens")[1].split("attention of layer 2, head 3")[0]
    for layer, name in enumerate(("embedding", "h0", "h1", "h2", "h3")):
        best, p = inside.lens_ids[layer, 0, 0], inside.lens_probs[layer, 0, 0]
        assert re.search(rf"^{name} +{re.escape(inside.text(best))} +{100 * p:.1f} %", lens_lines, re.M)
    row = inside.attention[2, 3, 5]
    most = int(np.argmax(row))
    assert re.search(rf"^   5 ght +{most} {re.escape(inside.texts[most])} {100 * row[most]:.1f} %  ", out, re.M)


def test_settings_are_named_and_used(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    out = printed(capsys, PROMPT, "--temperature", "0.7", "--top_k", 1000, "--repetition_penalty", 1.2).out
    assert "\nprobabilities:  temperature 0.7  top_k 1000  repetition_penalty 1.2  (a space is ·)\n" in out
    expected = look_inside(PROMPT, "tiny", MODELS, settings=Settings(0.7, 1000, 1.0, 1.2)).bits[1:].sum()
    assert np.isfinite(expected)
    assert f"tiny: 19 tokens, {expected:.2f} bits" in out


def test_what_settings_rule_out_has_infinite_bits_and_no_rank(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    out = printed(capsys, PROMPT, "--temperature", 0).out
    probs = look_inside(PROMPT, "tiny", MODELS, settings=Settings(0)).probs
    assert out.startswith("tiny: 19 tokens, ∞ bits, ∞ a token\n")
    assert len(re.findall(r"^ *\d+ \S+ +0\.0 %       ∞       -   ", out, re.M)) == np.sum(probs == 0) > 5
    assert len(re.findall(r"^ *\d+ \S+ +100\.0 %    0\.00       1", out, re.M)) == np.sum(probs == 1) > 4


def test_without_merges_there_are_none(capsys):
    assert "ROM+EO" not in printed(capsys, PROMPT).out


@pytest.mark.parametrize("width", [60, 80, 133])
def test_lines_fit_the_terminal(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = printed(capsys, PROMPT + " 中文 😀", "--merges").out.splitlines()
    assert max(map(n_columns, lines)) <= width
    assert max(map(n_columns, lines)) > width - 20
    assert lines == [line.rstrip() for line in lines]


def test_colours_only_on_a_terminal_and_never_with_no_color(capsys, monkeypatch):
    plain = printed(capsys, PROMPT).out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = printed(capsys, PROMPT).out
    assert coloured.count("\x1b[38;5;16;48;5;220m") > 5  # what is more likely than not
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert printed(capsys, PROMPT).out == plain


def test_what_is_in_the_prompt_does_not_reach_the_terminal_raw(capsys):
    out = printed(capsys, ODD).out
    assert not [char for char in out if not char.isprintable() and char != "\n"]


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["word " * 300], "but the model's context is n_ctx = 256"),
        ([""], "the prompt is empty"),
        (["x", "--layer", "4"], "--layer 4: tiny has layers 0 to 3"),
        (["x", "--head", "5"], "--head 5: tiny has heads 0 to 4"),
    ],
)
def test_what_the_model_does_not_have_is_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(explain, "examine", None)  # before the work
    (tmp_path / "a.html").write_text("before")
    with pytest.raises(UsageError, match=re.escape(message)):
        run(*arguments, "--html", tmp_path / "a.html")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_the_context_can_be_filled_and_not_by_one_more(capsys):
    encoder = get_encoder("tiny", MODELS)
    ids = encoder.encode("ROMEO: what light? " * 60)
    text = encoder.decode(ids[:256])
    assert len(encoder.encode(text)) == 256
    assert "tiny: 256 tokens" in printed(capsys, text).out
    with pytest.raises(UsageError, match="the prompt has 257 tokens, but the model's context is n_ctx = 256"):
        run(encoder.decode(ids[:257]))


@pytest.mark.parametrize(
    ("option", "path", "message"),
    [
        ("--html", "missing/a.html", "is no folder to write a.html to"),
        ("--html", "folder", "is a folder, not a file"),
        ("--png", "file", "is a file, not a folder"),
        ("--png", "missing/folder", "is no folder to make folder in"),
        ("--png", "blocked", "residual.png is a folder, not a file"),
    ],
)
def test_where_files_can_not_go_is_said_before_the_work(tmp_path, monkeypatch, option, path, message):
    monkeypatch.setattr(explain, "load_encoder_hparams_and_params", None)
    monkeypatch.setattr(explain, "need_matplotlib", lambda: None)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "blocked" / "residual.png").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match=message):
        run("x", option, tmp_path / path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("html", "png", "error", "message"),
    [
        ("new", "new", OSError, "is a folder, not a file"),
        ("new/lens.png", "new", UsageError, "is the name of a picture"),
        ("other/../lens.png", "link", UsageError, "is the name of a picture"),
    ],
)
def test_page_and_pictures_can_not_have_one_name(tmp_path, monkeypatch, html, png, error, message):
    monkeypatch.setattr(explain, "load_encoder_hparams_and_params", None)
    monkeypatch.setattr(explain, "need_matplotlib", lambda: None)
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(error, match=message):
        run("x", "--html", tmp_path / html, "--png", tmp_path / png)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link", "other"]


def test_page_and_pictures_go_to_one_new_folder(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    printed(capsys, "x", "--html", tmp_path / "new" / "x.html", "--png", tmp_path / "new")
    names = ["attention.png", "lens.png", "probabilities.png", "residual.png", "x.html"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names


def test_an_error_names_the_file_and_not_its_temporary_name(tmp_path, monkeypatch):
    name = "x" * 250 + ".html"  # with what is added to it too long; a read-only folder would not stop root
    with pytest.raises(OSError, match=f"/{name}'$"):
        run("x", "--html", tmp_path / name)


@pytest.mark.parametrize("option", ["--html", "--png"])
def test_an_empty_name_is_refused(capsys, option):
    with pytest.raises(SystemExit, match="2"):
        run("x", option, "")
    assert capsys.readouterr().err == f"picogpt explain: argument {option}: the name is empty\n"


def test_a_notebook_is_told_what_means_nothing(inside, monkeypatch):
    monkeypatch.setattr("picogpt.explain.numbers.load_encoder_hparams_and_params", None)
    for top in (0, -1):
        with pytest.raises(UsageError, match=f"top {top}"):
            look_inside("x", "tiny", MODELS, top)
    wrong = {"temperature": [-1, np.nan], "top_k": [-3], "top_p": [-0.1, 2], "repetition_penalty": [0, 101]}
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(UsageError, match=f"{name} {value} is not from"):
                look_inside("x", "tiny", MODELS, settings=Settings(**{name: value}))
    for layer, head in [(4, 0), (-1, 0), (0, 5), (0, -1)]:
        with pytest.raises(ValueError, match=f"no layer {layer}, head {head}"):
            picogpt.page(inside, "tiny", layer, head)
    with pytest.raises(ValueError, match="no layer 0"):
        picogpt.page(inside, "tiny", layers=[2])


def test_without_matplotlib_it_is_said_what_to_install_before_the_work(tmp_path, monkeypatch, inside):
    monkeypatch.setattr(explain, "load_encoder_hparams_and_params", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"matplotlib.*requirements-train\.txt"):
        run("x", "--png", tmp_path / "new")
    with pytest.raises(UsageError, match=r"requirements-train\.txt"):
        picogpt.plot_lens(inside)
    assert "matplotlib" in (ROOT / "requirements-train.txt").read_text()
    assert not (tmp_path / "new").exists()


def test_an_error_on_the_command_line_is_one_line():
    words = [sys.executable, "-m", "picogpt", "explain", "x", "--model_size", "tiny", "--head", "9"]
    done = subprocess.run(words, capture_output=True, text=True, encoding="utf-8", cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "picogpt explain: --head 9: tiny has heads 0 to 4\n"


def test_standard_input_and_no_matplotlib_without_pictures():
    code = "import sys; from picogpt.explain import command; command.main(); print('matplotlib' in sys.modules, file=sys.stderr)"
    words = [sys.executable, "-c", code, "-", "--model_size", "tiny", "--top", "1"]
    done = subprocess.run(words, capture_output=True, cwd=ROOT, input="ROMEO:é\n".encode())
    assert done.stderr.decode().strip() == "False"
    assert "tiny: 4 tokens" in done.stdout.decode("utf-8")


def test_what_breaks_off_leaves_the_old_files(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")

    def fail(name, *rest):
        if name == "residual":
            raise OSError("no space left")

    monkeypatch.setattr(explain, "save", fail)
    (tmp_path / "a.html").write_text("before")
    with pytest.raises(OSError, match="no space left"):
        run("x", "--html", tmp_path / "a.html", "--png", tmp_path / "new")
    assert [path.read_text() for path in tmp_path.rglob("*")] == ["before"]


# ----------------------------------------------------------------------------------------------------- the pictures


def test_pictures_of_the_oddest_tokens_come_without_a_warning(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "lens.png").write_text("old")
    (tmp_path / "mine.txt").write_text("mine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out, err = printed(capsys, ODD, "--png", tmp_path, "--html", tmp_path / "page.html")
    assert err == ""
    names = ["attention.png", "lens.png", "mine.txt", "page.html", "probabilities.png", "residual.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for path in tmp_path.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size < 500_000
        assert f"{path}: {path.stat().st_size:,} bytes" in out
    assert (tmp_path / "mine.txt").read_text() == "mine"


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


def test_the_lens_picture_says_what_the_layers_say(inside, figure):
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


def test_pictures_of_probabilities_say_whose_they_are(inside, figure):
    seen = look_inside(PROMPT, "tiny", MODELS, settings=Settings(top_k=1, repetition_penalty=1.3))
    for plot in (picogpt.plot_lens, picogpt.plot_probabilities):
        assert plot(seen, figure).get_title("left").endswith("\nwith top_k 1, repetition_penalty 1.3")
        figure.clear()
        assert "with" not in plot(inside, figure).get_title("left")
        figure.clear()
    assert "∞ bits" in texts(picogpt.plot_probabilities(seen, figure).texts)


def test_the_residual_picture(inside, figure):
    axes = picogpt.plot_residual(inside, figure)
    np.testing.assert_array_equal(np.array([line.get_ydata() for line in axes.lines[:19]]), inside.residual.T)


def test_mathematics_in_a_token_is_text_and_what_fonts_lack_is_escaped(figure, monkeypatch):
    monkeypatch.setitem(pytest.importorskip("matplotlib").rcParams, "text.usetex", True)
    seen = look_inside("a $x^2$ \U0001faf8 \ue000", "tiny", MODELS)
    labels = picogpt.plot_probabilities(seen, figure).get_yticklabels()
    assert texts(labels)[0] == "a"
    assert not any(label.get_parse_math() or label.get_usetex() for label in labels)
    from picogpt.explain.plots import label

    assert label("a\U0010fffd") == "a\\U0010fffd"
    assert label("x" * 30) == "x" * 13 + "…"


def test_pictures_depend_on_no_setting_of_the_user(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    words = [sys.executable, "-m", "picogpt", "explain", "a $x_1", "--model_size", "tiny", "--png", tmp_path / "new"]
    env = os.environ | {"MPLBACKEND": "nothing", "MATPLOTLIBRC": str(tmp_path), "PATH": ""}
    done = subprocess.run(words, capture_output=True, text=True, encoding="utf-8", cwd=ROOT, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert len([*(tmp_path / "new").iterdir()]) == 4


def test_a_figure_without_a_layout_engine_gets_one_and_rings_are_whole():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = picogpt.plot_probabilities(look_inside("ROMEO: what", "tiny", MODELS), figure)
    figure.draw_without_rendering()
    assert not figure.legends[0].get_window_extent().overlaps(axes.get_tightbbox())
    assert not axes.lines[0].get_clip_on()


def test_long_texts_and_many_layers_are_cut_to_what_can_be_read(tiny, figure):
    encoder, hparams, params = tiny
    seen = examine([*range(100, 180)], encoder, params | {"blocks": params["blocks"] * 4}, hparams["n_head"])
    axes = picogpt.plot_lens(seen, figure)
    assert texts(axes.get_xticklabels()) == ["h0", "h3", "h6", "h9", "h12", "h15"]
    assert len(axes.get_yticklabels()) == 40
    assert "every 3rd layer" in axes.get_title("left")
    assert "the last 40 of 80 tokens" in axes.get_title("left")


def test_a_single_token(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = printed(capsys, "a", "--png", tmp_path, "--html", tmp_path / "a.html").out
    assert "tiny: 1 token\nprobabilities:  the model's own  (a space is ·)\n" in out
    assert len([*tmp_path.iterdir()]) == 5


def test_without_a_figure_pyplot_makes_one(inside, monkeypatch):
    pytest.importorskip("matplotlib").use("Agg")
    import matplotlib.pyplot as plt

    axes = picogpt.plot_residual(inside)
    assert plt.get_fignums()
    assert axes.figure is plt.gcf()
    plt.close("all")


def test_the_readme_s_three_lines(monkeypatch):
    pytest.importorskip("matplotlib").use("Agg")
    import matplotlib.pyplot as plt

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(from picogpt import .*?)```", readme, re.DOTALL)[1]
    assert len(code.replace("\n\n", "\n").splitlines()) == 3
    monkeypatch.chdir(ROOT)
    names: dict = {}
    exec(code.replace("124M", "tiny"), names)
    arrays = re.search(r"plain NumPy arrays \((.*?)\)", readme, re.DOTALL)[1]
    assert all(isinstance(getattr(names["inside"], name), np.ndarray) for name in re.findall(r"`(\w+)`", arrays))
    assert names["axes"].get_title("left").startswith("Logit lens")
    plt.close("all")


def test_every_option_that_needs_a_word_has_it_in_the_readme(capsys):
    with pytest.raises(SystemExit):
        run("--help")
    options = {*re.findall(r"^  (--\w+)", capsys.readouterr().out, re.M)} - {"--help", "--model_size", "--models_dir"}
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## See inside")[1].split("\n## ")[0]
    assert len(options) == 10
    assert [option for option in options if f"`{option}`" not in section] == ["--top"]


def test_picogpt_exports_its_names_and_nothing_else():
    for name in picogpt.__all__:
        assert getattr(picogpt, name).__name__ == name
    assert dir(picogpt) == sorted(picogpt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = picogpt.nothing
