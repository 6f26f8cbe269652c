"""A sweep of one table, a cell a codebook size."""

HEAD = """
title: A test
tables:
  - id: one
    title: Quantizers
    paper: "a paper"
    row_heads: [K]
    columns: [{metric: rfid, head: rFID, format: .1f}]
    cells:
"""


def sweep_of(*sizes: int) -> str:
    cell = "      - {{experiment: vqgan, row: {{K: {0}}}, set: {{model.codebook_size: {0}}}}}\n"
    return HEAD + "".join(cell.format(size) for size in sizes)
