"""The command-line options that several tools share, and the objects that tools make from them."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import gpt2
from encoder import Encoder
from picogpt.command_line import UsageError, number

if TYPE_CHECKING:
    from picogpt.typing.shapes import Choose


SAMPLING_LIMITS = {  # for each setting of sampling, the function that parses its value and refuses a wrong one
    "temperature": number(0),
    "top_k": number(0, kind=int),
    "top_p": number(0, 1),
    "repetition_penalty": number(0.01, 100),
}


def add_model_options(parser: argparse.ArgumentParser, default: str = "124M", several: bool = False) -> None:
    """Add --model, which is also called --model_size and -m, and --models_dir. A tool may take several models."""
    sizes = "124M, 355M, 774M, 1558M, or a folder: its name in --models_dir, or its path (default: %(default)s)"
    more = "; A,B for a table of both" if several else ""
    names = ("-m", "--model", "--model_size")
    parser.add_argument(*names, dest="model_size", default=default, metavar="NAME", help=sizes + more)
    add_models_dir(parser)


def add_models_dir(parser: argparse.ArgumentParser) -> None:
    """Add --models_dir."""
    models_dir = "the folder with the models; a relative one is also searched for beside gpt2.py (default: models)"
    parser.add_argument("--models_dir", default="models", metavar="FOLDER", help=models_dir)


def add_prompt(parser: argparse.ArgumentParser, unless: str = "") -> None:
    """Add the argument `prompt`. `command_line.read_prompt` turns its value into the text.

    `unless` says when it may be left out. Its value is then None.
    """
    text = "the text, or - to read it from standard input (without its last line end)"
    parser.add_argument("prompt", nargs="?" if unless else None, help=text + unless)


def add_allow_special(parser: argparse.ArgumentParser) -> None:
    """Add --allow_special, which `allow_special` applies to a tokenizer."""
    text = "special tokens in the text, such as <|endoftext|>, are tokens (default: ordinary text)"
    parser.add_argument("--allow_special", action="store_true", help=text)


def allow_special(encoder: Encoder, args: argparse.Namespace) -> Encoder:
    """Return the tokenizer. With --allow_special, it takes the special tokens in every text as tokens."""
    if args.allow_special:
        encode = functools.partial(encoder.encode, allowed_special=encoder.special_tokens)
        encoder.encode = encode  # type: ignore[method-assign]
    return encoder


def add_instead(parser: argparse.ArgumentParser) -> None:
    """Add --mean and --bias, which set `instead`: what a part gives that is switched off, by default zero."""
    kinds = parser.add_mutually_exclusive_group()
    text = "what is switched off gives its mean over the text instead of zero"
    kinds.add_argument("--mean", dest="instead", action="store_const", const="mean", default="zero", help=text)
    text = "what is switched off gives its bias instead of zero, as in TransformerLens"
    kinds.add_argument("--bias", dest="instead", action="store_const", const="bias", help=text)


def add_force(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add --force, without which no existing file is replaced."""
    parser.add_argument("--force", action="store_true", help="replace output files or folders that exist already")


def dask_address(text: str) -> str:
    """Return the address of a Dask scheduler. Raises ArgumentTypeError unless it is like tcp://HOST:8786."""
    match = re.fullmatch(r"(tcp://)?[^/]+:(\d{1,5})", text)
    if not match or int(match[2]) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address like tcp://HOST:8786")
    return text


