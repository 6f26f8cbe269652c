"""Grids of experiments and the papers' tables made from their result records."""
