"""What moves the weights of a training, and how far."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from melanoma.model.keras_settings import keras
from melanoma.training.config import TrainConfig


class _HeadFirst(keras.optimizers.schedules.LearningRateSchedule):
    """One rate while only the head learns, then the schedule of the rest."""

    def __init__(self, head_steps: int, head_rate: float, rest: keras.optimizers.schedules.LearningRateSchedule):
        self.head_steps, self.head_rate, self.rest = head_steps, head_rate, rest

    def __call__(self, step: Any) -> Any:
        later = tf.maximum(tf.cast(step, tf.int32) - self.head_steps, 0)
        return tf.where(tf.cast(step, tf.int32) < self.head_steps, self.head_rate, self.rest(later))


def make_optimizer(config: TrainConfig, steps_per_epoch: int, shares: Sequence[float] | None = None) -> keras.Optimizer:
    """The optimizer of a training, with the schedule of its learning rate.

    Args:
        config: The training.
        steps_per_epoch: The schedule is counted in steps, so that a resumed run is at the right rate.
        shares: What share of the learning rate each variable has that it will be built for, in their order; None: all
            have it whole.

    Returns:
        The optimizer, not built yet.
    """
    head_steps = min(config.network.frozen_epochs, config.epochs - 1) * steps_per_epoch
    total = config.epochs * steps_per_epoch - head_steps
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)
    highest = config.network.fine_tuning_rate or config.learning_rate
    rate = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=highest / max(1, warmup) if warmup else highest,
        decay_steps=total - warmup,
        alpha=1.0 if config.schedule == "constant" else 0.0,  # the share of the rate that is left at the end
        warmup_target=highest if warmup else None,
        warmup_steps=warmup,
    )
    if head_steps:
        rate = _HeadFirst(head_steps, config.learning_rate, rate)
    kind = keras.optimizers.SGD if config.optimizer == "sgd" else keras.optimizers.AdamW
    decay = config.weight_decay or None if config.optimizer == "sgd" else config.weight_decay
    return (_by_depth(kind, shares) if shares else kind)(rate, weight_decay=decay)


def _by_depth(kind: type[keras.Optimizer], shares: Sequence[float]) -> type[keras.Optimizer]:
    """The optimizer, each of whose variables has its own share of the learning rate (Howard and Ruder 2018,
    arXiv:1801.06146, section 3.2)."""

    class ByDepth(kind):
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            super().update_step(gradient, variable, learning_rate * shares[self._get_variable_index(variable)])

    return ByDepth
