"""Ranges of the numbers in a config, where no one else looks at them."""

import math

from esvit_jax.errors import UserError

POSITIVE = 1e-12
BELOW_ONE = 1 - 1e-9
COUNT = 2**31 - 1  # steps are counted in 32 bits

# field -> least and largest value
LIMITS = {
  'seed': (0, 2**32 - 1),
  'batch_size': (1, COUNT),
  'epochs': (1, COUNT),
  'steps': (0, COUNT),
  'accumulate': (1, COUNT),
  'log_every': (1, COUNT),
  'max_bad_steps': (1, COUNT),
  'max_rollbacks': (0, COUNT),
  'data.workers': (0, math.inf),
  'data.max_unreadable': (0, 1),
  'data.max_pixels': (1, math.inf),
  'data.labels_per_class': (0, math.inf),
  'head.out_dim': (2, math.inf),
  'head.hidden': (1, math.inf),
  'head.bottleneck': (1, math.inf),
  'loss.region_weight': (0, 1),
  'loss.student_temp': (POSITIVE, math.inf),
  'loss.teacher_temp': (POSITIVE, math.inf),
  'loss.teacher_temp_warmup': (POSITIVE, math.inf),
  'loss.teacher_temp_warmup_epochs': (0, math.inf),
  'loss.center_momentum': (0, 1),
  'ema.start': (0, 1),
  'ema.end': (0, 1),
  'data.channels': (1, math.inf),
  # Of pixels in 0..1: 123.7 is the mean of others.
  'data.mean': (0, 1),
  'data.std': (POSITIVE, 1),
  'optim.b1': (0, BELOW_ONE),
  'optim.b2': (0, BELOW_ONE),
  'optim.momentum': (0, BELOW_ONE),
  'optim.weight_decay': (0, math.inf),
  'optim.weight_decay_end': (0, math.inf),
  'optim.lr': (0, math.inf),
  'optim.min_lr': (0, math.inf),
  'optim.warmup_epochs': (0, math.inf),
  'optim.clip': (0, math.inf),
  'optim.freeze_last_layer_epochs': (0, math.inf),
  'init.epoch': (0, math.inf),
  'eval.every_epochs': (0, math.inf),
  'eval.batch_size': (1, math.inf),
  'eval.size': (1, math.inf),
  'eval.train_images': (0, math.inf),
  'save.every_epochs': (0, math.inf),
  'save.keep': (1, math.inf),
  'save.keep_every_epochs': (0, math.inf),
}


def check(config) -> None:
  """Raises UserError for a number that no run can use."""
  for field, (least, largest) in LIMITS.items():
    value = config
    for name in field.split('.'):
      value = value.get(name) if value is not None else None
    values = value if isinstance(value, tuple | list) else (value,)
    if value is None or all(
      least <= x <= largest and math.isfinite(x) for x in values
    ):
      continue
    if least == POSITIVE:
      rule = 'more than 0' + (f', at most {largest}' if largest == 1 else '')
    elif largest == math.inf:
      rule = f'{least} or more'
    elif largest == BELOW_ONE:
      rule = f'{least} to below 1'
    else:
      rule = f'{least} to {largest}'
    if field in ('data.mean', 'data.std'):
      rule += ', since pixels are in 0..1'
    raise UserError(f'config.{field} is {value}: use {rule}')
