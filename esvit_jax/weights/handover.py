"""Which network of a run is evaluated, exported, loaded and trained from.

A method decides it (`state.Method.network`). Runs record it in run.json,
converted directories in config.json, exported files in their metadata.
"""

from collections.abc import Collection

NETWORKS = ('student', 'teacher')
AUTO = 'auto'


def handed_on(
  networks: Collection[str],
  recorded: str | None = None,
  method: str | None = None,
) -> str:
  """The network to use if the user names none.

  Args:
    networks: the existing ones of `NETWORKS`.
    recorded: the one that the run, directory or file records, if any.
    method: that trained them, for published files and for runs of versions
      that recorded nothing.

  Returns:
    The recorded network; else the teacher or, for MoCo, the student, since a
    momentum encoder only supplies keys (MoCo-v3, arXiv 2104.02057, section 3).
    If that does not exist, the other.
  """
  preferred = recorded or ('student' if method == 'moco' else 'teacher')
  return preferred if preferred in networks else next(iter(networks))
