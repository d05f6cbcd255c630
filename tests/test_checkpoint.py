"""Reading checkpoints: compared with TensorFlow's own reader, on good files of every kind and on broken ones."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import tracemalloc
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import tensorflow_oracle
from helpers import ODD, assert_error, model_options, run_command, run_main, run_tensorflow, shared
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tables import entry_of, field, mask, snappy_block, table_block, table_of, varint

import encoder
import utils
from picogpt.checkpoints.writing import flatten, initial_params, write_checkpoint, write_random_model
from picogpt.files import new_folder
from utils import Entry, NeedsTensorFlow, crc32c, load_gpt2_params_from_tf_ckpt, load_hparams_and_params, read_index


def assert_same_as_tensorflow(prefix: Path, params: dict) -> None:
    ours, all_theirs = flatten(params), run_tensorflow(tensorflow_oracle.tensors, str(prefix))
    assert set(ours) == set(all_theirs)
    for name, array in ours.items():
        theirs = all_theirs[name]
        assert array.shape == theirs.shape, name
        assert array.dtype == theirs.dtype, name
        assert array.tobytes() == theirs.tobytes(), name


def params_of(dtype: str = "float32", seed: int = 3) -> dict:
    rng = np.random.default_rng(seed)
    tensors = {name: rng.standard_normal(shape).astype(dtype) for name, shape in utils.expected_shapes(ODD).items()}
    return utils.nest(tensors, ODD["n_layer"])


# -------------------------------------------------------------------------------------------------- checkpoints as good


@pytest.mark.slow
def test_full_size_bit_for_bit(full_size):
    hparams, params = load_hparams_and_params(full_size)
    assert hparams["n_layer"] == len(params["blocks"]) == 12
    assert_same_as_tensorflow(full_size / "model.ckpt", params)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_dtypes(tmp_path, dtype):
    write_checkpoint(tmp_path, ODD, params_of(dtype))
    _, params = load_hparams_and_params(tmp_path)
    assert params["wte"].dtype == dtype
    assert_same_as_tensorflow(tmp_path / "model.ckpt", params)


def test_every_parameter_is_a_read_only_view_of_the_mapped_file(models_dir):
    _, params = load_hparams_and_params(models_dir / "odd")
    for block in params["blocks"]:
        w = block["mlp"]["c_fc"]["w"]
        assert w.shape == (21, 84)
        assert not w.flags.owndata
        assert not w.flags.writeable
        assert isinstance(base(w), utils.mmap.mmap)


def base(array):
    while isinstance(array, np.ndarray):
        array = array.base
    return array.obj if isinstance(array, memoryview) else array


def test_size_1_dimensions_survive(tmp_path):
    """Every dimension but n_vocab is 1, so `squeeze` would drop too many."""
    hparams = {"n_vocab": 257, "n_ctx": 1, "n_embd": 1, "n_head": 1, "n_layer": 1}
    write_checkpoint(tmp_path, hparams, initial_params(hparams, 0))
    _, params = load_hparams_and_params(tmp_path)
    assert params["wte"].shape == (257, 1)
    assert params["blocks"][0]["attn"]["c_proj"]["w"].shape == (1, 1)
    assert params["blocks"][0]["attn"]["c_proj"]["b"].shape == (1,)


def test_more_than_ten_layers_keep_their_order(tmp_path):
    hparams = {"n_vocab": 257, "n_ctx": 4, "n_embd": 2, "n_head": 1, "n_layer": 12}
    params = initial_params(hparams, 0)
    for layer, block in enumerate(params["blocks"]):
        block["ln_1"]["g"] = np.full(2, layer, np.float32)
    write_checkpoint(tmp_path, hparams, params)
    _, read = load_hparams_and_params(tmp_path)
    assert [block["ln_1"]["g"][0] for block in read["blocks"]] == list(range(12))


def test_several_shards(tmp_path):
    tensors = flatten(params_of())
    names = sorted(tensors)
    for part, some in (("a", names[:7]), ("b", names[7:20]), ("c", names[20:])):
        save(tmp_path / part, {name: tensors[name] for name in some})
    run_tensorflow(tensorflow_oracle.merge, [str(tmp_path / part) for part in "abc"], str(tmp_path / "model.ckpt"))
    assert len(list(tmp_path.glob("model.ckpt.data-*-of-00003"))) == 3
    assert_same_as_tensorflow(tmp_path / "model.ckpt", load_gpt2_params_from_tf_ckpt(tmp_path / "model.ckpt", ODD))


def save(prefix: Path, tensors: dict) -> None:
    run_tensorflow(tensorflow_oracle.save, str(prefix), tensors)


def test_a_fine_tuned_model_loads_by_its_folder_s_name(damaged, capsys):
    """Training scripts choose other names, and leave variables that are not the model's."""
    folder = damaged("my model")
    for name in ("index", "data-00000-of-00001"):
        (folder / f"model.ckpt.{name}").unlink()
    extra = {"global_step": np.int64(7), "flag": np.array([True, False]), "text": np.array([b"x"]), "none": np.zeros(0)}
    save(folder / "model-1000", flatten(params_of()) | extra)
    (folder / "checkpoint").write_text('model_checkpoint_path: "/somewhere/else/model-1000"\n')
    tokenizer, hparams, params = utils.load_encoder_hparams_and_params("my model", folder.parent)
    assert hparams == ODD
    assert len(tokenizer.encoder) == 300
    np.testing.assert_array_equal(params["wte"], params_of()["wte"])
    assert utils.main(["my model", "--models_dir", str(folder.parent)]) == 0
    assert "all checksums are right" in capsys.readouterr().out


