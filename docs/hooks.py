"""mkdocs: adds the pages that follow from the code."""

import pathlib
import sys

from mkdocs.structure.files import File

ROOT = str(pathlib.Path(__file__).parent.parent)


def on_files(files, config):
  """Adds generated pages to those of docs/."""
  # Here, for mkdocs takes back what is added to the path at import.
  if ROOT not in sys.path:
    sys.path.insert(0, ROOT)
  from docs import reference

  pages = {
    'recipes.md': reference.recipes_page,
    'config.md': reference.config_page,
  }
  for path, page in pages.items():
    files.append(File.generated(config, path, content=page()))
  return files
