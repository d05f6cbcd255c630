"""Each part of the model in TensorFlow. Only TensorFlow's own process (tensorflow_process.py) imports this module.

Every function takes the arguments of a case (cases.py) and returns an array of the same dtype.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

Array = np.ndarray[Any, np.dtype[Any]]
Params = dict[str, Any]


def gelu(x: Array) -> Any:
    """Compute GELU. In float64 it takes TensorFlow's tanh, because tf.nn.gelu always rounds 0.044715 to float32."""
    if x.dtype == np.float32:
        return tf.nn.gelu(x, approximate=True).numpy()
    return (0.5 * x * (1 + tf.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))).numpy()


def softmax(x: Array) -> Any:
    return tf.nn.softmax(x).numpy()


def layer_norm(x: Array, g: Array, b: Array) -> Any:
    """Normalize with tf.nn.moments: tf.nn.batch_normalization scales before it subtracts, and so loses digits."""
    mean, variance = tf.nn.moments(tf.constant(x), -1, keepdims=True)
    return ((x - mean) / tf.sqrt(variance + 1e-5) * g + b).numpy()


def linear(x: Array, w: Array, b: Array) -> Any:
    return tf.nn.bias_add(tf.matmul(x, w), b).numpy()


def ffn(x: Array, c_fc: Params, c_proj: Params) -> Any:
    return linear(gelu(linear(x, **c_fc)), **c_proj)


def attention(q: Array, k: Array, v: Array, mask: Array | None) -> Any:
    scores = tf.matmul(q, k, transpose_b=True) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = tf.where(mask, scores, -math.inf)
    return tf.matmul(tf.nn.softmax(scores), v).numpy()


def mha(x: Array, attn: Params, n_head: int) -> Any:
    """Combine TensorFlow's operations: Keras's MultiHeadAttention rounds 1 / √d_head to float32 even in float64."""
    n_seq, n_embd = x.shape
    heads = tf.reshape(linear(x, **attn["c_attn"]), (n_seq, 3, n_head, n_embd // n_head))
    q, k, v = tf.unstack(tf.transpose(heads, (1, 2, 0, 3)))
    visible = tf.linalg.band_part(tf.ones((n_seq, n_seq), tf.bool), -1, 0)
    merged = tf.transpose(attention(q, k, v, visible), (1, 0, 2))
    return linear(tf.reshape(merged, (n_seq, n_embd)), **attn["c_proj"])


def transformer_block(x: Array, block: Params, n_head: int) -> Any:
    x = x + mha(layer_norm(x, **block["ln_1"]), block["attn"], n_head)
    return x + ffn(layer_norm(x, **block["ln_2"]), **block["mlp"])


def gpt2(ids: Array, params: Params, n_head: int) -> Any:
    x = tf.gather(params["wte"], ids) + params["wpe"][: len(ids)]
    for block in params["blocks"]:
        x = transformer_block(x, block, n_head)
    return tf.matmul(layer_norm(x, **params["ln_f"]), params["wte"], transpose_b=True).numpy()
