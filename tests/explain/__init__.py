"""The tests of picogpt/explain, and what they share. The fixtures are in conftest.py."""

from helpers import ROOT

MODELS = ROOT / "models"
PROMPT = "ROMEO:\nWhat light through yonder window breaks?"
ODD_PROMPT = '</script><script>alert(1)</script> $x^2$ \\n 中文 😀 שלום \u202e\u0301 \x1b[31m\t\x00 "&amp;"'
