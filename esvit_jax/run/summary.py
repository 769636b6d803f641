"""What a run says before its first step and after its last."""

import contextlib
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp

from esvit_jax import augment, data
from esvit_jax.run import startup
from esvit_jax.workdir import terminal
from esvit_jax.workdir.metrics import NETWORKS, SCORES
from esvit_jax.workdir.space import Space

Say = Callable[[str], None]


def introduce(job, directory: str, resumed: int | None, say: Say) -> None:
  """Data, model, plan: a few lines each."""
  config, source = job.config, job.sources['train']
  height, width = source.canvas
  say(
    f'data   {source.split}: {_amount(source)} in {source.name}\n'
    f'       of up to {height}x{width}x{config.data.channels}, such as '
    f'{", ".join(map(str, source.examples(3)))}'
  )
  test = job.sources['test']
  if test is not None:
    use = 'to judge on' if test.classes else 'which cannot be judged on'
    say(f'       {test.split}: {_amount(test)}, {use}')
  else:
    say(
      '       no test split: add --config.data.test_split=held_out for scores'
    )
  for note in _notes(job):
    say(f'       note: {note}')
  params = count(job.state.params)
  backbone = count(job.state.params.get('backbone', {}))
  groups = augment.view_groups(config.views)
  views = ', '.join(
    f'{g.count} {g.name} of {_pixels(g.size)} px '
    f'({_lowered(job, g.size)[1]} regions)'
    for g in groups
  )
  say(
    f'model  {config.model.name}: {backbone / 1e6:.2f} M parameters, '
    f'{params / 1e6:.2f} M with heads; {flops(job) / 1e9:.3g} GFLOP for one '
    f'{_pixels(groups[0].size)} px view\n       views: {views}'
  )
  steps, per_epoch = job.horizon
  devices = f'{job.mesh.size} {jax.devices()[0].device_kind}'
  say(
    f'plan   {steps:,} steps of {config.batch_size} images '
    f'({steps / per_epoch:.1f} epochs) on {devices}'
    + (f', from step {resumed}' if resumed else '')
    + f'\n       checkpoints in {os.path.join(directory, "checkpoints")}, '
    + space(job, directory).line()
  )
  settings = startup.settings()
  say(
    f'       huge pages {settings["huge_pages"]}, compiled programs kept: '
    f'{settings["compilation_cache"]}'
  )


def space(job, directory: str) -> Space:
  """What the checkpoints of a run take of its disk."""
  config, steps = job.config, job.horizon.steps
  every = job.horizon.steps_in(config.save.keep_every_epochs)
  best = 1 if job.sources['test'] is not None else 0
  kept = config.save.keep + best + (steps // every if every else 0)
  saves = max(job.horizon.steps_in(config.save.every_epochs), 1)
  return Space(directory, job.state, min(kept, -(-steps // saves)))


def conclude(
  directory: str,
  metrics,
  verdict: list[str],
  pictures: list[str],
  advice: str,
  say: Say,
) -> None:
  """The table of scores, the verdict, where things lie, what to do next."""
  kinds = [k for k in SCORES if metrics.last(f'{k}/student') is not None]
  rows = []
  for network, title in reversed(NETWORKS.items()):
    scores = [metrics.last(f'{kind}/{network}') for kind in kinds]
    if any(x is not None for x in scores):
      cells = ['-' if x is None else f'{x:.1f}' for x in scores]
      rows.append((title, *cells))
  if kinds:
    columns = ('features', *(SCORES[kind] for kind in kinds))
    say(terminal.table('top-1 accuracy, %', columns, rows))
  unreadable = os.path.join(directory, data.UNREADABLE)
  lines = []
  with (
    contextlib.suppress(OSError),
    open(unreadable, encoding='utf-8', errors='replace') as f,
  ):
    lines = f.read().splitlines()
  if lines:
    say(
      f'unreadable   {len(lines)} images, such as '
      f'{lines[0].partition(chr(9))[0]}: all are listed in {unreadable}'
    )
  for line in verdict:
    say(f'health       {line}')
  say(f'metrics      {os.path.join(directory, "metrics.jsonl")}')
  say(f'checkpoints  {os.path.join(directory, "checkpoints")}')
  for picture in pictures:
    kind = 'report ' if picture.endswith('.html') else 'picture'
    say(f'{kind}      {picture}')
  say(f'next         open the report; then {advice}')


def _amount(source) -> str:
  """How many images, of which classes."""
  if not source.classes:
    return f'{len(source):,} images without labels'
  names = ', '.join(str(c) for c in source.classes[:3])
  more = ', ...' if len(source.classes) > 3 else ''
  return (
    f'{len(source):,} images of {len(source.classes)} classes ({names}{more})'
  )


def _notes(job) -> list[str]:
  """What a person should know of the images and the batch."""
  config, (train, test) = (
    job.config,
    (job.sources[k] for k in ('train', 'test')),
  )
  notes = [*train.notes, *(test.notes if test is not None else ())]
  images, batch = len(train), config.batch_size
  if batch > images:
    notes.append(
      f'a batch of {batch} is larger than the set: each holds its {images} '
      f'images {batch / images:.1f} times'
    )
  colours = [
    field
    for field in ('saturation', 'hue', 'gray')
    if any(g.ever(field) for g in augment.view_groups(config.views))
  ]
  if config.data.channels != 3 and colours:
    notes.append(
      f'images of {config.data.channels} channels: {", ".join(colours)} of '
      'views need three and are left out'
    )
  return list(dict.fromkeys(notes))


def count(tree) -> int:
  """Number of scalars in a tree."""
  return sum(x.size for x in jax.tree.leaves(tree))


def flops(job) -> float:
  """Floating-point operations of the backbone on one global view."""
  size = augment.view_size(job.config.views.globals.size)
  return _lowered(job, size)[0]


def _pixels(size: tuple[int, int]) -> str:
  height, width = size
  return str(height) if height == width else f'{height}x{width}'


def _lowered(job, size: tuple[int, int]) -> tuple[float, int]:
  image = jax.ShapeDtypeStruct(
    (1, *size, job.config.data.channels), jnp.float32
  )
  lowered = jax.jit(job.method.features).lower(
    job.state.params, job.state.extra['student'], image
  )
  _, h, w, _ = lowered.out_info.grid.shape
  return (lowered.cost_analysis() or {}).get('flops', 0.0), h * w
