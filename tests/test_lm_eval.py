"""lm-evaluation-harness on gpt2.py: the same answers as from the harness's own model `hf`, and the command.

All tasks here are ours, with data in a local JSON file, so that nothing needs a network.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, assert_error, run_command, run_main, their_gpt2

import gpt2
from encoder import END_OF_TEXT
from picogpt.checkpoints.convert import to_hf
from picogpt.command_line import UsageError
from picogpt.options import require

needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm_eval")

N_CTX = 256  # of models/tiny
SPEECH = "The king is gone, and I will not\nfollow him to the sea.\n\nNURSE:\nMy lord, what news? "
LONG = SPEECH * 20  # more tokens than the model has positions
DATA = {
    "last_word": [
        {"context": "To be, or not to", "target": " be"},  # the model's own choice
        {"context": "To be, or not to", "target": " swim"},
        {"context": "I am glad to hear ", "target": "it"},  # the space belongs to the continuation
        {"context": "", "target": "ROMEO:"},
        {"context": "", "target": f"{END_OF_TEXT}ROMEO:"},
        {"context": f"The end.{END_OF_TEXT}ROMEO", "target": ":"},
        {"context": LONG, "target": " Nothing, my good friend"},
        {"context": "Well", "target": LONG[:580]},  # exactly N_CTX ids, so that one id of context is left
    ],
    "choice": [
        {"context": "Good morrow, sweet", "choices": ["lady", "lord of the seas", "sir"], "gold": 1},
        {"context": LONG, "choices": ["None.", "The king, my lord, the king!", "x"], "gold": 0},
    ],
    "whole_text": [{"text": text} for text in ("A", SPEECH, LONG, LONG * 2 + "The end", "", "Ünïcödé 漢字 \x00 🙂")],
    "generate": [{"context": text} for text in ("ROMEO:\n", "What is the", "No more of this:", LONG, LONG[:777])],
}
TASKS: dict[str, dict[str, Any]] = {
    "last_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{target}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    },
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "whole_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "generate": {
        "output_type": "generate_until",
        "doc_to_text": "{{context}}",
        "doc_to_target": "",
        "generation_kwargs": {"until": ["\n\n", "business"], "max_gen_toks": 30, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def write_tasks(folder: Path) -> Path:
    """Write the data of each task as JSON Lines, and its configuration, which is JSON and therefore also YAML."""
    for name, task in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(document) + "\n" for document in DATA[name]), encoding="utf-8")
        source = {"dataset_path": "json", "test_split": "test", "metadata": {"version": 1}}
        kwargs = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **source, "dataset_kwargs": kwargs, **task}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("lm_eval")
    from picogpt.lm_eval import PicoGPT

    return PicoGPT("tiny", str(ROOT / "models"))


def evaluate(model: Any, folder: Path, **settings: Any) -> Any:
    """Let the harness run our tasks."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return lm_eval.simple_evaluate(model=model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0, **settings)


@pytest.fixture(scope="module")
def ours(model, folder):
    return evaluate("picogpt", folder, model_args={"model_size": "tiny", "models_dir": str(ROOT / "models")})


@pytest.fixture(scope="module")
def theirs(folder):
    """The results of the harness's own model for transformers, with the same weights."""
    for name in ("lm_eval", "torch", "transformers", "accelerate", "safetensors"):
        pytest.importorskip(name)
    to_hf(ROOT / "models" / "tiny", folder / "hf")
    from lm_eval.models.huggingface import HFLM

    return evaluate(HFLM(str(folder / "hf"), device="cpu", dtype="float32", batch_size=1), folder)


def answers(results: Any, task: str) -> list[Any]:
    """Return the answers of the model: those to each document, in order."""
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [answer[0] for sample in samples for answer in sample["resps"]]


def requests(*args: Any) -> list[Any]:
    return [SimpleNamespace(args=arg) for arg in args]


def same(ours: list[float], theirs: list[float]) -> bool:
    """Return whether log-likelihoods are the same to 1e-4, and to the last two bits: hf adds up in float32."""
    return np.allclose(ours, theirs, rtol=2**-22, atol=1e-4)


# ---------------------------------------------------------------------------------------------- the answers, as of hf


