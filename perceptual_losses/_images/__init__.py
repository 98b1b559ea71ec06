"""Image files: which a folder has, and their pixels as the files have them.

`folders` finds the files, `reader` reads one of any format, `tiff` those whose tags decide, and
`picture` has what they give. Pillow and tifffile are imported where they are used.
"""
