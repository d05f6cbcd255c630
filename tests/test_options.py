"""The options of all tools: one name for one thing, and the same thing under the same name."""

from __future__ import annotations

import argparse
import importlib
import re
from collections import defaultdict
from collections.abc import Callable
from unittest import mock

import pytest
from helpers import ROOT, run_main

from picogpt import command_line, options
from picogpt.__main__ import TOOLS

PROGRAMS = [f"picogpt {tool}" for tool in TOOLS]

# The options and arguments of several programs, and the words that their helps begin with: the same thing everywhere.
BEGINNINGS = {
    "--allow_special": ("special tokens in the text",),
    "--batch_size": ("make at most N samples at once", "windows of n_ctx tokens in each step"),  # texts side by side
    "--bias": ("what is switched off gives its bias",),
    "--bos": ("put <|endoftext|> before each text",),
    "--dask": ("score on a Dask cluster", "generate on a Dask cluster"),
    "--data": ("the file with the data of the task", "the folder with the files that some facts need"),
    "--force": ("replace output files or folders that exist already",),
    "--help": ("show this text and exit",),
    "--jobs": ("score in N processes",),
    "--json": ("write the figures to this file", "write everything to a JSON file"),
    "--max_context": ("tokens in a window",),
    "--mean": ("what is switched off gives its mean",),
    "--meta": ("also write model.ckpt.meta",),
    "--model_size": ("124M, 355M, 774M, 1558M, or a folder",),
    "--models_dir": ("the folder with the models",),
    "--n_tokens_to_generate": ("tokens to add", "the most tokens that one reply may have"),
    "--no_bos": ("leave it out",),
    "--out": ("the folder to make", "the file to write"),
    "--plot": ("draw the losses into this file", "draw how much each part matters into this file"),
    "--repetition_penalty": ("above 1",),
    "--results": ("keep the results here as they arrive",),
    "--seed": ("the same seed", "a number: the same seed"),
    "--shape": ("random weights of this size", "measure random weights of this size"),
    "--stride": ("tokens from the beginning of one window to the beginning of the next",),
    "--temperature": ("0 takes the likeliest token",),
    "--tokens": ("print a line for each token", "show only the tokens A to B"),  # a switch of score, a range of explain
    "--top_k": ("choose from the K likeliest",),
    "--top_p": ("choose from the likeliest tokens whose probabilities",),
    "prompt": (
        "the text to continue, - to read it from standard input",
        "the text, or - to read it from standard input",
    ),
}
OTHER_NAMES = {  # what one tool calls otherwise than the others would be a second name for one thing
    "--output": "--out",
    "--target": "--out",
    "--model": "--model_size",
    "--size": "--shape",
    "--overwrite": "--force",
    "--rng": "--seed",
    "--batch": "--batch_size",
    "target": "--out",
    "size": "--shape",
}


class FoundError(Exception):
    """Holds the parser of a program."""


