"""The command: a model that is made to agree, changes in the last digit, wrong models, data files; and facts.json."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import shutil
from decimal import Decimal
from pathlib import Path

import pytest
from fact_cases import FACTS
from helpers import ROOT, assert_error, run_command, run_main

import utils
from picogpt.checkpoints.convert import main as convert
from picogpt.facts import command
from picogpt.facts import data as facts_data
from picogpt.facts.recipes import KINDS, TASKS, compute
from utils import DATA, SIZES

TOOL = "picogpt facts"
TINY = ROOT / "models" / "tiny"
SHA256 = hashlib.sha256((TINY / DATA).read_bytes()).hexdigest()
DECIMALS, TOLERANCE = 4, 6e-5  # the values in `agreeing` have so many decimals, and half of the last one is allowed


def rounded(value):
    return round(value, DECIMALS) if isinstance(value, float) else value


def published(fact, ours):
    """Return values in the form in which a fact publishes them."""
    ours = [rounded(value) for value in ours]
    if fact["kind"] == "top":
        return [list(pair) for pair in zip(ours[::2], ours[1::2])]
    if fact["kind"] == "score":
        return dict(zip(fact["published"], ours))
    return ours if isinstance(fact["published"], list) else ours[0]


@pytest.fixture
def as_124m(tiny, monkeypatch):
    """Let the bundled model be OpenAI's 124M, by its shape and its weights."""
    monkeypatch.setitem(SIZES, "124M", tiny.hparams)
    monkeypatch.setitem(utils.SHA256, f"124M/{DATA}", SHA256)


@pytest.fixture(scope="session")
def computed(tiny, data):
    """All FACTS but the example with the values that the bundled model gives them, and the content of a facts.json."""
    facts = []
    for name, fact in FACTS.items():
        if fact["published"] != "file":
            path = data / fact["data"] if "data" in fact else None
            ours = compute(fact | {"tolerance": math.inf}, tiny, path).ours
            about = {"what": name, "source": f"source of {name}", "tolerance": TOLERANCE, "tokens": 99}
            facts.append(fact | about | {"published": {"124M": published(fact, ours)}, "exact": ours[-1]})
    files = {
        name: {"bytes": (data / name).stat().st_size, "where": f"the page of {name}"}
        | {"sha256": hashlib.sha256((data / name).read_bytes()).hexdigest()}
        for name in ("play.txt", "passages.jsonl")
    }
    text = (data / "wiki.txt").read_text(encoding="utf-8")
    files["wiki.txt"] = {"tokens": len(tiny.encoder.encode(text)), "where": "the page of wiki.txt"}
    return {"files": files, "prompts": {}, "facts": facts}


@pytest.fixture
def agreeing(computed, tmp_path, monkeypatch, as_124m):
    """Let facts.json hold what the bundled model computes. The content is returned, and written by a function."""
    content = copy.deepcopy(computed)

    def write():
        (tmp_path / "facts.json").write_text(json.dumps(content), encoding="utf-8")

    monkeypatch.setattr(facts_data, "FACTS", tmp_path / "facts.json")
    write()
    return content, write


def run(*args):
    return run_main(TOOL, "--model_size", TINY, *args)


def verdicts(result):
    """Return the verdict of each fact by its name."""
    rows = [line for line in result.out.splitlines() if line.startswith(("ok", "DIFFERS"))]
    return {row.rpartition(" (source of ")[2].rstrip(")"): row.split()[0] for row in rows}


def test_a_model_that_agrees(agreeing, data):
    result = run("--data", data)
    assert result.status == 0, result
    assert set(verdicts(result).values()) == {"ok"}
    assert list(verdicts(result)) == [name for name in FACTS if name != "an example"]
    assert result.out.splitlines()[-1] == f"{len(FACTS) - 1} agree, 0 differ"
    assert "24 facts about 124M: about 1 minute on two cores" in result.err


def changed(values, ours):
    """Return published values of which the last one is changed in its last digit, away from the exact one of ours."""
    if isinstance(values, float):
        return round(values + math.copysign(10**-DECIMALS, values - ours), DECIMALS)
    if isinstance(values, int):
        return values + 1
    if isinstance(values, dict):
        return values | {name: changed(value, ours) for name, value in list(values.items())[-1:]}
    return [*values[:-1], changed(values[-1], ours)]


@pytest.mark.parametrize("name", [name for name in FACTS if name != "an example"])
def test_a_change_of_the_last_digit_is_seen(name, agreeing, data):
    content, write = agreeing
    fact = next(fact for fact in content["facts"] if fact["what"] == name)
    fact["published"]["124M"] = changed(fact["published"]["124M"], fact["exact"])
    content["facts"] = [fact, next(other for other in content["facts"] if other["what"] != name)]
    write()
    result = run("--data", data)
    assert result.status == 1
    assert list(verdicts(result).values()) == ["DIFFERS", "ok"]
    assert result.out.splitlines()[-1] == "1 agree, 1 differ"


