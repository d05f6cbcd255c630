"""The reader of checkpoints, on files that tests/tables.py writes: TensorFlow is not needed."""

from __future__ import annotations

import json
import mmap
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from helpers import ODD, ROOT
from tables import entry_of, field, header, masked, table_block, table_of, varint, write_index, write_model

import utils
from picogpt.checkpoints.writing import flatten
from utils import Entry, NeedsTensorFlow, load_encoder_hparams_and_params, load_hparams, load_hparams_and_params

BIAS = b"model/h0/attn/c_attn/b"


def tensors_of(dtype: Any = np.float32) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    return {
        f"model/{name}": rng.standard_normal(shape).astype(dtype) for name, shape in utils.expected_shapes(ODD).items()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a model with a tokenizer of too many tokens."""
    for name in utils.TOKENIZER_FILES:
        shutil.copy(ROOT / "models" / "tiny" / name, tmp_path)
    write_model(tmp_path, ODD, tensors_of())
    return tmp_path


@pytest.fixture
def rewrite(folder):
    """Return a function that writes the index again with other entries, and the message of loading the model."""
    pairs = write_model(folder, ODD, tensors_of())
    index = folder / "model.ckpt.index"

    def load(changed: dict[bytes, bytes]) -> str:
        write_index(folder, pairs | changed)
        with pytest.raises(ValueError, match=re.escape(str(folder))) as error:
            load_hparams_and_params(folder)
        return str(error.value).replace(str(index), "INDEX").replace(str(folder), "FOLDER")

    return load


def bias(**changed: Any) -> dict[bytes, bytes]:
    """Return an entry for c_attn's bias, which is the first of the sorted tensors, and so stands at byte 0."""
    return {BIAS: entry_of(Entry(1, (63,), 0, 0, 252, 0)._replace(**changed), bytes(4))}


# ------------------------------------------------------------------------------------------------------ good files


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("n_shards", [1, 3])
def test_what_was_written_is_read(tmp_path, dtype, n_shards):
    tensors = tensors_of(dtype)
    write_model(tmp_path, ODD, tensors, n_shards)
    hparams, params = load_hparams_and_params(tmp_path)
    assert hparams == ODD
    assert len(params["blocks"]) == 2
    found = flatten(params)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype
        np.testing.assert_array_equal(found[name], tensor)
    assert not params["wte"].flags.writeable
    assert not params["wte"].flags.owndata
    assert utils.verify(tmp_path / "model.ckpt") == f"{len(tensors)} tensors, 17,829 numbers; all checksums are right"


def test_the_small_model_is_read_with_its_tokenizer(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    encoder, hparams, params = load_encoder_hparams_and_params("tiny")  # found beside utils.py
    assert (len(encoder.encoder), hparams["n_vocab"], len(params["wte"])) == (1024, 1024, 1024)
    assert encoder.decode([39, 414, 78, 885]) == "Hello world"
    assert utils.verify(ROOT / "models" / "tiny" / "model.ckpt").endswith("all checksums are right")


def test_a_tokenizer_of_another_size_is_refused(folder):
    with pytest.raises(ValueError, match="encoder.json has 1024 tokens, but hparams.json has n_vocab = 300"):
        load_encoder_hparams_and_params(folder.name, folder.parent)


def test_variables_that_are_not_the_model_s_may_have_any_type(folder):
    pairs = write_model(folder, ODD, tensors_of() | {"flags": np.zeros(1, np.int32), "step": np.int64(7)})
    write_index(folder, pairs | {b"flags": entry_of(Entry(10, (4,), 0, 0, 4, 0), bytes(4))})
    assert load_hparams_and_params(folder)[0] == ODD


def test_every_number_of_bytes_has_its_place(tmp_path):
    """A name of a hundred letters, a tensor without numbers, and one with a single number, behind each other."""
    long = "model/" + "a" * 100
    tensors = {long: np.arange(6, dtype=np.int64), "model/b": np.zeros((0, 3), np.float32), "model/c": np.float64(7)}
    write_model(tmp_path, ODD, tensors)
    entries, n_shards = utils.read_index(str(tmp_path / "model.ckpt.index"))
    assert n_shards == 1
    assert [(entry.offset, entry.size) for entry in entries.values()] == [(0, 48), (48, 0), (48, 8)]
    assert entries["model/c"] == Entry(2, (), 0, 48, 8, utils.crc32c(tensors["model/c"].tobytes()))
    read = utils.read_plain(tmp_path / "model.ckpt")
    assert {name: (array.dtype, array.shape) for name, array in read.items()} == {
        name: (np.asarray(array).dtype, np.shape(array)) for name, array in tensors.items()
    }
    assert read[long].tolist() == [0, 1, 2, 3, 4, 5]


def test_the_data_file_is_mapped_and_not_copied(folder):
    entries, _ = utils.read_index(folder / "model.ckpt.index")
    assert isinstance(utils.map_file(folder / utils.DATA, entries), mmap.mmap)
    (folder / "empty").write_bytes(b"")
    assert utils.map_file(folder / "empty", {}) == b""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b'model_checkpoint_path: "model-1000"\n', "model-1000"),
        (b'model_checkpoint_path: "/home/me/run1/model-7"\n', "model-7"),
        (b'model_checkpoint_path: "C:\\\\runs\\\\model-8"\n', "model-8"),
        (b'all_model_checkpoint_paths: "model-1"\nmodel_checkpoint_path:   "model-2"\n', "model-2"),
        (b'model_checkpoint_path: "somewhere/"\n', "model.ckpt"),
        (b"<html>", "model.ckpt"),
        (b"\xff", "model.ckpt"),
        ('model_checkpoint_path: "modèle"\n'.encode(), "modèle"),
        (None, "model.ckpt"),
    ],
)
def test_the_file_checkpoint_names_the_checkpoint(tmp_path, text, name):
    if text is not None:
        (tmp_path / "checkpoint").write_bytes(text)
    assert utils.checkpoint_prefix(tmp_path) == tmp_path / name


