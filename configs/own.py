"""Your own images: the recipe follows from them, the device and a time.

  python -m main --config=configs/own.py --workdir=runs/mine \\
      --config.data.source=folder:YOUR_IMAGES --config.budget=2h

EsViT. Canvas, views, network, batch, learning rate, epochs and more are set
from the number and size of the images, the memory that a compiled step needs
and its measured speed; each is printed with its reason (run/recipe.py). What
the command sets stays as it says, and the others follow from it.
"""

from configs import common, esvit


def get_config(arg: str | None = None):
  recipe, small = common.variant(arg, VARIANTS, 'esvit')
  c = recipe()
  return esvit.debug(c) if small else c


def own():
  c = esvit.recipe()
  c.data.source = 'folder:YOUR_IMAGES'
  c.budget = '2h'
  c.save.keep_every_epochs = 0
  return c


VARIANTS = {'esvit': own}
