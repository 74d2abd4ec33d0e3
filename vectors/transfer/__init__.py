"""Files into namespaces and namespaces into files: what `load_vectors` and `export_vectors` do."""
