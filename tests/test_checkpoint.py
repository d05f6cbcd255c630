"""Reading checkpoints: compared with TensorFlow's own reader, on good files of every kind and on broken ones."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import sys
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from helpers import ODD, run_command, shared
from hypothesis import example, given, settings
from hypothesis import strategies as st

import utils
from picogpt.checkpoints.writing import flatten, initial_params, write_checkpoint, write_random_model
from picogpt.files import new_folder
from utils import Entry, NeedsTensorFlow, crc32c, load_gpt2_params_from_tf_ckpt, load_hparams_and_params, read_index

tf = pytest.importorskip("tensorflow")


def assert_same_as_tensorflow(prefix: Path, params: dict) -> None:
    reader = tf.train.load_checkpoint(str(prefix))
    ours = flatten(params)
    assert set(ours) == {name for name in reader.get_variable_to_shape_map() if name.startswith("model/")}
    for name, array in ours.items():
        theirs = reader.get_tensor(name)
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
    prefixes = [str(tmp_path / part) for part in "abc"]
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=prefixes, destination_prefix=str(tmp_path / "model.ckpt"))
    assert len(list(tmp_path.glob("model.ckpt.data-*-of-00003"))) == 3
    assert_same_as_tensorflow(tmp_path / "model.ckpt", load_gpt2_params_from_tf_ckpt(tmp_path / "model.ckpt", ODD))


def save(prefix: Path, tensors: dict) -> None:
    names = list(tensors)
    tf.raw_ops.SaveV2(
        prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names), tensors=list(tensors.values())
    )


def test_a_fine_tuned_model_loads_by_its_folder_s_name(damaged, capsys):
    """Training scripts choose other names, and leave variables that are not the model's."""
    folder = damaged("my model")
    for name in ("index", "data-00000-of-00001", "meta"):
        (folder / f"model.ckpt.{name}").unlink()
    extra = {"global_step": np.int64(7), "flag": np.array([True, False]), "text": np.array([b"x"]), "none": np.zeros(0)}
    save(folder / "model-1000", flatten(params_of()) | extra)
    (folder / "checkpoint").write_text('model_checkpoint_path: "/somewhere/else/model-1000"\n')
    encoder, hparams, params = utils.load_encoder_hparams_and_params("my model", folder.parent)
    assert hparams == ODD
    assert len(encoder.encoder) == 300
    np.testing.assert_array_equal(params["wte"], params_of()["wte"])
    assert utils.main(["my model", "--models_dir", str(folder.parent)]) == 0
    assert "all checksums are right" in capsys.readouterr().out


def test_version_1_goes_through_tensorflow(tmp_path):
    tensors = flatten(params_of())
    tf.raw_ops.Save(filename=str(tmp_path / "model.ckpt"), tensor_names=list(tensors), data=list(tensors.values()))
    assert not (tmp_path / "model.ckpt.index").exists()
    params = load_gpt2_params_from_tf_ckpt(tmp_path / "model.ckpt", ODD)
    for name, array in flatten(params).items():
        np.testing.assert_array_equal(array, tensors[name])


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


def varint(n: int) -> bytes:
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def entry_bytes(entry: Entry, **more: bytes) -> bytes:
    shape = b"".join(field(2, field(1, n)) for n in entry.shape)
    numbers = field(1, entry.dtype) + field(2, shape) + field(3, entry.shard) + field(4, entry.offset)
    crc = ((entry.crc >> 15 | entry.crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return numbers + field(5, entry.size) + varint(6 << 3 | 5) + crc.to_bytes(4, "little") + more.get("extra", b"")


def table_block(pairs: list[tuple[bytes, bytes]], snappy: bool = False) -> bytes:
    content = b"".join(b"\0" + varint(len(key)) + varint(len(value)) + key + value for key, value in pairs)
    content += (0).to_bytes(4, "little") + (1).to_bytes(4, "little")
    if snappy:  # one literal: the simplest thing that Snappy's format allows
        size = len(content) - 1
        content = varint(len(content)) + b"\xf4" + size.to_bytes(2, "little") + content
    content += b"\1" if snappy else b"\0"
    crc = google_crc32c.value(content)
    return content + (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def write_table(path: Path, pairs: dict[bytes, bytes], snappy: bool = False) -> None:
    data = table_block(sorted(pairs.items()), snappy)
    handle = varint(0) + varint(len(data) - 5)
    meta, index = table_block([]), table_block([(b"zzz", handle)])
    footer = varint(len(data)) + varint(len(meta) - 5) + varint(len(data + meta)) + varint(len(index) - 5)
    path.write_bytes(data + meta + index + footer.ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little"))


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
        ({"dtype": 3}, "c_attn/b is int32"),
    ],
)
def test_an_index_that_lies_is_refused(rewritten, changed, message):
    entries, write = rewritten
    folder = write({BIAS: entries[BIAS]._replace(**changed)})
    with pytest.raises(ValueError, match=message) as error:
        load_hparams_and_params(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("header", [field(1, 1) + field(2, 1), HEADER])
def test_what_only_tensorflow_reads_is_an_error_without_it(rewritten, header, monkeypatch):
    entries, write = rewritten
    folder = write({BIAS: entries[BIAS]._replace(dtype=14, size=63 * 2)}, header=header)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ValueError, match="Reading it takes TensorFlow, which is not installed"):
        load_hparams_and_params(folder)


def test_tensors_in_slices_are_not_plain(rewritten):
    entries, write = rewritten
    folder = write(extra={b"model/wte": entry_bytes(entries["model/wte"], extra=field(7, b"")) + b""})
    with pytest.raises(NeedsTensorFlow, match="slices"):
        read_index(folder / "model.ckpt.index")


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


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capfd):
    """A limit on the size of files stands in for a full disk: TensorFlow's own writer fails."""
    resource = pytest.importorskip("resource", reason="limits on files are POSIX's")
    hparams = {"n_vocab": 300, "n_ctx": 16, "n_embd": 32, "n_head": 2, "n_layer": 2}
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def write() -> int:
        with new_folder(tmp_path / "new" / "model") as folder:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
            try:
                write_random_model(folder, hparams, 0)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return 0

    monkeypatch.setattr(sys, "argv", ["picogpt random_weights"])
    try:
        assert utils.run(write) == 1
    finally:
        signal.signal(signal.SIGXFSZ, handler)
    message = capfd.readouterr().err
    assert re.fullmatch(r"picogpt random_weights: TensorFlow can't write \S+; File too large\n", message), message
    assert not list(tmp_path.iterdir())


def test_writing_a_read_model_gives_the_same_bytes(models_dir, tmp_path):
    hparams, params = load_hparams_and_params(models_dir / "odd")
    write_checkpoint(tmp_path, hparams, params)
    for name in (utils.DATA, utils.INDEX, "hparams.json", "checkpoint"):
        assert (tmp_path / name).read_bytes() == (models_dir / "odd" / name).read_bytes()


def test_the_graph_can_be_imported(models_dir):
    folder = models_dir / "odd"
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        saver = tf.compat.v1.train.import_meta_graph(str(folder / "model.ckpt.meta"))
        saver.restore(session, str(folder / "model.ckpt"))
        wte = session.run("model/wte:0")
    np.testing.assert_array_equal(wte, load_hparams_and_params(folder)[1]["wte"])
