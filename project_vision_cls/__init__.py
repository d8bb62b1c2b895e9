"""Image classification from photos in class folders: `python -m project_vision_cls.train --help`."""
