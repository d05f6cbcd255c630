"""Functions in a process of their own. These tests need no TensorFlow."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import ENVIRONMENT, ROOT

from picogpt.tensorflow_process import TensorFlowError, TensorFlowProcess


def raise_without_text() -> None:
    raise EOFError


def test_results_come_back_with_their_bits():
    array = np.array([[np.nan, -0.0, 1e-310]])
    with TensorFlowProcess() as process:
        assert process.call(os.getpid) == process.process.pid
        assert process.call(np.negative, array).tobytes() == np.negative(array).tobytes()


def test_an_error_is_one_line_and_the_process_goes_on():
    with TensorFlowProcess() as process:
        with pytest.raises(TensorFlowError, match="^invalid literal for int"):
            process.call(int, "x")
        with pytest.raises(TensorFlowError, match="^EOFError$"):
            process.call(raise_without_text)
        assert process.call(int, "3") == 3


def test_a_process_that_crashes_is_an_error():
    with TensorFlowProcess() as process:
        for _ in range(2):
            with pytest.raises(TensorFlowError, match="^it crashes$"):
                process.call(os.abort)


@pytest.mark.timeout(30)
def test_the_process_ends_with_the_block():
    with TensorFlowProcess() as process:
        pickle.dump((time.sleep, (60,)), process.process.stdin)
        process.process.stdin.flush()
        assert process.process.poll() is None
    assert process.process.poll() is not None


def test_a_program_with_the_shared_process_ends():
    code = "from picogpt.tensorflow_process import shared_process; print(shared_process().call(int, '3'))"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")
