"""Hugging Face's layout of a GPT-2: its names for tensors, settings and files, and how to read a folder of them.

Both layouts hold the same tensors under other names: h0/attn/c_attn/w is h.0.attn.c_attn.weight, and a linear layer's
weights are [n_in, n_out] in both. A model that differs from GPT-2 is refused with a ValueError, because gpt2.py would
generate wrong text from it without any sign of an error.

Sources: the README of safetensors for its file format; GPT2Config of transformers for config.json.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from encoder import BYTE_TO_CHAR, END_OF_TEXT, check_vocabulary, read_merges
from picogpt.checkpoints.writing import arrays_of
from picogpt.command_line import log
from picogpt.options import require
from utils import SIZES, expected_shapes, nest, read_json

Array = np.ndarray[Any, np.dtype[Any]]

CONFIG, WEIGHTS, SHARDS = "config.json", "model.safetensors", "model.safetensors.index.json"
VOCAB, MERGES, TOKENIZER, SETTINGS = "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"
ADDED = "added_tokens.json"
WANTED = [CONFIG, WEIGHTS, SHARDS, "model-?????-of-?????.safetensors", VOCAB, MERGES, TOKENIZER, SETTINGS, ADDED]

# Our hyperparameters and config.json's names for them. The first name is written; a file that is read may have any.
CONFIG_NAMES = {
    "n_vocab": ("vocab_size",),
    "n_ctx": ("n_positions", "max_position_embeddings", "n_ctx"),
    "n_embd": ("n_embd", "hidden_size"),
    "n_head": ("n_head", "num_attention_heads"),
    "n_layer": ("n_layer", "num_hidden_layers"),
}
# The other settings that change a model's numbers, with the values that gpt2.py computes. transformers assumes the same
# values where config.json leaves a setting out.
COMPUTED: dict[str, Any] = {
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
ENDINGS = {"w": "weight", "g": "weight", "b": "bias"}  # the names of weights, gains and biases
DTYPES = ("F32", "F16", "F64", "BF16")  # as safetensors calls them
MASKS = r"h\.\d+\.attn\.(bias|masked_bias)"  # the causal mask, which older versions of transformers stored
FILE_NAME = r"[^/\\:\0-\x1f\ud800-\udfff]+\.safetensors"  # no path, and nothing that no file can be called
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_HEADER = 4 << 20  # bytes of a safetensors file that describe its tensors; 1558M needs 61 thousand
NOT_GPT2 = "gpt2.py can't compute this model"

# A value from a file for a message: like repr, but bounded, because a file may hold a list of a million lists.
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 100
short = SHORT.repr


# ------------------------------------------------------------------------------------------------------------- names


def tensor_name(name: str) -> str:
    """Return Hugging Face's name of a tensor: tensor_name("h0/attn/c_attn/w") = "h.0.attn.c_attn.weight"."""
    *path, last = re.sub(r"^h(\d+)/", r"h/\1/", name).split("/")
    return ".".join([*path, ENDINGS.get(last, f"{last}.weight")])


