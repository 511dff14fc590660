"""Photos of a surface: read as phones write them, registered to each other, brought into the plane's own frame.

`read.read_photo` reads one, `align.align` finds how one to three of them see the plane, `frame` holds the common square.
OpenCV, which does features and resampling, is an extra; a single photo, or `--cameras none`, needs none of it.
"""
