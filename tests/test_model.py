"""The forward pass, sampling and generation, against Hugging Face transformers and against their definitions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import SMALL, as_dtype, random_params, relative, their_gpt2, their_logits, transformers_model

import gpt2
from picogpt import generate_batch
from picogpt.checkpoints.writing import initial_params
from utils import DATA, SIZES, load_hparams_and_params

pytestmark = pytest.mark.usefixtures("checked_shapes")

# ------------------------------------------------------------------------------------------- against transformers


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-14)])
def test_small_odd_shape_equals_transformers(dtype, tolerance):
    params = random_params(SMALL, dtype)
    ids = np.random.default_rng(1).integers(0, 101, 17)
    logits = gpt2.gpt2(ids, **params, n_head=3)
    assert relative(logits, their_logits(transformers_model(params, SMALL, dtype), ids)) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-14)])
def test_small_odd_shape_equals_plain_formulas(dtype, tolerance):
    """This comparison also runs where PyTorch is not installed."""
    params, ids = random_params(SMALL, dtype), np.random.default_rng(1).integers(0, 101, 17)
    expected = their_gpt2(ids, **as_dtype(params, np.float64), n_head=3)
    assert relative(gpt2.gpt2(ids, **params, n_head=3), expected.astype(dtype)) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-13)])
def test_full_124m_shape_equals_transformers(full_size, dtype, tolerance):
    hparams, params = load_hparams_and_params(full_size)
    if dtype == "float64":
        params = as_dtype(params, np.float64)
    ids = np.random.default_rng(1).integers(0, 50257, 150)
    logits = gpt2.gpt2(ids, **params, n_head=12)
    theirs = their_logits(transformers_model(params, hparams, dtype), ids)
    assert relative(logits, theirs) < tolerance
    context = gpt2.Context(params, 12)
    context.logits(ids[:149])
    assert relative(context.logits(ids), theirs[-1:]) < tolerance


def test_greedy_ids_equal_transformers():
    torch = pytest.importorskip("torch")
    params = random_params(SMALL)
    model = transformers_model(params, SMALL, "float32")
    theirs = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=14, do_sample=False, pad_token_id=0)[0, 3:]
    assert list(gpt2.generate([5, 6, 7], params, 3, 14)) == theirs.tolist()


# ----------------------------------------------------------------------------------------------------- the cache


@pytest.mark.parametrize("chunks", [[17], [1] * 17, [5, 5, 7], [16, 1], [1, 16], [2, 3, 5, 7]])
def test_cached_equals_uncached_in_any_chunking(chunks):
    params = random_params(SMALL, np.float64)
    ids = np.random.default_rng(2).integers(0, 101, 17)
    expected = gpt2.gpt2(ids, **params, n_head=3)
    cache = gpt2.empty_cache(params, 3, 17)
    cache.fill(np.nan)  # whatever is read before it was written shows
    n_past, rows = 0, []
    for n in chunks:
        rows.append(gpt2.gpt2(ids[n_past : n_past + n], **params, n_head=3, cache=cache, n_past=n_past))
        n_past += n
    assert relative(np.concatenate(rows), expected) < 1e-14


@pytest.mark.parametrize("n_block", [1, 2, 5, 16, 17, 100])
@pytest.mark.parametrize("n_past", [0, 1, 7])
def test_block_sizes_change_nothing(n_block, n_past):
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 17 + n_past, 4))
    whole = gpt2.attention(q, k, v, gpt2.causal_mask(q, k))
    assert relative(gpt2.causal_attention(q[:, n_past:], k, v, n_block=n_block), whole[:, n_past:]) < 1e-14


def test_going_back_in_the_cache_forgets_what_came_after():
    params = random_params(SMALL)
    cache = gpt2.empty_cache(params, 3, 17)
    gpt2.gpt2([1, 2, 3, 4, 5, 6], **params, n_head=3, cache=cache)
    again = gpt2.gpt2([9, 8], **params, n_head=3, cache=cache, n_past=2)
    assert relative(again, gpt2.gpt2([1, 2, 9, 8], **params, n_head=3)[2:]) < 2e-6


def counted(monkeypatch):
    """Note how many ids each forward pass of gpt2.py gets."""
    counts, forward = [], gpt2.gpt2

    def gpt2_counted(inputs, *args, **kwargs):
        counts.append(len(inputs))
        return forward(inputs, *args, **kwargs)

    monkeypatch.setattr(gpt2, "gpt2", gpt2_counted)
    return counts


def test_a_context_computes_only_the_ids_that_differ(monkeypatch):
    params = random_params(SMALL, np.float64)
    context, whole = gpt2.Context(params, 3), gpt2.gpt2
    context.cache.fill(np.nan)  # whatever is read before it was written shows
    counts = counted(monkeypatch)
    for ids, n_logits, n_new in (
        ([1, 2, 3, 4, 5, 6], 1, 6),  # a prompt
        ([1, 2, 3, 4, 5, 6, 7], 1, 1),  # goes on
        ([1, 2, 3], 1, 1),  # goes back: the last id is computed again, since its logits were not kept
        ([1, 2, 9, 8], 1, 2),  # shares a prefix
        ([1, 2, 9, 8], 1, 1),  # the same again
        ([1, 2, 9, 8, 7], 3, 3),
        ([5], 1, 1),
        (range(17), 17, 17),
    ):
        logits = context.logits(ids, n_logits)
        assert relative(logits, whole(ids, **params, n_head=3)[-n_logits:]) < 1e-14
        assert context.ids == list(ids)
        assert counts.pop() == n_new


def test_a_context_refuses_what_it_has_no_room_for():
    context = gpt2.Context(random_params(SMALL), 3, n_ctx=4)
    for ids, n_logits in (([], 1), ([1, 2, 3, 4, 5], 1), ([1, 2], 3), ([1], 0)):
        with pytest.raises(ValueError, match=f"{n_logits} of {len(ids)} ids to score, with room for 4"):
            context.logits(ids, n_logits)
    assert context.logits([1, 2, 3, 4]).shape == (1, 101)


def test_an_interruption_leaves_a_context_that_is_right(monkeypatch):
    params = random_params(SMALL, np.float64)
    context = gpt2.Context(params, 3)
    context.logits([1, 2, 3, 4])
    block, calls = gpt2.transformer_block, iter(range(100))

    def interrupted(*args, **kwargs):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return block(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(gpt2, "transformer_block", interrupted)
        with pytest.raises(KeyboardInterrupt):
            context.logits([1, 2, 9, 9, 9])
    assert relative(context.logits([1, 2, 3, 4, 5]), gpt2.gpt2([1, 2, 3, 4, 5], **params, n_head=3)[-1:]) < 1e-14


def test_the_future_does_not_matter():
    params = random_params(SMALL)
    one, other = ([1, 2, 3, 4, *rest] for rest in ([5, 6], [50, 60]))
    a, b = (gpt2.gpt2(ids, **params, n_head=3)[:4] for ids in (one, other))
    np.testing.assert_array_equal(a, b)


def test_attention_takes_the_blog_s_additive_mask():
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 5, 4))
    blog = (1 - np.tri(5)) * -1e10
    np.testing.assert_allclose(gpt2.attention(q, k, v, blog), gpt2.causal_attention(q, k, v), rtol=1e-12)


def test_only_wanted_positions_meet_the_vocabulary():
    params = random_params(SMALL)
    full = gpt2.gpt2([1, 2, 3, 4], **params, n_head=3)
    for n in (0, 1, 3, 4, 9):
        part = gpt2.gpt2([1, 2, 3, 4], **params, n_head=3, n_logits=n)
        assert part.shape == (min(n, 4), 101)
        np.testing.assert_allclose(part, full[max(0, 4 - n) :], rtol=1e-5, atol=1e-6)


def test_a_batch_is_its_rows():
    params = random_params(SMALL, np.float64)
    ids = np.random.default_rng(3).integers(0, 101, (4, 9))
    batch = gpt2.gpt2(ids, **params, n_head=3)
    for row, logits in zip(ids, batch):
        assert relative(gpt2.gpt2(row, **params, n_head=3), logits) < 1e-14


# ------------------------------------------------------------------------------------------------------- the parts


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_stays_through_every_function(monkeypatch, dtype):
    seen = {}
    for name in ("gelu", "softmax", "layer_norm", "linear", "ffn", "attention", "mha", "transformer_block"):

        def checked(*args, function=getattr(gpt2, name), name=name, **kwargs):
            seen[name] = function(*args, **kwargs)
            assert seen[name].dtype == dtype, name
            return seen[name]

        monkeypatch.setattr(gpt2, name, checked)
    params = random_params(SMALL, dtype)
    cache = gpt2.empty_cache(params, 3, 17)
    assert cache.dtype == dtype
    assert gpt2.gpt2([1, 2, 3], **params, n_head=3, cache=cache).dtype == dtype
    assert len(seen) == 8


def test_gelu_is_the_tanh_form():
    x = np.linspace(-6, 6, 1001)
    formula = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(gpt2.gelu(x), formula, rtol=1e-12, atol=1e-15)
    erf_form = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])
    assert np.abs(gpt2.gelu(x) - erf_form).max() > 1e-4
    np.testing.assert_allclose(gpt2.gelu(np.array([-1.0, 0.0, 1.0])), [-0.1588, 0, 0.8412], atol=5e-5)


def test_softmax_of_extremes():
    np.testing.assert_allclose(gpt2.softmax(np.array([0.0, math.log(3)])), [0.25, 0.75])
    np.testing.assert_array_equal(gpt2.softmax(np.array([1e30, 1e30, -1e30], np.float32)), [0.5, 0.5, 0])
    np.testing.assert_array_equal(gpt2.softmax(np.array([0, -np.inf], np.float32)), [1, 0])


def test_layer_norm_divides_by_n_with_eps_inside_the_root():
    x = np.array([[1.0, 2.0, 3.0, 6.0]])
    g, b = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.5, 0, 0, -1])
    expected = (x - 3) / math.sqrt(3.5 + 1e-5) * g + b
    np.testing.assert_allclose(gpt2.layer_norm(x, g, b), expected, rtol=1e-12)
    constant = gpt2.layer_norm(np.full((1, 4), 7.0, np.float32), g.astype(np.float32), b.astype(np.float32))
    np.testing.assert_array_equal(constant, b.astype(np.float32)[None])


def test_split_and_merge_heads_are_inverse():
    x = np.arange(5 * 12.0).reshape(5, 12)
    heads = gpt2.split_heads(x, 3)
    assert heads.shape == (3, 5, 4)
    np.testing.assert_array_equal(heads[1], x[:, 4:8])
    np.testing.assert_array_equal(gpt2.merge_heads(heads), x)


def test_arguments_are_not_changed():
    params = random_params(SMALL)
    for array in leaves(params):
        array.setflags(write=False)
    ids = [1, 2, 3]
    assert len(list(gpt2.generate(ids, params, 3, 5))) == 5
    assert ids == [1, 2, 3]


def leaves(tree: Any) -> list[np.ndarray]:
    if isinstance(tree, np.ndarray):
        return [tree]
    return [leaf for branch in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(branch)]


def test_the_same_source_runs_in_jax():
    pytest.importorskip("jax")
    import jax

    from picogpt.jax_model import gpt2_in_jax

    module = gpt2_in_jax()
    assert module.np is jax.numpy
    assert gpt2.np is np
    params = random_params(SMALL)
    ids = np.arange(17)
    theirs = jax.jit(lambda p: module.gpt2(ids, **p, n_head=3))(params)
    assert relative(gpt2.gpt2(ids, **params, n_head=3), np.asarray(theirs)) < 2e-6


def test_no_score_is_large_enough_to_see_what_is_masked():
    q, k, v = np.full((3, 1), 1e3), np.array([[0.0], [1e2], [1e3]]), np.array([[1.0], [2.0], [4.0]])
    np.testing.assert_array_equal(gpt2.causal_attention(q[None], k[None], v[None]), v[None])


# ------------------------------------------------------------------------------------------- choosing a token


@pytest.mark.parametrize(
    "wrong",
    [
        *({"temperature": value} for value in (-1, -1e-9, math.nan)),
        *({"top_k": value} for value in (-1, math.nan)),
        *({"top_p": value} for value in (-0.1, 1.1, math.nan)),
        *({"repetition_penalty": value} for value in (0, -1, math.nan)),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong):
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0} | wrong
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        gpt2.token_probs(np.zeros(5), [1], **settings)
    with pytest.raises(ValueError, match=f"{name}={value}"):
        gpt2.sample(np.zeros(5), [1], np.random.default_rng(0), **settings)


def test_greedy_takes_the_lower_id_of_equals():
    assert gpt2.greedy(np.array([1, 3, 3, 0], np.float32), []) == 1
    np.testing.assert_array_equal(gpt2.token_probs(np.array([1.0, 3, 3, 0]), [], 0, 0, 1, 1), [0, 1, 0, 0])


@pytest.mark.parametrize(("top_k", "kept"), [(0, 5), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 5), (10**9, 5)])
def test_top_k_keeps_k_also_of_equals(top_k, kept):
    probs = gpt2.token_probs(np.array([1.0, 2, 2, 2, 0]), [], 1, top_k, 1, 1)
    assert np.count_nonzero(probs) == kept
    assert set(np.flatnonzero(probs)) == set([1, 2, 3, 0, 4][:kept])
    assert math.isclose(probs.sum(), 1)


@pytest.mark.parametrize(("top_p", "kept"), [(0, 1), (0.4, 1), (0.6, 2), (0.79, 2), (0.85, 3), (0.999, 4), (1, 4)])
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p, kept):
    probs = gpt2.token_probs(np.log([0.15, 0.5, 0.05, 0.3]), [], 1, 0, top_p, 1)
    assert set(np.flatnonzero(probs)) == set([1, 3, 0, 2][:kept])


def test_repetition_penalty_counts_each_token_once():
    logits = np.array([2.0, -2.0, 4.0, 1.0], np.float32)
    np.testing.assert_array_equal(gpt2.penalize(logits, [0, 1, 1, 0, 0], 2.0), [1, -4, 4, 1])
    np.testing.assert_array_equal(logits, [2, -2, 4, 1])


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e-3])
def test_a_tiny_temperature_is_greedy(temperature):
    with np.errstate(all="raise", under="ignore"):
        probs = gpt2.token_probs(np.array([1.0, 3.0, 2.0], np.float32), [], temperature, 0, 1, 1)
    np.testing.assert_array_equal(probs, [0, 1, 0])


def test_filters_equal_transformers():
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers").generation.logits_process
    rng = np.random.default_rng(5)
    for _ in range(200):
        logits = rng.standard_normal(50) * 4
        ids, t = rng.integers(0, 50, 8), rng.uniform(0.2, 2)
        k, p, penalty = int(rng.integers(1, 50)), rng.uniform(0.05, 0.99), rng.uniform(0.5, 2)
        scores = torch.tensor(logits[None])
        for step in (
            process.RepetitionPenaltyLogitsProcessor(penalty),
            process.TemperatureLogitsWarper(t),
            process.TopKLogitsWarper(k),
            process.TopPLogitsWarper(p),
        ):
            scores = step(torch.tensor(ids[None]), scores)
        theirs = torch.softmax(scores, -1)[0].numpy()
        np.testing.assert_allclose(gpt2.token_probs(logits, list(ids), t, k, p, penalty), theirs, rtol=1e-9, atol=1e-12)


def test_samples_follow_the_probabilities_and_the_seed():
    logits = np.log([0.1, 0.2, 0.7])
    rng = np.random.default_rng(0)
    drawn = [gpt2.sample(logits, [], rng) for _ in range(6000)]
    np.testing.assert_allclose(np.bincount(drawn) / 6000, [0.1, 0.2, 0.7], atol=0.02)  # 3 standard deviations
    rng = np.random.default_rng(0)
    assert drawn[:50] == [gpt2.sample(logits, [], rng) for _ in range(50)]


def test_a_draw_is_the_one_of_numpy_s_generator():
    """`Generator.choice` does the same with more checks, which take as long as all the rest."""
    ours, theirs, numbers = (np.random.default_rng(seed) for seed in (1, 1, 2))
    for _ in range(300):
        logits = numbers.standard_normal(97) * 3
        probs = gpt2.token_probs(logits, [], 0.9, 20, 0.9, 1)
        assert gpt2.sample(logits, [], ours, 0.9, 20, 0.9) == theirs.choice(97, p=probs)


def test_no_draw_falls_on_a_token_without_probability():
    class Ends:
        """A generator whose numbers are the least and the largest that NumPy draws."""

        def __init__(self, number: float):
            self.random = lambda: number

    for logits in ([-np.inf, 0.0, -np.inf, 1.0, -np.inf], np.where(np.arange(997) % 7 == 3, 0.0, -np.inf)):
        for number, end in ((0.0, 0), (1 - 2**-53, -1)):
            drawn = gpt2.sample(np.array(logits), [], Ends(number))
            assert drawn == np.flatnonzero(np.isfinite(logits))[end]


# ----------------------------------------------------------------------------------------------------- generating


def test_the_true_limit_of_the_context():
    params = random_params(SMALL)
    assert len(list(gpt2.generate(range(10), params, 3, 8))) == 8  # 10 + 8 - 1 = 17
    with pytest.raises(ValueError, match="10 .* 9 .* 17: 0 to 8 "):
        list(gpt2.generate(range(10), params, 3, 9))
    with pytest.raises(ValueError, match="18 .* 1 .* 17: 0 to 0 "):
        list(gpt2.generate(range(18), params, 3, 1))
    with pytest.raises(ValueError, match="empty"):
        list(gpt2.generate([], params, 3, 1))
    for wrong in (-1, 101):
        with pytest.raises(ValueError, match="outside 0 to 100"):
            list(gpt2.generate([0, wrong], params, 3, 1))
    with pytest.raises(ValueError, match="n_ctx = 17"):
        gpt2.gpt2(range(18), **params, n_head=3)


def test_generate_equals_the_uncached_definition():
    params = random_params(SMALL)
    ids = [3, 1, 4]
    for _ in range(10):
        ids.append(int(np.argmax(gpt2.gpt2(ids, **params, n_head=3)[-1])))
    assert list(gpt2.generate([3, 1, 4], params, 3, 10)) == ids[3:]
    assert list(gpt2.generate([3, 1, 4], params, 3, 10)) == ids[3:]  # nothing leaks into the next call


def samples_of_one(*args):
    return (id for _, id in generate_batch(*args, [gpt2.greedy]))


@pytest.mark.parametrize("generate", [gpt2.generate, samples_of_one])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 3e38])
def test_logits_that_are_not_finite_are_an_error(generate, number):
    """Those of one token are enough, which `argmax` may never choose. 3e38 is finite, but its products are not."""
    params = random_params(SMALL)
    params["ln_f"]["g"][0] = 100
    params["wte"][7, 0] = number
    with np.errstate(all="ignore"):
        with pytest.raises(FloatingPointError, match="not finite"):
            gpt2.Context(params, 3).logits([1, 2, 3])
        with pytest.raises(FloatingPointError, match="not finite"):
            next(iter(generate([1, 2, 3], params, 3, 2)))


@pytest.mark.parametrize("generate", [gpt2.generate, samples_of_one])
def test_the_ids_before_logits_that_are_not_finite_are_yielded(generate):
    params, ids = random_params(SMALL), []
    params["wpe"][5] = math.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        ids.extend(generate([1, 2, 3], params, 3, 9))
    assert ids == list(gpt2.generate([1, 2, 3], params, 3, 3))  # the prompt has the positions 0 to 2


def test_code_written_for_picogpt_runs(models_dir):
    from utils import load_encoder_hparams_and_params

    encoder, hparams, params = load_encoder_hparams_and_params("odd", str(models_dir))
    input_ids = encoder.encode("Hello")
    assert len(input_ids) + 3 < hparams["n_ctx"]
    logits = gpt2.gpt2(input_ids, **params, n_head=hparams["n_head"])
    assert logits.shape == (len(input_ids), hparams["n_vocab"])
    output_ids = gpt2.generate(input_ids, params, hparams["n_head"], 3)
    assert isinstance(encoder.decode(output_ids), str)


def test_the_real_124m_weights_say_what_they_are_known_to_say():
    folder = Path(__file__).parent.parent / "models" / "124M"
    if not (folder / DATA).exists():
        pytest.skip("needs models/124M: python utils.py 124M downloads it")
    from utils import load_encoder_hparams_and_params

    encoder, _, params = load_encoder_hparams_and_params("124M", folder.parent)
    ids = encoder.encode("Alan Turing theorized that computers would one day become")
    text = encoder.decode(gpt2.generate(ids, params, 12, 40))
    assert text == (
        " the most powerful machines on the planet.\n\nThe computer is a machine that can perform complex "
        "calculations, and it can perform these calculations in a way that is very similar to the human brain."
    )


def test_initial_params_have_the_checkpoint_s_shapes():
    params = initial_params(SIZES["124M"] | {"n_layer": 1}, seed=0)
    assert params["blocks"][0]["attn"]["c_attn"]["w"].shape == (768, 2304)
    assert params["wte"].std() == pytest.approx(0.02, rel=0.01)
