"""What a training run says on stderr while it trains, and the picture of its losses.

Every line fits the terminal. Nothing here touches the random numbers of the training.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
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
from picogpt.train.work import LOSSES, UNIT, History, is_saved, work_folder

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
    """Say the unit of the losses, and how the loss of the training text becomes one per byte."""
    factor = f"{len(part.ids) / part.n_bytes:.4f}, the tokens per byte of the training text"
    log_wrapped(f"losses are in {UNIT}, as `score` prints them; the training loss is the one per token times {factor}")


# ------------------------------------------------------------------------------------------------- while it is running


@contextmanager
def life_signs(doing: Callable[[], str], seconds: float = 30) -> Iterator[None]:
    """Say every 30 seconds what the run is doing, in a thread, where there is no terminal and thus no progress bar."""
    done, began = threading.Event(), time.monotonic()

    def watch() -> None:
        while not done.wait(seconds):
            log(f"after {time.monotonic() - began:.0f} s: {doing()}")

    thread = threading.Thread(target=watch, daemon=True)
    if not sys.stderr.isatty():
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread.is_alive():
            thread.join()


# ------------------------------------------------------------------------------------------------ at every evaluation


def evaluation_lines(
    row: Mapping[str, float], n_steps: int, is_best: bool, nats: float, tokens_per_second: float, seconds_left: float
) -> list[str]:
    """Return the two lines of an evaluation. `nats` is the held-out loss in nats per character."""
    from tqdm import tqdm

    best, left = " (best)" if is_best else "", tqdm.format_interval(seconds_left)
    return [
        f"step {row['step']}/{n_steps}: training {row['training']:.4f}, held out {row['held_out']:.4f} {UNIT}{best}",
        f"  held out {nats:.4f} nats per character; training {tokens_per_second:,.0f} tokens/s; {left} left",
    ]


def sample_lines(encoder: Encoder, params: Any, n_head: int, ids: Array, seed: int) -> list[str]:
    """Return a line with the first tokens of `ids`, the held-out text, and two lines that the model writes after them.

    The generator of random numbers is new each time, so that the same weights write the same text, and the training's
    own random numbers stay as they are.
    """
    params, n_ctx = arrays_in_numpy(params), len(params["wpe"])
    width = width_of_terminal() - 11  # ten columns before a line, and a free one, after which no terminal breaks it
    n = max(1, min(N_PROMPT, n_ctx // 2))
    whole = (m for m in range(n, 0, -1) if not encoder.decode(ids[:m].tolist()).endswith("\ufffd"))
    prompt = ids[: next(whole, n)].tolist()  # it ends with a whole character, if it can
    choose = functools.partial(gpt2.sample, rng=np.random.default_rng(seed), temperature=TEMPERATURE)
    n_new = min(2 * width, n_ctx + 1 - len(prompt))  # most tokens have a column or more
    new = rows(encoder.decode_stream(gpt2.generate(prompt, params, n_head, n_new, choose)), width, 2)
    (given,) = rows([encoder.decode(prompt)], width, 1)
    return [f"  {name:8}{line}" for name, line in zip(("prompt:", "new:", ""), [given, *new])]


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


def log_next_steps(out: Path, text: str, encoder: Encoder, n_ctx: int) -> None:
    """Say what can be done with the new model. The prompt is a piece of the text that any shell takes in quotes."""
    beside = out.resolve().parent in (Path("models").resolve(), Path(gpt2.__file__).resolve().parent / "models")
    model, page = shlex.quote(out.name if beside else str(out)), shlex.quote(f"{out.name}.html")
    found = re.search(r"^[^\W_][\w ,.:;'-]{,30}[\w,.:;]", text[:10_000], re.MULTILINE)
    words = found[0] if found else "The"
    while len(words) > 1 and len(encoder.encode(words)) > n_ctx // 2:
        words = words[:-1]
    prompt, room = f'"{words}"', n_ctx + 1 - len(encoder.encode(words))
    few = f" -n {room}" if room < 40 else ""  # gpt2.py writes 40 tokens unless told otherwise
    log("what to do next: continue a text, chat, look inside")
    log(f"  python gpt2.py {prompt} --model {model} --temperature 0.8{few}")
    log(f"  python -m picogpt chat --model {model}")
    log(f"  python -m picogpt explain {prompt} --model {model} --html {page}")
    if beside:
        log(f"or publish it: docs/index.html?model={out.name} is its page (see docs/page.md)")


def plot(history: History, path: Path, force: bool = False) -> None:
    """Draw both losses over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, label in LOSSES.items():
        axes.plot([row["step"] for row in history], [row[name] for row in history], marker=".", label=label)
    axes.set(xlabel="step", ylabel=f"loss in {UNIT}")
    axes.grid(alpha=0.3)
    axes.legend()
    with new_file(path, force) as file:
        figure.savefig(file, format="png", dpi=150)
