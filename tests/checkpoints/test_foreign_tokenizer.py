"""The tokenizers of Hugging Face folders: the same ids as transformers', added tokens, and every refusal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ODD, random_params, relative, shared, their_logits, transformers_model

import gpt2
from encoder import END_OF_TEXT
from picogpt.checkpoints.foreign import open_encoder, open_model
from picogpt.checkpoints.tokenizer import read_tokenizer

for module in ("torch", "transformers", "safetensors"):
    pytest.importorskip(module, reason=f"foreign tokenizers are checked with {module}: requirements-dev.txt")

import transformers  # noqa: E402
from hf_folders import TINY, assert_same_tokens, change_json, change_tensors, only_tokenizer_json  # noqa: E402

from picogpt.checkpoints import convert  # noqa: E402


@pytest.mark.parametrize("merges_as", ["lists", "strings"])
def test_a_tokenizer_json_alone(tmp_path, merges_as):
    convert.to_hf(TINY, tmp_path / "hf")
    path = only_tokenizer_json(tmp_path / "hf")
    content = json.loads(path.read_text(encoding="utf-8"))
    merges = [" ".join(m) if isinstance(m, list) else m for m in content["model"]["merges"]]
    content["model"]["merges"] = [m.split(" ") for m in merges]
    if merges_as == "strings":  # as older files have them, which also leave out the type
        content["model"] = {**content["model"], "merges": merges}
        del content["model"]["type"]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert_same_tokens(tmp_path / "hf", read_tokenizer(tmp_path / "hf"))


def test_vocab_json_and_merges_txt(tmp_path):
    convert.to_hf(TINY, tmp_path / "hf")
    assert_same_tokens(tmp_path / "hf", read_tokenizer(tmp_path / "hf"))


def test_tokenizer_json_counts_where_there_is_both(tmp_path):
    """As in transformers: an older vocab.json may be left behind."""
    convert.to_hf(TINY, tmp_path / "hf")
    files = {name: (tmp_path / "hf" / name).read_text(encoding="utf-8") for name in ("vocab.json", "merges.txt")}
    only_tokenizer_json(tmp_path / "hf")
    merges = files["merges.txt"].split("\n")
    for name, text in (files | {"merges.txt": "\n".join([merges[0], *merges[:0:-1]])}).items():
        (tmp_path / "hf" / name).write_text(text, encoding="utf-8")
    assert_same_tokens(tmp_path / "hf", read_tokenizer(tmp_path / "hf"))


@pytest.mark.parametrize("only_json", [False, True])
def test_the_real_tokenizer(tmp_path, only_json):
    openai = shared("openai-117M")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    shutil.copy(openai / "encoder.json", tmp_path / "vocab.json")
    shutil.copy(openai / "vocab.bpe", tmp_path / "merges.txt")
    if only_json:
        only_tokenizer_json(tmp_path)
    assert_same_tokens(tmp_path, open_encoder(tmp_path))


# --------------------------------------------------------------------------------------------------------- added tokens

ADDED = ["[PAD]", "<|user|>", "<|user|>!", "zwölf Töne"]
TEXT = "a<|user|>b [PAD]\n<|user|>!zwölf Töne <|user |>"


@pytest.fixture
def with_added(small: Path) -> Path:
    """Add special tokens as a user of transformers does, and save model and tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(small)
    tokenizer.add_special_tokens({"additional_special_tokens": ADDED[1:], "pad_token": ADDED[0]})
    model = transformers.AutoModelForCausalLM.from_pretrained(small)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(small)
    only_tokenizer_json(small, tokenizer)
    return small


