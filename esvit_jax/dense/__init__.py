"""Judging maps of features: pixels and objects instead of whole images.

Pure functions over global arrays with static shapes. A map is f[B, h, w, D];
labels of pixels are u8[B, H, W] with 255 (VOID) where nothing is counted.
"""

VOID = 255
