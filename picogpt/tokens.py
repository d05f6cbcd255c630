"""Show the tokens of a text.

python -m picogpt tokens "Not all heroes wear capes."
"""

from __future__ import annotations

from encoder import Encoder
from picogpt.command_line import Parser, read_prompt
from picogpt.options import add_allow_special, add_model_options, add_prompt, allow_special
from utils import TOKENIZER_FILES, ensure_downloaded, load_encoder


def main(argv: list[str] | None = None) -> int:
    """Print each token of a text on a line of its own: its id, and the text or the bytes that it stands for."""
    command = "python -m picogpt tokens"
    parser = Parser(
        prog=command,
        description="Show each token of a text on a line of its own: its id, and the text or bytes that it stands for.",
        epilog=f'examples:\n  {command} "Not all heroes wear capes."\n  echo "Ünïcödé" | {command} - --model_size tiny',
    )
    add_prompt(parser)
    add_model_options(parser)
    add_allow_special(parser)
    args = parser.parse_args(argv)
    text = read_prompt(args.prompt)
    folder = ensure_downloaded(args.model_size, args.models_dir, TOKENIZER_FILES)
    encoder = allow_special(load_encoder(folder), args)
    for id in encoder.encode(text):
        print(f"{id:>6}  {token_text(encoder, id)}")
    return 0


def token_text(encoder: Encoder, id: int) -> str:
    """Return a token as a Python literal: 'text', or b'bytes' if it is only a part of a character."""
    token = encoder.token_bytes(int(id))
    try:
        return repr(token.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(token)
