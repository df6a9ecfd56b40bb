"""Low-rank adapters: their files and their algebra."""
