"""A GPT-2 from Hugging Face's layout to OpenAI's seven files and back, every number bit for bit.

    python -m picogpt convert openai-community/gpt2 models/gpt2
    python -m picogpt convert --to-hf models/tiny tiny-hf

Nothing is computed: both layouts hold the same tensors under other names (h0/attn/c_attn/w is h.0.attn.c_attn.weight),
and a linear layer's weights are [n_in, n_out] in both. What gpt2.py does not compute is refused: the result would be a
model that answers, and wrongly. Formats: safetensors' README; transformers' GPT2Config for config.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from encoder import BYTE_TO_CHAR, END_OF_TEXT, check_vocabulary, get_encoder
from picogpt.checkpoints.writing import flatten, write_checkpoint, write_merges
from picogpt.files import new_folder
from utils import (
    HPARAMS,
    DownloadError,
    Parser,
    UsageError,
    expected_shapes,
    load_hparams_and_params,
    log,
    nest,
    read_json,
)

Array = np.ndarray[Any, np.dtype[Any]]

CONFIG, WEIGHTS, SHARDS = "config.json", "model.safetensors", "model.safetensors.index.json"
VOCAB, MERGES, TOKENIZER, SETTINGS = "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"
ADDED = "added_tokens.json"
WANTED = [CONFIG, WEIGHTS, SHARDS, "model-?????-of-?????.safetensors", VOCAB, MERGES, TOKENIZER, SETTINGS, ADDED]

# Our hyper-parameters: config.json's names for them, and the value that transformers takes where none is given.
NAMES: dict[str, tuple[tuple[str, ...], int]] = {
    "n_vocab": (("vocab_size",), 50257),
    "n_ctx": (("n_positions", "max_position_embeddings", "n_ctx"), 1024),
    "n_embd": (("n_embd", "hidden_size"), 768),
    "n_head": (("n_head", "num_attention_heads"), 12),
    "n_layer": (("n_layer", "num_hidden_layers"), 12),
}
# What gpt2.py computes, in config.json's words; also what transformers takes where the file does not say.
COMPUTED: dict[str, Any] = {
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
DTYPES = ("F32", "F16", "F64", "BF16")  # safetensors' names
BUFFERS = r"h\.\d+\.attn\.(bias|masked_bias)"  # the causal mask, which older checkpoints store
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


# -------------------------------------------------------------------------------------------------------- reading it


def need(*modules: str) -> None:
    """Raise OSError naming the first module that is not installed, and where it comes from."""
    for name in modules:
        if importlib.util.find_spec(name) is None:
            raise OSError(f"{name} is not installed: pip install -r requirements-dev.txt")


def find_source(source: str, revision: str | None) -> Path:
    """The Hugging Face folder that a path or a hub's name means; of the latter what is needed is downloaded."""
    if revision is None and (folder := Path(source)).exists():
        if not folder.is_dir():
            raise UsageError(f"{source} is a file: give the folder it is in")
        if (folder / "hparams.json").exists() and not (folder / CONFIG).exists():
            raise UsageError(f"{source} is in OpenAI's layout already: --to-hf converts from it")
        return folder
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source):
        raise FileNotFoundError(f"no folder {source!r}, and a name on the Hugging Face hub is owner/model")
    return download(source, revision)


def download(name: str, revision: str | None) -> Path:
    """The folder of the hub's cache with a model's files, pickles not among them. Raises DownloadError."""
    need("huggingface_hub")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=WANTED))
    except Exception as error:  # of the hub's own kinds, or of any library under it
        text = " ".join(str(error.__cause__ or error).split())[:300]
        raise DownloadError(f"no folder {name!r}, and can't get it from the Hugging Face hub: {text}") from None


