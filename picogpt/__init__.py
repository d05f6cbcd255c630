"""What is built around gpt2.py, encoder.py and utils.py. It imports them, never the other way round.

For notebooks, `from picogpt import look_inside, plot_lens` and so on: what a model computes for a text, as arrays and
as axes of matplotlib. A name is imported from its module when it is first used: no tool waits for another one's parts.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from picogpt.explain_numbers import Inside, Settings, look_inside
    from picogpt.explain_page import page
    from picogpt.explain_plots import plot_attention, plot_lens, plot_probabilities, plot_residual

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
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "page" if name == "page" else "plots" if name.startswith("plot_") else "numbers"
    return getattr(import_module(f"{__name__}.explain_{home}"), name)


def __dir__() -> list[str]:
    return __all__
