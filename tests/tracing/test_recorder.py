"""Test the recorder: every value equals its definition, outputs stay the same, and gpt2.py is restored."""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest
from helpers import ROOT, SMALL, random_params, transformers_model

import gpt2
from gpt2 import gpt2 as imported
from picogpt.tracing.names import meanings, shape_of, shortened
from picogpt.tracing.recorder import TRACED, trace
from utils import load_hparams_and_params

FUNCTIONS = {name: getattr(gpt2, name) for name in TRACED}
IDS = [3, 1, 4, 1, 5, 9]


@pytest.fixture(autouse=True)
def _gpt2_is_itself_again():
    yield
    assert {name: getattr(gpt2, name) for name in TRACED} == FUNCTIONS


def use_blocks_of(monkeypatch: pytest.MonkeyPatch, n_block: int) -> None:
    """Let attention compute n_block queries at a time, as it does with long prompts."""
    in_blocks = functools.partial(FUNCTIONS["causal_attention"], n_block=n_block)
    monkeypatch.setattr(gpt2, "causal_attention", in_blocks)


def test_outputs_are_the_same_bits_and_nothing_is_computed_twice(monkeypatch):
    hparams, params = load_hparams_and_params(ROOT / "models" / "tiny")
    calls = []
    for name in TRACED:

        def counted(*args, function=getattr(gpt2, name), name=name, **kwargs):
            calls.append(name)
            return function(*args, **kwargs)

        monkeypatch.setattr(gpt2, name, counted)
    ids = np.random.default_rng(0).integers(0, 1024, 250)
    for n in (1, 5, 97, 250):
        expected = gpt2.gpt2(ids[:n], **params, n_head=hparams["n_head"])
        alone, calls[:] = list(calls), []
        with trace() as t:
            logits = gpt2.gpt2(ids[:n], **params, n_head=hparams["n_head"])
        traced, calls[:] = list(calls), []
        np.testing.assert_array_equal(logits, expected)
        assert traced == alone
        assert t["logits"] is logits
    monkeypatch.undo()


def test_names_come_in_the_order_of_computation():
    with trace() as t:
        gpt2.gpt2(IDS, **random_params(SMALL), n_head=3)
    assert list(t.passes[0]) == list(meanings(SMALL["n_layer"]))


@pytest.mark.parametrize("n_block", [2, 4, 96])
def test_every_value_is_what_its_name_says(monkeypatch, n_block):
    use_blocks_of(monkeypatch, n_block)
    params = random_params(SMALL, np.float64)
    with trace() as t:
        gpt2.gpt2(IDS, **params, n_head=3)
    monkeypatch.undo()
    close = lambda name, value: np.testing.assert_allclose(t[name], value, rtol=1e-12, atol=1e-13)  # noqa: E731
    x = params["wte"][IDS] + params["wpe"][:6]
    close("inputs", IDS)
    close("embedding", x)
    for layer, block in enumerate(params["blocks"]):
        h = f"h{layer}/"
        close(h + "ln_1", gpt2.layer_norm(x, **block["ln_1"]))
        close(h + "attn/c_attn", t[h + "ln_1"] @ block["attn"]["c_attn"]["w"] + block["attn"]["c_attn"]["b"])
        q, k, v = np.split(t[h + "attn/c_attn"].reshape(6, 9, 7).swapaxes(0, 1), 3)
        for name, value in zip("qkv", (q, k, v)):
            close(h + "attn/" + name, value)
        scores = np.where(np.tri(6, dtype=bool), q @ k.swapaxes(1, 2) / np.sqrt(7), -np.inf)
        close(h + "attn/scores", scores)
        probs = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        close(h + "attn/probs", probs)
        close(h + "attn/heads", probs @ v)
        close(h + "attn/merged", (probs @ v).swapaxes(0, 1).reshape(6, 21))
        close(h + "attn/c_proj", gpt2.linear(t[h + "attn/merged"], **block["attn"]["c_proj"]))
        close(h + "mid", x + t[h + "attn/c_proj"])
        close(h + "ln_2", gpt2.layer_norm(t[h + "mid"], **block["ln_2"]))
        close(h + "mlp/c_fc", gpt2.linear(t[h + "ln_2"], **block["mlp"]["c_fc"]))
        close(h + "mlp/gelu", gpt2.gelu(t[h + "mlp/c_fc"]))
        close(h + "mlp/c_proj", gpt2.linear(t[h + "mlp/gelu"], **block["mlp"]["c_proj"]))
        x = t[h + "mid"] + t[h + "mlp/c_proj"]
        close(h + "out", x)
    close("ln_f", gpt2.layer_norm(x, **params["ln_f"]))
    close("logits", t["ln_f"] @ params["wte"].T)