# ------------------------------------------------------------------------------------------------ hyperparameters


@pytest.mark.parametrize("name", utils.HPARAMS)
@pytest.mark.parametrize("value", [None, 0, -1, 1 << 31, 1.0, True, "12"])
def test_wrong_hyperparameters_are_named(tmp_path, name, value):
    path = tmp_path / "hparams.json"
    path.write_text(json.dumps({key: n for key, n in (ODD | {name: value}).items() if n is not None}))
    with pytest.raises(ValueError, match=re.escape(f"{path}: {name} is {value!r}, not a positive whole number")):
        load_hparams(path)


def test_the_limits_of_hyperparameters_and_more_keys_are_right(tmp_path):
    path, limits = tmp_path / "hparams.json", dict.fromkeys(utils.HPARAMS, (1 << 31) - 1) | {"n_head": 1}
    path.write_text(json.dumps(limits | {"comment": "größer"}, ensure_ascii=False), encoding="utf-8")
    assert load_hparams(path) == limits | {"comment": "größer"}
    path.write_text(json.dumps(limits | {"n_head": 3, "n_embd": 10}))
    with pytest.raises(ValueError, match=re.escape(f"{path}: n_embd = 10 is not a multiple of n_head = 3")):
        load_hparams(path)


@pytest.mark.parametrize(("text", "message"), [("[1]", "is not a JSON object"), ("{", "is not JSON: Expecting")])
def test_hparams_that_are_no_object(tmp_path, text, message):
    (tmp_path / "hparams.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'hparams.json'} {message}")):
        load_hparams(tmp_path / "hparams.json")


# --------------------------------------------------------------------------------------- tensors that do not fit


def load_tensors(folder: Path, tensors: dict[str, Any], **hparams: int) -> str:
    """Write these tensors into a new folder, and return the message of loading them."""
    folder /= str(len(list(folder.iterdir())))  # Windows can't overwrite a file that is mapped into memory
    folder.mkdir()
    write_model(folder, ODD | hparams, tensors)
    with pytest.raises(ValueError, match=re.escape(f"{folder / 'model.ckpt.index'}")) as error:
        load_hparams_and_params(folder)
    return str(error.value).partition("model.ckpt.index")[2]


