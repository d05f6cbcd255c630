"""The command: its options, the files that it writes, and mistakes that it reports before the model runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT

import picogpt
from encoder import get_encoder
from explain import MODELS, PROMPT
from picogpt import Settings, look_inside
from picogpt.command_line import UsageError
from picogpt.explain import command

FIGURES = ["attention", "heads", "lens", "probabilities", "residual"]
PICTURES = [f"{name}.png" for name in FIGURES]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def no_model(monkeypatch):
    """Make sure that a mistake is reported before the model is read."""
    monkeypatch.setattr(command, "load_encoder_hparams_and_params", None)


# -------------------------------------------------------------------------------------------------------- the options


def test_the_terminal_shows_the_model_s_numbers_with_the_options_applied(explain, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    out, err = explain(PROMPT, "--temperature", 0.7, "--top_k", 1000, "--repetition_penalty", 1.2, "--merges")
    seen = look_inside(PROMPT, "tiny", MODELS, settings=Settings(0.7, 1000, 1.0, 1.2))
    assert f"tiny: 19 tokens, {seen.bits[1:].sum():.2f} bits" in out
    assert "attention of layer 3, head 0" in out
    assert "ROM+EO" in out
    assert err == ""


def test_by_default_the_probabilities_are_the_model_s_own(explain, inside):
    assert explain(PROMPT)[0].startswith(f"tiny: 19 tokens, {inside.bits[1:].sum():.2f} bits, ")


def test_layer_head_and_top_choose_the_attention(explain, inside):
    out, _ = explain(PROMPT, "--layer", 2, "--head", 3, "--top", 1)
    lines = out.split("attention of layer 2, head 3")[1].splitlines()[1:20]
    for line, row in zip(lines, inside.attention[2, 3]):
        assert line.endswith(f" {row.argmax()} {inside.texts[row.argmax()]} {100 * row.max():.1f} %")


def test_colours_only_in_a_terminal_and_never_with_no_color(explain, monkeypatch):
    plain, _ = explain("x")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured, _ = explain("x")
    assert "\x1b" in coloured
    assert re.sub("colours .*\n", "", re.sub(r"\x1b\[[\d;]*m", "", coloured)) == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert explain("x")[0] == plain


def test_standard_input_is_read_and_matplotlib_is_not_imported_without_pictures():
    code = """if True:
        import sys
        from picogpt.explain.command import main
        main()
        print("matplotlib" in sys.modules, file=sys.stderr)"""
    words = [sys.executable, "-c", code, "-", "--model_size", "tiny", "--top", "1"]
    done = subprocess.run(words, capture_output=True, cwd=ROOT, input="ROMEO:é\n".encode())
    assert done.stderr.decode().strip() == "False"
    assert "tiny: 4 tokens" in done.stdout.decode("utf-8")


@pytest.mark.parametrize(
    ("words", "first", "last"), [(["2:5"], 2, 4), (["-3:"], 16, 18), ([":4"], 0, 3), (["5:99"], 5, 18)]
)
def test_tokens_chooses_what_tables_pages_and_pictures_show(tmp_path, monkeypatch, explain, words, first, last):
    assert f"shown: tokens {first} to {last}\n" in explain(PROMPT, "--tokens", *words)[0]
    drawn = []
    monkeypatch.setattr(command, "save", lambda *given: drawn.append(range(19)[given[5]]))
    pytest.importorskip("matplotlib")
    explain(PROMPT, "--tokens", *words, "--html", tmp_path / "a.html", "--png", tmp_path / "new")
    assert drawn == [range(first, last + 1)] * 5
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert f'"first":{first},' in page
    assert f"shown: tokens {first} to {last}<" in page


@pytest.mark.parametrize("value", ["3", "2-5", "a:b", "1:5:2", "", "1:2x"])
def test_a_range_of_tokens_that_is_none_is_refused(capsys, no_model, explain, value):
    with pytest.raises(SystemExit, match="2"):
        explain("x", "--tokens", value)
    assert re.fullmatch(rf"[^\n]*explain: argument --tokens: '{value}' is not A:B, [^\n]*\n", capsys.readouterr().err)


@pytest.mark.parametrize("value", ["19:", "5:5", "7:3", ":-19"])
def test_a_range_without_tokens_is_refused_before_the_model_runs(monkeypatch, explain, value):
    monkeypatch.setattr(command, "examine", None)
    with pytest.raises(UsageError, match=f"^tokens {value} are none of the text's 19 tokens, which are 0 to 18$"):
        explain(PROMPT, "--tokens", value)


def test_with_a_page_or_pictures_the_terminal_shows_a_summary(tmp_path, explain, inside):
    out, _ = explain(PROMPT, "--html", tmp_path / "a.html")
    assert out.startswith(f"tiny: 19 tokens, {inside.bits[1:].sum():.2f} bits, ")
    assert len(out.splitlines()) < 10
    assert "logit lens" not in out
    assert f"{tmp_path / 'a.html'}: " in out


def test_a_line_on_a_terminal_says_what_is_being_done(tmp_path, monkeypatch, capsys, explain):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(command, "save", lambda *arguments: None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    _, err = explain("x", "--html", tmp_path / "a.html", "--png", tmp_path / "new")
    steps = ["forward pass", "logit lens, embedding", "logit lens, layer 3", "drawing lens.png", "writing the page"]
    places = [err.find(f"{step}:") for step in steps]
    assert -1 not in places
    assert places == sorted(places)
    assert err.rsplit("\r")[-1].strip() == ""  # the line is gone in the end


# ----------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["word " * 300], "n_ctx = 256"),
        ([""], "prompt is empty"),
        (["x", "--layer", "4"], "--layer 4.*0 to 3"),
        (["x", "--head", "5"], "--head 5.*0 to 4"),
    ],
)
def test_what_the_model_does_not_have_is_refused_before_it_runs(tmp_path, monkeypatch, explain, arguments, message):
    monkeypatch.setattr(command, "examine", None)
    (tmp_path / "a.html").write_text("before")
    with pytest.raises(UsageError, match=message):
        explain(*arguments, "--html", tmp_path / "a.html", "--force")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_a_prompt_may_fill_the_context_but_not_exceed_it(explain):
    encoder = get_encoder("tiny", MODELS)
    ids = encoder.encode("ROMEO: what light? " * 60)
    text = encoder.decode(ids[:256])
    assert len(encoder.encode(text)) == 256
    assert "tiny: 256 tokens" in explain(text)[0]
    with pytest.raises(UsageError, match="257.* 256"):
        explain(encoder.decode(ids[:257]))


@pytest.mark.parametrize(
    ("option", "path", "message"),
    [
        ("--html", "missing/a.html", "a.html"),
        ("--html", "folder", "folder"),
        ("--png", "file", "file"),
        ("--png", "missing/folder", "missing"),
        ("--png", "blocked", "residual.png"),
    ],
)
def test_a_path_that_can_not_be_written_is_refused(tmp_path, monkeypatch, no_model, explain, option, path, message):
    monkeypatch.setattr(command.options, "require", lambda *modules, purpose: None)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "blocked" / "residual.png").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match=re.escape(message)):
        explain("x", option, tmp_path / path)
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_matplotlib_is_reported_with_the_command_that_installs_it(tmp_path, monkeypatch, no_model, explain):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OSError, match=r"pip install matplotlib \(for --png\)"):
        explain("x", "--png", tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------------------------------------------------- the files


def test_page_and_pictures_go_to_one_new_folder(tmp_path, explain):
    pytest.importorskip("matplotlib")
    new = tmp_path / "new"
    out, err = explain("a", "--html", new / "x.html", "--png", new)
    assert names(new) == [*PICTURES, "x.html"]
    for path in new.iterdir():
        assert f"{path}: {path.stat().st_size:,} bytes" in out
    assert err == ""


def test_pictures_come_in_three_formats_with_the_head_that_is_chosen(tmp_path, monkeypatch, explain):
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr(command, "save", lambda name, inside, *rest: drawn.append((name, *rest[:2], *rest[3:])))
    new, other = tmp_path / "new", tmp_path / "other"
    explain("a", "--png", new, "--svg", other, "--pdf", new, "--layer", 1, "--head", 2)
    assert drawn == [(name, 1, 2, None, kind) for kind in ("png", "svg", "pdf") for name in FIGURES]
    assert names(new) == sorted([*PICTURES, *(f"{name}.pdf" for name in FIGURES)])
    assert names(other) == [f"{name}.svg" for name in FIGURES]


def test_a_failure_leaves_the_old_files(tmp_path, monkeypatch, explain):
    pytest.importorskip("matplotlib")

    def fail(name, *rest):
        if name == "residual":
            raise OSError("no space left")

    monkeypatch.setattr(command, "save", fail)
    (tmp_path / "a.html").write_text("before")
    with pytest.raises(OSError, match="no space left"):
        explain("x", "--html", tmp_path / "a.html", "--png", tmp_path / "new", "--force")
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["before"]


@pytest.mark.slow  # another process imports matplotlib
def test_pictures_depend_on_no_setting_of_the_user(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    words = [sys.executable, "-m", "picogpt", "explain", "a $x_1", "--model_size", "tiny", "--png", tmp_path / "new"]
    env = os.environ | {"MPLBACKEND": "nothing", "MATPLOTLIBRC": str(tmp_path), "PATH": ""}
    done = subprocess.run(words, capture_output=True, text=True, encoding="utf-8", cwd=ROOT, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert names(tmp_path / "new") == PICTURES


# -------------------------------------------------------------------------------------------------------- the package


def test_picogpt_exports_its_names_and_nothing_else():
    for name in picogpt.__all__:
        assert getattr(picogpt, name).__name__ == name
    assert dir(picogpt) == sorted(picogpt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = picogpt.nothing
