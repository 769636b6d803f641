"""mkdocs: adds the pages that follow from the code."""

import pathlib
import sys

from mkdocs.structure.files import File

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from docs import reference

PAGES = {
  'recipes.md': reference.recipes_page,
  'config.md': reference.config_page,
}


def on_files(files, config):
  """Adds generated pages to those of docs/."""
  for path, page in PAGES.items():
    files.append(File.generated(config, path, content=page()))
  return files
