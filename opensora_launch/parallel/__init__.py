"""Work split over ranks: mesh, token shares, Ulysses, ring and hybrid attention, guidance rows, VAE tiles.

Functions of tensors and groups. Only this room asks how many ranks there are.
"""
