"""lm-evaluation-harness on gpt2.py: the same answers as from the harness's own model `hf`, and the command.

All tasks here are ours, with data in a local JSON file, so that nothing needs a network.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, assert_error, run_command, run_main

import gpt2
from encoder import END_OF_TEXT
from picogpt.checkpoints.convert import to_hf
from picogpt.options import require
from utils import UsageError

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
        {"context": "Well", "target": LONG[:600]},
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
        "generation_kwargs": {"until": ["\n\n", "my lord"], "max_gen_toks": 30, "do_sample": False},
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


# ---------------------------------------------------------------------------------------------- the answers, as of hf


@pytest.mark.slow
@pytest.mark.parametrize(("task", "n"), [("last_word", 8), ("choice", 6)])
def test_log_likelihoods_and_greedy_flags_are_those_of_hf(ours, theirs, task, n):
    mine, expected = answers(ours, task), answers(theirs, task)
    assert len(mine) == len(expected) == n
    assert np.allclose([value for value, _ in mine], [value for value, _ in expected], rtol=0, atol=1e-4)
    assert [flag for _, flag in mine] == [flag for _, flag in expected]
    assert all(type(value) is float and type(flag) is bool for value, flag in mine)  # as JSON and the cache need them
    assert {flag for _, flag in mine} == ({True, False} if task == "last_word" else {False})


@pytest.mark.slow
def test_whole_texts_are_scored_as_by_hf(ours, theirs):
    mine, expected = answers(ours, "whole_text"), answers(theirs, "whole_text")
    assert len(mine) == len(DATA["whole_text"])
    assert np.allclose(mine, expected, rtol=0, atol=1e-4 * N_CTX / 32)
