"""Ways to learn without labels: one file and one line here for each."""

from esvit_jax.methods import esvit, finetune

# name -> build(config, horizon, shards=, classes=, teacher=) -> Method; a builder
# takes what it needs and leaves the rest.
METHODS = {
  'esvit': esvit.build,
  'finetune': finetune.build,
}
