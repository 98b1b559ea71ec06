"""Image files: those of a folder, and their pixels as they are stored.

`folders` finds the files, `reader` reads one of any format, `tiff` reads TIFFs for it, and
`picture` has the result and the user's choices. Pillow and tifffile are imported where they are
used.
"""
