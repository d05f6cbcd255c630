"""The page in a headless Chromium, with Pyodide: what it computes, what it says, and how it is used by keyboard."""

from __future__ import annotations

import ast
import re
import time

import numpy as np
import pytest
from browser import contrast, luminance, start_chromium
from helpers import ROOT

import gpt2
import utils
from page import CDN, VERSION
from page.reader import DEFAULTS, FOLDER, READY, Reader, continued
from picogpt.terminal_text import visible

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def loaded(chromium, server):
    reader = Reader(chromium, server.url + FOLDER)
    assert reader("return document.querySelector('#generate').ariaDisabled") == "true"
    reader.wait("#status", READY)
    yield reader
    assert chromium.get_log("browser") == []


@pytest.fixture
def reader(loaded):
    loaded.fill(**DEFAULTS)
    return loaded


@pytest.fixture(scope="module")
def native():
    """Return a function that generates with the same settings here: the new ids, and the text with the prompt."""
    return continued


# ------------------------------------------------------------------------------------------- what the page computes


@pytest.mark.parametrize(
    "settings",
    [
        DEFAULTS,
        {**DEFAULTS, "temperature": 0, "n_tokens": 60},
        {**DEFAULTS, "top_k": 20, "seed": 7},
        {**DEFAULTS, "top_p": 0.7, "seed": 2},
        {**DEFAULTS, "prompt": "Zoë said:\n\t“中文 😀 <b>it's</b> 1234  ", "temperature": 1.5, "seed": 3},
        {
            **DEFAULTS,
            "prompt": "First Citizen:\nWe are accounted poor citizens. " * 8,
            "n_tokens": 60,
            "temperature": 1,
        },
    ],
    ids=["temperature 0.8", "temperature 0", "top_k", "top_p", "unicode", "long prompt"],
)
def test_the_ids_and_the_text_are_those_of_the_command(reader, native, settings):
    ids, text = native(**settings)
    status = reader.text_of(**settings)
    assert re.fullmatch(rf"Done: {len(ids)} tokens in \d+\.\d\d s\.", status)
    steps = reader.steps()
    assert [step["id"] for step in steps] == ids
    assert reader.text("#text") == text
    assert reader("return document.querySelectorAll('#tokens button').length") == len(ids)


def test_the_candidates_of_a_token_are_shown_with_both_probabilities(reader):
    encoder, hparams, params = utils.load_encoder_hparams_and_params("tiny", "models")
    reader.text_of(top_k=3)
    ids = encoder.encode("ROMEO:")
    for step in reader.steps():
        logits = gpt2.gpt2(ids, **params, n_head=hparams["n_head"])[-1]
        p = gpt2.softmax(logits.astype(np.float64))
        shown = [one["id"] for one in step["candidates"]]
        np.testing.assert_allclose([one["p"] for one in step["candidates"]], p[shown], rtol=1e-4)
        drawn = gpt2.token_probs(logits, ids, 0.8, 3, 1.0, 1.0)
        np.testing.assert_allclose([one["drawn"] for one in step["candidates"]], drawn[shown], rtol=1e-4)
        ids.append(step["id"])
    rows = reader(
        "return [...document.querySelectorAll('#candidates tbody tr')].map((row) => "
        "[row.className, ...[...row.cells].map((cell) => cell.textContent)])"
    )
    last = reader.steps()[-1]
    assert len(rows) == len(last["candidates"]) >= 8
    for row, one in zip(rows, last["candidates"]):
        is_chosen = one["id"] == last["id"]
        assert row[:2] == ["this" * is_chosen, visible(encoder.token_bytes(one["id"])) + " ← chosen" * is_chosen]
        assert row[2] == ("<0.1 %" if one["p"] < 0.0005 else f"{100 * one['p']:.1f} %")
        assert (row[3] == "0 %") == (one["drawn"] == 0)
    assert [row[3] for row in rows].count("0 %") == len(rows) - 3


def test_stop_ends_a_text_and_the_next_one_is_whole(reader, native):
    reader.generate(n_tokens=250)
    reader.wait("#new", ".")
    reader.find("#stop").click()
    status = reader.wait("#status", "^Stopped")
    n = int(re.search(r"\d+", status)[0])
    assert 0 < n < 250
    ids, _ = native(**DEFAULTS | {"n_tokens": 250})
    assert [step["id"] for step in reader.steps()] == ids[:n]
    time.sleep(0.3)
    assert len(reader.steps()) == n
    assert reader("return document.querySelector('#stop').ariaDisabled") == "true"
    reader.text_of(**DEFAULTS)
    assert [step["id"] for step in reader.steps()] == ids[:40]


