"""The parts of a published network: backbone, heads, decoder and so on."""

from collections.abc import Mapping

from esvit_jax.weights.published import families
from esvit_jax.weights.tables import Arrays

HEADS = ('head', 'head_dense')  # DINO's
# Beginnings of keys that are not of the backbone.
BESIDE = (
  'mask_token',
  'decoder_',
  'attn_adapter.',
  'hidden_adapter.',
  'head.',
  'head_recons.',
  'fc.',
  'fc_norm.',
  'predictor.',
)


def kind(network: Mapping) -> str | None:
  """The layout of a network with other parts than DINO's heads.

  It is identified by keys that no other layout has. None: a backbone, with or
  without DINO's heads.
  """
  if 'decoder_embed.weight' in network:
    cut = 'blocks.12.norm1.weight' in network
    return (
      'd2mae' if cut and 'blocks.12.mlp.fc1.weight' not in network else 'mae'
    )
  if 'head_recons.mlp.0.weight' in network:
    return 'sit'
  if {'head.0.weight', 'head.6.weight'} <= network.keys():
    return 'moco'
  if {'head.0.weight', 'head.2.weight'} <= network.keys():
    return 'sit_classifier'
  family = families.of_keys(network)
  head = 'fc' if family == 'resnet' else 'head'
  if family and {f'{head}.weight', f'{head}.bias'} <= network.keys():
    return f'{family}_classifier'
  return None


def split(network: Mapping) -> dict[str, Arrays]:
  """A network's arrays by part.

  Returns:
    'backbone'; 'head' and 'head_dense' of DINO, if there are any, without
    these prefixes on their keys; or 'beside', all other arrays of a network
    that has a `kind`.
  """
  layout = kind(network)
  if layout:
    beside = {k: v for k, v in network.items() if _is_beside(k, layout)}
    backbone = {k: v for k, v in network.items() if k not in beside}
    return {'backbone': backbone, 'beside': beside}
  heads = [h for h in HEADS if f'{h}.last_layer.weight_v' in network]
  parts = {part: {} for part in ('backbone', *heads)}
  for key, value in network.items():
    part, _, key_of_part = key.partition('.')
    if part in heads:
      parts[part][key_of_part] = value
    else:
      parts['backbone'][key] = value
  return parts


def _is_beside(key: str, layout: str) -> bool:
  if layout == 'd2mae' and key.startswith('blocks.12.'):
    return True
  return key.startswith(BESIDE)
