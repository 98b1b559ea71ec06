"""Values and gradients beside those of other packages and of publications."""
