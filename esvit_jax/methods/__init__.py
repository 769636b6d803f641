"""Methods of learning: a file and a line here for each."""

from esvit_jax.methods import (
  detect,
  esvit,
  esvit_sit,
  finetune,
  mae,
  moco,
  segment,
  sit,
)

# name -> build(config, run: state.Run) -> Method.
METHODS = {
  'detect': detect.build,
  'esvit': esvit.build,
  'esvit_sit': esvit_sit.build,
  'finetune': finetune.build,
  'mae': mae.build,
  'moco': moco.build,
  'segment': segment.build,
  'sit': sit.build,
}