def write_version_1(folder: Path, tensors: dict) -> Path:
    """Put a checkpoint of the first version in place of a folder's own. Returns its prefix."""
    for path in folder.glob("model.ckpt*"):
        path.unlink()
    prefix = folder / "model.ckpt"
    run_tensorflow(tensorflow_oracle.save_version_1, str(prefix), tensors)
    return prefix


@pytest.mark.slow
def test_version_1_goes_through_tensorflow_without_its_noise(damaged):
    folder, tensors = damaged(), flatten(params_of())
    write_version_1(folder, tensors | {"global_step": np.int64(7), "text": np.array([b"x"])})
    code = (
        "import hashlib, pathlib, sys, utils; from picogpt.checkpoints.writing import flatten\n"
        "tensors = flatten(utils.load_hparams_and_params(pathlib.Path(sys.argv[1]))[1])\n"
        "print(hashlib.sha256(b''.join(tensors[name].tobytes() for name in sorted(tensors))).hexdigest())"
    )
    result = run_command("-c", code, folder, TF_CPP_MIN_LOG_LEVEL="0")
    digest = hashlib.sha256(b"".join(tensors[name].tobytes() for name in sorted(tensors))).hexdigest()
    assert result == (0, f"{digest}\n", "")


def test_tensorflow_is_not_imported_for_a_plain_one(models_dir):
    code = (
        "import pathlib, sys, utils; utils.load_hparams_and_params(pathlib.Path(sys.argv[1]));"
        "print([name for name in ('tensorflow', 'requests', 'tqdm', 'picogpt') if name in sys.modules])"
    )
    assert run_command("-c", code, models_dir / "odd") == (0, "[]\n", "")


def test_openai_s_real_index():
    entries, n_shards = read_index(shared("openai-117M/model.ckpt.index"))
    assert n_shards == 1
    assert len(entries) == 148
    assert max(entry.offset + entry.size for entry in entries.values()) == 497_759_232
    assert entries["model/h0/attn/c_attn/w"].shape == (1, 768, 2304)
    shapes = utils.expected_shapes(utils.load_hparams(shared("openai-117M/hparams.json")))
    assert {name: entry.shape for name, entry in entries.items()} == {f"model/{n}": s for n, s in shapes.items()}
    position = 0
    for entry in entries.values():  # the data file has no gaps
        assert entry.offset == position
        position += entry.size


# ------------------------------------------------------------------------------------------------------- checksums


@settings(deadline=None)
@given(st.binary(max_size=5000))
def test_crc32c_equals_google_s(data):
    assert crc32c(data) == google_crc32c.value(data)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 65535, 1 << 20, (1 << 24) + 3, (1 << 24) + 4])
def test_crc32c_of_large_data(size):
    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == google_crc32c.value(data)
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the standard


# -------------------------------------------------------------------- tables of our own, to lie in with good checksums


def entry_bytes(entry: Entry, **more: bytes) -> bytes:
    return entry_of(entry, mask(entry.crc)) + more.get("extra", b"")


