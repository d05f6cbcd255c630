"""See inside: what the model thinks of a text, in the terminal, as pictures, and as a page.

    python -m picogpt explain "Alan Turing theorized that computers would one day" --html turing.html --png turing/

The numbers are explain_numbers.py's, the pictures explain_plots.py's, the page explain_page.py's. Here is what is shown
in the terminal, where everything goes, and what is checked before the work begins.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from picogpt.chat.terminal import may_colour
from picogpt.explain.numbers import Inside, Settings, examine, layer_name
from picogpt.explain.page import layers_that_fit, page
from picogpt.explain.plots import FIGURES, need_matplotlib, save
from picogpt.explain.text import decimals, fit, n_columns, visible_merges
from picogpt.files import new_file
from picogpt.trace import prompt_ids
from utils import Parser, UsageError, load_encoder_hparams_and_params, log, number, read_prompt

# From improbable to probable: text and background, of the 256 colours that terminals have, in viridis' order. Both are
# set, so that a token can be read on any theme.
COLOURS = {0.01: (255, 53), 0.05: (255, 60), 0.2: (255, 30), 0.5: (16, 77), 1.0: (16, 220)}
TOKEN, INDEX, CELL = 16, 5, 18  # columns of the terminal


# ------------------------------------------------------------------------------------------------------- the terminal


def paint(text: str, p: float, colour: bool) -> str:
    """A text in the colour of its probability; spaces that fill it up stay plain."""
    if not colour or math.isnan(p):
        return text
    front, back = next((pair for limit, pair in COLOURS.items() if p < limit), COLOURS[1.0])
    word = text.rstrip(" ")
    return f"\x1b[38;5;{front};48;5;{back}m{word}\x1b[0m{text[len(word) :]}"


def percent(p: float) -> str:
    """A probability in at most 7 characters. percent(0.123) = "12.3 %" """
    return "-" if math.isnan(p) else "<0.1 %" if 0 < p < 0.0005 else f"{100 * p:.1f} %"


def wrapped(items: Sequence[str], indent: int, width: int) -> str:
    """Items one after another, on as many lines as they take; those after the first are indented."""
    lines, line = [], ""
    for item in items:
        if line and indent + n_columns(line) + 2 + n_columns(item) > width:
            lines.append(line)
            line = ""
        line += ("  " if line else "") + item
    return ("\n" + " " * indent).join([*lines, line])


def preferred(inside: Inside, i: int) -> list[str]:
    """The tokens that the model gave more to than to token i; for the one after the last, the likeliest ones."""
    ids, probs = inside.lens_ids[-1, i - 1], inside.lens_probs[-1, i - 1]
    least = inside.probs[i] if i < len(inside.ids) else 0.0
    return [f"{inside.text(id)} {percent(p)}" for id, p in zip(ids, probs) if p > least]


def token_table(inside: Inside, width: int, colour: bool) -> Iterator[str]:
    """Every token, its probability, surprisal and rank, and what the model preferred."""
    indent, before = INDEX + TOKEN + 27, "   "
    if width - indent < 24:  # too narrow a column: on lines of their own
        indent, before = INDEX, "\n" + " " * INDEX
    yield f"{'#':>{INDEX - 1}} {'token':{TOKEN}} {'prob.':>7}  {'bits':>6}  {'rank':>6}   preferred"
    for i, (text, p, bits, rank) in enumerate(zip(inside.texts, inside.probs, inside.bits, inside.ranks)):
        token = paint(fit(text, TOKEN), p, colour)
        if i == 0:
            yield f"{i:{INDEX - 1}} {token} {'-':>7}  {'-':>6}  {'-':>6}   (first)"
        else:
            place, others = rank if p else "-", before + wrapped(preferred(inside, i), indent, width)
            yield f"{i:{INDEX - 1}} {token} {percent(p):>7}  {decimals(bits, 2):>6}  {place:>6}{others}".rstrip()
    yield f"{'next':>{INDEX - 1}} {wrapped(preferred(inside, len(inside.ids)), INDEX, width)}"


def merge_lines(inside: Inside, width: int) -> Iterator[str]:
    """How the tokens were merged, each distinct one once."""
    for id in dict.fromkeys(inside.ids.tolist()):
        steps = visible_merges(inside.encoder, id) or ["(a single byte)"]
        yield f"{fit(inside.text(id), TOKEN)} {wrapped(steps, TOKEN + 1, width)}"


def lens_table(inside: Inside, width: int, colour: bool) -> Iterator[str]:
    """What each layer would have said after each token: as many tokens side by side as the terminal is wide."""
    n = max(1, (width - 10) // CELL)
    for start in range(0, len(inside.ids), n):
        columns = range(start, min(start + n, len(inside.ids)))
        yield "after     " + "".join(fit(f"{i} {inside.texts[i]}", CELL - 1) + " " for i in columns).rstrip()
        for layer in reversed(range(len(inside.lens_ids))):
            cells = [(inside.text(inside.lens_ids[layer, i, 0]), inside.lens_probs[layer, i, 0]) for i in columns]
            shown = [paint(fit(text, CELL - 9), p, colour) + f"{percent(p):>8} " for text, p in cells]
            yield f"{layer_name(layer):10}" + "".join(shown).rstrip()
        yield ""


def attention_lines(inside: Inside, layer: int, head: int, top: int, width: int, colour: bool) -> Iterator[str]:
    """For each token, the tokens that a head looks at most, with their positions."""
    for i, row in enumerate(inside.attention[layer, head]):
        most = [j for j in np.argsort(-row[: i + 1], kind="stable")[:top] if row[j] > 0]
        seen = [f"{j} {inside.texts[j]} {percent(row[j])}" for j in most]
        token = paint(fit(inside.texts[i], TOKEN), inside.probs[i], colour)
        yield f"{i:{INDEX - 1}} {token} {wrapped(seen, INDEX + TOKEN + 1, width)}"


def report(inside: Inside, args: argparse.Namespace) -> Iterator[str]:
    """All that is shown in the terminal, line by line."""
    colour, width = may_colour(), shutil.get_terminal_size().columns
    known = inside.bits[1:]
    total = f", {decimals(known.sum(), 2)} bits, {decimals(known.mean(), 2)} a token" if len(known) else ""
    yield f"{args.model_size}: {len(inside.ids)} token{'s' * (len(inside.ids) > 1)}{total}"
    yield wrapped(["probabilities:", *whose(inside), "(a space is ·)"], 15, width)
    yield from token_table(inside, width, colour)
    if args.merges:
        yield "\nmerges: how each token was made from bytes"
        yield from merge_lines(inside, width)
    yield "\nlogit lens: what each layer would have said next"
    yield from lens_table(inside, width, colour)
    yield f"attention of layer {args.layer}, head {args.head}: where each token looks"
    yield from attention_lines(inside, args.layer, args.head, args.top, width, colour)


def whose(inside: Inside) -> list[str]:
    """Whose probabilities they are: the model's own, or after what was changed about them."""
    return inside.settings.changed() or ["the model's own"]


