"""A DAVIS folder of videos in memory."""

from PIL import Image


def write_davis(root, videos, split='val'):
  """A DAVIS folder; frames are stored with little loss."""
  names = []
  for video in videos:
    names.append(video.name.replace(' ', '_'))
    places = [
      root / kind / '480p' / names[-1] for kind in ('JPEGImages', 'Annotations')
    ]
    for place in places:
      place.mkdir(parents=True)
    for t, (frame, objects) in enumerate(zip(video.frames, video.objects)):
      picture = Image.fromarray(frame[..., 0])
      picture.save(places[0] / f'{t:05d}.jpg', quality=98)
      mask = Image.fromarray(objects)
      mask.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255] * 10)
      mask.save(places[1] / f'{t:05d}.png')
  lists = root / 'ImageSets' / '2017'
  lists.mkdir(parents=True, exist_ok=True)
  (lists / f'{split}.txt').write_text('\n'.join(names) + '\n')