def parser_of(program: str) -> argparse.ArgumentParser:
    """Return the parser with which a program reads its command line."""

    def found(self: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        raise FoundError(self)

    module = importlib.import_module(TOOLS[program.split()[1]][0] if " " in program else program.removesuffix(".py"))
    parser = command_line.Parser if " " in program else argparse.ArgumentParser
    with mock.patch.multiple(parser, parse_args=found, parse_known_args=found), pytest.raises(FoundError) as error:
        module.main([])
    return error.value.args[0]


def shown_actions(program: str) -> dict[str, argparse.Action]:
    """Return the options and arguments that the help of a program shows, by the longest of their names."""
    actions = [action for action in parser_of(program)._actions if action.help != argparse.SUPPRESS]
    return {max(action.option_strings or [action.dest], key=len): action for action in actions}


@pytest.fixture(scope="module")
def everywhere() -> dict[str, dict[str, argparse.Action]]:
    """Return the actions of each name, by program."""
    found: dict[str, dict[str, argparse.Action]] = defaultdict(dict)
    for program in PROGRAMS:
        for name, action in shown_actions(program).items():
            found[name][program] = action
    return found


def test_all_programs_are_asked(everywhere):
    assert set(everywhere["--help"]) == set(PROGRAMS)
    assert len(everywhere["--model_size"]) >= 9
    assert len(everywhere) > 60


def test_the_same_name_never_means_two_things(everywhere):
    """An option of two programs needs a line in BEGINNINGS. Whoever adds it sees whether the two are the same thing."""
    shared = {name: actions for name, actions in everywhere.items() if len(actions) > 1}
    assert shared.keys() - BEGINNINGS.keys() == set(), "is this the same thing in all programs?"
    for name, actions in shared.items():
        for program, action in actions.items():
            assert str(action.help).startswith(BEGINNINGS[name]), f"{program} {name}: {action.help}"


def test_the_same_name_takes_the_same_kind_of_value(everywhere):
    """But for --out, a model's folder or a file, and --data, one file or a folder of several, as their metavars say.

    `generate` may have --prompts instead of a prompt.
    """
    for name in everywhere.keys() - {"--out", "--data", "--tokens", "prompt"}:
        assert len({(action.nargs, action.metavar) for action in everywhere[name].values()}) == 1, name


def test_one_thing_has_one_name(everywhere):
    assert not set(everywhere) & set(OTHER_NAMES)
    short = {name for actions in everywhere.values() for action in actions.values() for name in action.option_strings}
    assert {name for name in short if not name.startswith("--")} == {"-m", "-n"}


def test_names_have_underscores_between_words(everywhere):
    """The parser takes hyphens as well, so the help shows one spelling only."""
    assert [name for name in everywhere if "-" in name.removeprefix("--") or name.lower() != name] == []


def test_each_option_of_gpt2_py_is_one_of_generate():
    """With the same default and the same kind of value, so that a command line can move from one to the other."""
    plain, full = map(shown_actions, ("gpt2.py", "picogpt generate"))
    assert full.keys() - plain.keys() == {
        "--n_samples", "--batch_size", "--end_of_text", "--slide", "--allow_special",
        "--prompts", "--field", "--out", "--force", "--dask", "--show_probs", "--logprobs",
    }  # fmt: skip
    for name, action in plain.items():
        assert {*action.option_strings} - {"-h"} == {*full[name].option_strings}
        assert action.default == full[name].default
        assert action.nargs == full[name].nargs or (name, full[name].nargs) == ("prompt", "?")  # --prompts, instead


def rows_of(heading: str) -> list[list[str]]:
    """Return the cells of each row of the table below a heading of docs/options.md."""
    section = (ROOT / "docs" / "options.md").read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.replace(r"\|", "").split("|")[1:-1]] for row in table[1:]]


def names_in(cell: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])-[\w-]+", cell))


def test_the_documentation_lists_the_options_of_generate_and_says_which_gpt2_py_has():
    listed = {
        max(names_in(cells[0]) or {"prompt"}, key=len): (names_in(cells[0]), cells[2]) for cells in rows_of("Options")
    }
    plain = shown_actions("gpt2.py")
    for name, action in shown_actions("picogpt generate").items():
        if name != "--help":
            assert listed.pop(name) == (set(action.option_strings), "✓" if name in plain else ""), name
    assert listed == {}


def test_the_documentation_lists_the_options_of_several_tools(everywhere):
    listed = [(names_in(cells[0]), cells[2]) for cells in rows_of("The same names in all tools")]
    shared = {
        name: (set(action.option_strings) - {"--max_tokens"}, ", ".join(sorted(p.split()[1] for p in actions)))
        for name, actions in sorted(everywhere.items())
        if len(actions) > 1 and name not in ("--help", "prompt")
        for action in actions.values()
    }
    assert listed == list(shared.values())


@pytest.mark.parametrize(
    ("tool", "hyphens", "underscores"),
    [
        ("convert", ["a", "--out", "b", "--to-hf"], ["a", "--out", "b", "--to_hf"]),
        ("score", ["x", "--no-bos"], ["x", "--no_bos"]),
        ("generate", ["x", "--model-size=a", "--models-d", "b"], ["x", "-m", "a", "--models_dir=b"]),
    ],
)
def test_a_hyphen_in_a_name_counts_as_an_underscore(tool, hyphens, underscores):
    parse: Callable[[list[str]], argparse.Namespace] = importlib.import_module(TOOLS[tool][0]).parse_args
    assert vars(parse(hyphens)) == vars(parse(underscores))


def test_bos_has_two_names():
    parser = command_line.Parser("x")
    options.add_bos(parser, "put a token before each text", default=None)
    for words, value in (([], None), (["--bos"], True), (["--no_bos"], False), (["--no-bos"], False)):
        assert parser.parse_args(words).bos is value


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_line_of_a_help_is_wider_than_80_columns(program, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = parser_of(program).format_help().splitlines()
    assert len(lines) > 10
    assert [line for line in lines if len(line) > 80] == []


def test_the_list_of_tools_is_no_wider_than_80_columns(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["picogpt", "--help"])
    assert importlib.import_module("picogpt.__main__").main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > len(TOOLS)
    assert [line for line in lines if len(line) > 80] == []


def test_a_prompt_with_hyphens_is_a_prompt():
    assert run_main("picogpt tokens", "--", "--a-b", "--model_size", "tiny").status == 2  # all after -- are arguments
    assert run_main("picogpt tokens", "--model_size", "tiny", "--", "--a").out == "   520  --\n    64  a\n"
