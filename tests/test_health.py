"""Verdicts on runs that are well, early, or ill in a known way."""

import math
import re

import numpy as np
import pytest

from configs import esvit as esvit_recipe
from esvit_jax.workdir import health

K = 256
CHANCE = math.log(K)


def history(reports=30, warmup=5, **signals):
  """Metrics of a run; a signal is a number or a function of 0..1."""
  healthy = {
    'loss': lambda t: CHANCE - 4 * t,
    'teacher_entropy': lambda t: 2.0 - t,
    'teacher_kl_uniform': 2.0,
    'feature_spread': lambda t: 0.3 + 0.5 * t,
    'feature_rank': 20.0,
    'distinct_matches': 0.5,
    'skipped': 0.0,
  }
  lines = [{'step': 0, 'knn/raw_pixels': 81.0}]
  for i in range(reports):
    t = i / max(reports - 1, 1)
    line = {
      f'train/{name}': value(t) if callable(value) else value
      for name, value in {**healthy, **signals}.items()
      if value is not None
    }
    lr = min(1, (i + 1) / warmup) - 0.01 * max(0, i - warmup)
    lines.append({'step': 50 * (i + 1), 'train/lr': lr, **line})
  return lines


def names(lines):
  return [line.partition(':')[0] for line in lines]


def verdict(**settings):
  return names(health.verdict(history(**settings), CHANCE))


SICK = {
  'one prototype': (
    {'teacher_entropy': 0.01, 'teacher_kl_uniform': CHANCE - 0.05},
    'collapsing to one point',
  ),
  'one target': (
    {'teacher_entropy': 1.0, 'teacher_kl_uniform': CHANCE - 1.0},
    'collapsing to one point',
  ),
  'one feature': ({'feature_spread': 0.01}, 'collapsing to one point'),
  'one dimension': ({'feature_rank': 1.1}, 'collapsing to one point'),
  'all prototypes': (
    {'teacher_entropy': CHANCE - 1e-3, 'teacher_kl_uniform': 1e-3},
    'collapsing to uniform',
  ),
  'growing loss': ({'loss': lambda t: CHANCE * (1 + t)}, 'diverging'),
  'loss of chance': ({'loss': CHANCE}, 'stuck at chance'),
  'one region': ({'distinct_matches': 1 / 16}, 'dead regions'),
  'nan': ({'skipped': 1.0, 'loss': None}, 'not finite'),
}


def test_a_run_that_learns_is_healthy_and_says_its_figures():
  (line,) = health.verdict(history(), CHANCE)
  assert line.startswith('healthy: ')
  assert f'chance {CHANCE:.3g}' in line
  # ln 256 - 2 - 1 nats at the end, 1.07 in the middle of the last five.
  groups = math.exp(CHANCE - 2.0 - (2.0 - 27 / 29))
  assert f'{groups:.1f} groups' in line


@pytest.mark.parametrize('signals, name', SICK.values(), ids=SICK)
def test_every_illness_has_its_name(signals, name):
  if signals.get('loss', 0) is None:
    lines = history(skipped=1.0)
    for line in lines[1:]:
      line['train/loss'] = None  # as metrics.jsonl writes NaN
  else:
    lines = history(**signals)
  assert names(health.verdict(lines, CHANCE)) == [name]


@pytest.mark.parametrize('signals, name', SICK.values(), ids=SICK)
def test_a_cure_is_named_in_fields_that_exist(signals, name):
  """Every `section.field` that a verdict mentions is one of the config."""
  signals = {k: v for k, v in signals.items() if v is not None}
  config = esvit_recipe.recipe()
  (line,) = health.verdict(history(**signals), CHANCE)
  seen, _, advice = line.partition(';')
  assert re.search(r'\d', seen)
  fields = re.findall(r'\b[a-z]+\.[a-z_]+', advice)
  assert fields
  for field in fields:
    section, _, key = field.partition('.')
    assert key in config[section], field


def test_nothing_is_said_of_nothing():
  assert health.verdict([], CHANCE) == []
  assert health.verdict([{'step': 0, 'knn/raw_pixels': 81.0}], CHANCE) == []


def test_a_few_reports_are_too_early():
  for signals, _ in SICK.values():
    if not signals.get('skipped'):
      assert verdict(reports=4, **signals) == ['too early to say']


@pytest.mark.parametrize('prototypes', [256, 65536])
def test_no_alarm_in_a_long_warmup_near_chance(prototypes):
  """Flat targets of a fresh network are normal while the rate still rises."""
  chance = math.log(prototypes)
  lines = history(
    reports=40,
    warmup=500,
    loss=lambda t: chance * (1.02 - 0.03 * t),
    teacher_entropy=lambda t: 0.995 * chance,
    teacher_kl_uniform=lambda t: 0.001 + 0.004 * t,
    feature_spread=lambda t: 0.04 + 0.1 * t,
    distinct_matches=lambda t: 0.1 + 0.3 * t,
  )
  for count in range(1, len(lines) + 1):
    said = names(health.verdict(lines[:count], chance))
    assert said in ([], ['too early to say']), count