def test_a_second_text_takes_the_place_of_one_that_is_being_written(reader, native):
    reader.generate(n_tokens=250)
    reader.wait("#new", ".")
    settings = DEFAULTS | {"prompt": "JULIET:", "seed": 2}
    assert reader.text_of(**settings).startswith("Done: 40 tokens")
    assert reader.text("#text") == native(**settings)[1]


def test_the_prompt_that_was_sent_is_shown_even_if_the_field_changes_at_once(reader):
    reader.fill(**DEFAULTS)
    reader("document.querySelector('#form').requestSubmit(); document.querySelector('#prompt').value = 'JULIET:'")
    reader.wait("#status", "^Done")
    assert reader.text("#given") == DEFAULTS["prompt"]


def test_a_field_allows_only_what_fits(reader):
    reader.text_of(prompt="JULIET:")
    limit = "return document.querySelector('#n_tokens').max"
    for prompt, n in [("ROMEO:", 2), ("To be, or not to be", 7)]:
        reader.fill(prompt=prompt)
        reader.wait("#count", f"^{n} tokens, room for {257 - n} more$")
        assert reader(limit) == str(257 - n)
    reader.fill(n_tokens=255)
    reader.fill(prompt="To be, or not to be")
    reader.wait("#count", "^7 tokens")
    assert reader("return document.querySelector('#n_tokens').value") == "250"
    reader.fill(prompt="To be. " * 300)
    reader.wait("#count", "^The prompt is longer than the 256 tokens that this model reads")
    before = reader("return run")
    reader.find("#generate").click()
    assert reader("return document.querySelector(':invalid:not(form)').id") == "prompt"
    assert (reader("return run"), reader.text("#given")) == (before, "JULIET:")  # the last text stays
    reader.fill(prompt="ROMEO:")
    reader.wait("#count", "^2 tokens")
    assert reader("return document.querySelector('#n_tokens').value") == "255"  # as many as the visitor has asked for
    assert reader.text_of(**DEFAULTS).startswith("Done")


def test_what_cannot_be_continued_looks_like_an_error_and_the_text_stays(reader):
    reader.text_of(prompt="JULIET:")
    reader("write({...readSettings(), kept: [5000]})")
    error = reader.wait("#error", ".")
    assert error == "No text: the link has the token 5000, but this model has the tokens 0 to 1023"
    assert reader.text("#given") == "JULIET:"
    assert reader("return written.prompt + written.kept.length") == "JULIET:0"  # so is what a link to it says
    colours = "const s = getComputedStyle(document.querySelector('#error')); return [s.color, s.borderTopWidth]"
    assert reader(colours) == ["rgb(163, 32, 13)", "2px"]
    reader.fill(**DEFAULTS)
    reader.find("#generate").click()
    assert reader("return document.querySelector('#error').hidden")
    reader.wait("#status", "^Done")


def test_the_form_refuses_what_is_no_number_of_its_range(reader):
    reader.text_of()
    before = reader("return run")
    for field, wrong in [("n_tokens", 0), ("n_tokens", 256), ("n_tokens", ""), ("seed", -1), ("seed", 1.5)]:
        reader.fill(**DEFAULTS)
        reader.generate(**{field: wrong})
        assert reader("return document.querySelector(':invalid:not(form)').id") == field
    assert reader("return run") == before


def test_what_a_visitor_should_know_is_said(reader):
    reader.text_of(prompt="ROMEO: ", n_tokens=1)
    assert reader.text("#note").startswith("The prompt ends in a space")
    reader.text_of(prompt="ROMEO:", n_tokens=1)
    assert reader.text("#note") == ""


def test_a_prompt_to_try_and_another_seed_are_one_click_each(reader, native):
    prompts = reader("return [...document.querySelectorAll('#prompts button')].map((button) => button.textContent)")
    assert len(set(prompts)) == 6
    reader.find("#prompts button:nth-child(2)").click()
    reader.wait("#given", "^JULIET:$")
    reader.wait("#status", "^Done")
    assert reader.text("#text") == native(**DEFAULTS | {"prompt": "JULIET:"})[1]
    reader.find("#another").click()
    seed = int(reader("return document.querySelector('#seed').value"))
    reader.wait("#status", "^Done")
    assert reader.text("#text") == native(**DEFAULTS | {"prompt": "JULIET:", "seed": seed})[1]
    reader.text_of(seed="")
    assert reader("return document.querySelector('#seed').value") != ""


