"""Options of explain that switch parts of the model off, or take what they give from another text."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from encoder import Encoder
from picogpt import options
from picogpt.command_line import UsageError, read_prompt
from picogpt.explain.text import one_line
from picogpt.tracing.parts import Part, changes, check_parts, check_positions, instead_of, overlap, parts, recorded
from picogpt.tracing.replacing import Change

if TYPE_CHECKING:
    from picogpt.typing.shapes import Params

LABEL = 24  # columns of the other text in the name of the model


class Replaced(NamedTuple):
    """What is replaced in a model: as text, such as "without 9.9 (zero)", and as `trace` takes it."""

    label: str
    changes: dict[str, Change]


class Once(argparse.Action):
    """Store the value of an option that may not be there twice."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"argument {option_string}: it is there twice: put commas between the parts")
        setattr(namespace, self.dest, values)


def add_part_options(parser: argparse.ArgumentParser) -> None:
    """Add --without, --patch, --mean and --bias."""
    add = parser.add_argument
    without = "switch these parts off: 9.9 (a head), 9.attn, 9.mlp or 9 (a layer), with commas between several"
    patch = "let these parts give what they give for another text of as many tokens; - reads it from standard input"
    add("--without", type=parts, action="extend", default=[], metavar="PARTS", help=without)
    add("--patch", nargs=2, action=Once, metavar=("PARTS", "OTHER_TEXT"), help=patch)
    options.add_instead(parser)


def check_part_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Parse the parts of --patch. Call `parser.error` if they are no parts, or if options do not fit together."""
    if args.patch:
        try:
            args.patch[0] = parts(args.patch[0])
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument --patch: {error}: PARTS come first, then OTHER_TEXT")
        if args.prompt == args.patch[1] == "-":
            parser.error("the text and OTHER_TEXT are both -, but standard input can be read only once")
    if args.instead != "zero" and not args.without:
        parser.error(f"--{args.instead} says what parts give that --without switches off: which ones?")


def replaced(
    args: argparse.Namespace, ids: Sequence[int], encoder: Encoder, hparams: dict[str, int], params: Params
) -> Replaced | None:
    """Return what the options replace while the model reads these ids, or None if they replace nothing.

    Raises UsageError for a part that the model, or a position that the text does not have, and for another text that
    has another number of tokens.
    """
    patched: list[Part] = args.patch[0] if args.patch else []
    for option, chosen in (("--without", args.without), ("--patch", patched)):
        check_parts(chosen, option, args.model_size, hparams)
        check_positions(chosen, option, len(ids))
    for part, other in itertools.product(args.without, patched):
        if overlap(part, other, len(ids)):
            raise UsageError(f"--without {part} and --patch {other} both replace the same: leave one of them out")
    labels, groups, n_head = [], [], hparams["n_head"]
    if args.without:
        labels.append(f"without {listed(args.without)} ({args.instead})")
        groups.append((args.without, instead_of(args.without, args.instead, params, n_head, [ids])))
    if patched:
        text = read_prompt(args.patch[1])
        other_ids = options.prompt_ids(encoder, text, hparams["n_ctx"])
        if len(other_ids) != len(ids):
            what = f"the text has {len(ids)} tokens, but the other text {len(other_ids)}"
            raise UsageError(f"--patch: {what}: `python -m picogpt tokens` shows them")
        labels.append(f'with {listed(patched)} from "{one_line(text, LABEL)}"')
        groups.append((patched, recorded(patched, params, n_head, other_ids)))
    return Replaced(" and ".join(labels), changes(*groups)) if groups else None


def listed(chosen: Sequence[Part]) -> str:
    return ", ".join(map(str, chosen))
