"""What a GPU gives and what cuDNN takes: see README.md beside this file."""
