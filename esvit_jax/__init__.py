"""EsViT in JAX: self-supervised vision transformers.

apply, params = esvit_jax.load('swin_tiny.pth')
features = apply(params, images)  # .view [N, D], .grid [N, h, w, D]
"""


def load(path: str, which: str = 'auto'):
  """A trained backbone as (apply, params): see `weights.export.load`."""
  # Here, so that `import esvit_jax` stays cheap.
  from esvit_jax.weights import export

  return export.load(path, which)