def add_bos(parser: argparse.ArgumentParser, text: str, default: bool | None = True) -> None:
    """Add --bos and --no_bos, which set `bos` to True or False. `text` is the help of --bos."""
    parser.add_argument("--bos", action="store_true", default=default, help=text)
    parser.add_argument("--no_bos", dest="bos", action="store_false", default=default, help="leave it out")


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add --out, the folder of a new model."""
    parser.add_argument("--out", type=Path, required=True, metavar="models/NAME", help="the folder to make")


def add_meta(parser: argparse.ArgumentParser) -> None:
    """Add --meta. The tool requires TensorFlow before its work; `write_checkpoint` uses it at the end."""
    parser.add_argument("--meta", action="store_true", help="also write model.ckpt.meta, a graph (needs TensorFlow)")


def add_sampling_options(
    parser: argparse.ArgumentParser, temperature: float = 1.0, top_p: float = 1.0, repetition_penalty: float = 1.0
) -> None:
    """Add --temperature, --top_k, --top_p and --repetition_penalty with these defaults."""
    options: dict[str, tuple[float, str, str]] = {
        "temperature": (temperature, "T", "0 takes the likeliest token; higher values choose more freely"),
        "top_k": (0, "K", "choose from the K likeliest tokens; 0 means all"),
        "top_p": (top_p, "P", "choose from the likeliest tokens whose probabilities together reach P"),
        "repetition_penalty": (repetition_penalty, "R", "above 1, tokens of the text so far become less likely"),
    }
    for name, (default, metavar, text) in options.items():
        text += " (default: %(default)s)"
        parser.add_argument(f"--{name}", type=SAMPLING_LIMITS[name], default=default, metavar=metavar, help=text)


def sampling_settings(args: argparse.Namespace) -> dict[str, float]:
    """Return the four sampling options by name, as `gpt2.sample` and `gpt2.token_probs` take them."""
    return {name: getattr(args, name) for name in SAMPLING_LIMITS}


def sampler(args: argparse.Namespace, rng: np.random.Generator) -> Choose:
    """Return a function that draws the next token by the sampling options (the `choose` of `generate`)."""
    return functools.partial(gpt2.sample, rng=rng, **sampling_settings(args))  # type: ignore[arg-type]


def check_size(encoder: Encoder, prompt: str, n_ctx: int) -> None:
    """Raise UsageError if a prompt has too many bytes for a context of n_ctx tokens, however it is encoded.

    Encoding 10 MB would take a minute. Up to 100 KB are quick to encode, and then a message can give the exact number.
    """
    if (n_bytes := len(prompt.encode("utf-8", "surrogatepass"))) <= 100_000:
        return
    n_tokens = math.ceil(n_bytes / max(map(len, encoder.encoder)))  # each character of a token stands for one byte
    if n_tokens > n_ctx + 1:  # one more than n_ctx is allowed if none is generated
        raise UsageError(
            f"the prompt has {n_bytes:,} bytes, and therefore {n_tokens:,} tokens or more, "
            f"but the model's context is n_ctx = {n_ctx}"
        )


def prompt_ids(encoder: Encoder, prompt: str, n_ctx: int) -> list[int]:
    """Return the ids of a prompt. Raises UsageError if it is empty, or longer than the model's context of n_ctx."""
    check_size(encoder, prompt, n_ctx)
    return check_length(encoder.encode(prompt), n_ctx)


def check_length(ids: list[int], n_ctx: int) -> list[int]:
    """Return the ids of a prompt. Raises UsageError if there are none, or more than n_ctx."""
    if not ids:
        raise UsageError("the prompt is empty")
    if len(ids) > n_ctx:
        raise UsageError(f"the prompt has {len(ids)} tokens, but the model's context is n_ctx = {n_ctx}")
    return ids


def require(*modules: str, purpose: str = "") -> None:
    """Raise OSError if some of these modules are not installed. The message gives the command that installs them.

    `purpose` says what they are needed for, such as "to draw pictures", where the user can't know that.
    """
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        names = " and ".join(", ".join(missing).rsplit(", ", 1))  # "a, b and c"
        text = f"{names} {'is' if len(missing) == 1 else 'are'} not installed: pip install {' '.join(missing)}"
        raise OSError(text + (f" ({purpose})" if purpose else ""))


def may_colour() -> bool:
    """Return whether output may have colours: only in a terminal, and never if NO_COLOR is set (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