@pytest.mark.slow
@pytest.mark.parametrize(("task", "n"), [("last_word", 8), ("choice", 6)])
def test_log_likelihoods_and_greedy_flags_are_those_of_hf(ours, theirs, task, n):
    mine, expected = answers(ours, task), answers(theirs, task)
    assert len(mine) == len(expected) == n
    assert same([value for value, _ in mine], [value for value, _ in expected])
    assert [flag for _, flag in mine] == [flag for _, flag in expected]
    assert all(type(value) is float and type(flag) is bool for value, flag in mine)  # as JSON and the cache need them
    assert {flag for _, flag in mine} == {True, False}


@pytest.mark.slow
def test_whole_texts_are_scored_as_by_hf(ours, theirs):
    mine, expected = answers(ours, "whole_text"), answers(theirs, "whole_text")
    assert len(mine) == len(DATA["whole_text"])
    assert same(mine, expected)
    assert min(mine) < -4000  # the longest text fills several windows


@pytest.mark.slow
def test_generated_texts_are_those_of_hf(ours, theirs):
    mine = answers(ours, "generate")
    assert mine == answers(theirs, "generate")
    assert len(set(mine)) == len(DATA["generate"])
    assert all(mine)
    assert not any(stop in text for text in mine for stop in ("\n\n", "business"))


@pytest.mark.slow
def test_the_metrics_are_those_of_hf(ours, theirs):
    for task, metrics in theirs["results"].items():
        numbers = {name: value for name, value in metrics.items() if name.endswith(",none") and "stderr" not in name}
        assert len(numbers) == len(TASKS[task]["metric_list"])
        for name, value in numbers.items():
            assert ours["results"][task][name] == pytest.approx(value, rel=1e-4), (task, name)
    assert ours["config"]["model_num_parameters"] == theirs["config"]["model_num_parameters"]
    assert ours["config"]["model_dtype"] == "float32"


# ------------------------------------------------------------------------------------------------------- the requests


def plain_pass(model: Any, context: list[int], targets: list[int]) -> tuple[float, bool]:
    """Return the log-likelihood of the targets and the greedy flag, by a forward pass that is not gpt2.py's."""
    logits = their_gpt2([*context, *targets[:-1]], **model.params, n_head=5)[len(context) - 1 :].astype(np.float64)
    values = logits[range(len(targets)), targets] - np.log(np.exp(logits).sum(axis=-1))
    return pytest.approx(values.sum(), abs=1e-3), logits.argmax(axis=-1).tolist() == targets


@needs_harness
def test_answers_are_those_of_plain_passes_and_are_kept_for_the_cache(model, monkeypatch):
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    kept: list[Any] = []
    monkeypatch.setattr(model, "cache_hook", SimpleNamespace(add_partial=lambda *answer: kept.append(answer)))
    words = [
        ("To be, or not to", " be"),
        ("I said", " that"),
        (f"The end.{END_OF_TEXT}ROMEO", ":"),
        ("Well", LONG[:580]),
    ]
    pairs = [[model.encoder.encode(text, {END_OF_TEXT}) for text in pair] for pair in words]
    assert len(pairs[-1][1]) == N_CTX  # which leaves room for one id of the context
    expected = [plain_pass(model, context[-(N_CTX + 1 - len(new)) :], new) for context, new in pairs]
    assert {flag for _, flag in expected} == {True, False}
    assert model.loglikelihood(requests(*words), disable_tqdm=True) == expected
    texts, expected = [LONG, "A", LONG + "the end"], []
    for text in texts:
        rolling = get_rolling_token_windows(model.encoder.encode(text), model.end, N_CTX, context_len=1)
        expected.append(sum(plain_pass(model, *make_disjoint_window(window))[0].expected for window in rolling))
    assert model.loglikelihood_rolling(requests(*zip(texts)), disable_tqdm=True) == pytest.approx(expected, abs=5e-3)
    assert [key for _, key, _ in kept] == [*words, *zip(texts)]
    assert [answer for *_, answer in kept[-3:]] == pytest.approx(expected, abs=5e-3)


@needs_harness
def test_a_context_that_is_too_long_loses_its_first_ids(model, caplog):
    context, targets = list(range(300)), [5, 6]
    whole = model._loglikelihood_tokens([(("a", "b"), context, targets)])
    assert "1 of 1 contexts are too long for the model" in caplog.text
    caplog.clear()
    for n_kept, is_same in ((N_CTX - 1, True), (N_CTX - 2, False)):
        kept = model._loglikelihood_tokens([(("a", "b"), context[-n_kept:], targets)])
        assert (kept[0][0] == pytest.approx(whole[0][0], rel=1e-6)) == is_same
    assert caplog.text == ""