def read_config(path: Path) -> dict[str, int]:
    """The hyper-parameters in a config.json. Raises ValueError naming what is not as in GPT-2."""
    config = read_json(path)
    if config.get("model_type") != "gpt2":
        raise ValueError(f"{path}: not a GPT-2: model_type is {config.get('model_type')!r}")
    for name, value in COMPUTED.items():
        if (found := config.get(name, value)) != value:
            raise ValueError(f"{path}: not as GPT-2: {name} is {found!r}, where gpt2.py computes {value!r}")
    hparams = {}
    for ours, (theirs, default) in NAMES.items():
        name = next((name for name in theirs if name in config), theirs[0])
        value = hparams[ours] = config.get(name, default)
        if type(value) is not int or not 0 < value < 1 << 31:
            raise ValueError(f"{path}: {name} is {value!r}, not a positive whole number")
    if hparams["n_embd"] % hparams["n_head"]:
        raise ValueError(f"{path}: n_embd = {hparams['n_embd']} is no multiple of n_head = {hparams['n_head']}")
    if (inner := config.get("n_inner")) not in (None, 4 * hparams["n_embd"]):
        raise ValueError(f"{path}: not as GPT-2: n_inner is {inner!r}, not 4 n_embd = {4 * hparams['n_embd']}")
    return hparams


class Stored(NamedTuple):
    """A tensor that a safetensors file describes and that nobody has read yet."""

    file: Any
    key: str
    dtype: str
    shape: tuple[int, ...]

    def read(self) -> Any:
        return self.file.get_tensor(self.key)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, after its index where it has one. Raises ValueError where there are none."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / SHARDS).exists():
        names = read_json(folder / SHARDS).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ValueError(f"{folder / SHARDS}: weight_map does not give a file for each tensor")
        if outside := [name for name in names.values() if Path(name).name != name or "\\" in name]:
            raise ValueError(f"{folder / SHARDS}: {outside[0]!r} is not a file of the same folder")
        return [folder / name for name in sorted(set(names.values()))]
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    raise ValueError(
        f"{folder} has no {WEIGHTS}; {pickles[0] if pickles else 'pytorch_model.bin'} "
        f"{'is' if pickles else 'would be'} a pickle, and picogpt refuses those: loading one runs code that is in it"
    )


def open_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a folder by its name without `transformer.`; only the files' headers are read."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, Stored] = {}
    for path in weight_files(folder):
        try:
            file: Any = safe_open(path, framework="numpy")
        except SafetensorError as error:
            raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
        for key in file.keys():  # noqa: SIM118
            header = file.get_slice(key)
            name = key.removeprefix("transformer.")
            if name in found:
                raise ValueError(f"{path}: the tensor {name} is there twice")
            found[name] = Stored(file, key, header.get_dtype(), tuple(header.get_shape()))
    return found


def hf_name(name: str) -> str:
    """Hugging Face's name of a tensor, without prefix: hf_name("h0/attn/c_attn/w") = "h.0.attn.c_attn.weight"."""
    path, _, last = re.sub(r"^h(\d+)/", r"h/\1/", name).rpartition("/")
    endings = {"w": "weight", "g": "weight", "b": "bias"}
    return f"{path.replace('/', '.')}.{endings[last]}" if path else f"{last}.weight"


