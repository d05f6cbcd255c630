"""Test training: gradients against PyTorch's, resuming, bad input, and the model in the repository."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, SMALL, loss_per_char, random_params, relative, shared, transformers_model

import gpt2
from encoder import BYTE_TO_CHAR, merge
from picogpt import jax_model, options
from picogpt.checkpoints.writing import initial_params
from utils import FILES, UsageError, load_encoder_hparams_and_params, read_text

pytestmark = pytest.mark.usefixtures("checked_shapes")

TINY = ROOT / "models" / "tiny"
# All tests train with the same shape and schedule where they can: XLA then compiles the step once for all of them.
SETTINGS = ["--n_vocab", "280", "--n_ctx", "16", "--n_embd", "12", "--n_head", "3", "--n_layer", "2"]
SETTINGS += [
    "--batch_size",
    "4",
    "--warmup",
    "1",
    "--lr",
    "0.01",
    "--average",
    "0.5",
    "--dropout",
    "0.2",
    "--steps",
    "4",
]


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    """Let JAX compile with little optimization, and only once for equal steps: these tests mostly wait for XLA."""
    jax = pytest.importorskip("jax", reason="training needs jax: requirements-train.txt")
    settings = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("jax")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def train(compiler):
    for name in ("optax", "tokenizers", "tensorflow"):
        pytest.importorskip(name, reason=f"training needs {name}: requirements-train.txt")
    import picogpt.train

    return picogpt.train


@pytest.fixture
def text(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    words = [*"the cat sat on a mat and looked at every bird that came by".split(), "—", "ö"]  # noqa: SIM905
    path = tmp_path / "text.txt"
    path.write_text(" ".join(rng.choice(words, 3000)), encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-12)])
def test_gradients_equal_pytorch_s(train, dtype, tolerance):
    torch = pytest.importorskip("torch")
    import jax
    import optax

    params = random_params(SMALL, dtype)
    ids = np.random.default_rng(1).integers(0, 101, 18)
    model = transformers_model(params, SMALL, dtype)
    logits = model(torch.tensor(ids[None, :-1])).logits[0]
    torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])).backward()
    theirs = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    module = jax_model.gpt2_in_jax()

    def loss(params):
        logits = module.gpt2(ids[:-1], **params, n_head=3)
        return optax.softmax_cross_entropy_with_integer_labels(logits, ids[1:]).mean()

    with jax.enable_x64(dtype == "float64"):
        ours = jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(params))
    assert relative(ours["wte"], theirs["transformer.wte.weight"]) < tolerance
    assert relative(ours["wpe"], theirs["transformer.wpe.weight"]) < tolerance
    assert relative(ours["ln_f"]["g"], theirs["transformer.ln_f.weight"]) < tolerance
    for layer, block in enumerate(ours["blocks"]):
        h = f"transformer.h.{layer}."
        for part, name in (("attn", "c_attn"), ("attn", "c_proj"), ("mlp", "c_fc"), ("mlp", "c_proj")):
            assert relative(block[part][name]["w"], theirs[f"{h}{part}.{name}.weight"]) < tolerance
            assert relative(block[part][name]["b"], theirs[f"{h}{part}.{name}.bias"]) < tolerance
        for name in ("ln_1", "ln_2"):
            assert relative(block[name]["g"], theirs[f"{h}{name}.weight"]) < tolerance
            assert relative(block[name]["b"], theirs[f"{h}{name}.bias"]) < tolerance


def test_dropout_drops_and_scales_only_with_a_key(train):
    import jax

    module = jax_model.gpt2_in_jax()
    dropout = jax_model.Dropout(module, 0.25)
    params = random_params(SMALL)
    without = gpt2.gpt2([1, 2, 3], **params, n_head=3)
    assert relative(np.asarray(module.gpt2(np.array([1, 2, 3]), **params, n_head=3)), without) < 2e-6
    dropout.key = jax.random.key(0)
    assert not np.allclose(module.gpt2(np.array([1, 2, 3]), **params, n_head=3), without)
    dropped = dropout.dropping(lambda: jax.numpy.ones(10000))()
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs(float(dropped.mean()) - 1) < 0.03


# -------------------------------------------------------------------------------------------------------- training


@pytest.mark.slow
def test_four_steps_lower_the_loss_and_the_model_runs(train, text, tmp_path, capsys):
    out = tmp_path / "models" / "new"
    plot = tmp_path / "loss.png"
    assert train.main([str(text), "--out", str(out), *SETTINGS, "--eval_every", "1", "--plot", str(plot)]) == 0
    encoder, hparams, params = load_encoder_hparams_and_params("new", out.parent)
    assert hparams == {"n_vocab": 280, "n_ctx": 16, "n_embd": 12, "n_head": 3, "n_layer": 2}
    assert {path.name for path in out.iterdir()} == set(FILES)
    assert not out.with_name("new.training").exists()
    _, held_out = train.split(text.read_text(encoding="utf-8"), 0.1)
    before = loss_per_char(held_out, encoder, initial_params(hparams, 0), hparams)
    after = loss_per_char(held_out, encoder, params, hparams)
    assert after < before - 0.05
    printed = float(capsys.readouterr().out.split("held-out loss ")[1].split()[0])
    assert printed == pytest.approx(after, abs=1e-3)  # JAX in batches and NumPy agree about the loss
    assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_a_resumed_run_ends_in_the_same_bytes(train, text, tmp_path, monkeypatch):
    settings = [*SETTINGS, "--eval_every", "2", "--seed", "7"]
    through, broken = tmp_path / "m" / "through", tmp_path / "m" / "broken"
    assert train.main([str(text), "--out", str(through), *settings]) == 0
    draw = train.batch

    def interrupted(ids, n_ctx, size, seed, step):
        if step == 3:
            raise KeyboardInterrupt
        return draw(ids, n_ctx, size, seed, step)

    monkeypatch.setattr(train, "batch", interrupted)
    assert train.main([str(text), "--out", str(broken), *settings]) == 130
    assert not broken.exists()
    monkeypatch.setattr(train, "batch", draw)
    with pytest.raises(FileExistsError, match="--resume"):
        train.main([str(text), "--out", str(broken), *settings])
    with pytest.raises(ValueError, match="begun with seed = 7, not 8"):
        train.main([str(text), "--out", str(broken), *settings[:-1], "8", "--resume"])
    assert train.main([str(text), "--out", str(broken), *settings, "--resume"]) == 0
    for path in through.iterdir():
        if path.name != "model.ckpt.meta":  # TensorFlow adds things to it that we don't control
            assert path.read_bytes() == (broken / path.name).read_bytes(), path.name


def test_early_stopping_waits_for_its_patience(train):
    history = [{"held_out": loss} for loss in (3.0, 2.0, 2.1, 2.2)]
    assert not train.stalled(history, 3)
    assert train.stalled(history, 2)
    assert not train.stalled(history, 0)


# -------------------------------------------------------------------------------------------------------- signals


@pytest.fixture
def handler_of_sigterm() -> Iterator[Callable[..., None]]:
    """Let SIGTERM raise SystemExit during a test."""

    def leave(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    yield leave
    signal.signal(signal.SIGTERM, before)


def test_a_signal_waits_until_it_is_let_through_and_a_second_one_does_not(handler_of_sigterm):
    done = []

    def work(*steps: Any) -> None:
        with jax_model.signals_held_back() as let_through:
            for step in steps:
                let_through() if step == "let through" else signal.raise_signal(step)
                done.append(step)

    for number, error in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)):
        for steps, n_done in ((("let through", number, "let through"), 2), ((number, number), 1), ((number,), 1)):
            done.clear()
            with pytest.raises(error):
                work(*steps)
            assert len(done) == n_done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is handler_of_sigterm


def test_ctrl_c_is_not_lost_while_jax_compiles(train, text, tmp_path, monkeypatch, capsys):
    """Python reports an exception that JAX calls back into, and goes on, or crashes."""

    class Losing(jax_model.Trainer):
        def __init__(self, args):
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            super().__init__(args)

    def fail(*args):
        raise AssertionError("the training must not begin")

    monkeypatch.setattr(train, "Trainer", Losing)
    monkeypatch.setattr(train, "batch", fail)
    assert train.main([str(text), "--out", str(tmp_path / "m"), *SETTINGS]) == 130
    assert f"--resume continues from {tmp_path / 'm.training'}" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- bad input

HISTORY = [{"step": step, "loss": 3.0, "held_out": 2.5, "seconds": 1.5} for step in (2, 4)]


@pytest.fixture
def state(train, tmp_path) -> tuple[Path, dict[str, Any]]:
    """Return the file of a small saved state, and the tree in it."""
    tree = {"params": np.arange(6, dtype=np.float32).reshape(2, 3), "state": [np.int32(4)]}
    train.save_state(tmp_path, tree, HISTORY)
    return tmp_path / "state.npz", tree


def assert_damaged_or_right(train: Any, state: tuple[Path, dict[str, Any]]) -> bool:
    """Check that a state is refused with one line that names its file, or read as it was. Return which of the two."""
    path, tree = state
    try:
        loaded, history = train.load_state(path.parent, tree)
    except ValueError as error:
        assert f"{path} is damaged (" in str(error)
        assert str(error).endswith(f": remove {path.parent}, and train from the start")
        assert "\n" not in str(error)
        return False
    assert history == HISTORY
    assert loaded["params"].tolist() == tree["params"].tolist()
    assert loaded["state"] == [4]
    return True


def test_a_saved_state_is_read_again(train, state):
    assert assert_damaged_or_right(train, state)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_damaged_state_is_one_line(train, state):
    path, _ = state
    whole = path.read_bytes()
    for n in range(0, len(whole), 9):
        path.write_bytes(whole[:n])
        assert not assert_damaged_or_right(train, state)
    rng = np.random.default_rng(0)
    n_read = 0
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << int(rng.integers(8))]) + whole[at + 1 :])
        n_read += assert_damaged_or_right(train, state)
    assert n_read < len(whole) / 6  # the rest is in fields of the zip file that nobody reads, such as dates
    for _ in range(100):
        at, length = rng.integers(len(whole)), rng.integers(1, 60)
        path.write_bytes(whole[:at] + rng.bytes(length) + whole[at + length :])
        assert_damaged_or_right(train, state)


def test_a_state_of_another_kind_is_one_line(train, state):
    path, tree = state
    arrays = {"leaf0": tree["params"], "leaf1": tree["state"][0]}
    row = HISTORY[0]
    histories = [5, {}, [], [5], [row | {"step": "4"}], [row | {"loss": math.nan}], [row | {"step": True}], [row, row]]
    histories += [[row | {"step": 0}], [row | {"step": 1.5}], [row | {"more": 1}], [row | {"step": 10**400}]]
    for history in histories:
        np.savez(path, history=json.dumps(history), **arrays)
        assert not assert_damaged_or_right(train, state), history
    good = json.dumps(HISTORY)
    for changed in (
        {"leaf0": arrays["leaf0"].T},
        {"leaf0": arrays["leaf0"].astype(np.float64)},
        {"leaf1": np.array("text")},
        {"leaf1": np.array([{}], dtype=object)},
        {"history": "[" * 100_000},
        {"history": np.array([1, 2])},
        {"history": "\ud800"},
    ):
        np.savez(path, **({"history": good} | arrays | changed))
        assert not assert_damaged_or_right(train, state), changed
    np.savez(path, history=good, leaf0=arrays["leaf0"])
    assert not assert_damaged_or_right(train, state)
    for array in (arrays["leaf0"], np.array([{}], dtype=object)):
        with open(path, "wb") as file:
            np.save(file, array)
        assert not assert_damaged_or_right(train, state)
    for data in (b"", b"text", b"PK\x03\x04", pickle.dumps(arrays), b"PK\x05\x06" + bytes(18)):
        path.write_bytes(data)
        assert not assert_damaged_or_right(train, state)


def test_a_damaged_work_folder_is_not_resumed(train, text, tmp_path, monkeypatch):
    """Not with other settings, and not with a tokenizer that would cut the text into other tokens."""
    arguments = [str(text), "--out", str(tmp_path / "m"), *SETTINGS]

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "batch", interrupted)
    assert train.main(arguments) == 130
    work = tmp_path / "m.training"
    merges, settings = (work / "vocab.bpe").read_bytes(), (work / "settings.json").read_bytes()
    (work / "vocab.bpe").write_bytes(merges[: merges.rindex(b"\n", 0, -1) + 1])
    with pytest.raises(ValueError, match="was begun with tokenizer = "):
        train.main([*arguments, "--resume"])
    (work / "vocab.bpe").write_bytes(merges)
    for damaged, message in ((settings[:-9], "not JSON"), (b"[]", "not a JSON object"), (b"\xff", "not JSON")):
        (work / "settings.json").write_bytes(damaged)
        with pytest.raises(ValueError, match=f"settings.json is {message}"):
            train.main([*arguments, "--resume"])
    (work / "settings.json").unlink()
    with pytest.raises(FileNotFoundError):
        train.main([*arguments, "--resume"])


@pytest.mark.skipif(sys.platform == "win32", reason="links of POSIX")
@pytest.mark.parametrize("name", ["link", "loop", "nd/..", "nd/x/..", "."])
def test_a_name_that_no_folder_can_have_is_refused_before_the_work(train, text, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises((FileExistsError, UsageError), match="exists already|is not the name of a folder to make"):
        train.main([str(text), "--out", name, *SETTINGS])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "loop", "text.txt"]


def test_a_plot_that_is_a_folder_is_refused_before_the_work(train, text, tmp_path):
    (tmp_path / "loss.png").mkdir()
    with pytest.raises(IsADirectoryError, match="loss.png is a folder"):
        train.main([str(text), "--out", str(tmp_path / "m"), *SETTINGS, "--plot", str(tmp_path / "loss.png")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", "text.txt"]


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="a device of POSIX")
def test_a_text_without_an_end_is_not_read(train, tmp_path):
    for device in ("/dev/zero", "/dev/full"):
        if Path(device).exists():
            with pytest.raises(UsageError, match=f"{device} has more than 1 MB"):
                train.main([device, "--out", str(tmp_path / "m"), *SETTINGS])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a pipe with a name")
def test_a_text_from_a_pipe(text, tmp_path):
    """The shell makes such a pipe for <(cat TEXT)."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    expected, results = text.read_text(encoding="utf-8") * 100, []

    def write() -> None:
        with contextlib.suppress(BrokenPipeError):  # the reader stops at its limit
            pipe.write_text(expected, encoding="utf-8")

    for megabytes in (2, 1):
        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        with contextlib.suppress(UsageError):
            results.append(read_text(pipe, megabytes))
        writer.join()
    assert len(expected) > 1 << 20
    assert results == [expected]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), [("loss", "step"), ("held-out loss", "held_out_loss")])
