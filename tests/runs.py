"""A run small enough for tests."""

from configs import quickstart

STEPS = 5


def tiny(**changes):
  config = quickstart.get_config('debug')
  config.steps = STEPS
  config.log_every = 1
  config.model.drop_path = 0.5
  config.update(changes)
  return config