def test_the_line_shows_where_the_values_differ(agreeing):
    content, write = agreeing
    by_name = {fact["what"]: fact for fact in content["facts"]}
    content["facts"] = [by_name[name] for name in ("ids", "differences", "percent", "ids after end of text")]
    by_name["ids"]["published"]["124M"][3] += 1
    by_name["differences"]["published"]["124M"][1] = 2.5
    by_name["percent"]["published"]["124M"][2][0] = "zebra"
    write()
    lines = run().out.splitlines()
    assert lines[0].split() == ["ours", "published", "tolerance", "what,", "and", "who", "published", "it"]
    assert lines[1].split()[:6] == ["DIFFERS", "3", "of", "12", "12", "tokens"]
    assert lines[1].endswith("  ids: 'The king' (source of ids)")
    assert lines[2].split()[2:4] == ["2.5", "6e-05"]
    assert lines[2].endswith("  differences (source of differences)")
    assert lines[3].split()[2] == "'zebra'"
    assert lines[4].endswith("  ids after end of text: '<|endoftext|>' (source of ids after end of text)")


def test_json_has_all_values(agreeing, data, tmp_path):
    content, _ = agreeing
    path = tmp_path / "out.json"
    assert run("--data", data, "--json", path).status == 0
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["model"] == "124M"
    for found, fact in zip(written["facts"], content["facts"], strict=True):
        assert (found["what"], found["source"], found["agrees"]) == (fact["what"], fact["source"], True)
        assert published(FACTS[fact["what"]], found["ours"]) == fact["published"]["124M"]
        assert len(found["ours"]) == len(found["published"]) == len(found["tolerance"]) == found["n_values"]
    assert_error(run("--json", path), 1, str(path), "exists already", "--force")


@pytest.mark.usefixtures("agreeing")
def test_weights_that_are_not_finite_are_one_line(tmp_path, monkeypatch):
    folder = Path(shutil.copytree(TINY, tmp_path / "nan"))
    numbers = bytearray((folder / DATA).read_bytes())
    numbers[-4:] = b"\xff\xff\xff\x7f"
    (folder / DATA).write_bytes(numbers)
    (folder / DATA).write_bytes(numbers)
    monkeypatch.setitem(utils.SHA256, f"124M/{DATA}", hashlib.sha256(numbers).hexdigest())
    result = run_main(TOOL, "-m", folder)
    assert result.status == 1
    assert (
        result.err.splitlines()[-1]
        == f"picogpt facts: {folder}: the logits are not finite: the weights are damaged or too large"
    )


# ------------------------------------------------------------------------------------------------------ the right model


def test_another_shape_is_said_at_once():
    """In a process of its own, where only the tool itself imports libraries."""
    result = run_command(TOOL, "--model_size", TINY)
    assert_error(result, 2, "tiny has n_vocab 1024, n_ctx 256", "the facts are about OpenAI's models: 124M, 355M")


def test_other_weights_are_said_at_once(tiny, monkeypatch):
    monkeypatch.setitem(SIZES, "124M", tiny.hparams)
    words = ["tiny has the shape of 124M and other weights", SHA256[:8], "2060c885"]
    assert_error(run(), 2, *words)


@pytest.mark.usefixtures("agreeing")
def test_the_weights_are_recognized_in_another_layout(tmp_path, capsys):
    convert(["--to_hf", str(TINY), "--out", str(tmp_path / "hf")])
    capsys.readouterr()
    result = run_main(TOOL, "-m", tmp_path / "hf")
    assert result.status == 0, result


def test_the_sha256_is_that_of_the_data_file(tiny):
    assert command.weights_sha256(tiny.params) == SHA256


def test_a_size_without_a_known_sha256_is_recognized_by_its_shape(tiny, agreeing, monkeypatch):
    content, write = agreeing
    content["facts"][0]["published"] = {"355M": content["facts"][0]["published"]["124M"]}
    write()
    monkeypatch.setitem(SIZES, "124M", {})
    monkeypatch.setitem(SIZES, "355M", tiny.hparams)
    result = run()
    assert result.out.startswith(command.HEADER)
    assert "tiny has the shape of 355M; no sha256 of OpenAI's weights is published to check more" in result.err


# ------------------------------------------------------------------------------------------------------- the data files


def test_without_data_its_facts_are_left_out(agreeing):
    result = run()
    assert result.status == 0
    assert result.out.splitlines()[-1] == "15 agree, 0 differ; 9 more need files: --data FOLDER, see docs/facts.md"


