"""Pyramids, segmentation heads, ViTDet and a whole detector against goldens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_weights import conv, deconv, maps, torch_order, weights
from golden_dense import Case

from esvit_jax.dense import cross_entropy, sliding
from esvit_jax.detection import mask_rcnn
from esvit_jax.models import detector, pyramid, segmenter, vitdet
from esvit_jax.models.positions import axis_offsets


def biased(w, name):
  return {'kernel': conv(w[f'{name}.weight']), 'bias': w[f'{name}.bias']}


def norm(w, name):
  return {'scale': w[f'{name}.weight'], 'bias': w[f'{name}.bias']}


def lifted(w, name):
  return {'kernel': deconv(w[f'{name}.weight']), 'bias': w[f'{name}.bias']}


def normed(w, name):
  kernel = {'kernel': conv(w[f'{name}.weight'])}
  return {'conv': kernel, 'norm': norm(w, f'{name}.norm')}


def fpn_params(w, lateral, output, levels=4):
  params = {}
  for i in range(levels):
    params[f'lateral{i}'] = biased(w, lateral.format(i))
    params[f'output{i}'] = biased(w, output.format(i))
  return params


def simple_params(w, prefix=''):
  at = [f'{prefix}simfp_{n}' for n in (2, 3, 4, 5)]
  convs = [(4, 5), (1, 2), (0, 1), (1, 2)]
  params = {
    'up4_first': lifted(w, f'{at[0]}.0'),
    'up4_norm': norm(w, f'{at[0]}.1'),
    'up4_second': lifted(w, f'{at[0]}.3'),
    'up2': lifted(w, f'{at[1]}.0'),
  }
  for i, (lateral, output) in enumerate(convs):
    params[f'lateral{i}'] = normed(w, f'{at[i]}.{lateral}')
    params[f'output{i}'] = normed(w, f'{at[i]}.{output}')
  return params


def test_feature_pyramid():
  case = Case('fpn', 'even')
  w = weights('fpn', 'even')
  params = fpn_params(w, 'inner_blocks.{}.0', 'layer_blocks.{}.0')
  module = pyramid.FeaturePyramid(case.params['out'])
  x = maps(case.inputs, 'c', range(2, 6))
  out, back = jax.vjp(
    jax.jit(lambda *x: module.apply({'params': params}, x)), *x
  )
  grads = back(tuple(maps(case.inputs, 'cotangent', range(2, 7))))
  case.check(
    **{f'p{i}': torch_order(y) for i, y in enumerate(out, 2)},
    **{f'grad_c{i}': torch_order(y) for i, y in enumerate(grads, 2)},
  )


def test_odd_maps_are_added_by_size():
  module = pyramid.FeaturePyramid(8, norm=True)
  x = [jnp.ones((1, n, n, 3)) for n in (13, 7, 3)]
  out, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
  assert [y.shape[1] for y in out] == [13, 7, 3, 2]


def test_simple_pyramid():
  case = Case('simple_pyramid', 'a')
  w = weights('simple_pyramid', 'a')
  module = pyramid.SimplePyramid(case.params['out'])
  (x,) = maps(case.inputs, 'map', [''])
  params = {'params': simple_params(w)}
  out, back = jax.vjp(jax.jit(lambda x: module.apply(params, (x,))), x)
  (grad,) = back(tuple(maps(case.inputs, 'cotangent', range(2, 7))))
  case.check(
    **{f'p{i}': torch_order(y) for i, y in enumerate(out, 2)},
    grad_map=torch_order(grad),
  )


@pytest.mark.parametrize('name', ['windows', 'no_rel_pos'])
def test_vitdet(name):
  case = Case('vitdet', name)
  w, p = weights('vitdet', name), case.params
  params = {
    'pos_embed': w['pos_embed'],
    'patch_embed': biased(w, 'patch_embed.proj'),
    'norm': {
      'scale': np.ones(p['embed_dim']),
      'bias': np.zeros(p['embed_dim']),
    },
  }

  def dense(name):
    return {'kernel': w[f'{name}.weight'].T, 'bias': w[f'{name}.bias']}

  for j in range(p['depth']):
    at = f'blocks.{j}'
    attn = {k: dense(f'{at}.attn.{k}') for k in ('qkv', 'proj')}
    if p['rel_pos']:
      tables = {k: w[f'{at}.attn.{k}'] for k in ('rel_pos_h', 'rel_pos_w')}
      attn |= tables
    params[f'block{j}'] = {
      'norm1': norm(w, f'{at}.norm1'),
      'norm2': norm(w, f'{at}.norm2'),
      'attn': attn,
      'mlp': {k: dense(f'{at}.mlp.{k}') for k in ('fc1', 'fc2')},
    }
  module = vitdet.ViTDet(
    dim=p['embed_dim'],
    depth=p['depth'],
    heads=p['num_heads'],
    patch=p['patch_size'],
    image_size=p['pretrain_img_size'],
    detect_size=p['img_size'],
    window=p['window_size'],
    global_every=2,
    rel_pos=p['rel_pos'],
  )
  image = np.moveaxis(case.inputs['image'], 1, -1)[:, None]
  (out,) = jax.jit(module.apply)({'params': params}, (image,))
  case.check(last_feat=torch_order(out.stages[-1][:, 0]))


def test_relative_positions_are_resized():
  case = Case('vitdet', 'rel_pos_resize')
  table = jnp.asarray(case.inputs['table'])
  case.check(rows=axis_offsets(table, case.params['side']))


def batch_norm(w, name):
  """Parameters and statistics."""
  stats = {
    'mean': w[f'{name}.running_mean'],
    'var': w[f'{name}.running_var'],
  }
  return norm(w, name), stats


def conv_norms(w, names):
  """{ours: (conv, norm)} -> variables of NormConvs."""
  params, stats = {}, {}
  for ours, (kernel, batch) in names.items():
    scale, running = batch_norm(w, batch)
    kernel = {'kernel': conv(w[f'{kernel}.weight'])}
    params[ours] = {'conv': kernel, 'norm': scale}
    stats[ours] = {'norm': running}
  return params, stats


def logits_of(w, name):
  kernel = w[f'{name}.weight'][:, :, 0, 0].T
  return {'kernel': kernel, 'bias': w[f'{name}.bias']}


def hf(name):
  return f'{name}.conv', f'{name}.batch_norm'


def uper_variables(w):
  names = {f'pool{n}': f'psp_modules.{i}.1' for i, n in enumerate((1, 2, 3, 6))}
  names |= {f'lateral{i}': f'lateral_convs.{i}' for i in range(3)}
  names |= {f'output{i}': f'fpn_convs.{i}' for i in range(3)}
  names |= {'pooled': 'bottleneck', 'fused': 'fpn_bottleneck'}
  names = {k: hf(f'decode_head.{v}') for k, v in names.items()}
  params, stats = conv_norms(w, names)
  params['logits'] = logits_of(w, 'decode_head.classifier')
  aux_params, aux_stats = conv_norms(w, {'conv': hf('auxiliary_head.convs.0')})
  aux_params['logits'] = logits_of(w, 'auxiliary_head.classifier')
  return (
    {'main': params, 'aux': aux_params},
    {'main': stats, 'aux': aux_stats},
  )


def check_head(case, heads, params, stats, x, aux=0.0):
  """Logits, losses and gradients of heads over maps."""
  train, labels = case.params['train'], jnp.asarray(case.inputs['labels'])

  def loss(params, x):
    out, changed = {}, {}
    for name, head in heads.items():
      variables = {'params': params[name], 'batch_stats': stats[name]}
      out[name], changed[name] = head.apply(
        variables,
        x,
        train=train,
        mutable=['batch_stats'],
        rngs={'drop_path': jax.random.key(0)},
      )
    main = cross_entropy.cross_entropy(out['main'], labels)
    total = main
    if aux:
      total += aux * cross_entropy.cross_entropy(out['aux'], labels)
    every = cross_entropy.cross_entropy(out['main'], labels, 'all')
    return total, (main, every, out, changed)

  (total, (main, every, out, changed)), grads = jax.jit(
    jax.value_and_grad(loss, (0, 1), has_aux=True)
  )(params, x)
  case.check(
    logits=torch_order(out['main']),
    loss=total,
    loss_of_main=main,
    loss_of_main_over_all_pixels=every,
    **{f'grad_c{i}': torch_order(g) for i, g in enumerate(grads[1])},
  )
  return out, grads[0], changed


def check_running(case, changed):
  """The manifest does not say of which norm the statistics are."""
  norms = [
    x
    for head in changed.values()
    for conv_ in head['batch_stats'].values()
    for x in conv_.values()
  ]
  near = min(
    norms, key=lambda x: np.abs(x['mean'] - case.outputs['running_mean']).max()
  )
  case.check(running_mean=near['mean'], running_var=near['var'])


@pytest.mark.parametrize('name', ['upernet_eval', 'upernet_train'])
def test_upernet(name):
  case = Case('seg_heads', name)
  p = case.params
  params, stats = uper_variables(weights('seg_heads', name))
  heads = {
    'main': segmenter.UPerHead(p['classes'], p['hidden'], dropped=0.0),
    'aux': segmenter.FCNHead(p['classes'], p['hidden'], dropped=0.0),
  }
  x = maps(case.inputs, 'c', range(4))
  out, grads, changed = check_head(case, heads, params, stats, x, aux=0.4)
  case.check(
    aux_logits=torch_order(out['aux']),
    grad_weight=grads['main']['fused']['conv']['kernel'].transpose(3, 2, 0, 1),
  )
  if p['train']:
    check_running(case, changed)


def test_semantic_fpn():
  name = 'semantic_fpn_train'
  case = Case('seg_heads', name)
  w, p = weights('seg_heads', name), case.params
  names = {
    f'map{i}_conv{j}': (f'head.heads.{i}.{j}.0', f'head.heads.{i}.{j}.1')
    for i in range(4)
    for j in range(max(i, 1))
  }
  params, stats = conv_norms(w, names)
  params['logits'] = logits_of(w, 'head.cls')
  head = segmenter.SemanticFPN(p['classes'], p['hidden'], dropped=0.0)
  x = maps(case.inputs, 'c', range(4))
  _, grads, changed = check_head(
    case, {'main': head}, {'main': params}, {'main': stats}, x
  )
  candidates = [grads['main'][k]['conv']['kernel'] for k in names]
  tolerance = case._tolerance['grad_weight']
  theirs = case.outputs['grad_weight']
  assert any(
    g.shape[2] == theirs.shape[1]
    and np.allclose(g.transpose(3, 2, 0, 1), theirs, atol=tolerance)
    for g in candidates
  )
  check_running(case, changed)


@pytest.mark.parametrize('name', ['one_map', 'four_maps'])
def test_linear_head(name):
  case = Case('linear_head', name)
  w, p = weights('linear_head', name), case.params
  scale, running = batch_norm(w, 'bn')
  params = {'norm': scale, 'logits': logits_of(w, 'conv_seg')}
  head = segmenter.LinearHead(p['classes'])
  x = maps(case.inputs, 'c', range(len(p['channels'])))
  labels = jnp.asarray(case.inputs['labels'])

  def loss(params):
    logits, changed = head.apply(
      {'params': params, 'batch_stats': {'norm': running}},
      x,
      train=True,
      mutable=['batch_stats'],
    )
    value = cross_entropy.cross_entropy(logits, labels)
    return value, (logits, changed['batch_stats']['norm'])

  (value, (logits, stats)), grad = jax.jit(
    jax.value_and_grad(loss, has_aux=True)
  )(params)
  kernel = grad['logits']['kernel'].T[:, :, None, None]
  case.check(
    logits=torch_order(logits),
    loss=value,
    grad_bn_weight=grad['norm']['scale'],
    grad_bn_bias=grad['norm']['bias'],
    grad_conv_seg_weight=kernel,
    grad_conv_seg_bias=grad['logits']['bias'],
    running_mean=stats['mean'],
    running_var=stats['var'],
  )


@pytest.mark.parametrize('name', ['windows', 'windows_exact'])
def test_windows_over_an_image(name):
  case = Case('seg_metrics', name)
  p = case.params['length'], case.params['crop'], case.params['stride']
  case.check(starts=sliding.starts(*p), count=sliding.counts(*p))


def test_the_mean_over_windows():
  image = jax.random.normal(jax.random.key(0), (2, 11, 14, 1))
  seen = []

  def predict(x):
    seen.append(x.shape)
    return jnp.concatenate([x, x - x.mean((1, 2), keepdims=True)], -1)

  out = sliding.mean_over_windows(predict, image, 8, 5)
  np.testing.assert_allclose(out[..., :1], image, atol=1e-6)
  windows = [
    image[:, y : y + 8, x : x + 8].mean((1, 2)) for y in (0, 3) for x in (5, 6)
  ]
  np.testing.assert_allclose(
    out[:, 4, 8, 1:], image[:, 4, 8] - sum(windows) / 4, atol=1e-5
  )
  assert set(seen) == {(2, 8, 8, 1)}


def detector_parts(form, w, p):
  """Modules and parameters of the golden detector."""
  K, C = p['classes'], p['channels']
  simple = form == 'vitdet'
  rpn = 'proposal_generator.rpn_head'
  neck = pyramid.SimplePyramid(C) if simple else pyramid.FeaturePyramid(C)
  modules = {
    'neck': neck,
    'rpn': detector.RPNHead(convs=2 if simple else 1),
    'box': detector.BoxHead(
      K, 2 if simple else 0, 1 if simple else 2, hidden=12
    ),
    'mask': detector.MaskHead(K, 2, norm=simple),
  }
  scaled = {**w}
  scaled[f'{rpn}.anchor_deltas.weight'] = 0.2 * w[f'{rpn}.anchor_deltas.weight']
  w = scaled
  if simple:
    neck = simple_params(w, 'backbone.')
    convs = [f'{rpn}.conv.conv{i}' for i in range(2)]
  else:
    neck = {}
    for i in range(4):
      neck[f'lateral{i}'] = biased(w, f'backbone.fpn_lateral{i + 2}')
      neck[f'output{i}'] = biased(w, f'backbone.fpn_output{i + 2}')
    convs = [f'{rpn}.conv']

  def dense(name):
    return {'kernel': w[f'{name}.weight'].T, 'bias': w[f'{name}.bias']}

  def first_fc(name):  # C h w -> h w C
    kernel = w[f'{name}.weight'].reshape(-1, C, 7, 7).transpose(2, 3, 1, 0)
    kernel = kernel.reshape(-1, kernel.shape[-1])
    return {'kernel': kernel, 'bias': w[f'{name}.bias']}

  box = {'fc0': first_fc('roi_heads.box_head.fc1')}
  if simple:
    for i in range(2):
      box[f'conv{i}'] = normed(w, f'roi_heads.box_head.conv{i + 1}')
  else:
    box['fc1'] = dense('roi_heads.box_head.fc2')
  box['scores'] = dense('roi_heads.box_predictor.cls_score')
  box['codes'] = dense('roi_heads.box_predictor.bbox_pred')
  layer = normed if simple else biased
  mask = {
    f'conv{i}': layer(w, f'roi_heads.mask_head.mask_fcn{i + 1}')
    for i in range(2)
  }
  mask['deconv'] = lifted(w, 'roi_heads.mask_head.deconv')
  mask['logits'] = biased(w, 'roi_heads.mask_head.predictor')
  params = {
    'neck': neck,
    'rpn': {
      **{f'conv{i}': biased(w, name) for i, name in enumerate(convs)},
      'logits': biased(w, f'{rpn}.objectness_logits'),
      'deltas': biased(w, f'{rpn}.anchor_deltas'),
    },
    'box': box,
    'mask': mask,
  }
  return modules, params


@pytest.mark.parametrize('form', ['vitdet', 'fpn'])
def test_a_whole_detector(form):
  case = Case('detector', form)
  p, x = case.params, case.inputs
  modules, params = detector_parts(form, weights('detector', form), p)
  settings = mask_rcnn.Settings(
    strides=tuple(p['strides']),
    sizes=tuple(p['anchors']),
    rpn_samples=p['rpn_samples'],
    rpn_fraction=p['rpn_fraction'],
    pre=p['pre'],
    post=p['post'],
    rpn_nms=p['rpn_nms'],
    samples=p['roi_samples'],
    fraction=p['roi_fraction'],
    sampling=p['sampling_ratio'],
    score=p['score'],
    nms=p['nms'],
    top=p['top'],
  )
  h, w = p['image']
  masks = np.unpackbits(x['gt_masks'], axis=-1)[..., :w].astype(np.float32)
  there = np.arange(4)[None] < x['gt_count'][:, None]
  frames = np.tile(np.float32([0, 0, w, h]), (2, 4, 1))
  targets = mask_rcnn.Targets(
    jnp.asarray(x['gt_boxes']),
    jnp.where(there, x['gt_classes'], -1),
    jnp.asarray(masks),
    jnp.asarray(frames),
  )
  sizes = jnp.array([[h, w]] * 2)
  inputs = maps(x, 'c', range(1 if form == 'vitdet' else 4))

  def apply(params, name):
    return lambda y: modules[name].apply({'params': params[name]}, y)

  def heads(params):
    return mask_rcnn.Heads(*(apply(params, k) for k in ('rpn', 'box', 'mask')))

  def loss(params, inputs):
    found = mask_rcnn.losses(
      heads(params),
      apply(params, 'neck')(inputs),
      targets,
      sizes,
      jax.random.split(jax.random.key(0), 2),
      settings,
    )
    return sum(found.values()), found

  (_, found), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(
    params, inputs
  )
  case.check(
    loss_rpn_cls=found['rpn_class'],
    loss_rpn_loc=found['rpn_box'],
    loss_cls=found['class'],
    loss_box_reg=found['box'],
    loss_mask=found['mask'],
    **{f'grad_c{i}': torch_order(g) for i, g in enumerate(grads[1])},
  )

  @jax.jit
  def infer(params, inputs):
    made = apply(params, 'neck')(inputs)
    scored = mask_rcnn.score_anchors(heads(params), made, settings)
    proposed = mask_rcnn.propose(*scored, sizes, settings)
    return proposed, mask_rcnn.detect(heads(params), made, sizes, settings)

  proposed, (out, soft) = infer(params, inputs)
  for i in range(2):
    case.check(
      **{
        f'proposals{i}': proposed.boxes[i],
        f'proposal_logits{i}': proposed.logits[i],
        f'det_boxes{i}': out.boxes[i],
        f'det_scores{i}': out.scores[i],
        f'det_classes{i}': out.classes[i],
        f'det_masks{i}': soft[i],
      }
    )
