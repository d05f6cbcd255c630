"""The reader of checkpoints, on good and damaged files that tests/tables.py writes: TensorFlow is not needed."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import random
import re
import shutil
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from helpers import ODD, ROOT, shared
from tables import entry_of, field, header, masked, table_block, table_of, varint, write_index, write_model

import encoder
import gpt2
import utils
from picogpt.checkpoints.writing import flatten
from utils import (
    DATA,
    FILES,
    INDEX,
    TOKENIZER_FILES,
    NeedsTensorFlow,
    ensure_downloaded,
    load_encoder_hparams_and_params,
    load_hparams,
    load_hparams_and_params,
    read_index,
)

BIAS = b"model/h0/attn/c_attn/b"  # the first of the sorted tensors, which stands at byte 0 of the data
LIKE_TINY = ODD | {"n_vocab": 1024}  # a shape for the tokenizer of models/tiny


def tensors_of(dtype: Any = np.float32, hparams: dict[str, int] = ODD) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    shapes = utils.expected_shapes(hparams).items()
    return {f"model/{name}": rng.standard_normal(shape).astype(dtype) for name, shape in shapes}


def write_like_tiny(folder: Path, tensors: dict[str, Any] | None = None) -> Path:
    """Write a model with the tokenizer of models/tiny into a new folder."""
    folder.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        shutil.copy(ROOT / "models" / "tiny" / name, folder)
    write_model(folder, LIKE_TINY, tensors or tensors_of(hparams=LIKE_TINY))
    return folder


def error_of(folder: Path) -> str:
    """Return the one line that opening the model in a folder ends with."""
    with pytest.raises((OSError, ValueError)) as error:
        load_encoder_hparams_and_params(folder.name, folder.parent)
    assert "\n" not in str(error.value)
    return str(error.value)


def verified(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what `python utils.py` prints about the model in a folder."""
    utils.main([folder.name, "--models_dir", str(folder.parent)])
    return capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------ good files


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("n_shards", [1, 3])
def test_what_was_written_is_read(tmp_path, dtype, n_shards):
    tensors = tensors_of(dtype)
    write_model(tmp_path, ODD, tensors, n_shards)
    hparams, params = load_hparams_and_params(tmp_path)
    assert hparams == ODD
    found = flatten(params)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == ("float32" if dtype == "float16" else dtype)
        np.testing.assert_array_equal(found[name], tensor)


def test_the_parameters_are_read_only_views_of_the_mapped_file(tmp_path):
    write_model(tmp_path, ODD, tensors_of())
    w = load_hparams_and_params(tmp_path)[1]["blocks"][1]["mlp"]["c_fc"]["w"]
    assert not w.flags.writeable
    while isinstance(w, np.ndarray):
        w = w.base
    assert isinstance(w.obj if isinstance(w, memoryview) else w, mmap.mmap)


