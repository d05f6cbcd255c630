"""Train a GPT-2 of any shape from a text file.

    python -m picogpt train TEXT --out models/NAME

A run keeps its tokenizer, its settings and the state of its last evaluation in a work folder beside the new model, so
that an interrupted run can be resumed. The gradients come from picogpt/jax_model.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from encoder import END_OF_TEXT, get_encoder
from picogpt.checkpoints.writing import initial_params, write_checkpoint, write_tokenizer
from picogpt.files import file_to_write, folder_to_make, new_file, new_folder
from picogpt.jax_model import Trainer, signals_held_back
from picogpt.options import add_force, require
from utils import HPARAMS, TOKENIZER_FILES, Parser, UsageError, log, number, read_json, read_text

Array = np.ndarray[Any, np.dtype[Any]]
History = list[dict[str, float]]  # one row for each evaluation: step, loss, held_out, seconds
LOSSES = {"held_out": "held out, nats per character", "loss": "training, nats per token"}


# --------------------------------------------------------------------------------------------------- text and tokens


def split(text: str, held_out: float) -> tuple[str, str]:
    """Split a text into the part to train on and the last part, which is held out."""
    at = round(len(text) * (1 - held_out))
    return text[:at], text[at:]


def train_merges(text: str, n_vocab: int) -> list[str]:
    """Return the merges of a byte-level BPE with n_vocab tokens, which include the 256 bytes and <|endoftext|>.

    Raises ValueError if the text has too few different pairs.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=n_vocab - 1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    if len(merges) != n_vocab - 257:
        raise ValueError(f"the text has pairs for only {len(merges) + 257} tokens, not --n_vocab {n_vocab}: lower it")
    return [" ".join(merge) for merge in merges]


def encode_texts(n_ctx: int, folder: Path, texts: tuple[str, str]) -> list[Array]:
    """Encode the training text and the held-out text. Raises ValueError if one is shorter than n_ctx + 1 tokens."""
    encoder = get_encoder(folder.name, folder.parent)
    ids = [np.array(encoder.encode(text), np.int32) for text in texts]
    for name, part in zip(("part of the text to train on", "held-out part of the text"), ids):
        if len(part) <= n_ctx:
            raise ValueError(f"the {name} has {len(part)} tokens, but needs at least n_ctx + 1 = {n_ctx + 1}")
    return ids


def batch(ids: Array, n_ctx: int, size: int, seed: int, step: int) -> tuple[Array, Array]:
    """Draw random windows of ids. They depend only on seed and step, so a resumed run draws the same ones."""
    rng = np.random.default_rng([seed, step])
    starts = rng.integers(0, len(ids) - n_ctx, size)[:, None] + np.arange(n_ctx)
    return ids[starts], ids[starts + 1]


# ---------------------------------------------------------------------------------------------------------- training


def save_state(folder: Path, tree: Any, history: History) -> None:
    """Write everything that a resumed run needs."""
    import jax

    arrays: dict[str, Any] = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
    with new_file(folder / "state.npz", replace=True) as file:
        np.savez(file, history=json.dumps(history), **arrays)


def load_state(folder: Path, tree: Any) -> tuple[Any, History]:
    """Read the file that `save_state` wrote, as a tree of the same structure as `tree`.

    Raises OSError, or ValueError if the file is damaged or was not written by a run with these settings.
    """
    import jax

    path, leaves = folder / "state.npz", jax.tree.leaves(tree)
    with open(path, "rb") as file:
        try:
            with np.load(file) as state:
                history = check_history(json.loads(str(state["history"])))
                saved = [state[f"leaf{i}"] for i in range(len(leaves))]
            if [(x.shape, x.dtype) for x in saved] != [(x.shape, x.dtype) for x in leaves]:
                raise ValueError("its arrays are not those of this model")
        except Exception as error:  # NumPy and zipfile raise a dozen types, such as BadZipFile, EOFError and KeyError
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{path} is damaged ({reason}): remove {folder}, and train from the start") from None
    return jax.tree.unflatten(jax.tree.structure(tree), saved), history


def check_history(history: Any) -> History:
    """Return the history of a run. Raises ValueError if it is not one."""
    for row in (rows := history if isinstance(history, list) else []):
        numbers = row.values() if isinstance(row, dict) and row.keys() == {"step", *LOSSES, "seconds"} else [math.nan]
        if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise ValueError("its history has a row that is not one")
    steps = [row["step"] for row in rows]
    if not steps or steps != sorted({int(step) for step in steps}) or steps[0] < 1:
        raise ValueError("the steps of its history are not in order")
    return rows


def start(args: argparse.Namespace, trainer: Trainer) -> tuple[Any, History]:
    """Return the state to train from and the history so far: new ones, or those of an interrupted run.

    The state has the parameters, the optimizer's state, the exponential moving average (ema) of the parameters, and the
    average that had the lowest held-out loss so far.
    """
    import jax

    params = jax.tree.map(jax.numpy.asarray, initial_params(hparams_of(args), args.seed))
    tree = {"params": params, "state": trainer.optimizer.init(params), "ema": params, "best": params}
    history: History = []
    if (work_folder(args) / "state.npz").exists():
        tree, history = load_state(work_folder(args), tree)
    return jax.tree.map(jax.numpy.array, tree), history


