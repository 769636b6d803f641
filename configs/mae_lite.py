"""MAE-Lite: masked auto-encoding for vision transformers, with distillation.

  python -m main --config=configs/mae_lite.py:tiny --workdir=runs/mae_tiny

`tiny`, `small`: MAE-Lite's recipe (400 epochs, batch 4096). `base`, `large`,
`huge`: the original recipe of MAE, for teachers. With any MAE as the teacher:

  python -m main --config=configs/mae_lite.py:tiny_dmae --workdir=runs/dmae \\
      --config.distill.checkpoint=mae_pretrain_vit_base.pth

`_dmae` matches the attention logits of the last block; `_d2mae` those of an
additional 13th block, and the decoder follows the 8th. Fine-tune with
configs/eval/finetune.py:impr.
"""

from ml_collections import ConfigDict

from configs import common

# model, decoder: width, depth, heads
MODELS = {
  'tiny': ('mae_tiny', (96, 1, 3)),
  'small': ('mae_small', (192, 1, 6)),
  'base': ('mae_base', (512, 8, 16)),
  'large': ('mae_large', (512, 8, 16)),
  'huge': ('mae_huge', (512, 8, 16)),
}
VARIANTS = {name: (*row, '') for name, row in MODELS.items()} | {
  f'{name}_{kind}': (*MODELS[name], kind)
  for name in ('tiny', 'small')
  for kind in ('dmae', 'd2mae')
}


def get_config(arg: str | None = None):
  (model, decoder, kind), small = common.variant(arg, VARIANTS, 'tiny')
  c = common.base()
  sections(c)
  c.batch_size = 4096
  c.epochs = 400
  c.views.globals = crop(224)
  if model not in ('mae_tiny', 'mae_small'):
    # The original recipe has larger crops, bicubic only.
    c.epochs = 1600
    c.views.globals.scale = (0.2, 1.0)
    c.views.globals.bilinear = 0.0
  c.model.name = model
  c.model.drop_path = 0.0
  c.mae.decoder_dim, c.mae.decoder_depth, c.mae.decoder_heads = decoder
  if kind:
    c.distill.checkpoint = 'REQUIRED'
  if kind == 'd2mae':
    c.distill.decoupled = True
    c.mae.decode_at = 8
  return debug(c) if small else c


def sections(c: ConfigDict) -> None:
  """Adds the fields of MAE to common.base()."""
  c.method = 'mae'
  c.mae = ConfigDict()
  c.mae.mask_ratio = 0.75
  c.mae.norm_pix = (
    True  # predict patches normalised by their mean and deviation
  )
  c.mae.decoder_dim = 96
  c.mae.decoder_depth = 1
  c.mae.decoder_heads = 3
  c.mae.decode_at = 0  # blocks before the decoder; 0: all

  c.distill = ConfigDict()
  c.distill.checkpoint = ''  # a teacher: a run, .safetensors or .pth; '': none
  c.distill.weight = 1.0  # of the attention logits
  c.distill.layer = 12  # block of both, counted from 1
  c.distill.hidden = ()  # blocks whose normed inputs are matched; 12: output
  c.distill.hidden_weight = 1.0
  c.distill.decoupled = False  # match logits in an additional block

  c.optim.lr = 1.5e-4  # per 256 images
  c.optim.min_lr = 0.0
  c.optim.start_lr = 0.0
  c.optim.top_twice = False
  c.optim.warmup_epochs = 40.0
  c.optim.weight_decay = c.optim.weight_decay_end = 0.05
  c.optim.b1, c.optim.b2 = 0.9, 0.95
  c.optim.clip = 0.0
  c.optim.frozen = 'pos_embed'


def debug(c: ConfigDict) -> ConfigDict:
  """Makes a recipe run in seconds."""
  common.shrink(c)
  c.mae.decoder_dim, c.mae.decoder_depth, c.mae.decoder_heads = 16, 1, 2
  c.mae.decode_at = 0
  c.distill.checkpoint, c.distill.decoupled = '', False
  return c


def crop(size: int) -> ConfigDict:
  """Random crop and flip only; bilinear or bicubic at random."""
  v = ConfigDict()
  v.size = common.either(size)
  v.count = 1
  v.scale = (0.08, 1.0)
  v.ratio = (3 / 4, 4 / 3)
  v.bilinear = 0.5
  v.flip = 0.5
  return v
