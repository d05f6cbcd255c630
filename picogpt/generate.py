"""Continue a text as gpt2.py does, with more options: many samples at once, speed, warnings, safe output.

python -m picogpt generate "Once upon a time" --n_samples 4 --temperature 0.9
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import gpt2
from encoder import Encoder
from picogpt.batch import generate_batch, generate_sliding
from picogpt.command_line import Parser, UsageError, log, log_speed, number, read_prompt, shown, timed
from picogpt.continuation import check_batch, first_ids, is_over, last_id
from picogpt.continuation import text_pieces as pieces_until
from picogpt.options import (
    add_allow_special,
    add_force,
    add_model_options,
    add_sampling_options,
    allow_special,
    check_size,
    dask_address,
    sampling_settings,
)
from utils import load_encoder_hparams_and_params

if TYPE_CHECKING:
    from picogpt.probabilities import Report
    from picogpt.typing.shapes import Choose, Ended, Params

EXAMPLES = """examples:
  python -m picogpt generate "Once upon a time" --temperature 0.8 \\
    --top_p 0.95 --seed 1 --stop "The end"
  cat story.txt | python -m picogpt generate - --model_size 355M > next.txt
  python -m picogpt generate "" --temperature 1 --end_of_text \\
    --n_tokens_to_generate 1024

many samples, and a file for each of them (here with the program csplit):
  python -m picogpt generate "Once upon a time" --n_samples 16 \\
    --temperature 0.9 > samples.txt
  csplit --elide-empty-files samples.txt '/^--- [0-9]* of 16$/' '{*}'

each token with its probability and the likeliest others:
  python -m picogpt generate "Once upon a time" --show_probs
  python -m picogpt generate "Once upon a time" --logprobs tokens.jsonl

every line of a file, such as {"prompt": "ROMEO:"}, continued three times:
  python -m picogpt generate --prompts prompts.jsonl --out samples.jsonl \\
    --temperature 0.9 --n_samples 3"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the options; --help lists them."""
    purpose = "Continue a prompt with GPT-2. The text goes to stdout, everything else to stderr."
    parser = Parser(prog="python -m picogpt generate", description=purpose, epilog=EXAMPLES)
    whole, several, add = number(0, kind=int), number(1, 10**5, kind=int), parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    text = 'the text to continue, - to read it from standard input, or "" to begin a new document'
    what.add_argument("prompt", nargs="?", help=text)
    what.add_argument("--prompts", metavar="FILE", help="continue each line of this JSON Lines file")
    add("-n", "--n_tokens_to_generate", type=whole, default=40, metavar="N", help="tokens to add (default: 40)")
    add_model_options(parser)
    add_sampling_options(parser, temperature=0.0)
    add("--seed", type=whole, default=None, metavar="S", help="the same seed gives the same text")
    add("--stop", default=None, metavar="TEXT", help="stop where this text would begin")
    add_allow_special(parser)
    add("--end_of_text", action="store_true", help="stop where the model ends the document, at <|endoftext|>")
    add("--slide", action="store_true", help="go on beyond the context: where it is full, drop the oldest half of it")
    add("--n_samples", type=several, default=1, metavar="N", help='continue N times; "--- 3 of N" begins sample 3')
    add("--batch_size", type=several, default=64, metavar="N", help="make at most N samples at once (default: 64)")
    add("--show_probs", action="store_true", help="after the text: each token, its probability, the likeliest others")
    add("--logprobs", type=Path, metavar="FILE", help="write the same to FILE, a line of JSON for each token")
    add_force(parser)
    add_prompts_options(parser.add_argument_group("with --prompts"))
    args = parser.parse_args(argv)
    if args.stop == "":
        parser.error("argument --stop: the text is empty")
    if problem := prompts_problem(args):
        parser.error(problem)
    if args.slide and args.n_samples > 1:
        parser.error("argument --slide: it makes one sample at a time")
    return args