@needs_harness
@pytest.mark.parametrize("n_targets", [0, N_CTX + 1])
def test_a_continuation_that_can_not_be_scored_is_named(model, n_targets):
    with pytest.raises(ValueError, match=f"'words' of 'A few' has {n_targets} tokens, but 1 to n_ctx = 256"):
        model._loglikelihood_tokens([(("A few", "words"), [1], [2] * n_targets)])


@needs_harness
def test_a_model_without_end_of_text_says_so(model, monkeypatch):
    monkeypatch.setattr(model, "end", None)
    for call in (
        lambda: model.loglikelihood_rolling(requests(("A",))),
        lambda: model.loglikelihood(requests(("", "A"))),
    ):
        with pytest.raises(UsageError, match=re.escape(f"but tiny has no {END_OF_TEXT}")):
            call()
    assert model.loglikelihood(requests(("A", " B")))[0][0] < 0
    assert len(model.tok_encode(END_OF_TEXT)) > 1


@needs_harness
def test_a_model_argument_that_does_not_exist_is_named():
    from picogpt.lm_eval import PicoGPT

    with pytest.raises(UsageError, match="'pretrained' is neither model_size nor models_dir"):
        PicoGPT.create_from_arg_string("pretrained=gpt2,model_size=tiny", {"batch_size": 1, "device": None})
    made = PicoGPT.create_from_arg_string("model_size=tiny", {"batch_size": 1, "device": "cuda:0"})
    assert (made.max_length, made.max_gen_toks) == (N_CTX, N_CTX // 2)


@needs_harness
def test_an_interrupted_run_keeps_its_answers(model, tmp_path, monkeypatch):
    import lm_eval.api.model

    import picogpt.lm_eval

    calls: list[int] = []

    def score_windows(*args, **kwargs):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return score(*args, **kwargs)

    pairs = [(f"{n} and", " two") for n in range(5)]
    expected = model.loglikelihood(requests(*pairs))
    score = picogpt.lm_eval.score_windows
    monkeypatch.setattr(picogpt.lm_eval, "N_TOGETHER", 2)
    monkeypatch.setattr(picogpt.lm_eval, "score_windows", score_windows)
    monkeypatch.setattr(model, "cache_hook", model.cache_hook)  # put back what CachingLM replaces
    cached = lm_eval.api.model.CachingLM(model, str(tmp_path / "cache.db"))
    with pytest.raises(KeyboardInterrupt):
        cached.loglikelihood(requests(*pairs))
    calls.clear()
    values = [value for value, _ in cached.loglikelihood(requests(*pairs))]
    assert values == pytest.approx([value for value, _ in expected])
    assert len(calls) == 1  # the other four were in the cache
    cached.dbdict.close()


# ------------------------------------------------------------------------------------------------------ generated text


def generated(model: Any, context: str = "ROMEO:", seed: int = 0, **settings: Any) -> str:
    np.random.seed(seed)
    return model.generate_until(requests((context, {"until": [], "max_gen_toks": 20} | settings)))[0]


@needs_harness
def test_sampling_follows_its_settings(model):
    greedy = generated(model)
    assert greedy == model.encoder.decode(gpt2.generate(model.tok_encode("ROMEO:"), model.params, 5, 20))
    assert generated(model, temperature=0.8, do_sample=False) == greedy
    assert generated(model, do_sample=True, top_k=1) == greedy
    assert generated(model, temperature=2, top_p=0) == greedy
    assert generated(model, repetition_penalty=5) != greedy
    drawn = generated(model, temperature=1.5)
    assert drawn != greedy
    assert drawn == generated(model, temperature=1.5) == generated(model, temperature=1.5, do_sample=True)
    assert drawn != generated(model, temperature=1.5, seed=1)


@needs_harness
def test_a_text_ends_before_end_of_text(model, monkeypatch):
    ids = list(gpt2.generate(model.tok_encode("ROMEO:"), model.params, 5, 20))
    monkeypatch.setattr(model, "end", ids[7])
    monkeypatch.setattr(model, "tok_encode", model.encoder.encode)
    assert generated(model) == model.encoder.decode(ids[: ids.index(ids[7])])


@needs_harness
def test_a_text_ends_before_the_first_of_its_stops(model):
    whole = generated(model)
    for until in (["born", "been"], ["been", "", "born"]):
        assert generated(model, until=until) == whole.partition("been")[0] != whole.partition("born")[0] != whole


@needs_harness
@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "temperature": 0.9, "top_p": 0.9}])
def test_texts_side_by_side_are_those_of_one_after_the_other(model, monkeypatch, sampling):
    """Of contexts of three lengths, with ends of several kinds. `forward` counts the calls of the model."""
    import picogpt.lm_eval

    ends = [{"until": ["\n\n", ","]}, {"until": [","]}, {"until": []}, {"until": [" the", "\n"], "max_gen_toks": 9}]
    contexts = ["ROMEO:", "JULIET:", "", "What is", "No more", "The king", LONG, LONG[:777]]
    wanted = [(context, {"max_gen_toks": 20} | end | sampling) for end in ends for context in contexts]
    calls, forward = [], gpt2.gpt2
    monkeypatch.setattr(gpt2, "gpt2", lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs))
    kept = []
    monkeypatch.setattr(model.cache_hook, "add_partial", lambda name, args, text: kept.append((args, text)))
    np.random.seed(1)
    together = model.generate_until(requests(*wanted))
    n_calls = len(calls)
    monkeypatch.setattr(picogpt.lm_eval, "N_GENERATED", 1)
    np.random.seed(1)
    assert model.generate_until(requests(*wanted)) == together
    assert n_calls < 0.7 * (len(calls) - n_calls)
    assert sorted(kept[: len(wanted)], key=str) == sorted(zip(wanted, together), key=str)
    assert len(set(together)) > 20
    assert not any("," in text for text in together[:16])
    if not sampling:
        ids = gpt2.generate(model.tok_encode("JULIET:"), model.params, 5, 20)
        assert together[17] == model.encoder.decode(ids)


