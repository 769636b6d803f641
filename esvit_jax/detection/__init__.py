"""Objects found in images: boxes, classes and masks (Mask R-CNN, 1703.06870).

Pure functions with static shapes, in detectron2's conventions. Boxes are
f32[..., 4], x1 y1 x2 y2 in pixels of the canvas, without "+ 1" anywhere. What a
fixed number of slots does not fill is padding: a class of -1, a weight of 0.
"""
