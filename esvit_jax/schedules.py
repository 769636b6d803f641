"""Schedules: a value for each step of a run."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from esvit_jax.errors import UserError

Schedule = Callable[[jax.Array], jax.Array]


def cosine(
  base: float,
  final: float,
  total_steps: int,
  warmup_steps: int = 0,
  start: float = 0.0,
  top_twice: bool = True,
) -> Schedule:
  """Linear warm-up from `start`, half a cosine from `base` towards `final`.

  As published by EsViT, DINO and SiT, `base` comes twice: the warm-up ends on
  it, the cosine starts on it. With MAE and MoCo-v3 it comes once, the warm-up
  being start + (base - start) step / warmup_steps. `final` is approached,
  never reached. The last value holds on.

  Args:
    base: value at the top.
    final: value the cosine heads for.
    total_steps: steps of the run, warm-up included.
    warmup_steps: steps before the cosine.
    start: value of step 0, if there is a warm-up.
    top_twice: whether the last step of the warm-up is at `base`.

  Returns:
    step -> f32[].

  Raises:
    UserError: the warm-up is longer than the run.
  """
  if warmup_steps > total_steps:
    raise UserError(
      f'warm-up of {warmup_steps} steps in a run of {total_steps}: shorten '
      'the warm-up or train for longer'
    )
  cosine_steps = max(total_steps - warmup_steps, 1)
  rise = max(warmup_steps - 1 if top_twice else warmup_steps, 1)

  def schedule(step):
    step = jnp.clip(step, 0, max(total_steps - 1, 0))
    rising = start + (base - start) * step / rise
    phase = jnp.pi * (step - warmup_steps) / cosine_steps
    falling = final + 0.5 * (base - final) * (1 + jnp.cos(phase))
    return jnp.where(step < warmup_steps, rising, falling)

  return schedule


def falling(
  base: float,
  total_steps: int,
  warmup_steps: int = 0,
  start: float = 0.0,
  drops: Sequence[float] = (),
) -> Schedule:
  """A straight line from `base` to 0, or a tenth of it at each drop.

  A warm-up multiplies it by a factor that rises linearly from start / base, as
  in the recipes of segmentation and detection.

  Args:
    base: value at the top.
    total_steps: steps of the run.
    warmup_steps: of these the first.
    start: value of step 0, if there is a warm-up.
    drops: shares of the run after which it falls to a tenth; none: the line.

  Returns:
    step -> f32[].
  """

  def schedule(step):
    step = jnp.clip(step, 0, total_steps)
    value = base * (1 - step / total_steps)
    if drops:
      passed = sum(step >= round(x * total_steps) for x in drops)
      value = base * 0.1**passed
    left = jnp.clip(1 - step / max(warmup_steps, 1), 0, 1)
    warm = 1 - left * (1 - start / base) if warmup_steps and base else 1.0
    return value * warm

  return schedule


def teacher_temperature(
  warm: float,
  final: float,
  warm_epochs: int,
  steps_per_epoch: float,
  total_epochs: int,
) -> Schedule:
  """Linear in whole epochs from `warm` to `final`, then constant.

  Args:
    warm: temperature of the first epoch.
    final: temperature of epoch `warm_epochs - 1` and all later ones.
    warm_epochs: epochs that the rise takes.
    steps_per_epoch: steps.
    total_epochs: epochs of the run.

  Returns:
    step -> f32[].

  Raises:
    UserError: the rise is longer than the run.
  """
  if warm_epochs > total_epochs:
    raise UserError(
      f'teacher temperature warms up for {warm_epochs} epochs in a run of '
      f'{total_epochs}: shorten it or train for longer'
    )

  def schedule(step):
    epoch = step // steps_per_epoch
    rising = warm + (final - warm) * epoch / max(warm_epochs - 1, 1)
    return jnp.where(epoch < warm_epochs, rising, final)

  return schedule
