"""Train a GPT-2 of any shape from a text file, with gradients through the functions of gpt2.py themselves.

    python -m picogpt train TEXT --out models/NAME

The forward pass is gpt2.py's source, loaded once more with `np` replaced by `jax.numpy`. Dropout is a wrapper around
two of its functions, so that the model is written down once.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

import gpt2
from encoder import END_OF_TEXT, Encoder, get_encoder
from picogpt.checkpoints.writing import initial_params, write_checkpoint, write_tokenizer
from picogpt.files import new_file, new_folder
from utils import HPARAMS, Parser, UsageError, log, number, read_text

if TYPE_CHECKING:
    from picogpt.typing.shapes import Params

Array = np.ndarray[Any, np.dtype[Any]]
History = list[dict[str, float]]


# ----------------------------------------------------------------------------------------- the model, differentiable


def gpt2_in_jax() -> ModuleType:
    """gpt2.py as a module of its own, computing with jax.numpy."""
    import jax.numpy

    spec = importlib.util.spec_from_file_location("gpt2_in_jax", gpt2.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.np = jax.numpy  # type: ignore[attr-defined]
    return module


class Dropout:
    """Replaces mha and ffn of a JAX gpt2 module by versions that drop a share of their output's numbers.

    Active only while a key is set, which a jitted function does as it is traced. (Srivastava et al. 2014)
    """

    def __init__(self, module: ModuleType, rate: float):
        self.rate, self.key, self.used = rate, None, 0
        for name in ("mha", "ffn"):
            setattr(module, name, self.dropping(getattr(module, name)))

    def dropping(self, function: Any) -> Any:
        import jax

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            x = function(*args, **kwargs)
            if self.key is None or self.rate == 0:
                return x
            self.used += 1
            kept = jax.random.bernoulli(jax.random.fold_in(self.key, self.used), 1 - self.rate, x.shape)
            return jax.numpy.where(kept, x / (1 - self.rate), 0)

        return wrapped


# -------------------------------------------------------------------------------------------------- text and tokens


def train_merges(text: str, n_vocab: int) -> list[str]:
    """The merges of a byte-level BPE with n_vocab tokens, the 256 bytes and <|endoftext|> among them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=n_vocab - 1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    if len(merges) != n_vocab - 257:
        raise ValueError(f"the text has pairs for only {len(merges) + 257} tokens, not --n_vocab {n_vocab}: lower it")
    return [" ".join(merge) for merge in merges]


def split(text: str, held_out: float) -> tuple[str, str]:
    """The text to train on, and the last part of it, held out."""
    at = round(len(text) * (1 - held_out))
    return text[:at], text[at:]


def windows(ids: Array, n_ctx: int) -> Iterator[tuple[Array, Array]]:
    """Cut ids into consecutive inputs and targets, so that every id but the first is predicted once."""
    for start in range(0, len(ids) - 1, n_ctx):
        stop = min(start + n_ctx, len(ids) - 1)
        yield ids[start:stop], ids[start + 1 : stop + 1]


def loss_per_char(text: str, encoder: Encoder, params: Params, hparams: dict[str, int]) -> float:
    """The loss of a text in nats per character, by NumPy: the sum over its tokens ÷ its characters.

    The windows of n_ctx tokens are consecutive, each begins without context, and the first token is not predicted.
    """
    ids = np.array(encoder.encode(text))
    total = 0.0
    for inputs, targets in windows(ids, hparams["n_ctx"]):
        logits = gpt2.gpt2(inputs, **params, n_head=hparams["n_head"])
        probs = np.asarray(gpt2.softmax(logits.astype(np.float64)))
        total -= float(np.log(probs[np.arange(len(targets)), targets]).sum())
    return total / len(text)


# --------------------------------------------------------------------------------------------------------- training


