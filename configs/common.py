"""Fields of every run and evaluation; recipes add those of their method."""

from ml_collections import ConfigDict, FieldReference


def base() -> ConfigDict:
  """Fields of every method: 300 epochs of ImageNet at batch 512."""
  c = ConfigDict()
  c.method = ''
  c.seed = 0
  c.batch_size = 512  # images per step, over all devices
  c.epochs = 300
  c.steps = 0  # > 0: this many steps instead of `epochs`
  c.accumulate = 1  # number of parts of a batch, computed in sequence
  c.budget = ''  # such as '2h': open fields follow from it, see configs/own.py
  c.placement = 'replicated'  # or 'fsdp': split state over devices

  c.data = ConfigDict()
  c.data.source = 'tfds:imagenet2012'  # or 'folder:PATH', ...: data.KNOWN
  c.data.split = 'train'
  c.data.test_split = (
    'auto'  # for evaluation; 'held_out': part of train; '': none
  )
  c.data.label_fraction = 1.0  # of the labels of each class to train on
  c.data.labels_per_class = 0  # or this many labels of each class; 0: all
  c.data.data_dir = ''  # of tfds; '' is its default
  c.data.channels = 3  # or 1 (grey), or the number of bands
  c.data.value_range = ()  # values that become black and white in deep images
  c.data.exif_orientation = True  # turn photographs upright
  c.data.canvas = 512  # longest side of decoded images, pixels; 0: unchanged
  c.data.workers = 8  # decoding threads
  c.data.max_unreadable = 0.01  # share of unreadable images that stops the run
  c.data.max_pixels = 2**26  # larger images are not decoded, but unreadable
  c.data.mean = (0.485, 0.456, 0.406)
  c.data.std = (0.229, 0.224, 0.225)

  # Groups of views of one size: `globals`, and any number of others.
  c.views = ConfigDict()

  c.model = ConfigDict()
  # Any field of the backbone can be added: --config.model.window=14.
  c.model.name = 'swin_tiny'  # of models.BACKBONES
  c.model.debug = False  # use the backbone's debug size, for images of 28 px
  c.model.drop_path = 0.1
  c.model.dtype = 'bfloat16'  # of activations; parameters stay float32
  c.model.remat = False

  c.optim = ConfigDict()
  c.optim.name = 'adamw'  # or 'sgd', 'lars'
  c.optim.lr = 5e-4  # per 256 images
  c.optim.min_lr = 1e-6
  c.optim.warmup_epochs = 10.0
  c.optim.weight_decay = 0.04
  c.optim.weight_decay_end = 0.4
  c.optim.clip = 3.0
  c.optim.clip_mode = 'tensor'  # or 'global'
  c.optim.b1, c.optim.b2 = 0.9, 0.999  # of adamw
  c.optim.momentum = 0.9  # of sgd and lars
  c.optim.frozen = (
    ''  # parameters that are not trained: parts of paths, 'pos_embed,norm'
  )

  # Start from another run: from its weights, and its epoch in the schedules.
  c.init = ConfigDict()
  c.init.checkpoint = ''  # a run directory
  c.init.epoch = 0  # epoch at which the schedules start
  c.init.part = 'all'  # or 'backbone', from any file that convert reads
  c.init.which = 'auto'  # or 'teacher', 'student', for a backbone

  c.eval = ConfigDict()
  c.eval.every_epochs = 10.0  # 0: only before and after training
  c.eval.during = 'knn'  # names of evals.EVALS, separated by commas
  c.eval.at_ends = 'knn,linear'
  c.eval.metric = (
    'top1'  # for predicted classes: a name of evals.scores.METRICS
  )
  c.eval.batch_size = 256
  c.eval.size = 224  # pixels
  c.eval.train_images = 50_000  # at most this many; 0: all
  c.eval.pictures = True  # drawn at evaluations, in 1 % of the time

  c.save = ConfigDict()
  c.save.every_epochs = 1.0
  c.save.keep = 2  # newest checkpoints; the best by k-NN is kept too
  c.save.keep_every_epochs = 20  # these are never deleted; 0: none

  c.log_every = 50  # steps
  c.max_bad_steps = 3  # consecutive non-finite steps that stop the run
  c.max_rollbacks = 0  # times a run goes back to its last good state instead
  c.tensorboard = False  # needs pip install esvit_jax[tensorboard]
  return c


