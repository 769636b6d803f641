"""Multi-crop views on the device: settings, draws and their application.

A recipe is a mapping from group names to settings, `view_groups` makes it
static, `multi_crop` renders it for a batch. All views are: random resized
crop, flip, colour jitter, greyscale, blur, solarise, normalise. Recipes that
flip later or blur before greyscale are the same views: a flip commutes with
everything here, and blur with greyscale up to rounding.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from esvit_jax import crops, photometric
from esvit_jax.errors import UserError

Pair = tuple[float, float]


class View(NamedTuple):
  """Settings of one view; the fields of a group in the config.

  Attributes:
    scale: least and largest share of the image's area in the crop.
    ratio: least and largest aspect ratio (width / height) of the crop.
    bilinear: probability of bilinear instead of bicubic interpolation.
    flip: probability of mirroring left to right.
    jitter: probability of colour jitter (all four operations, any order).
    brightness: factor is drawn in 1 +- this, likewise for the next two.
    contrast: blends with the mean grey level.
    saturation: blends with the grey image (RGB only).
    hue: shift is drawn in +- this share of the circle (RGB only).
    gray: probability of greyscale (RGB only).
    blur: probability of blur.
    blur_sigma: least and largest radius of PIL's GaussianBlur, pixels.
    solarize: probability of solarise.
    threshold: grey level from which solarise inverts.
  """

  scale: Pair = (0.08, 1.0)
  ratio: Pair = (3 / 4, 4 / 3)
  bilinear: float = 0.0
  flip: float = 0.5
  jitter: float = 0.0
  brightness: float = 0.0
  contrast: float = 0.0
  saturation: float = 0.0
  hue: float = 0.0
  gray: float = 0.0
  blur: float = 0.0
  blur_sigma: Pair = (0.1, 2.0)
  solarize: float = 0.0
  threshold: float = 128.0


@dataclasses.dataclass(frozen=True)
class Group:
  """Views of one output size (pixels, square), stacked on the view axis."""

  name: str
  size: int
  views: tuple[View, ...]

  def ever(self, field: str) -> bool:
    """Whether some view can use this operation; if not, it is left out."""
    return any(getattr(view, field) > 0 for view in self.views)


class Draw(NamedTuple):
  """What chance decided for one view: numbers only, no pixels.

  Attributes:
    box: top, left, height, width of the crop, i32[4].
    bilinear: bool[].
    flip: bool[].
    factors: brightness, contrast, saturation f32[3]; 1 if not jittered.
    turn: whether hue is shifted, bool[].
    shift: hue shift in 1/255 of the circle, whole, f32[].
    when: order of brightness, contrast, saturation, hue: f32[4], ascending.
    gray: bool[].
    sigma: blur radius, pixels, f32[]; 0 if not blurred.
    solarize: bool[].
    threshold: f32[].
  """

  box: jax.Array
  bilinear: jax.Array
  flip: jax.Array
  factors: jax.Array
  turn: jax.Array
  shift: jax.Array
  when: jax.Array
  gray: jax.Array
  sigma: jax.Array
  solarize: jax.Array
  threshold: jax.Array


PAIRS = ('scale', 'ratio', 'blur_sigma')
PROBABILITIES = ('bilinear', 'flip', 'jitter', 'gray', 'blur', 'solarize')


def view_groups(config: Mapping[str, Mapping[str, Any]]) -> tuple[Group, ...]:
  """Turns a config of views into the static description of `multi_crop`.

  Args:
    config: group name -> settings: `size` (pixels), `count` (views, 1 if not
      given) and fields of `View`. A value holds for all views of the group; a
      tuple of `count` values gives one to each.

  Returns:
    One Group per entry, in order.

  Raises:
    UserError: on an unknown field or a value that makes no sense.
  """
  if not len(config):
    raise UserError("views: no groups given; name at least 'global'")
  return tuple(_group(name, dict(config[name])) for name in config)


def _group(name: str, settings: dict[str, Any]) -> Group:
  known = ('size', 'count', *View._fields)
  for field in settings:
    if field not in known:
      close = difflib.get_close_matches(field, known, 1)
      hint = f"did you mean '{close[0]}'?" if close else f'known: {known}'
      raise UserError(f"views.{name}: unknown field '{field}'; {hint}")
  for field in ('size', 'count'):
    value = settings.setdefault(field, 1 if field == 'count' else None)
    if not isinstance(value, int) or value < 1:
      raise UserError(
        f'views.{name}.{field} is {value}; give a whole number of at least 1'
      )
  count = settings['count']
  columns = {
    field: _per_view(name, field, settings.get(field, default), count)
    for field, default in View._field_defaults.items()
  }
  views = (View(*row) for row in zip(*columns.values()))
  return Group(name, settings['size'], tuple(views))


def _per_view(name: str, field: str, value: Any, count: int) -> tuple:
  """One checked value per view."""
  pair = field in PAIRS
  shared = not isinstance(value, Sequence)
  if pair and not shared:
    shared = all(not isinstance(v, Sequence) for v in value)
  values = (value,) * count if shared else tuple(value)
  if len(values) != count:
    raise UserError(
      f'views.{name}.{field} has {len(values)} values for {count} views; give '
      'one for all or one for each'
    )
  return tuple(_checked(f'views.{name}.{field}', field, v) for v in values)


def _checked(where: str, field: str, value: Any) -> float | Pair:
  """The value as floats, if it lies in its field's range."""
  if field in PAIRS:
    top = 1.0 if field == 'scale' else float('inf')
    rule = 'two numbers, 0 < least <= largest' + ' <= 1' * (top == 1.0)
    try:
      low, high = (float(v) for v in value)
    except (TypeError, ValueError):
      raise UserError(f'{where} is {value!r}; give {rule}') from None
    if not 0 < low <= high <= top:
      raise UserError(f'{where} is {value!r}; give {rule}')
    return low, high
  top = float('inf')
  if field in PROBABILITIES:
    top = 1.0
  if field == 'hue':
    top = 0.5
  try:
    number = float(value)
  except (TypeError, ValueError):
    number = -1.0
  if not 0 <= number <= top:
    raise UserError(f'{where} is {value!r}; give a number in 0..{top}')
  return number


