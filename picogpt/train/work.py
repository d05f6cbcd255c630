"""The work folder of a training run: its tokenizer, its settings, and its state with the history of its evaluations.

The folder lies beside the new model while the run lasts, so that an interrupted run can be resumed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from encoder import Encoder
from picogpt.checkpoints.writing import arrays_of, tokenizer_of, write_tokenizer
from picogpt.command_line import reason
from picogpt.files import new_file, new_folder
from picogpt.train.text import train_merges
from utils import TOKENIZER_FILES, read_json

History = list[dict[str, float]]  # one row for each evaluation: step, training, held_out, seconds
LOSSES = {"training": "training text", "held_out": "held-out text"}
UNIT = "bits per byte"  # of both losses, as in `score`
SETTINGS, STATE, HISTORY_FILE = "settings.json", "state.npz", "history.json"
NOT_SETTINGS = ("text", "out", "resume", "force", "meta", "plot", "patience", "source", "models_dir", "quick")


def work_folder(args: argparse.Namespace) -> Path:
    """Return the folder in which a run keeps its tokenizer, settings and state until it is done."""
    return Path(args.out.with_name(args.out.name + ".training"))


# ---------------------------------------------------------------------------------------------------------- settings


def sha256_of_params(params: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all parameters."""
    digest = hashlib.sha256()
    for name, array in arrays_of(params):
        digest.update(name.encode() + str(array.dtype).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def settings_of(args: argparse.Namespace, texts: tuple[str, str], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that decides the result of a run, except for --patience, which may change when it is resumed.

    The text, and with --from the model, are there as their SHA-256, wherever their files are.
    """
    settings = {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS}
    settings["text"] = hashlib.sha256("".join(texts).encode()).hexdigest()
    settings["from"] = None if args.source is None else sha256_of_params(params)
    settings["unit_of_losses"] = UNIT
    return settings


def prepare(
    args: argparse.Namespace, texts: tuple[str, str], params: Mapping[str, Any], tokenizer: Encoder | None
) -> None:
    """Make the work folder of a new run, or check that the existing one was begun with the same settings.

    Without a tokenizer, the run trains its own.
    """
    work, settings = work_folder(args), settings_of(args, texts, params)
    if work.exists():
        if not args.resume:
            raise FileExistsError(f"{work} has an interrupted run: continue it with --resume, or remove it")
        before = read_json(work / SETTINGS)
        for name, value in settings.items():
            if before.get(name) != value:
                raise ValueError(f"{work} was begun with {name} = {before.get(name)}, not {value}")
        return
    if args.resume:
        raise FileNotFoundError(f"{work} does not exist: there is nothing to resume")
    with new_folder(work) as folder:
        write_tokenizer(folder, tokenizer or tokenizer_of(train_merges(texts[0], args.n_vocab)))
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2), encoding="utf-8")


def remove(work: Path) -> None:
    """Remove what a run has written into its work folder, and the folder if it has nothing else."""
    for path in (*(work / name for name in (*TOKENIZER_FILES, SETTINGS, STATE)), *work.glob(".*.partial")):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        work.rmdir()


# ------------------------------------------------------------------------------------------------- state and history


def is_saved(work: Path) -> bool:
    """Return whether a work folder has the state of an evaluation, from which a run can go on."""
    return (work / STATE).exists()


def save_state(folder: Path, tree: Any, history: History) -> None:
    """Write everything that a resumed run needs."""
    import jax

    arrays: dict[str, Any] = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
    with new_file(folder / STATE, replace=True) as file:
        np.savez(file, history=json.dumps(history), **arrays)


def load_state(folder: Path, tree: Any) -> tuple[Any, History]:
    """Read the file that `save_state` wrote, as JAX's arrays in a tree of the same structure as `tree`.

    Raises OSError, or ValueError if the file is damaged.
    """
    import jax

    path = folder / STATE
    try:
        with np.load(path) as state:
            history: History = json.loads(str(state["history"]))
            # Each array is copied at once, so that few of them are in memory twice.
            saved = [jax.numpy.array(state[f"leaf{i}"]) for i in range(len(jax.tree.leaves(tree)))]
    except Exception as error:  # NumPy and zipfile raise a dozen types, such as BadZipFile, EOFError and KeyError
        raise ValueError(f"{path} is damaged ({reason(error)}): remove {folder}, and train from the start") from None
    return jax.tree.unflatten(jax.tree.structure(tree), saved), history


def best_of(history: History) -> dict[str, float]:
    """Return the row with the lowest held-out loss, the first of them if there are several."""
    return min(history, key=lambda row: row["held_out"])


def write_history(args: argparse.Namespace, history: History, folder: Path) -> None:
    """Write history.json into the folder of a model: the settings of the run, and all its evaluations."""
    document = {
        "text": args.text.name,
        "from": args.source,
        "settings": read_json(work_folder(args) / SETTINGS) | {"patience": args.patience},
        "unit_of_losses": UNIT,
        "best_step": best_of(history)["step"],
        "evaluations": history,
    }
    (folder / HISTORY_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8", newline="\n")
