"""Fixed position tables against the published ones."""

import golden_mae_sit
import numpy as np
import pytest

from esvit_jax.errors import UserError
from esvit_jax.models import positions


def test_published_tables_of_mae():
  golden, _ = golden_mae_sit.load('sincos')
  for dim in (192, 96):
    table = positions.mae_table(dim, 14)
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table[0], golden[f'mae_{dim}_g14'])
  table = positions.mae_table(384, 6)[0]
  found = [table.sum(dtype=np.float64), np.abs(table).sum(dtype=np.float64)]
  np.testing.assert_allclose(found, golden['mae_384_g6_stats'], rtol=1e-6)


def test_published_table_of_moco():
  golden, _ = golden_mae_sit.load('moco')
  table = positions.moco_table(192, 14)
  assert table.dtype == np.float32
  np.testing.assert_allclose(table[0], golden['pos_embed'][0], atol=2e-6)


def test_the_two_differ_in_which_half_is_rows():
  mae = positions.mae_table(32, 5)
  moco = positions.moco_table(32, 5)
  assert not mae[0, 0].any() and not moco[0, 0].any()
  np.testing.assert_allclose(mae, np.roll(moco, 16, -1), atol=1e-6)
  # The first half of MAE's is the same all along a column of patches.
  grid = mae[0, 1:].reshape(5, 5, 32)
  np.testing.assert_array_equal(grid[0, :, :16], grid[3, :, :16])
  assert np.abs(grid[:, 0, :16] - grid[:, 3, :16]).max() > 0.5


@pytest.mark.parametrize('table', [positions.mae_table, positions.moco_table])
def test_channels_have_to_be_four_times_a_number(table):
  with pytest.raises(UserError, match='multiple of 4'):
    table(10, 3)
