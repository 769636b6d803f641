"""The curves of runs: a chart for each panel, and the same as numbers."""

from collections.abc import Sequence
from typing import NamedTuple

from esvit_jax.report import charts, records, tables
from esvit_jax.report.charts import Chart, Rule, Series
from esvit_jax.report.records import Record
from esvit_jax.workdir.metrics import NETWORKS

QUIET = {'step', 'train/epoch', 'train/skipped'}
BASELINES = ('random_init', 'raw_pixels')  # drawn across the others' panel
COLORS = {'teacher': 0, 'student': 1}  # the same in all charts of scores
MOST_ROWS = 20  # of the table of figures, and as many evaluations


class Panel(NamedTuple):
  """A chart: its title, its axis of values, metrics and their labels."""

  title: str
  axis: str  # 'zero', 'log' or 'fit', as in charts.chart
  names: dict[str, str]


LOSS = Panel(
  'loss',
  'zero',
  {
    'train/loss': 'loss',
    'train/view_loss': 'views',
    'train/region_loss': 'regions',
  },
)
PANELS = (
  Panel(
    'teacher, nats',
    'zero',
    {
      'train/teacher_entropy': 'entropy',
      'train/teacher_kl_uniform': 'KL of mean to uniform',
    },
  ),
  Panel(
    'features and matches, 0 to 1',
    'zero',
    {
      'train/feature_spread': 'feature spread',
      'train/distinct_matches': 'distinct matches',
    },
  ),
  Panel(
    'accuracy of the contrast, %',
    'zero',
    {'train/contrast_accuracy': 'own view found among the batch'},
  ),
  Panel('effective rank', 'zero', {'train/feature_rank': 'features'}),
  Panel('learning rate', 'zero', {'train/lr': 'learning rate'}),
  Panel('weight decay', 'zero', {'train/weight_decay': 'weight decay'}),
  Panel('momentum of the teacher', 'fit', {'train/momentum': 'momentum'}),
  Panel(
    'temperature of the teacher', 'fit', {'train/teacher_temp': 'temperature'}
  ),
  Panel('gradient norm', 'log', {'train/grad_norm': 'gradient norm'}),
  Panel('norm of the parameters', 'fit', {'train/param_norm': 'parameters'}),
  Panel('norm of the updates', 'log', {'train/update_norm': 'updates'}),
  Panel('images per second', 'zero', {'train/images_per_s': 'images/s'}),
  Panel(
    'share of time waiting for data', 'zero', {'train/data_wait': 'waiting'}
  ),
)


class Curves(NamedTuple):
  """What a page shows of a run's metrics.

  Attributes:
    charts: of all that changes.
    constant: 'name value' of all that does not.
    numbers: the same as a table; None where nothing was measured.
  """

  charts: list[Chart]
  constant: list[str]
  numbers: tables.Table | None


def of_run(run: Record) -> Curves:
  """A chart for all that changes, a line for what does not, a table."""
  drawn, constant = [], []
  for panel in panels([run]):
    curves = [
      Series(label, records.series(run.lines, name), _color(name, i))
      for i, (name, label) in enumerate(panel.names.items())
    ]
    curves = [s for s in curves if charts.has_values(s)]
    if any(changes(s) for s in curves):
      drawn.append(
        charts.chart(
          panel.title, curves, panel.axis, rules(run, panel), run.step
        )
      )
      continue
    for s in curves:
      title = panel.title if len(panel.names) == 1 else s.label
      constant.append(f'{title} {charts.short(charts.newest(s.points))}')
  return Curves(drawn, constant, numbers(run))


def of_runs(runs: Sequence[Record]) -> list[Chart]:
  """A chart for each metric, a curve in it for each run."""
  last = max(run.step for run in runs)
  drawn = []
  for panel in panels(runs):
    for name, label in panel.names.items():
      curves = [
        Series(run.name, records.series(run.lines, name), i)
        for i, run in enumerate(runs)
      ]
      if any(changes(s) for s in curves):
        drawn.append(
          charts.chart(
            _title(panel, label),
            curves,
            panel.axis,
            shared_rules(runs, panel),
            last,
          )
        )
  return [chart for chart in drawn if chart is not None]