def hf_shapes(hparams: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a GPT-2 by Hugging Face's names: no leading 1 in the shape of a linear layer's weights."""
    shapes = expected_shapes(hparams).items()
    return {hf_name(name): shape[1:] if name.endswith("/w") else shape for name, shape in shapes}


def check_tensors(folder: Path, found: dict[str, Stored], hparams: dict[str, int]) -> None:
    """Raise ValueError naming a tensor that is missing, unknown, or not of the shape and dtype it should have."""
    if hparams["n_layer"] > len(found):
        raise ValueError(f"{folder} has {len(found)} tensors, but {CONFIG} says n_layer = {hparams['n_layer']}")
    shapes = hf_shapes(hparams)
    for name, shape in shapes.items():
        if name not in found:
            raise ValueError(f"{folder}: the tensor {name} is missing, which {CONFIG} implies")
        if found[name].shape != shape:
            raise ValueError(f"{folder}: {name} is {found[name].shape}, but {CONFIG} implies {shape}")
        if found[name].dtype not in DTYPES:
            raise ValueError(f"{folder}: {name} is {found[name].dtype}, not one of {', '.join(DTYPES)}")
        if found[name].dtype != found["wte.weight"].dtype:
            raise ValueError(f"{folder}: {name} is {found[name].dtype}, but wte.weight {found['wte.weight'].dtype}")
    for name in found.keys() - shapes.keys() - {"lm_head.weight"}:
        if not re.fullmatch(BUFFERS, name):
            raise ValueError(f"{folder}: not as GPT-2: it has a tensor {name}, which gpt2.py has no use for")


def as_bytes(array: Array) -> Array:
    return array.reshape(-1).view(np.uint8)


def widened(array: Array) -> Array:
    """A bfloat16 array as float32, exactly: it is the upper half of one. Any other as it is."""
    if array.dtype.name != "bfloat16":
        return array
    return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def read_tensors(folder: Path, hparams: dict[str, int]) -> tuple[dict[str, Array], str]:
    """The tensors of a Hugging Face folder by the checkpoint's names, and the dtype they had in it."""
    found = open_tensors(folder)
    check_tensors(folder, found, hparams)
    wte = found["wte.weight"].read()
    if head := found.get("lm_head.weight"):
        same = (head.dtype, head.shape) == (found["wte.weight"].dtype, wte.shape)
        if not same or not np.array_equal(as_bytes(head.read()), as_bytes(wte)):
            raise ValueError(f"{folder}: not as GPT-2: lm_head.weight is not wte.weight, to which gpt2.py ties it")
    tensors = {"wte": widened(wte)}
    for name, shape in expected_shapes(hparams).items():
        if name != "wte":
            tensors[name] = widened(found[hf_name(name)].read()).reshape(shape)
    return tensors, found["wte.weight"].dtype


# ------------------------------------------------------------------------------------------------------ its tokenizer


def read_merges(path: Path) -> list[str]:
    """The merges in a merges.txt or vocab.bpe, without the line that gives the version."""
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    return lines[1:] if lines[0].startswith("#version") else lines


def read_tokenizer_json(path: Path) -> tuple[dict[str, int], list[str]]:
    """Vocabulary and merges of a tokenizer.json. Raises ValueError when it does not cut text as GPT-2 does."""
    content = read_json(path)
    model, cut = content.get("model") or {}, content.get("pre_tokenizer") or {}
    for what, found, value in (
        ("its model", model.get("type"), "BPE"),
        ("its pre_tokenizer", cut.get("type"), "ByteLevel"),
        ("add_prefix_space", cut.get("add_prefix_space", True), False),
        ("use_regex", cut.get("use_regex", True), True),
        ("its normalizer", content.get("normalizer"), None),
        ("continuing_subword_prefix", model.get("continuing_subword_prefix") or "", ""),
        ("end_of_word_suffix", model.get("end_of_word_suffix") or "", ""),
        ("ignore_merges", model.get("ignore_merges", False), False),
    ):
        if found != value:
            raise ValueError(f"{path}: not GPT-2's tokenizer: {what} is {found!r}, not {value!r}")
    try:
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        return {**model["vocab"]}, merges
    except (KeyError, TypeError):
        raise ValueError(f"{path}: its model has no vocab and merges") from None


def added_tokens(folder: Path) -> dict[str, int]:
    """The tokens that were added to a vocabulary, wherever the folder's files list them."""
    added: dict[str, int] = {}
    try:
        if (path := folder / TOKENIZER).exists():
            added |= {token["content"]: token["id"] for token in read_json(path).get("added_tokens", [])}
        if (path := folder / SETTINGS).exists():
            listed = read_json(path).get("added_tokens_decoder", {}).items()
            added |= {token["content"]: int(id) for id, token in listed}
        if (path := folder / ADDED).exists():
            added |= read_json(path)
    except (AttributeError, KeyError, TypeError):
        raise ValueError(f"{path}: its added tokens have no content and id") from None
    return added


def with_added(folder: Path, vocab: dict[str, int]) -> dict[str, int]:
    """The vocabulary with the added tokens in it. Raises ValueError for one that encoder.json can't hold."""
    added = added_tokens(folder)
    for token, id in added.items():
        if vocab.get(token, id) != id:
            raise ValueError(f"{folder}: the added token {token!r} has id {id}, in the vocabulary {vocab[token]}")
        if not token or any(BYTE_TO_CHAR.get(ord(char)) != char for char in token) or not token.isascii():
            raise ValueError(f"{folder}: the added token {token!r} is not of visible ASCII, as encoder.json needs it")
    if new := [token for token in added if token not in vocab and token != END_OF_TEXT]:
        log(f"{len(new)} added tokens, such as {new[0]!r}: in a text they are text unless allowed_special has them")
    return vocab | added


def read_tokenizer(folder: Path, n_vocab: int) -> tuple[dict[str, int], list[str]]:
    """Vocabulary and merges of a Hugging Face folder, from whichever files it has, and from both if it has both."""
    found = []
    if (folder / VOCAB).exists() and (folder / MERGES).exists():
        found.append((read_json(folder / VOCAB), read_merges(folder / MERGES)))
    if (folder / TOKENIZER).exists():
        found.append(read_tokenizer_json(folder / TOKENIZER))
    if not found:
        raise FileNotFoundError(f"{folder} has no tokenizer: neither {VOCAB} and {MERGES} nor {TOKENIZER}")
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).exists() else {}
    for name in ("add_prefix_space", "add_bos_token"):
        if settings.get(name):
            raise ValueError(f"{folder / SETTINGS}: not GPT-2's tokenizer: {name} is {settings[name]!r}")
    vocab, merges = with_added(folder, found[0][0]), found[0][1]
    for other, others in found[1:]:
        if other | added_tokens(folder) != vocab or others != merges:
            raise ValueError(f"{folder}: {VOCAB} and {MERGES} are not what {TOKENIZER} has")
    try:
        check_vocabulary(vocab, merges)
    except ValueError as error:
        raise ValueError(f"{folder}: not a tokenizer for OpenAI's layout: {error}") from None
    if len(vocab) != n_vocab:
        raise ValueError(f"{folder}: the tokenizer has {len(vocab)} tokens, but {CONFIG} says vocab_size = {n_vocab}")
    return vocab, merges


