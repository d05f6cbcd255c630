"""The facts, computed by transformers: an oracle that shares with ours only the weights and the tokenizer."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from encoder import END_OF_TEXT
from picogpt.scoring.work import Model


class Oracle:
    """Hugging Face's GPT-2 with our weights. `values` returns the values of a fact, in the order of ours."""

    def __init__(self, hugging: Any, model: Model):
        self.hugging, self.encoder, self.n_head = hugging, model.encoder, model.hparams["n_head"]

    def values(self, fact: dict[str, Any], data: Path | None = None) -> list[Any]:
        torch = pytest.importorskip("torch")
        with torch.no_grad(), self.ablated(**fact.get("ablate", {})):
            return getattr(self, fact["kind"])(fact, data)

    @contextlib.contextmanager
    def ablated(self, layer: int | None = None, head: int = 0, positions: str = "all") -> Iterator[None]:
        """Set a head's values to their bias, or what it gives to c_proj at the last position."""
        if layer is None:
            yield
            return
        attention = self.hugging.transformer.h[layer].attn
        width = attention.c_proj.weight.shape[0]
        d_head = width // self.n_head
        start = head * d_head
        bias = attention.c_attn.bias[2 * width + start : 2 * width + start + d_head]

        def change_values(module: Any, args: Any, output: Any) -> Any:
            output[..., 2 * width + start : 2 * width + start + d_head] = bias
            return output

        def change_last(module: Any, args: Any) -> Any:
            args[0][:, -1, start : start + d_head] = bias
            return args

        if positions == "last":
            hook = attention.c_proj.register_forward_pre_hook(change_last)
        else:
            hook = attention.c_attn.register_forward_hook(change_values)
        try:
            yield
        finally:
            hook.remove()

    # ---------------------------------------------------------------------------------------------------------- inputs

    def ids(self, fact: dict[str, Any], prompt: str) -> list[int]:
        front = [self.encoder.encoder[END_OF_TEXT]] if fact.get("bos") else []
        return fact.get("ids") or front + self.encoder.encode(prompt)

    def logits(self, ids: list[int]) -> Any:
        import torch

        return self.hugging(torch.tensor([ids])).logits[0]

    # ----------------------------------------------------------------------------------------------------------- kinds

    def greedy(self, fact: dict[str, Any], data: None) -> list[int]:
        ids = self.ids(fact, fact["prompt"])
        for _ in fact["published"]:
            ids = [*ids, int(self.logits(ids)[-1].argmax())]
        return ids[-len(fact["published"]) :]

    def loss(self, fact: dict[str, Any], data: Path | None) -> list[float]:
        import torch

        if data is None:
            ids = torch.tensor([self.ids(fact, fact["prompt"])])
            return [float(self.hugging(ids, labels=ids).loss)]
        ids, losses = self.ids_of_file(fact, data.read_text(encoding="utf-8")), []
        n = fact.get("span") or fact["inputs"]
        for start in range(0, len(ids), n)[: fact.get("windows")]:
            window = torch.tensor([ids[start : start + n + ("inputs" in fact)]])
            if window.shape[1] > 1:
                logits = self.hugging(window).logits[0, :-1]
                losses.append(float(torch.nn.functional.cross_entropy(logits, window[0, 1:])))
        mean = sum(losses) / len(losses)
        return [math.exp(mean) if fact.get("as") == "perplexity" else mean]

    def ids_of_file(self, fact: dict[str, Any], text: str) -> list[int]:
        if "part" in fact:
            cut = int(0.9 * len(text))
            text = text[cut:] if fact["part"][0] else text[:cut]
        if "rows" in fact:
            rows = ["" if not row.strip() else row for row in text.splitlines(keepends=True)]
            text = fact["rows"].join(rows)
        if fact.get("paragraphs"):
            text = END_OF_TEXT + f"\n\n{END_OF_TEXT}".join(text.split("\n\n"))
        return self.encoder.encode(text, {END_OF_TEXT})

    def logit_difference(self, fact: dict[str, Any], data: None) -> list[float]:
        found = []
        for prompt, right, wrong in fact["prompts"]:
            last = self.logits(self.ids(fact, prompt))[-1]
            found.append(float(last[self.encoder.encode(right)[0]] - last[self.encoder.encode(wrong)[0]]))
        return found if isinstance(fact["published"], list) else [sum(found) / len(found)]

    def top(self, fact: dict[str, Any], data: None) -> list[Any]:
        import torch

        last = self.logits(self.ids(fact, fact["prompt"]))[-1]
        measured = {
            "logit": last,
            "logit above the mean": last - last.mean(),
            "probability": torch.softmax(last, -1),
            "percent": 100 * torch.softmax(last, -1),
        }[fact["measure"]]
        if fact.get("ranked", True):
            ids = last.topk(len(fact["published"])).indices.tolist()
        else:
            ids = [self.encoder.encode(token)[0] for token, _ in fact["published"]]
        return [value for id in ids for value in (self.encoder.decode([id]), float(measured[id]))]

    def activation(self, fact: dict[str, Any], data: Path | None) -> list[float]:
        kept = []
        layer, _, out = fact.get("array", "ln_f").partition("/")
        module = self.hugging.transformer.h[int(layer[1:])] if out else self.hugging.transformer.ln_f
        hook = module.register_forward_hook(lambda m, a, out: kept.append(out[0] if isinstance(out, tuple) else out))
        for prompt in [prompt for prompt, *_ in fact["prompts"]] if "prompts" in fact else [fact.get("prompt", "")]:
            self.logits(self.ids(fact, prompt))
        hook.remove()
        rows = [hidden[0, fact["row"]] for hidden in kept]
        if "statistic" in fact:
            return [float((row.var(unbiased=False) + 1e-5).sqrt()) for row in rows]
        return rows[0][: fact["first"]].tolist()

    def score(self, fact: dict[str, Any], data: Path) -> list[float]:
        return getattr(self, fact["task"])(fact, data.read_text(encoding="utf-8"))

    def lambada(self, fact: dict[str, Any], text: str) -> list[float]:
        """The harness's rule: the last word's log-probability, and whether all its tokens are the likeliest."""
        sums, right = [], []
        for line in text.splitlines():
            passage = json.loads(line)["text"]
            ids, n = self.encoder.encode(passage), len(self.encoder.encode(passage.rpartition(" ")[0]))
            log_probs = self.logits(ids[:-1]).log_softmax(-1)[n - 1 :]
            sums.append(sum(float(row[id]) for row, id in zip(log_probs, ids[n:])))
            right.append(all(int(row.argmax()) == id for row, id in zip(log_probs, ids[n:])))
        figures = {"accuracy": 100 * sum(right) / len(right), "perplexity": math.exp(-sum(sums) / len(sums))}
        return [figures[name] for name in fact["published"]]

    def wikitext(self, fact: dict[str, Any], text: str) -> list[float]:
        """The loop in transformers' documentation, with its own weights of the windows' mean losses."""
        import torch

        ids = torch.tensor([self.ids_of_file({"rows": "\n\n"}, text)])
        n_ctx, stride, total, n_tokens, before = self.hugging.config.n_positions, fact["options"]["stride"], 0.0, 0, 0
        for begin in range(0, ids.shape[1], stride):
            end = min(begin + n_ctx, ids.shape[1])
            inputs = ids[:, begin:end]
            targets = inputs.clone()
            targets[:, : -(end - before)] = -100
            n_valid = int((targets != -100).sum()) - 1
            total += float(self.hugging(inputs, labels=targets).loss) * n_valid
            n_tokens += n_valid
            before = end
            if end == ids.shape[1]:
                break
        return [math.exp(total / n_tokens)]


