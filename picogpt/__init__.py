"""The tools built around gpt2.py, encoder.py and utils.py. This package imports those files, never the reverse.

In a notebook: `from picogpt import look_inside, plot_lens`. A name's module is imported when the name is first used, so
no tool waits for the libraries of another.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from picogpt.explain.numbers import Inside, Settings, look_inside
    from picogpt.explain.page import page
    from picogpt.explain.plots import plot_attention, plot_lens, plot_probabilities, plot_residual

MODULES = {
    "Inside": "picogpt.explain.numbers",
    "Settings": "picogpt.explain.numbers",
    "look_inside": "picogpt.explain.numbers",
    "page": "picogpt.explain.page",
    "plot_attention": "picogpt.explain.plots",
    "plot_lens": "picogpt.explain.plots",
    "plot_probabilities": "picogpt.explain.plots",
    "plot_residual": "picogpt.explain.plots",
}
__all__ = [
    "Inside",
    "Settings",
    "look_inside",
    "page",
    "plot_attention",
    "plot_lens",
    "plot_probabilities",
    "plot_residual",
]


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
