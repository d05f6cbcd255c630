"""Convert a GPT-2 from Hugging Face's layout to OpenAI's seven files, or back. Every number keeps its bits.

    python -m picogpt convert openai-community/gpt2 --out models/gpt2
    python -m picogpt convert models/tiny --to_hf --out tiny-hf

Both layouts hold the same tensors, so only names and file formats change. huggingface.py has Hugging Face's names, and
refuses models that gpt2.py can't compute.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from encoder import END_OF_TEXT, Encoder, read_merges
from picogpt.checkpoints import huggingface as hf
from picogpt.checkpoints.writing import show_writing, write_checkpoint, write_graph, write_merges
from picogpt.command_line import Parser, UsageError
from picogpt.files import new_folder
from picogpt.options import add_force, add_meta, add_out, find_folder, require
from utils import HPARAMS, load_encoder, load_hparams_and_params


def summary(params: Mapping[str, Any], n_vocab: int) -> str:
    """Describe a model in one line: "148 tensors, 124,439,808 numbers, float32; 50,257 tokens"."""
    arrays = hf.state_dict(params).values()
    count, dtype = sum(array.size for array in arrays), params["wte"].dtype
    return f"{len(arrays)} tensors, {count:,} numbers, {dtype}; {n_vocab:,} tokens"


def write_json(path: Path, content: dict[str, Any], indent: int | None = None) -> None:
    path.write_text(json.dumps(content, indent=indent) + ("\n" if indent else ""), encoding="utf-8", newline="\n")


# ------------------------------------------------------------------------------------------ from Hugging Face's layout


def from_hf(source: str, target: Path, revision: str | None = None, force: bool = False, meta: bool = False) -> str:
    """Make the folder `target` from a Hugging Face folder, or from a model on the hub. Returns a summary in one line.

    float32, float16 and float64 keep their bits. NumPy has no bfloat16, so bfloat16 becomes float32, exactly. Raises
    OSError or ValueError, and leaves no folder, if gpt2.py can't compute the model or a file can't be read or written.
    """
    require("safetensors", *(["tensorflow"] if meta else []))
    with new_folder(target, force) as folder:
        origin = find_source(source, revision)
        hf.check_files(origin)
        hparams = hf.read_config(origin / hf.CONFIG)
        vocab, merges = hf.read_tokenizer(origin, hparams["n_vocab"])
        params, dtype = hf.read_params(origin, hparams)
        write_json(folder / "encoder.json", dict(sorted(vocab.items(), key=lambda item: item[1])))  # as OpenAI sorts it
        write_merges(folder / "vocab.bpe", merges)
        write_checkpoint(folder, hparams, params)
        if meta:
            write_graph(folder / "model.ckpt")
    return summary(params, hparams["n_vocab"]) + (" (from bfloat16, exactly)" if dtype == "BF16" else "")


def find_source(source: str, revision: str | None) -> Path:
    """Return the Hugging Face folder at a path, or download the model of that name from the hub."""
    if revision is None and (folder := Path(source)).exists():
        if not folder.is_dir():
            raise UsageError(f"{source} is a file: give the folder it is in")
        if (folder / "hparams.json").exists() and not (folder / hf.CONFIG).exists():
            raise UsageError(f"{source} is in OpenAI's layout already: --to_hf converts from it")
        return folder
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source):
        raise FileNotFoundError(f"no folder {source!r}, and a model on the Hugging Face hub is named owner/model")
    return download(source, revision)


def download(name: str, revision: str | None) -> Path:
    """Download the files of a model that a conversion needs, and return their folder. Raises OSError."""
    require("huggingface_hub", purpose="to download from the Hugging Face hub")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=hf.WANTED))
    except Exception as error:  # the hub raises its own kinds, and those of several libraries under it
        text = " ".join(str(error.__cause__ or error).split())[:300]
        raise OSError(f"no folder {name!r}, and can't get it from the Hugging Face hub: {text}") from None


# -------------------------------------------------------------------------------------------- to Hugging Face's layout


def to_hf(source: Path, target: Path, force: bool = False) -> str:
    """Make the Hugging Face folder `target` from a folder in OpenAI's layout. Returns a summary in one line.

    The tensors stay views of the mapped checkpoint until safetensors writes them, so no copy of the model is in memory.
    """
    require("safetensors")
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    with new_folder(target, force) as folder:
        hparams, params, encoder = read_openai(source)
        for name, content in hf_settings(hparams, params["wte"].dtype.name, encoder.encoder.get(END_OF_TEXT)).items():
            write_json(folder / name, content, indent=2)
        shutil.copyfile(source / "encoder.json", folder / hf.VOCAB)
        write_merges(folder / hf.MERGES, read_merges(source / "vocab.bpe"))
        weights = folder / hf.WEIGHTS
        try:  # transformers before version 5 refuses a file without the format
            tensors = hf.state_dict(params, "transformer.")
            with show_writing(folder, sum(array.nbytes for array in tensors.values())):
                save_file(tensors, weights, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"safetensors can't write {target}: {error}") from None
        weights.chmod((folder / hf.CONFIG).stat().st_mode)  # safetensors makes a file that only its owner can read
    return summary(params, hparams["n_vocab"])


def read_openai(source: Path) -> tuple[dict[str, int], Mapping[str, Any], Encoder]:
    """Read hyperparameters, parameters and tokenizer from a folder in OpenAI's layout."""
    if not (source / "hparams.json").exists():
        hint = " (leave out --to_hf to convert from Hugging Face's)" if (source / hf.CONFIG).exists() else ""
        raise FileNotFoundError(f"{source} is not a model in OpenAI's layout{hint}: it has no hparams.json")
    encoder = load_encoder(source)
    hparams, params = load_hparams_and_params(source)
    if (n := len(encoder.encoder)) != hparams["n_vocab"]:
        raise ValueError(f"{source}: encoder.json has {n} tokens, but hparams.json says n_vocab = {hparams['n_vocab']}")
    return {name: hparams[name] for name in HPARAMS}, params, encoder