def write_table(path: Path, pairs: dict[bytes, bytes], snappy: bool = False) -> None:
    path.write_bytes(table_of((snappy_block if snappy else table_block)(sorted(pairs.items()))))


HEADER = field(1, 1) + field(3, field(1, 1))


@pytest.fixture
def rewritten(damaged):
    """Return the entries of the small model's index, and a function that writes the index with changed entries."""
    folder = damaged()
    entries, _ = read_index(folder / "model.ckpt.index")

    def write(changed=None, header=HEADER, snappy=False, extra=None):
        pairs = {name.encode(): entry_bytes(entry) for name, entry in (entries | (changed or {})).items()}
        write_table(folder / "model.ckpt.index", {b"": header} | pairs | (extra or {}), snappy)
        return folder

    return entries, write


def test_an_index_we_wrote_is_read_by_us_and_by_tensorflow(rewritten):
    _, write = rewritten
    folder = write()
    assert_same_as_tensorflow(folder / "model.ckpt", load_hparams_and_params(folder)[1])


@pytest.mark.slow
def test_compressed_blocks_go_through_tensorflow(rewritten):
    _, write = rewritten
    folder = write(snappy=True)
    with pytest.raises(NeedsTensorFlow, match="compressed"):
        read_index(folder / "model.ckpt.index")
    assert_same_as_tensorflow(folder / "model.ckpt", load_hparams_and_params(folder)[1])


BIAS = "model/h0/attn/c_attn/b"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 4}, "does not fit 4 bytes"),
        ({"shard": 1}, "in shard 1 of 1"),
        ({"shape": (62,)}, "does not fit"),
        ({"offset": 10**9}, "but its index describes"),
        ({"offset": 1 << 62}, "but its index describes"),
        ({"shape": (1 << 62, 21)}, "does not fit"),
        ({"shape": (3, 21)}, r"c_attn/b is \(3, 21\), but hparams.json implies \(63,\)"),
        ({"shape": (1 << 64, 0)}, "does not fit"),
        ({"dtype": 3}, "c_attn/b is int32, but gpt2.py computes with float32, float16 or float64 only"),
        ({"dtype": 14, "size": 126}, "c_attn/b: it is bfloat16, but gpt2.py computes with float32, float16 or float64"),
        ({"dtype": 99}, "c_attn/b: it is of TensorFlow's type 99, but gpt2.py computes with float32"),
    ],
)
def test_an_index_that_lies_is_refused(rewritten, changed, message):
    entries, write = rewritten
    folder = write({BIAS: entries[BIAS]._replace(**changed)})
    with pytest.raises(ValueError, match=message) as error:
        load_hparams_and_params(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("endianness", [1, 2, 300])
def test_what_only_tensorflow_reads_is_an_error_without_it(rewritten, endianness, monkeypatch):
    _, write = rewritten
    folder = write(header=field(1, 1) + field(2, endianness))
    with pytest.raises(NeedsTensorFlow, match="is big-endian"):
        read_index(folder / "model.ckpt.index")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ValueError, match="Reading it takes TensorFlow, which is not installed"):
        load_hparams_and_params(folder)


def test_tensors_in_slices_are_not_plain(rewritten):
    entries, write = rewritten
    folder = write(extra={b"model/wte": entry_bytes(entries["model/wte"], extra=field(7, b"")) + b""})
    with pytest.raises(NeedsTensorFlow, match="slices"):
        read_index(folder / "model.ckpt.index")


def test_a_tensor_of_another_type_than_the_others_is_refused():
    tensors = {name: np.zeros(shape, np.float32) for name, shape in utils.expected_shapes(ODD).items()}
    utils.check_tensors(tensors, ODD, "x.index")
    tensors["h1/ln_2/b"] = tensors["h1/ln_2/b"].astype(np.float16)
    with pytest.raises(ValueError, match="x.index: model/h1/ln_2/b is float16, but model/wte is float32"):
        utils.check_tensors(tensors, ODD, "x.index")


@pytest.mark.timeout(20)
def test_an_index_that_claims_billions_of_data_files_is_an_error_at_the_first(damaged, monkeypatch):
    monkeypatch.setattr(utils, "read_index", lambda path: ({}, 1 << 40))
    with pytest.raises(FileNotFoundError, match="model.ckpt.data-00000-of-1099511627776"):
        utils.read_plain(damaged() / "model.ckpt")