def test_the_small_model_is_read_with_its_tokenizer(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    tokenizer, hparams, params = load_encoder_hparams_and_params("tiny")  # found beside utils.py
    assert (len(tokenizer.encoder), hparams["n_vocab"], len(params["wte"])) == (1024, 1024, 1024)
    assert tokenizer.decode([39, 414, 78, 885]) == "Hello world"
    found = "n_vocab 1024, n_ctx 256, n_embd 160, n_head 5, n_layer 4\ntokenizer: 1,024 tokens, not OpenAI's files\n"
    weights = "weights: float32, 52 tensors, 1,442,240 numbers; all checksums are right\n"
    assert verified(ROOT / "models" / "tiny", capsys) == f"{ROOT / 'models' / 'tiny'}: {found}{weights}"


def test_float16_is_opened_as_float32(tmp_path):
    """With rows of a norm in the hundreds, float16 overflows in layer_norm, and then all logits are wrong."""
    half = {name: array if array.ndim > 1 else array + 1 for name, array in tensors_of(np.float16).items()}
    half["model/wte"] *= np.float16(100)
    assert np.linalg.norm(half["model/wte"].astype(np.float32), axis=1).min() > 256
    for name, dtype in (("half", np.float16), ("whole", np.float32)):
        (tmp_path / name).mkdir()
        write_model(tmp_path / name, ODD, {key: array.astype(dtype) for key, array in half.items()})
    params = [load_hparams_and_params(tmp_path / name)[1] for name in ("half", "whole")]
    logits = [gpt2.gpt2([3, 1, 4], **p, n_head=3) for p in params]
    np.testing.assert_array_equal(*logits)
    assert np.isfinite(logits[0]).all()
    assert logits[0].dtype == np.float32
    texts = [list(gpt2.generate([3, 1, 4], p, 3, 10)) for p in params]
    assert texts[0] == texts[1]


def test_variables_of_other_types_do_not_matter(tmp_path, capsys):
    """Training scripts leave steps, flags and text beside the weights, also under the name of the model."""
    more = {name: np.zeros(3, dtype) for dtype in ("int32", "int64", "bool") for name in (f"model/{dtype}", dtype)}
    folder = write_like_tiny(tmp_path / "mine")
    pairs = write_model(folder, LIKE_TINY, tensors_of(hparams=LIKE_TINY) | more | {"model/step": np.float32(7)})
    for name in (b"model/flag", b"model/h0/text"):  # text, whose checksum TensorFlow computes in another way
        pairs[name] = entry_of(7, (1,), 0, 5)
    pairs[b"na\xefve"] = entry_of(7, (0,), 0, 0)  # a name in Latin-1
    write_index(folder, pairs)
    assert load_encoder_hparams_and_params("mine", tmp_path)[1] == LIKE_TINY
    assert "all checksums are right" in verified(folder, capsys)


def test_every_number_of_bytes_has_its_place(tmp_path):
    """A name of a hundred letters, a tensor without numbers, and one with a single number, behind each other."""
    long = "model/" + "a" * 100
    tensors = {long: np.arange(6.0), "model/b": np.zeros((0, 3), np.float32), "model/c": np.float64(7)}
    write_model(tmp_path, ODD, tensors)
    entries = read_index(tmp_path / INDEX)
    assert [(entry.offset, entry.size) for entry in entries.values()] == [(0, 48), (48, 0), (48, 8)]
    assert entries["model/c"] == (2, (), DATA, 48, 8, google_crc32c.value(tensors["model/c"].tobytes()))
    read = utils.read_tensors(tmp_path / "model.ckpt")
    assert [(array.dtype, array.shape) for array in read.values()] == [("f8", (6,)), ("f4", (0, 3)), ("f8", ())]
    assert read["a" * 100].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b'model_checkpoint_path: "model-1000"\n', "model-1000"),
        (b'model_checkpoint_path: "./model-1000"\n', "model-1000"),
        (b'model_checkpoint_path: "/home/me/run1/model-7"\n', "model-7"),
        (b'model_checkpoint_path: "C:\\\\runs\\\\model-8"\n', "model-8"),
        (b'model_checkpoint_path: "C:\\runs\\model-8"\n', "model-8"),
        (b'all_model_checkpoint_paths: "model-1"\nmodel_checkpoint_path:   "model-2"\n', "model-2"),
        ('model_checkpoint_path: "modèle-50%"\n'.encode(), "modèle-50%"),
        (b"<html>", "model-9"),
        (b"\xff", "model-9"),
        (None, "model-9"),
    ],
)
def test_the_file_checkpoint_names_the_checkpoint(tmp_path, text, name):
    """Without a name in it, the only checkpoint is read."""
    write_model(tmp_path, ODD, tensors_of())
    for path in tmp_path.glob("model.ckpt.*"):
        path.rename(tmp_path / path.name.replace("model.ckpt", "model-9"))
    (tmp_path / "checkpoint").unlink() if text is None else (tmp_path / "checkpoint").write_bytes(text)
    assert utils.checkpoint_prefix(tmp_path) == tmp_path / name
    for path in tmp_path.glob("model-9.*"):
        path.rename(tmp_path / path.name.replace("model-9", name))
    assert load_hparams_and_params(tmp_path)[1]["wte"].shape == (300, 21)
    (tmp_path / "other.index").touch()
    if name == "model-9":
        with pytest.raises(FileNotFoundError, match=re.escape(INDEX)):  # which of the two is unknown
            load_hparams_and_params(tmp_path)


# --------------------------------------------------------------------------------------------------- names of models

NAMES = {"124M": ["gpt2", "openai-community/gpt2", "117M"], "1558M": ["gpt2-xl", "openai-community/gpt2-xl", "1542M"]}
NAMES |= {"355M": ["gpt2-medium", "345M"], "774M": ["gpt2-large", "openai-community/gpt2-large", "762M"]}


