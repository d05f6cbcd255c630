"""Test the command: its output beside the paper's figures, its files, the table, and wrong options."""

from __future__ import annotations

import doctest
import json
import math
import os
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, assert_error, model_options, run_main

from picogpt.evaluate import command, output, paper, reported
from picogpt.evaluate.command import TASKS
from picogpt.facts.data import read_facts
from picogpt.scoring.windows import Scores
from utils import SIZES

TOOL = "picogpt evaluate"
DATA = Path(__file__).parent / "passages.jsonl"
TINY = model_options(ROOT / "models" / "tiny")
PAPER = """
LAMBADA ppl 35.13/15.60/10.87/8.63, LAMBADA acc 45.99/55.48/60.12/63.24; CBT-CN 87.65/92.35/93.45/93.30;
CBT-NE 83.4/87.1/88.0/89.05; WikiText-2 29.41/22.76/19.93/18.34; PTB 65.85/47.33/40.31/35.76;
enwik8 1.16/1.01/0.97/0.93; text8 1.17/1.06/1.02/0.98; WikiText-103 37.50/26.37/22.05/17.48;
1BW 75.20/55.72/44.575/42.16
"""


@pytest.fixture
def as_124m(tiny, monkeypatch):
    """Open the bundled model under the name of OpenAI's smallest, whose figures are in the paper."""
    monkeypatch.setattr(command, "open_model", lambda args: tiny._replace(folder=Path("models", args.model_size)))


def table_of(text):
    return [line.split() for line in text.splitlines()]


def test_the_figures_are_those_of_the_protocol(tiny, score, options):
    kept = []
    figures = TASKS["lambada"]["harness"](DATA, tiny, lambda windows: kept.extend(score(windows)) or kept, options())
    nats = [-scored.log_probs.sum() for scored in kept]
    result = run_main(TOOL, "lambada", "--data", DATA, "--protocol", "harness", *TINY)
    assert result.status == 0, result
    assert table_of(result.out) == [
        ["lambada,", "protocol", "harness,", "model", "tiny"],
        ["ours", "paper"],
        ["accuracy,", "%", f"{figures['accuracy']:.2f}", "-"],
        ["standard", "error", f"{100 * math.sqrt(0.25 / 5):.2f}"],
        ["perplexity", f"{figures['perplexity']:.4g}", "-"],
        ["standard", "error", f"{figures['perplexity'] * statistics.stdev(nats) / math.sqrt(6):.4g}"],
        ["tokens", str(figures["tokens"])],
        ["examples", "6"],
    ]


@pytest.mark.usefixtures("as_124m")
def test_the_paper_s_figures_stand_beside_a_model_of_openai_s():
    result = run_main(TOOL, "lambada", "--data", DATA)
    rows = {row[0]: row[-1] for row in table_of(result.out)}
    assert rows["accuracy,"] == "45.99"
    assert rows["perplexity"] == "35.13"
    assert "protocol openai, model 124M\n" in result.out


@pytest.mark.usefixtures("as_124m")
@pytest.mark.parametrize(
    ("name", "given", "title", "theirs"),
    [
        ("cbtest_CN_valid_2000ex.txt", [], "cbt CN", "87.65"),
        ("cbtest_NE_test_2500ex.txt", [], "cbt NE", "83.40"),
        ("questions", ["--variant", "NE"], "cbt NE", "83.40"),
        ("cbtest_V_test_2500ex.txt", [], "cbt", "-"),
    ],
)
def test_the_variant_is_in_the_name_or_given(tmp_path, name, given, title, theirs):
    lines = "".join(f"{i} a b .\n" for i in range(1, 21))
    (tmp_path / name).write_text(f"{lines}21 I XXXXX you .\tsee\t\tsee|are\n", encoding="utf-8")
    result = run_main(TOOL, "cbt", "--data", tmp_path / name, *given)
    assert result.out.startswith(f"{title}, protocol paper, model 124M\n"), result
    assert {row[0]: row[-1] for row in table_of(result.out)}["accuracy,"] == theirs