@needs_harness
def test_contexts_that_are_empty_or_fill_their_room_exactly(model, caplog):
    assert generated(model, "") == model.encoder.decode(gpt2.generate([model.eot_token_id], model.params, 5, 20))
    room = model.encoder.encode(LONG)[: N_CTX - 20]
    expected = model.encoder.decode(gpt2.generate(room, model.params, 5, 20))
    assert generated(model, model.encoder.decode(room)) == expected
    assert caplog.text == ""
    assert generated(model, "x" + model.encoder.decode(room)) == expected
    assert "1 of 1 contexts are too long" in caplog.text


@needs_harness
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_gen_toks": 256}, "max_gen_toks is 256, but tiny has n_ctx = 256"),
        ({"temperature": 1, "top_p": 1.5}, "top_p=1.5"),
        ({"temperature": -1, "do_sample": True}, "temperature=-1"),
    ],
)
def test_a_setting_out_of_range_is_named(model, settings, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        generated(model, **settings)


@needs_harness
def test_settings_that_do_not_exist_are_named(model, caplog):
    assert generated(model, num_beams=4) == generated(model)
    assert "no generation setting num_beams:" in caplog.text


# --------------------------------------------------------------------------------------------------------- the command


def test_help_and_missing_tasks():
    result = run_main("picogpt lm_eval", "--help")
    assert result.status == 0
    assert "python -m picogpt lm_eval --tasks" in result.out
    assert_error(run_main("picogpt lm_eval", "--model_size", "tiny"), 2, "picogpt lm_eval: --tasks is missing")


def test_without_the_harness(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name))
    assert_error(run_main("picogpt lm_eval", "--tasks", "x"), 1, "lm_eval is not installed: pip install lm_eval")
    with pytest.raises(OSError, match="lm_eval"):
        require("lm_eval")


@needs_harness
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tasks", "x", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["--tasks", "x", "--limit", "few"], "argument --limit/-L: invalid float value: 'few'"),
        (["--limit", "1"], "--tasks is missing"),
        (["--tasks", "x", "--model_args", "pretrained=gpt2"], "--model and --models_dir name the model"),
    ],
)
def test_wrong_options(options, words):
    assert_error(run_main("picogpt lm_eval", *options), 2, words)


