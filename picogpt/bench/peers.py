"""Time other programs at the same work: whole processes with their memory, single passes, and tokenizers."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gpt2
from encoder import Encoder
from picogpt.bench.timing import TEMPERATURE, Workload, seconds
from picogpt.checkpoints.convert import to_hf
from picogpt.compare.references import TOKENIZERS
from picogpt.options import require

ROOT = Path(gpt2.__file__).parent
PROMPT = "Alan Turing theorized that computers would one day become"


class Process(NamedTuple):
    """The seconds to a process's first output and to its end, and its peak memory in MiB (0 where it is unknown)."""

    first: float
    whole: float
    memory: float


# This program starts the measured one. A small program in between is needed, because the system counts the memory of
# the starting process as the child's own until the child's program is loaded.
LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
with subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE) as process:
    process.stdout.read(1)
    first = time.perf_counter() - start
    process.stdout.read()
    if hasattr(os, "wait4"):
        _, code, usage = os.wait4(process.pid, 0)
        status = process.returncode = os.waitstatus_to_exitcode(code)
        memory = usage.ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
    else:
        status, memory = process.wait(), 0
print(json.dumps([first, time.perf_counter() - start, memory]))
sys.exit(status)
"""


def run_process(command: list[str]) -> Process:
    """Run a command and measure it. Raises ValueError with the end of its error output if it fails."""
    launched = [sys.executable, "-c", LAUNCHER, *command]
    done = subprocess.run(launched, capture_output=True, text=True, encoding="utf-8", errors="replace")
    if done.returncode:
        raise ValueError(f"a measured command ended with status {done.returncode}: {done.stderr.strip()[-500:]}")
    return Process(*json.loads(done.stdout))


def our_process(folder: Path) -> Process:
    """Measure the command that docs/speed.md shows: `gpt2.py` with 40 tokens to generate."""
    model = ["--model_size", folder.name, "--models_dir", str(folder.parent)]
    return run_process([sys.executable, str(ROOT / "gpt2.py"), PROMPT, "--n_tokens_to_generate", "40", *model])


def start_of_numpy() -> float:
    """Return the seconds that a process takes to start, import NumPy and end."""
    return run_process([sys.executable, "-c", "import numpy"]).whole


# The model in its plainest form: all tokens pass through it again for each new one.
WITHOUT_A_CACHE = """
import sys
sys.path.insert(0, sys.argv[3])
from gpt2 import gpt2
from utils import load_encoder_hparams_and_params
encoder, hparams, params = load_encoder_hparams_and_params(sys.argv[1], sys.argv[2])
ids = encoder.encode(sys.argv[4])
for _ in range(40):
    ids.append(int(gpt2(ids, **params, n_head=hparams["n_head"])[-1].argmax()))
    print(encoder.decode(ids[-1:]), end="", flush=True)
"""

BY_TRANSFORMERS = """
import sys
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel
class Printer:
    def __init__(self): self.prompt = True
    def put(self, ids):
        if not self.prompt: print(tokenizer.decode(ids), end="", flush=True)
        self.prompt = False
    def end(self): print()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = GPT2LMHeadModel.from_pretrained(sys.argv[1])
ids = tokenizer(sys.argv[2], return_tensors="pt")
model.generate(**ids, max_new_tokens=40, min_new_tokens=40, do_sample=False, streamer=Printer())
"""

# Each of the next two programs answers a line, the name of a function and its arguments, with the seconds that the work
# takes. `prompt` times ids as one prompt, and `decode` times ids one by one after others, whose keys and values are
# cached. `samples` times the steps that follow the first new id of each sample.
ANSWER = """
print("ready", flush=True)
for line in sys.stdin:
    name, *arguments = json.loads(line)
    print({"prompt": prompt, "decode": decode, "samples": samples}[name](*arguments), flush=True)
"""

# `generate` calls `put` with the prompt first, and then after each new id.
TRANSFORMERS = """
import json, sys, time
import torch
from transformers import GPT2LMHeadModel
model = GPT2LMHeadModel.from_pretrained(sys.argv[1]).eval()
kept = None, None
def forward(ids, past=None):
    with torch.inference_mode():
        return model(torch.tensor([ids]), past_key_values=past, use_cache=True, logits_to_keep=1)
def prompt(ids):
    start = time.perf_counter()
    forward(ids)
    return time.perf_counter() - start
def decode(before, ids):
    global kept
    if kept[0] != before:
        kept = before, forward(before).past_key_values
    start = time.perf_counter()
    for id in ids:
        forward([id], kept[1])
    taken = time.perf_counter() - start
    kept[1].crop(-len(ids))
    return taken
class Steps:
    def __init__(self): self.ends = []
    def put(self, ids): self.ends.append(time.perf_counter())
    def end(self): pass
def samples(ids, n_samples, n_steps, temperature):
    ids, steps = torch.tensor([ids]), Steps()
    model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=temperature, top_k=0, streamer=steps,
        num_return_sequences=n_samples, min_new_tokens=n_steps + 1, max_new_tokens=n_steps + 1,
    )
    assert len(steps.ends) == n_steps + 2
    return steps.ends[-1] - steps.ends[1]
