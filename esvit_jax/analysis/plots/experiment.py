"""What several runs reach in several seeds."""

from collections.abc import Mapping, Sequence

from esvit_jax.analysis.plots import images


def spread_png(
  path: str, values: Mapping[str, Mapping[str, Sequence[float]]]
) -> None:
  """A panel for each figure: a dot for each seed, a line at the mean.

  Args:
    path: of the picture.
    values: figure's title -> run -> its values over seeds; may be empty.
  """
  runs = list(next(iter(values.values())))
  figure = images.figure(1.2 + 2.6 * len(values), 1.0 + 0.36 * len(runs))
  panels = figure.subplots(1, len(values), sharey=True, squeeze=False)[0]
  for ax, (title, by_run) in zip(panels, values.items()):
    for i, run in enumerate(runs):
      x = by_run[run]
      if len(x):
        mean = sum(x) / len(x)
        ax.plot([mean, mean], [i - 0.3, i + 0.3], color=images.ORANGE, lw=2)
      ax.plot(x, [i] * len(x), 'o', color=images.BLUE, ms=5, alpha=0.7)
    ax.set_title(title, fontsize=10, color=images.INK)
    ax.set_yticks(range(len(runs)), runs)
    ax.set_ylim(len(runs) - 0.5, -0.5)
    ax.grid(axis='x', color=images.FAINT, alpha=0.3)
    ax.spines[:].set_visible(False)
    images.label_ticks(ax)
  images.save(figure, path)
