"""Records drawn: `raster` as pixels, `figures` as interactive figures."""
