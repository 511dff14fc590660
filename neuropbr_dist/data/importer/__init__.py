"""Other people's materials -> a folder of materials in this package's layout."""