def explainer_file(path: Path, oracle: Oracle, ids: list[int]) -> None:
    """Write an example in Transformer Explainer's format, with transformers' own values."""
    import torch

    kept = []
    hooks = [
        b.attn.c_attn.register_forward_hook(lambda m, a, out: kept.append(out[0])) for b in oracle.hugging.transformer.h
    ]
    with torch.no_grad():
        out = oracle.hugging(torch.tensor([ids]), output_attentions=True)
    for hook in hooks:
        hook.remove()
    lines = ["export const ex = {", f"\tlogits: {json.dumps(out.logits[0, -1].tolist(), indent=1)},", "\toutputs: {"]
    for layer, (qkv, weights) in enumerate(zip(kept, out.attentions)):
        q, k, _ = (
            part.unflatten(-1, (oracle.n_head, -1)).transpose(0, 1) for part in qkv.split(qkv.shape[-1] // 3, -1)
        )
        scaled = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        for head in range(oracle.n_head):
            for name, array in (("scaled", scaled), ("softmax", weights[0])):
                block = json.dumps(array[head].tolist(), indent=2)
                lines.append(f"\t\tblock_{layer}_attn_head_{head}_attn_{name}: {{\n\t\t\tdata: {block}\n\t\t}},")
    path.write_text("\n".join([*lines, "\t}", "};"]) + "\n", encoding="utf-8")