def test_tensors_that_hparams_do_not_imply(tmp_path):
    tensors = tensors_of()
    without = {name: array for name, array in tensors.items() if name != "model/h1/ln_2/b"}
    assert load_tensors(tmp_path, without) == " has no tensor model/h1/ln_2/b, which hparams.json implies"
    turned = tensors | {"model/wpe": tensors["model/wpe"].T}
    assert load_tensors(tmp_path, turned) == ": model/wpe is (21, 17), but hparams.json implies (17, 21)"
    assert "has model/h1/" in load_tensors(tmp_path, tensors, n_layer=1)
    assert "but hparams.json has n_layer = 1" in load_tensors(tmp_path, tensors, n_layer=1)
    assert (
        load_tensors(tmp_path, tensors, n_layer=3)
        == " has no tensor model/h2/attn/c_attn/w, which hparams.json implies"
    )
    n = len(tensors)
    assert load_tensors(tmp_path, tensors, n_layer=n + 1) == f" has {n} tensors, but hparams.json has n_layer = {n + 1}"
    assert " has no tensor model/h2/" in load_tensors(tmp_path, tensors, n_layer=n)
    other = {name.replace("model/", "other/"): array for name, array in tensors.items()}
    assert load_tensors(tmp_path, other) == " has 0 tensors, but hparams.json has n_layer = 2"


@pytest.mark.parametrize(("dtype", "wte"), [("float64", "float32"), ("int32", "float32"), ("float32", "float16")])
def test_all_tensors_have_the_floating_point_type_of_wte(tmp_path, dtype, wte):
    tensors = tensors_of(wte)
    tensors["model/h1/mlp/c_fc/b"] = tensors["model/h1/mlp/c_fc/b"].astype(dtype)
    assert f"model/h1/mlp/c_fc/b is {dtype}, but " in load_tensors(tmp_path, tensors)


def test_whole_numbers_are_no_weights(tmp_path):
    assert "is int64" in load_tensors(tmp_path, tensors_of("int64"))


# ---------------------------------------------------------------------------------------------- an index that lies


def test_the_entry_that_the_tests_change_is_right_as_it_is(rewrite, folder):
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        rewrite(bias())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 248}, "INDEX: model/h0/attn/c_attn/b: shape (63,) does not fit 248 bytes in shard 0 of 1"),
        ({"shape": (62,)}, "INDEX: model/h0/attn/c_attn/b: shape (62,) does not fit 252 bytes in shard 0 of 1"),
        ({"shard": 1}, "INDEX: model/h0/attn/c_attn/b: shape (63,) does not fit 252 bytes in shard 1 of 1"),
        ({"shape": (3, 21)}, "INDEX: model/h0/attn/c_attn/b is (3, 21), but hparams.json implies (63,)"),
        (
            {"offset": 10**6},
            f"FOLDER/{utils.DATA} has 71,316 bytes, but its index describes 1,000,252",
        ),
    ],
)
def test_an_entry_that_does_not_fit_is_named(rewrite, changed, message):
    assert rewrite(bias(**changed)).replace("\\", "/") == message