"""

# CTranslate2, in C++ with float32, takes tokens as texts, and gives each step to `callback`. It chooses the ids that it
# decodes itself: the work is the same.
CTRANSLATE2 = """
import json, os, sys, time
import ctranslate2
folder = sys.argv[1] + "-ctranslate2"
ctranslate2.converters.TransformersConverter(sys.argv[1]).convert(folder)
n_threads = 0 if os.environ.get("OMP_NUM_THREADS") else os.cpu_count()  # its own default is at most 4
model = ctranslate2.Generator(folder, device="cpu", compute_type="float32", intra_threads=n_threads)
with open(sys.argv[1] + "/vocab.json", encoding="utf-8") as file:
    tokens = {id: token for token, id in json.load(file).items()}
def generate(ids, n_new, **options):
    ends, start = [], time.perf_counter()
    (result,) = model.generate_batch(
        [[tokens[id] for id in ids]], include_prompt_in_result=False, min_length=n_new, max_length=n_new, **options,
        callback=lambda step: ends.append((step.step, time.perf_counter())) and False,
    )
    assert all(len(ids) == n_new for ids in result.sequences_ids)
    return start, ends
def prompt(ids):
    start, ends = generate(ids, 1)
    return ends[-1][1] - start
def decode(before, ids):
    start, ends = generate(before, len(ids) + 1)
    return ends[-1][1] - ends[0][1]
def samples(ids, n_samples, n_steps, temperature):
    options = {"sampling_topk": 0, "sampling_temperature": temperature, "num_hypotheses": n_samples}
    start, ends = generate(ids, n_steps + 1, **options)
    return ends[-1][1] - max(end for step, end in ends if step == ends[0][0])
"""


def without_a_cache(workload: Workload, n: int) -> Callable[[], float]:
    """Return a clock for decoding without a cache, where every token passes through the model again for each new one.

    Only one token is timed, and its time is multiplied by the number of `next_ids`.
    """
    whole = partial(gpt2.gpt2, workload.ids[: n + 1], **workload.params, n_head=workload.n_head)
    return lambda: len(workload.next_ids(n)) * seconds(whole)


class Server:
    """Another program that answers how long it takes, in a process of its own.

    PyTorch's threads, CTranslate2's and NumPy's would compete for the processors in one process.
    """

    def __init__(self, name: str, program: str, folder: Path):
        self.name, self.command = name, [sys.executable, "-c", program + ANSWER, str(folder)]
        self.process: Any = None

    def start(self) -> Any:
        """Start the process, and wait until its model is loaded."""
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, stderr=nowhere, text=True, encoding="utf-8")
        process.stdout.readline()  # type: ignore[union-attr]
        return process

    def ask(self, name: str, *arguments: Any) -> float:
        """Return the seconds that the program measures with its function of this name. Raises OSError if it ended."""
        self.process = self.process or self.start()
        try:
            self.process.stdin.write(json.dumps([name, *arguments]) + "\n")
            self.process.stdin.flush()
            return float(self.process.stdout.readline())
        except (ValueError, OSError):
            raise OSError(f"--peers: the process with {self.name} has ended") from None

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()


class Peers:
    """Hugging Face's GPT-2, and CTranslate2's where it is installed, with the same weights.

    They are converted into a temporary folder that the context removes. Raises OSError if PyTorch, transformers or
    safetensors is not installed.
    """

    def __init__(self, folder: Path):
        require("torch", "transformers", "safetensors")
        self.source = folder
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name) / "hf"
        self.servers = [Server("transformers", TRANSFORMERS, self.folder)]
        if importlib.util.find_spec("ctranslate2"):
            self.servers.append(Server("CTranslate2", CTRANSLATE2, self.folder))

    def __enter__(self) -> Peers:
        to_hf(self.source, self.folder)
        return self

    def __exit__(self, *exception: object) -> None:
        for server in self.servers:
            server.stop()
        self.temporary.cleanup()

    def processes(self, folder: Path) -> dict[str, Callable[[], Process]]:
        """Return clocks for our command's work, done by transformers and by `gpt2` without a cache."""
        ours = [sys.executable, "-c", WITHOUT_A_CACHE, folder.name, str(folder.parent), str(ROOT), PROMPT]
        theirs = [sys.executable, "-c", BY_TRANSFORMERS, str(self.folder), PROMPT]
        return {"transformers": partial(run_process, theirs), "without a cache": partial(run_process, ours)}

    def clocks(self, name: str, *arguments: Any) -> dict[str, Callable[[], float]]:
        """Return each program's clock for a function of its own."""
        return {server.name: partial(server.ask, name, *arguments) for server in self.servers}

    def decoding(self, workload: Workload, n: int) -> dict[str, Callable[[], float]]:
        """Return the clocks for decoding `next_ids` after n others."""
        return self.clocks("decode", workload.ids[:n], workload.next_ids(n))

    def prompt(self, workload: Workload, n: int) -> dict[str, Callable[[], float]]:
        """Return the clocks for a prompt of n tokens."""
        return self.clocks("prompt", workload.ids[:n])

    def samples(self, workload: Workload, n_samples: int) -> dict[str, Callable[[], float]]:
        """Return the clocks for the same steps as `workload.samples(n_samples)`, which `generate_batch` makes here."""
        prompt, n_steps = workload.sampled()
        return self.clocks("samples", prompt, n_samples, n_steps, TEMPERATURE)


def other_tokenizers(encoder: Encoder, text: str) -> dict[str, Callable[[], float]]:
    """Return clocks for tiktoken and tokenizers with the same merges, if they are installed."""
    merges = list(encoder.ranks)
    found = {name: make(encoder, merges) for name, make in TOKENIZERS.items() if importlib.util.find_spec(name)}
    return {name: partial(seconds, partial(encode, text)) for name, encode in found.items()}
