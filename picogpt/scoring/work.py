"""Score many windows with a model from a folder, and show the progress."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from encoder import Encoder
from picogpt.scoring.windows import Scores, Window, score_windows
from utils import ensure_downloaded, load_encoder_hparams_and_params

if TYPE_CHECKING:
    from picogpt.typing.shapes import Params


class Model(NamedTuple):
    """A model that was opened: its folder and what is in there."""

    folder: Path
    encoder: Encoder
    hparams: dict[str, int]
    params: Params


def open_model(args: argparse.Namespace) -> Model:
    """Open the model that --model_size and --models_dir name. Missing files are downloaded."""
    folder = ensure_downloaded(args.model_size, args.models_dir)
    return Model(folder, *load_encoder_hparams_and_params(args.model_size, args.models_dir))


def add_work_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where and how the work is done, and which `score_all` reads."""


def score_all(windows: Sequence[Window], model: Model, args: argparse.Namespace) -> list[Scores]:
    """Return the scores of all windows in their order. A bar on stderr shows the tokens and the perplexity so far."""
    from tqdm import tqdm

    total = sum(window.n_targets for window in windows)
    with tqdm(total=total, desc="scoring", unit="token", unit_scale=True, leave=False, disable=None) as bar:
        scores: list[Scores] = []
        nats, n_scored = 0.0, 0
        for window in windows:
            scores += score_windows([window], model.params, model.hparams["n_head"])
            nats, n_scored = nats - scores[-1].log_probs.sum(), n_scored + window.n_targets
            bar.set_postfix_str(f"perplexity {math.exp(nats / max(n_scored, 1)):.4g}", refresh=False)
            bar.update(window.n_targets)
    return scores
