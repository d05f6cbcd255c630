"""Train a GPT-2 of any shape from a text file, or fine-tune an existing model on it: `python -m picogpt train`.

    text       the text: its two parts, their tokens, a tokenizer of its own, and random windows of it
    work       the work folder of a run: its settings, its state, and the history of its evaluations
    loop       the training itself
    report     what a run says on stderr while it trains, and the picture of its losses
    command    the command line

The gradients come from picogpt/jax_model.py.
"""
