"""Read GPT-2's tokenizer from Hugging Face's files: a tokenizer.json, or vocab.json with merges.txt.

vocab.json and merges.txt hold what OpenAI's encoder.json and vocab.bpe do, and a tokenizer.json holds it all in one.
Three files may list tokens that were added, such as <|user|>. A tokenizer that cuts texts differently from GPT-2's is
refused.

Sources: the files that transformers and tokenizers write.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from encoder import Encoder, read_merges
from utils import read_json

TOKENIZER, VOCAB, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
SETTINGS, ADDED = "tokenizer_config.json", "added_tokens.json"


def warn(message: str) -> None:
    """Log a warning of the library. Importing logging takes longer than opening the weights, so it is done here."""
    import logging

    logging.getLogger("picogpt").warning(message)


def read_tokenizer(folder: Path) -> Encoder | None:
    """Return the tokenizer in a folder, or None if there is none. Raises OSError or ValueError."""
    pairs = ((folder / VOCAB, folder / MERGES), (folder / "encoder.json", folder / "vocab.bpe"))  # OpenAI's names, too
    pair = next((pair for pair in pairs if all(path.exists() for path in pair)), None)
    try:
        if (path := folder / TOKENIZER).exists():  # transformers also prefers it
            vocab, merges = read_tokenizer_json(content := read_json(path))
        elif pair:
            vocab, merges, content = read_json(pair[0]), read_merges(pair[1]), {}
        else:
            return None
        return Encoder(vocab | read_added_tokens(folder, content), merges)
    except ValueError as error:
        raise ValueError(f"{folder}: not GPT-2's tokenizer: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder}: a file of the tokenizer is damaged: {error!r}") from None


def read_tokenizer_json(content: dict[str, Any]) -> tuple[dict[str, int], list[str]]:
    """Return the vocabulary and the merges in a tokenizer.json. Raises ValueError if it cuts texts differently."""
    model, splits = content["model"], content["pre_tokenizer"] or {}
    for name, found, value in (
        ("its model", model.get("type", "BPE"), "BPE"),  # older files leave it out
        ("its pre_tokenizer", splits.get("type"), "ByteLevel"),
        ("add_prefix_space", splits.get("add_prefix_space"), False),
        ("use_regex", splits.get("use_regex", True), True),
        ("post_processor", (content.get("post_processor") or {}).get("special_tokens") or None, None),
        ("normalizer", content.get("normalizer"), None),
        ("dropout", model.get("dropout"), None),
        ("continuing_subword_prefix", model.get("continuing_subword_prefix") or "", ""),
        ("end_of_word_suffix", model.get("end_of_word_suffix") or "", ""),
        ("ignore_merges", model.get("ignore_merges", False), False),
    ):
        if found != value:
            raise ValueError(f"{name} in {TOKENIZER} is {found!r}, not {value!r}")
    return model["vocab"], [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]


def read_added_tokens(folder: Path, tokenizer: dict[str, Any]) -> dict[str, int]:
    """Return the ids of the tokens that were added to a vocabulary, from all files that may list them.

    Logs a warning for added words: transformers finds them in every text, but encoder.py only where they are allowed.
    """
    settings, by_text = (read_json(path) if (path := folder / name).exists() else {} for name in (SETTINGS, ADDED))
    for name in ("add_prefix_space", "add_bos_token"):
        if settings.get(name):
            raise ValueError(f"{name} in {SETTINGS} is {settings[name]!r}")
    by_id = settings.get("added_tokens_decoder", {})
    tokens = [*tokenizer.get("added_tokens", []), *(token | {"id": int(id)} for id, token in by_id.items())]
    added = by_text | {token["content"]: token["id"] for token in tokens}
    if words := {token["content"] for token in tokens if not token.get("special")}:
        known = f"{len(words)} added words, such as {min(words)!r}, are ordinary text"
        warn(f"{folder}: {known} unless `allowed_special` names them")
    return added
