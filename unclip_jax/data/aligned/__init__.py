"""Aligned arrays: targets and conditions of any kind, row by row, without images.

tables.py      arrays of .npy, .npz, .parquet and .txt files
config.py      what `python -m unclip_jax.align` reads from a config
alignment.py   which row of each condition belongs to which row of the target
writer.py      a folder of memory-mapped arrays per split
inspection.py  shapes, norms, NaNs, duplicates, keys: before anybody trains
reader.py      such a folder as a source of data
"""