def run_steps(
    args: argparse.Namespace,
    trainer: Trainer,
    tree: Any,
    ids: Array,
    steps: range,
    bar: Any,
    before_step: Callable[[], None],
) -> float:
    """Train for these steps, update the tree in place, and return the mean loss in nats per token."""
    import jax

    key, losses = jax.random.key(args.seed), []
    for step in steps:
        before_step()
        inputs, targets = batch(ids, args.n_ctx, args.batch_size, args.seed, step)
        tree["params"], tree["state"], tree["ema"], loss = trainer.step(
            tree["params"], tree["state"], tree["ema"], inputs, targets, jax.random.fold_in(key, step)
        )
        losses.append(float(loss))
        check_finite(args, "loss", losses[-1], step + 1)
        bar.update()
    return float(np.mean(losses))


def train(args: argparse.Namespace, texts: tuple[str, str]) -> tuple[Any, History]:
    """Train until all steps are done, or until the held-out loss has not fallen for --patience evaluations.

    Returns the averaged parameters that had the lowest held-out loss, and the history. Raises ValueError if a loss is
    infinite or not a number.
    """
    work = work_folder(args)
    ids, held_out_ids = encode_texts(args.n_ctx, work, texts)
    with signals_held_back() as let_signals_through:
        import jax
        from tqdm import tqdm

        let_signals_through()
        trainer = Trainer(args)
        tree, history = start(args, trainer)
        step, seconds = (int(history[-1]["step"]), history[-1]["seconds"]) if history else (0, 0.0)
        best = min((row["held_out"] for row in history), default=math.inf)
        began = time.monotonic() - seconds
        with tqdm(total=args.steps, initial=step, unit="step", desc=args.out.name) as bar:
            while step < args.steps and not stalled(history, args.patience):
                steps = range(step, min(step + args.eval_every - step % args.eval_every, args.steps))
                loss = run_steps(args, trainer, tree, ids, steps, bar, let_signals_through)
                step = steps.stop
                held_out = trainer.held_out_loss(tree["ema"], held_out_ids) / len(texts[1])
                check_finite(args, "held-out loss", held_out, step)
                history.append({"step": step, "loss": loss, "held_out": held_out, "seconds": time.monotonic() - began})
                if held_out < best:
                    best, tree["best"] = held_out, jax.tree.map(lambda x: x.copy(), tree["ema"])
                save_state(work, tree, history)
                bar.set_postfix_str(f"loss {loss:.3f}/token, held out {held_out:.4f}/char, best {best:.4f}")
    if step < args.steps:
        log(f"stopped after step {step}: no lower held-out loss in {args.patience} evaluations")
    return jax.tree.map(np.asarray, tree["best"]), history


def check_finite(args: argparse.Namespace, name: str, loss: float, step: int) -> None:
    """Raise ValueError if a loss is infinite or not a number: the run has diverged."""
    if not math.isfinite(loss):
        work = work_folder(args)
        saved = f"{work} has the last good state" if (work / "state.npz").exists() else "nothing was saved before"
        raise ValueError(f"the {name} is {loss} at step {step}: lower --lr; {saved}")


def stalled(history: History, patience: int) -> bool:
    """Return whether the held-out loss has not fallen for `patience` evaluations. If `patience` is 0, return False."""
    losses = [row["held_out"] for row in history]
    return 0 < patience < len(losses) - losses.index(min(losses)) if losses else False


