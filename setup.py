"""Packaging: `pip install -e ".[dev]"` sets everything up."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
  name='esvit_jax',
  version='0.1.0',
  description='Self-supervised pre-training of efficient vision transformers',
  long_description=Path('README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=find_packages(include=['esvit_jax', 'esvit_jax.*']),
  package_data={
    'esvit_jax.data': ['fashion_mnist.npz', '*NOTICE*'],
    'esvit_jax.report': ['templates/*'],
  },
  install_requires=[
    'absl-py',
    'array_record',
    'clu>=0.0.12',
    'einops',
    'filelock',
    'flax>=0.12',
    'grain>=0.2.18',
    'imagecodecs',
    'jax>=0.10.2',
    'jinja2',
    'matplotlib',
    'ml_collections>=1.1',
    'numpy',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12.8',
    'pillow',
    'rich',
    'safetensors',
    'scipy',
    'simplejpeg',
    'tifffile',
    'tensorflow-datasets>=4.9.10',
  ],
  extras_require={
    'heic': ['pillow-heif'],
    'parquet': ['pyarrow'],
    'graph': ['flatbuffers'],
    'interop-test': [
      *('torch', 'timm', 'torchvision', 'transformers', 'onnxruntime'),
      'safetensors',
    ],
    'gpu': ['jax[cuda13]>=0.10.2'],
    'tpu': ['jax[tpu]>=0.10.2'],
    'detection': ['pycocotools'],
    'tensorboard': ['tensorflow', 'tensorboard'],
    'docs': ['mkdocs>=1.6', 'mkdocs-material', 'mkdocstrings[python]'],
    'dev': [
      *('ipykernel', 'nbclient', 'nbformat', 'pyyaml'),
      *('flatbuffers', 'pillow-heif', 'pyarrow', 'pycocotools'),
      *('pytest', 'pytest-xdist', 'ruff'),
      'scikit-learn',
    ],
  },
)
