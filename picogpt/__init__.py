"""Tools built around gpt2.py, encoder.py and utils.py. This package imports those files, never the reverse.

In a notebook: `import picogpt`, then `model = picogpt.load("tiny")`. A module is imported when one of its names is
first used, so that no tool waits for the modules of another.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # type checkers can't follow __getattr__; `as` tells them that a name is exported
    from typing import Any

    from picogpt.batch import generate_batch as generate_batch
    from picogpt.explain.heads import plot_attention as plot_attention
    from picogpt.explain.heads import plot_head as plot_head
    from picogpt.explain.numbers import Inside as Inside
    from picogpt.explain.numbers import Settings as Settings
    from picogpt.explain.numbers import look_inside as look_inside
    from picogpt.explain.page import page as page
    from picogpt.explain.plots import plot_lens as plot_lens
    from picogpt.explain.plots import plot_probabilities as plot_probabilities
    from picogpt.explain.plots import plot_residual as plot_residual
    from picogpt.notebook import Model as Model
    from picogpt.notebook import load as load
    from picogpt.scoring.windows import score as score
    from picogpt.tracing.recorder import Trace as Trace
    from picogpt.tracing.recorder import trace as trace

NAMES = {  # module: the names that it defines
    "picogpt.batch": ("generate_batch",),
    "picogpt.explain.heads": ("plot_attention", "plot_head"),
    "picogpt.explain.numbers": ("Inside", "Settings", "look_inside"),
    "picogpt.explain.page": ("page",),
    "picogpt.explain.plots": ("plot_lens", "plot_probabilities", "plot_residual"),
    "picogpt.notebook": ("Model", "load"),
    "picogpt.scoring.windows": ("score",),
    "picogpt.tracing.recorder": ("Trace", "trace"),
}
MODULES = {name: module for module, names in NAMES.items() for name in names}
__all__ = list(MODULES)


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
