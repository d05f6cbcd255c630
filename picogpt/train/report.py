"""What a training run says on stderr while it trains, and the picture of its losses.

Every line fits the terminal. Nothing here touches the random numbers of the training.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import gpt2
from encoder import Encoder
from picogpt.checkpoints.writing import arrays_of
from picogpt.command_line import log, visible
from picogpt.files import new_file
from picogpt.terminal_text import log_wrapped, n_columns, width_of_terminal
from picogpt.train.text import Array, Part
from picogpt.train.work import LOSSES, History, is_saved, work_folder

N_PROMPT = 8  # tokens of the held-out text that begin each sample
TEMPERATURE = 0.8  # of the samples: the likeliest tokens alone soon repeat themselves


# ------------------------------------------------------------------------------------------------- before the training


def log_shape(args: argparse.Namespace, params: Mapping[str, Any], parts: list[Part]) -> None:
    """Say the shape of the model, the number of its parameters, and the length of both parts of the text."""
    shape = ", ".join(f"{name} {getattr(args, name)}" for name in ("n_layer", "n_embd", "n_head", "n_ctx", "n_vocab"))
    n_params = sum(array.size for _, array in arrays_of(params))
    training, held_out = (f"{len(part.ids):,}" for part in parts)
    log_wrapped(f"{shape}: {n_params:,} parameters; {training} tokens to train on, {held_out} held out")


def log_unit(part: Part) -> None:
    """Say the unit of the losses, and how the loss of the training text becomes one per character."""
    factor = f"{part.tokens_per_char:.4f}, the tokens per character of the training text"
    log_wrapped(f"losses are in nats per character; the training loss is the one per token times {factor}")


# ------------------------------------------------------------------------------------------------ at every evaluation


def evaluation_line(row: Mapping[str, float], n_steps: int, is_best: bool, seconds_left: float) -> str:
    """Return the line of an evaluation: its step, both losses in nats per character, and the time left."""
    from tqdm import tqdm

    losses = f"training {row['training']:.4f}, held out {row['held_out']:.4f}{' (best)' if is_best else ''}"
    return f"step {row['step']}/{n_steps}: {losses}, {tqdm.format_interval(seconds_left)} left"


def sample_lines(encoder: Encoder, params: Any, n_head: int, ids: Array, seed: int) -> list[str]:
    """Return two lines of text that the model samples after the first tokens of `ids`, the held-out text.

    The text begins with these tokens. The generator of random numbers is new each time, so that the same weights write
    the same text, and the training's own random numbers stay as they are.
    """
    params, n_ctx = arrays_in_numpy(params), len(params["wpe"])
    width = width_of_terminal() - 3  # two spaces before a line, and one free column, after which no terminal breaks it
    prompt = ids[: max(1, min(N_PROMPT, n_ctx // 2))].tolist()
    choose = functools.partial(gpt2.sample, rng=np.random.default_rng(seed), temperature=TEMPERATURE)
    n_new = min(2 * width, n_ctx + 1 - len(prompt))  # most tokens have a column or more
    new_ids = gpt2.generate(prompt, params, n_head, n_new, choose)
    return ["  " + line for line in rows(encoder.decode_stream(itertools.chain(prompt, new_ids)), width, 2)]


def arrays_in_numpy(params: Any) -> Any:
    """Return the parameters as NumPy's arrays, which share the memory of JAX's."""
    import jax

    return jax.tree.map(np.asarray, params)


def rows(pieces: Iterable[str], width: int, n: int) -> list[str]:
    r"""Fill n lines of this many columns with a text, as `visible`: a line end is shown as \n.

    No more pieces are taken than fit, so that they can come from a model that is writing them.

    >>> rows(["one\ntwo", " three four"], 6, 2)
    ['one\\nt', 'wo thr']
    """
    lines = [""]
    for char in map(visible, itertools.chain.from_iterable(pieces)):
        if n_columns(lines[-1] + char) > width:
            if len(lines) == n:
                break
            lines.append("")
        lines[-1] += char
    return lines


# ----------------------------------------------------------------------------------------------------------- the end


def log_interrupted(args: argparse.Namespace, history: History) -> None:
    """Say what an interrupted run has saved."""
    if not is_saved(work := work_folder(args)):
        log_wrapped("interrupted before the first evaluation: nothing was saved")
    else:
        step = f"step {history[-1]['step']}, the last evaluation" if history else "the last evaluation"
        log(f"interrupted: --resume continues from {step}, in {work}")


def plot(history: History, path: Path, force: bool = False) -> None:
    """Draw both losses over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, label in LOSSES.items():
        axes.plot([row["step"] for row in history], [row[name] for row in history], marker=".", label=label)
    axes.set(xlabel="step", ylabel="loss in nats per character")
    axes.grid(alpha=0.3)
    axes.legend()
    with new_file(path, force) as file:
        figure.savefig(file, format="png", dpi=150)