@pytest.mark.parametrize(("size", "name"), [(size, name) for size, names in NAMES.items() for name in [size, *names]])
def test_other_names_of_openai_s_models(tmp_path, monkeypatch, size, name):
    folders = []
    monkeypatch.setattr(utils, "download_gpt2_files", lambda folder, files: folders.append((folder, files)))
    assert ensure_downloaded(name, tmp_path) == tmp_path / size
    assert folders == [(tmp_path / size, FILES)]
    (tmp_path / size).mkdir()
    for file in FILES:
        (tmp_path / size / file).touch()
    assert ensure_downloaded(name, tmp_path) == tmp_path / size
    (tmp_path / name).mkdir(parents=True, exist_ok=True)  # a model of the user's own of this name
    assert ensure_downloaded(name, tmp_path) == tmp_path / name
    assert len(folders) == 1


def test_a_folder_in_another_layout_goes_to_the_reader_of_such_layouts(tmp_path, monkeypatch):
    class Reader:
        open_model = staticmethod(lambda folder, models_dir: (f"encoder of {folder.name}", "hparams", "params"))
        open_encoder = staticmethod(lambda folder, models_dir: "encoder")

    monkeypatch.setitem(sys.modules, "picogpt.checkpoints.foreign", Reader)
    for name in ("mine", "gpt2-xl", "124M"):  # a folder named as a size may be Hugging Face's copy of it
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
        assert load_encoder_hparams_and_params(name, tmp_path) == (f"encoder of {name}", "hparams", "params")
        assert utils.load_encoder(tmp_path / name) == "encoder"
        assert load_hparams_and_params(tmp_path / name) == ("hparams", "params")


# ------------------------------------------------------------------------------------------------ hyperparameters


@pytest.mark.parametrize("name", utils.HPARAMS)
@pytest.mark.parametrize("value", [None, 0, -1, 1 << 31, 1.0, True, "12"])
def test_wrong_hyperparameters_are_named(tmp_path, name, value):
    path = tmp_path / "hparams.json"
    path.write_text(json.dumps({key: n for key, n in (ODD | {name: value}).items() if n is not None}))
    with pytest.raises(ValueError, match=re.escape(f"{path}: {name} is {value!r}, not a positive whole number")):
        load_hparams(path)


def test_more_keys_are_right_and_n_head_divides_n_embd(tmp_path):
    path = tmp_path / "hparams.json"
    path.write_text(json.dumps(ODD | {"comment": "größer"}, ensure_ascii=False), encoding="utf-8")
    assert load_hparams(path) == ODD
    path.write_text(json.dumps(ODD | {"n_head": 4}))
    with pytest.raises(ValueError, match=re.escape(f"{path}: n_embd = 21 is not a multiple of n_head = 4")):
        load_hparams(path)


@pytest.mark.parametrize("text", [b"", b"[1]", b"{", b"null", b"<html>", b"\xff", b"[" * 100_000])
def test_hparams_that_are_no_object(tmp_path, text):
    path = tmp_path / "hparams.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=re.escape(f"{path} is not ") + "(JSON: .|a JSON object)"):
        load_hparams(path)


# --------------------------------------------------------------------------------------- files that do not fit


def test_a_tokenizer_of_another_size_is_refused(tmp_path):
    folder = write_like_tiny(tmp_path / "mine")
    write_model(folder, ODD, tensors_of())
    assert error_of(folder) == f"{folder} has 1024 tokens, but its n_vocab is 300"


@pytest.fixture
def refused(tmp_path):
    """Return a function that writes these tensors, and returns the message of loading them."""

    def load(tensors: dict[str, Any], **hparams: int) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))  # Windows can't overwrite a file that is mapped
        folder.mkdir()
        write_model(folder, ODD | hparams, tensors)
        with pytest.raises(ValueError, match=re.escape(str(folder / INDEX))) as error:
            load_hparams_and_params(folder)
        return str(error.value).partition(INDEX)[2]

    return load