# -------------------------------------------------------------------------------------------------- both directions


def summary(tensors: dict[str, Array], n_vocab: int) -> str:
    count = sum(tensor.size for tensor in tensors.values())
    return f"{len(tensors)} tensors, {count:,} numbers, {tensors[next(iter(tensors))].dtype}; {n_vocab:,} tokens"


def from_hf(source: str, target: Path, revision: str | None = None) -> str:
    """Make models/NAME from a Hugging Face folder or a hub's name, and say what it is.

    float32, float16 and float64 keep their bits; bfloat16, which OpenAI's layout has not, becomes float32 exactly.
    Raises OSError or ValueError in one line when anything about the model is not as in GPT-2: then nothing is written.
    """
    need("safetensors", "tensorflow")
    with new_folder(target) as folder:
        origin = find_source(source, revision)
        hparams = read_config(origin / CONFIG)
        vocab, merges = read_tokenizer(origin, hparams["n_vocab"])
        tensors, dtype = read_tensors(origin, hparams)
        in_order = dict(sorted(vocab.items(), key=lambda pair: pair[1]))  # as in OpenAI's file
        (folder / "encoder.json").write_text(json.dumps(in_order), encoding="utf-8", newline="\n")
        write_merges(folder / "vocab.bpe", merges)
        write_checkpoint(folder, hparams, nest(tensors, hparams["n_layer"]))
    return summary(tensors, hparams["n_vocab"]) + (" (from bfloat16, exactly)" if dtype == "BF16" else "")


def hf_settings(hparams: dict[str, int], dtype: str, end: int | None) -> dict[str, dict[str, Any]]:
    """The JSON files that transformers wants beside weights and vocabulary; end is the id of <|endoftext|>."""
    ends = {"bos_token_id": end, "eos_token_id": end}
    sizes = {theirs[0]: hparams[ours] for ours, (theirs, _) in NAMES.items()}
    token = None if end is None else END_OF_TEXT
    return {
        CONFIG: {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            **sizes,
            "n_ctx": hparams["n_ctx"],  # older programs ask for this one
            "n_inner": None,
            **COMPUTED,
            **ends,
            "torch_dtype": dtype,  # `dtype` since transformers 5, which still reads the older name
        },
        "generation_config.json": ends,
        SETTINGS: {
            "tokenizer_class": "GPT2Tokenizer",
            "model_max_length": hparams["n_ctx"],
            "add_prefix_space": False,
            **{f"{kind}_token": token for kind in ("bos", "eos", "unk")},
        },
    }