def test_a_data_file_of_another_length_is_refused(folder):
    path = folder / utils.DATA
    for data in (path.read_bytes() + b"x", path.read_bytes()[:-1], b""):
        path.write_bytes(data)
        message = f"{path} has {len(data):,} bytes, but its index describes 71,316"
        with pytest.raises(ValueError, match=re.escape(message)):
            load_hparams_and_params(folder)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({b"": header(endianness=1)}, "INDEX is big-endian"),
        ({b"": header(endianness=2)}, "INDEX is big-endian"),
        ({BIAS: entry_of(Entry(1, (63,), 0, 0, 252, 0), bytes(4)) + field(7, b"")}, "INDEX has tensors in slices"),
    ],
)
def test_what_needs_tensorflow_says_so_without_it(rewrite, changed, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert rewrite(changed) == message + ". Reading it takes TensorFlow, which is not installed: pip install tensorflow"


def test_a_v1_checkpoint_needs_tensorflow(folder):
    (folder / "model.ckpt.index").rename(folder / "model.ckpt")
    with pytest.raises(NeedsTensorFlow, match=re.escape(f"{folder / 'model.ckpt'} is a V1 checkpoint")):
        utils.read_plain(folder / "model.ckpt")
    (folder / "model.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.ckpt\.index"):
        utils.read_plain(folder / "model.ckpt")


BROKEN = "INDEX holds a broken protocol buffer"


@pytest.mark.parametrize(
    "message",
    [
        field(1, b"x"),  # the dtype is not a number
        field(2, 5),  # the shape is not a message
        field(2, field(2, 5)),  # nor is a dimension
        field(2, field(2, field(1, b"x"))),
        b"\x0b",  # a wire type that does not exist any more
        b"\x12\x05abc",  # longer than the message
        varint(6 << 3 | 5) + b"abc",
    ],
)
def test_a_broken_entry_is_refused(rewrite, message):
    assert rewrite({BIAS: message}) == BROKEN


@pytest.mark.parametrize("shards", [b"x", b""])
def test_a_broken_header_is_refused(rewrite, shards):
    assert rewrite({b"": field(1, shards)}) == BROKEN


def test_a_header_has_defaults(folder):
    pairs = write_model(folder, ODD, tensors_of())
    write_index(folder, pairs | {b"": b""})
    assert utils.read_index(folder / "model.ckpt.index")[1] == 1
    assert load_hparams_and_params(folder)[0] == ODD


# ------------------------------------------------------------------------------------------------- broken tables


def read_table(tmp_path: Path, table: bytes) -> tuple[dict[str, Entry], int] | str:
    """Return what an index holds, or the message of reading it."""
    path = tmp_path / "x.index"
    path.write_bytes(table)
    try:
        return utils.read_index(path)
    except ValueError as error:
        assert str(error).startswith(f"{path} ")
        return str(error).removeprefix(f"{path} ")


GOOD = table_block([(b"", header(3)), (b"ab", field(1, 1)), (b"abc", field(1, 2))])


def test_tables_of_several_blocks_and_shared_keys(tmp_path):
    one, two = Entry(1, (), 0, 0, 0, utils.unmask(0)), Entry(2, (), 0, 0, 0, utils.unmask(0))
    assert read_table(tmp_path, table_of(GOOD)) == ({"ab": one, "abc": two}, 3)
    more = table_block([(b"d" * 300, field(1, 1))])
    assert read_table(tmp_path, table_of(GOOD, more)) == ({"ab": one, "abc": two, "d" * 300: one}, 3)
    assert read_table(tmp_path, table_of()) == ({}, 1)


def test_a_table_that_is_none(tmp_path):
    message = "is not the index of a TensorFlow V2 checkpoint, or is truncated"
    for table in (b"", b"<html>", table_of(GOOD)[:-1], table_of(GOOD, magic=b"notmagic"), table_of()[-47:]):
        assert read_table(tmp_path, table) == message
    assert read_table(tmp_path, table_of()[-48:]) != message


def test_damaged_and_truncated_blocks(tmp_path):
    good = table_of(GOOD)
    for at in range(len(good) - 48):
        damaged = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        assert re.fullmatch(
            r"is damaged: the checksum of the block at byte \d+ is wrong", read_table(tmp_path, damaged)
        )
    for size in (1000, len(good) - 4):  # the second lacks one byte of its checksum
        footer = (varint(0) + varint(size) + bytes(40))[:40] + good[-8:]
        assert read_table(tmp_path, good[:-48] + footer) == "is truncated: a block lies beyond its end"
    first = bytes([good[0] ^ 1]) + good[1:]
    assert read_table(tmp_path, first) == "is damaged: the checksum of the block at byte 0 is wrong"


def test_compressed_blocks_need_tensorflow(tmp_path):
    assert read_table(tmp_path, table_of(table_block([], b"\1"))) == "has compressed blocks"


@pytest.mark.parametrize(
    "entry", [b"\x01\x01\x00x", b"\x00\x64\x00x", b"\x00\x01\x64x", b"\x00\x02\x00x", b"\x00\x01\x01x"]
)
def test_entries_that_do_not_fit_into_their_block(tmp_path, entry):
    content = entry + bytes(4) + (1).to_bytes(4, "little") + b"\0"
    message = "is damaged: an entry of the block at byte 0 does not fit"
    assert read_table(tmp_path, table_of(content + masked(content))) == message


def test_an_entry_may_fill_its_block(tmp_path):
    content = b"\x00\x01\x00x" + bytes(4) + (1).to_bytes(4, "little") + b"\0"
    assert list(read_table(tmp_path, table_of(content + masked(content)))[0]) == ["x"]


def test_varints():
    for number in (0, 1, 127, 128, 300, 1 << 62, (1 << 64) - 1):
        assert utils.varint(b"x" + varint(number) + b"y", 1) == (number, 1 + len(varint(number)))
    for data in (b"", b"\x80", b"\xff" * 9):
        with pytest.raises(ValueError, match="^ends in the middle of a number$"):
            utils.varint(data, 0)
    with pytest.raises(ValueError, match="^holds a number of more than 64 bits$"):
        utils.varint(b"\xff" * 10 + b"\0", 0)


def test_fields_of_every_kind():
    message = field(1, 300) + varint(2 << 3 | 1) + b"12345678" + field(3, b"hello") + varint(15 << 3 | 5) + b"\1\0\0\1"
    expected = [(1, 300), (2, int.from_bytes(b"12345678", "little")), (3, b"hello"), (15, 0x01000001)]
    assert list(utils.fields(message)) == expected
    assert list(utils.fields(message + field(16, 7))) == [*expected, (16, 7)]
    for kind in (3, 4, 6, 7):
        with pytest.raises(ValueError, match="^holds a broken protocol buffer$"):
            list(utils.fields(varint(1 << 3 | kind) + bytes(20)))


# --------------------------------------------------------------------------------------------------- verification


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 9, 4096, 5681, 5682, 45476, 45477, 65535, 400_000, (1 << 20) + 1])
def test_crc32c_equals_google_s(size):
    data, seen = np.random.default_rng(size).bytes(size), list[int]()
    assert utils.crc32c(data, seen.append) == google_crc32c.value(data)
    assert sum(seen) == size


