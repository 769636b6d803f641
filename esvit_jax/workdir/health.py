"""Is it learning? Signs of collapse and divergence, and what to try.

With K prototypes, ln K is the loss of a student that knows nothing of the
teacher, and these say what the teacher tells of one batch's images:

  teacher_entropy      of the targets; 0: one prototype each, ln K: all alike
  teacher_kl_uniform   of the mean target; ln K: one prototype for all images
  ln K - teacher_kl_uniform - teacher_entropy
                       what the targets tell of which image they belong to:
                       exp of it is the number of groups they tell apart. Both
                       kinds of collapse, to one prototype and to all of them,
                       take it to 1, and a wandering centre leaves it alone
  feature_spread       1: features fill the sphere, 0: all are one point
  feature_rank         dimensions that features use
  distinct_matches     share of one view's regions that the other's match
"""

import math
from typing import NamedTuple

import numpy as np

from esvit_jax.workdir.metrics import SCORES, last

RECENT = 5  # reports that a verdict looks at, by their median

# Below these something is wrong: at once, if it was thrice as good before,
# else once the learning rate is past its warm-up.
GROUPS = 1.4
SPREAD = 0.05
RANK = 1.5
DISTINCT = 0.15
# Below this something is wrong at any time.
IN_USE = 1.5


def rankme(features: np.ndarray) -> float:
  """Effective rank: exp of the entropy of the singular values' shares.

  RankMe (arXiv 2210.02885). A few hundred images are enough.

  Args:
    features: f32[N, D].

  Returns:
    Between 1 and min(N, D).
  """
  values = np.linalg.svd(np.asarray(features, np.float64), compute_uv=False)
  share = values / max(values.sum(), 1e-12) + 1e-12
  return float(np.exp(-(share * np.log(share)).sum()))


class Signal(NamedTuple):
  """One metric: its recent median and the best it has been."""

  now: float
  best: float

  def fell_below(self, least: float, settled: bool) -> bool:
    """Too low, and not just because the run has only begun."""
    return self.now < least and (settled or self.best > 3 * least)


def verdict(history: list[dict], chance: float | None) -> list[str]:
  """What a run's reports mean, the gravest first.

  Args:
    history: lines of metrics.jsonl, oldest first.
    chance: the loss of a network that knows nothing, ln K with prototypes;
      None where there is no such number.

  Returns:
    Lines such as 'diverging: what is seen; what to try'. What stands before
    the colon names the finding and stays the same from report to report:
    'not finite', 'stuck', 'diverging', 'collapsing to one point', 'collapsing
    to uniform', 'dead regions', 'stuck at chance', 'worse than untrained' and
    'worse than pixels', else or besides the last two one of 'healthy' and 'too
    early to say'. Empty where nothing was reported.
  """
  reports = [line for line in history if 'train/loss' in line]
  if not reports:
    return []
  settled = _past_warmup(reports)
  lines = _not_finite(reports)
  if len(reports) >= RECENT:
    lines += _stuck(reports)
    lines += _diverging(reports, chance)
    lines += _collapsing(reports, chance, settled)
    lines += _dead_regions(reports, settled)
    lines += _at_chance(reports, chance) if settled and not lines else []
  return _below_baselines(history) + (
    lines or [_well(reports, chance, settled)]
  )


def _not_finite(reports) -> list[str]:
  # A skipped step is always reported, whatever the interval.
  recent = reports[-2 * RECENT :]
  skipped = [x['step'] for x in recent if x.get('train/skipped')]
  if not skipped:
    return []
  return [
    f'not finite: step {skipped[-1]} had no finite loss or gradient and was '
    f'skipped ({len(skipped)} of the last {len(recent)} reports); if it goes '
    'on, lower optim.lr or set model.dtype=float32'
  ]


def _stuck(reports) -> list[str]:
  norm = _signal(reports, 'grad_norm')
  if not norm or norm.now > 0:
    return []
  return [
    'stuck: the norm of the gradient is 0, so nothing is learned; check '
    'optim.frozen, and that the loss can tell the images apart'
  ]


def _diverging(reports, chance) -> list[str]:
  losses = _values(reports, 'loss')
  if len(losses) < 2 * RECENT:
    return []
  first, recent = losses[:RECENT], losses[-RECENT:]
  past = losses[-2 * RECENT : -RECENT]
  now, before = np.median(recent), np.median(past)
  if chance is not None:
    diverges = now >= max(1.1 * chance, before)
  else:
    # A loss may be negative or near zero: compare its rise with how far it
    # had fallen, and with its noise.
    earlier = losses[-10 * RECENT : -RECENT]
    noise = np.median(np.abs(np.diff(earlier)))
    start, best = np.median(first), _lowest(losses)
    diverges = (
      now - before > max(4 * noise, 0.05 * (max(start, before) - best))
      and now > best + 0.5 * (start - best)
      and now - before > 1e-3 * max(abs(start), abs(best))
    )
  if not diverges:
    return []
  above = '' if chance is None else f', above chance ({chance:.3g})'
  return [
    f'diverging: the loss has grown from {before:.3g} to {now:.3g}{above}; '
    'lower optim.lr, or raise optim.warmup_epochs'
  ]


def _lowest(losses) -> float:
  """The least median of RECENT reports in a row."""
  windows = np.lib.stride_tricks.sliding_window_view(losses, RECENT)
  return float(np.median(windows, 1).min())