def test_tensors_that_hparams_do_not_imply(refused):
    tensors = tensors_of()
    without = {name: array for name, array in tensors.items() if name != "model/h1/ln_2/b"}
    assert ": model/h1/ln_2/b is missing" in refused(without)
    turned = tensors | {"model/wpe": tensors["model/wpe"].T}
    assert ": model/wpe is float32 (21, 17)" in refused(turned)
    assert refused(turned).endswith("implies one dtype and (17, 21)")
    for n_layer in (1, len(tensors) + 1, (1 << 31) - 1):  # the last one must not become a list of as many shapes
        assert refused(tensors, n_layer=n_layer) == f" has 28 tensors, which do not fit n_layer = {n_layer}"
    for n_layer in (3, len(tensors)):
        assert ": model/h2/attn/c_attn/w is missing" in refused(tensors, n_layer=n_layer)
    for name in ("n_vocab", "n_ctx", "n_embd"):
        assert f"{ODD[name] * 2}" in refused(tensors, **{name: ODD[name] * 2})
    assert " has 0 tensors" in refused({name.replace("model/", "other/"): tensors[name] for name in tensors})


@pytest.mark.parametrize("dtype", ["float64", "int32", "bool"])
def test_all_tensors_have_the_floating_point_type_of_wte(refused, dtype):
    tensors = tensors_of()
    name = "model/h1/mlp/c_fc/b"
    assert f": {name} is {'float64' if dtype == 'float64' else 'missing'}" in refused(
        tensors | {name: tensors[name].astype(dtype)}
    )


@pytest.mark.parametrize("change", [-1000, -1, 1])
def test_a_data_file_of_another_length_is_refused(tmp_path, change):
    write_model(tmp_path, ODD, tensors_of())
    path = tmp_path / DATA
    path.write_bytes(path.read_bytes()[: change if change < 0 else None] + b"x" * change)
    message = f"{path} has {71316 + change:,} bytes, but its index describes 71,316"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_hparams_and_params(tmp_path)


@pytest.mark.parametrize("changed", [{"size": 248}, {"shape": (62,)}, {"shape": (3, 21)}, {"dtype": 2}])
def test_an_entry_that_does_not_fit_is_named(tmp_path, changed):
    pairs = write_model(tmp_path, ODD, tensors_of())
    for entry in ({}, changed):
        right = {"dtype": 1, "shape": (63,), "offset": 0, "size": 252}
        write_index(tmp_path, pairs | {BIAS: entry_of(**right | entry)})
        if not entry:
            load_hparams_and_params(tmp_path)
    with pytest.raises(ValueError, match="h0/attn/c_attn/b"):
        load_hparams_and_params(tmp_path)


# --------------------------------------------------------------------------------------------------- unusual indexes


@pytest.mark.parametrize(
    ("changed", "kind", "reason"),
    [
        ({b"": header(endianness=1)}, b"\0", "is big-endian, or has tensors in slices"),
        ({BIAS: entry_of(1, (63,), 0, 252) + field(7, b"")}, b"\0", "is big-endian, or has tensors in slices"),
        ({BIAS: field(7, b""), b"\0\xff\x80slice": b""}, b"\0", "is big-endian, or has tensors in slices"),
        ({}, b"\1", "has compressed blocks"),
    ],
)
def test_what_only_tensorflow_reads(tmp_path, changed, kind, reason):
    pairs = write_model(tmp_path, ODD, tensors_of()) | changed
    (tmp_path / INDEX).write_bytes(table_of(table_block(sorted(pairs.items()), kind)))
    with pytest.raises(NeedsTensorFlow, match=re.escape(f"{tmp_path / INDEX} {reason}")):
        utils.read_tensors(tmp_path / "model.ckpt")


def test_a_v1_checkpoint_needs_tensorflow(tmp_path):
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(NeedsTensorFlow, match=re.escape(f"{tmp_path / 'model.ckpt'} is a V1 checkpoint")):
        utils.read_tensors(tmp_path / "model.ckpt")
    (tmp_path / "model.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.ckpt\.index"):
        utils.read_tensors(tmp_path / "model.ckpt")


def read_table(tmp_path: Path, table: bytes) -> dict[str, int] | str:
    """Return the type of each tensor in an index, or the message of reading it."""
    path = tmp_path / "x.index"
    path.write_bytes(table)
    try:
        return {name: entry.dtype for name, entry in read_index(path).items()}
    except ValueError as error:
        assert str(error).startswith(f"{path} ")
        return str(error).removeprefix(f"{path} ")


