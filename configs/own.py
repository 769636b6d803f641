"""Your own images: a recipe derived from them, the device and a time.

  python -m main --config=configs/own.py --workdir=runs/mine \\
      --config.data.source=folder:YOUR_IMAGES --config.budget=2h

The method is EsViT. Canvas, views, network, batch size, learning rate, epochs
and more are derived from the number and size of the images, the memory of a
compiled step and its measured speed, and are printed with their reasons
(run/recipe.py). Fields set on the command line stay as they are, and the others
follow from them.
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
