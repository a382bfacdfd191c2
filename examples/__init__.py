"""Short programs and classes outside the package: README.md in this folder lists them."""
