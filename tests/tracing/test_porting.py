"""Test `trace --against` with ports: the first wrong value is named for each usual mistake, and rounding passes."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import port
import pytest
from helpers import ODD, ROOT, random_params, transformers_model

from picogpt.tolerance import TOLERANCE
from picogpt.tracing.against import MULTIPLE, Comparison, Difference
from picogpt.tracing.dump import opened
from picogpt.tracing.formats import Text
from picogpt.tracing.passes import plan, recorded, shapes_of
from utils import SIZES, expected_shapes, load_encoder_hparams_and_params, nest

PRODUCTS = [np.matmul, port.in_order, port.from_the_end, port.in_eight_lanes, port.in_pytorch]
PROMPT = "ROMEO:\nWhat light"


class Model:
    """A model and a text, with our passes over it, so that several ports are compared with the same."""

    def __init__(self, params: Any, hparams: dict[str, int], ids: list[int]):
        self.params, self.hparams, self.ids = params, hparams, ids
        self.passes = plan(len(ids), 0, 0)
        (self.values,) = recorded(ids, params, hparams["n_head"], self.passes)

    @functools.cached_property
    def precise(self) -> dict[str, Any]:
        """Our float64 pass, which is computed once."""
        with opened(self.path) as dump:
            return self.comparison(dump).double.run(self.passes[0], self.values["inputs"])

    def comparison(self, dump: Any) -> Comparison:
        text = Text(self.params, np.array(self.ids), 0)
        return Comparison(dump, shapes_of(self.passes, self.hparams), text, self.hparams["n_head"], self.passes)

    def compared(self, path: Path, values: dict[str, Any]) -> Comparison:
        """Compare a port's values with ours."""
        np.savez(path, **values)
        self.path = path
        with opened(path) as dump:
            comparison = self.comparison(dump)
            comparison.double.run = lambda *_: dict(self.precise)
            comparison.add(self.passes[0], self.values)
        return comparison

    def port(self, error: str = "", matmul: Any = np.matmul, params: Any = None) -> dict[str, Any]:
        """Return the values of a port."""
        return port.Port(params or self.params, self.hparams["n_head"], error, matmul).run(self.ids)


def large_params(hparams: dict[str, int], scale: float) -> dict[str, Any]:
    """Return random parameters in any shape, biases and gains too."""
    rng = np.random.default_rng(2)
    tensors = {}
    for name, shape in expected_shapes(hparams).items():
        tensors[name] = rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
        tensors[name] += np.float32(name.endswith("/g"))
    return nest(tensors, hparams["n_layer"])


@pytest.fixture(scope="module")
def tiny() -> Model:
    encoder, hparams, params = load_encoder_hparams_and_params("tiny", str(ROOT / "models"))
    return Model(params, hparams, encoder.encode(PROMPT))


@pytest.fixture(scope="module", params=[0.02, 0.13])  # as at the start of training, and as in OpenAI's weights
def full(request) -> Model:
    ids = np.random.default_rng(0).integers(0, SIZES["124M"]["n_vocab"], 8).tolist()
    return Model(large_params(SIZES["124M"], request.param), SIZES["124M"], ids)


def worst(comparison: Comparison) -> Difference:
    return max(comparison.compared, key=lambda found: found.times)


# --------------------------------------------------------------------------------------------------- the usual mistakes


@pytest.mark.parametrize("error", port.ERRORS)
def test_the_first_wrong_value_is_named(tmp_path, tiny, error):
    comparison = tiny.compared(tmp_path / "mine.npz", tiny.port(error, port.in_order))
    assert comparison.first.name == port.ERRORS[error]
    assert comparison.first.times > 100


@pytest.mark.slow
@pytest.mark.parametrize("error", port.ERRORS)
def test_the_first_wrong_value_is_named_in_the_shape_of_124m(tmp_path, full, error):
    comparison = full.compared(tmp_path / "mine.npz", full.port(error))
    assert comparison.first.name == port.ERRORS[error]
    assert comparison.first.times > 1.2 * MULTIPLE


def test_the_fixed_limit_of_compare_would_miss_the_erf_form_here(tmp_path, tiny):
    first = tiny.compared(tmp_path / "mine.npz", tiny.port("the erf form of gelu")).first
    assert first.relative < TOLERANCE["float32"]