# -------------------------------------------------------------------------------------------------------- the source


def test_the_source_is_that_of_the_files(reader):
    options = reader("return [...document.querySelectorAll('#function option')].map(({value}) => value)")
    expected = {}
    for file in ("gpt2.py", "encoder.py"):
        text = (ROOT / file).read_text(encoding="utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                lines = f"{file}, lines {node.lineno} to {node.end_lineno}"
                own = text.splitlines()[node.lineno - 1 : node.end_lineno]
                expected[node.name] = ("\n".join(own), lines)
    assert options == list(expected)
    for name, (text, lines) in expected.items():
        reader("showSource(arguments[0])", name)
        assert (reader.text("#source"), reader.text("#place")) == (text, lines)


def test_calls_are_links_to_the_source_of_what_they_call(reader):
    from selenium.webdriver.support.select import Select

    Select(reader.find("#function")).select_by_value("transformer_block")
    links = "return [...document.querySelectorAll('#source button')].map((link) => link.textContent)"
    assert reader(links) == ["mha", "layer_norm", "ffn", "layer_norm"]
    reader.find("#source button").click()
    assert reader.text("#source").startswith("def mha(")
    assert reader("return document.querySelector('#function').value") == "mha"
    reader.find("aside p [data-source=sample]").click()
    assert reader.text("#source").startswith("def sample(")


# --------------------------------------------------------------------------------- keyboard, screen reader, screens


def test_the_keyboard_does_everything(reader):
    from selenium.webdriver import ActionChains, Keys

    reader("document.querySelector('#prompt').focus()")
    ActionChains(reader.driver).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()
    reader.wait("#status", "^Done")
    reached = []
    for _ in range(18):
        reader.press("TAB")
        reached.append(reader("const at = document.activeElement; return at.id || at.dataset.index || at.tagName"))
    assert reached == [
        *["BUTTON"] * 6,
        *("temperature", "top_k", "top_p", "generate", "another", "stop", "n_tokens", "seed", "SUMMARY"),
        *("inside", "link", "0"),
    ]
    for key, index in [("ARROW_RIGHT", 1), ("END", 39), ("ARROW_RIGHT", 39), ("ARROW_LEFT", 38), ("HOME", 0)]:
        reader.press(key)
        assert reader("return document.activeElement.dataset.index") == str(index)
        assert reader.text("#candidates-title").startswith(f"New token {index + 1}, id {reader.steps()[index]['id']}: ")
    assert reader("return document.querySelector('#details').ariaLive") == "polite"
    reader.press("TAB")
    assert reader("return document.querySelector('#details').ariaLive") == "off"


def test_what_a_screen_reader_is_told(reader):
    reader.text_of()
    labels = "return [...document.querySelectorAll('input, textarea, select')].map((e) => e.labels[0].textContent)"
    assert [label.split()[0] for label in reader(labels)] == [
        *("Prompt", "Temperature", "top_k", "top_p", "Tokens", "Seed"),
        *("Function", "open"),
    ]
    tree = reader.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    seen = {(node["role"]["value"], node.get("name", {}).get("value")) for node in tree if not node["ignored"]}
    assert {("button", "Generate"), ("textbox", "Prompt"), ("spinbutton", "Seed")} <= seen
    step = reader.steps()[0]
    p = next(one["drawn"] for one in step["candidates"] if one["id"] == step["id"])
    assert ("button", f"token 1: \\n{100 * p:.1f} %") in seen or ("button", f"token 1: \\n {100 * p:.1f} %") in seen
    speaking = "[aria-live=polite], [role=status], [role=alert]"
    ids = "return [...document.querySelectorAll(arguments[0])].map(({id}) => id)"
    assert reader(ids, speaking) == ["error", "status", "note"]  # and not the text, which comes too fast to be read


@pytest.mark.parametrize("width", [320, 360, 1000, 1280])
def test_nothing_is_wider_than_the_screen(reader, width):
    reader.text_of()
    reader.size(width, 700)
    try:
        assert reader("return document.documentElement.scrollWidth") <= width
        buttons = "button:not(.link), select, input:not([type=range], [type=file])"
        heights = f"return [...document.querySelectorAll('{buttons}')].map((e) => e.offsetHeight).filter(Boolean)"
        assert min(reader(heights)) >= 30
    finally:
        reader.size(1280, 900)


def rgb(colour):
    digits = colour.removeprefix("#")
    return [int(part * (2 // len(part)), 16) for part in re.findall(".." if len(digits) == 6 else ".", digits)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_every_colour(reader, scheme):
    reader.scheme(scheme)
    names = ["--ink", "--faint", "--link", "--bad", "--paper", "--panel", "--hot"]
    *colours, hot = reader(
        "const s = getComputedStyle(document.documentElement); "
        "return arguments[0].map((n) => s.getPropertyValue(n).trim())",
        names,
    )
    ink, faint, link, bad, paper, panel = map(rgb, colours)
    hottest = 0.7 * np.array([float(c) for c in hot.split()]) + 0.3 * np.array(paper)
    for front in (ink, faint, link, bad):
        for back in (paper, panel):
            assert contrast(front, back) >= 4.5
    assert contrast(ink, hottest) >= 4.5
    assert (luminance(paper) > 0.5) == (scheme == "light")
    assert reader("return getComputedStyle(document.body).backgroundColor") == "rgb({}, {}, {})".format(*paper)
    reader.scheme("light")


# ----------------------------------------------------------------------------------- where the files come from


def test_the_second_visit_downloads_nothing_again(loaded, chromium, server):
    server.answers.clear()
    reader = Reader(chromium, server.url + FOLDER)
    reader.wait("#status", READY)
    assert {path for path, status in server.answers if status == 200} == set()
    assert ("/picogpt/gpt2.py", 304) in server.answers


def test_without_a_folder_the_runtime_comes_from_the_network(chromium, server, network):
    network.answers.clear()
    reader = Reader(chromium, server.url + "picogpt/docs/")
    reader.wait("#status", READY)
    assert {status for _, status in network.answers} == {200}
    asked = sorted(path for path, _ in network.answers)
    assert [path.rpartition("/")[0] for path in asked] == [f"/npm/pyodide@{VERSION}"] * 4 + [
        f"/pyodide/v{VERSION}/full"
    ] * 2


def error_of(driver, address):
    reader = Reader(driver, address)
    error = reader.wait("#error", ".")
    assert "\n" not in error
    assert reader("return document.querySelector('#loading').hidden && !document.querySelector('#error').hidden")
    assert reader("return document.querySelector('#generate').ariaDisabled") == "true"
    return error


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("picogpt/docs/?runtime=../../nowhere", "Python can't be loaded: .*/nowhere/.* can't be reached, or is not"),
        (
            "picogpt/docs/?runtime=../../tampered",
            "Python can't be loaded: .*/tampered/numpy-.*whl can't be reached, or",
        ),
        ("picogpt/docs/?runtime=https://example.org/", r"\?runtime= names another server, example.org\. Copy"),
        ("no-worker/docs/", "Python can't run here: the browser did not start page/worker.js"),
        ("only-docs/", "can't be loaded: the server answers 404.*whole repository, not only docs/"),
    ],
)
def test_what_is_missing_is_one_line(chromium, server, address, expected):
    assert re.search(expected, error_of(chromium, server.url + address))


def test_without_the_network_there_is_one_line(chromium, server, network):
    chromium.execute_cdp_cmd("Network.clearBrowserCache", {})
    network.is_down = True
    try:
        error = error_of(chromium, server.url + "picogpt/docs/")
    finally:
        network.is_down = False
    assert re.fullmatch(
        rf"Python can't be loaded: https://{CDN}/\S+ can't be reached, or is not .* {VERSION}\. Try.*", error
    )


def test_a_page_that_is_opened_as_a_file_says_what_to_do(chromium):
    error = error_of(chromium, (ROOT / "docs" / "index.html").as_uri())
    assert "python -m http.server" in error


def test_without_webassembly_there_is_one_line(server):
    # Without its compilers, V8 has no WebAssembly. Browsers have such a mode for sites that are not trusted.
    driver = start_chromium("--js-flags=--jitless")
    try:
        error = error_of(driver, server.url + FOLDER)
    finally:
        driver.quit()
    assert error == "Python can't run here: this browser has no WebAssembly, or it is switched off."
