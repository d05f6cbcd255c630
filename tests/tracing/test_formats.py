"""Test that `trace --against` reads what other programs write: transformers, TransformerLens, llm.c."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import port
import pytest
from helpers import ROOT, Result, assert_error, run_main, transformers_model

from picogpt.checkpoints.writing import arrays_of
from utils import load_encoder_hparams_and_params

PROMPT = "ROMEO:\nWhat light"


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, dict[str, int], dict[str, Any]]:
    return load_encoder_hparams_and_params("tiny", str(ROOT / "models"))


@pytest.fixture(scope="module")
def ids(tiny) -> list[int]:
    return tiny[0].encode(PROMPT)


@pytest.fixture(scope="module")
def ported(tiny, ids) -> dict[str, Any]:
    """The values of another program, by our names. Tests must not write to them."""
    return port.Port(tiny[2], tiny[1]["n_head"]).run(ids)


@pytest.fixture
def compare(tmp_path, traced):
    """Return a function that saves arrays and compares them with ours: with PROMPT, or with the file's own ids."""

    def run(arrays: dict[str, Any], *prompt: str) -> Result:
        np.savez(tmp_path / "mine.npz", **arrays)
        return traced(*prompt, "--against", tmp_path / "mine.npz")

    return run


def differs(result: Result, name: str) -> bool:
    return result.status == 1 and f"\nthe first value that differs: {name}, " in result.out


# -------------------------------------------------------------------------------------------------------- transformers


@pytest.fixture(scope="module")
def output(tiny, ids) -> dict[str, Any]:
    """A model's output in transformers, as arrays and tuples of them, all with a batch axis of 1."""
    torch = pytest.importorskip("torch")
    model = transformers_model(tiny[2], tiny[1], "float32")
    inputs = torch.tensor([ids])
    with torch.no_grad():
        out = model(inputs, labels=inputs, output_hidden_states=True, output_attentions=True)
    states, probs = (tuple(one.numpy() for one in many) for many in (out.hidden_states, out.attentions))
    return {
        "input_ids": inputs.numpy(),
        "logits": out.logits.numpy(),
        "loss": out.loss.numpy(),
        "hidden_states": states,
        "attentions": probs,
    }


def test_an_output_of_transformers_is_read_as_np_savez_stacks_it(compare, output):
    for prompt in ([], [PROMPT]):
        result = compare(output, *prompt)
        assert (result.status, result.err) == (0, "")
        assert result.out.startswith("11 of 68 values compared with ")
        assert "not in this trace" not in result.out


def test_the_arrays_of_transformers_may_have_numbers_and_no_batch_axis(compare, output):
    for mark in ("_", ".", "/", "-"):
        arrays = {
            f"{name}{mark}{i}": one[0] for name in ("hidden_states", "attentions") for i, one in enumerate(output[name])
        }
        result = compare({**arrays, "last_hidden_state": output["hidden_states"][-1]}, PROMPT)
        assert result.status == 0, result
        assert result.out.startswith("9 of 68 values compared with ")


def test_a_wrong_array_of_transformers_is_named(compare, output):
    states = np.stack(output["hidden_states"])
    states[2, 0, 3] += 1
    result = compare({**output, "hidden_states": states})
    assert result.status == 1
    assert "differs: h1/out (hidden_states there), mid + mlp/c_proj" in result.out
    states[2, 0, 3] -= 1
    states[4] = states[3]  # the last one is after ln_f, not the last layer's output
    assert "differs: ln_f (hidden_states there)" in compare({**output, "hidden_states": states}).out
    probs = np.stack(output["attentions"]) * 1.001
    assert "differs: h0/attn/probs (attentions there)" in compare({"attentions": probs.astype("f")}, PROMPT).out


def test_a_wrong_loss_is_found(compare, output, ids):
    assert differs(compare({**output, "loss": output["loss"] * np.float32(1.001)}), "loss")
    assert differs(compare({"loss": output["loss"] * np.float32(1.001)}, PROMPT), "loss")
    targets = {"targets": np.array(ids)}
    assert differs(compare({**output, **targets}), "loss")


