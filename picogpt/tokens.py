"""Show the tokens of a text.

python -m picogpt tokens "Not all heroes wear capes."
"""

from __future__ import annotations

from picogpt.command_line import Parser, read_prompt
from picogpt.options import add_allow_special, add_model_options, add_prompt, allow_special
from picogpt.terminal_text import in_context
from utils import TOKENIZER_FILES, ensure_downloaded, load_encoder


def main(argv: list[str] | None = None) -> int:
    """Print each token of a text on a line of its own: its id, and the text that it stands for."""
    command = "python -m picogpt tokens"
    parser = Parser(
        prog=command,
        description="Show each token of a text on a line of its own: its id, and the text that it stands for. A space "
        "is shown as ·, and 你 1/2 is the first of the two tokens that make 你.",
        epilog=f'examples:\n  {command} "Not all heroes wear capes."\n  echo "Ünïcödé" | {command} - --model_size tiny',
    )
    add_prompt(parser)
    add_model_options(parser)
    add_allow_special(parser)
    args = parser.parse_args(argv)
    text = read_prompt(args.prompt)
    folder = ensure_downloaded(args.model_size, args.models_dir, TOKENIZER_FILES)
    encoder = allow_special(load_encoder(folder), args)
    ids = encoder.encode(text)
    for id, token in zip(ids, in_context([encoder.token_bytes(id) for id in ids])):
        print(f"{id:>6}  {token}")
    return 0
