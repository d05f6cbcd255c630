"""Open models in foreign layouts: folders that transformers saved, and nanoGPT's weights as a safetensors file.

They hold the tensors of OpenAI's checkpoints under other names: h0/attn/c_attn/w is h.0.attn.c_attn.weight. A linear
layer's weights are [n_in, n_out] in transformers, too, but [n_out, n_in] in nanoGPT. A model that differs from GPT-2 is
refused with a ValueError, because gpt2.py would generate wrong text from it without any sign of an error.

Only `utils.py` and the tools of this folder call this module; it imports nothing but NumPy and the three files.

Sources: GPT2Config and GPT2Model of transformers; GPTConfig and GPT of nanoGPT.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from encoder import Encoder, get_encoder
from picogpt.checkpoints.safetensors import DTYPES, StoredTensor, read_safetensors
from picogpt.checkpoints.tokenizer import MERGES, TOKENIZER, VOCAB, read_tokenizer, warn
from utils import SIZES, TOKENIZER_FILES, ensure_downloaded, expected_shapes, nest, read_json

if TYPE_CHECKING:
    from picogpt.typing.shapes import Params

CONFIG, WEIGHTS, SHARDS = "config.json", "model.safetensors", "model.safetensors.index.json"

# Our hyperparameters and config.json's names for them. The first one is written, and any is read.
CONFIG_NAMES = {
    "n_vocab": ("vocab_size",),
    "n_ctx": ("n_positions", "max_position_embeddings", "block_size", "n_ctx"),
    "n_embd": ("n_embd", "hidden_size"),
    "n_head": ("n_head", "num_attention_heads"),
    "n_layer": ("n_layer", "num_hidden_layers"),
}
# The other settings that change a model's logits, with the values that gpt2.py computes. The first one is written, and
# transformers assumes it where config.json leaves the setting out. `tie_word_embeddings` is not among those that are
# read: what counts is whether the weights are equal. `reorder_and_upcast_attn` changes nothing in float32.
COMPUTED: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate", "gelu_fast"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "layer_norm_epsilon": (1e-5,),
}
NOT_GPT2 = "gpt2.py can't compute this model"
MOST_PADDING = 1023  # rows of wte that no token names; programs round the size of a vocabulary up to 50304 or 51200
WRAPPERS = r"^((_orig_mod|module|transformer)\.)*"  # what torch.compile, DataParallel and the head put before a name
MASKS = r"h\.\d+\.attn\.(bias|masked_bias)"  # the causal mask, which older versions stored
PICKLES = (".bin", ".pt", ".pth", ".ckpt")

# ------------------------------------------------------------------------------------------------------------- open


def open_model(folder: Path, models_dir: str | Path = "models") -> tuple[Encoder, dict[str, int], Params]:
    """Return the tokenizer, the hyperparameters and the parameters of a model in a foreign layout.

    float32 and float64 are read-only views of the file; float16 and bfloat16 become float32 copies. Rows of wte that no
    token names, with which a vocabulary was padded, are left out, and n_vocab is the number of tokens. Raises OSError,
    or ValueError naming what is wrong or not GPT-2's.
    """
    hparams = read_config(folder / CONFIG)
    encoder, params = open_encoder(folder, models_dir, hparams["n_vocab"]), read_params(folder, hparams)
    n_tokens = len(encoder.encoder)
    params["wte"] = params["wte"][:n_tokens]
    return encoder, hparams | {"n_vocab": n_tokens}, params  # type: ignore[return-value]  # what `nest` makes


def open_encoder(folder: Path, models_dir: str | Path = "models", n_vocab: int | None = None) -> Encoder:
    """Return the tokenizer of a model in a foreign layout. Raises OSError or ValueError. n_vocab is config.json's.

    For a model without one, and with OpenAI's number of tokens, it is OpenAI's, which is in models_dir or downloaded.
    """
    n_vocab, n_openai = n_vocab or read_config(folder / CONFIG)["n_vocab"], SIZES["124M"]["n_vocab"]
    encoder = read_tokenizer(folder)
    if not encoder:
        if not n_openai <= n_vocab <= n_openai + MOST_PADDING:
            raise FileNotFoundError(f"{folder} has no tokenizer: neither {TOKENIZER} nor {VOCAB} and {MERGES}")
        warn(f"{folder} has no tokenizer, so OpenAI's is taken")
        openai = ensure_downloaded("124M", models_dir, TOKENIZER_FILES)
        encoder = get_encoder(openai.name, openai.parent)
    n_tokens = len(encoder.encoder)
    if not n_tokens <= n_vocab <= n_tokens + MOST_PADDING:
        raise ValueError(f"{folder}: the tokenizer has {n_tokens} tokens, but {CONFIG} says vocab_size = {n_vocab}")
    return encoder


# ------------------------------------------------------------------------------------------------------ config.json


def read_config(path: Path) -> dict[str, int]:
    """Return the hyperparameters in a config.json. Raises ValueError naming a setting that gpt2.py can't compute."""
    if not path.exists():
        names = ", ".join(f'"{theirs[0]}"' for theirs in CONFIG_NAMES.values())
        raise FileNotFoundError(f"{path.parent} has no {CONFIG}: write one with {names} (see docs/models.md)")
    config = read_json(path)
    for name, values in {"model_type": ("gpt2", None), **COMPUTED}.items():
        if (found := config.get(name, values[0])) not in values:
            raise ValueError(f"{path}: {NOT_GPT2}: {name} is {found!r}, not {values[0]!r}")
    hparams: dict[str, int] = {}
    for ours, theirs in CONFIG_NAMES.items():
        name = next((name for name in theirs if name in config), theirs[0])
        # transformers takes 124M's value for a missing one. Other programs don't, and no tensor's shape shows n_head.
        value = config.get(name, SIZES["124M"][ours] if "model_type" in config else None)
        if type(value) is not int or value < 1:
            raise ValueError(f"{path}: {name} is {value!r}, not a positive whole number")
        hparams[ours] = value
    n_embd = hparams["n_embd"]
    if n_embd % hparams["n_head"]:
        raise ValueError(f"{path}: n_embd = {n_embd} is not a multiple of n_head = {hparams['n_head']}")
    if (inner := config.get("n_inner")) not in (None, 4 * n_embd):
        raise ValueError(f"{path}: {NOT_GPT2}: n_inner is {inner!r}, not 4 n_embd = {4 * n_embd}")
    return hparams


