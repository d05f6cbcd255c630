"""What is built around gpt2.py, encoder.py and utils.py. It imports them, never the other way round."""
