"""`lion inspect`: what training would see."""