@needs_harness
@pytest.mark.slow
def test_the_command(folder, ours, tmp_path):
    options = ["--include_path", folder, "--model_size", "tiny", "--output_path", tmp_path / "results"]
    result = run_command("picogpt lm_eval", "--tasks", "choice", "whole_text", *options, HF_HOME=str(tmp_path))
    assert result.status == 0, result.err
    value = ours["results"]["whole_text"]["bits_per_byte,none"]
    assert re.search(rf"^\|whole_text.*\|bits_per_byte\|↓ *\| *{value:.4f}\|", result.out, re.MULTILINE), result.out
    (written,) = (tmp_path / "results").rglob("*.json")
    assert json.loads(written.read_text(encoding="utf-8"))["results"]["whole_text"]["bits_per_byte,none"] == value


@needs_harness
@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nobody/no-such-data", "Couldn't reach 'nobody/no-such-data' on the Hub"),
        ("json", "can't read the data of a task: An error occurred while generating the dataset"),
    ],
)
@pytest.mark.usefixtures("offline")
def test_an_unreachable_hub_and_broken_data_are_one_line(folder, tmp_path, source, message):
    (tmp_path / "broken.jsonl").write_text('{"text": "A"}\n{"text"')
    task = json.loads((folder / "whole_text.yaml").read_text()) | {"task": "broken", "dataset_path": source}
    task["dataset_kwargs"] = {"data_files": {"test": str(tmp_path / "broken.jsonl")}, "cache_dir": str(tmp_path)}
    (tmp_path / "broken.yaml").write_text(json.dumps(task))
    result = run_main("picogpt lm_eval", "--tasks", tmp_path / "broken.yaml", "--model_size", "tiny")
    assert (result.status, "Traceback" in result.err) == (1, False), result.err
    assert result.err.splitlines()[-1].startswith(f"picogpt lm_eval: {message}")


WRONG_TASKS = {
    "the YAML": ("a: [", "did not find expected node content"),
    "no mapping": ("[1]", "Expected YAML dict"),
    "a field": ({"doc_to_text": "{{nofield}}"}, "'nofield' is undefined"),
    "a template": ({"doc_to_text": "{{text"}, "unexpected end of template"),
    "a metric": (
        {"metric_list": [{"metric": "foo"}]},
        "names what does not exist, such as a metric or a split (KeyErr",
    ),
    "a split": ({"test_split": "tset"}, "names what does not exist, such as a metric or a split (KeyError: 'tset')"),
    "no text": ({"doc_to_text": None}, "an entry is missing, or names what does not exist"),
}


@pytest.fixture
def offline(monkeypatch):
    """Let the harness know no tasks but those of a file, and nothing of a network."""
    from lm_eval.tasks import TaskManager

    own = functools.partial(TaskManager, include_defaults=False)  # it takes seconds to list thousands of tasks
    monkeypatch.setattr("lm_eval.tasks.TaskManager", own)
    for name in ("datasets.config", "huggingface_hub.constants"):
        monkeypatch.setattr(f"{name}.HF_HUB_OFFLINE", True)


@needs_harness
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "a metric" else []) for name in WRONG_TASKS]
)
def test_a_wrong_task_is_one_line(folder, tmp_path, name):
    content, message = WRONG_TASKS[name]
    task = json.loads((folder / "last_word.yaml").read_text())
    path = tmp_path / "wrong.yaml"
    path.write_text(content if isinstance(content, str) else json.dumps(task | content))
    result = run_main("picogpt lm_eval", "--tasks", path, "--model_size", "tiny")
    assert (result.status, "Traceback" in result.err) == (2, False), result.err
    assert result.err.splitlines()[-1].startswith(f"picogpt lm_eval: can't use --tasks {path}: ")
    assert message in result.err.splitlines()[-1]


@needs_harness
@pytest.mark.usefixtures("offline")
def test_a_mistake_of_ours_keeps_its_traceback(folder, monkeypatch):
    def wrong(*args, **kwargs):
        raise KeyError("ours")

    monkeypatch.setattr("picogpt.lm_eval.score_windows", wrong)
    with pytest.raises(KeyError, match="ours"):
        run_main("picogpt lm_eval", "--tasks", folder / "last_word.yaml", "--model_size", "tiny")


def test_a_path_gives_no_slash_to_the_names_of_the_harness_s_files():
    pytest.importorskip("lm_eval")
    from picogpt.lm_eval import PicoGPT

    assert PicoGPT(f"{ROOT / 'models' / 'tiny'}/").tokenizer_name == "picogpt-tiny"