def test_a_loss_that_is_not_a_number_keeps_the_last_good_state(train, text, tmp_path, monkeypatch, name, method):
    class Diverging(jax_model.Trainer):
        def __init__(self, args):
            super().__init__(args)
            function, calls = getattr(self, method), iter(range(1, 9))

            def nan_at_the_third(*args):
                result = function(*args)
                if next(calls) < 3:
                    return result
                return (*result[:-1], math.nan) if method == "step" else math.nan

            setattr(self, method, nan_at_the_third)

    monkeypatch.setattr(train, "Trainer", Diverging)
    with pytest.raises(ValueError, match=f"the {name} is nan at step 3: lower --lr; .* has the last good state"):
        train.main([str(text), "--out", str(tmp_path / "m"), *SETTINGS, "--eval_every", "1"])
    assert not (tmp_path / "m").exists()
    with np.load(tmp_path / "m.training" / "state.npz") as state:
        assert json.loads(str(state["history"]))[-1]["step"] == 2
        assert all(np.isfinite(state[name]).all() for name in state.files if name != "history")


def test_a_text_too_short_for_the_context(train, tmp_path):
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(ValueError, match="short.txt: a part of 1 characters is too short for n_ctx = 16"):
        train.main([str(tmp_path / "short.txt"), "--out", str(tmp_path / "m"), *SETTINGS])
    (tmp_path / "poor.txt").write_text("ab" * 400)
    with pytest.raises(ValueError, match="pairs for only .* tokens, not --n_vocab 280: lower it"):
        train.main([str(tmp_path / "poor.txt"), "--out", str(tmp_path / "m"), *SETTINGS])
    (tmp_path / "few.txt").write_text("the cat and the hat " * 9)
    with pytest.raises(ValueError, match="held-out part of the text has .* tokens, but needs at least n_ctx . 1 = 17"):
        train.main([str(tmp_path / "few.txt"), "--out", str(tmp_path / "m"), *SETTINGS, "--n_vocab", "262"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few.txt", "poor.txt", "short.txt"]


@pytest.mark.slow
def test_a_run_that_diverges_at_once_saves_nothing(train, text, tmp_path, monkeypatch):
    import jax

    def huge(hparams, seed):
        return jax.tree.map(lambda x: x * np.float32(1e30), initial_params(hparams, seed))

    monkeypatch.setattr(train, "initial_params", huge)
    with pytest.raises(ValueError, match="loss is (nan|inf) at step 1: lower --lr; nothing was saved"):
        train.main([str(text), "--out", str(tmp_path / "m"), *SETTINGS, "--eval_every", "1"])
    assert not (tmp_path / "m.training" / "state.npz").exists()


def test_another_text_is_not_resumed(train, text, tmp_path, monkeypatch):
    arguments = [str(text), "--out", str(tmp_path / "m"), *SETTINGS]

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "batch", interrupted)
    assert train.main(arguments) == 130
    text.write_text(text.read_text(encoding="utf-8") + " more", encoding="utf-8")
    with pytest.raises(ValueError, match="was begun with text = "):
        train.main([*arguments, "--resume"])


@pytest.mark.parametrize("plot", ["missing/loss.png", "loss.pdf"])
def test_an_unwritable_plot_is_an_error_before_the_work_begins(train, text, tmp_path, plot):
    with pytest.raises(ValueError, match="not the name of a .png file in a folder that exists"):
        train.main([str(text), "--out", str(tmp_path / "m"), *SETTINGS, "--plot", str(tmp_path / plot)])
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_a_text_that_is_not_utf8(train, tmp_path):
    (tmp_path / "bytes.txt").write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match="bytes.txt is not UTF-8: byte 3 is 0xff"):
        train.main([str(tmp_path / "bytes.txt"), "--out", str(tmp_path / "m"), *SETTINGS])


