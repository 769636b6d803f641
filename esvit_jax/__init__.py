"""Self-supervised vision transformers in JAX: EsViT, MAE-Lite and SiT.

`load` gives the features of a trained network, of a run or published:

  apply, variables = esvit_jax.load('swin_tiny.pth')
  features = apply(variables, images)  # .view [N, D], .grid [N, h, w, D]

`train` and `evaluate` are the modules behind `python -m main`:

  esvit_jax.train.finish(config, directory)
  esvit_jax.evaluate.run(config, directory)

`BACKBONES` and `METHODS` are the tables of all backbones and methods, by the
names that configs use (`model.name`, `method`). Importing the package is cheap:
modules are imported when they are used.
"""

import importlib

__all__ = ['BACKBONES', 'METHODS', 'evaluate', 'load', 'train']

_TABLES = {'BACKBONES': 'models', 'METHODS': 'methods'}


def load(
  path: str,
  which: str = 'auto',
  *,
  arch: str = '',
  dtype: str = 'float32',
  image_size: int = 0,
  **fields,
):
  """A trained backbone, ready for features.

  Args:
    path: a run directory, a converted one, a folder of Hugging Face, a
      safetensors file or a published checkpoint (.pth).
    which: 'teacher', 'student', or 'auto' for the one handed on.
    arch: a name of BACKBONES, where shapes do not tell it.
    dtype: of activations, 'float32' or 'bfloat16'.
    image_size: that the network was made for, in pixels, where a file leaves
      it open.
    **fields: of the model, such as heads=3, that a published file leaves open.

  Returns:
    (apply, variables): apply(variables, images) -> Features of images
    f32[N, H, W, C], normalised as in training: view f32[N, D], grid
    f32[N, h, w, D]. The pair has an attribute `about`: what was loaded.

  Raises:
    UserError: there is none, its architecture is unknown, or it leaves a field
      open.
  """
  # Imported here to keep the import of the package cheap.
  from esvit_jax.weights import loading

  if arch:
    fields['name'] = arch
  if image_size:
    fields['image_size'] = image_size
  return loading.features(path, which, fields, dtype)


def __getattr__(name: str):
  if name in _TABLES:
    module = importlib.import_module(f'esvit_jax.{_TABLES[name]}')
    return getattr(module, name)
  if name in ('train', 'evaluate'):
    return importlib.import_module(f'esvit_jax.{name}')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
