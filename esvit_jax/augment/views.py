"""Multi-crop views on the device: settings, draws and their application.

A recipe is a mapping from group names to settings, `view_groups` makes it
static, `multi_crop` renders it for a batch. All views are: random resized
crop, flip, RandAugment, colour jitter, greyscale, blur, solarise, normalise.
Recipes that flip later or blur before greyscale are the same views: a flip
commutes with all that comes after it but RandAugment, and blur with greyscale
up to rounding.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from esvit_jax.augment import crops, photometric, randaugment
from esvit_jax.errors import UserError, suggestion

Pair = tuple[float, float]


class View(NamedTuple):
  """Settings of one view; the fields of a group in the config.

  Attributes:
    scale: least and largest share of the image's area in the crop.
    ratio: least and largest aspect ratio (width / height) of the crop.
    bilinear: probability of bilinear instead of bicubic interpolation.
    flip: probability of mirroring left to right.
    rand_ops: operations of RandAugment, one after the other; 0 for none.
    rand_magnitude: theirs, 0 to 10.
    rand_noise: standard deviation of that.
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
  rand_ops: float = 0.0
  rand_magnitude: float = 9.0
  rand_noise: float = 0.5
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
  """Views of one size (height and width, pixels), stacked on the view axis."""

  name: str
  size: tuple[int, int]
  views: tuple[View, ...]

  @property
  def count(self) -> int:
    return len(self.views)

  def ever(self, field: str) -> bool:
    """Whether some view can use this operation; if not, it is left out."""
    return any(getattr(view, field) > 0 for view in self.views)

  @property
  def rand_ops(self) -> int:
    """Operations of RandAugment in the view that has most of them."""
    return int(max(view.rand_ops for view in self.views))


class Draw(NamedTuple):
  """What chance decided for one view: numbers only, no pixels.

  Attributes:
    box: top, left, height, width of the crop, i32[4].
    bilinear: bool[].
    flip: bool[].
    rand: the operations of RandAugment, or None.
    factors: brightness, contrast, saturation f32[3]; 1 if not jittered.
    shifts: whether hue is shifted, bool[].
    shift: hue shift in bytes (255 to the circle), whole, f32[].
    order: of 0 brightness, 1 contrast, 2 saturation, 3 hue, i32[4].
    gray: bool[].
    sigma: blur radius, pixels, f32[]; 0 if not blurred.
    solarize: bool[].
    threshold: f32[].
  """

  box: jax.Array
  bilinear: jax.Array
  flip: jax.Array
  rand: randaugment.Draw | None
  factors: jax.Array
  shifts: jax.Array
  shift: jax.Array
  order: jax.Array
  gray: jax.Array
  sigma: jax.Array
  solarize: jax.Array
  threshold: jax.Array


PAIRS = ('scale', 'ratio', 'blur_sigma')
PROBABILITIES = ('bilinear', 'flip', 'jitter', 'gray', 'blur', 'solarize')
FACTORS = ('brightness', 'contrast', 'saturation')


def view_groups(config: Mapping[str, Mapping[str, Any]]) -> tuple[Group, ...]:
  """Turns a config of views into the static description of `multi_crop`.

  Args:
    config: group name -> settings: `size` (see `view_size`), `count` (views, 1
      if not given; 0 leaves the group out) and fields of `View`. A value holds
      for all views of the group, a sequence of `count` values gives one to
      each.

  Returns:
    One Group per entry, in order.

  Raises:
    UserError: on an unknown field or a value that makes no sense.
  """
  used = [name for name in config if config[name].get('count', 1) != 0]
  if not used:
    raise UserError("views: no groups; give at least one, say 'globals'")
  return tuple(_group(name, dict(config[name])) for name in used)


def _group(name: str, settings: dict[str, Any]) -> Group:
  known = ('size', 'count', *View._fields)
  for field in settings:
    if field not in known:
      hint = suggestion(field, known)
      raise UserError(f"views.{name} has no field '{field}': {hint}")
  count = settings.get('count', 1)
  if not isinstance(count, int) or count < 1:
    raise UserError(
      f'views.{name}.count is {count}; give a whole number of at least 1'
    )
  size = view_size(settings.get('size'), f'views.{name}.size')
  columns = (
    _per_view(f'views.{name}.{field}', field, settings.get(field, usual), count)
    for field, usual in View._field_defaults.items()
  )
  return Group(name, size, tuple(View(*row) for row in zip(*columns)))


def view_size(value: Any, where: str = 'size') -> tuple[int, int]:
  """Height and width in pixels, from one number for both or from two.

  Raises:
    UserError: it is something else; `where` names the field.
  """
  numbers = tuple(value) if isinstance(value, (tuple, list)) else (value,) * 2
  if len(numbers) != 2 or not all(
    isinstance(n, int) and n >= 1 for n in numbers
  ):
    raise UserError(
      f'{where} is {value}; give a whole number of pixels, or height,width'
    )
  return numbers


def _per_view(where: str, field: str, value: Any, count: int) -> tuple:
  """One checked value per view, from one for all or a sequence."""
  values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
  if field in PAIRS and not any(isinstance(v, (tuple, list)) for v in values):
    values = (value,)
  if len(values) not in (1, count):
    raise UserError(
      f'{where} has {len(values)} values for {count} views; give one for all '
      'or one for each'
    )
  checked = tuple(_checked(where, field, v) for v in values)
  return checked if len(checked) == count else checked * count


