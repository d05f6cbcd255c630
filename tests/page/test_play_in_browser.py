"""How the page is played with, in a headless Chromium: the first text, other tokens, sliders, links, views, models."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from browser import start_firefox
from helpers import ROOT

import gpt2
from page import DOCS
from page.reader import DEFAULTS, FOLDER, READY, Reader, continued, tiny

pytestmark = pytest.mark.slow

SHOWN = "return [...document.querySelectorAll('#tokens button')].map((button) => button.textContent)"
STATE = f"const ids = shownSteps.map(({{id}}) => id); return [ids, ({SHOWN.replace('return ', '() => ')})()]"
FIRST = {**DEFAULTS, "n_tokens": 44}


@pytest.fixture(scope="module")
def loaded(chromium, server):
    reader = Reader(chromium, server.url + FOLDER)
    reader.wait("#status", READY)
    yield reader
    assert chromium.get_log("browser") == []


@pytest.fixture
def reader(loaded):
    loaded.fill(**FIRST)
    loaded.text_of()
    return loaded


# ------------------------------------------------------------------------------------------------------- the first text


def test_a_text_is_there_before_python_is_and_has_the_same_numbers_afterwards(chromium, server):
    reader = Reader(chromium, server.url + FOLDER)
    reader.wait("#tokens", ".")
    before = reader(STATE)
    assert not reader("return ready")
    assert reader.text("#text") == continued(**FIRST)[1]
    reader.wait("#status", READY)
    assert before == reader(STATE)
    assert before[0] == continued(**FIRST)[0]
    assert reader("return location.hash") == ""


def test_the_time_of_loading_is_told_in_bytes_and_seconds(chromium, server):
    chromium.execute_cdp_cmd("Network.clearBrowserCache", {})
    server.pause = 0.1
    try:
        reader = Reader(chromium, server.url + FOLDER)
        told = set()
        while not re.match(READY, reader.text("#status")):
            told.add(reader.text("#measure"))
            assert not reader.text("#error")
            time.sleep(0.02)
    finally:
        server.pause = 0.0
    words = r"Loading Python: (\d+\.\d) of (\d+\.\d) MB, \d+ s(, about \d+ s left)?\."
    loading = [re.fullmatch(words, text) for text in told]
    megabytes = {float(found[1]) for found in loading if found}
    assert len(megabytes) > 5
    assert max(float(found[2]) for found in loading if found) == pytest.approx(22.6, abs=0.5)
    starts = {found[1] for text in told if (found := re.fullmatch(r"Starting (.*), step \d of 3: \d+\.\d s\.", text))}
    assert {"Python", "NumPy"} & starts
    assert not any(name in text for text in told for name in (".py", ".whl", ".wasm", "numpy-"))


def test_tokens_and_their_alternatives_are_above_the_fold(reader):
    reader.size(1280, 800)
    try:
        bottom = "return document.querySelector(arguments[0]).getBoundingClientRect().bottom"
        assert reader(bottom, "#tokens") <= 800
        assert reader(bottom, "#candidates") <= 800
    finally:
        reader.size(1280, 900)


def test_the_command_writes_the_same_text(reader):
    assert reader.text("#command") == 'python gpt2.py "ROMEO:" --model tiny -n 44 --temperature 0.8 --seed 1'
    reader.text_of(prompt="Who's\nthere?", temperature=0, top_k=5, top_p=0.5, n_tokens=3)
    expected = "python gpt2.py 'Who'\\''s\nthere?' --model tiny -n 3 --temperature 0 --top_k 5 --top_p 0.5"
    assert reader.text("#command") == expected
    reader.text_of(prompt="--help", n_tokens=3)
    assert reader.text("#command").endswith('-n 3 --temperature 0 --top_k 5 --top_p 0.5 -- "--help"')


# ---------------------------------------------------------------------------------------------------------- played with


def take(reader, place, row):
    """Click on an alternative of a token. Return its id."""
    reader(f"document.querySelectorAll('#tokens button')[{place}].click()")
    button = reader.driver.find_elements("css selector", "#candidates tbody button")[row]
    id = int(button.get_attribute("data-take"))
    button.click()
    reader.wait("#status", "^(Done|Stopped)")
    return id


def test_a_click_on_an_alternative_goes_on_from_there(reader):
    before = [step["id"] for step in reader.steps()]
    row = next(k for k, one in enumerate(reader.steps()[6]["candidates"]) if one["id"] != before[6])
    taken = take(reader, 6, row)
    after = [step["id"] for step in reader.steps()]
    assert after[:7] == [*before[:6], taken]
    assert after[7:] != before[7:]
    assert len(after) == 44
    encoder, hparams, params = tiny()
    prompt, rng = encoder.encode("ROMEO:"), np.random.default_rng(1)
    draws = iter(after[:7])

    def choose(logits, ids):
        drawn = gpt2.sample(logits, ids, rng, 0.8)
        return next(draws, drawn)

    assert after == list(gpt2.generate(prompt, params, hparams["n_head"], 44, choose))
    assert reader.text("#text") == "ROMEO:" + encoder.decode(after)
    assert reader.text("#candidates-title").startswith(f"New token 7, id {taken}: ")  # the view stays there
    assert reader("return document.activeElement.dataset.take") == str(taken)
    assert reader("return [document.querySelector('#same').hidden, document.querySelector('#differs').hidden]") == [
        True,
        False,
    ]


def test_a_token_is_taken_although_the_sliders_and_the_prompt_have_moved(reader):
    before = [step["id"] for step in reader.steps()]
    reader.fill(temperature=1.5, prompt="JULIET:")
    row = next(k for k, one in enumerate(reader.steps()[9]["candidates"]) if one["id"] != before[9])
    taken = take(reader, 9, row)
    assert [step["id"] for step in reader.steps()][:10] == [*before[:9], taken]
    assert reader("return document.querySelector('#prompt').value") == "ROMEO:"


@pytest.mark.parametrize("settings", [{"temperature": 1.5}, {"temperature": 0}, {"top_k": 3}, {"top_p": 0.5}])
def test_a_slider_redraws_the_probabilities_of_all_tokens(reader, settings):
    before = reader.steps()
    reader.fill(**settings)
    end = time.monotonic() + 10
    while reader("return redrawing || redrawAgain"):
        assert time.monotonic() < end
    after, encoder = reader.steps(), tiny()[0]
    asked = [{**DEFAULTS, **settings}[name] for name in ("temperature", "top_k", "top_p")]
    ids = encoder.encode("ROMEO:")
    for old, new in zip(before, after):
        assert [one["p"] for one in old["candidates"]] == [one["p"] for one in new["candidates"]]
        assert old["id"] == new["id"]
        logits = gpt2.gpt2(ids, **tiny()[2], n_head=tiny()[1]["n_head"])[-1]
        expected = gpt2.token_probs(logits, ids, *asked, 1.0)[[one["id"] for one in new["candidates"]]]
        np.testing.assert_allclose([one["drawn"] for one in new["candidates"]], expected, rtol=1e-3, atol=1e-9)
        ids.append(new["id"])
    p = next(one["drawn"] for one in after[1]["candidates"] if one["id"] == after[1]["id"])
    shown = "0 %" if p == 0 else "<0.1 %" if p < 0.0005 else f"{100 * p:.1f} %"
    assert reader("return document.querySelectorAll('#tokens button small')[1].textContent") == shown
    name, value = next(iter(settings.items()))
    assert reader.text(f"output[for={name}]") == f"{value:g}"


def test_a_link_shows_what_its_sender_saw(reader, server, chromium):
    reader.text_of(prompt="My lord, “中文”\n & all", temperature=1.1, top_k=30, top_p=0.9, seed=77, n_tokens=30)
    take(reader, 4, 2)
    expected, text = reader(STATE), reader.text("#text")
    address = chromium.current_url
    assert "seed=77" in address
    chromium.get("about:blank")
    other = Reader(chromium, address)
    other.wait("#status", "^Done")
    assert (other(STATE), other.text("#text")) == (expected, text)
    assert chromium.current_url == address
    fields = ["temperature", "top_k", "top_p", "seed", "n_tokens"]
    form = "return arguments[0].map((id) => Number(document.getElementById(id).value))"
    assert other(form, fields) == [1.1, 30, 0.9, 77, 30]


def test_a_link_in_a_page_that_is_open_is_followed_and_what_does_not_fit_is_made_to(reader, server):
    wrong = "n_tokens=1e9&temperature=-5&top_k=x&top_p=2&seed=1.6&kept=x.-1"
    reader.driver.get(f"{server.url}{FOLDER}#prompt={quote('JULIET:')}&{wrong}")
    reader.wait("#given", "^JULIET:$")
    reader.wait("#status", "^Done")
    assert reader.text("#text") == continued(**DEFAULTS | {"prompt": "JULIET:", "temperature": 0, "n_tokens": 255})[1]


def test_the_view_of_explain_opens_and_draws_itself(reader):
    driver = reader.driver
    text = reader.text("#text")
    page = driver.current_window_handle
    reader.find("#inside").click()
    status = reader.wait("#status", "^The view")
    assert re.fullmatch(r"The view is ready, after \d+\.\d\d s\.", status)
    (view,) = set(driver.window_handles) - {page}
    driver.switch_to.window(view)
    try:
        assert driver.current_url.startswith("blob:")
        end = time.monotonic() + 10
        while len(driver.find_elements("css selector", "#lens td")) != 46 * 5:
            assert time.monotonic() < end
        assert driver.execute_script("return document.querySelector('#text').textContent") == text
        assert driver.execute_script("return document.querySelectorAll('#heads canvas').length") == 5
        font = "return getComputedStyle(document.querySelector('#tokens button')).fontFamily"
        assert "mono" in driver.execute_script(font)  # the style is there, too
    finally:
        driver.close()
        driver.switch_to.window(page)


# -------------------------------------------------------------------------------------------------- models of one's own


def test_a_folder_that_is_dropped_is_opened_and_sent_nowhere(reader, server, tmp_path):
    from picogpt.checkpoints.convert import main as convert

    convert([str(ROOT / "models" / "tiny"), "--to_hf", "--out", str(tmp_path / "my model")])
    server.answers.clear()
    drag = {"items": [], "files": [str(tmp_path / "my model")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": 300, "y": 300, "data": drag}
        reader.driver.execute_cdp_cmd("Input.dispatchDragEvent", event)
    reader.wait(
        "#model", "^my model, 1.4 million parameters, 4 layers of width 160 with 5 heads, context of 256 tokens"
    )
    reader.wait("#status", "^Done")
    assert reader.text("#text") == continued(**FIRST)[1]
    assert reader("return document.querySelector('#same').hidden")
    assert server.answers == []
    reader.find("#folder").send_keys(str(ROOT / "models" / "tiny"))
    reader.wait("#model", "^tiny,")
    reader.wait("#status", "^Done")


def test_a_folder_that_does_not_fit_is_refused_with_the_number_and_the_old_model_goes_on(reader, tmp_path):
    shutil.copytree(ROOT / "models" / "tiny", tmp_path / "774M")
    with open(tmp_path / "774M" / "model.ckpt.data-00000-of-00001", "r+b") as file:
        file.truncate(3_096_000_000)
    reader.find("#folder").send_keys(str(tmp_path / "774M"))
    error = reader.wait("#error", ".")
    assert error.startswith("This folder can't be opened: 774M does not fit: its weights have 3.1 GB, and ")
    reader.find("#folder").send_keys(str(DOCS / "page"))
    assert "page holds no model: it needs hparams.json" in reader.wait("#error", "page")
    assert reader.text_of().startswith("Done")
    assert reader.text("#error") == ""


# ------------------------------------------------------------------------------------------- accessibility, and Firefox


@pytest.fixture(scope="module")
def axe():
    path = os.environ.get("AXE", "")
    if not Path(path).is_file():
        pytest.skip("needs axe-core: npm install axe-core, and AXE=node_modules/axe-core/axe.min.js in the environment")
    return Path(path).read_text(encoding="utf-8")


RUN_AXE = """const [rules, done] = arguments;
const chosen = axe.getRules().map(({ ruleId }) => [ruleId, { enabled: !rules.includes(ruleId) }]);
const short = ({ id, nodes }) => [id, nodes.slice(0, 3).map(({ html }) => html)];
axe.run(document, { rules: Object.fromEntries(chosen) }).then(({ violations }) => done(violations.map(short)));"""


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", ["done", "error"])
def test_axe_finds_nothing(axe, reader, scheme, width, state):
    """By all its rules but the one of WCAG's level AAA for contrast, which asks for 7:1, also behind every shade."""
    reader.size(width, 800)
    reader.scheme(scheme)
    if state == "error":
        reader("showError('No text: a test')")
    reader(axe)
    try:
        assert reader.driver.execute_async_script(RUN_AXE, ["color-contrast-enhanced"]) == []
    finally:
        reader.size(1280, 900)
        reader.scheme("light")
        reader("showError('')")


