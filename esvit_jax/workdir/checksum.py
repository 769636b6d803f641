"""Checksums of arrays, the same whatever devices hold them.

Each 32-bit word of an array is mixed with its position and all are summed, so
that pieces of an array can be summed where they lie. The mixing is one-to-one:
no change of a single word goes unseen.
"""

import concurrent.futures

import jax
import numpy as np
from jax.experimental import multihost_utils

Tree = dict | list | tuple


def checksums(tree: Tree) -> dict[str, int]:
  """'params/head/kernel' -> checksum of the whole array, u64.

  Args:
    tree: of NumPy arrays, or of jax arrays that all processes share.
  """
  leaves = {
    jax.tree_util.keystr(path, simple=True, separator='/'): x
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }
  with concurrent.futures.ThreadPoolExecutor() as pool:
    sums = np.array(list(pool.map(_of_pieces, leaves.values())), np.uint64)
  shared = any(isinstance(x, jax.Array) for x in leaves.values())
  if shared and jax.process_count() > 1:
    # As pairs of 32 bits, which is what devices hold.
    pieces = multihost_utils.process_allgather(sums.view(np.uint32))
    sums = np.ascontiguousarray(pieces).view(np.uint64).sum(0, dtype=np.uint64)
  return dict(zip(leaves, map(int, sums)))


def _of_pieces(x) -> np.uint64:
  """The sum over the pieces of an array that are this process's to count."""
  if not isinstance(x, jax.Array):
    x = np.asarray(x)
    return _of_piece(x, (0,) * x.ndim, x.shape)
  total = np.uint64(0)
  with np.errstate(over='ignore'):
    for shard in x.addressable_shards:
      if shard.replica_id == 0:
        start = [s.start or 0 for s in shard.index]
        total += _of_piece(np.asarray(shard.data), start, x.shape)
  return total


def _of_piece(x: np.ndarray, start, shape) -> np.uint64:
  """The sum over `x`, which lies at `start` in an array of `shape`."""
  if not x.size:
    return np.uint64(0)
  position = np.zeros(x.shape, np.uint32)
  stride = 1
  for axis in reversed(range(x.ndim)):
    steps = (start[axis] + np.arange(x.shape[axis], dtype=np.uint64)) * stride
    steps = steps.astype(np.uint32)
    position += steps.reshape(-1, *[1] * (x.ndim - 1 - axis))
    stride *= shape[axis]
  word = np.ascontiguousarray(x).view(f'u{x.dtype.itemsize}')
  word = word.reshape(x.shape).astype(np.uint32)
  word ^= position * np.uint32(0x9E3779B1)
  word ^= word >> np.uint32(16)
  word *= np.uint32(0x85EBCA6B)
  word ^= word >> np.uint32(13)
  word *= np.uint32(0xC2B2AE35)
  word ^= word >> np.uint32(16)
  return word.sum(dtype=np.uint64)