def plot(history: History, path: Path, force: bool = False) -> None:
    """Draw both losses over the steps, in two panels because their units differ."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (name, title) in zip(panels, LOSSES.items()):
        axes.plot([row["step"] for row in history], [row[name] for row in history], marker=".")
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
    with new_file(path, force) as file:
        figure.savefig(file, format="png", dpi=150)


# --------------------------------------------------------------------------------------------------- the command line


def hparams_of(args: argparse.Namespace) -> dict[str, int]:
    return {name: getattr(args, name) for name in HPARAMS}


def work_folder(args: argparse.Namespace) -> Path:
    """Return the folder in which a run keeps its tokenizer, settings and state until it is done."""
    return Path(args.out.with_name(args.out.name + ".training"))


WHOLE, WHOLE_OR_0 = number(1, kind=int), number(0, kind=int)
NUMBERS: dict[str, tuple[float, Callable[[str], float], str, str]] = {  # option: default, parser, metavar, help
    "held_out": (0.1, number(0.001, 0.9), "P", "the share of the text, at its end, that is held out"),
    "n_vocab": (512, WHOLE, "N", "tokens in the vocabulary"),
    "n_ctx": (256, WHOLE, "N", "tokens in the context"),
    "n_embd": (128, WHOLE, "N", "width of the model"),
    "n_head": (4, WHOLE, "N", "attention heads in each layer"),
    "n_layer": (6, WHOLE, "N", "layers"),
    "steps": (4000, WHOLE, "N", "training steps"),
    "batch_size": (32, WHOLE, "N", "windows of n_ctx tokens in each step"),
    "lr": (2e-3, number(0, open_low=True), "X", "the peak learning rate"),
    "warmup": (100, WHOLE_OR_0, "N", "steps in which the learning rate rises to --lr"),
    "weight_decay": (0.1, number(0), "X", "AdamW's weight decay"),
    "dropout": (0.1, number(0, 0.9), "P", "the dropout probability"),
    "average": (0.99, number(0, 0.9999), "X", "decay of the exponential moving average of the weights, in each step"),
    "eval_every": (100, WHOLE, "N", "steps between two evaluations on the held-out text"),
    "patience": (10, WHOLE_OR_0, "N", "stop after N evaluations without a lower loss; 0: never stop early"),
    "seed": (0, WHOLE_OR_0, "S", "a number: the same seed gives the same model"),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m picogpt train",
        description="Train a GPT-2 from a text file and write it as a model folder.",
        epilog="""examples:
  python -m picogpt train shakespeare.txt --out models/shakespeare --plot loss.png
  python -m picogpt train shakespeare.txt --out models/shakespeare --resume    (after Ctrl-C)""",
    )
    add = parser.add_argument
    add("text", type=Path, help="a UTF-8 text file")
    add("--out", type=Path, required=True, metavar="models/NAME", help="the folder to make")
    add_force(parser)
    add("--resume", action="store_true", help="continue an interrupted run that had the same settings")
    add("--plot", type=Path, metavar="FILE.png", help="draw the losses into this file (needs matplotlib)")
    for name, (default, parse, metavar, text) in NUMBERS.items():
        add(f"--{name}", type=parse, default=default, metavar=metavar, help=f"{text} (default: {default})")
    args = parser.parse_args(argv)
    if args.n_embd % args.n_head:
        parser.error(f"argument --n_head: n_embd = {args.n_embd} is not a multiple of {args.n_head}")
    if args.n_vocab < 257:
        parser.error(f"argument --n_vocab: {args.n_vocab} is less than the 256 bytes and {END_OF_TEXT}")
    return args


def check_paths(args: argparse.Namespace) -> None:
    """Raise UsageError or OSError before the training begins if the outputs can't be made."""
    if args.plot and (args.plot.suffix != ".png" or not args.plot.absolute().parent.is_dir()):
        raise UsageError(f"--plot {args.plot}: not the name of a .png file in a folder that exists")
    folder_to_make(args.out, args.force)
    if args.plot:
        file_to_write(args.plot, args.force)


def sha256_of_tokenizer(folder: Path) -> str:
    """Return the SHA-256 of the tokenizer's files in a folder. With a damaged one, the tokens would be others."""
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in TOKENIZER_FILES)).hexdigest()


def prepare(args: argparse.Namespace, texts: tuple[str, str]) -> None:
    """Make the work folder of a new run, or check that the existing one was begun with the same settings."""
    work = work_folder(args)
    settings = {k: v for k, v in vars(args).items() if k not in ("text", "out", "resume", "force", "plot", "patience")}
    settings["text"] = hashlib.sha256("".join(texts).encode()).hexdigest()
    if work.exists():
        if not args.resume:
            raise FileExistsError(f"{work} has an interrupted run: continue it with --resume, or remove it")
        before, settings["tokenizer"] = read_json(work / "settings.json"), sha256_of_tokenizer(work)
        for name, value in settings.items():
            if before.get(name) != value:
                raise ValueError(f"{work} was begun with {name} = {before.get(name)}, not {value}")
        return
    if args.resume:
        raise FileNotFoundError(f"{work} does not exist: there is nothing to resume")
    with new_folder(work) as folder:
        write_tokenizer(folder, train_merges(texts[0], args.n_vocab))
        encode_texts(args.n_ctx, folder, texts)
        settings["tokenizer"] = sha256_of_tokenizer(folder)
        (folder / "settings.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    check_paths(args)
    require("jax", "optax", "tokenizers", "tensorflow", *(["matplotlib"] if args.plot else []))
    texts, work = split(read_text(args.text), args.held_out), work_folder(args)
    if (shortest := min(map(len, texts))) <= args.n_ctx:
        raise ValueError(f"{args.text}: a part of {shortest} characters is too short for n_ctx = {args.n_ctx}")
    prepare(args, texts)
    try:
        params, history = train(args, texts)
    except KeyboardInterrupt:
        log("")  # leave the line of the progress bar
        log(f"interrupted; --resume continues from {work}")
        return 130
    with new_folder(args.out, args.force) as folder:
        for name in TOKENIZER_FILES:
            shutil.copyfile(work / name, folder / name)
        write_checkpoint(folder, hparams_of(args), params)
    if args.plot:
        plot(history, args.plot, args.force)
    best = min(history, key=lambda row: row["held_out"])
    print(f"{args.out}: held-out loss {best['held_out']:.4f} nats per character at step {best['step']:.0f}")
    print(f"{history[-1]['step']:.0f} steps in {history[-1]['seconds']:.0f} s")
    shutil.rmtree(work)
    return 0
