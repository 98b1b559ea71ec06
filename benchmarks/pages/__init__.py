"""Tools that the generated pages share, and the picture of the README."""
