"""How the table of VQGAN-LC is made: features of a data set, streamed to disk, and their k-means."""