@settings(max_examples=300, deadline=None)
@example(b"\n\2ab", True)
@given(st.binary(max_size=80), st.booleans())
def test_any_bytes_as_an_entry_never_crash_the_reader(tmp_path_factory, junk, header):
    path = tmp_path_factory.mktemp("junk") / "model.ckpt.index"
    write_table(path, {b"": junk if header else HEADER, b"model/wte": b"" if header else junk})
    try:
        entries, _ = read_index(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert set(entries) == {"model/wte"}
        with pytest.raises((ValueError, OSError)):
            load_gpt2_params_from_tf_ckpt(str(path)[: -len(".index")], ODD)


# ------------------------------------------------------------------------------------- indices that want too much of us


def raw_block(content: bytes) -> bytes:
    content += (0).to_bytes(4, "little") + (1).to_bytes(4, "little") + b"\0"
    crc = google_crc32c.value(content)
    return content + (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def write_blocks(path: Path, blocks: list[bytes], order: list[int]) -> Path:
    """Write a table whose index names the blocks in this order, which may name one several times."""
    starts = list(itertools.accumulate(map(len, blocks), initial=0))
    handles = [varint(starts[i]) + varint(len(blocks[i]) - 5) for i in order]
    meta = table_block([])
    index = table_block([(b"%06d" % i, handle) for i, handle in enumerate(handles)])
    footer = varint(starts[-1]) + varint(len(meta) - 5) + varint(starts[-1] + len(meta)) + varint(len(index) - 5)
    path.write_bytes(
        b"".join(blocks) + meta + index + footer.ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")
    )
    return path


@pytest.mark.timeout(20)
def test_keys_that_grow_are_refused_before_they_fill_the_memory(tmp_path):
    content = b"".join(varint(i) + b"\1\0x" for i in range(20_000))  # each key is the one before and an x: 200 MB
    path = write_blocks(tmp_path / "x.index", [raw_block(content)], [0])
    tracemalloc.start()
    with pytest.raises(ValueError, match="x.index is damaged: an entry of the block at byte 0 does not fit"):
        read_index(path)
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


def test_the_longest_key_and_the_most_entries_that_are_read(tmp_path):
    entry = entry_bytes(Entry(1, (1,), 0, 0, 4, 0))
    read_index(write_blocks(tmp_path / "x.index", [table_block([(b"n" * 1000, entry)])], [0]))
    with pytest.raises(ValueError, match="does not fit"):
        read_index(write_blocks(tmp_path / "x.index", [table_block([(b"n" * 1001, entry)])], [0]))
    with pytest.raises(ValueError, match="does not fit"):
        read_index(write_blocks(tmp_path / "x.index", [table_block([(b"n", b"v" * 1001)])], [0]))


@pytest.mark.parametrize(("more", "message"), [(0, ""), (1, "x.index has more than 500 entries")])
def test_an_index_has_a_limited_number_of_entries(tmp_path, monkeypatch, more, message):
    monkeypatch.setattr(utils, "MAX_ENTRIES", 500)
    pairs = [(b"%04d" % i, b"") for i in range(500 + more)]
    path = write_blocks(tmp_path / "x.index", [table_block(pairs[:300]), table_block(pairs[300:])], [0, 1])
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        assert len(read_index(path)[0]) == 500


@pytest.mark.parametrize("order", [[0, 0], [1, 0], [0, 1, 1]])
def test_a_block_is_read_once(tmp_path, order):
    blocks = [table_block([(b"a", b"")]), table_block([(b"b", b"")])]
    assert set(read_index(write_blocks(tmp_path / "x.index", blocks, [0, 1]))[0]) == {"a", "b"}
    with pytest.raises(ValueError, match=r"x.index is damaged: the block at byte \d+ is listed twice, or overlaps"):
        read_index(write_blocks(tmp_path / "x.index", blocks, order))


def test_tensors_that_overlap_are_refused(rewritten):
    """Otherwise an index of a megabyte could have the same bytes verified for days."""
    entries, write = rewritten
    folder = write({BIAS: entries[BIAS]._replace(offset=entries["model/wte"].offset)})
    with pytest.raises(ValueError, match="its index describes tensors that overlap"):
        load_hparams_and_params(folder)


@pytest.mark.timeout(20)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
@pytest.mark.parametrize("name", [name for name in utils.FILES if name != utils.META])
def test_a_pipe_in_place_of_a_file_is_refused(damaged, name):
    folder = damaged()
    (folder / name).unlink()
    os.mkfifo(folder / name)
    result = run_main("gpt2.py", "a", *model_options(folder))
    assert_error(result, 1, f"gpt2.py: {folder / name} is not a regular file")


def test_a_small_file_that_is_large_is_refused_unread(damaged):
    folder = damaged()
    os.truncate(folder / "hparams.json", 1 << 40)
    with pytest.raises(ValueError, match=r"hparams.json has 1,099,511,627,776 bytes, but .* at most 16,777,216"):
        load_hparams_and_params(folder)


# ----------------------------------------------------------------------------------------------- which checkpoint it is


@pytest.mark.parametrize(
    "path", [r"C:\\Users\\me\\model-20", r"C:\Users\me\model-20", "/home/me/model-20", "./model-20", "model-20"]
)
def test_the_folder_that_a_checkpoint_was_written_to_does_not_matter(tmp_path, path):
    (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{path}"\n')
    assert utils.checkpoint_prefix(tmp_path) == tmp_path / "model-20"


@pytest.mark.parametrize("content", [None, b"", b"<html>", b"\xff", b'model_checkpoint_path: "a\0b"\n'])
def test_without_a_name_the_only_checkpoint_is_read(damaged, content):
    folder = damaged()
    for path in folder.glob("model.ckpt.*"):
        path.rename(folder / path.name.replace("model.ckpt", "model-20"))
    (folder / "checkpoint").unlink()
    if content is not None:
        (folder / "checkpoint").write_bytes(content)
    assert load_hparams_and_params(folder)[1]["wte"].shape == (300, 21)
    (folder / "model-30.index").touch()
    with pytest.raises(FileNotFoundError) as error:
        load_hparams_and_params(folder)
    assert str(error.value) == f"{folder / 'checkpoint'} does not name one of model-20, model-30"
    (folder / "model.ckpt.index").touch()
    assert utils.checkpoint_prefix(folder) == folder / "model.ckpt"


# ------------------------------------------------------------------------------------- what is known of OpenAI's models


def test_openai_s_real_files():
    """Whether each file is OpenAI's is known by its sha256 or, of hparams.json, by its values."""
    for name in utils.FILES[:-1]:
        path = shared("openai-117M") / name
        utils.check_file(path, name, Path("models/124M"))
        if name != "hparams.json":
            digest = utils.SHA256.get(name) or utils.SHA256[f"124M/{name}"]
            assert hashlib.sha256(path.read_bytes()).hexdigest() == digest


@pytest.fixture
def published(models_dir, monkeypatch):
    """Let the small model be one that OpenAI published as "355M", whose sha256 is unknown but for the tokenizer."""
    monkeypatch.setitem(utils.SIZES, "355M", ODD)
    digests = {n: hashlib.sha256((models_dir / "odd" / n).read_bytes()).hexdigest() for n in utils.TOKENIZER_FILES}
    monkeypatch.setattr(utils, "SHA256", digests)
    merges = encoder.read_merges(models_dir / "odd" / "vocab.bpe")
    monkeypatch.setattr(encoder, "OPENAI_MERGES", hashlib.sha256("\n".join(merges).encode()).hexdigest())


@pytest.mark.parametrize("name", utils.FILES[:-1])
def test_every_small_file_of_a_published_size_is_checked(published, damaged, name, capsys):
    folder = damaged("355M")
    assert utils.main(["355M", "--models_dir", str(folder.parent)]) == 0
    other = folder.parent / "other"
    other.mkdir()
    write_random_model(other, ODD | {"n_layer": 1, "n_vocab": 301}, 3)
    changes = {
        "checkpoint": b'model_checkpoint_path: "model-20"\n',
        "vocab.bpe": (folder / "vocab.bpe").read_bytes() + b"\n",
        "hparams.json": json.dumps(ODD | {"n_head": 7}).encode(),
    }
    utils.check_file(folder / name, name, folder)
    (folder / name).write_bytes(changes.get(name, (other / name).read_bytes()))
    with pytest.raises(ValueError, match=re.escape(str(folder / name))):
        utils.check_file(folder / name, name, folder)
    utils.check_file(folder / name, name, folder.with_name("of-mine"))  # a model of one's own may have another


@pytest.mark.parametrize("end", [1, 1000, 0.5])
def test_a_graph_cut_short_is_no_graph(published, damaged, end):
    folder = damaged("355M")
    data = (folder / utils.META).read_bytes()
    (folder / utils.META).write_bytes(data[: int(end * len(data)) if end < 1 else end])
    with pytest.raises(ValueError, match=re.escape(f"{folder / utils.META} is not a graph of the model")):
        utils.check_file(folder / utils.META, utils.META, folder)


@pytest.mark.parametrize(("name", "value"), [("n_head", 7), ("n_head", 1)])
def test_wrong_hparams_of_a_published_size_are_refused_at_each_start(published, damaged, name, value):
    """The shape of no tensor depends on n_head."""
    folder = damaged("355M")
    (folder / "hparams.json").write_text(json.dumps(ODD | {name: value}))
    result = run_main("gpt2.py", "a", *model_options(folder))
    assert_error(result, 1, f"{folder / 'hparams.json'}: {name} is {value}, but {ODD[name]} in OpenAI's 355M")


def test_an_n_head_unlike_openai_s_of_the_same_shape_is_reported(published, damaged, capsys):
    folder = damaged("fine-tuned")
    load_hparams_and_params(folder)
    assert capsys.readouterr().err == ""
    (folder / "hparams.json").write_text(json.dumps(ODD | {"n_head": 7}))
    assert load_hparams_and_params(folder)[0]["n_head"] == 7
    expected = f"{folder / 'hparams.json'}: n_head is 7, but 3 in OpenAI's 355M and in models made from it; "
    assert capsys.readouterr().err.startswith(expected)


def test_the_shapes_of_openai_s_sizes():
    heads = {(known["n_embd"], known["n_layer"]): known["n_head"] for known in utils.SIZES.values()}
    assert heads == {(768, 12): 12, (1024, 24): 16, (1280, 36): 20, (1600, 48): 25}
    assert utils.SIZES["124M"] == utils.load_hparams(shared("openai-117M/hparams.json"))


def test_merges_cut_short_are_refused_for_a_published_size(published, damaged):
    folder = damaged("355M")
    lines = (folder / "vocab.bpe").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "vocab.bpe").write_text("".join(lines[:-1]), encoding="utf-8")
    result = run_main("gpt2.py", "a", *model_options(folder))
    assert_error(result, 1, f"gpt2.py: {folder}: encoder.json and vocab.bpe are not OpenAI's of 355M")


def test_merges_cut_short_are_reported_for_other_models(damaged, capsys):
    folder = damaged()
    utils.load_encoder(folder)
    assert capsys.readouterr().err == ""
    path = folder / "vocab.bpe"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:-2]), encoding="utf-8")
    utils.load_encoder(folder)
    lost = lines[-2].replace(" ", "").strip()
    assert capsys.readouterr().err == (
        f"{path}: no merge makes 2 tokens of encoder.json, such as {lost!r}; "
        "if it is cut short, the tokens of every text are wrong\n"
    )