def read_openai(source: Path) -> tuple[dict[str, int], dict[str, Array], dict[str, int]]:
    """Hyper-parameters, tensors by the checkpoint's names, and vocabulary of a folder in OpenAI's layout."""
    if not (source / "hparams.json").exists():
        hint = ": without --to-hf, it is converted from Hugging Face's layout" if (source / CONFIG).exists() else ""
        raise FileNotFoundError(f"{source} is not a model in OpenAI's layout: it has no hparams.json{hint}")
    vocab = get_encoder(source.name, source.parent).encoder
    hparams, params = load_hparams_and_params(source)
    if len(vocab) != hparams["n_vocab"]:
        raise ValueError(f"{source}: encoder.json has {len(vocab)} tokens, hparams.json n_vocab = {hparams['n_vocab']}")
    return {name: hparams[name] for name in HPARAMS}, flatten(params), vocab


def to_hf(source: Path, target: Path) -> str:
    """Make a Hugging Face folder from one in OpenAI's layout, and say what it is.

    The tensors are views of the mapped checkpoint up to the moment safetensors writes them.
    """
    need("safetensors")
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    with new_folder(target) as folder:
        hparams, tensors, vocab = read_openai(source)
        settings = hf_settings(hparams, tensors["model/wte"].dtype.name, vocab.get(END_OF_TEXT))
        for name, content in settings.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")
        shutil.copyfile(source / "encoder.json", folder / VOCAB)
        write_merges(folder / MERGES, read_merges(source / "vocab.bpe"))
        shapes = hf_shapes(hparams)
        named = {hf_name(name.removeprefix("model/")): tensor for name, tensor in tensors.items()}
        arrays = {f"transformer.{name}": tensor.reshape(shapes[name]) for name, tensor in named.items()}
        try:
            save_file(arrays, folder / WEIGHTS, metadata={"format": "pt"})  # transformers before 5 wants the format
        except SafetensorError as error:
            raise OSError(f"safetensors can't write {target}: {error}") from None
        (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors lets only the owner read it
    return summary(tensors, hparams["n_vocab"])


# -------------------------------------------------------------------------------------------------- the command line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="picogpt convert",
        description="Convert a GPT-2 from Hugging Face's layout to the one that gpt2.py reads, or back, bit for bit.",
        epilog="""Only safetensors are read, never pickles. bfloat16 becomes float32, exactly; float32, float16 and
float64 stay. A model that is not GPT-2 in every detail is refused. Tokens that were added to the vocabulary are kept.

examples:
  python -m picogpt convert openai-community/gpt2 models/gpt2        (from the Hugging Face hub)
  python -m picogpt convert ~/my-finetuned-gpt2 models/mine          (a folder)
  python -m picogpt convert --to-hf models/124M gpt2-hf              (for transformers)""",
    )
    add = parser.add_argument
    add("source", help="a Hugging Face folder or a hub's owner/model; with --to-hf a folder in OpenAI's layout")
    add("target", type=Path, metavar="models/NAME", help="the folder to make; it must not exist yet")
    add("--to-hf", "--to_hf", action="store_true", help="from OpenAI's layout to Hugging Face's")
    add("--revision", metavar="R", help="a branch, tag or commit of the hub's model (main)")
    args = parser.parse_args(argv)
    if args.to_hf and args.revision:
        parser.error("argument --revision: it names a version on the hub, and --to-hf reads a folder")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.to_hf:
        print(f"{args.target}: {to_hf(Path(args.source), args.target)}")
    else:
        print(f"{args.target}: {from_hf(args.source, args.target, args.revision)}")
    return 0
