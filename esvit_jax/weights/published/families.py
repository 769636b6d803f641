"""Families of backbones, and the published keys that identify them."""

from collections.abc import Iterable

from esvit_jax import models
from esvit_jax.errors import UserError

# family -> a key that no other family has, its first convolution's weight
KEYS = {
  'swin': (
    'layers.0.blocks.0.attn.relative_position_bias_table',
    'patch_embed.proj.weight',
  ),
  'vit': ('blocks.0.attn.qkv.weight', 'patch_embed.proj.weight'),
  'cvt': ('stage0.1.layers.0.0.fn.qkv.dw.weight', 'stage0.0.proj.weight'),
  'vil': ('layer1.0.norm_embed.weight', 'layer1.0.proj.weight'),
  'resnet': ('layer1.0.conv1.weight', 'conv1.weight'),
}


# module -> the name of its family and layout
NAMES = {models.FAMILIES[name][0]: name for name in KEYS}


def of_keys(keys: Iterable[str]) -> str | None:
  """The one family that has these keys, or None."""
  keys = set(keys)
  names = [name for name, (key, _) in KEYS.items() if key in keys]
  return names[0] if len(names) == 1 else None


class OpenError(UserError):
  """A field of the model cannot be inferred; the user has to give it.

  Attributes:
    field: its name.
  """

  def __init__(self, text: str, field: str):
    super().__init__(text)
    self.field = field


def ask(fact: str, field: str, answers: object = '') -> OpenError:
  """The error that asks for a field of the model."""
  return OpenError(
    f'{fact}: convert it with --model.{field}={answers}, evaluate it with '
    f'--config.published.{field}=, load it with {field}=',
    field,
  )
