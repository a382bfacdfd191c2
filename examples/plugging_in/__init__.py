"""Parts of this package in Lightning projects that exist already, one by one: see docs/plugging_in.md."""