class Trainer:
    """The functions that training compiles: one step, and the loss of held-out windows."""

    def __init__(self, args: argparse.Namespace, hparams: dict[str, int]):
        import jax
        import optax

        jnp = jax.numpy
        module = gpt2_in_jax()
        dropout = Dropout(module, args.dropout)
        schedule = optax.warmup_cosine_decay_schedule(
            0.0, args.lr, args.warmup, max(args.steps, args.warmup + 1), args.lr / 20
        )
        self.optimizer = optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(
                schedule,
                b2=0.99,
                weight_decay=args.weight_decay,
                mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
            ),
        )

        def losses(params: Any, inputs: Any, targets: Any) -> Any:
            logits = module.gpt2(inputs, **params, n_head=hparams["n_head"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets)

        def step(params: Any, state: Any, mean: Any, inputs: Any, targets: Any, key: Any) -> Any:
            dropout.key, dropout.used = key, 0
            loss, gradients = jax.value_and_grad(lambda p: losses(p, inputs, targets).mean())(params)
            dropout.key = None
            updates, state = self.optimizer.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            mean = jax.tree.map(lambda m, p: m + (1 - args.average) * (p - m), mean, params)
            return params, state, mean, loss

        self.step = jax.jit(step, donate_argnums=(0, 1, 2))
        self.sum_losses = jax.jit(lambda params, x, y, weight: jnp.sum(losses(params, x, y) * weight))

    def held_out_loss(self, params: Any, ids: Array, n_ctx: int) -> float:
        """The summed loss of consecutive windows, as in `loss_per_char`, 16 windows at a time."""
        pairs = [
            [np.pad(array, (0, n_ctx - len(array))) for array in (x, y, np.ones(len(x), np.float32))]
            for x, y in windows(ids, n_ctx)
        ]
        total = 0.0
        for start in range(0, len(pairs), 16):
            x, y, weight = (np.stack(arrays) for arrays in zip(*pairs[start : start + 16]))
            total += float(self.sum_losses(params, x, y, weight))
        return total


def batch(ids: Array, n_ctx: int, size: int, seed: int, step: int) -> tuple[Array, Array]:
    """Random windows; which ones depends on seed and step alone, so that a resumed run draws the same."""
    rng = np.random.default_rng([seed, step])
    starts = rng.integers(0, len(ids) - n_ctx, size)[:, None] + np.arange(n_ctx)
    return ids[starts], ids[starts + 1]


def save_state(folder: Path, tree: Any, history: History) -> None:
    """Write everything that training continues from, visible only when complete."""
    import jax

    leaves = jax.tree.leaves(tree)
    partial = folder / "state.partial.npz"
    with open(partial, "wb") as file:
        arrays: dict[str, Any] = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
        np.savez(file, history=json.dumps(history), **arrays)
    os.replace(partial, folder / "state.npz")


def load_state(folder: Path, tree: Any) -> tuple[Any, History]:
    """What save_state wrote, in the structure of tree."""
    import jax

    with np.load(folder / "state.npz") as state:
        leaves = [state[f"leaf{i}"] for i in range(len(jax.tree.leaves(tree)))]
        return jax.tree.unflatten(jax.tree.structure(tree), leaves), json.loads(str(state["history"]))


def encode_texts(n_ctx: int, folder: Path, texts: tuple[str, str]) -> list[Array]:
    """The ids of the text to train on and of the held-out one. Raises ValueError when one is too short."""
    encoder = get_encoder(folder.name, folder.parent)
    ids = [np.array(encoder.encode(text), np.int32) for text in texts]
    for name, part in zip(("part of the text to train on", "held-out part of the text"), ids):
        if len(part) <= n_ctx:
            raise ValueError(f"the {name} has {len(part)} tokens, but n_ctx + 1 = {n_ctx + 1} are the least")
    return ids


def start(args: argparse.Namespace, trainer: Trainer, work: Path) -> tuple[Any, History]:
    """What training begins with or goes on from: parameters, optimizer, average and best average; and the history."""
    import jax

    params = jax.tree.map(jax.numpy.asarray, initial_params(hparams_of(args), args.seed))
    tree = {"params": params, "state": trainer.optimizer.init(params), "mean": params, "best": params}
    history: History = []
    if (work / "state.npz").exists():
        tree, history = load_state(work, tree)
    return jax.tree.map(jax.numpy.array, tree), history


def train(args: argparse.Namespace, work: Path, texts: tuple[str, str]) -> tuple[Any, History]:
    """Train until the steps are done or the held-out loss has stopped falling.

    Returns the average of the weights that had the best held-out loss, and the history. Raises ValueError when the loss
    is no number any more; the last state that was saved is still there then.
    """
    import jax
    from tqdm import tqdm

    ids, held_out_ids = encode_texts(args.n_ctx, work, texts)
    trainer = Trainer(args, hparams_of(args))
    tree, history = start(args, trainer, work)
    first, before = (int(history[-1]["step"]), history[-1]["seconds"]) if history else (0, 0.0)
    best = min((row["held_out"] for row in history), default=math.inf)
    key, since = jax.random.key(args.seed), time.monotonic()
    recent: list[float] = []
    with tqdm(total=args.steps, initial=first, unit="step", desc=args.out.name) as bar:
        for step in range(first, args.steps):
            if not recent and stalled(history, args.patience):
                log(f"stopped after step {step}: no better held-out loss in {args.patience} evaluations")
                break
            inputs, targets = batch(ids, args.n_ctx, args.batch_size, args.seed, step)
            tree["params"], tree["state"], tree["mean"], loss = trainer.step(
                tree["params"], tree["state"], tree["mean"], inputs, targets, jax.random.fold_in(key, step)
            )
            recent.append(float(loss))
            if not math.isfinite(recent[-1]):
                raise diverged("loss", recent[-1], step + 1, work)
            bar.update()
            if (step + 1) % args.eval_every and step + 1 < args.steps:
                continue
            held_out = trainer.held_out_loss(tree["mean"], held_out_ids, args.n_ctx) / len(texts[1])
            if not math.isfinite(held_out):
                raise diverged("held-out loss", held_out, step + 1, work)
            seconds = before + time.monotonic() - since
            history.append({"step": step + 1, "loss": float(np.mean(recent)), "held_out": held_out, "seconds": seconds})
            if held_out < best:
                best, tree["best"] = held_out, jax.tree.map(lambda x: x.copy(), tree["mean"])
            save_state(work, tree, history)
            bar.set_postfix_str(f"loss {np.mean(recent):.3f}/token, held out {held_out:.4f}/char, best {best:.4f}")
            recent = []
    return jax.tree.map(np.asarray, tree["best"]), history


def diverged(name: str, loss: float, step: int, work: Path) -> ValueError:
    """The error that ends a run whose loss is no number any more."""
    kept = f"{work} has the last good state" if (work / "state.npz").exists() else "nothing was saved before"
    return ValueError(f"the {name} is {loss} at step {step}: lower --lr; {kept}")


def stalled(history: History, patience: int) -> bool:
    """Whether the last `patience` evaluations (0: any number) brought nothing better."""
    losses = [row["held_out"] for row in history]
    return 0 < patience < len(losses) - losses.index(min(losses)) if losses else False


def hparams_of(args: argparse.Namespace) -> dict[str, int]:
    return {name: getattr(args, name) for name in HPARAMS}


def plot(history: History, path: Path) -> None:
    """Draw both losses over the steps, side by side: their units differ."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    steps = [row["step"] for row in history]
    for axes, name, title in zip(
        panels, ("held_out", "loss"), ("held out, nats per character", "training, nats per token")
    ):
        axes.plot(steps, [row[name] for row in history], marker=".")
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    with new_file(path) as file:
        figure.savefig(file, format="png", dpi=150)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="picogpt train",
        description="Train a GPT-2 from a text file and write it as a model's folder.",
        epilog="""examples:
  python -m picogpt train shakespeare.txt --out models/shakespeare --plot loss.png
  python -m picogpt train shakespeare.txt --out models/shakespeare --resume    (after Ctrl-C)""",
    )
    add = parser.add_argument
    whole, positive = number(1, kind=int), number(0, open_low=True)
    add("text", type=Path, help="a UTF-8 text file")
    add("--out", type=Path, required=True, metavar="models/NAME", help="the folder to make; it must not exist yet")
    add("--resume", action="store_true", help="go on from where an interrupted run with the same settings was")
    add("--plot", type=Path, metavar="FILE.png", help="draw the losses (matplotlib)")
    add("--held_out", type=number(0.001, 0.9), default=0.1, help="the last part of the text (default: %(default)s)")
    for name, default in {"n_vocab": 512, "n_ctx": 256, "n_embd": 128, "n_head": 4, "n_layer": 6}.items():
        add(f"--{name}", type=whole, default=default, metavar="N", help="(default: %(default)s)")
    add("--steps", type=whole, default=4000, metavar="N", help="(default: %(default)s)")
    add(
        "--batch_size",
        type=whole,
        default=32,
        metavar="N",
        help="windows of n_ctx tokens a step (default: %(default)s)",
    )
    add("--lr", type=positive, default=2e-3, help="highest learning rate (default: %(default)s)")
    add("--warmup", type=number(0, kind=int), default=100, metavar="N", help="steps to reach it (default: %(default)s)")
    add("--weight_decay", type=number(0), default=0.1, help="(default: %(default)s)")
    add("--dropout", type=number(0, 0.9), default=0.1, help="(default: %(default)s)")
    add(
        "--average",
        type=number(0, 0.9999),
        default=0.99,
        help="of the weights that is kept per step (default: %(default)s)",
    )
    add("--eval_every", type=whole, default=100, metavar="N", help="steps (default: %(default)s)")
    add(
        "--patience",
        type=number(0, kind=int),
        default=10,
        metavar="N",
        help="evaluations; 0: never stop (default: %(default)s)",
    )
    add("--seed", type=number(0, kind=int), default=0, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    if args.n_embd % args.n_head:
        parser.error(f"argument --n_head: n_embd = {args.n_embd} is no multiple of {args.n_head}")
    if args.n_vocab < 257:
        parser.error(f"argument --n_vocab: {args.n_vocab} is less than the 256 bytes and {END_OF_TEXT}")
    return args


def prepare(args: argparse.Namespace, work: Path, texts: tuple[str, str]) -> None:
    """Make the folder that a run leaves its state in, or check that it is the one to resume."""
    settings = {k: v for k, v in vars(args).items() if k not in ("text", "out", "resume", "plot", "patience")}
    settings["text"] = hashlib.sha256("".join(texts).encode()).hexdigest()
    if args.out.exists():
        raise FileExistsError(f"{args.out} exists already: remove it, or choose another name")
    if work.exists():
        if not args.resume:
            raise FileExistsError(f"{work} has an interrupted run: go on with --resume, or remove it")
        before = json.loads((work / "settings.json").read_text(encoding="utf-8"))
        for name, value in settings.items():
            if before.get(name) != value:
                raise ValueError(f"{work} was begun with {name} = {before.get(name)}, not {value}")
        return
    if args.resume:
        raise FileNotFoundError(f"{work} does not exist: there is nothing to resume")
    with new_folder(work) as folder:
        write_tokenizer(folder, train_merges(texts[0], args.n_vocab))
        encode_texts(args.n_ctx, folder, texts)
        (folder / "settings.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.plot and (args.plot.suffix != ".png" or not args.plot.absolute().parent.is_dir()):
        raise UsageError(f"--plot {args.plot}: not the name of a .png file in a folder that exists")
    if not args.out.name:
        raise UsageError(f"--out {args.out}: not the name of a folder to make")
    for name in ("jax", "optax", "tokenizers", "tensorflow", *(["matplotlib"] if args.plot else [])):
        if importlib.util.find_spec(name) is None:
            raise OSError(f"{name} is not installed: pip install -r requirements-train.txt")
    texts = split(read_text(args.text), args.held_out)
    if min(map(len, texts)) <= args.n_ctx:
        raise ValueError(
            f"{args.text}: a part of {min(map(len, texts))} characters is too short for n_ctx = {args.n_ctx}"
        )
    work = args.out.with_name(args.out.name + ".training")
    prepare(args, work, texts)
    try:
        params, history = train(args, work, texts)
    except KeyboardInterrupt:
        log(f"\ninterrupted; --resume goes on from {work}")
        return 130
    with new_folder(args.out) as folder:
        for name in ("encoder.json", "vocab.bpe"):
            shutil.copyfile(work / name, folder / name)
        write_checkpoint(folder, hparams_of(args), params)
    if args.plot:
        plot(history, args.plot)
    best = min(history, key=lambda row: row["held_out"])
    print(f"{args.out}: held-out loss {best['held_out']:.4f} nats per character at step {best['step']:.0f}")
    print(f"{history[-1]['step']:.0f} steps in {history[-1]['seconds']:.0f} s")
    shutil.rmtree(work)
    return 0
