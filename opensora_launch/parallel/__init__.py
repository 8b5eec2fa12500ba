"""Split work over ranks: the mesh, shares of tokens, heads, weights, guidance rows and VAE tiles.

These are functions of tensors and groups. No other room asks how many ranks there are.
"""
