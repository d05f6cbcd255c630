"""The references are what they say: other people's code, imported where it is used, with our arguments."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT

from picogpt.compare import references


def test_nothing_is_imported_before_it_is_used():
    code = (
        "import sys\nimport picogpt.compare.table\n"
        "print({'torch', 'transformers', 'tensorflow', 'tiktoken', 'tokenizers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


@pytest.mark.parametrize("part", references.REFERENCES)
def test_every_part_has_a_reference(part):
    assert references.REFERENCES[part]
    assert set(references.REFERENCES[part]) <= {"torch", "transformers", "tensorflow"}


def test_cached_steps_are_compared_with_one_pass_over_all_ids():
    def logits(ids, params, n_head):
        return np.arange(len(ids))[:, None] * np.ones((1, 3))

    rows = references.without_cache(logits)(np.arange(4), {}, 1, [[4], [1, 3]])
    assert rows[:, 0].tolist() == [0, 1, 2, 3] * 3 + [2, 3] * 2
    assert references.without_cache(logits)(np.arange(1), {}, 1, [[1]])[:, 0].tolist() == [0] * 4


def test_a_model_is_built_once_for_the_same_parameters():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from picogpt.compare.cases import ONES, weights

    params = weights(ONES, "float32")
    model = references.hf_model(params, 1)
    assert references.hf_model(params, 1) is model
    assert references.hf_model(weights(ONES, "float32"), 1) is not model
