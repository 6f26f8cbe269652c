"""What a recipe costs, counted on the meta device, and what the papers say it costs."""