def test_what_transformers_could_not_have_written_is_refused(compare, output):
    fewer = np.stack(output["hidden_states"][:-1])
    message = "hidden_states is [4, 1, 6, 160], but its first axis must be 5 long"
    assert_error(compare({"hidden_states": fewer}, PROMPT), 2, "mine.npz: ", message)
    assert_error(compare({"hidden_states": np.float32(1)}, PROMPT), 2, "hidden_states is [], but its first axis")
    assert_error(compare({"hidden_states_5": fewer[0]}, PROMPT), 2, "has no value of this trace")
    assert_error(compare({**output, "targets": np.array([[1]])}), 2, "targets is int64 [1, 1]")
    assert_error(compare({**output, "targets": output["input_ids"] + 2000}), 2, "targets has ids outside 0 to 1023")


# ------------------------------------------------------------------------------------------------------ TransformerLens


def hooks(tiny: Any, ids: list[int], ported: dict[str, Any], batch: bool = True) -> dict[str, Any]:
    """Return a port's values under TransformerLens's names and in its layouts."""
    params, cache = tiny[2], {}
    cache["hook_embed"], cache["hook_pos_embed"] = params["wte"][ids], params["wpe"][: len(ids)]
    before = ported["embedding"]
    for layer, block in enumerate(params["blocks"]):
        ours, theirs = f"h{layer}/", f"blocks.{layer}."
        cache[f"{theirs}hook_resid_pre"] = before
        for name in ("ln_1", "ln_2"):
            normalized = (ported[ours + name].astype(np.float64) - block[name]["b"]) / block[name]["g"]
            cache[f"{theirs}{name.replace('_', '')}.hook_normalized"] = normalized.astype(np.float32)
            cache[f"{theirs}{name.replace('_', '')}.hook_scale"] = np.ones((len(ids), 1), np.float32)
        for name, hook in (("q", "q"), ("k", "k"), ("v", "v"), ("heads", "z")):
            cache[f"{theirs}attn.hook_{hook}"] = ported[f"{ours}attn/{name}"].swapaxes(0, 1)
        scores = ported[f"{ours}attn/scores"]
        cache[f"{theirs}attn.hook_attn_scores"] = np.where(scores < -1e9, -np.inf, scores)
        pairs = ("attn/probs", "attn.hook_pattern"), ("attn/c_proj", "hook_attn_out"), ("mid", "hook_resid_mid")
        pairs += ("mlp/c_fc", "mlp.hook_pre"), ("mlp/gelu", "mlp.hook_post"), ("mlp/c_proj", "hook_mlp_out")
        cache |= {theirs + hook: ported[ours + name] for name, hook in (*pairs, ("out", "hook_resid_post"))}
        before = ported[f"{ours}out"]
    normalized = (ported["ln_f"].astype(np.float64) - params["ln_f"]["b"]) / params["ln_f"]["g"]
    cache["ln_final.hook_normalized"] = normalized.astype(np.float32)
    return {name: value[None] if batch else value for name, value in cache.items()}


def test_a_layer_norm_s_hook_may_be_behind_the_gain_and_the_bias(compare, tiny, ids, ported):
    """In TransformerLens, that depends on the version."""
    names = {"blocks.0.ln1.hook_normalized": "h0/ln_1", "ln_final.hook_normalized": "ln_f"}
    result = compare({hook: ported[name] for hook, name in names.items()} | {"tokens": np.array(ids)})
    assert (result.status, result.err) == (0, ""), result.out
    wrong = {hook: ported[name] * np.float32(1.001) for hook, name in names.items()} | {"tokens": np.array(ids)}
    assert compare(wrong).status == 1


