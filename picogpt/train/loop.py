"""The training itself: steps, evaluations on the held-out text, and early stopping."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from picogpt.command_line import check_memory, log
from picogpt.jax_model import Trainer, signals_held_back
from picogpt.scoring.results import bits
from picogpt.terminal_text import log_wrapped
from picogpt.train import report
from picogpt.train.text import batch, encode_texts
from picogpt.train.work import UNIT, History, best_of, is_saved, load_state, save_state, work_folder


class Run:
    """A training run: what changes from step to step, and the history of its evaluations.

    tree has the parameters, the optimizer's state, the exponential moving average of the parameters (ema), and the
    average that had the lowest held-out loss so far (see `Trainer.shapes`). history has only evaluations whose state
    is saved; its losses are in bits per byte. doing says in words what the run does at the moment.
    """

    def __init__(self, args: argparse.Namespace, params: Any):
        """Prepare a run. `params` are the parameters to begin with."""
        self.args, self.first_params, self.work = args, params, work_folder(args)
        self.tree: Any = None
        self.history: History = []
        self.doing, self.tokens_per_second = "making the tokenizer", 0.0

    def train(self, texts: tuple[str, str]) -> Any:
        """Train until all steps are done, or until the held-out loss has not fallen for --patience evaluations.

        The tokenizer in the work folder encodes the texts. Returns the averaged parameters that had the lowest held-out
        loss. Raises UsageError if too little memory is free, and ValueError if a loss is infinite or not a number.
        """
        self.doing = "encoding the text"
        self.encoder, self.parts = encode_texts(self.args.n_ctx, self.work, texts)
        report.log_shape(self.args, self.first_params, self.parts)
        with signals_held_back() as let_signals_through:
            let_signals_through()
            self.compile()
            let_signals_through()
            self.start()
            self.loop(let_signals_through)
        return report.arrays_in_numpy(self.tree["best"])

    def compile(self) -> None:
        """Compile the functions of the training. Raises UsageError if too little memory is free for them."""
        self.doing = "compiling"
        log_wrapped("compiling takes a while, often 5 to 60 seconds (Ctrl-C takes effect when it is done)")
        self.trainer, n = Trainer(self.args), self.args.batch_size
        advice = f"lower --batch_size {n}" if n > 1 else "it takes a smaller model"
        log_wrapped(check_memory("training", self.trainer.compile(self.first_params), advice))
        report.log_unit(self.parts[0])

    def start(self) -> None:
        """Take the first parameters and no history, or the state and the history of an interrupted run."""
        import jax

        self.doing = "preparing the first step"
        if is_saved(self.work):
            self.tree, self.history = load_state(self.work, self.trainer.shapes(self.first_params))
            return

        def copied() -> Any:  # arrays of its own: each step writes its results where its arguments were
            return jax.tree.map(lambda x: jax.numpy.array(x, np.float32), self.first_params)

        params = copied()
        self.tree = {"params": params, "state": self.trainer.optimizer.init(params), "ema": copied(), "best": None}
        if self.args.source is not None:
            log(f"step 0/{self.args.steps}: held out {self.held_out_loss():.4f} {UNIT}, before the fine-tuning")

    def loop(self, before_step: Callable[[], None]) -> None:
        """Train and evaluate by turns."""
        from tqdm import tqdm

        args, history = self.args, self.history
        first = step = int(history[-1]["step"]) if history else 0
        began, before = time.monotonic(), history[-1]["seconds"] if history else 0.0
        settings: dict[str, Any] = {"unit": "step", "dynamic_ncols": True, "leave": False, "disable": None}
        with tqdm(desc="training", total=args.steps, initial=step, **settings) as bar:
            while step < args.steps and not stalled(history, args.patience):
                stop = min(step + args.eval_every - step % args.eval_every, args.steps)
                loss, step = self.steps(range(step, stop), bar, before_step), stop
                row = self.evaluate(step, loss)
                seconds = time.monotonic() - began
                self.save(row | {"seconds": before + seconds})
                self.report((args.steps - step) * seconds / (step - first))
        if step < args.steps:
            log(f"stopped after step {step}: no lower held-out loss in {args.patience} evaluations")

    def steps(self, steps: range, bar: Any, before_step: Callable[[], None]) -> float:
        """Train for these steps, and return the mean loss in nats per token."""
        import jax

        args, tree, ids = self.args, self.tree, self.parts[0].ids
        key, losses, began = jax.random.key(args.seed), list[float](), time.perf_counter()
        for step in steps:
            before_step()
            inputs, targets = batch(ids, args.n_ctx, args.batch_size, args.seed, step)
            tree["params"], tree["state"], tree["ema"], loss = self.trainer.step(
                tree["params"], tree["state"], tree["ema"], inputs, targets, jax.random.fold_in(key, step)
            )
            losses.append(float(loss))
            self.check_finite("loss", losses[-1], step + 1)
            self.after_step(step + 1, losses[-1], bar)
        self.tokens_per_second = len(steps) * args.batch_size * args.n_ctx / (time.perf_counter() - began)
        return float(np.mean(losses))

    def after_step(self, step: int, loss: float, bar: Any) -> None:
        """Show the loss of a step, which is in nats per token: in the bar, and that of the first step in a line."""
        loss = self.parts[0].bits_per_byte(loss)
        self.doing = f"step {step}/{self.args.steps}, training {loss:.4f} {UNIT}"
        if step == 1 and self.args.source is None:
            bar.write(f"the random weights have a loss of {loss:.4f} {UNIT}", file=sys.stderr)
        bar.set_postfix_str(f"training {loss:.2f} {UNIT}", refresh=False)
        bar.update()

    def evaluate(self, step: int, loss: float) -> dict[str, float]:
        """Return the losses after a step in bits per byte. `loss` is the training's in nats per token."""
        held_out = self.held_out_loss()
        self.check_finite("held-out loss", held_out, step)
        return {"step": step, "training": self.parts[0].bits_per_byte(loss), "held_out": held_out}

    def held_out_loss(self) -> float:
        """Return the loss of the averaged parameters on the held-out text, in bits per byte."""
        return bits(self.trainer.held_out_loss(self.tree["ema"], self.parts[1].ids), self.parts[1].n_bytes)

    def save(self, row: dict[str, float]) -> None:
        """Save an evaluation and the state of the training. The averaged parameters are kept if they are the best."""
        import jax

        history = [*self.history, row]
        if best_of(history) is row:
            self.tree["best"] = None  # free its memory
            self.tree["best"] = jax.tree.map(lambda x: x.copy(), self.tree["ema"])
        save_state(self.work, self.tree, history)
        self.history.append(row)

    def report(self, seconds_left: float) -> None:
        """Print the last evaluation and a sample, in lines that the progress bar does not overwrite."""
        from tqdm import tqdm

        args, row = self.args, self.history[-1]
        nats, is_best = self.parts[1].nats_per_char(row["held_out"]), best_of(self.history) is row
        lines = report.evaluation_lines(row, args.steps, is_best, nats, self.tokens_per_second, seconds_left)
        sample = report.sample_lines(self.encoder, self.tree["ema"], args.n_head, self.parts[1].ids, args.seed)
        tqdm.write("\n".join([*lines, *sample]), file=sys.stderr)

    def check_finite(self, name: str, loss: float, step: int) -> None:
        """Raise ValueError if a loss is infinite or not a number: the run has diverged."""
        if not math.isfinite(loss):
            saved = f"{self.work} has the last good state" if is_saved(self.work) else "nothing was saved before"
            raise ValueError(f"the {name} is {loss} at step {step}: lower --lr; {saved}")


def stalled(history: History, patience: int) -> bool:
    """Return whether the held-out loss has not fallen for `patience` evaluations. If `patience` is 0, return False."""
    losses = [row["held_out"] for row in history]
    return 0 < patience < len(losses) - losses.index(min(losses)) if losses else False
