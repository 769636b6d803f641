"""The curves of runs: charts of metrics, and tables of the same numbers."""

from collections.abc import Sequence
from typing import NamedTuple

from esvit_jax.report import charts, records, tables
from esvit_jax.report.charts import Chart, Rule, Series
from esvit_jax.report.records import Record
from esvit_jax.workdir.metrics import NETWORKS

QUIET = {'step', 'train/epoch', 'train/skipped'}  # not drawn
BASELINES = ('random_init', 'raw_pixels')  # rules in the panels of scores
COLORS = {'teacher': 0, 'student': 1}  # the same in all charts of scores
MOST_ROWS = 20  # reports, and as many evaluations, in the table of metrics


class Panel(NamedTuple):
  """A chart: title, axis of values (see charts.chart), metrics -> labels."""

  title: str
  axis: str
  names: dict[str, str]


def _panel(title: str, axis: str, **names: str) -> Panel:
  """A panel of metrics of training steps."""
  return Panel(title, axis, {f'train/{k}': x for k, x in names.items()})


LOSS = _panel(
  'loss', 'zero', loss='loss', view_loss='views', region_loss='regions'
)
PANELS = (
  _panel(
    'teacher, nats',
    'zero',
    teacher_entropy='entropy',
    teacher_kl_uniform='KL of mean to uniform',
  ),
  _panel(
    'features and matches, 0 to 1',
    'zero',
    feature_spread='feature spread',
    distinct_matches='distinct matches',
  ),
  _panel(
    'accuracy of the contrast, %',
    'zero',
    contrast_accuracy='own view identified in the batch',
  ),
  _panel('effective rank', 'zero', feature_rank='features'),
  _panel('learning rate', 'zero', lr='learning rate'),
  _panel('weight decay', 'zero', weight_decay='weight decay'),
  _panel('momentum of the teacher', 'fit', momentum='momentum'),
  _panel('temperature of the teacher', 'fit', teacher_temp='temperature'),
  _panel('gradient norm', 'log', grad_norm='gradient norm'),
  _panel('norm of the parameters', 'fit', param_norm='parameters'),
  _panel('norm of the updates', 'log', update_norm='updates'),
  _panel('images per second', 'zero', images_per_s='images/s'),
  _panel('share of time waiting for data', 'zero', data_wait='waiting'),
)


class Curves(NamedTuple):
  """The metrics of a run as a page shows them.

  Attributes:
    charts: of metrics that change.
    constant: 'name value' of metrics that do not.
    numbers: a table of all; None if nothing was reported.
  """

  charts: list[Chart]
  constant: list[str]
  numbers: tables.Table | None


def of_run(run: Record) -> Curves:
  """The curves of one run."""
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
  # Nothing to draw: on a logarithmic axis, all zeros.
  drawn = [chart for chart in drawn if chart is not None]
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
  """LOSS, panels of scores by kind, PANELS, and panels of all other metrics."""
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
  """The rules of a panel: chance, or baselines."""
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
  """Rules of all runs: one if they agree, else one in the colour of each."""
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
  """Whether a series changes, or has a single value."""
  values = [y for _, y in series.points if y is not None]
  return len(values) == 1 or len(set(values)) > 1


def numbers(run: Record) -> tables.Table | None:
  """Metrics by step; a selection of steps for long runs."""
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
  """The title of a chart of a single metric."""
  alone = len(panel.names) == 1 or label == panel.title
  return panel.title if alone else f'{panel.title}: {label}'


def _color(name: str, default: int) -> int:
  return COLORS.get(name.rpartition('/')[2], default)


def _some(lines: Sequence) -> Sequence:
  """At most MOST_ROWS of the lines, evenly spaced, with the last."""
  every = -(-len(lines) // MOST_ROWS) or 1
  return lines[::-every]
