"""The models of the examples at an equal budget, and the page on them."""