def hf_settings(hparams: dict[str, int], dtype: str, end: int | None) -> dict[str, dict[str, Any]]:
    """Return the contents of the JSON files that transformers needs, by name. `end` is the id of <|endoftext|>."""
    ends = {"bos_token_id": end, "eos_token_id": end}
    token = None if end is None else END_OF_TEXT
    return {
        hf.CONFIG: {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            **hf.config_settings(hparams),
            "n_ctx": hparams["n_ctx"],  # older programs read this one
            "n_inner": None,
            **ends,
            "torch_dtype": dtype,  # transformers 5 writes `dtype`, and still reads the older name
        },
        "generation_config.json": ends,
        hf.SETTINGS: {
            "tokenizer_class": "GPT2Tokenizer",
            "model_max_length": hparams["n_ctx"],
            "add_prefix_space": False,
            **{f"{kind}_token": token for kind in ("bos", "eos", "unk")},
        },
    }


# -------------------------------------------------------------------------------------------------- the command line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m picogpt convert",
        description="Convert a GPT-2 from Hugging Face's layout to the one that gpt2.py reads, or back.",
        epilog="""Every number keeps its bits: float32, float16 and float64 stay as they are, and
bfloat16 becomes float32, exactly. A model that differs from GPT-2 is refused.
Tokens that were added to the vocabulary are kept. Weights are read from
safetensors only, never from pickles, since loading a pickle runs the code in
it.

examples: from the Hugging Face hub, from a folder, and for transformers
  python -m picogpt convert openai-community/gpt2 --out models/gpt2
  python -m picogpt convert ~/my-finetuned-gpt2 --out models/mine
  python -m picogpt convert models/124M --to_hf --out gpt2-hf""",
    )
    add = parser.add_argument
    add("source", help="a Hugging Face folder, or owner/model on the hub; with --to_hf a folder in OpenAI's layout")
    add("target", nargs="?", type=Path, help=argparse.SUPPRESS)  # an older name of --out
    add_out(parser, required=False)
    add("--to_hf", action="store_true", help="convert from OpenAI's layout to Hugging Face's")
    add("--revision", metavar="R", help="a branch, tag or commit of the model on the hub (default: main)")
    add_force(parser)
    add_meta(parser)
    args = parser.parse_args(argv)
    if args.to_hf and args.revision:
        parser.error("argument --revision: it names a version on the hub, but --to_hf reads a folder")
    if args.to_hf and args.meta:
        parser.error("argument --meta: it belongs to OpenAI's layout, and not to --to_hf")
    if (args.out is None) == (args.target is None):
        parser.error("--out names one folder to make")
    args.out = args.out or args.target
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.to_hf:
        text = to_hf(find_folder(Path(args.source)), args.out, args.force)
    else:
        text = from_hf(args.source, args.out, args.revision, args.force, args.meta)
    print(f"{args.out}: {text}")
    return 0