def test_a_name_means_the_last_pass_and_its_ids_stay():
    params = random_params(SMALL)
    ids = np.array(IDS)
    with trace() as t:
        gpt2.gpt2([1, 2], **params, n_head=3)
        gpt2.gpt2(ids, **params, n_head=3)
    ids[:] = 0
    np.testing.assert_array_equal(t["inputs"], IDS)
    np.testing.assert_array_equal(t.passes[0]["inputs"], [1, 2])
    assert t["logits"] is t.passes[1]["logits"]


def test_hidden_states_and_probabilities_equal_transformers():
    torch = pytest.importorskip("torch")
    params = random_params(SMALL, "float64")
    model = transformers_model(params, SMALL, "float64")
    with torch.no_grad():
        theirs = model(torch.tensor([IDS]), output_hidden_states=True, output_attentions=True)
    with trace() as t:
        gpt2.gpt2(IDS, **params, n_head=3)
    for name, value in zip(("embedding", "h0/out", "h1/out", "ln_f"), theirs.hidden_states):
        np.testing.assert_allclose(t[name], value[0].numpy(), rtol=1e-11, atol=1e-13)
    for layer, value in enumerate(theirs.attentions):
        np.testing.assert_allclose(t[f"h{layer}/attn/probs"], value[0].numpy(), rtol=1e-11, atol=1e-15)


def test_cached_steps_are_passes_whose_values_stay():
    params = random_params(SMALL)
    with trace() as t:
        list(gpt2.generate(IDS, params, 3, 4))
    assert [len(values["inputs"]) for values in t.passes] == [6, 1, 1, 1]
    assert [values["h2/attn/k"].shape[-2] for values in t.passes] == [6, 7, 8, 9]
    assert t.passes[0]["logits"].shape == (1, 101)
    assert t.passes[3]["h1/attn/probs"].shape == (3, 1, 9)
    cache = gpt2.empty_cache(params, 3, 17)
    with trace() as t:
        gpt2.gpt2(IDS, **params, n_head=3, cache=cache)
    kept = {name: t[name].copy() for name in ("h0/attn/k", "h0/attn/v")}
    cache.fill(0)
    for name, value in kept.items():
        np.testing.assert_array_equal(t[name], value)


def test_a_batch():
    with trace() as t:
        gpt2.gpt2([IDS, IDS], **random_params(SMALL), n_head=3)
    assert t["h0/attn/probs"].shape == (2, 3, 6, 6)
    with trace({"h0/attn/heads": np.zeros_like}) as t:
        gpt2.gpt2(inputs=[IDS, IDS], **random_params(SMALL), n_head=3)
    assert not t["h0/attn/heads"].any()


def test_a_model_without_layers():
    params = random_params(SMALL) | {"blocks": []}
    with trace() as t:
        gpt2.gpt2(IDS, **params, n_head=3)
    assert list(t.passes[0]) == ["inputs", "embedding", "ln_f", "logits"]


# -------------------------------------------------------------------------------------------------------- replacing


def replaceable() -> list[str]:
    return [name for name in meanings(SMALL["n_layer"]) if not name.endswith("mid")]


@pytest.mark.parametrize("name", [name for name in replaceable() if not name.startswith(("h0", "h2"))])
def test_a_replaced_value_flows_on(name):
    params = random_params(SMALL)
    expected = gpt2.gpt2(IDS, **params, n_head=3)
    with trace({name: lambda x: x}):
        np.testing.assert_array_equal(gpt2.gpt2(IDS, **params, n_head=3), expected)
    with trace({name: np.zeros_like}) as t:
        logits = gpt2.gpt2(IDS, **params, n_head=3)
    assert not t[name].any()
    assert not np.array_equal(logits, expected)
    np.testing.assert_array_equal(gpt2.gpt2(IDS, **params, n_head=3), expected)


def test_a_head_without_effect_is_a_head_with_zero_weights():
    params = random_params(SMALL, np.float64)

    def without(heads):
        heads[1] = 0
        return heads

    with trace({"h1/attn/heads": without}):
        ablated = gpt2.gpt2(IDS, **params, n_head=3)
    params["blocks"][1]["attn"]["c_proj"]["w"][7:14] = 0
    np.testing.assert_allclose(ablated, gpt2.gpt2(IDS, **params, n_head=3), rtol=1e-12)


def test_replaced_probabilities_are_seen_whole_whatever_the_block(monkeypatch):
    params, shapes = random_params(SMALL, np.float64), []

    def shifted(x):
        shapes.append(x.shape)
        return np.roll(x, 1, axis=-2)

    results = []
    for n_block in (2, 96):
        use_blocks_of(monkeypatch, n_block)
        with trace({"h0/attn/probs": shifted}):
            results.append(gpt2.gpt2(IDS, **params, n_head=3))
    monkeypatch.undo()
    assert shapes == [(3, 6, 6)] * 2
    np.testing.assert_allclose(*results, rtol=1e-11)


