"""Our parameters, hyperparameters and tokenizer under the names that transformers gives them. foreign.py reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from encoder import END_OF_TEXT, Encoder
from picogpt.checkpoints.foreign import COMPUTED, CONFIG, CONFIG_NAMES, tensor_name
from picogpt.checkpoints.tokenizer import SETTINGS
from picogpt.checkpoints.writing import arrays_of


def state_dict(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the arrays of our parameters, or of any part of them, by transformers' names. Nothing is copied.

    Examples: state_dict(params, "transformer.") has "transformer.h.0.ln_1.weight", and state_dict(block) "ln_1.weight".
    """
    return {prefix + tensor_name(name): array for name, array in arrays_of(params)}


def config_settings(hparams: Mapping[str, int]) -> dict[str, Any]:
    """Return the settings of a GPT2Config that describe a model with these hyperparameters, as gpt2.py computes it."""
    sizes = {names[0]: hparams[name] for name, names in CONFIG_NAMES.items()}
    return sizes | {name: values[0] for name, values in COMPUTED.items()}


def settings(hparams: dict[str, int], dtype: str, encoder: Encoder) -> dict[str, dict[str, Any]]:
    """Return the contents of the JSON files that transformers needs beside the vocabulary, by name."""
    end = encoder.encoder.get(END_OF_TEXT)
    ends = {"bos_token_id": end, "eos_token_id": end}
    token = None if end is None else END_OF_TEXT
    special = {text: id for text, id in encoder.special_tokens.items() if text != END_OF_TEXT}
    return {
        CONFIG: {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            **config_settings(hparams),
            "n_ctx": hparams["n_ctx"],  # older programs read this one
            "n_inner": None,
            **ends,
            "torch_dtype": dtype,  # transformers 5 writes `dtype`, and still reads the older name
        },
        "generation_config.json": ends,
        SETTINGS: {
            "tokenizer_class": "GPT2Tokenizer",
            "model_max_length": hparams["n_ctx"],
            "add_prefix_space": False,
            **{f"{kind}_token": token for kind in ("bos", "eos", "unk")},
            "additional_special_tokens": list(special),
            "added_tokens_decoder": {id: {"content": text, "special": True} for text, id in special.items()},
        },
    }