@pytest.fixture(scope="module")
def firefox():
    driver = start_firefox()
    yield driver
    driver.quit()


class FirefoxReader(Reader):
    """A reader with Firefox, whose driver sees the page's elements, but not the variables of its scripts."""

    def __init__(self, driver, address):
        self.driver = driver
        driver.get(address)


def test_firefox_runs_the_page_too(firefox, server):
    reader = FirefoxReader(firefox, server.url + FOLDER)
    reader.wait("#tokens", ".")
    assert reader.text("#text") == continued(**FIRST)[1]
    reader.wait("#status", READY)
    reader.text_of(temperature=0, n_tokens=20)
    assert reader.text("#text") == continued(**DEFAULTS | {"temperature": 0, "n_tokens": 20})[1]
    reader.fill(temperature=2)
    reader.wait("#tokens button small", r"^\d\d\.\d %$")  # it was 100.0 %
    page = firefox.current_window_handle
    reader.find("#inside").click()
    reader.wait("#status", "^The view")
    (view,) = set(firefox.window_handles) - {page}
    firefox.switch_to.window(view)
    end = time.monotonic() + 10
    while len(firefox.find_elements("css selector", "#lens td")) != 22 * 5:
        assert time.monotonic() < end
    firefox.close()
    firefox.switch_to.window(page)


