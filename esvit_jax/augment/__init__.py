"""From a decoded image to the views a network is trained on, on the device."""

from esvit_jax.augment.views import (
  Group,
  multi_crop,
  normalize,
  view_groups,
  view_size,
)

__all__ = ['Group', 'multi_crop', 'normalize', 'view_groups', 'view_size']
