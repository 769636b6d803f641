"""Names and units of figures, the same on a terminal and on a page."""

import re

# Accuracies and shares of images are in percent everywhere.
TITLES = {
  'top1': 'top-1 accuracy, %',
  'top5': 'top-5 accuracy, %',
  'majority': 'top-1 accuracy by majority, %',
  'mean_per_class': 'accuracy, mean over classes, %',
  'map_11': 'mean average precision at 11 points, %',
  'map': 'mean average precision, %',
  'roc_auc': 'area under the ROC curve, %',
  'accuracy': 'accuracy, %',
  'JF': 'J&F, %',
  'J': 'region similarity J, %',
  'F': 'contour accuracy F, %',
  'J_recall': 'recall of J, %',
  'F_recall': 'recall of F, %',
  'J_decay': 'decay of J, %',
  'F_decay': 'decay of F, %',
  'miou': 'mean IoU, %',
  'pixel_accuracy': 'accuracy of pixels, %',
  'mean_accuracy': 'accuracy of pixels, mean over classes, %',
  'void_percent': 'pixels without a class, %',
  'chance': 'chance, %',
  'random_init': 'untrained network, %',
  'raw_pixels': 'raw pixels, %',
  'similarity': 'cosine of nearest neighbours',
  'same_label': 'neighbours of the same class, %',
  'same_label_first': 'nearest neighbour of the same class, %',
  'same_label_on_map': 'nearest on the map of the same class, %',
  'effective_rank': 'effective rank',
  'distance_error': 'distance error, pixels',
  'sim_11th': 'cosine of the 11th match',
  'first_to_last': 'CKA of the first and the last layer',
  'least': 'least CKA of two layers',
  'same_layer': 'CKA of layers of one number',
  'next_layer': 'CKA of neighbouring layers',
  'mean': 'mean over sets, %',
  'images': 'images',
  'train_images': 'training images',
  'test_images': 'test images',
}


def title(name: str) -> str:
  """'top1' -> 'top-1 accuracy, %'; 'top1_k20' -> the same with k = 20."""
  base, k = re.fullmatch(r'(.*?)(?:_k(\d+))?', name).groups()
  text = TITLES.get(base, base)
  return f'{text}, k = {k}' if k else text
