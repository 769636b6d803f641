"""A run as a page: curves, pictures, figures and what to do next."""

from esvit_jax.report.page import build, stages

__all__ = ['build', 'stages']