def _checked(where: str, field: str, value: Any) -> float | Pair:
  """The value as floats, if it lies in the range of its field."""
  numbers = value if field in PAIRS else (value,)
  try:
    numbers = tuple(float(v) for v in numbers)
  except (TypeError, ValueError):
    numbers = ()
  if field in PAIRS:
    top = 1.0 if field == 'scale' else math.inf
    if len(numbers) == 2 and 0 < numbers[0] <= numbers[1] <= top:
      return numbers
    rule = 'two numbers with 0 < least <= largest'
  else:
    top = 1.0 if field in PROBABILITIES else math.inf
    top = 0.5 if field == 'hue' else top
    top = randaugment.LARGEST if field == 'rand_magnitude' else top
    whole = field == 'rand_ops'
    fits = numbers and 0 <= numbers[0] <= top
    if fits and (not whole or numbers[0].is_integer()):
      return numbers[0]
    rule = f'a {"whole " if whole else ""}number of at least 0'
  limit = '' if top == math.inf else f', at most {top:g}'
  raise UserError(f'{where} is {value!r}; give {rule}{limit}')


def draw(
  key: jax.Array, size: jax.Array, view: View, rand_ops: int = 0
) -> Draw:
  """Draws all random numbers of one view.

  Args:
    key: typed PRNG key.
    size: valid height and width of the image, i32[2].
    view: settings (numbers, traced or not).
    rand_ops: static, the most operations of RandAugment a view here has.
  """
  counts = (2 * crops.TRIES, 2, len(PROBABILITIES), len(FACTORS), 1, 1, 4)
  uniform = jax.random.uniform(key, (sum(counts),))
  candidates, place, chance, factor, hue, sigma, order = jnp.split(
    uniform, list(itertools.accumulate(counts[:-1]))
  )
  box = crops.draw_box(
    candidates.reshape(-1, 2), place, size, view.scale, view.ratio
  )
  happens = chance < _stack(view, PROBABILITIES)
  bilinear, flip, jitter, gray, blur, solarize = happens
  spread = _stack(view, FACTORS)
  low = jnp.maximum(1.0 - spread, 0.0)
  factors = low + factor * (1.0 + spread - low)
  least, largest = view.blur_sigma
  rand = None
  if rand_ops:
    rand = randaugment.draw(
      jax.random.fold_in(key, 1), rand_ops, view.rand_magnitude, view.rand_noise
    )
    used = jnp.arange(rand_ops) < view.rand_ops
    rand = rand._replace(happens=rand.happens & used)
  return Draw(
    box=box,
    bilinear=bilinear,
    flip=flip,
    rand=rand,
    factors=jnp.where(jitter, factors, 1.0),
    shifts=jitter & (view.hue > 0),
    # torchvision cuts the fraction of the byte-valued shift.
    shift=jnp.trunc((2.0 * hue[0] - 1.0) * view.hue * 255.0),
    order=jnp.argsort(order),
    gray=gray,
    sigma=jnp.where(blur, least + sigma[0] * (largest - least), 0.0),
    solarize=solarize,
    threshold=jnp.asarray(view.threshold, jnp.float32),
  )


def _stack(view: View, fields: Sequence[str]) -> jax.Array:
  return jnp.stack([jnp.asarray(getattr(view, f)) for f in fields])


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
    Normalised view f32[h, w, C].
  """
  if image.dtype == jnp.uint8:
    image = to_planes(image)
  image = crops.crop_resize(
    image, drawn.box, group.size, flip=drawn.flip, bilinear=drawn.bilinear
  )
  rgb = image.shape[0] == 3
  if group.rand_ops:
    image = randaugment.apply(image, drawn.rand, mean)
  if group.ever('jitter'):
    image = photometric.color_jitter(
      image,
      drawn.factors,
      drawn.shift,
      drawn.shifts,
      drawn.order,
      hue=group.ever('hue'),
    )
  if group.ever('gray') and rgb:
    image = photometric.grayscale(image, drawn.gray)
  if group.ever('blur'):
    largest = max(view.blur_sigma[1] for view in group.views)
    image = photometric.blur(image, drawn.sigma, largest)
  if group.ever('solarize'):
    image = photometric.solarize(image, drawn.solarize, drawn.threshold)
  image = image.transpose(1, 2, 0)  # h w C
  return normalize(image, mean, std)


def normalize(
  images: jax.Array, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
  """Grey levels [..., C] -> (level / 255 - mean) / std of each channel."""
  shape = (1,) * (images.ndim - 1) + (-1,)
  mean, std = (jnp.asarray(x).reshape(shape) for x in (mean, std))
  return (images / 255.0 - mean) / std


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
    Group name -> normalised views f32[B, V, h, w, C].

  Raises:
    UserError: if mean or std do not match the channels.
  """
  C = images.shape[-1]
  if not len(mean) == len(std) == C:
    raise UserError(
      f'mean and std have {len(mean)} and {len(std)} numbers but the images '
      f'have {C} channels; give one per channel: python -m esvit_jax.data '
      f'stats SOURCE --channels={C} computes them'
    )

  all_views = [view for group in groups for view in group.views]
  settings = jax.tree.map(lambda *v: jnp.asarray(v), *all_views)
  draws = functools.partial(draw, rand_ops=max(g.rand_ops for g in groups))

  def render(image, size, key):
    view_keys = jax.vmap(jax.random.fold_in, (None, 0))(
      key, jnp.arange(len(all_views))
    )
    drawn = jax.vmap(draws, (0, None, 0))(view_keys, size, settings)
    planes = to_planes(image)
    views, first = {}, 0
    for group in groups:
      part = slice(first, first + group.count)
      views[group.name] = jax.vmap(
        lambda d, group=group: apply(planes, d, group, mean, std)
      )(jax.tree.map(lambda x, part=part: x[part], drawn))  # V h w C
      first += group.count
    return views

  return jax.vmap(render)(images, sizes, keys)
