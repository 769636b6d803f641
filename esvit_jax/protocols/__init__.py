"""Evaluations of a finished network: one file and one line here for each."""

from esvit_jax.protocols import (
  correspondence,
  detect,
  embedding,
  finetune,
  fixed,
  layers,
  probe,
  propagation,
  segment,
  segmentation,
  small_data,
  transfer,
)
from esvit_jax.protocols.setup import Result, prepare

# name -> run(config, directory, out) -> Result
PROTOCOLS = {
  'knn': fixed.protocol('knn'),
  'linear': fixed.protocol('linear'),
  'probe': probe.run,
  'segmentation': segmentation.run,
  'propagation': propagation.run,
  'segment': segment.run,
  'detect': detect.run,
  'finetune': finetune.run,
  'transfer': transfer.run,
  'small_data': small_data.run,
  'layers': layers.run,
  'correspondence': correspondence.run,
  'embedding': embedding.run,
}

__all__ = ['PROTOCOLS', 'Result', 'prepare']
