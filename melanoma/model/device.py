"""On which device TensorFlow computes."""

import contextlib


def use_no_gpu() -> None:
    """Keep TensorFlow of this process off the GPUs, which are for the processes that Ray gives one.

    Ray shows a process without a GPU of its own all of its node's. Call this before TensorFlow computes anything: later
    it changes nothing, as in a notebook that predicts before it trains.
    """
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # TensorFlow computes already
        tf.config.set_visible_devices([], "GPU")
