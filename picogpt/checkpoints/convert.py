"""Convert a GPT-2 from Hugging Face's layout to OpenAI's, or from any layout to Hugging Face's.

    python -m picogpt convert owner/model --out models/mine
    python -m picogpt convert models/tiny --to_hf --out tiny-hf

Both layouts hold the same tensors, so only names and file formats change. foreign.py reads Hugging Face's, and refuses
models that gpt2.py can't compute.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from encoder import END_OF_TEXT
from picogpt.checkpoints.foreign import CONFIG, SHARDS, WEIGHTS, open_model
from picogpt.checkpoints.huggingface import settings, state_dict
from picogpt.checkpoints.safetensors import write_safetensors
from picogpt.checkpoints.tokenizer import ADDED, MERGES, SETTINGS, TOKENIZER, VOCAB
from picogpt.checkpoints.writing import arrays_of, write_checkpoint, write_tokenizer
from picogpt.command_line import Parser, UsageError, show
from picogpt.files import new_folder
from picogpt.options import add_force, add_meta, add_models_dir, add_out, require
from utils import ensure_downloaded, load_encoder_hparams_and_params

WANTED = [CONFIG, WEIGHTS, SHARDS, "model-?????-of-?????.safetensors", VOCAB, MERGES, TOKENIZER, SETTINGS, ADDED]


def from_hf(
    source: str,
    target: Path,
    revision: str | None = None,
    force: bool = False,
    meta: bool = False,
    models_dir: str | Path = "models",
) -> str:
    """Make the folder `target` from a Hugging Face folder, or from a model on the hub. Returns a summary in one line.

    float32 and float64 keep their bits; float16 and bfloat16 become float32, exactly. Raises OSError or ValueError, and
    leaves no folder, if gpt2.py can't compute the model or a file can't be read or written.
    """
    found = find_source(source, revision, models_dir)
    check_target(found, target)
    if meta:
        require("tensorflow", purpose="for --meta")
    with new_folder(target, force) as folder:
        encoder, hparams, params = open_model(found, models_dir)
        write_tokenizer(folder, encoder)
        write_checkpoint(folder, hparams, dict(params), meta)
    return summary(params, hparams)


def find_source(source: str, revision: str | None, models_dir: str | Path) -> Path:
    """Return a model's folder by its name or path, or download the model of that name from the Hugging Face hub."""
    is_on_hub = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source)
    if revision is None:
        try:
            folder = ensure_downloaded(source, models_dir, ("hparams.json",))  # enough to see that it is OpenAI's
        except FileNotFoundError:
            if not is_on_hub:
                raise
        else:
            if (folder / "hparams.json").exists():
                raise UsageError(f"{source} is in OpenAI's layout already: --to_hf converts from it")
            return folder
    require("huggingface_hub", purpose="to download from the Hugging Face hub")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(source, revision=revision, allow_patterns=WANTED))
    except Exception as error:  # the hub raises its own kinds, and those of several libraries under it
        text = " ".join(str(error.__cause__ or error).split())[:300]
        raise OSError(f"no folder {source!r}, and can't get it from the Hugging Face hub: {text}") from None


def to_hf(source: Path, target: Path, force: bool = False, models_dir: str | Path = "models") -> str:
    """Make the Hugging Face folder `target` from a folder in any layout. Returns a summary in one line.

    The tensors stay views of the mapped weights until they are written, so no copy of the model is in memory.
    """
    check_target(source, target)
    with new_folder(target, force) as folder:
        encoder, hparams, params = load_encoder_hparams_and_params(str(source.absolute()), models_dir)
        for name, content in settings(hparams, params["wte"].dtype.name, encoder).items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")
        added = set(encoder.special_tokens) - {END_OF_TEXT}
        n_tokens = 1 + max(id for token, id in encoder.encoder.items() if token not in added)
        write_tokenizer(folder, encoder, (VOCAB, MERGES), n_tokens)  # transformers lists what follows in its settings
        write_safetensors(folder / WEIGHTS, state_dict(params, "transformer."))
    return summary(params, hparams)


def check_target(source: Path, target: Path) -> None:
    """Raise UsageError if a conversion would replace its own source."""
    if source.resolve() == target.resolve():
        raise UsageError(f"--out {target} is the model to convert: choose another name")


def summary(params: Mapping[str, Any], hparams: dict[str, int]) -> str:
    """Describe a model in one line: "148 tensors, 124,439,808 numbers, float32; 50,257 tokens"."""
    arrays = [array for _, array in arrays_of(params)]
    count, dtype = sum(array.size for array in arrays), params["wte"].dtype
    return f"{len(arrays)} tensors, {count:,} numbers, {dtype}; {hparams['n_vocab']:,} tokens"


# -------------------------------------------------------------------------------------------------- the command line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m picogpt convert",
        description="Convert a GPT-2 from Hugging Face's layout to OpenAI's, or from any layout to Hugging Face's.",
        epilog="""Every number stays the same: float32 and float64 keep their bits, and float16
and bfloat16 become float32, exactly. A model that differs from GPT-2 is
refused. Tokens that were added to the vocabulary are kept. gpt2.py and the
tools also read Hugging Face's layout as it is: see docs/models.md.

examples: for transformers, and for programs that read OpenAI's layout
  python -m picogpt convert 124M --to_hf --out gpt2-hf
  python -m picogpt convert ~/my-finetuned-gpt2 --out models/mine
  python -m picogpt convert owner/model --out models/mine""",
    )
    add = parser.add_argument
    add("source", help="the name of a model or the path of its folder, as for --model_size; or owner/model on the hub")
    add_models_dir(parser)
    add_out(parser)
    add("--to_hf", action="store_true", help="convert to Hugging Face's layout")
    add("--revision", metavar="R", help="a branch, tag or commit of the model on the hub (default: main)")
    add_meta(parser)
    add_force(parser)
    args = parser.parse_args(argv)
    if args.to_hf and args.revision:
        parser.error("argument --revision: it names a version on the hub, but --to_hf reads a folder")
    if args.to_hf and args.meta:
        parser.error("argument --meta: it belongs to OpenAI's layout, and not to --to_hf")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.to_hf:
        text = to_hf(ensure_downloaded(args.source, args.models_dir), args.out, args.force, args.models_dir)
    else:
        text = from_hf(args.source, args.out, args.revision, args.force, args.meta, args.models_dir)
    show(f"{args.out}: {text}")
    return 0