def panels(runs: Sequence[Record]) -> list[Panel]:
  """The loss, one panel for each kind of score, PANELS, and all the rest."""
  known = {name for panel in (LOSS, *PANELS) for name in panel.names} | QUIET
  scores: dict[str, dict[str, str]] = {}
  others = []
  for name in {name: None for r in runs for x in r.lines for name in x}:
    kind, _, network = name.rpartition('/')
    if name in known or network in BASELINES:
      continue
    if name == 'train/accuracy':  # beside that of test images
      scores.setdefault('accuracy', {})[name] = 'training batches'
    elif network in NETWORKS:
      scores.setdefault(kind, {})[name] = NETWORKS[network]
    else:
      title = name.removeprefix('train/').replace('_', ' ')
      others.append(Panel(title, 'fit', {name: title}))
  return [
    LOSS,
    *(
      Panel(
        records.score_title(kind),
        'fit',
        dict(sorted(scores[kind].items(), key=lambda x: _color(x[0], 0))),
      )
      for kind in sorted(scores, key=records.order)
    ),
    *PANELS,
    *others,
  ]


def rules(run: Record, panel: Panel) -> list[Rule]:
  """What is drawn across a panel: chance, or scores before training."""
  if panel is LOSS:
    return [] if run.chance is None else [Rule(run.chance, 'chance')]
  kinds = {name.rpartition('/')[0] for name in panel.names} - {'train'}
  scores = [
    (run.last(f'{kind}/{network}'), NETWORKS[network])
    for kind in kinds
    for network in BASELINES
  ]
  if 'accuracy' in kinds and run.chance_accuracy is not None:
    scores.append((run.chance_accuracy, 'chance'))
  return [Rule(score, label) for score, label in scores if score is not None]


def shared_rules(runs: Sequence[Record], panel: Panel) -> list[Rule]:
  """Rules of all runs: one where they agree, else one in each run's colour."""
  by_label: dict[str, list[Rule]] = {}
  for i, run in enumerate(runs):
    for rule in rules(run, panel):
      by_label.setdefault(rule.label, []).append(rule._replace(color=i))
  shared = []
  for same in by_label.values():
    if len({f'{rule.value:.3g}' for rule in same}) == 1:
      shared.append(same[0]._replace(color=None))
    else:
      shared += [same[0], *(rule._replace(label='') for rule in same[1:])]
  return shared


def changes(series: Series) -> bool:
  """Whether there is something to see."""
  values = [y for _, y in series.points if y is not None]
  return len(values) == 1 or len(set(values)) > 1


def numbers(run: Record) -> tables.Table | None:
  """Metrics by step; evenly chosen lines of long runs."""
  shown = {
    name: _title(panel, label)
    for panel in panels([run])
    for name, label in panel.names.items()
    if run.last(name) is not None
  }
  lines = [x for x in run.lines if any(name in x for name in shown)]
  if not lines:
    return None
  judged = [
    x for x in lines if any(name.rpartition('/')[2] in NETWORKS for name in x)
  ]
  chosen = {x['step']: x for x in [*_some(lines), *_some(judged)]}
  rows = [
    [step, *(x.get(name) for name in shown)]
    for step, x in sorted(chosen.items())
  ]
  return tables.table(['step', *shown.values()], rows, 'Metrics by step')


def _title(panel: Panel, label: str) -> str:
  """Of one metric alone."""
  alone = len(panel.names) == 1 or label == panel.title
  return panel.title if alone else f'{panel.title}: {label}'


def _color(name: str, default: int) -> int:
  return COLORS.get(name.rpartition('/')[2], default)


def _some(lines: Sequence) -> Sequence:
  """At most MOST_ROWS of them, evenly, with the last."""
  every = -(-len(lines) // MOST_ROWS) or 1
  return lines[::-every]