def state_dict(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the arrays of our parameters, or of any part of them, by Hugging Face's names. Nothing is copied.

    Examples: state_dict(params, "transformer.") has "transformer.h.0.ln_1.weight", and state_dict(block) "ln_1.weight".
    """
    return {prefix + tensor_name(name): array for name, array in arrays_of(params)}


def config_settings(hparams: Mapping[str, int]) -> dict[str, Any]:
    """Return the settings of a GPT2Config that describe a model with these hyperparameters, as gpt2.py computes it."""
    return {names[0]: hparams[name] for name, names in CONFIG_NAMES.items()} | COMPUTED


# ------------------------------------------------------------------------------------------------------- config.json


def check_files(folder: Path) -> None:
    """Raise ValueError if a file to read is something else: opening a pipe, for example, waits for its other end."""
    for path in folder.iterdir():
        if path.suffix in (".json", ".txt", ".safetensors") and path.exists() and not path.is_file():
            raise ValueError(f"{path} is not a file")


def read_config(path: Path) -> dict[str, int]:
    """Read the hyperparameters from a config.json. Raises ValueError naming a setting that gpt2.py can't compute."""
    config = read_json(path)
    found = {"model_type": None, **COMPUTED, **config}
    for name, value in {"model_type": "gpt2", **COMPUTED}.items():
        if found[name] != value:
            raise ValueError(f"{path}: {NOT_GPT2}: {name} is {short(found[name])}, not {value!r}")
    hparams = {}
    for ours, theirs in CONFIG_NAMES.items():
        given = [name for name in theirs if name in config]
        name = given[0] if given else theirs[0]
        value = hparams[ours] = config.get(name, SIZES["124M"][ours])  # transformers' defaults are 124M's
        if type(value) is not int or not 0 < value < 1 << 31:
            raise ValueError(f"{path}: {name} is {short(value)}, not a positive whole number")
        for other in given[1:]:
            if config[other] != value and other != "n_ctx":  # transformers ignores n_ctx
                raise ValueError(f"{path}: {name} is {value}, but its other name {other} is {short(config[other])}")
    if hparams["n_embd"] % hparams["n_head"]:
        raise ValueError(f"{path}: n_embd = {hparams['n_embd']} is no multiple of n_head = {hparams['n_head']}")
    if (inner := config.get("n_inner")) not in (None, 4 * hparams["n_embd"]):
        raise ValueError(f"{path}: {NOT_GPT2}: n_inner is {short(inner)}, not 4 n_embd = {4 * hparams['n_embd']}")
    return hparams


# ----------------------------------------------------------------------------------------------------------- weights


class StoredTensor(NamedTuple):
    """A tensor in a safetensors file: its description from the header, and its numbers once `read` is called."""

    file: Any
    key: str
    dtype: str
    shape: tuple[int, ...]

    def read(self) -> Array:
        """Read the tensor. bfloat16 becomes float32, exactly: a bfloat16 is the upper half of a float32."""
        if self.dtype == "BF16":  # NumPy knows bfloat16 only after this import
            import ml_dtypes  # noqa: F401
        array: Array = self.file.get_tensor(self.key)
        if self.dtype != "BF16":
            return array
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def weight_files(folder: Path) -> list[Path]:
    """Return a folder's safetensors files: one, or those that its index lists. Raises ValueError if it has neither."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / SHARDS).exists():
        names = read_json(folder / SHARDS).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ValueError(f"{folder / SHARDS}: weight_map does not give a file for each tensor")
        if outside := [name for name in names.values() if not re.fullmatch(FILE_NAME, name)]:
            raise ValueError(f"{folder / SHARDS}: {short(outside[0])} is not a safetensors file in the same folder")
        return [folder / name for name in sorted(set(names.values()))]
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    reason = f"; {pickles[0]} is a pickle, and loading a pickle runs the code in it" if pickles else ""
    raise ValueError(f"{folder} has no {WEIGHTS}: weights are read from safetensors only{reason}")


def open_safetensors(path: Path) -> Any:
    """Open a file, whose header safetensors checks. Raises OSError or ValueError naming the file and its fault."""
    from safetensors import SafetensorError, safe_open

    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER:  # safetensors allows 100 MB, which takes more than a gigabyte of memory
        raise ValueError(f"{path}: its first 8 bytes say that its header has {length:,} bytes, above {MAX_HEADER:,}")
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())[:300]}") from None


def open_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Describe every tensor of a folder by its name, without the prefix `transformer.`. Only headers are read."""
    found: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        file = open_safetensors(path)
        for key in file.keys():  # noqa: SIM118
            header = file.get_slice(key)
            name = key.removeprefix("transformer.")
            if name in found:
                raise ValueError(f"{path}: the tensor {short(name)} occurs twice")
            found[name] = StoredTensor(file, key, header.get_dtype(), tuple(header.get_shape()))
    return found


def check_tensors(folder: Path, found: dict[str, StoredTensor], hparams: dict[str, int]) -> None:
    """Raise ValueError naming a tensor that is missing, that GPT-2 lacks, or that has the wrong shape or dtype."""
    if hparams["n_layer"] > len(found):
        raise ValueError(f"{folder} has {len(found)} tensors, but {CONFIG} says n_layer = {hparams['n_layer']}")
    expected = {  # a linear layer's weights have a leading 1 in OpenAI's checkpoints only
        tensor_name(name): shape[1:] if name.endswith("/w") else shape
        for name, shape in expected_shapes(hparams).items()
    }
    for name, shape in expected.items():
        if name not in found:
            raise ValueError(f"{folder}: the tensor {name} is missing, which {CONFIG} implies")
        if found[name].shape != shape:
            raise ValueError(f"{folder}: {name} is {short(found[name].shape)}, but {CONFIG} implies {shape}")
        if found[name].dtype not in DTYPES:
            raise ValueError(f"{folder}: {name} is {found[name].dtype}, not one of {', '.join(DTYPES)}")
        if found[name].dtype != found["wte.weight"].dtype:
            raise ValueError(f"{folder}: {name} is {found[name].dtype}, but wte.weight is {found['wte.weight'].dtype}")
    for name in found.keys() - expected.keys() - {"lm_head.weight"}:
        if not re.fullmatch(MASKS, name):
            raise ValueError(f"{folder}: {NOT_GPT2}: it has a tensor {short(name)}, and GPT-2 has none of that name")


def read_params(folder: Path, hparams: dict[str, int]) -> tuple[dict[str, Any], str]:
    """Read the parameters of a folder. Returns our nested tree, and the dtype of the tensors in the folder."""
    from tqdm import tqdm

    found = open_tensors(folder)
    check_tensors(folder, found, hparams)
    wte = found["wte.weight"]
    if wte.dtype == "BF16":
        require("ml_dtypes", purpose="to read bfloat16")
    if (head := found.get("lm_head.weight")) and not same_bits(head, wte):
        raise ValueError(f"{folder}: {NOT_GPT2}: lm_head.weight differs from wte.weight, and GPT-2 has one for both")
    tensors = {}
    for name, shape in tqdm(expected_shapes(hparams).items(), "reading", unit="tensor", leave=False, disable=None):
        tensors[name] = found[tensor_name(name)].read().reshape(shape)
    return nest(tensors, hparams["n_layer"]), wte.dtype


def same_bits(a: StoredTensor, b: StoredTensor) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    one, other = (tensor.read().reshape(-1).view(np.uint8) for tensor in (a, b))
    return np.array_equal(one, other)


# --------------------------------------------------------------------------------------------------------- tokenizer


def entry(path: Path, content: dict[str, Any], name: str, kind: type[Any]) -> Any:
    """Return an entry of a JSON object; a missing one is empty. Raises ValueError if it is not a dict or a list."""
    value = content.get(name)
    if not isinstance(value, (kind, type(None))):
        raise ValueError(f"{path}: {name} is {short(value)}, not {'an object' if kind is dict else 'a list'}")
    return value or kind()


def read_tokenizer_json(path: Path) -> tuple[dict[str, int], list[str]]:
    """Read vocabulary and merges from a tokenizer.json. Raises ValueError if it encodes text differently from GPT-2."""
    content = read_json(path)
    model, splits, ends = (entry(path, content, name, dict) for name in ("model", "pre_tokenizer", "post_processor"))
    for name, found, value in (
        ("its model", model.get("type"), "BPE"),
        ("its pre_tokenizer", splits.get("type"), "ByteLevel"),
        ("add_prefix_space", splits.get("add_prefix_space", True), False),
        ("use_regex", splits.get("use_regex", True), True),
        ("special_tokens of its post_processor", ends.get("special_tokens") or {}, {}),
        ("its normalizer", content.get("normalizer"), None),
        ("dropout", model.get("dropout"), None),
        ("continuing_subword_prefix", model.get("continuing_subword_prefix") or "", ""),
        ("end_of_word_suffix", model.get("end_of_word_suffix") or "", ""),
        ("ignore_merges", model.get("ignore_merges", False), False),
    ):
        if found != value:
            raise ValueError(f"{path}: not GPT-2's tokenizer: {name} is {short(found)}, not {value!r}")
    if "vocab" not in model or "merges" not in model:
        raise ValueError(f"{path}: its model has no vocab and merges")
    merges = entry(path, model, "merges", list)
    return entry(path, model, "vocab", dict), [merge_line(path, merge) for merge in merges]


def merge_line(path: Path, merge: Any) -> str:
    """Return a merge as a line of vocab.bpe. A tokenizer.json has it as such a line, or as a list of two symbols."""
    line = " ".join(merge) if isinstance(merge, list) and list(map(type, merge)) == [str, str] else merge
    if not isinstance(line, str) or "\n" in line:
        raise ValueError(f"{path}: the merge {short(merge)} is not two symbols")
    return line


def read_added_tokens(folder: Path) -> dict[str, int]:
    """Read the tokens that were added to a vocabulary, from all three files that may list them."""
    listed: list[tuple[Path, Any, Any]] = []  # the file, the token's description, its id
    if (path := folder / TOKENIZER).exists():
        tokens = entry(path, read_json(path), "added_tokens", list)
        listed += [(path, token, token.get("id") if isinstance(token, dict) else None) for token in tokens]
    if (path := folder / SETTINGS).exists():
        by_id = entry(path, read_json(path), "added_tokens_decoder", dict)
        listed += [(path, by_id[id], int(id) if re.fullmatch("[0-9]{1,9}", id) else id) for id in by_id]
    if (path := folder / ADDED).exists():
        listed += [(path, {"content": token}, id) for token, id in read_json(path).items()]
    added: dict[str, int] = {}
    for path, token, id in listed:
        content = token.get("content") if isinstance(token, dict) else None
        if not isinstance(content, str) or type(id) is not int:
            raise ValueError(f"{path}: an added token is a text with a number, not {short(token)} with {short(id)}")
        if added.setdefault(content, id) != id:
            raise ValueError(f"{path}: the added token {short(content)} has two ids, {added[content]} and {id}")
    return added


def with_added_tokens(folder: Path, vocab: dict[str, int], added: dict[str, int]) -> dict[str, int]:
    """Return the vocabulary with the added tokens. Raises ValueError for one that encoder.json can't hold."""
    for token, id in added.items():
        if vocab.get(token, id) != id:
            found = short(vocab[token])
            raise ValueError(f"{folder}: the added token {short(token)} has id {id}, but {found} in the vocabulary")
        if not token or any(BYTE_TO_CHAR.get(ord(char)) != char for char in token) or not token.isascii():
            raise ValueError(f"{folder}: the added token {short(token)} has characters other than visible ASCII")
    return vocab | added


def read_tokenizer_files(folder: Path) -> list[tuple[dict[str, int], list[str]]]:
    """Read vocabulary and merges from each kind of files that a folder has: the older two, and tokenizer.json."""
    found = []
    if (folder / VOCAB).exists() and (folder / MERGES).exists():
        try:
            found.append((read_json(folder / VOCAB), read_merges(folder / MERGES)))
        except UnicodeDecodeError as error:
            raise ValueError(f"{folder / MERGES} is not UTF-8: {error.reason} at byte {error.start}") from None
    if (folder / TOKENIZER).exists():
        found.append(read_tokenizer_json(folder / TOKENIZER))
    if not found:
        raise FileNotFoundError(f"{folder} has no tokenizer: neither {VOCAB} and {MERGES} nor {TOKENIZER}")
    return found


def read_tokenizer(folder: Path, n_vocab: int) -> tuple[dict[str, int], list[str]]:
    """Read vocabulary and merges, and check that they fit OpenAI's layout. Two kinds of files must agree."""
    found, added = read_tokenizer_files(folder), read_added_tokens(folder)
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).exists() else {}
    for name in ("add_prefix_space", "add_bos_token"):
        if settings.get(name):
            raise ValueError(f"{folder / SETTINGS}: not GPT-2's tokenizer: {name} is {short(settings[name])}")
    tokenizers = [(with_added_tokens(folder, vocab, added), merges) for vocab, merges in found]
    for tokenizer in tokenizers:
        try:
            check_vocabulary(*tokenizer)
        except ValueError as error:
            raise ValueError(f"{folder}: its tokenizer does not fit OpenAI's layout: {str(error)[:300]}") from None
    if tokenizers[0] != tokenizers[-1]:
        raise ValueError(f"{folder}: {VOCAB} and {MERGES} disagree with {TOKENIZER}")
    vocab, merges = tokenizers[0]
    if len(vocab) != n_vocab:
        raise ValueError(f"{folder}: the tokenizer has {len(vocab)} tokens, but {CONFIG} says vocab_size = {n_vocab}")
    if new := [token for token in added if token not in found[0][0] and token != END_OF_TEXT]:
        text = "are ordinary text unless Encoder.encode gets them as allowed_special"
        log(f"{folder}: added tokens ({len(new)}, such as {short(new[0])}) {text}")
    return vocab, merges