def _collapsing(reports, chance, settled) -> list[str]:
  fill = _signal(reports, 'feature_spread')
  rank = _signal(reports, 'feature_rank')
  flat = (fill and fill.fell_below(SPREAD, settled)) or (
    rank and rank.fell_below(RANK, settled)
  )
  entropy, kl, groups = _targets(reports, chance)
  if groups:
    in_use = math.exp(chance - kl.now)
    same = groups.fell_below(GROUPS, settled or flat)
    if same and entropy.now > 0.9 * chance:
      return [
        'collapsing to uniform: the teacher gives all prototypes nearly the '
        f'same probability (entropy {entropy.now:.3g} of {chance:.3g}); lower '
        'loss.teacher_temp or optim.lr, or raise '
        'loss.teacher_temp_warmup_epochs'
      ]
    if same or in_use < IN_USE:
      return [
        'collapsing to one point: the teacher gives nearly the same target to '
        f'all images ({in_use:.1f} of {math.exp(chance):.0f} prototypes in '
        f'use, {groups.now:.1f} groups told apart); lower optim.lr or '
        'loss.center_momentum, or raise loss.teacher_temp'
      ]
  if flat:
    seen = [f'spread {fill.now:.2g} of 1'] if fill else []
    seen += [f'effective rank {rank.now:.1f}'] if rank else []
    return [
      'collapsing to one point: the features of all images look alike '
      f'({", ".join(seen)}); lower optim.lr, or raise optim.warmup_epochs or '
      'batch_size'
    ]
  return []


def _dead_regions(reports, settled) -> list[str]:
  distinct = _signal(reports, 'distinct_matches')
  if not distinct or not distinct.fell_below(DISTINCT, settled):
    return []
  return [
    f'dead regions: only {100 * distinct.now:.0f} % of the regions are matched '
    'by any other, so regions look alike; train with loss.region_weight=0 '
    'first and go on from there with init.checkpoint, or lower optim.lr'
  ]


def _at_chance(reports, chance) -> list[str]:
  loss = _signal(reports, 'loss')
  if chance is None or not loss or loss.now < 0.98 * chance:
    return []
  targets = ', or lower loss.teacher_temp'
  return [
    f'stuck at chance: the loss is {loss.now:.3g}, knowing nothing gives '
    f'{chance:.3g}; raise batch_size or optim.lr'
    + (targets if _signal(reports, 'teacher_entropy') else '')
  ]


def _below_baselines(history) -> list[str]:
  """Scores below those of the untrained network, or of raw pixels."""
  worse = {'random_init': [], 'raw_pixels': []}
  for kind, title in SCORES.items():
    scores = [last(history, f'{kind}/{x}') for x in ('teacher', 'student')]
    scores = [x for x in scores if x is not None]
    for baseline, below in worse.items():
      score = last(history, f'{kind}/{baseline}')
      if scores and score is not None and max(scores) < score:
        below.append(f'{title} {max(scores):.1f} % against {score:.1f} %')
  advice = {
    'random_init': 'worse than untrained: so far the untrained network has '
    'better features ({}); if that stays, train for longer, raise optim.lr or '
    'choose gentler views',
    'raw_pixels': 'worse than pixels: so far raw pixels are better features '
    '({}); train for longer, or judge on images that vary in position and '
    'background',
  }
  return [
    advice[name].format('; '.join(below))
    for name, below in worse.items()
    if below
  ]


def _well(reports, chance, settled) -> str:
  loss = _signal(reports, 'loss')
  said = [f'loss {loss.now:.3g}'] if loss else []
  if said and chance is not None:
    said[0] += f', chance {chance:.3g}'
  *_, groups = _targets(reports, chance)
  if groups:
    said.append(f'targets tell {groups.now:.1f} groups of images apart')
  if fill := _signal(reports, 'feature_spread'):
    said.append(f'feature spread {fill.now:.2f} of 1')
  if rank := _signal(reports, 'feature_rank'):
    said.append(f'effective rank {rank.now:.0f}')
  if distinct := _signal(reports, 'distinct_matches'):
    said.append(f'{100 * distinct.now:.0f} % of regions matched')
  still_high = not loss or (chance is not None and loss.now > 0.9 * chance)
  early = len(reports) < RECENT or (still_high and not settled)
  name = 'too early to say' if early else 'healthy'
  return f'{name}: {"; ".join(said) or "no finite loss yet"}'


def recent(reports: list[dict], name: str) -> float | None:
  """The median of a metric's last RECENT values, as a verdict gives it."""
  signal = _signal(reports, name)
  return signal.now if signal else None


def _past_warmup(reports) -> bool:
  """Whether the learning rate has begun to fall."""
  rates = _values(reports, 'lr')
  return bool(len(rates)) and rates[-1] < max(rates)


def _targets(reports, chance) -> tuple[Signal | None, ...]:
  """Entropy, KL of the mean from uniform, and groups told apart (1 or more)."""
  entropy = _signal(reports, 'teacher_entropy')
  kl = _signal(reports, 'teacher_kl_uniform')
  if chance is None or not entropy or not kl:
    return None, None, None
  told = [
    math.exp(max(chance - k - h, 0))
    for k, h in zip(
      _values(reports, 'teacher_kl_uniform'),
      _values(reports, 'teacher_entropy'),
    )
  ]
  return entropy, kl, _track(told)


def _signal(reports, name: str) -> Signal | None:
  return _track(_values(reports, name))


def _track(values) -> Signal | None:
  values = list(values)
  if not values:
    return None
  return Signal(float(np.median(values[-RECENT:])), max(values))


def _values(reports, name: str) -> list[float]:
  """All finite values of a metric, oldest first; null stands for NaN."""
  values = (x.get(f'train/{name}') for x in reports)
  return [x for x in values if x is not None and math.isfinite(x)]