def test_a_changed_cache_or_argument_is_the_replacement_s_own():
    """A replacement that changes its argument in place must not change the cache, which the keys are a view of."""
    params = random_params(SMALL)
    cache = gpt2.empty_cache(params, 3, 17)
    gpt2.gpt2(IDS, **params, n_head=3, cache=cache)
    before = cache[..., :6, :].copy()

    def spoil(x):
        x[:] = 7
        return x

    with trace({"h2/attn/k": spoil}):
        gpt2.gpt2(IDS, **params, n_head=3, cache=cache)
    np.testing.assert_array_equal(cache[..., :6, :], before)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("h3/ln_1", np.zeros_like, "nothing to replace is called 'h3/ln_1'; with 3 layers: inputs, embedding, h0/ln_1"),
        ("h3/*", np.zeros_like, r"nothing to replace is called 'h3/\*'; with 3 layers: inputs"),
        ("h*/mid", np.zeros_like, r"h\*/mid can't be replaced, it is a sum: replace h\*/attn/c_proj"),
        ("h1/mid", np.zeros_like, "h1/mid can't be replaced, it is a sum: replace h1/attn/c_proj"),
        ("h1/ln_1", lambda x: x[1:], r"h1/ln_1 is float32 \[6, 21\], but its replacement float32 \[5, 21\]"),
        ("h1/ln_1", lambda x: x * np.float64(1), r"but its replacement float64 \[6, 21\]"),
        ("h1/ln_1", lambda x: None, "h1/ln_1: its replacement is None: the function must return an array"),
    ],
)
def test_a_wrong_replacement_is_refused(name, change, message):
    with pytest.raises(ValueError, match=message), trace({name: change}):
        gpt2.gpt2(IDS, **random_params(SMALL), n_head=3)


def test_an_array_is_no_replacement():
    with pytest.raises(TypeError) as error, trace({"h*/ln_1": np.zeros((6, 21))}):
        gpt2.gpt2(IDS, **random_params(SMALL), n_head=3)
    assert str(error.value) == "the replacement of 'h*/ln_1' is not a function"


# ----------------------------------------------------------------------------------------------- leaving it as it was


def test_exceptions_leave_nothing_behind():
    with pytest.raises(ValueError, match="n_ctx = 17"), trace() as t:
        gpt2.gpt2(range(18), **random_params(SMALL), n_head=3)
    assert list(t.passes[0]) == ["inputs"]

    def fail(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), trace({"h1/attn/probs": fail}):
        gpt2.gpt2(IDS, **random_params(SMALL), n_head=3)


def test_nested_traces_both_record():
    params = random_params(SMALL)
    with trace({"h0/ln_1": np.zeros_like}) as outer, trace() as inner:
        gpt2.gpt2(IDS, **params, n_head=3)
    assert outer["h2/out"] is inner["h2/out"]
    assert not inner["h0/ln_1"].any()
    with trace() as outer, trace({"h0/attn/probs": np.zeros_like}) as inner:
        gpt2.gpt2(IDS, **params, n_head=3)
    assert outer["h2/out"] is inner["h2/out"]
    assert not inner["h0/attn/probs"].any()


def test_a_replacement_may_run_the_model_itself():
    """This is activation patching: a value of a clean run replaces the value of another one."""
    params = random_params(SMALL)

    def of_another(x):
        with trace() as inner:
            gpt2.gpt2(IDS[::-1], **params, n_head=3)
        return inner["embedding"]

    with trace({"embedding": of_another}) as t:
        logits = gpt2.gpt2(IDS, **params, n_head=3)
    assert len(t.passes) == 1
    np.testing.assert_array_equal(logits, gpt2.gpt2(IDS[::-1], **params, n_head=3))


def test_calls_outside_a_pass_are_not_recorded_and_the_empty_trace_says_why():
    with trace() as t:
        gpt2.softmax(np.zeros(3))
        gpt2.sample(np.zeros(3), [], np.random.default_rng(0))
    assert t.passes == []
    why = r"no forward pass has been traced.* gpt2\.gpt2"
    with pytest.raises(KeyError, match=why):
        t["logits"]
    with pytest.raises(KeyError, match=why):
        list(t.items())
    assert re.search(why, repr(t))
    assert len(t) == 0


def test_a_pass_through_an_imported_function_is_refused():
    """At the top of this file, `from gpt2 import gpt2` has bound the function: a replacement would have no effect."""
    with pytest.raises(RuntimeError, match=r"called as gpt2\.gpt2"), trace({"h1/ln_1": np.zeros_like}):
        imported(IDS, **random_params(SMALL), n_head=3)


