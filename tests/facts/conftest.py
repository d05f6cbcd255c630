"""What the tests of facts share: facts of all kinds about the bundled model, and its twin in transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
from fact_cases import FACTS
from helpers import ROOT, transformers_model
from oracle import Oracle, explainer_file

from picogpt.scoring.work import Model
from utils import load_encoder_hparams_and_params


@pytest.fixture(scope="session")
def tiny() -> Model:
    """Return the bundled model."""
    folder = ROOT / "models" / "tiny"
    return Model(folder, *load_encoder_hparams_and_params("tiny", str(folder.parent)))


@pytest.fixture(scope="session")
def oracle(tiny: Model) -> Oracle:
    """Return the bundled model in transformers, in float64: so only our rounding counts."""
    return Oracle(transformers_model(tiny.params, tiny.hparams, "float64"), tiny)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the data files of FACTS, but for the example, which transformers must write."""
    folder = tmp_path_factory.mktemp("data")
    speech = "ROMEO:\nWhat light is this?\n\nJULIET:\nI am the queen, and thou art not the king.\n\n"
    (folder / "play.txt").write_text("".join(f"{speech}Act {n}.\n\n" for n in range(14)), encoding="utf-8")
    page = " = Homer = \n \n He is dead . The king is dead . \n\n = = Works = = \n \n The old man is no king . \n"
    (folder / "wiki.txt").write_text("".join(f"{page} It is {n} @-@ fold . \n" for n in range(9)), encoding="utf-8")
    passages = (ROOT / "tests" / "evaluate" / "passages.jsonl").read_text(encoding="utf-8")
    (folder / "passages.jsonl").write_text("".join(passages.splitlines(keepends=True)[:5]), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def example(data: Path, tiny: Model, oracle: Oracle) -> Path:
    """Return Transformer Explainer's example about the bundled model, with the values of transformers."""
    path = data / "ex.js"
    explainer_file(path, oracle, tiny.encoder.encode(FACTS["an example"]["prompt"]))
    return path
