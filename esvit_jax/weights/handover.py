"""Which of a run's networks is evaluated, exported, loaded and trained from.

A method says which (`state.Method.network`). A run records it in run.json, a
converted directory in config.json, an exported file in its metadata.
"""

from collections.abc import Collection

NETWORKS = ('student', 'teacher')
AUTO = 'auto'


def handed_on(
  networks: Collection[str],
  recorded: str | None = None,
  method: str | None = None,
) -> str:
  """The network that is meant where the user names none.

  Args:
    networks: those there are, of `NETWORKS`.
    recorded: what the run, directory or file says itself, if it does.
    method: the name of what trained them, for published files and for runs of
      versions that recorded nothing.

  Returns:
    The recorded network; else the teacher, except for MoCo, whose momentum
    encoder only supplies keys (MoCo-v3, arXiv 2104.02057, section 3). Where
    only one is left, that one.
  """
  preferred = recorded or ('student' if method == 'moco' else 'teacher')
  return preferred if preferred in networks else next(iter(networks))
