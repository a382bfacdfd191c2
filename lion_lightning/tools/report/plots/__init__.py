"""Plots of a report: what each shows, as SVG in the page and as one PNG for a README."""