def draw(key: jax.Array, size: jax.Array, view: View) -> Draw:
  """Draws all random numbers of one view.

  Args:
    key: typed PRNG key.
    size: valid height and width of the image, i32[2].
    view: settings (numbers, traced or not).
  """
  box_key, key = jax.random.split(key)
  u = jax.random.uniform(box_key, (crops.TRIES + 1, 2))
  box = crops.draw_box(u[:-1], u[-1], size, view.scale, view.ratio)
  u = jax.random.uniform(key, (15,))
  spread = jnp.stack(
    [jnp.asarray(v) for v in (view.brightness, view.contrast, view.saturation)]
  )
  low = jnp.maximum(1.0 - spread, 0.0)
  factors = low + u[0:3] * (1.0 + spread - low)
  jittered = u[3] < view.jitter
  sigma = view.blur_sigma[0] + u[4] * (view.blur_sigma[1] - view.blur_sigma[0])
  return Draw(
    box=box,
    bilinear=u[5] < view.bilinear,
    flip=u[6] < view.flip,
    factors=jnp.where(jittered, factors, 1.0),
    turn=jittered & (view.hue > 0),
    # torchvision cuts the fraction of the byte-valued shift.
    shift=jnp.trunc((2.0 * u[7] - 1.0) * view.hue * 255.0),
    when=u[8:12],
    gray=u[12] < view.gray,
    sigma=jnp.where(u[13] < view.blur, sigma, 0.0),
    solarize=u[14] < view.solarize,
    threshold=jnp.asarray(view.threshold, jnp.float32),
  )


def apply(
  image: jax.Array,
  drawn: Draw,
  group: Group,
  mean: Sequence[float],
  std: Sequence[float],
) -> jax.Array:
  """Renders one view.

  Args:
    image: canvas, u8[H, W, C] or planes f32[C, H, W] of grey levels.
    drawn: the view's draw.
    group: gives the size and which operations can occur.
    mean: per channel, of pixels in 0..1.
    std: per channel.

  Returns:
    Normalised view f32[s, s, C].
  """
  if image.dtype == jnp.uint8:
    image = to_planes(image)
  image = crops.crop_resize(
    image, drawn.box, group.size, flip=drawn.flip, bilinear=drawn.bilinear
  )
  rgb = image.shape[0] == 3
  if group.ever('jitter'):
    image = photometric.color_jitter(
      image,
      drawn.factors,
      drawn.shift,
      drawn.turn,
      drawn.when,
      hue=group.ever('hue'),
    )
  if group.ever('gray') and rgb:
    image = photometric.grayscale(image, drawn.gray)
  if group.ever('blur'):
    largest = max(view.blur_sigma[1] for view in group.views)
    image = photometric.blur(image, drawn.sigma, largest)
  if group.ever('solarize'):
    image = photometric.solarize(image, drawn.solarize, drawn.threshold)
  image = image.transpose(1, 2, 0)  # s s C
  mean, std = jnp.asarray(mean)[None, None], jnp.asarray(std)[None, None]
  return (image / 255.0 - mean) / std


def to_planes(image: jax.Array) -> jax.Array:
  """u8[H, W, C] -> f32[C, H, W], the layout of all work on pixels."""
  return image.transpose(2, 0, 1).astype(jnp.float32)


def multi_crop(
  images: jax.Array,
  sizes: jax.Array,
  keys: jax.Array,
  groups: tuple[Group, ...],
  mean: Sequence[float],
  std: Sequence[float],
) -> dict[str, jax.Array]:
  """Renders all views of a batch; a view depends on its image and key only.

  With other than three channels, saturation, hue and greyscale are skipped.

  Args:
    images: u8[B, H, W, C], valid pixels top left.
    sizes: valid height and width, i32[B, 2].
    keys: typed PRNG keys [B].
    groups: static, from `view_groups`.
    mean: per channel, of pixels in 0..1.
    std: per channel.

  Returns:
    Group name -> normalised views f32[B, V, s, s, C].

  Raises:
    UserError: if mean or std do not match the channels.
  """
  C = images.shape[-1]
  if not len(mean) == len(std) == C:
    raise UserError(
      f'mean and std have {len(mean)} and {len(std)} numbers but the images '
      f'have {C} channels; give one per channel'
    )

  def one(image, size, key):
    planes = to_planes(image)
    views, first = {}, 0
    for group in groups:
      numbers = jnp.arange(first, first + len(group.views))
      first += len(group.views)
      view_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
      settings = jax.tree.map(lambda *v: jnp.asarray(v), *group.views)
      drawn = jax.vmap(draw, (0, None, 0))(view_keys, size, settings)
      views[group.name] = jax.vmap(
        lambda d, group=group: apply(planes, d, group, mean, std)
      )(drawn)  # V s s C
    return views

  return jax.vmap(one)(images, sizes, keys)