def test_each_data_file_is_verified_against_its_own_tensors(tmp_path):
    write_model(tmp_path, ODD, tensors_of(), n_shards=3)
    paths = list(utils.data_paths(tmp_path / "model.ckpt", 3))
    assert [path.name[-14:] for path in paths] == ["00000-of-00003", "00001-of-00003", "00002-of-00003"]
    for path in paths:
        good = path.read_bytes()
        for at in (0, len(good) // 2, len(good) - 1):
            path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            with pytest.raises(ValueError, match=re.escape(f"{path} is damaged: the checksum of model/")):
                utils.verify(tmp_path / "model.ckpt")
        path.write_bytes(good)
    assert utils.verify(tmp_path / "model.ckpt").endswith("; all checksums are right")


def test_only_text_is_not_verified(tmp_path):
    """TensorFlow computes the checksum of text in another way. Every other type is checked."""
    pairs = write_model(tmp_path, ODD, {"number": np.arange(3), "text": np.arange(2), "then": np.arange(2.0)})
    wrong = {b"text": entry_of(Entry(utils.STRING, (2,), 0, 24, 16, 0), bytes(4))}
    write_index(tmp_path, pairs | wrong)
    assert utils.verify(tmp_path / "model.ckpt") == "3 tensors, 7 numbers; all checksums are right"
    for name, dtype, shape, offset, size in ((b"number", 9, (3,), 0, 24), (b"then", 2, (2,), 40, 16)):
        write_index(tmp_path, pairs | wrong | {name: entry_of(Entry(dtype, shape, 0, offset, size, 0), bytes(4))})
        with pytest.raises(ValueError, match=f"is damaged: the checksum of {name.decode()} differs from the index"):
            utils.verify(tmp_path / "model.ckpt")


def test_what_tensorflow_reads_it_also_verifies(tmp_path):
    expected = "model.ckpt was read by TensorFlow, which checks it as it reads"
    assert utils.verify(tmp_path / "model.ckpt") == expected
    write_index(tmp_path, {b"": header(endianness=1), b"x": b""})
    assert utils.verify(tmp_path / "model.ckpt") == expected