def view(
  size: int | tuple[int, int],
  count: int,
  scale: tuple[float, float],
  blur: tuple[float, ...] = (0.5,),
  solarize: tuple[float, ...] = (0.0,),
) -> ConfigDict:
  """A group of `count` views, augmented as in DINO.

  Args:
    size: pixels, one number or height and width.
    count: views.
    scale: least and largest share of the image's area.
    blur, solarize: probability, for all views or one for each.
  """
  v = ConfigDict()
  v.size = either(size)
  v.count = count
  v.scale = scale  # share of the image's area
  v.ratio = (3 / 4, 4 / 3)
  v.flip = 0.5
  v.jitter = 0.8  # probability; the next four are strengths
  v.brightness = 0.4
  v.contrast = 0.4
  v.saturation = 0.2
  v.hue = 0.1
  v.gray = 0.2
  v.blur = blur  # probability, one for all views or one for each
  v.blur_sigma = (0.1, 2.0)  # pixels
  v.solarize = solarize  # likewise
  return v


def either(value) -> FieldReference:
  """A field that takes a number or a tuple of numbers."""
  return FieldReference(value, field_type=object)


def variant(arg: str | None, table: dict, default: str):
  """Splits 'name,debug' into (table row, debug?)."""
  words = [word for word in (arg or '').split(',') if word]
  debug = 'debug' in words
  names = [word for word in words if word != 'debug'] or [default]
  if len(names) > 1 or names[0] not in table:
    raise ValueError(
      f"no variant '{','.join(names)}': choose one of {', '.join(table)}, "
      "and ',debug' to shrink it"
    )
  return table[names[0]], debug


# The debug network of each family, for images of 28 px; see `models.build`.
SMALL = {
  name: {'name': name, 'debug': True}
  for name in ('swin', 'cvt', 'vil', 'resnet', 'vit')
}


def shrink(c: ConfigDict) -> ConfigDict:
  """Makes any config run in seconds: embedded images, a tiny network.

  Recipes have a `debug` of their own, which does this and shrinks what their
  method adds.
  """
  c.data.source = 'embedded'
  c.data.channels = 1
  c.data.canvas = 0
  c.data.mean, c.data.std = (0.286,), (0.353,)
  c.data.workers = 2
  c.batch_size = 16
  c.steps = 6
  for name, group in c.views.items():
    group.size = 28 if name == 'globals' else 16
    group.count = min(group.count, 2)
  c.model.debug = True
  c.model.dtype = 'float32'
  c.optim.warmup_epochs = 0.005  # a few steps: Adam's first would be all sign
  c.eval.size, c.eval.train_images = 28, 256
  c.eval.every_epochs = 0.0
  c.save.every_epochs = 0.0
  c.init.checkpoint, c.init.epoch = '', 0
  c.log_every = 2
  return c


def published() -> ConfigDict:
  """What a published checkpoint may leave open; set what you are asked for."""
  c = ConfigDict()
  c.name = ''  # of models.BACKBONES
  c.heads = ()  # 3, or one number for each stage
  c.image_size = 0
  return c


def add_network(c: ConfigDict) -> None:
  """Adds the fields that name a finished network."""
  c.checkpoint = ''  # a run directory, .safetensors or .pth
  c.which = 'auto'  # or 'teacher', 'student'
  c.published = published()


def evaluation(task: str) -> ConfigDict:
  """What every evaluation of a finished network has."""
  c = ConfigDict()
  c.task = task
  add_network(c)
  c.seed = 0
  c.batch_size = 256  # images at a time, over all devices
  c.dtype = 'float32'  # of the network's activations, or 'bfloat16'
  c.size = 0  # pixels; 0: as in the run, or what the network was made for
  # As in base(); what is left empty is taken from the checkpoint's run.
  c.data = ConfigDict()
  c.data.source = ''
  c.data.split = 'train'
  c.data.test_split = 'auto'
  c.data.label_fraction = 1.0
  c.data.labels_per_class = 0
  c.data.data_dir = ''
  c.data.canvas = -1
  c.data.workers = 8
  c.data.max_unreadable = 0.01
  c.data.max_pixels = 2**26
  c.data.value_range = ()
  c.data.exif_orientation = True
  c.data.mean = ()
  c.data.std = ()
  return c


def experiment(name: str, figures: dict[str, str]) -> ConfigDict:
  """What every experiment has; its file adds `runs` and `evaluations`.

  Args:
    name: for people.
    figures: columns of its table: title -> 'knn', 'linear' or
      'EVALUATION.FIGURE'.
  """
  c = ConfigDict()
  c.experiment = name
  c.seeds = (0, 1, 2)
  c.bench = False  # speed and memory of each run too, once
  c.runs = ConfigDict()  # name -> config of training, or of a protocol
  c.evaluations = ConfigDict()  # of each trained network: task -> config
  c.figures = tuple(figures.items())  # a ConfigDict would sort them
  # Of all runs; what is '', -1 or () is as in theirs.
  c.data = ConfigDict()
  c.data.source = ''
  c.data.data_dir = ''
  c.data.canvas = -1
  c.data.workers = -1
  return c
