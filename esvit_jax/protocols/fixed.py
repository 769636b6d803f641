"""Evaluators of fixed pooled features: k-NN, ridge regression."""

from esvit_jax import evals
from esvit_jax.protocols.subject import Result, prepare, require_test


def protocol(name: str):
  """An evaluator of evals.EVALS, as a protocol; figures in percent."""

  def run(config, directory: str, out) -> Result:
    del out
    subject = prepare(config, directory)
    require_test(subject)
    who = {'x': subject.features(lambda f: f.view)}
    train, train_y = evals.extract(who, subject.batches(subject.train))
    test, test_y = evals.extract(who, subject.batches(subject.test))
    figures = evals.EVALS[name](train['x'], train_y, test['x'], test_y)
    return subject.result(figures)

  return run
