"""`python -m picogpt models`, and one thread for small models."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from helpers import ROOT, run_main

from picogpt import threads
from utils import DATA, SIZES

TINY = ROOT / "models" / "tiny"


def rows(folder: Path) -> list[str]:
    result = run_main("picogpt models", "--models_dir", folder)
    assert (result.status, result.err) == (0, "")
    return [" ".join(line.split()) for line in result.out.splitlines()[1:]]


def test_the_models_that_are_there_and_those_that_can_be_downloaded(tmp_path):
    shutil.copytree(TINY, tmp_path / "mine")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    (tmp_path / "hf" / "model.safetensors").write_bytes(bytes(8))
    (tmp_path / "355M").mkdir()  # a download that was interrupted before the weights
    (tmp_path / "355M" / "hparams.json").write_text("{}")
    broken, mine, *downloads = rows(tmp_path)
    assert broken == f"hf {tmp_path / 'hf' / 'config.json'}: vocab_size is None, not a positive whole number"
    assert mine == f"mine 4 160 5 256 1024 6 MB {tmp_path / 'mine'}"
    assert downloads[1] == "355M 24 1024 16 1024 50257 1,419 MB can be downloaded"
    assert [row.split()[0] for row in downloads] == list(SIZES)


@pytest.mark.parametrize(
    ("words", "is_set"),
    [
        ("-m tiny", True),
        ("-mtiny", True),
        ("--model=tiny", True),
        ("--model-size tiny", True),
        ("--model_size models/tiny/", True),
        ("--model tiny,tiny", True),
        ("--model tiny,large", False),
        ("--model large", False),
        ("--model nothing", False),
        ("-m tiny -m large", False),
        ("tiny", False),
    ],
)
def test_one_thread_for_small_models(words, is_set, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "large").mkdir(parents=True)
    with open(tmp_path / "models" / "large" / DATA, "wb") as file:
        file.truncate(threads.SMALL + 1)
    threads.one_thread_for_small_models(["picogpt score", "text", *words.split()])
    assert os.environ == ({"OPENBLAS_NUM_THREADS": "1"} if is_set else {})


def test_the_user_s_number_of_threads_stays(monkeypatch):
    monkeypatch.setattr(os, "environ", {"OPENBLAS_NUM_THREADS": "3"})
    threads.one_thread_for_small_models(["picogpt score", "--model", "tiny"])
    assert os.environ == {"OPENBLAS_NUM_THREADS": "3"}
