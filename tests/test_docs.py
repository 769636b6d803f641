"""The book: generated pages name all there is, links lead somewhere."""

import pathlib
import re

import pytest
import yaml

from configs import common
from docs import reference
from esvit_jax import workdir

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted(ROOT.glob('docs/**/*.md'))
GENERATED = {'recipes.md', 'config.md'}
README = ROOT / 'README.md'


def test_the_reference_has_every_field_of_a_run():
  documented = {name for name, _, _ in reference.fields('common', 'base')}
  fields = {
    name
    for name in workdir.flatten(common.base().to_dict())
    if name not in ('views',)
  }
  assert documented == fields


def test_comments_and_defaults_are_those_of_the_file():
  rows = {name: row for name, *row in reference.fields('common', 'base')}
  assert rows['batch_size'] == ['512', 'images per step, over all devices']
  assert rows['optim.b2'] == ['0.999', 'of adamw']
  assert 'held_out' in rows['data.test_split'][1]


def test_published_scores_are_of_recipes_that_exist():
  for name in reference.PUBLISHED:
    module, _, variant = name.partition(':')
    assert variant in reference.variants(module)


@pytest.mark.parametrize('page', [*PAGES, README], ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
  text = page.read_text()
  for target in re.findall(r'\]\(([^)#]+)(?:#[^)]*)?\)', text):
    if not target.startswith('http') and target not in GENERATED:
      path = (page.parent / target).resolve()
      assert path.exists() or path.name in GENERATED, target


@pytest.mark.parametrize('page', [*PAGES, README], ids=lambda page: page.stem)
def test_commands_name_configs_that_exist(page):
  for name in re.findall(r'--config=(configs/[\w/]+\.py)', page.read_text()):
    assert (ROOT / name).exists(), name


def test_the_index_lists_pages_that_exist():
  index = yaml.safe_load((ROOT / 'mkdocs.yml').read_text())
  named = re.findall(r"'([\w/-]+\.md)'", str(index['nav']))
  there = {str(x.relative_to(ROOT / 'docs')) for x in PAGES} | GENERATED
  assert set(named) == there
