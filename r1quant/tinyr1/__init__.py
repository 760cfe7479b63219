"""The embedded model tiny-r1, the generator of its problems and a held-out set of them."""
