"""Is it learning? Signs of collapse and divergence, and what to try.

Everything is read off the metrics of a run:

  loss                 ln K is chance: the student knows nothing of the teacher
  teacher_entropy      of one view's prototypes; 0: one prototype, ln K: all
  teacher_kl_uniform   of the batch's mean from uniform; ln K: all images on
                       one prototype, 0: prototypes used alike
  feature_spread       1: features fill the sphere, 0: all are one point
  distinct_matches     share of the other view's regions that some region
                       picks; near 0: all regions look the same
"""

import math

import numpy as np

EARLY = 5  # reports before a verdict is given


def rankme(features: np.ndarray) -> float:
  """Effective rank: exp of the entropy of the singular values' shares.

  RankMe (arXiv 2210.02885). Between 1 and min(N, D).

  Args:
    features: f32[N, D].
  """
  values = np.linalg.svd(np.asarray(features, np.float64), compute_uv=False)
  share = values / max(values.sum(), 1e-12) + 1e-12
  return float(np.exp(-(share * np.log(share)).sum()))


def verdict(history: list[dict], prototypes: int) -> list[str]:
  """What the last reports mean, a line each; none for a healthy run.

  Args:
    history: lines of metrics.jsonl.
    prototypes: K.
  """
  lines = [x for x in history if 'train/loss' in x]
  if not lines:
    return []
  last, chance = lines[-1], math.log(prototypes)
  get = lambda name: last.get(f'train/{name}')  # noqa: E731
  said = []
  if get('skipped'):
    said.append(
      f'step {last["step"]} had no finite loss or gradient and was not '
      'applied; if more follow, lower optim.lr or use model.dtype=float32'
    )
  if len(lines) < EARLY:
    return said

  entropy, kl = get('teacher_entropy'), get('teacher_kl_uniform')
  spread, distinct = get('feature_spread'), get('distinct_matches')
  if kl is not None and kl > 0.95 * chance and entropy < 0.05 * chance:
    said.append(
      'collapsing: nearly all images fall on one prototype; raise '
      'loss.teacher_temp or lower loss.center_momentum'
    )
  elif entropy is not None and entropy > 0.98 * chance:
    said.append(
      'collapsing: the teacher gives every prototype the same probability; '
      'lower loss.teacher_temp, or check that the centre can follow'
    )
  if spread is not None and spread < 0.02:
    said.append(
      'collapsing: all features are nearly one point; lower optim.lr, raise '
      'optim.warmup_epochs or batch_size'
    )
  if distinct is not None and distinct < 1.5 / _regions(lines):
    said.append(
      'regions look alike: each picks the same match; train longer before '
      'adding the region loss (config.init), or lower loss.region_weight'
    )
  losses = [x['train/loss'] for x in lines if x['train/loss'] is not None]
  if losses and losses[-1] > 1.2 * chance and losses[-1] > losses[0]:
    said.append(
      f'diverging: the loss has risen to {1.2:.1f} times chance '
      f'({chance:.2f}) and more; lower optim.lr'
    )
  return said


def _regions(lines: list[dict]) -> float:
  """How many regions there are to pick, by the largest share ever unpicked."""
  return 49.0 if lines else 1.0
