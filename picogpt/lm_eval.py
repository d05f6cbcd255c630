"""A model for lm-evaluation-harness, so that all of the harness's tasks run on gpt2.py. Its name there is `picogpt`.

    import lm_eval
    import picogpt.lm_eval

    results = lm_eval.simple_evaluate(model="picogpt", model_args="model_size=tiny", tasks=["lambada_openai"])

The harness turns each task into requests of three kinds: the log-likelihood of a continuation after a context, that of
a whole text ("rolling"), and a text to generate. For the same weights, the answers are those of the harness's own
model `hf`: texts are cut into tokens and windows in the same way. The harness itself needs no PyTorch.

Source: github.com/EleutherAI/lm-evaluation-harness, version 0.4.13: lm_eval/api/model.py describes the requests.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from encoder import END_OF_TEXT
from picogpt.batch import generate_each
from picogpt.checkpoints.writing import arrays_of
from picogpt.command_line import UsageError
from picogpt.continuation import draw, is_over, rows_that_fit, text_pieces
from picogpt.options import SAMPLING_LIMITS
from picogpt.scoring.windows import Scores, Window, rolling_windows, score_windows
from utils import load_encoder_hparams_and_params

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from picogpt.typing.shapes import Choose

N_GENERATED = 64  # texts that are generated side by side
N_TOGETHER = 256  # requests that are scored together. An interrupted run keeps those before them, with --use_cache
LOGGER = logging.getLogger("picogpt")
MAX_GEN_TOKS = 256  # the harness's default length of a generated text

FROM_HARNESS = {"batch_size", "max_batch_size", "device", "trust_remote_code"}  # it sets these for every model
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # four names for one setting


@register_model("picogpt")
class PicoGPT(TemplateLM):  # type: ignore[misc]
    """A model from a folder, as the harness uses it.

    `model_size` and `models_dir` name the model, as for all tools. Batches are formed by `score_windows`, and all work
    is done on the CPU, so `batch_size` and `device`, which the harness passes to every model, change nothing.
    """

    def __init__(self, model_size: str = "124M", models_dir: str | Path = "models", **others: Any):
        super().__init__()
        if unknown := sorted(others.keys() - FROM_HARNESS):
            raise UsageError(f"model_args: {unknown[0]!r} is neither model_size nor models_dir")
        model_size = str(model_size)  # the harness turns a name such as 1558 into a number
        self.name = Path(model_size).name  # of a path, too: the harness makes names of files from it
        self.encoder, self.hparams, self.params = load_encoder_hparams_and_params(model_size, str(models_dir))
        self.end = self.encoder.encoder.get(END_OF_TEXT)

    @property
    def eot_token_id(self) -> int:
        """The id of <|endoftext|>, which stands before a text without a context. Raises UsageError if there is none."""
        if self.end is None:
            raise UsageError(f"this task scores texts from their first token on, but {self.name} has no {END_OF_TEXT}")
        return self.end

    @property
    def max_length(self) -> int:
        """The number of positions of the model."""
        return self.hparams["n_ctx"]

    @property
    def max_gen_toks(self) -> int:
        """How many tokens to generate if a task does not say it: at most half of the model's positions."""
        return min(MAX_GEN_TOKS, self.max_length // 2)

    @property
    def tokenizer_name(self) -> str:
        """The name by which the harness tells its caches of different tokenizers apart."""
        return f"picogpt-{self.name}"

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes down about the model, beside its arguments."""
        n_params = sum(array.size for _, array in arrays_of(self.params))
        return {"model_num_parameters": n_params, "model_dtype": self.params["wte"].dtype.name}

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
        """Raise UsageError, because GPT-2 was not trained on dialogues."""
        raise UsageError("GPT-2 has no chat template: leave out --apply_chat_template")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **unused: Any) -> list[int]:
        """Return the ids of a text. <|endoftext|> in it is the token of that name, as it is for the model `hf`."""
        return self.encoder.encode(string, allowed_special=() if self.end is None else {END_OF_TEXT})

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **unused: Any,
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether greedy decoding would produce it.

        Each request is (texts, ids of the context, ids of the continuation). A context that is too long loses ids on
        its left. Raises ValueError for a continuation without ids, or with more than the model has positions.
        """
        for (context, continuation), _ids, targets in requests:
            if not 1 <= len(targets) <= self.max_length:
                text = f"the continuation {continuation[:40]!r} of {context[-40:]!r} has {len(targets)} tokens"
                raise ValueError(f"{text}, but 1 to n_ctx = {self.max_length} are possible")
        limits = [self.max_length + 1] * len(requests)  # the last id is a target only, and takes no position
        whole = cut_left([ids + targets for _, ids, targets in requests], limits)
        parts = [Window(np.array(ids), len(targets)) for ids, (*_, targets) in zip(whole, requests)]
        answers: list[tuple[float, bool]] = []
        for (texts, *_), scored in zip(requests, self.scores(parts, disable_tqdm)):
            answers.append((float(scored.log_probs.sum()), bool((scored.ranks == 1).all())))
            self.cache_hook.add_partial("loglikelihood", texts, answers[-1])
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text, given <|endoftext|> before it."""
        texts: list[str] = [request.args[0] for request in requests]
        parts = [self.windows_of(text) for text in texts]
        scores = self.scores(list(chain.from_iterable(parts)), disable_tqdm)
        answers: list[float] = []
        for text, own in zip(texts, parts):
            answers.append(sum(float(scored.log_probs.sum()) for scored in islice(scores, len(own))))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), answers[-1])
        return answers

    def windows_of(self, text: str) -> list[Window]:
        """Return the windows of a whole text, with <|endoftext|> before it."""
        return list(rolling_windows(np.array([self.prefix_token_id, *self.tok_encode(text)], np.intp), self.max_length))

    def scores(self, parts: Sequence[Window], disable_tqdm: bool) -> Iterator[Scores]:
        """Yield the scores of each window. They keep their order: neighbours often begin with the same context."""
        total = sum(window.n_targets for window in parts)
        with tqdm(total=total, desc="scoring", unit="token", leave=False, disable=disable_tqdm or None) as bar:
            for start in range(0, len(parts), N_TOGETHER):
                together = parts[start : start + N_TOGETHER]
                yield from score_windows(together, self.params, self.hparams["n_head"], bar.update)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return a continuation of each context, which ends before the first of the texts in `until`.

        Ids on the left of a context make room for the new ones where it is necessary. The harness's --seed sets NumPy's
        global generator, and what is drawn here depends on that. Raises UsageError for settings that are out of range.
        """
        warn_about_unused({name for request in requests for name in request.args[1]})
        settings = [normalize_gen_kwargs(request.args[1], self.max_gen_toks) for request in requests]
        prompts = [self.tok_encode(request.args[0]) or [self.prefix_token_id] for request in requests]
        prompts = cut_left(prompts, [self.room(known["max_gen_toks"]) for known in settings])
        seeds = np.random.SeedSequence(np.random.randint(1 << 31)).spawn(len(requests))
        choosers = [chooser(known, np.random.default_rng(seed)) for known, seed in zip(settings, seeds)]
        answers = [""] * len(requests)
        with tqdm(
            total=len(requests), desc="generating", unit="text", leave=False, disable=disable_tqdm or None
        ) as bar:
            for group in side_by_side(prompts, settings):
                some, known = [prompts[i] for i in group], settings[group[0]]
                texts = self.continuations(some, known["max_gen_toks"], known["until"], [choosers[i] for i in group])
                for i, text in zip(group, texts):
                    answers[i] = text
                    self.cache_hook.add_partial("generate_until", requests[i].args, answers[i])
                bar.update(len(group))
        return answers

    def room(self, n_new: int) -> int:
        """Return how many ids of a context fit beside n_new new ones. Raises UsageError if none does."""
        if not 0 <= n_new < self.max_length:
            text = f"max_gen_toks is {n_new}, but {self.name} has n_ctx = {self.max_length} for context and new tokens"
            raise UsageError(f"{text} together (try --gen_kwargs max_gen_toks={self.max_gen_toks})")
        return self.max_length - n_new

    def continuations(
        self, prompts: list[list[int]], n_new: int, until: Sequence[str], choose: Sequence[Choose]
    ) -> list[str]:
        """Generate the texts of up to n_new ids that follow prompts of equal length, side by side.

        They end before <|endoftext|> and the texts in `until`.
        """
        n_head, new = self.hparams["n_head"], [list[int]() for _ in prompts]
        over = functools.partial(is_over, encoder=self.encoder, end=self.end, stops=until)
        n_rows = rows_that_fit(len(prompts), self.params, n_head, len(prompts[0]) + n_new)
        for i, id in generate_each(prompts, self.params, n_head, n_new, choose, over, n_rows):
            new[i].append(id)
        return ["".join(text_pieces(ids, self.encoder, self.end, until)) for ids in new]


def side_by_side(prompts: list[list[int]], settings: list[dict[str, Any]]) -> Iterator[list[int]]:
    """Yield lists of requests that can grow in one batch: of equal length, with the same settings for their ends."""
    groups: dict[Any, list[int]] = {}
    for i, (ids, known) in enumerate(zip(prompts, settings)):
        groups.setdefault((len(ids), known["max_gen_toks"], *known["until"]), []).append(i)
    for group in groups.values():
        for first in range(0, len(group), N_GENERATED):
            yield group[first : first + N_GENERATED]


def cut_left(texts: list[list[int]], limits: list[int]) -> list[list[int]]:
    """Return the last ids of each text, at most as many as its limit. Warn how many texts have become shorter."""
    if n_cut := sum(len(ids) > limit for ids, limit in zip(texts, limits)):
        text = "%d of %d contexts are too long for the model, and lose their first tokens"
        LOGGER.warning(text, n_cut, len(texts))
    return [ids[-limit:] for ids, limit in zip(texts, limits)]


def chooser(settings: Mapping[str, Any], rng: np.random.Generator) -> Choose:
    """Return the function that chooses each id: greedy, unless the settings ask for sampling.

    Raises UsageError for a setting that is out of range.
    """
    given = {name: settings[name] for name in SAMPLING_LIMITS if settings.get(name) is not None}
    if not settings["do_sample"]:
        given = {"temperature": 0.0, "repetition_penalty": given.get("repetition_penalty", 1.0)}
    return functools.partial(draw, rng=rng, **given)


def warn_about_unused(names: set[str]) -> None:
    """Warn about generation settings that gpt2.py does not have, such as num_beams."""
    if unused := sorted(names - {"until", "do_sample", *SAMPLING_LIMITS, *LENGTHS}):
        LOGGER.warning("picogpt has no generation setting %s: the tasks run without", ", ".join(unused))