def test_all_is_wrong_after_a_mistake_but_what_the_port_lacks_is_said(tmp_path, tiny):
    values = tiny.port("biases forgotten")
    some = {name: values[name] for name in ("h0/ln_1", "h0/attn/scores", "logits")}
    lines = tiny.compared(tmp_path / "mine.npz", some).lines()
    assert "first value that differs: h0/attn/scores" in lines[2]
    assert lines[5] == (
        "  not in the file, and perhaps wrong already: h0/attn/c_attn, h0/attn/q, h0/attn/k, h0/attn/v "
        "(after h0/ln_1, which agrees)"
    )
    assert lines[6].startswith("2 of 3 values differ; ")
    lines = tiny.compared(tmp_path / "mine.npz", {"h0/ln_1": values["h0/ln_1"] + 1}).lines()
    assert lines[5] == "  not in the file, and perhaps wrong already: inputs, embedding (before it)"


# ------------------------------------------------------------------------------------------------------- only rounding


@pytest.mark.parametrize("matmul", PRODUCTS)
def test_sums_in_another_order_agree(tmp_path, tiny, matmul):
    comparison = tiny.compared(tmp_path / "mine.npz", tiny.port(matmul=matmul))
    assert comparison.first is None, comparison.lines()
    assert worst(comparison).times < 8


@pytest.mark.parametrize("n", [1, 2, 5, 17])
@pytest.mark.parametrize("seed", range(5))
def test_short_texts_and_small_models_agree(tmp_path, seed, n):
    """Where an array has few numbers, the rounding of all may be small by chance."""
    ids = np.random.default_rng(seed).integers(0, ODD["n_vocab"], n).tolist()
    model = Model(random_params(ODD, seed=seed, scale=1.0), ODD, ids)
    for matmul in PRODUCTS[: 5 if importlib.util.find_spec("torch") else 4]:
        comparison = model.compared(tmp_path / "mine.npz", model.port(matmul=matmul))
        assert comparison.first is None, comparison.lines()


@pytest.mark.slow
@pytest.mark.parametrize("matmul", [np.matmul, port.in_pytorch, port.in_order])
def test_sums_in_another_order_agree_in_the_shape_of_124m(tmp_path, full, matmul):
    comparison = full.compared(tmp_path / "mine.npz", full.port(matmul=matmul))
    assert comparison.first is None, comparison.lines()
    assert worst(comparison).times < 8


def test_a_float64_port_agrees_within_the_rounding_of_float64(tmp_path, tiny):
    values = tiny.port(params=cast(tiny.params, np.float64), matmul=port.in_order)
    assert values["logits"].dtype == np.float64
    comparison = tiny.compared(tmp_path / "mine.npz", values)
    assert comparison.first is None, comparison.lines()
    values = tiny.port("eps 1e-6", params=cast(tiny.params, np.float64))
    assert tiny.compared(tmp_path / "mine.npz", values).first.name == "h0/ln_1"


def cast(params: Any, *dtypes: Any) -> Any:
    """Return the parameters converted to one dtype after another."""
    if isinstance(params, dict):
        return {name: cast(value, *dtypes) for name, value in params.items()}
    if isinstance(params, list):
        return [cast(value, *dtypes) for value in params]
    return functools.reduce(np.ndarray.astype, dtypes, np.asarray(params))


def test_float16_weights_widened_agree_and_their_mistakes_are_still_found(tmp_path, tiny, traced):
    half = cast(tiny.params, np.float16, np.float32)
    np.savez(tmp_path / "half.npz", **tiny.port(params=half))
    result = traced(PROMPT, "--against", tmp_path / "half.npz")
    assert result.status == 0, result
    assert result.out.splitlines()[0].endswith(
        "half.npz (with our weights rounded to float16, as the port's seem to be)"
    )
    np.savez(tmp_path / "wrong.npz", **tiny.port("the erf form of gelu", params=half))
    result = traced(PROMPT, "--against", tmp_path / "wrong.npz")
    assert result.status == 1
    assert "rounded to float16" in result.out
    assert "first value that differs: h0/mlp/gelu," in result.out
    np.savez(tmp_path / "single.npz", **tiny.port("the erf form of gelu"))
    assert "rounded to float16" not in traced(PROMPT, "--against", tmp_path / "single.npz").out


def test_a_model_of_float16_weights_agrees_with_a_port_of_it(tmp_path, tiny):
    """As utils.py opens it: as float32."""
    model = Model(cast(tiny.params, np.float16, np.float32), tiny.hparams, tiny.ids)
    comparison = model.compared(tmp_path / "mine.npz", model.port(matmul=port.from_the_end))
    assert comparison.first is None, comparison.lines()


def test_transformers_agrees_in_float32_and_float64(tmp_path, tiny):
    torch = pytest.importorskip("torch")
    for dtype in ("float32", "float64"):
        model = transformers_model(cast(tiny.params, np.dtype(dtype)), tiny.hparams, dtype)
        with torch.no_grad():
            logits = model(torch.tensor([tiny.ids])).logits.numpy()
        assert tiny.compared(tmp_path / "mine.npz", {"logits": logits}).first is None