# ---------------------------------------------------------------------------------------------------- where files go


@contextlib.contextmanager
def picture_folder(path: Path) -> Iterator[None]:
    """A folder to write to, made if it is missing; where nothing came, nothing stays. Raises OSError."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file, not a folder to write pictures to")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no folder to make {path.name} in")
    made = not path.exists()
    path.mkdir(exist_ok=True)
    try:
        yield
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def pictures(folder: Path) -> list[Path]:
    return [folder / f"{name}.png" for name in FIGURES]


def opened(stack: contextlib.ExitStack, path: Path) -> IO[bytes]:
    """A new file, closed with the stack. An error names it, not the temporary name that it begins with."""
    try:
        return stack.enter_context(new_file(path))
    except OSError as error:
        if error.filename:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def outputs(html: Path | None, png: Path | None) -> Iterator[dict[str, IO[bytes]]]:
    """The files to write, by name, open before the work begins. They get their names when all are complete."""
    paths = {path.stem: path for path in pictures(png)} if png else {}
    if html and html.resolve() in [path.resolve() for path in paths.values()]:
        raise UsageError(f"--html {html} is the name of a picture of --png {png}: choose another one")
    with contextlib.ExitStack() as stack:
        if png:
            need_matplotlib()
            os.environ["MPLBACKEND"] = "agg"  # no window: one that is set for notebooks may not even be there
            stack.enter_context(picture_folder(png))  # first: the page may go there, too
        if html:
            paths["page"] = html
        yield {name: opened(stack, path) for name, path in paths.items()}


# --------------------------------------------------------------------------------------------------- the command line


def path(text: str) -> Path:
    """An empty one would be the current folder, which nobody means."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return Path(text)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="picogpt explain",
        description="Show what the model thinks of a text: how likely each token was and what it preferred, what each "
        "layer would have said (the logit lens), and where an attention head looks.",
        epilog="""examples:
  python -m picogpt explain "Alan Turing theorized that computers would one day become" --html turing.html
  python -m picogpt explain "ROMEO:" --model_size tiny --layer 2 --head 4 --merges --png romeo/
  python -m picogpt explain - --top 10 --temperature 0.8 --top_k 40 < prompt.txt | less

--png writes attention.png (all heads of the layer), lens.png, probabilities.png and residual.png.""",
    )
    whole, add = number(0, kind=int), parser.add_argument
    add("prompt", help="the text, or - for standard input (without its last line end)")
    add("--layer", type=whole, metavar="L", help="whose attention is shown, from 0 (default: the last)")
    add("--head", type=whole, default=0, metavar="H", help="which of its heads, from 0 (default: 0)")
    add("--top", type=number(1, 50, kind=int), default=5, metavar="K", help="how many alternatives (default: 5)")
    add("--merges", action="store_true", help="show how each token was merged from bytes")
    add("--html", type=path, metavar="FILE.html", help="write a page that opens without network")
    add("--png", type=path, metavar="FOLDER", help="write four pictures to this folder (matplotlib)")
    add("--model_size", default="124M", help="124M, 355M, 774M, 1558M or a folder of --models_dir (default: 124M)")
    add("--models_dir", default="models", help="where the models are, or go (default: models)")
    add("--temperature", type=number(0), default=1.0, metavar="T", help="as in gpt2.py (default: 1, the model's own)")
    add("--top_k", type=whole, default=0, metavar="K", help="as in gpt2.py")
    add("--top_p", type=number(0, 1), default=1.0, metavar="P", help="as in gpt2.py")
    add("--repetition_penalty", type=number(0.01, 100), default=1.0, metavar="R", help="as in gpt2.py")
    return parser.parse_args(argv)