@pytest.mark.parametrize("batch", [True, False])
def test_a_cache_of_transformerlens_agrees(compare, tiny, ids, ported, batch):
    cache = hooks(tiny, ids, ported, batch)
    result = compare({**cache, "tokens": np.array(ids)})
    assert (result.status, result.err) == (0, "")
    n = 68 - 2 * 4 - 1  # c_attn and merged are nowhere, and logits are no hook
    assert result.out.startswith(f"{n} of 68 values compared with ")
    assert "\nmissing there: h*/attn/c_attn, h*/attn/merged, logits\n" in result.out
    assert "not in this trace: blocks.0.ln1.hook_scale, " in result.out


def test_each_hook_is_compared(compare, tiny, ids, ported):
    cache = hooks(tiny, ids, ported)
    for name in (name for name in cache if not name.endswith("scale") and "blocks.1" not in name):
        result = compare({**cache, name: cache[name] + np.float32(0.01)}, PROMPT)
        assert result.status == 1
        assert f" ({name} there), " in result.out, result.out
        assert "\n1 of 58 values differ" in result.out
        assert "unless HookedTransformer.from_pretrained_no_processing is used" in result.out


def test_weights_that_transformerlens_has_changed_are_recognized(compare, tiny, ids, ported):
    def centred(x: Any) -> Any:
        return x - x.mean(axis=-1, keepdims=True)

    for name, values in (
        ("embedding", hooks(tiny, ids, ported)["blocks.0.hook_resid_pre"]),
        ("logits", ported["logits"]),
    ):
        result = compare({name: centred(values)}, PROMPT)
        assert differs(result, name)
        assert "  each row there has mean 0, but not ours: TransformerLens changes the weights" in result.out
    assert "TransformerLens" not in compare({"logits": ported["logits"] + 1}, PROMPT).out


def test_another_length_reminds_of_the_token_in_front(compare, tiny, ids, ported):
    cache = hooks(tiny, ids, ported)
    longer = np.concatenate([cache["blocks.0.hook_resid_mid"]] * 2, axis=1)
    for name in ("blocks.0.hook_resid_mid", "hook_embed", "hook_pos_embed", "blocks.0.ln1.hook_normalized"):
        assert_error(compare({name: longer}, PROMPT), 2, "[1, 12, 160]", "TransformerLens puts <|endoftext|> before")
    assert_error(compare({"blocks.9.hook_resid_mid": longer}, PROMPT), 2, "has no value of this trace")
    assert_error(compare({"blocks.0.attn.hook_q": longer[0]}, PROMPT), 2, "hook_q is float32 [12, 160]")


# ---------------------------------------------------------------------------------------------------------------- llm.c


def state(tiny: Any, texts: Any, targets: Any, logits: Any, loss: float, n_gradients: int | None = None) -> bytes:
    """Return a debug_state.bin, as write_state in llm.c's train_gpt2.py writes it."""
    header = np.zeros(256, "<i4")
    header[:4] = 20240327, 2, *texts.shape
    n = sum(array.size for _, array in arrays_of(tiny[2])) if n_gradients is None else n_gradients
    parts = header, texts.astype("<i4"), targets.astype("<i4"), logits.astype("<f4"), np.float32(loss), np.zeros(n, "f")
    return b"".join(part.tobytes() for part in parts)


@pytest.fixture(scope="module")
def batch(tiny) -> tuple[Any, ...]:
    """Two texts, their next ids, and their logits and mean loss in float64."""
    torch = pytest.importorskip("torch")
    ids = np.random.default_rng(0).integers(0, 1024, (2, 9))
    texts, targets = ids[:, :-1], ids[:, 1:]
    model = transformers_model(tiny[2], tiny[1], "float32").double()
    with torch.no_grad():
        logits = model(torch.tensor(texts)).logits
        loss = torch.nn.functional.cross_entropy(logits.view(-1, 1024), torch.tensor(targets).reshape(-1))
    return texts, targets, logits.numpy(), loss.item()


