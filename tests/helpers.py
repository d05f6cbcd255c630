"""What several test files share: where things are, small models, and Hugging Face's GPT-2 with our parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from picogpt.checkpoints.huggingface import config_settings, state_dict
from utils import expected_shapes, nest

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"  # reference files that a stranger's clone does not have

ODD = {"n_vocab": 300, "n_ctx": 17, "n_embd": 21, "n_head": 3, "n_layer": 2}  # with the 256 bytes as its tokens
SMALL = {"n_vocab": 101, "n_ctx": 17, "n_embd": 21, "n_head": 3, "n_layer": 3}


def shared(name: str) -> Path:
    """A file or folder of the reference data. Skips the test with that reason where it is missing."""
    if not (SHARED / name).exists():
        pytest.skip(f"needs ../shared/{name}")
    return SHARED / name


def random_params(
    hparams: dict[str, int], dtype: Any = np.float32, seed: int = 0, scale: float = 0.3
) -> dict[str, Any]:
    """Every number random and large enough to matter, biases and gains too."""
    rng = np.random.default_rng(seed)
    tensors = {name: rng.standard_normal(shape) * scale for name, shape in expected_shapes(hparams).items()}
    return nest({name: tensor.astype(dtype) for name, tensor in tensors.items()}, hparams["n_layer"])


def transformers_model(params: dict[str, Any], hparams: dict[str, int], dtype: str) -> Any:
    """Return Hugging Face's GPT-2 with our parameters."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(**config_settings(hparams), attn_implementation="eager")
    model = transformers.GPT2LMHeadModel(config).to(getattr(torch, dtype)).eval()
    state = state_dict(params, "transformer.")
    tensors = {name: torch.tensor(np.asarray(array)) for name, array in state.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert set(missing) <= {"lm_head.weight"}, missing
    assert not unexpected
    return model


def their_logits(model: Any, ids: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor(np.asarray(ids)[None])).logits[0].numpy()


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, as a share of the largest number."""
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def as_dtype(tree: Any, dtype: Any) -> Any:
    if isinstance(tree, dict):
        return {key: as_dtype(value, dtype) for key, value in tree.items()}
    return [as_dtype(value, dtype) for value in tree] if isinstance(tree, list) else tree.astype(dtype)