# ------------------------------------------------------------------------------------------------------ patterns, names


def test_a_pattern_replaces_every_value_that_it_fits():
    params = random_params(SMALL)
    with trace({"h*/attn/heads": np.zeros_like}) as t:
        gpt2.gpt2(IDS, **params, n_head=3)
    assert [name for name, value in t.items() if not value.any()] == [
        name for name in meanings(3) if name.endswith(("attn/heads", "attn/merged"))
    ]
    with trace({"*": np.positive}) as t:  # all but the sums, which no function returns
        logits = gpt2.gpt2(IDS, **params, n_head=3)
    np.testing.assert_array_equal(logits, gpt2.gpt2(IDS, **params, n_head=3))


def test_a_function_may_take_the_name_too():
    seen = []

    def noted(value, name):
        seen.append((name, value.shape))
        return value

    with trace({"h[02]/ln_?": noted, "logits": lambda value, n=2: n * value}) as t:
        logits = gpt2.gpt2(IDS, **random_params(SMALL), n_head=3)
    assert seen == [(name, (6, 21)) for name in ("h0/ln_1", "h0/ln_2", "h2/ln_1", "h2/ln_2")]
    np.testing.assert_array_equal(logits, 2 * gpt2.gpt2(IDS, **random_params(SMALL), n_head=3))
    assert t["logits"] is logits


def test_replacements_of_one_name_follow_each_other():
    with trace({"h*/ln_1": np.zeros_like, "h1/ln_1": lambda x: x + 1}) as t:
        gpt2.gpt2(IDS, **random_params(SMALL), n_head=3)
    assert (t["h0/ln_1"] == 0).all()
    assert (t["h1/ln_1"] == 1).all()


# ------------------------------------------------------------------------------------------------- what a trace shows


def test_a_trace_is_a_mapping_of_its_last_pass():
    with trace() as t:
        list(gpt2.generate(IDS, random_params(SMALL), 3, 2))
    assert [name for name, _ in t.items()] == list(meanings(3))
    assert all(value is t.passes[1][name] for name, value in t.items())
    assert "h2/mid" in t
    with pytest.raises(KeyError, match="no value is called 'h3/mid'"):
        t["h3/mid"]
    assert t == t
    assert t in {t}


def test_the_repr_is_a_table_of_names_shapes_and_meanings():
    with trace() as t:
        list(gpt2.generate(IDS, random_params(SMALL), 3, 2))
    first, *lines = repr(t).splitlines()
    assert first == "<Trace of 2 forward passes, of which this is the last>"
    rows = re.split(r"\n(?! )", "\n".join(lines))  # a long meaning continues on an indented line
    assert len(lines) > len(rows)
    assert max(map(len, lines)) <= 80
    assert [row.split()[0] for row in rows] == list(meanings(3))
    for row, (name, text) in zip(rows, meanings(3).items()):
        shape, dtype = str(list(t[name].shape)), str(t[name].dtype)
        assert "".join(row.split()) == f"{name}{shape}{dtype}{text}".replace(" ", "")


def test_a_value_s_shape_follows_from_its_meaning():
    sizes = SMALL | {"d_head": 7, "n_seq": 4, "n_past": 2, "n_logits": 4}
    params = random_params(SMALL)
    with trace() as t:
        gpt2.gpt2(IDS[2:], **params, n_head=3, cache=np.zeros((3, 2, 3, 6, 7), np.float32), n_past=2)
    for name, value in t.items():
        assert shape_of(name, sizes) == value.shape


def test_names_are_shortened_only_where_all_are_meant():
    names = [f"{prefix}{name}" for prefix in ("", "step1/", "step2/") for name in meanings(2)]
    assert shortened(names, names)[:3] == ["inputs", "embedding", "h*/ln_1"]
    assert "step*/h*/attn/q" in shortened(names, names)
    assert shortened(["h0/ln_1", "h1/ln_2"], names) == ["h0/ln_1", "h1/ln_2"]


def test_trace_comes_from_the_package():
    from picogpt import trace as from_package

    assert from_package is trace


def test_without_keeping_values_are_replaced_but_not_recorded():
    params = random_params(SMALL, np.float64)
    change = {"h1/mlp/gelu": lambda value: 2 * value, "h*/attn/probs": lambda value: value[..., ::-1, :].copy()}
    with trace(change) as kept:
        expected = gpt2.gpt2(IDS, **params, n_head=3)
    with trace(change, keep=False) as t:
        found = [gpt2.gpt2(IDS, **params, n_head=3) for _ in range(2)]
    for logits in found:
        np.testing.assert_array_equal(logits, expected)
    assert len(kept) > 0
    assert t.passes == []