def test_a_debug_state_of_llm_c_is_read(tmp_path, traced, tiny, batch):
    path: Path = tmp_path / "gpt2_debug_state.bin"
    path.write_bytes(state(tiny, *batch))
    result = traced("--against", path)
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith(f"2 of 68 values compared with {path}\nmissing there: embedding, ")
    texts, targets, logits, loss = batch
    path.write_bytes(state(tiny, texts, targets, logits, loss * 1.0001))
    assert differs(traced("--against", path), "loss")
    wrong = logits.copy()
    wrong[1, 2, 3] += 0.01
    path.write_bytes(state(tiny, texts, targets, wrong, loss))
    result = traced("--against", path)
    assert differs(result, "logits")
    assert "  largest at [1, 2, 3]: ours " in result.out
    result = traced(PROMPT, "--against", path)
    assert (result.status, result.out) == (1, "other ids: 2 texts there, but one PROMPT: leave it out to read all\n")


def test_the_gradients_of_llm_c_have_a_padded_vocabulary(models_dir, tmp_path):
    """In the model odd, it has 300 tokens, which become 384."""
    model = load_encoder_hparams_and_params("odd", str(models_dir))
    n = sum(array.size for _, array in arrays_of(model[2]))
    texts = np.array([[1, 2, 3]])
    logits = port.Port(model[2], 3).run([1, 2, 3])["logits"]
    exp = np.exp(logits.astype(np.float64))
    loss = -np.log(exp[[0, 1, 2], [2, 3, 4]] / exp.sum(axis=-1)).mean()
    path = tmp_path / "state.bin"
    options = ["--models_dir", models_dir, "--model_size", "odd", "--against", path]
    for n_gradients, status in ((n, 0), (n + 84 * 21, 0), (n + 1, 2)):
        path.write_bytes(state(model, texts, texts + 1, logits, loss, n_gradients))
        assert run_main("picogpt trace", *options).status == status


def test_a_debug_state_that_is_not_complete_is_refused(tmp_path, traced, tiny, batch):
    path, data = tmp_path / "state.bin", state(tiny, *batch)
    for n in (len(data) - 4, 2000, 1024):
        path.write_bytes(data[:n])
        result = traced("--against", path)
        assert_error(result, 2, "state.bin", "complete")
    path.write_bytes(data[:10])
    assert_error(traced("--against", path), 2, "state.bin is no complete debug_state.bin")
    texts, *rest = batch
    path.write_bytes(state(tiny, texts + 1024, *rest))
    assert_error(traced("--against", path), 2, "state.bin: the ids are 10", "outside 0 to 1023")
    path.write_bytes(data)
    assert_error(traced("--against", path, "--decode", 1), 2, "has 2 texts, but --n_past and --decode take one")


# ---------------------------------------------------------------------------------------------------- without a PROMPT


def test_without_a_prompt_the_file_s_ids_are_read(compare, traced, tmp_path, ours, ported, ids):
    assert compare(ported).status == 0
    assert compare({**ported, "inputs": np.array([ids])}).status == 0
    assert compare({**ported, "inputs": np.array([ids, ids])}) == compare({**ported, "inputs": np.array([ids, ids])})
    result = traced("--against", ours, "--decode", 2)
    assert result.status == 0
    assert result.out.startswith("204 of 204 values compared")
    assert_error(compare({"logits": ported["logits"]}), 2, "mine.npz does not say its ids: give the PROMPT")
    assert_error(compare({**ported, "inputs": np.array([1024])}), 2, "mine.npz: the ids are 1024 to 1024, outside 0")
    assert_error(traced("--out", tmp_path / "a.npz", "--against", ours), 2, "the PROMPT is missing")
    assert_error(traced("--out", tmp_path / "a.npz"), 2, "the PROMPT is missing")


def test_several_texts_are_compared_at_once(compare, tiny, ids):
    texts = [ids, ids[::-1]]
    both = [port.Port(tiny[2], tiny[1]["n_head"]).run(text) for text in texts]
    arrays = {name: np.stack([one[name] for one in both]) for name in both[0]}
    result = compare(arrays)
    assert result.status == 0, result
    assert result.out.startswith("68 of 68 values compared")
    arrays["h1/attn/q"][1, 2, 3, 4] += 1
    result = compare(arrays)
    assert differs(result, "h1/attn/q")
    assert "largest at [1, 2, 3, 4]" in result.out
