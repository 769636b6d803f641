"""A run as a page: curves, pictures, figures and what to do next."""

from esvit_jax.report.page import build, next_step, stages

__all__ = ['build', 'next_step', 'stages']