def assert_same_added_tokens(theirs: Path, ours: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(theirs)
    model = transformers.GPT2LMHeadModel.from_pretrained(theirs).eval()
    encoder, hparams, params = open_model(ours)
    ids = encoder.encode(TEXT, allowed_special=ADDED)
    assert ids == tokenizer(TEXT)["input_ids"]
    assert {*ids} >= {300, 301, 302, 303}
    assert encoder.decode(ids) == TEXT == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert encoder.encode(END_OF_TEXT, allowed_special=[END_OF_TEXT]) == [299] == tokenizer(END_OF_TEXT)["input_ids"]
    assert [encoder.special_tokens[token] for token in ADDED] == [300, 301, 302, 303]
    assert hparams["n_vocab"] == 304
    assert relative(gpt2.gpt2(ids[:17], **params, n_head=3), their_logits(model, ids[:17])) < 1e-6


def test_added_tokens_are_special_tokens(with_added):
    assert_same_added_tokens(with_added, with_added)


def test_added_tokens_survive_every_conversion(with_added, tmp_path):
    convert.to_hf(with_added, tmp_path / "hf")
    assert_same_added_tokens(with_added, tmp_path / "hf")
    assert_same_added_tokens(tmp_path / "hf", with_added)
    convert.from_hf(str(tmp_path / "hf"), tmp_path / "openai")
    convert.to_hf(tmp_path / "openai", tmp_path / "back")
    assert_same_added_tokens(tmp_path / "back", tmp_path / "hf")
    convert.from_hf(str(tmp_path / "back"), tmp_path / "again")
    for name in ("encoder.json", "vocab.bpe", "hparams.json"):
        assert (tmp_path / "openai" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("file", ["added_tokens.json", "tokenizer_config.json"])
def test_older_files_that_list_added_tokens(small, file):
    ids = {token: 300 + i for i, token in enumerate(ADDED)}
    by_id = {str(id): {"content": token, "special": True} for token, id in ids.items()}
    change_json(small / file, **(ids if file == "added_tokens.json" else {"added_tokens_decoder": by_id}))
    change_json(small / "config.json", vocab_size=304)
    wte = np.random.default_rng(0).standard_normal((304, 21), np.float32)
    change_tensors(small, lambda tensors: tensors | {"transformer.wte.weight": wte})
    assert_same_added_tokens(small, small)


def test_added_words_are_found_only_where_they_are_allowed(small, caplog):
    tokenizer = transformers.AutoTokenizer.from_pretrained(small)
    tokenizer.add_tokens(["word", "other"])
    only_tokenizer_json(small, tokenizer)
    encoder = read_tokenizer(small)
    assert encoder.encode("a word") != tokenizer("a word")["input_ids"]
    assert encoder.encode("a word", allowed_special=["word"]) == tokenizer("a word")["input_ids"]
    assert "2 added words, such as 'other', are ordinary text unless `allowed_special` names them" in caplog.text


def test_end_of_text_may_be_an_added_token(small):
    vocab = json.loads((small / "vocab.json").read_text(encoding="utf-8"))
    del vocab[END_OF_TEXT]
    (small / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    change_json(small / "added_tokens.json", **{END_OF_TEXT: 299})
    assert open_encoder(small).encoder[END_OF_TEXT] == 299


# ------------------------------------------------------------------------------------------------ none, and the others


def test_a_folder_without_a_tokenizer_gets_openai_s(tmp_path, caplog):
    """Also with a padded vocabulary. The tokenizer is searched for in models_dir."""
    openai = shared("openai-117M")
    for name in ("encoder.json", "vocab.bpe"):
        (tmp_path / "models" / "124M").mkdir(parents=True, exist_ok=True)
        shutil.copy(openai / name, tmp_path / "models" / "124M")
    hparams = ODD | {"n_vocab": 50304, "n_embd": 3}
    transformers_model(random_params(hparams), hparams, "float32").save_pretrained(tmp_path / "mine")
    encoder, hparams, params = open_model(tmp_path / "mine", tmp_path / "models")
    assert encoder.encode("Hello world") == [15496, 995]
    assert (hparams["n_vocab"], params["wte"].shape) == (50257, (50257, 3))
    assert f"{tmp_path / 'mine'} has no tokenizer, so OpenAI's is taken" in caplog.text


def test_no_tokenizer(small):
    (small / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer: neither tokenizer.json nor vocab.json and merges"):
        open_model(small)


def assert_refused(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=r"tokenizer|JSON") as caught:
        read_tokenizer(folder)
    assert str(caught.value).startswith(str(folder))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("tokenizer_config.json", {"add_prefix_space": True}, "add_prefix_space in tokenizer_config.json is True"),
        ("tokenizer_config.json", {"add_bos_token": True}, "add_bos_token in tokenizer_config.json is True"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "a file of the tokenizer is damaged"),
        ("added_tokens.json", {"<|endoftext|>": 5}, "not GPT-2's tokenizer"),
        ("added_tokens.json", {"<pad>": 301}, "not GPT-2's tokenizer"),
        ("vocab.json", {"a": {}}, "a file of the tokenizer is damaged"),
        ("vocab.json", {"extra": 299}, "not GPT-2's tokenizer"),
    ],
)
def test_tokenizers_that_are_not_gpt2_s(small, file, values, message):
    change_json(small / file, **values)
    assert_refused(small, message)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("", {"normalizer": {"type": "NFC"}}, "normalizer in tokenizer.json is {'type': 'NFC'}, not None"),
        ("pre_tokenizer", {"add_prefix_space": True}, "add_prefix_space in tokenizer.json is True, not False"),
        ("pre_tokenizer", {"use_regex": False}, "use_regex in tokenizer.json is False, not True"),
        ("pre_tokenizer", {"type": "Split"}, "its pre_tokenizer in tokenizer.json is 'Split', not 'ByteLevel'"),
        ("model", {"type": "Unigram"}, "its model in tokenizer.json is 'Unigram', not 'BPE'"),
        ("model", {"ignore_merges": True}, "ignore_merges in tokenizer.json is True"),
        ("model", {"dropout": 0.1}, "dropout in tokenizer.json is 0.1, not None"),
        ("", {"post_processor": {"special_tokens": {"<s>": {}}}}, "post_processor in tokenizer.json is {'<s>': {}}"),
        ("", {"model": [1]}, "a file of the tokenizer is damaged"),
        ("model", {"vocab": ["a"]}, "a file of the tokenizer is damaged"),
        ("model", {"merges": [["a", "b", "c"]]}, "the merge 'a b c' is not two symbols"),
        ("", {"added_tokens": ["x"]}, "a file of the tokenizer is damaged"),
    ],
)
def test_tokenizer_json_that_is_not_gpt2_s(small, part, changes, message):
    path = only_tokenizer_json(small)
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    (content[part] if part else content).update(changes)
    path.write_text(json.dumps(content), encoding="utf-8")
    assert_refused(small, message)


def test_files_that_are_cut_short(small):
    data = (small / "vocab.json").read_bytes()
    (small / "vocab.json").write_bytes(data[:-5])
    assert_refused(small, "vocab.json is not a JSON object")
    (small / "vocab.json").write_bytes(data)
    (small / "merges.txt").write_bytes(b"\xff\n")
    assert_refused(small, "can't decode byte 0xff")
