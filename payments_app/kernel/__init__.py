"""Code that any payment service needs. One concept for each file, its rule in the first line."""