def test_special_tokens_need_no_merge(damaged, capsys):
    folder = damaged()
    tokens = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    tokens |= {"<pad>": len(tokens), "[SEP]": len(tokens) + 1}
    (folder / "encoder.json").write_text(json.dumps(tokens), encoding="utf-8")
    assert len(utils.load_encoder(folder).encoder) == 302
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------------------------- damaged files


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 255))
def test_a_changed_byte_of_the_index_is_found_or_harmless(models_dir, tmp_path_factory, at, change):
    original = (models_dir / "odd" / "model.ckpt.index").read_bytes()
    path = tmp_path_factory.mktemp("flip") / "model.ckpt.index"
    at %= len(original)
    path.write_bytes(original[:at] + bytes([original[at] ^ change]) + original[at + 1 :])
    try:
        assert read_index(path) == read_index(models_dir / "odd" / "model.ckpt.index")
        assert at >= len(original) - 48  # only the footer has bytes without meaning
    except ValueError as error:
        assert str(path) in str(error)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9))
def test_a_truncated_index_is_found(models_dir, tmp_path_factory, n):
    original = (models_dir / "odd" / "model.ckpt.index").read_bytes()
    path = tmp_path_factory.mktemp("cut") / "model.ckpt.index"
    path.write_bytes(original[: n % len(original)])
    with pytest.raises(ValueError, match="truncated"):
        read_index(path)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 7))
