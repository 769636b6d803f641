"""Evaluators of fixed pooled features: k-NN, ridge regression."""

from esvit_jax import evals
from esvit_jax.errors import UserError
from esvit_jax.protocols import baselines
from esvit_jax.protocols.setup import Result, prepare, require_test


def protocol(name: str):
  """An evaluator of evals.EVALS, as a protocol; figures in percent."""

  def run(config, directory: str, out) -> Result:
    setup = prepare(config, directory, out)
    require_test(setup)
    if setup.test.multi_label:
      raise UserError(
        f'{name} needs one label per image, and {setup.test.name} has several: '
        'use configs/eval/probe.py with --config.probe.metric=map_11'
      )
    networks = {setup.network: setup.features(lambda f: f.view)}
    train, test = (
      evals.extract(networks, setup.batches(source))
      for source in (setup.train, setup.test)
    )
    (figures,) = evals.figures([name], train, test).values()
    figures |= baselines.chance(test.labels) | baselines.of_run(setup, name)
    return setup.result(figures)

  return run
