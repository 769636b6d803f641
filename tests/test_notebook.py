"""launch/colab.ipynb runs from top to bottom."""

import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.slow
def test_the_tour_runs(tmp_path):
  """With the debug config, in a kernel of its own."""
  notebook = nbformat.read(ROOT / 'launch/colab.ipynb', as_version=4)
  for cell in notebook.cells:
    cell.source = (
      cell.source.replace("'runs/tour'", repr(str(tmp_path / 'tour')))
      .replace('get_config()\nconfig.steps = 300', "get_config('debug')")
      .replace('%pip', 'raise RuntimeError #')
    )
  assert "get_config('debug')" in str(notebook.cells)
  resources = {'metadata': {'path': str(ROOT)}}
  NotebookClient(notebook, timeout=300, resources=resources).execute()
  shown = [
    output
    for cell in notebook.cells
    for output in cell.get('outputs', [])
    if 'image/png' in output.get('data', {})
  ]
  assert len(shown) >= 3
  assert 'regions (2, ' in str(notebook.cells)
  assert (tmp_path / 'tour/eval/knn.json').exists()