def check_layer_and_head(args: argparse.Namespace, hparams: dict[str, int]) -> None:
    """Raise UsageError for a layer or head that is not there; no layer means the last."""
    if args.layer is None:
        args.layer = hparams["n_layer"] - 1
    for name in ("layer", "head"):
        value, n = getattr(args, name), hparams[f"n_{name}"]
        if value >= n:
            raise UsageError(f"--{name} {value}: {args.model_size} has {name}s 0 to {n - 1}")


def look(args: argparse.Namespace) -> Inside:
    """Load the model, check what only it can tell, and run it."""
    prompt = read_prompt(args.prompt)
    encoder, hparams, params = load_encoder_hparams_and_params(args.model_size, args.models_dir)
    check_layer_and_head(args, hparams)
    ids = prompt_ids(encoder, prompt, hparams["n_ctx"])
    settings = Settings(args.temperature, args.top_k, args.top_p, args.repetition_penalty)
    return examine(ids, encoder, params, hparams["n_head"], args.top, settings)


def write(files: dict[str, IO[bytes]], inside: Inside, args: argparse.Namespace) -> None:
    """Write the page and the pictures that were asked for."""
    for name, file in files.items():
        if name != "page":
            save(name, inside, args.layer, file)
            continue
        layers = layers_that_fit(inside, args.layer)
        if len(layers) < len(inside.attention):
            log(f"[{args.html} holds the attention of layer {args.layer} only: with all layers it would be too large]")
        title = f"{args.model_size}, probabilities: {', '.join(whose(inside))}"
        file.write(page(inside, title, args.layer, args.head, layers).encode())


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with outputs(args.html, args.png) as files:
        inside = look(args)
        write(files, inside, args)
    for line in report(inside, args):
        print(line)
    for path in ([args.html] if args.html else []) + (pictures(args.png) if args.png else []):
        print(f"{path}: {path.stat().st_size:,} bytes")
    return 0
