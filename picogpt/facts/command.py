"""Compare what OpenAI's weights compute here with what other projects have published about them.

python -m picogpt facts --model_size 124M
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

import utils
from picogpt.checkpoints.writing import flatten
from picogpt.command_line import Parser, UsageError, log, show
from picogpt.facts.data import find_files, read_facts
from picogpt.facts.recipes import Fact, Result, compute, inputs_of
from picogpt.files import file_to_write, new_file
from picogpt.options import add_force, add_model_options
from picogpt.scoring.work import Model
from utils import DATA, SIZES, ensure_downloaded, load_encoder_hparams_and_params

# Measured with 124M on two cores: positions a second in one pass, and how many of them one generated token is worth.
POSITIONS_PER_SECOND, PER_NEW_TOKEN = 300, 12
LISTED = 100  # numbers of a fact that --json writes; an example of Transformer Explainer has 60,000

HEADER = f"{'':8} {'ours':>12} {'published':>12} {'tolerance':>9}  what, and who published it"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the options; --help lists them."""
    command = "python -m picogpt facts"
    parser = Parser(
        prog=command,
        description="Compare what OpenAI's weights compute here with what other projects have published about them. "
        "The exit status is 1 if a fact differs.",
        epilog=f"examples:\n  {command}\n  {command} --model_size 1558M --data ~/data --json facts.json",
    )
    add_model_options(parser)
    data = "the folder with the files that some facts need (docs/facts.md); without it, these facts are left out"
    parser.add_argument("--data", type=Path, metavar="FOLDER", help=data)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a JSON file")
    add_force(parser)
    return parser.parse_args(argv)


def size_of(model: Model) -> str:
    """Return which of OpenAI's models this is. Raises UsageError for any other one.

    It is recognized by its shape, and by the sha256 of all its weights where that is published, in any layout: the
    numbers are those of OpenAI's data file if they stand in the order of its index, which is that of the names.
    """
    about = "but the facts are about OpenAI's models: " + ", ".join(SIZES)
    size = next((size for size, hparams in SIZES.items() if hparams == model.hparams), None)
    if size is None:
        shape = ", ".join(f"{name} {number}" for name, number in model.hparams.items())
        raise UsageError(f"{model.folder} has {shape}, {about}")
    expected = utils.SHA256.get(f"{size}/{DATA}")
    if expected is None:
        log(f"[{model.folder} has the shape of {size}; no sha256 of OpenAI's weights is published to check more]")
    elif (found := weights_sha256(model.params)) != expected:
        other = f"has the shape of {size} and other weights (their sha256 is {found[:8]}…, OpenAI's {expected[:8]}…)"
        raise UsageError(f"{model.folder} {other}, {about}")
    return size


def weights_sha256(params: Any) -> str:
    """Return the sha256 of all weights, in the order of their names, as in the data file of a checkpoint."""
    digest = hashlib.sha256()
    for _, array in sorted(flatten(params).items()):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def n_positions(fact: Fact, model: Model) -> float:
    """Return how much work a fact is, in positions that the model reads."""
    if "data" in fact:
        return float(fact["tokens"])
    n_read = sum(map(len, inputs_of(fact, model)))
    if fact["kind"] != "greedy":
        return n_read
    published = fact["published"]
    n_new = len(model.encoder.encode(published) if isinstance(published, str) else published)
    return n_read + PER_NEW_TOKEN * n_new


def expected_time(facts: list[Fact], model: Model) -> str:
    """Return about how long the facts take on two cores."""
    share = sum(array.size for array in flatten(model.params).values()) / 124_439_808
    minutes = share * sum(n_positions(fact, model) for fact in facts) / POSITIONS_PER_SECOND / 60
    return f"{math.ceil(minutes):,} minute{'s' * (minutes > 1)}"


def line(fact: Fact, result: Result) -> str:
    """Return the line of a fact: where ours and the published values differ most, and what they are."""
    if fact["kind"] == "greedy":
        n = len(result.published)
        n_same = next((i for i in range(n) if result.ours[i] != result.published[i]), n)
        ours, published, tolerance = f"{n_same} of {n}", f"{n} tokens", "0"
    else:
        values = result.ours[result.worst], result.published[result.worst]
        ours, published = (repr(v) if isinstance(v, str) else f"{v:.8g}" for v in values)
        tolerance = f"{result.tolerances[result.worst]:g}"
    verdict = "ok" if result.agrees else "DIFFERS"
    return f"{verdict:8} {ours:>12} {published:>12} {tolerance:>9}  {about(fact)} ({fact['source']})"


def about(fact: Fact) -> str:
    """Return what a fact is about: its name, and its prompt or its file."""
    if "data" in fact:
        return f"{fact['data']}: {fact['what']}"
    prompt = fact["prompt"] or "<|endoftext|>" if "prompt" in fact else ""
    prompt = fact["prompts"][0][0] if len(fact.get("prompts", ())) == 1 else prompt
    return f"{fact['what']}: {prompt if len(prompt) <= 60 else prompt[:59] + '…'!r}" if prompt else fact["what"]


def entry(fact: Fact, result: Result) -> dict[str, Any]:
    """Return what --json writes about a fact. NaN and infinity become null."""
    listed = slice(None) if len(result.published) <= LISTED else slice(result.worst, result.worst + 1)
    ours = [None if isinstance(v, float) and not math.isfinite(v) else v for v in result.ours[listed]]
    values = {"agrees": result.agrees, "n_values": len(result.published), "ours": ours}
    return fact | values | {"published": result.published[listed], "tolerance": result.tolerances[listed]}


def main(argv: list[str] | None = None) -> int:
    """Compute the facts about the model one by one, and print a line for each."""
    from tqdm import tqdm

    args = parse_args(argv)
    if args.json:
        file_to_write(args.json, args.force)  # an error comes before the work
    folder = ensure_downloaded(args.model_size, args.models_dir)
    model = Model(folder, *load_encoder_hparams_and_params(args.model_size, args.models_dir))
    size = size_of(model)
    facts, files = read_facts(size)
    needed = dict.fromkeys(fact["data"] for fact in facts if "data" in fact)
    paths = find_files(args.data, needed, files, model.encoder) if args.data else {}
    todo = [fact for fact in facts if fact.get("data") in (None, *paths)]
    need = f"need files that {args.data} lacks" if args.data else "need files: --data FOLDER, see docs/facts.md"
    if not todo:
        raise UsageError(f"all {len(facts)} facts about {size} {need}")
    log(f"[{len(todo)} facts about {size}: about {expected_time(todo, model)} on two cores]")
    print(HEADER)
    entries = []
    with tqdm(todo, desc="facts", unit="fact", leave=False, disable=None) as bar:
        for fact in bar:
            result = compute(fact, model, paths.get(fact.get("data", "")))
            entries.append(entry(fact, result))
            with bar.external_write_mode():
                show(line(fact, result))
    n_differ = sum(not found["agrees"] for found in entries)
    n_left = len(facts) - len(todo)
    print(
        f"{len(todo) - n_differ} agree, {n_differ} differ" + (f"; {n_left} more {need}" if n_left else ""), flush=True
    )
    if args.json:
        with new_file(args.json, args.force) as file:
            file.write((json.dumps({"model": size, "facts": entries}, indent=1) + "\n").encode("utf-8"))
    return int(n_differ > 0)