GOOD = table_block([(b"", header(3)), (b"ab", field(1, 1)), (b"abc", field(1, 2))])


def test_tables_of_several_blocks_and_shared_keys(tmp_path):
    assert read_table(tmp_path, table_of(GOOD)) == {"ab": 1, "abc": 2}
    assert read_index(tmp_path / "x.index")["ab"] == (1, (), "x.data-00000-of-00003", 0, 0, utils.unmask(0))
    more = table_block([(b"d" * 300, field(1, 1))])
    assert read_table(tmp_path, table_of(GOOD, more)) == {"ab": 1, "abc": 2, "d" * 300: 1}
    assert read_table(tmp_path, table_of()) == {}


def test_damaged_and_truncated_tables(tmp_path):
    good = table_of(GOOD)
    for table in (b"", b"<html>", good[:-1], good[: len(good) // 2], table_of(GOOD, magic=b"notmagic")):
        assert "is not the index of a TensorFlow V2 checkpoint, or is cut short" in read_table(tmp_path, table)
    for at in range(len(GOOD)):
        damaged = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        assert read_table(tmp_path, damaged) == "is damaged: the checksum of the block at byte 0 is wrong"
    for size in (1000, len(good) - 4):  # the second lacks one byte of its checksum
        footer = (varint(0) + varint(0) + varint(0) + varint(size) + bytes(40))[:40] + good[-8:]
        assert "is damaged" in read_table(tmp_path, good[:-48] + footer)
    assert read_table(tmp_path, good[-8:]) == "is damaged"


def test_varints_and_fields_of_every_kind():
    for number in (0, 1, 127, 128, 300, 1 << 62, (1 << 64) - 1):
        assert utils.varint(b"x" + varint(number) + b"y", 1) == (number, 1 + len(varint(number)))
    message = field(1, 300) + field(3, b"hello") + varint(15 << 3 | 5) + b"\1\0\0\1" + field(16, 7)
    assert list(utils.fields(message)) == [(1, 300), (3, b"hello"), (15, 0x01000001), (16, 7)]


# ------------------------------------------------------------------------------------------------------ verification


@pytest.mark.parametrize("size", [0, 1, 9, 5681, 5682, 45477, 363_837, 1 << 20, (1 << 20) + 1, 3_000_001])
def test_crc32c_equals_google_s(size):
    data = np.random.default_rng(size).bytes(size)
    assert utils.crc32c(data) == google_crc32c.value(data)
    assert utils.crc32c(b"123456789") == 0xE3069283  # the check value of the standard


def test_each_data_file_is_verified_against_its_own_tensors(tmp_path, capsys):
    folder = write_like_tiny(tmp_path / "mine")
    for path in folder.glob("model.ckpt*"):
        path.unlink()
    write_model(folder, LIKE_TINY, tensors_of(hparams=LIKE_TINY) | {"flags": np.ones(9, bool)}, n_shards=3)
    assert "weights: float32, 29 tensors, 33,042 numbers; all checksums are right\n" in verified(folder, capsys)
    paths = sorted(folder.glob("*.data-*"))
    assert [path.name[-14:] for path in paths] == ["00000-of-00003", "00001-of-00003", "00002-of-00003"]
    for path in paths:
        good = path.read_bytes()
        for at in (0, len(good) // 2, len(good) - 1):
            path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            with pytest.raises(ValueError, match=re.escape(f"{path} is damaged: the checksum of ")):
                verified(folder, capsys)
        path.write_bytes(good)


def test_a_tensor_that_overlaps_the_one_before_it_by_a_byte_has_another_checksum(tmp_path, capsys):
    folder, tensors = write_like_tiny(tmp_path / "mine"), tensors_of(hparams=LIKE_TINY)
    pairs, wte = write_model(folder, LIKE_TINY, tensors), tensors["model/wte"].tobytes()  # the last one
    size, data = len(wte), (folder / DATA).read_bytes()
    for n in (0, 1):
        (folder / DATA).unlink()
        (folder / DATA).write_bytes(data[: len(data) - n])
        entry = entry_of(1, (1024, 21), len(data) - size - n, size, crc=masked(wte))
        write_index(folder, pairs | {b"model/wte": entry})
        if n == 0:
            assert "all checksums are right" in verified(folder, capsys)
    with pytest.raises(ValueError, match="is damaged: the checksum of model/wte differs from the index"):
        verified(folder, capsys)


# ----------------------------------------------------------------------------------- what is known of OpenAI's models


def test_openai_s_real_files(tmp_path):
    folder = shared("openai-117M")
    for name in FILES[:-1]:
        utils.check_file(folder / name, name, Path("models/124M"))
    text = (folder / "hparams.json").read_bytes().rstrip()
    published = "d9d56e4121c427164e0c55c6f03c08e1daf9002b9b672825112d19097b680318"
    assert hashlib.sha256(text + b"\n").hexdigest() == published
    for copy in (text, text + b"\n"):  # some copies of the file lack the line feed at its end
        (tmp_path / "hparams.json").write_bytes(copy)
        utils.check_file(tmp_path / "hparams.json", "hparams.json", Path("models/124M"))
    for wrong in (text + b" \n", text.replace(b"1024", b"1025")):
        (tmp_path / "hparams.json").write_bytes(wrong)
        with pytest.raises(ValueError, match="is not OpenAI's file"):
            utils.check_file(tmp_path / "hparams.json", "hparams.json", Path("models/124M"))
    entries = read_index(folder / INDEX)
    assert len(entries) == 148
    assert utils.n_bytes(entries, DATA) == 497_759_232


def test_the_shapes_of_openai_s_sizes():
    heads = {(known["n_embd"], known["n_layer"]): known["n_head"] for known in utils.SIZES.values()}
    assert heads == {(768, 12): 12, (1024, 24): 16, (1280, 36): 20, (1600, 48): 25}
    assert {(known["n_vocab"], known["n_ctx"]) for known in utils.SIZES.values()} == {(50257, 1024)}
    numbers = [sum(map(np.prod, utils.expected_shapes(known).values())) for known in utils.SIZES.values()]
    assert numbers == [124_439_808, 354_823_168, 774_030_080, 1_557_611_200]


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Return a folder with a small model, and let it be the one that OpenAI published as 355M."""
    folder = write_like_tiny(tmp_path / "355M")
    (folder / utils.META).write_bytes(b"\x0a\x64model/wte")
    monkeypatch.setitem(utils.SIZES, "355M", LIKE_TINY)
    monkeypatch.setitem(utils.SHAPES, "355M", (21, 3, 2))
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in TOKENIZER_FILES}
    monkeypatch.setattr(utils, "SHA256", digests)
    merges = encoder.read_merges(folder / "vocab.bpe")
    monkeypatch.setattr(encoder, "OPENAI_MERGES", hashlib.sha256("\n".join(merges).encode()).hexdigest())
    return folder


def test_the_command_that_checks_what_124m_computes_is_named(published, tmp_path, monkeypatch, capsys):
    assert "facts" not in verified(published, capsys)
    monkeypatch.setitem(utils.SIZES, "124M", LIKE_TINY)
    assert verified(published.rename(tmp_path / "124M"), capsys).endswith("\nnext: python -m picogpt facts\n")


@pytest.mark.parametrize("name", FILES[:-1])
def test_every_small_file_of_a_published_size_is_checked(published, tmp_path, name, capsys):
    assert "OpenAI's files\nweights: float32, 28 tensors" in verified(published, capsys)
    write_model(tmp_path, LIKE_TINY | {"n_layer": 1}, tensors_of(hparams=LIKE_TINY | {"n_layer": 1}))
    changes = {
        "checkpoint": b'model_checkpoint_path: "model-20"\n',
        "encoder.json": (published / "encoder.json").read_bytes() + b"\n",
        "vocab.bpe": (published / "vocab.bpe").read_bytes() + b"\n",
        "hparams.json": json.dumps(LIKE_TINY | {"n_head": 7}).encode(),
        INDEX: (tmp_path / INDEX).read_bytes(),
        utils.META: b"\n<!DOCTYPE html>",
    }
    (published / name).write_bytes(changes[name])
    with pytest.raises(ValueError, match=re.escape(f"{published / name} is not OpenAI's file. Delete what is")):
        utils.check_file(published / name, name, published)


@pytest.mark.parametrize("n_head", [1, 7])
def test_a_wrong_n_head_is_an_error_or_a_warning(published, capsys, n_head):
    """The shape of no tensor depends on n_head. Another folder's model may have any, if it is not a fine-tune."""
    (published / "hparams.json").write_text(json.dumps(LIKE_TINY | {"n_head": n_head}))
    assert f"{published / 'hparams.json'} is not OpenAI's: " in error_of(published)
    published.rename(mine := published.with_name("mine"))
    utils.main(["mine", "--models_dir", str(mine.parent)])
    shown = capsys.readouterr()
    assert f"n_head {n_head}" in shown.out
    assert shown.err.endswith(f"n_head is {n_head}, but 3 in OpenAI's 355M and its fine-tunes\n")


@pytest.mark.parametrize("change", ["cut", "foreign"])
def test_merges_that_are_not_openai_s(published, capsys, change):
    path = published / "vocab.bpe"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if change == "foreign":
        lines[1], lines[2] = lines[2], lines[1]
    path.write_text("".join(lines if change == "foreign" else lines[:-2]), encoding="utf-8")
    assert error_of(published).startswith(f"{published}: encoder.json and vocab.bpe are not OpenAI's. Delete ")
    published.rename(mine := published.with_name("mine"))
    utils.main(["mine", "--models_dir", str(mine.parent)])
    shown = capsys.readouterr()
    assert "tokenizer: 1,024 tokens, not OpenAI's files" in shown.out
    lost = [repr(line.strip().replace(" ", "").replace("Ġ", " ")) for line in lines[-2:]]
    warning = f"no merge makes 2 tokens, such as {lost[0]}: is vocab.bpe cut short?\n"
    assert (warning in shown.err) == (change == "cut") == ("no merge" in shown.err)


# ------------------------------------------------------------------------------------------------------ damaged files


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return data with one damage: flipped bits, a piece cut out, inserted, set to zeros, or swapped with another."""
    start, stop = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    stop = min(stop, start + rng.choice([1, 8, 512, len(data)]))
    piece, kind = data[start:stop], rng.randrange(6)
    if kind == 0:
        bits = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 20])):
            bits[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(bits)
    if kind == 1:
        return data[:start] + data[stop:]
    if kind == 2:
        return data[:start] + rng.randbytes(len(piece)) + data[start:]
    if kind == 3:
        return data[:start] + bytes(len(piece)) + data[stop:]
    if kind == 4:
        return data[: rng.choice([start, rng.randrange(len(data))])]
    there = rng.randrange(len(data) - len(piece) + 1)
    swapped = bytearray(data)
    swapped[start:stop], swapped[there : there + len(piece)] = data[there : there + len(piece)], piece
    return bytes(swapped)


def opened(folder: Path) -> tuple[dict[str, int], dict[str, bytes]]:
    """Open a model, and return its hyperparameters and a copy of its numbers."""
    _, hparams, params = load_encoder_hparams_and_params(folder.name, folder.parent)
    return hparams, {name: array.tobytes() for name, array in flatten(params).items()}


def damages(folder: Path, seed: int) -> Iterator[tuple[str, str]]:
    """Damage one file of a good model again and again. Yield its name and what became of it.

    What ends this is any error that the command lines do not turn into one line, and a model with wrong numbers.
    """
    names, rng = [name for name in FILES if (folder / name).exists()], random.Random(seed)
    good, (right_hparams, right) = {name: (folder / name).read_bytes() for name in names}, opened(folder)
    while True:
        (folder / (name := rng.choice(names))).write_bytes(damaged(good[name], rng))
        outcome = "opens"
        try:
            hparams, numbers = opened(folder)
        except (OSError, ValueError, ImportError) as error:
            outcome = type(error).__name__
            assert "\n" not in str(error)
        else:
            assert hparams | {"n_head": 3} == right_hparams  # any n_head opens
            if numbers != right:
                outcome = "utils.py finds it"
                with pytest.raises(ValueError, match="is damaged: the checksum of model/"):
                    utils.main([folder.name, "--models_dir", str(folder.parent)])
        yield name, outcome
        (folder / name).write_bytes(good[name])


def test_a_damaged_model_never_gives_wrong_numbers(tmp_path, capsys):
    """MANY=12000 in the environment tries as many, which takes a minute or two."""
    folder = write_like_tiny(tmp_path / "mine")
    for _ in islice(damages(folder, seed=22), int(os.environ.get("MANY", 200))):
        pass