def test_a_fall_is_seen_even_in_warmup():
  fallen = {
    'feature_spread': lambda t: 0.4 if t < 0.5 else 0.01,
    'distinct_matches': lambda t: 0.5 if t < 0.5 else 0.05,
  }
  said = verdict(reports=30, warmup=500, **fallen)
  assert said == ['collapsing to one point', 'dead regions']


def test_a_wandering_centre_is_no_collapse():
  """Entropy and KL may swing against each other: what images tell counts."""
  swing = lambda t: 1.5 + 1.4 * math.sin(40 * t)  # noqa: E731
  said = verdict(
    teacher_entropy=swing, teacher_kl_uniform=lambda t: CHANCE - 1 - swing(t)
  )
  assert said == ['healthy']


def test_a_loss_that_starts_above_chance_and_falls_is_no_divergence():
  assert verdict(loss=lambda t: CHANCE * (1.5 - 0.9 * t)) == ['healthy']
  assert 'diverging' in verdict(loss=lambda t: CHANCE * (0.5 + t))


@pytest.mark.parametrize(
  'loss',
  [
    lambda t: 0.001 + 0.02 * math.sin(97 * t),  # about zero
    lambda t: -3.0 + 0.1 * math.sin(97 * t),
    lambda t: -1.0 - 2.0 * t,
    lambda t: 1e-3 * math.exp(-9 * t) + 1e-6 * math.sin(97 * t),
    lambda t: 0.0,
    lambda t: 2.0 - t if t < 0.5 else 1.5 + 0.004 * t,  # hardly rises
  ],
)
def test_losses_about_zero_or_below_do_not_diverge(loss):
  for reports in (12, 30, 100):
    lines = history(reports=reports, loss=loss)
    for count in range(2, len(lines) + 1):
      assert 'diverging' not in names(health.verdict(lines[:count], None))


@pytest.mark.parametrize(
  'loss',
  [
    lambda t: 2 - 2 * t if t < 0.5 else 1 + 8 * (t - 0.5),
    lambda t: -3 + 2 * t,
    lambda t: -1 - 2 * t if t < 0.6 else -2.2 + 20 * (t - 0.6),
    lambda t: 0.01 * math.exp(6 * t),
  ],
)
def test_losses_that_lose_what_they_had_gained_diverge(loss):
  assert 'diverging' in names(health.verdict(history(loss=loss), None))


def test_noise_is_no_divergence():
  rng = np.random.default_rng(0)
  lines = history(reports=400, loss=lambda t: rng.normal() / 10)
  for count in range(2, len(lines) + 1):
    assert 'diverging' not in names(health.verdict(lines[:count], None))


def test_no_gradient_is_stuck():
  assert verdict(grad_norm=0.0) == ['stuck']
  assert verdict(grad_norm=1e-6) == ['healthy']


def test_features_worse_than_a_baseline_are_not_healthy_alone():
  lines = history()
  lines[0] |= {'knn/random_init': 70.4, 'linear/random_init': 60.0}
  lines[-1] |= {'knn/teacher': 75.0, 'knn/student': 60.0}
  said = health.verdict(lines, CHANCE)
  assert names(said) == ['worse than pixels', 'healthy']
  assert 'k-NN 75.0 % against 81.0 %' in said[0]
  lines[-1] |= {'knn/teacher': 69.0, 'linear/teacher': 61.0}
  said = health.verdict(lines, CHANCE)
  assert names(said) == ['worse than untrained', 'worse than pixels', 'healthy']
  lines[-1] |= {'knn/teacher': 82.0}
  assert names(health.verdict(lines, CHANCE)) == ['healthy']


def test_one_lost_step_is_forgotten():
  lines = history(reports=40)
  lines[10] |= {'train/skipped': 1.0, 'train/loss': None}
  assert names(health.verdict(lines[:12], CHANCE)) == ['not finite']
  assert 'step 500' in health.verdict(lines[:12], CHANCE)[0]
  assert names(health.verdict(lines, CHANCE)) == ['healthy']


def test_runs_without_regions_or_ranks_are_judged_too():
  missing = {'distinct_matches': None, 'feature_rank': None}
  assert verdict(**missing) == ['healthy']
  assert verdict(feature_spread=0.01, **missing) == ['collapsing to one point']


def test_rank_of_known_matrices():
  rng = np.random.default_rng(0)
  q, _ = np.linalg.qr(rng.standard_normal((64, 8)))
  assert health.rankme(q) == pytest.approx(8)  # 8 equal singular values
  line = rng.standard_normal((64, 1)) * rng.standard_normal((1, 8))
  assert health.rankme(line) == pytest.approx(1, abs=1e-6)
  two = q[:, :2] * np.array([3.0, 1.0])
  expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
  assert health.rankme(two) == pytest.approx(expected)
  assert health.rankme(7 * two) == pytest.approx(expected)
  assert math.isfinite(health.rankme(np.zeros((4, 3))))
