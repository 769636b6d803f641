"""Ways to learn without labels: one file and one line here for each."""

from esvit_jax.methods import esvit

# name -> build(config, horizon, shards) -> Method
METHODS = {
  'esvit': esvit.build,
}
