"""Images that are the same, or nearly, by perceptual hashes of 64 bits."""

import numpy as np

NEAR = 4  # bits in which hashes of the same picture may differ
_BANDS = NEAR + 1  # of two such hashes, one band at least is equal
_PAIRS = 2**22  # compared at a time


def perceptual_hash(image: np.ndarray) -> int | None:
  """The signs of the 63 lowest frequencies against their median, and 0.

  The same picture, resized or compressed again, has almost the same hash.

  Args:
    image: u8[h, w, C].

  Returns:
    64 bits, or None of an image of (almost) one colour, which has no pattern.
  """
  from PIL import Image
  from scipy import fft

  grey = Image.fromarray(image.mean(-1, dtype=np.float32))
  small = grey.resize((32, 32), Image.Resampling.BICUBIC)
  small = np.asarray(small, np.float64)
  if small.std() < 2:
    return None
  low = fft.dctn(small)[:8, :8].ravel()[1:]
  bits = np.packbits([False, *(low > np.median(low))])
  return int.from_bytes(bits.tobytes(), 'big')


def near_pairs(hashes: np.ndarray) -> np.ndarray:
  """Pairs of rows whose hashes differ in at most `NEAR` bits.

  Args:
    hashes: u64[n].

  Returns:
    i64[m, 2], each pair once, the lower row first.
  """
  pairs = [np.zeros((0, 2), np.int64)]
  width = -(-64 // _BANDS)
  for band in range(_BANDS):
    mask = np.uint64((1 << width) - 1)
    key = (hashes >> np.uint64(band * width)) & mask
    order = np.argsort(key, kind='stable')
    _, starts = np.unique(key[order], return_index=True)
    for rows in np.split(order, starts[1:]):
      pairs += _close(hashes, np.sort(rows))
  return np.unique(np.concatenate(pairs), axis=0)


def _close(hashes: np.ndarray, rows: np.ndarray):
  """The near pairs among some rows, compared block by block."""
  step = max(_PAIRS // len(rows), 1)
  for start in range(0, len(rows), step):
    block = rows[start : start + step]
    bits = np.bitwise_count(hashes[block][:, None] ^ hashes[rows][None])
    a, b = np.nonzero(bits <= NEAR)
    pairs = np.column_stack([block[a], rows[b]])
    yield pairs[pairs[:, 0] < pairs[:, 1]]


def groups(pairs: np.ndarray, count: int) -> list[np.ndarray]:
  """Rows that pairs connect, two or more a group."""
  from scipy import sparse

  ones = np.ones(len(pairs), bool)
  graph = sparse.coo_array((ones, pairs.T), (count, count))
  _, label = sparse.csgraph.connected_components(graph, directed=False)
  order = np.argsort(label, kind='stable')
  _, starts = np.unique(label[order], return_index=True)
  return [rows for rows in np.split(order, starts[1:]) if len(rows) > 1]
