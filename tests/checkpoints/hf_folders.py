"""Folders in both layouts of a GPT-2: change them, compare them, and ask transformers about them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from helpers import ROOT

import gpt2
from encoder import END_OF_TEXT, Encoder
from utils import FILES, META, load_hparams_and_params

TINY = ROOT / "models" / "tiny"
TRICKY = [
    "",
    " ",
    "Hello world",
    "  two  spaces \n\n\tand\r\n lines ",
    "I'll can't WE'RE o'clock 'S",
    "ünïcödé ﷽ 日本語 עברית é e\u0301 👩‍👩‍👧",
    "x" * 200 + "\0\x01\x7f\xa0\u2028",
    "3.14159, 1,000,000% ½ ² ٣",
    '"y is ?" <|endoftex|> Ġ',
]


def change_json(path: Path, **values: Any) -> None:
    """Set values in a JSON object; a missing file starts empty."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | values), encoding="utf-8")


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Replace the tensors of a safetensors file, by name, by those that `change` makes of them."""
    from safetensors.numpy import load_file, save_file

    tensors = {name: array.copy() for name, array in load_file(folder / "model.safetensors").items()}
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def assert_same_bits(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert (array.dtype, array.shape) == (theirs[name].dtype, theirs[name].shape), name
        assert array.tobytes() == theirs[name].tobytes(), name


def assert_same_files(one: Path, other: Path) -> None:
    names = set(FILES) - {META}
    assert {path.name for path in one.iterdir()} == names == {path.name for path in other.iterdir()}
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def assert_same_tokens(hf: Path, encoder: Encoder | None) -> None:
    """Check that transformers' tokenizer of a folder and ours agree on tricky texts."""
    import transformers

    assert encoder
    theirs = transformers.AutoTokenizer.from_pretrained(hf, local_files_only=True)
    assert len(theirs) == len(encoder.decoder)
    for text in TRICKY:
        assert theirs(text)["input_ids"] == encoder.encode(text), text
        assert theirs.decode(encoder.encode(text), clean_up_tokenization_spaces=False) == text
    text = f"a{END_OF_TEXT} b"  # transformers always takes it for the special token
    assert theirs(text)["input_ids"] == encoder.encode(text, allowed_special=[END_OF_TEXT])
    assert theirs.eos_token_id == encoder.encoder[END_OF_TEXT]


def only_tokenizer_json(folder: Path, tokenizer: Any = None) -> Path:
    """Replace vocab.json and merges.txt by the tokenizer.json that transformers makes of them, or of a tokenizer."""
    import transformers

    tokenizer = tokenizer or transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").unlink(missing_ok=True)
    (folder / "merges.txt").unlink(missing_ok=True)
    assert (folder / "tokenizer.json").exists()
    return folder / "tokenizer.json"


def transformers_ids(folder: Path, ids: list[int], n: int) -> list[int]:
    """Return the n ids that transformers generates. <|endoftext|> does not end the text, as in gpt2.generate."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    model.generation_config.eos_token_id = None
    prompt = torch.tensor([ids])
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine, threads that wait for each other take ten times as long
    try:
        with torch.no_grad():
            out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=n, do_sample=False)
    finally:
        torch.set_num_threads(n_threads)
    return out[0, len(ids) :].tolist()


def our_ids(folder: Path, ids: list[int], n: int) -> list[int]:
    hparams, params = load_hparams_and_params(folder)
    return list(gpt2.generate(ids, params, hparams["n_head"], n))