def add_prompts_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that say where the prompts of --prompts are, and where the texts go."""
    add = group.add_argument
    dask = "generate on a Dask cluster, such as tcp://HOST:8786; each worker needs this folder and the model there"
    add("--field", default="prompt", metavar="FIELD", help="the field of each line to continue (default: %(default)s)")
    add("--out", type=Path, metavar="FILE", help="the file to write: a line of JSON for each text")
    add("--dask", type=dask_address, metavar="ADDRESS", help=dask)


def prompts_problem(args: argparse.Namespace) -> str:
    """Return what is wrong with the options that belong to --prompts, or ""."""
    if args.prompts is None:
        given = {"field": args.field != "prompt", "out": args.out, "dask": args.dask}
        if args.force and not args.logprobs:
            return "argument --force: it belongs to --prompts and --logprobs"
        return next((f"argument --{name}: it belongs to --prompts" for name, value in given.items() if value), "")
    if args.out is None:
        return "argument --prompts: it needs --out, the file to write"
    for name in ("slide", "show_probs", "logprobs"):
        if getattr(args, name):
            return f"argument --{name}: it continues one prompt, not --prompts"
    from picogpt.files import overwritten  # here, since it imports what one text does not need

    return overwritten({"--out": args.out}, [args.prompts])


def text_pieces(new_ids: Iterable[int], encoder: Encoder, args: argparse.Namespace) -> Iterator[str]:
    """Yield the text of new ids piece by piece, up to the end that --stop or --end_of_text ask for."""
    return map(shown, pieces_until(new_ids, encoder, args.last_id, [args.stop or ""]))


def warn(args: argparse.Namespace, prompt: str) -> None:
    """Warn on stderr about inputs that are allowed but probably a mistake."""
    if not prompt:
        log("the prompt is empty: the text begins a new document, after <|endoftext|>")
    if prompt.endswith(" "):
        log("warning: the prompt ends in a space, which makes the text worse: GPT-2's tokens begin with a space")
    warn_about_unused(args)


def warn_about_unused(args: argparse.Namespace) -> None:
    """Warn on stderr about options that have no effect."""
    defaults = {"top_k": 0, "top_p": 1.0, "seed": None, "n_samples": 1}
    unused = [name for name, default in defaults.items() if getattr(args, name) != default]
    if args.temperature == 0 and unused:
        effect = "gives the same text each time" if unused[0] == "n_samples" else "has no effect"
        log(f"warning: --{unused[0]} {effect} without a --temperature above 0")


def choosers(args: argparse.Namespace, report: Report | None = None) -> Sequence[Choose]:
    """Return the functions that pick the ids of each sample by the command line's options.

    Each sample has a generator of its own, so that it does not depend on how many others there are. A report watches
    what they choose.
    """
    seed = np.random.SeedSequence(args.seed)
    seeds = [seed, *seed.spawn(args.n_samples - 1)]
    settings: dict[str, Any] = sampling_settings(args)
    found = [functools.partial(gpt2.sample, rng=np.random.default_rng(seed), **settings) for seed in seeds]
    return report.watch(found) if report else found


def print_text(
    ids: list[int], encoder: Encoder, params: Params, n_head: int, args: argparse.Namespace, report: Report | None
) -> None:
    """Generate one continuation of ids, and print its text as it comes. Its tokens are reported even after Ctrl-C."""
    work = generate_sliding if args.slide else gpt2.generate
    new_ids = work(ids, params, n_head, args.n_tokens_to_generate, choosers(args, report)[0])
    times = [time.perf_counter()]
    try:
        for text in text_pieces(timed(new_ids, times), encoder, args):
            print(text, end="", flush=True)
        print(flush=True)
        log_speed(len(ids), times)
    finally:
        if report:
            report.add(1, encoder)


def is_complete(new_ids: Sequence[int], encoder: Encoder, args: argparse.Namespace) -> bool:
    """Return whether a sample has all its tokens, or ends with <|endoftext|> or the text of --stop."""
    is_full = len(new_ids) == args.n_tokens_to_generate
    return is_full or is_over(new_ids, encoder, args.last_id, [args.stop or ""])


def in_order(pairs: Iterable[tuple[int, int]], n_samples: int, ended: Ended) -> Iterator[list[int]]:
    """Collect the pairs (sample, id) of `generate_batch`. Yield a sample's ids when it and those before it have ended.

    >>> list(in_order([(0, 5), (1, 6), (0, 7), (1, 8)], 2, lambda ids: len(ids) == 2))
    [[5, 7], [6, 8]]
    """
    samples: list[list[int]] = [[] for _ in range(n_samples)]
    n_yielded = 0
    for sample, id in pairs:
        samples[sample].append(id)
        while n_yielded < n_samples and ended(samples[n_yielded]):
            yield samples[n_yielded]
            samples[n_yielded] = []  # free its memory
            n_yielded += 1
    yield from samples[n_yielded:]


def print_samples(
    ids: list[int], encoder: Encoder, params: Params, n_head: int, args: argparse.Namespace, report: Report | None
) -> None:
    """Generate several continuations of ids side by side. Print each whole, in order, after a line with its number."""
    from tqdm import tqdm

    n_new, n_rows = args.n_tokens_to_generate, min(args.n_samples, args.batch_size)
    log(f"[{check_batch(n_rows, params, n_head, len(ids) + n_new - 1)}]")
    start, n_tokens, ended = time.perf_counter(), 0, functools.partial(is_complete, encoder=encoder, args=args)
    pairs = generate_batch(ids, params, n_head, n_new, choosers(args, report), ended, n_rows)
    bar = tqdm(pairs, "sampling", args.n_samples * n_new, unit="token", leave=False, disable=None)
    for i, new_ids in enumerate(in_order(bar, args.n_samples, ended), 1):
        tqdm.write(f"--- {i} of {args.n_samples}\n" + "".join(text_pieces(new_ids, encoder, args)))
        sys.stdout.flush()
        n_tokens += len(new_ids)
        if report:
            with tqdm.external_write_mode(sys.stderr):
                report.add(i, encoder)
    log(f"[{n_tokens / (time.perf_counter() - start):.1f} tokens/s, all samples together]")


def main(argv: list[str] | None = None) -> int:
    """Continue the prompt of the command line, or those of --prompts."""
    args = parse_args(argv)
    if args.prompts is not None:
        return importlib.import_module("picogpt.prompts.command").continue_file(args)  # type: ignore[no-any-return]
    if not (args.show_probs or args.logprobs):
        return continue_prompt(args, None)
    from picogpt.probabilities import reporting  # here, since it imports what the text alone does not need

    with reporting(args) as report:
        return continue_prompt(args, report)


def continue_prompt(args: argparse.Namespace, report: Report | None) -> int:
    """Turn a prompt into ids, generate the ids that follow, and print their text."""
    prompt = read_prompt(args.prompt)
    if not prompt and args.prompt == "-":
        raise UsageError('standard input is empty (to begin a new document, give "" as the prompt)')
    encoder, hparams, params = load_encoder_hparams_and_params(args.model_size, args.models_dir)
    if not args.slide:
        check_size(encoder, prompt, hparams["n_ctx"])
    ids, args.last_id = first_ids(allow_special(encoder, args), prompt), last_id(encoder, args)
    try:
        gpt2.checked_ids(ids[-1:] if args.slide else ids, params, 0 if args.slide else args.n_tokens_to_generate)
    except ValueError as error:
        raise UsageError(str(error)) from None
    warn(args, prompt)
    (print_text if args.n_samples == 1 else print_samples)(ids, encoder, params, hparams["n_head"], args, report)
    return 0