def test_firefox_refuses_changed_files_too(firefox, server):
    reader = FirefoxReader(firefox, server.url + FOLDER.replace("runtime=../../runtime", "runtime=../../tampered"))
    assert re.search("can't be loaded: .*/tampered/numpy-.*whl can't be reached, or is not", reader.wait("#error", "."))


DROP = """const [files] = arguments, transfer = new DataTransfer();
const bytes = (base64) => Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
for (const [name, base64] of files) transfer.items.add(new File([bytes(base64)], name));
document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));"""


def test_firefox_opens_files_that_are_dropped(firefox, server):
    import base64

    reader = FirefoxReader(firefox, server.url + FOLDER)
    reader.wait("#status", READY)
    files = [path for path in (ROOT / "models" / "tiny").iterdir() if path.is_file()]
    reader(DROP, [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in files])
    reader.wait("#model", "^model, 1.4 million parameters")
    reader.wait("#status", "^Done")
    assert reader.text("#text") == continued(**FIRST)[1]
    assert reader.text("#error") == ""


# ------------------------------------------------------------------------------------ at last, since it leaves the page


def test_a_model_beside_the_page_is_opened_by_its_name(chromium, server, tmp_path):
    from picogpt.checkpoints.convert import main as convert

    convert([str(ROOT / "models" / "tiny"), "--to_hf", "--out", str(tmp_path / "hf")])
    shutil.copytree(ROOT / "models" / "tiny", tmp_path / "mine")
    for kind in ("index", "data-00000-of-00001"):
        (tmp_path / "mine" / f"model.ckpt.{kind}").rename(tmp_path / "mine" / f"model-400.{kind}")
    (tmp_path / "mine" / "checkpoint").write_text('model_checkpoint_path: "model-400"\n')
    server.folders = {f"/picogpt/models/{name}/": tmp_path / name for name in ("hf", "mine")} | server.folders
    for name in ("mine", "hf"):
        reader = Reader(chromium, f"{server.url}{FOLDER}&model={name}")
        reader.wait("#status", "^Done")
        assert reader.text("#model").startswith(f"{name}, 1.4 million")
        assert reader.text("#text") == continued(**FIRST)[1]
        assert f"--model {name} " in reader.text("#command")
    reader = Reader(chromium, f"{server.url}{FOLDER}&model=nobody")
    error = reader.wait("#error", ".")
    assert re.fullmatch(
        r"There is no model nobody: \S+/models/nobody/ has neither hparams.json nor config.json\.", error
    )
    reader = Reader(chromium, f"{server.url}{FOLDER}&model=../models/tiny")
    assert reader.wait("#error", ".").startswith("?model= is no name of a folder")
    chromium.get_log("browser")  # Chromium writes a line there for each file that a server does not have