def test_a_missing_file_and_another_file_of_its_name(agreeing, data, tmp_path):
    folder = tmp_path / "some"
    (folder / "deeper").mkdir(parents=True)
    shutil.copy(data / "passages.jsonl", folder / "deeper")
    text = (data / "play.txt").read_text(encoding="utf-8")
    (folder / "play.txt").write_text(text.replace("JULIET", "OTHERS"), encoding="utf-8")
    result = run("--data", folder)
    assert result.status == 0
    assert result.out.splitlines()[-1] == f"16 agree, 0 differ; 8 more need files that {folder} lacks"
    lines = result.err.splitlines()
    content, _ = agreeing
    expected = content["files"]["play.txt"]
    assert lines[0] == (
        f"{folder / 'play.txt'} is another file: expected is the file of {expected['bytes']:,} bytes "
        f"with sha256 {expected['sha256'][:12]}…, published in the page of play.txt"
    )
    assert lines[1].startswith(f"wiki.txt is not in {folder}: expected is the file of ")
    assert lines[1].endswith(" tokens, published in the page of wiki.txt")


def test_a_file_is_recognized_by_its_tokens(agreeing, data, tmp_path):
    (tmp_path / "wiki.txt").write_text((data / "wiki.txt").read_text(encoding="utf-8") + "more", encoding="utf-8")
    assert f"{tmp_path / 'wiki.txt'} is another file" in run("--data", tmp_path).err


def test_without_any_fact_to_run(agreeing, tmp_path):
    content, write = agreeing
    content["facts"] = [fact for fact in content["facts"] if "data" in fact]
    write()
    assert_error(run(), 2, "all 9 facts about 124M need files: --data FOLDER, see docs/facts.md")
    assert_error(run("--data", tmp_path / "none"), 1, "none is not a folder")


# --------------------------------------------------------------------------------------------------------- facts.json


CONTENT = json.loads(facts_data.FACTS.read_text(encoding="utf-8"), parse_float=Decimal)
KEYS = {  # of a fact of each kind, beside what all have
    "greedy": {"prompt", "bos"},
    "loss": {"prompt", "bos", "ablate", "data", "paragraphs", "part", "rows", "inputs", "windows", "span", "as"},
    "logit_difference": {"prompts", "bos", "ablate"},
    "top": {"prompt", "bos", "measure", "ranked"},
    "activation": {"prompt", "prompts", "ids", "bos", "array", "row", "first", "statistic", "ablate", "data"},
    "score": {"task", "protocol", "options", "data"},
}


def numbers(value):
    """Yield the numbers with a decimal point in a published value."""
    if isinstance(value, Decimal):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)


@pytest.mark.parametrize("fact", CONTENT["facts"], ids=lambda fact: f"{fact['what']}, {fact['source'][:30]}")
def test_a_fact_has_what_its_recipe_needs(fact):
    keys = fact.keys() - {"what", "kind", "published", "source", "tolerance"}
    assert keys - ({"tokens"} if "data" in fact else set()) <= KEYS[fact["kind"]]
    assert set(fact["published"]) <= set(SIZES)
    assert ("tolerance" in fact) == (fact["kind"] != "greedy")
    assert ("tokens" in fact) == ("data" in fact)
    assert fact.get("data") in (None, *CONTENT["files"])
    assert fact["kind"] != "score" or fact["protocol"] in TASKS[fact["task"]]
    assert not isinstance(fact.get("prompts"), str) or fact["prompts"] in CONTENT["prompts"]
    for value in fact["published"].values():
        is_exact = fact["kind"] == "greedy" or value == "file"
        assert is_exact or all(isinstance(v, Decimal) for v in flat(value) if not isinstance(v, str))


def flat(value):
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return [value] if parts is None else [leaf for part in parts for leaf in flat(part)]


LOOSE = {  # facts whose tolerance is more than the last digit, and why
    "ln_f at the first position, 5 numbers": "the source's own tolerance",
    "the likeliest tokens, probability": "printed with all digits of float32",
    "the likeliest token, logit": "printed with all digits of float32",
    "accuracy in % and perplexity": "one of 5,153 passages is 0.02 %",
}


@pytest.mark.parametrize("fact", CONTENT["facts"], ids=lambda fact: f"{fact['what']}, {fact['source'][:30]}")
def test_a_tolerance_lets_no_change_of_a_printed_digit_pass(fact):
    for value in numbers(fact["published"]):
        digits = len(value.as_tuple().digits)
        limits = fact["tolerance"] if isinstance(fact["tolerance"], list) else [fact["tolerance"]]
        last = Decimal(1).scaleb(value.as_tuple().exponent)
        assert max(limits) < last or digits >= 6 or fact["what"] in LOOSE
        assert max(limits) >= last / 2 or digits >= 6 or fact["what"] in LOOSE


def test_kinds_and_keys_are_those_of_the_page():
    page = (ROOT / "docs" / "facts.md").read_text(encoding="utf-8")
    for word in [*KINDS, *set().union(*KEYS.values())]:
        assert f"`{word}`" in page
    for name in CONTENT["files"]:
        assert name in page or name.startswith("ex")