# ---------------------------------------------------------------------------------------------------------- weights


def tensor_name(name: str) -> str:
    """Return transformers' name of a tensor: tensor_name("h0/attn/c_attn/w") = "h.0.attn.c_attn.weight"."""
    *path, last = re.sub(r"^h(\d+)/", r"h/\1/", name).split("/")
    return ".".join([*path, {"w": "weight", "g": "weight", "b": "bias"}.get(last, f"{last}.weight")])


def read_params(folder: Path, hparams: dict[str, int]) -> dict[str, Any]:
    """Return the parameters as nested dictionaries. Raises ValueError naming a tensor that is wrong or not GPT-2's."""
    found = find_tensors(folder)
    n_embd = hparams["n_embd"]
    is_nanogpt = "h.0.attn.c_attn.weight" in found and found["h.0.attn.c_attn.weight"].shape == (3 * n_embd, n_embd)
    if is_nanogpt:
        warn(f"{folder}: nanoGPT computes GELU exactly, gpt2.py by GPT-2's tanh formula: logits differ slightly")
    tensors: dict[str, Any] = {}
    for name, shape in expected_shapes(hparams).items():
        tensor = found.pop(tensor_name(name), None)
        if tensor is None and is_nanogpt and name.endswith("/b"):  # the model was trained without biases
            tensors[name] = np.zeros(shape, tensors["wte"].dtype)
        elif name.endswith("/w"):  # OpenAI's checkpoints have a leading 1, and `nest` removes it
            w = read_tensor(folder, name, tensor, shape[:0:-1] if is_nanogpt else shape[1:])
            tensors[name] = (w.T if is_nanogpt else w)[None]
        else:
            tensors[name] = read_tensor(folder, name, tensor, shape)
    if unknown := [name for name in found if not re.fullmatch(MASKS, name)]:
        raise ValueError(f"{folder}: {NOT_GPT2}: it has a tensor {unknown[0]!r}, and GPT-2 has none of that name")
    return nest(tensors, hparams["n_layer"])


def find_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a folder by transformers' names, such as wte.weight. Only headers are read.

    The embeddings also serve as the output layer, `lm_head`, and some programs store them under that name only. Raises
    ValueError if the two differ.
    """
    found: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        found |= {re.sub(WRAPPERS, "", name): tensor for name, tensor in read_safetensors(path).items()}
    if head := found.pop("lm_head.weight", None):
        wte = found.setdefault("wte.weight", head)
        if wte is not head and not (wte.shape == head.shape and np.array_equal(wte.read(), head.read())):
            raise ValueError(f"{folder}: {NOT_GPT2}: lm_head.weight is not wte.weight, and GPT-2 has one for both")
    return found


def weight_files(folder: Path) -> list[Path]:
    """Return a folder's safetensors files: one, or those that its index lists. Raises FileNotFoundError otherwise."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / SHARDS).exists():
        return [folder / name for name in sorted(set(read_json(folder / SHARDS).get("weight_map", {}).values()))]
    text = f"{folder} has no {WEIGHTS}"
    if pickles := sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES):
        text += f", and loading the pickle {pickles[0]} would run the code in it. To save what you trust as safetensors"
        python = f"M.from_pretrained('{folder}').save_pretrained('{folder}')"
        command = f'python -c "from transformers import GPT2LMHeadModel as M; {python}"'
        text += f": {command}" if (folder / "pytorch_model.bin").exists() else ", see docs/models.md"
    raise FileNotFoundError(text)


def read_tensor(folder: Path, name: str, tensor: StoredTensor | None, shape: tuple[int, ...]) -> Any:
    """Read a tensor. Raises ValueError if it is missing, or has another shape or a type of whole numbers."""
    name = tensor_name(name)
    if tensor is None:
        raise ValueError(f"{folder}: the tensor {name} is missing, which {CONFIG} implies")
    if tensor.shape != shape:
        raise ValueError(f"{folder}: {name} is {tensor.shape}, but {CONFIG} implies {shape}")
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{folder}: {name} is {tensor.dtype}, not one of {', '.join(DTYPES)}")
    return tensor.read()