@pytest.mark.parametrize(
    ("task", "name", "variant"),
    [
        ("wikitext", "wikitext-2/wiki.test.tokens", "2"),
        ("wikitext", "WikiText-2-raw/wiki.test.raw", "2"),
        ("wikitext", "wikitext-103-raw/wiki.test.raw", "103"),
        ("wikitext", "wiki.test.raw", ""),
        ("wikitext", "wikitext-25/wiki.test.raw", ""),
        ("wikitext", "wikitext-2/of-wikitext-103.raw", "103"),
        ("cbt", "my_cn_stuff/cbtest_NE_test_2500ex.txt", "NE"),
        ("cbt", "my_cn_stuff/questions", "CN"),
        ("ptb", "ptb.test.txt", ""),
    ],
)
def test_variant_of(task, name, variant):
    assert paper.variant_of(task, Path(name)) == variant


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("tokens", 1234567, "1,234,567"),
        ("perplexity", 1234.567, "1,234.57"),
        ("perplexity", 1.5e12, "1.5e+12"),
        ("accuracy", 0.0, "0.00"),
        ("bits per byte", 0.93456, "0.9346"),
        ("perplexity", None, "-"),
    ],
)
def test_shown(name, value, text):
    assert output.shown(name, value) == text


def test_standard_errors_are_the_harness_s():
    """The accuracy's is exact. For the perplexity, the harness draws examples again and again; so does this test."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.metrics import mean_stderr, perplexity

    rng = np.random.default_rng(0)
    logs = -rng.gamma(2.0, 1.5, 2000)
    right = (rng.random(2000) < 0.3256).tolist()
    figures = {"accuracy": 100 * np.mean(right), "perplexity": perplexity(logs.tolist()), "examples": 2000}
    scores = [Scores(np.array([log / 2, log / 2]), np.array([1, 1])) for log in logs]
    errors = reported.standard_errors("lambada", figures, scores)
    assert errors["accuracy"] == pytest.approx(100 * mean_stderr(right))
    drawn = [perplexity(rng.choice(logs, 2000).tolist()) for _ in range(3000)]
    assert errors["perplexity"] == pytest.approx(np.std(drawn, ddof=1), rel=0.06)


@pytest.mark.parametrize(
    ("task", "figures", "names"),
    [
        ("lambada", {"accuracy": 50.0, "perplexity": 4.0, "examples": 2}, ["accuracy", "perplexity"]),
        ("lambada", {"accuracy": 50.0, "perplexity": 4.0, "examples": 1}, []),
        ("cbt", {"accuracy": 50.0, "examples": 2}, ["accuracy"]),
        ("wikitext", {"perplexity": 4.0, "tokens": 9, "documents": 2}, []),
    ],
)
def test_which_figures_have_a_standard_error(task, figures, names):
    scores = [Scores(np.array([log]), np.array([1])) for log in (-1.0, -2.0)]
    assert list(reported.standard_errors(task, figures, scores)) == names


@pytest.mark.usefixtures("as_124m")
def test_what_others_report_stands_below_the_table(tmp_path):
    words = ["lambada", "--data", DATA, "--protocol", "harness"]
    line = (
        "others, 124M: accuracy 32.56 ± 0.65 %, perplexity 40.06 ± 1.48 (EleutherAI/lm-evaluation-harness, issue 2159)"
    )
    assert run_main(TOOL, *words).out.endswith(f"\n{line}\n")
    for other in (["--limit", 3], ["--max_context", 9], ["--model_size", "355M"], ["--protocol", "openai"]):
        assert "others" not in run_main(TOOL, *words, *other).out
    (tmp_path / "wiki.test.raw").write_text(" = A = \n b c \n")
    words = ["wikitext", "--data", tmp_path / "wiki.test.raw", "--protocol", "stride", "--stride"]
    assert "others" not in run_main(TOOL, *words, 128).out


@pytest.mark.parametrize(
    ("model", "variant", "name", "stride", "values"),
    [
        ("124M", "2", "wiki.test.raw", 1024, [29.94]),
        ("124M", "103", "wiki.valid.raw", 1024, [31.0423]),
        ("124M", "", "wiki.train.raw", 1024, []),
        ("774M", "2", "wiki.test.raw", None, [16.44]),
        ("774M", "2", "wiki.test.raw", 1024, [19.44]),
        ("774M", "2", "wiki.test.raw", 256, []),
    ],
)
def test_reports_are_of_the_same_file_and_windows(options, model, variant, name, stride, values):
    found = reported.reports_for(model, "wikitext", variant, "stride", Path(name), options(stride=stride))
    assert [report.figures["documented perplexity"][0] for report in found] == values


def test_reports_are_of_protocols_that_exist_and_agree_with_the_facts():
    for report in reported.REPORTS:
        assert report.protocol in TASKS[report.task]
        assert report.model in SIZES
        assert report.variant in ("", *paper.VARIANTS.get(report.task, {}))
    for size in SIZES:
        for fact in read_facts(size)[0]:
            if fact["kind"] == "score":
                values = {name: pytest.approx(value) for name, value in fact["published"].items()}
                found = [
                    {name: value for name, (value, *_) in report.figures.items()}
                    for report in reported.REPORTS
                    if (report.model, report.task, report.protocol) == (size, fact["task"], fact["protocol"])
                ]
                assert values in found


def cells_of(lines):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


@pytest.mark.usefixtures("as_124m")
def test_markdown_has_the_same_cells():
    words = ["lambada", "--data", DATA, "--protocol", "harness", "--model_size", "124M,355M"]
    title, heading, *plain = run_main(TOOL, *words).out.splitlines()
    lines = run_main(TOOL, *words, "--markdown").out.splitlines()
    assert lines[:2] == [title, ""]
    assert lines[2:4] == ["|  | 124M | paper | 355M | paper |", "|---|---:|---:|---:|---:|"]
    rows = cells_of(lines[4:])
    assert [" ".join(cells).split() for cells in rows] == [line.split() for line in plain[:-1]]
    assert lines[-2:] == ["", plain[-1]]
    assert heading.split() == cells_of(lines[2:3])[0][1:]


def test_the_paper_s_table_in_markdown(tmp_path):
    shutil.copy(DATA, tmp_path / "lambada_test.jsonl")
    words = ["--paper", tmp_path, *TINY]
    plain = run_main(TOOL, *words).out.splitlines()
    lines = run_main(TOOL, *words, "--markdown").out.splitlines()
    assert lines[0].startswith("| dataset | paper, 117M |")
    assert lines[1] == "|---|---:|---:|---:|---:|---:|"
    assert [" ".join(cells).split() for cells in cells_of(lines[2:])] == [line.split() for line in plain[1:11]]
    assert lines[12:] == ["", "lambada_test.jsonl: protocol stop-words"]


def test_limit_is_said(tmp_path):
    result = run_main(TOOL, "lambada", "--data", DATA, "--limit", 2, *TINY)
    assert result.out.endswith(
        "examples                                   2\nonly the first 2 of the file's examples (--limit)\n"
    )


@pytest.mark.usefixtures("as_124m")
def test_json_has_the_figures_and_all_that_led_to_them(tmp_path, tiny, score, options):
    path = tmp_path / "figures.json"
    result = run_main(TOOL, "lambada", "--data", DATA, "--no_bos", "--limit", 3, "--json", path)
    assert result.status == 0, result
    written = json.loads(path.read_text(encoding="utf-8"))
    figures = TASKS["lambada"]["openai"](DATA, tiny, score, options(bos=False, limit=3))
    assert written["figures"] == pytest.approx(figures)
    assert written["paper"] == {"perplexity": 35.13, "accuracy": 45.99}
    settings = {
        name: written[name] for name in ("task", "variant", "protocol", "model", "data", "bos", "limit", "stride")
    }
    assert list(settings.values()) == ["lambada", "", "openai", "124M", str(DATA), False, 3, None]


def test_a_file_is_replaced_only_with_force(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text("old")
    result = run_main(TOOL, "lambada", "--data", DATA, "--json", path, *TINY)
    assert_error(result, 1, "figures.json exists already", "--force")
    assert path.read_text() == "old"
    assert run_main(TOOL, "lambada", "--data", DATA, "--json", path, "--force", *TINY).status == 0
    assert json.loads(path.read_text())["figures"]["examples"] == 6
    assert os.listdir(tmp_path) == ["figures.json"]


def test_a_failure_leaves_no_file(tmp_path):
    (tmp_path / "wrong").write_text("{}")
    result = run_main(TOOL, "lambada", "--data", tmp_path / "wrong", "--json", tmp_path / "figures.json", *TINY)
    assert_error(result, 2, "wrong:1: not a JSON object with a text in the field 'text'")
    assert os.listdir(tmp_path) == ["wrong"]


def test_figures_too_large_for_json_become_null(tmp_path, monkeypatch):
    def protocol(*args):
        return {"perplexity": math.inf, "bits per byte": 1.23456}

    monkeypatch.setitem(TASKS["lambada"], "openai", protocol)
    path = tmp_path / "figures.json"
    result = run_main(TOOL, "lambada", "--data", DATA, "--json", path, *TINY)
    assert json.loads(path.read_text())["figures"] == {"perplexity": None, "bits per byte": 1.23456}
    assert table_of(result.out)[2:] == [["perplexity", "-", "-"], ["bits", "per", "byte", "1.2346", "-"]]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], ["name a task"]),
        (["lambda"], ["'lambda' is not a task: lambada, cbt, wikitext, ptb, text8, enwik8, 1bw"]),
        (["lambada"], ["--data FILE"]),
        (
            ["lambada", "--data", DATA, "--protocol", "strict"],
            ["'strict' is not a protocol of lambada: openai, harness"],
        ),
        (["lambada", "--data", DATA, "--variant", "CN"], ["'CN' is not a variant of lambada: it has none"]),
        (["cbt", "--data", DATA, "--variant", "V"], ["'V' is not a variant of cbt: CN, NE"]),
        (["lambada", "--data", DATA, "--limit", "0"], ["--limit", "at least 1"]),
        (["lambada", "--paper", "."], ["--paper takes no task, because each row"]),
        (["--paper", ".", "--bos"], ["--paper takes no --bos, because each row"]),
        (["--paper", ".", "--no_bos"], ["--paper takes no --no_bos, because each row"]),
        (["--paper", ".", "--max_context", "9"], ["--paper takes no --max_context, because each row"]),
        (["--paper", ".", "--explain"], ["--paper takes no --explain, because each row"]),
        (["lambada", "--data", DATA, "--json", DATA, "--force"], ["argument --json:", "is also a file to read"]),
        (["--paper", ".", "--json", "ptb.test.txt", "--force"], ["--json: ptb.test.txt is also a file to read"]),
        (["lambada", "--data", DATA, "--max_context", "1"], ["--max_context: '1' is not a whole number at least 2"]),
        (["--paper", ".", "--model_size", "a,b,c,d,e"], ["room for 4 models"]),
    ],
)
def test_wrong_options(given, words):
    assert_error(run_main(TOOL, *given), 2, *words)


REFUSALS = {
    **{("lambada", name, "--stride"): "each example is scored independently" for name in TASKS["lambada"]},
    **{("cbt", name, "--stride"): "each example is scored independently" for name in TASKS["cbt"]},
    ("lambada", "harness", "--bos"): "the protocol puts nothing before the text",
    ("wikitext", "harness", "--stride"): "the protocol fixes the windows",
    ("wikitext", "harness", "--max_context"): "the protocol fixes the windows",
    ("wikitext", "harness", "--no_bos"): "the protocol fixes the windows",
    ("wikitext", "stride", "--bos"): "the protocol puts nothing before the text",
}


@pytest.fixture
def no_download(monkeypatch):
    def download(args):
        raise AssertionError("the model came first")

    monkeypatch.setattr(command, "open_model", download)


@pytest.mark.usefixtures("no_download")
@pytest.mark.parametrize(("task", "protocol", "option"), REFUSALS)
def test_what_a_protocol_lacks_is_refused_before_a_model_is_downloaded(task, protocol, option):
    words = [option] if "bos" in option else [option, 5]
    result = run_main(TOOL, task, "--protocol", protocol, "--data", DATA, *words)
    assert_error(result, 2, f"{option} is not possible: {REFUSALS[task, protocol, option]}")


def test_no_other_option_is_refused():
    assert {(*key, option) for key, options in command.REFUSED.items() for option in options} == set(REFUSALS)


@pytest.mark.usefixtures("no_download")
def test_files_are_looked_at_before_a_model_is_downloaded(tmp_path):
    with pytest.raises(AssertionError):
        run_main(TOOL, "lambada", "--data", DATA)
    assert_error(run_main(TOOL, "lambada", "--data", "nowhere"), 1, "nowhere: No such file")
    assert_error(run_main(TOOL, "lambada", "--data", DATA, "--json", tmp_path), 1, "is a folder")
    assert_error(run_main(TOOL, "--paper", "nowhere"), 1, "nowhere is not a folder")


@pytest.mark.parametrize("protocol", ["paper", "stride"])
def test_windows_out_of_range_are_wrong_usage(tmp_path, protocol):
    (tmp_path / "wiki").write_text(" = A = \n b c \n")
    words = ["wikitext", "--data", tmp_path / "wiki", "--protocol", protocol, *TINY]
    for span, stride in ((257, 1), (4, 5)):
        result = run_main(TOOL, *words, "--max_context", span, "--stride", stride)
        assert_error(result, 2, f"max_context is {span} and stride is {stride}, but 1 <= stride <= max_context")


@pytest.mark.usefixtures("as_124m")
def test_a_perplexity_per_token_has_no_figure_of_the_paper_s_beside_it(tmp_path):
    (tmp_path / "wikitext-2").mkdir()
    (tmp_path / "wikitext-2" / "wiki.test.raw").write_text(" = A = \n b c \n")
    data = tmp_path / "wikitext-2" / "wiki.test.raw"
    shown = {name: run_main(TOOL, "wikitext", "--data", data, "--protocol", name).out for name in TASKS["wikitext"]}
    assert ["29.41" in out for out in shown.values()] == [True, True, False]
    assert "documented perplexity" in shown["stride"]


def test_explain_prints_the_docstrings():
    result = run_main(TOOL, "lambada", "--explain")
    assert result.status == 0
    for name, protocol in TASKS["lambada"].items():
        assert f"lambada, protocol {name}\n\n{protocol.__doc__.splitlines()[0]}\n" in result.out
    one = run_main(TOOL, "cbt", "--protocol", "raw", "--explain").out
    assert one.startswith("cbt, protocol raw\n\nDo as")
    assert "protocol paper\n" not in one


def test_help_names_every_protocol():
    result = run_main(TOOL, "--help")
    for task, protocols in TASKS.items():
        assert f"\n  {task}\n" in result.out
        for name, protocol in protocols.items():
            assert f"\n    {name} " in result.out
            assert protocol.__doc__.splitlines()[0] in " ".join(result.out.split())


# --------------------------------------------------------------------------------------------------- the paper's table


def test_the_paper_s_figures_are_those_of_the_issue():
    given = [figures for figures in PAPER.replace(",", ";").replace("\n", " ").split(";") if figures.strip()]
    assert len(given) == len(paper.ROWS) == 10
    for text, row in zip(given, paper.ROWS):
        dataset, *_, values = text.split()
        assert row.label.split(",")[0] == dataset
        assert list(row.values) == [float(value) for value in values.split("/")]
        assert [float(paper.theirs(value)) for value in row.values] == list(row.values)
    assert list(paper.SIZES) == list(SIZES)


def test_every_file_of_the_table_has_a_task_and_a_protocol():
    for row in paper.ROWS:
        assert set(row.files.values()) <= {*TASKS[row.task]}
        assert all(paper.variant_of(row.task, Path(name)) == row.variant for name in row.files)


def test_the_table_without_data_needs_no_model(tmp_path):
    result = run_main(TOOL, "--paper", tmp_path, "--model_size", "no-such-model")
    assert result.status == 0, result
    first, *rows = table_of(result.out)
    assert first == ["dataset", "117M", "345M", "762M", "1542M", "no-suc…"]
    assert len(rows) == 10
    assert all(row[-1] == "-" for row in rows)
    assert [float(row[-5]) for row in rows] == [row.values[0] for row in paper.ROWS]
    assert result.err.count("missing") == 9
    assert "PTB: missing, not found as ptb.test.txt\n" in result.err


def test_the_table_has_ours_where_there_is_data(tmp_path, tiny, score, options):
    shutil.copy(DATA, tmp_path / "lambada_test.jsonl")
    lines = "".join(f"{i} a b .\n" for i in range(1, 21))
    for name in ("cbtest_CN_test_2500ex.txt", "cbtest_CN_valid_2000ex.txt"):
        answer = "see" if "valid" in name else "are"
        (tmp_path / name).write_text(f"{lines}21 I XXXXX you .\t{answer}\t\tsee|are\n", encoding="utf-8")
    models = ["--models_dir", ROOT / "models", "--model_size", ",".join(["tiny"] * 4)]
    result = run_main(TOOL, "--paper", tmp_path, "--json", tmp_path / "table.json", "--limit", 5, *models)
    assert result.status == 0, result
    assert max(map(len, result.out.splitlines())) <= 80
    rows = {" ".join(row[:-8]): row[-4:] for row in table_of(result.out)[1:11]}
    figures = TASKS["lambada"]["stop-words"](DATA, tiny, score, options(limit=5))
    assert rows["LAMBADA, PPL"] == [f"{figures['perplexity']:.2f}"] * 4
    assert rows["LAMBADA, %"] == [f"{figures['accuracy']:.2f}"] * 4
    valid = TASKS["cbt"]["paper"](tmp_path / "cbtest_CN_valid_2000ex.txt", tiny, score, options())
    assert rows["CBT-CN, %"] == [f"{valid['accuracy']:.2f}"] * 4
    assert rows["CBT-NE, %"] == ["-"] * 4
    assert result.out.endswith(
        "lambada_test.jsonl: protocol stop-words\n"
        "cbtest_CN_valid_2000ex.txt: protocol paper\n"
        "only the first 5 examples of each file (--limit)\n"
    )
    assert f"LAMBADA: found {tmp_path / 'lambada_test.jsonl'}\n" in result.err
    written = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert [(part["task"], part["model"]) for part in written] == [("lambada", "tiny")] * 4 + [("cbt", "tiny")] * 4
    assert written[0]["figures"] == pytest.approx(figures)


def test_one_bad_file_does_not_end_the_table(tmp_path):
    shutil.copy(DATA, tmp_path / "lambada_test.jsonl")
    (tmp_path / "ptb.test.txt").write_bytes(b"\xff")
    result = run_main(TOOL, "--paper", tmp_path, *TINY, "--json", tmp_path / "a.json")
    assert result.status == 1
    assert "ptb.test.txt is not UTF-8: byte 0 is 0xff\n" in result.err
    assert "lambada_test.jsonl: protocol stop-words\n" in result.out
    assert [part["task"] for part in json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))] == ["lambada"]


def test_the_plain_file_of_lambada_is_taken_where_openai_s_is_missing(tmp_path):
    (tmp_path / "lambada_test_plain_text.txt").write_text("he is dead\n")
    result = run_main(TOOL, "--paper", tmp_path, *TINY)
    assert "lambada_test_plain_text.txt: protocol plain\n" in result.out


def test_each_model_and_data_file_of_the_table_has_results_of_its_own(tmp_path):
    folder = tmp_path / "data"
    for name in ("wikitext-2/wiki.test.tokens", "wikitext-103/wiki.test.tokens"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(f" = A title of {name} = \n \n He is dead . \n", encoding="utf-8")
    shutil.copytree(ROOT / "models" / "tiny", tmp_path / "models" / "other")
    shutil.copytree(ROOT / "models" / "tiny", tmp_path / "models" / "tiny")
    models = ["--models_dir", tmp_path / "models", "--model_size", "tiny,other"]
    once, again = (run_main(TOOL, "--paper", folder, *models, "--results", tmp_path / "results") for _ in range(2))
    assert once.status == 0, once
    assert once.out == again.out
    assert again.err.count("[1 of 1 shards are in ") == len(list((tmp_path / "results").iterdir())) == 4


def test_the_two_rows_of_lambada_take_one_run(tmp_path, monkeypatch):
    shutil.copy(DATA, tmp_path / "lambada_test.jsonl")
    runs = []
    protocol = TASKS["lambada"]["stop-words"]

    def counted(*args):
        """Count a run."""
        runs.append(args)
        return protocol(*args)

    monkeypatch.setitem(TASKS["lambada"], "stop-words", counted)
    assert run_main(TOOL, "--paper", tmp_path, *TINY).status == 0
    assert len(runs) == 1


def test_large_and_missing_figures_keep_their_columns():
    assert doctest.testmod(paper).failed == 0
    assert [len(paper.ours(value)) <= 7 for value in (9999.99, 9999.996, 1e4, 1e99, math.inf)] == [True] * 5
