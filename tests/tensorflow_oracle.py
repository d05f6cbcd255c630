"""What tests ask TensorFlow, by `helpers.run_tensorflow`: TensorFlow's own process calls these functions."""

from __future__ import annotations

from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray[Any, Any]]


def tensors(prefix: str) -> Tensors:
    """Return the model's tensors of a checkpoint by name."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(prefix)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if name.startswith("model/")}


def save(prefix: str, tensors: Tensors) -> None:
    """Write a checkpoint. The data file has the tensors in the order in which they are given."""
    save_slices(prefix, "", {}, tensors)


def save_slices(prefix: str, name: str, slices: Tensors, others: Tensors) -> None:
    """Write a checkpoint with a tensor in slices. "4 3 0,2:-" is the upper half of a tensor of the shape [4, 3]."""
    import tensorflow as tf

    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=[name] * len(slices) + list(others),
        shape_and_slices=[*slices, *[""] * len(others)],
        tensors=[*slices.values(), *others.values()],
    )


def save_as_bfloat16(prefix: str, bfloat16: Tensors, others: Tensors) -> None:
    import tensorflow as tf

    save(prefix, {name: tf.cast(array, tf.bfloat16) for name, array in bfloat16.items()} | others)


def save_version_1(prefix: str, tensors: Tensors) -> None:
    import tensorflow as tf

    tf.raw_ops.Save(filename=prefix, tensor_names=list(tensors), data=list(tensors.values()))


def merge(prefixes: list[str], prefix: str) -> None:
    """Turn several checkpoints into one with several data files."""
    import tensorflow as tf

    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=prefixes, destination_prefix=prefix)


def save_partitioned(prefix: str, tensors: Tensors, n: int, axis: int) -> None:
    """Let TensorFlow 1 cut every variable into n pieces along an axis, and write a checkpoint of them."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        for name, array in tensors.items():

            def piece(shape, dtype, partition_info, array=array):
                at = partition_info.var_offset
                return array[tuple(slice(start, start + length) for start, length in zip(at, shape))]

            partitioner = v1.fixed_size_partitioner(n, axis)
            v1.get_variable(name, array.shape, array.dtype, piece, partitioner=partitioner, use_resource=False)
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, prefix, write_meta_graph=False, write_state=False)


def restore_by_graph(prefix: str, name: str) -> np.ndarray[Any, Any]:
    """Import a .meta file into TensorFlow 1, restore its checkpoint, and return the value of a variable."""
    import tensorflow as tf

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.train.import_meta_graph(f"{prefix}.meta").restore(session, prefix)
        return session.run(f"{name}:0")
