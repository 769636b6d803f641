"""Batches as a pure function of (seed, step), and threads that read ahead."""

import collections
import concurrent.futures
import itertools
import os
import time
from collections.abc import Iterator

import numpy as np

from esvit_jax.data.reader import DEFAULT, Batch, Reader, Reading
from esvit_jax.data.source import Source
from esvit_jax.errors import UserError

_ROWS_PER_TASK = 16
_AHEAD = 2  # batches in flight: one being read while one waits


class Pipeline:
  """`pipeline[step]` is this process's part of the batch of that step.

  The stream of images is one shuffle of the source after another, so each
  image comes exactly once in every len(source) consecutive rows; of a mixture,
  the streams of its parts are interleaved by their shares. Process r of
  n holds the r-th block of B/n rows of the global batch: the blocks put one
  after another are, row for row, the batch of a single process.

  A batch holds image u8[b,H,W,C] (top-left on the canvas, the rest zero), size
  i32[b,2] (valid height and width), label i32[b] (-1: none), index i32[b],
  and of a source that knows its pixels segmentation u8[b,H,W] (VOID outside).
  Of one that knows its objects, M of them padded: boxes f32[b,M,4] in pixels of
  the canvas, classes i32[b,M] (-1: none), and shapes u8[b,M,S,S], the masks in
  their boxes from 0 to 255.
  An unreadable image is replaced by the next readable one of the source.
  """

  def __init__(
    self,
    source: Source,
    seed: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    reading: Reading = DEFAULT,
  ):
    """Opens the pipeline; nothing is read yet.

    Args:
      source: the images.
      seed: of the shuffles, at least 0.
      batch_size: rows of the global batch, a multiple of process_count.
      process_index, process_count: which part of each batch is ours.
      reading: how.

    Raises:
      UserError: the processes can't share the batch equally.
    """
    rows = _local_rows(batch_size, process_count)
    self._reader = Reader(source, reading, substitute=True)
    self._order = _order(source, seed).batch(rows)
    self._process = process_index, process_count

  def _indices(self, step: int) -> np.ndarray:
    """Which images this process reads for a step."""
    # Not by grain's slices: of endless batches of one row they overflow.
    process, count = self._process
    return self._order[step * count + process]

  def __getitem__(self, step: int) -> Batch:
    """The batch of any step, without the steps before it."""
    indices = self._indices(step)
    batch = self._reader.empty(len(indices))
    self._reader.fill(batch, indices, range(len(indices)))
    return batch

  def iterate(self, start_step: int = 0) -> 'Feed':
    """The batches of start_step, start_step + 1, ... read ahead by threads."""
    orders = (self._indices(step) for step in itertools.count(start_step))
    return Feed(self._reader, orders)


def epoch(
  source: Source,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
  reading: Reading = DEFAULT,
) -> 'Feed':
  """Each image once, in the order of the source: for evaluation.

  Takes what Pipeline takes. Every process yields the same number of batches of
  the same shape; each has a further `mask` bool[b], False (and index -1) where
  a row only pads the last batch, False where its image is unreadable.
  """
  rows = _local_rows(batch_size, process_count)
  reader = Reader(source, reading, substitute=False)

  def orders() -> Iterator[np.ndarray]:
    for start in range(0, len(source), batch_size):
      first = start + process_index * rows
      indices = np.arange(first, first + rows)
      yield np.where(indices < len(source), indices, -1)

  return Feed(reader, orders())


class Feed:
  """Iterates over batches that threads read ahead; a context manager.

  Attributes:
    waited: seconds the consumer has spent in next() so far.
  """

  def __init__(self, reader: Reader, orders: Iterator[np.ndarray]):
    self.waited = 0.0
    self._reader = reader
    self._orders = orders
    # Threads are enough: decoders and copies release the interpreter's lock.
    self._pool = concurrent.futures.ThreadPoolExecutor(
      reader.reading.workers or min(16, os.cpu_count() or 1), 'read-images'
    )
    self._ahead = collections.deque()

  def __iter__(self) -> 'Feed':
    return self

  def __next__(self) -> Batch:
    start = time.perf_counter()
    try:
      while len(self._ahead) <= _AHEAD:
        indices = next(self._orders, None)
        if indices is None:
          break
        self._ahead.append(self._begin(indices))
      if not self._ahead:
        raise StopIteration
      batch, tasks = self._ahead.popleft()
      for task in tasks:
        task.result()
    except BaseException:
      self.close()
      raise
    self.waited += time.perf_counter() - start
    return batch

  def __enter__(self) -> 'Feed':
    return self

  def __exit__(self, *unused) -> None:
    self.close()

  def close(self) -> None:
    """Stops the threads; what was read ahead is dropped."""
    self._pool.shutdown(cancel_futures=True)
    self._ahead.clear()
    self._orders = iter(())

  def _begin(
    self, indices: np.ndarray
  ) -> tuple[Batch, list[concurrent.futures.Future]]:
    rows = len(indices)
    batch = self._reader.empty(rows)
    tasks = [
      self._pool.submit(
        self._reader.fill,
        batch,
        indices,
        range(first, min(first + _ROWS_PER_TASK, rows)),
      )
      for first in range(0, rows, _ROWS_PER_TASK)
    ]
    return batch, tasks


def _order(source: Source, seed: int):
  """The endless stream of positions in a source, a grain.MapDataset."""
  # grain orders positions only; reading stays ours, so that an unreadable
  # image can be replaced and several threads read the rows of one batch.
  import grain

  if source.part is None:
    return grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
  streams = []
  for k in range(len(source.shares)):
    rows = np.flatnonzero(source.part == k)
    if not len(rows):
      raise UserError(f'{source.name}: nothing is left of its part {k + 1}')
    # Parts of one size must not be shuffled alike.
    own = int(np.random.SeedSequence((seed, k)).generate_state(1)[0])
    streams.append(grain.MapDataset.source(rows).seed(own).shuffle().repeat())
  return grain.MapDataset.mix(streams, weights=source.shares)


def _local_rows(batch_size: int, process_count: int) -> int:
  rows, remainder = divmod(batch_size, process_count)
  if remainder or not rows:
    raise UserError(
      f'batch_size {batch_size} does not divide among {process_count} '
      'processes: use a multiple'
    )
  return rows