def test_an_existing_folder_is_never_overwritten(train, text, tmp_path):
    (tmp_path / "m").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        train.main([str(text), "--out", str(tmp_path / "m"), *SETTINGS])
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train.main([str(text), "--out", str(tmp_path / "other"), *SETTINGS, "--resume"])


@pytest.mark.parametrize("missing", ["jax", "optax", "tokenizers", "tensorflow"])
def test_a_missing_package_is_named(text, tmp_path, monkeypatch, missing):
    from picogpt import train

    monkeypatch.setattr(options.importlib.util, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(OSError, match=f"{missing} is not installed: pip install {missing}"):
        train.main([str(text), "--out", str(tmp_path / "m"), *SETTINGS])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n_head", "5"], "n_embd = 12 is not a multiple of 5"),
        (["--n_vocab", "200"], "200 is less than the 256 bytes"),
        (["--dropout", "1"], "at most 0.9"),
    ],
)
def test_impossible_settings(text, tmp_path, arguments, message):
    command = [sys.executable, "-m", "picogpt", "train", str(text), "--out", str(tmp_path / "m"), *SETTINGS, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


# ------------------------------------------------------------------------------------------ the model in the repository


def test_tiny_is_small_and_in_openai_s_layout():
    assert {path.name for path in TINY.iterdir()} == set(FILES)
    assert sum(path.stat().st_size for path in TINY.iterdir()) <= 6_000_000


def test_tiny_continues_exactly():
    encoder, hparams, params = load_encoder_hparams_and_params("tiny", TINY.parent)
    ids = gpt2.generate(encoder.encode("ROMEO:"), params, hparams["n_head"], 40)
    assert encoder.decode(ids) == (
        "\nI have been a borne, and I have been a born.\n\nROMEO:\nI will not be a sad, and I'll tell thee,\nI'll tell"
    )


def test_tiny_s_every_token_is_reached():
    encoder, _, _ = load_encoder_hparams_and_params("tiny", TINY.parent)
    for id in range(len(encoder.encoder) - 1):
        text = encoder.token_bytes(id).decode("latin-1").translate(BYTE_TO_CHAR)
        assert merge(list(text), encoder.cache.ranks) == [text]


def loss_of_tiny(text: str) -> float:
    encoder, hparams, params = load_encoder_hparams_and_params("tiny", TINY.parent)
    return loss_per_char(text, encoder, params, hparams)


def test_tiny_s_loss_on_a_text_of_our_own():
    ours = (
        "Good morrow, cousin. What news from the court?\nThe king is sick, my lord, and will not speak;\n"
        "His servants weep, and all the doors are shut.\nThen let us ride before the night is come.\n"
    )
    assert loss_of_tiny(ours) == pytest.approx(1.0737, abs=1e-4)
    assert loss_of_tiny(ours[::-1]) > 3  # it tells English from its mirror image


@pytest.mark.slow
def test_tiny_s_held_out_loss():
    from picogpt.train import split

    _, held_out = split(shared("text/tinyshakespeare.txt").read_text(encoding="utf-8"), 0.1)
    assert loss_of_tiny(held_out) == pytest.approx(1.5107, abs=5e-5)