def test_a_flipped_bit_of_the_data_is_found(models_dir, tmp_path_factory, at, bit):
    path = tmp_path_factory.mktemp("bit") / utils.DATA
    data = bytearray((models_dir / "odd" / utils.DATA).read_bytes())
    data[at % len(data)] ^= 1 << bit
    path.write_bytes(data)
    entries, _ = read_index(models_dir / "odd" / "model.ckpt.index")
    with pytest.raises(ValueError, match="is damaged: the checksum of model/"):
        utils.verify_data([path], entries)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int64", "bool"])
def test_damage_is_found_in_tensors_of_every_type_but_text(tmp_path, dtype):
    save(tmp_path / "x", {"a": np.array([b"text"]), "b": np.arange(10).astype(dtype)})
    entries, _ = read_index(tmp_path / "x.index")
    path = tmp_path / "x.data-00000-of-00001"
    utils.verify_data([path], entries)
    data = bytearray(path.read_bytes())
    data[entries["b"].offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged: the checksum of b differs"):
        utils.verify_data([path], entries)


def test_damage_is_found_in_every_data_file(tmp_path):
    for part in "abc":
        save(tmp_path / part, {f"{part}{i}": np.full(30, ord(part) + i, np.float32) for i in range(3)})
    run_tensorflow(tensorflow_oracle.merge, [str(tmp_path / part) for part in "abc"], str(tmp_path / "x"))
    assert "9 tensors, 270 numbers" in utils.verify(tmp_path / "x")
    entries, n_shards = read_index(tmp_path / "x.index")
    for shard, path in enumerate(utils.data_paths(tmp_path / "x", n_shards)):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        last = max(utils.entries_in_shard(entries, shard))
        with pytest.raises(ValueError, match=f"{path.name} is damaged: the checksum of {last} differs"):
            utils.verify(tmp_path / "x")
        path.write_bytes(data)


@pytest.mark.parametrize("change", [-1, 1, -1000])
def test_a_data_file_of_another_length_is_refused(damaged, change):
    folder = damaged()
    path = folder / utils.DATA
    data = path.read_bytes()
    path.write_bytes(data + b"x" if change > 0 else data[:change])
    with pytest.raises(ValueError, match=f"has {len(data) + change:,} bytes, but its index describes {len(data):,}"):
        load_hparams_and_params(folder)
    with pytest.raises(ValueError, match="but its index describes"):
        utils.verify_data([path], read_index(folder / utils.INDEX)[0])


def test_an_empty_data_file_is_refused(damaged):
    folder = damaged()
    (folder / utils.DATA).write_bytes(b"")
    with pytest.raises(ValueError, match="has 0 bytes"):
        load_hparams_and_params(folder)


@settings(max_examples=200, deadline=None)
@given(
    st.none() | st.integers() | st.floats() | st.text() | st.booleans() | st.lists(st.integers(), max_size=3),
    st.sampled_from(utils.HPARAMS),
)
def test_any_hparams_give_an_error_or_the_right_model(models_dir, tmp_path_factory, value, name):
    folder = tmp_path_factory.getbasetemp() / "any hparams"
    if not folder.exists():
        shutil.copytree(models_dir / "odd", folder)
    (folder / "hparams.json").write_text(json.dumps(ODD | {name: value}))
    if name == "n_head" and type(value) is int and value > 0 and ODD["n_embd"] % value == 0:
        return  # no tensor's shape depends on it
    if type(value) is int and value == ODD[name]:
        return
    with pytest.raises(ValueError, match="hparams.json"):
        load_hparams_and_params(folder)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"n_vocab": 300}', "<html>", "\udcff"])
def test_hparams_that_are_none(damaged, text):
    folder = damaged()
    (folder / "hparams.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match="hparams.json"):
        load_hparams_and_params(folder)


# ------------------------------------------------------------------------------------------------------------ writing


def test_a_new_folder_is_complete_or_not_there(tmp_path):
    with contextlib.suppress(KeyboardInterrupt), new_folder(tmp_path / "m") as folder:
        (folder / "file").write_text("x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "m") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "m").exists()
    assert (tmp_path / "m" / "file").read_text() == "x"
    with pytest.raises(FileExistsError, match="exists already"), new_folder(tmp_path / "m"):
        pass


def test_a_failure_takes_the_parents_it_made_with_it(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(KeyError), new_folder(tmp_path / "there" / "new" / "newer" / "model"):
        raise KeyError
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]
