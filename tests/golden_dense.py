"""Reference arrays of dense tasks, and how close to come to them.

goldens/dense/manifest.json says where each comes from.
"""

import json
import pathlib

import numpy as np

HERE = pathlib.Path(__file__).parent / 'goldens' / 'dense'
MANIFEST = json.loads((HERE / 'manifest.json').read_text())['kinds']


class Case:
  """One case of a kind: parameters, inputs, and a check of outputs."""

  def __init__(self, kind: str, name: str):
    about = MANIFEST[kind]['cases'][name]
    self.params = about.get('params', {})
    self._tolerance = about['tolerance']
    with np.load(HERE / f'{kind}.npz') as arrays:
      names = [x for x in arrays.files if x.startswith(f'{name}/')]
      held = {x.removeprefix(f'{name}/'): arrays[x] for x in names}
    self.inputs = {k[3:]: v for k, v in held.items() if k.startswith('in/')}
    self.outputs = {k[4:]: v for k, v in held.items() if k.startswith('out/')}

  def check(self, **ours):
    """Compares arrays with those of the same names."""
    for name, x in ours.items():
      np.testing.assert_allclose(
        x, self.outputs[name], rtol=0, atol=self._tolerance[name], err_msg=name
      )
